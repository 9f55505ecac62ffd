"""Building beside: the backup becomes a database that nobody uses yet, however long that takes. The old one serves."""

from __future__ import annotations

import time
from pathlib import Path

from prefect_audit import keep

from . import backup, block_key, units, workers
from .bring_back import bring_back, prove
from .errors import Code, Failure
from .host import Host
from .journal import Journal
from .plan import Plan
from .postgres import RESTORING
from .progress import Report


def safety_backup(host: Host) -> None:
    """Back up what is there now. Raises Failure (SAFETY_BACKUP)."""
    with host.report.step("safety backup of what is there", "safety"):
        try:
            made = backup.create_unlocked(host.settings, "safety", Report.silent())
        except Failure as failure:
            raise Failure(
                Code.SAFETY_BACKUP,
                f"Refusing to go on: what is there now cannot be backed up first: {failure.fact}",
                "nothing has changed. To go on without: the same command with --without-safety-backup; what is there"
                " is then kept as it is, for prefect-restore --undo, and nowhere else",
            ) from failure
    host.report.say(f"      kept as {made['id']}")


def new_cluster(host: Host, journal: Journal) -> None:
    """What is there is set aside, until the backup is proven in a new cluster; take_back.py brings it back."""
    with host.report.step("broken cluster set aside, a new one begun", "new cluster"):
        data = host.stack.volume()
        journal.aside = str(data.with_name(time.strftime("broken-%Y%m%dT%H%M%SZ", time.gmtime())))
        journal.stopped = time.time()
        workers.remember(host, journal)
        journal.save(host.state)
        host.stack.set_aside(Path(journal.aside))
        host.stack.start_postgres(host.postgres)
        units.restart_exporter()


def database(host: Host, plan: Plan, journal: Journal) -> None:
    """The backup as a new database beside the live one, proven. Raises Failure."""
    report, postgres = host.report, host.postgres
    where = "a new cluster" if journal.aside else "a new database, the old one serving"
    bring_back(plan.repository, plan.backup, plan.manifest, postgres, host.settings, report, where)
    hint = "nothing has changed; choose another backup: prefect-restore --list"
    if journal.aside:
        hint = "what was there before is put back; choose another backup: prefect-restore --list"
    prove(plan.backup, plan.manifest, postgres, report, hint)
    if mine := block_key.here(host.settings):
        with (
            report.step("blocks encrypted with this host's key", "blocks"),
            postgres.connect(RESTORING, autocommit=False) as connection,
        ):
            block_key.settle(connection, mine, plan.encryption_key)
    if plan.manifest.prefect != plan.prefect:
        with report.step(f"migrations from Prefect {plan.manifest.prefect} to {plan.prefect}", "migrate"):
            host.stack.migrate(RESTORING, journal.image)
    with report.step("statistics for the query planner", "analyze"), postgres.connect(RESTORING) as connection:
        connection.execute("ANALYZE")
    journal.target, journal.cluster = postgres.oid(RESTORING), postgres.cluster()


def files(host: Host, plan: Plan) -> None:
    """Caddy's authority and certificates, on a new host: its clients then trust it as before."""
    kept = Path(host.stack.environment().get("PREFECT_STATE", "/var/lib/prefect")) / "caddy"
    into = host.postgres.make_staging("files")
    with host.report.step("certificate authority and certificates", "files") as advance:
        plan.repository.restore(plan.backup, str(kept), into, advance)
        host.stack.replace_caddy_data(into)
    host.postgres.remove_staging("files")


def audit(host: Host, plan: Plan) -> None:
    """Who did what, as far as this host does not know it: on a new host, what was done on the lost one. No reason to fail."""
    directory = host.settings.audit
    if directory not in plan.manifest.files:
        # Made before there was an audit.
        return
    try:
        # Not by way of the staging directory: Postgres could write there.
        with host.report.step("audit of before", "audit") as advance, keep.arrivals(Path(directory)) as into:
            plan.repository.restore(plan.backup, directory, into, advance)
            count = keep.bring_back(Path(directory), into)
    except (Failure, OSError) as error:
        host.report.say(
            f"      the audit of before is not restored: {error.fact if isinstance(error, Failure) else error}",
            style="yellow",
        )
    else:
        host.report.say(f"      {count} lines are new to this host")
