"""The rehearsal of an upgrade: a copy of the live data is migrated, and both servers are asked on it. Nothing is changed."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from prefect_backups import block_key
from prefect_backups.bring_back import bring_back, prove
from prefect_backups.errors import Code, Failure
from prefect_backups.files import write_whole
from prefect_backups.host import Host
from prefect_backups.plan import Plan, Planner, Request
from prefect_backups.postgres import RESTORING

from . import side
from .decide import read_otherwise
from .migrations import migrate
from .record import Rehearsal

# An index whose build was cut off stays, costs at each write, and is never used (PrefectHQ/prefect #23032).
INVALID_INDEXES = (
    "SELECT indexrelid::regclass::text FROM pg_index WHERE NOT indisvalid AND indrelid::regclass::text NOT LIKE 'pg_%'"
)
HINT = "nothing has changed: the server of before serves"


def rehearse(host: Host, before: str, after: str) -> Rehearsal:
    """Migrate the newest backup beside the live database with the image `after`, and ask both servers on it.

    Args:
        before: the image that serves now.
        after: the image that is to.

    Raises:
        Failure: REHEARSAL, where the new version could not be brought to serve these data; or what a restore raises.
    """
    report = host.report
    with report.step("checks that change nothing", "checks"):
        plan = Planner(host).plan(Request(), touch=False)
    write_whole(mark(host.state), f"{after}\n")
    try:
        rehearsal = _rehearse(host, plan, before, after)
    finally:
        clean_up(host)
    rehearsal.seconds = dict(report.seconds)
    rehearsal.save(host.state)
    return rehearsal


def mark(state: Path) -> Path:
    """The file that is there while there is something to clean up."""
    return state / "rehearsing"


def clean_up(host: Host) -> None:
    """Remove all that a rehearsal has made, also one that was killed. Raises Failure, then it is to be done again."""
    side.remove(side.REHEARSAL, grace=2)
    host.postgres.end_orphans()
    host.postgres.remove_staging("restore")
    host.postgres.drop(RESTORING)
    mark(host.state).unlink(missing_ok=True)


def _rehearse(host: Host, plan: Plan, before: str, after: str) -> Rehearsal:
    report, postgres = host.report, host.postgres
    bring_back(
        plan.repository, plan.backup, plan.manifest, postgres, host.settings, report, "a copy beside the live one"
    )
    prove(plan.backup, plan.manifest, postgres, report, HINT)
    with postgres.connect(RESTORING, autocommit=False) as connection:
        block_key.settle(connection, block_key.here(host.settings), plan.encryption_key)
    revision = postgres.revision(RESTORING) or ""
    _migrate(host, after)
    found = Rehearsal(
        before, after, time.time(), plan.backup.id, revision, postgres.revision(RESTORING) or "", old_serves=True
    )
    with postgres.connect(RESTORING) as connection:
        broken = [row[0] for row in connection.execute(INVALID_INDEXES)]
    if broken:
        raise Failure(Code.REHEARSAL, f"the migrations leave indexes that are not valid: {', '.join(broken)}", HINT)
    with report.step("the new server on the copy", "new server"):
        new = _serves(host, after)
    found.unknown_settings = new["unknown_settings"]
    try:
        with report.step("the old server on the migrated copy", "old server"):
            old = _serves(host, before)
        found.deployments_otherwise = read_otherwise(old["deployments"], new["deployments"])
    except Failure as failure:
        # It has to stop before the database is migrated, and the way back is another one: no reason to refuse.
        found.old_serves, found.old_fails = False, failure.fact
    return found


def _migrate(host: Host, image: str) -> None:
    try:
        migrate(host, RESTORING, image, f"migrations of the copy to {image}")
    except Failure as failure:
        raise Failure(Code.REHEARSAL, f"the migrations to {image} fail: {failure.fact}", HINT) from failure


def _serves(host: Host, image: str) -> dict[str, Any]:
    """Have an image's server serve the copy, and ask it; gives what questions.py prints. Raises Failure."""
    try:
        with side.on_a_copy(host, image, RESTORING) as container:
            return side.ask(container)
    except Failure as failure:
        raise Failure(Code.REHEARSAL, f"{image} does not serve these data: {failure.fact}", HINT) from failure
