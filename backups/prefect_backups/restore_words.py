"""What prefect-restore tells a person: what there is, what would be done, and how it went."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich.table import Table

from . import lock, undo, verify
from .errors import Failure
from .host import Host
from .journal import MEANING, Journal
from .plan import TAKE_BACK_ONLY, Plan, Request
from .postgres import PREVIOUS
from .progress import Report, duration, size
from .restic import Backup
from .restore import RESUMPTION
from .unfinished import undo_takes_back


def table_of(backups: list[Backup], state: Path, now: datetime) -> Table:
    """Backups, newest first, numbered."""
    table = Table(box=None, pad_edge=False)
    for title in ("", "id", "age", "size", "kind", "Prefect", "where", "verified"):
        table.add_column(title, justify="right" if title in ("", "age", "size") else "left")
    verified = verify.verified(state)
    for number, one in enumerate(backups, 1):
        age = duration((now - one.time).total_seconds())
        proof = verified.get(one.id, "")
        table.add_row(str(number), one.id, age, size(one.size), one.kind, one.prefect, one.repository, proof)
    return table


def explain(plan: Plan, request: Request, report: Report) -> None:
    """What would be done, in the words of who has to decide."""
    facts = plan.manifest
    rows = sum(table.rows for table in facts.tables.values())
    age = duration((datetime.now(UTC) - plan.backup.time).total_seconds())
    report.say(f"Backup    {plan.backup.id}, {age} old, from the repository {plan.repository.name}")
    report.say(
        f"          Prefect {facts.prefect}, Postgres {facts.postgres}, {rows:,} rows, {size(facts.database_bytes)}"
    )
    kept = {
        "readable": "is backed up first, then kept as it is for --undo",
        "unreadable": "cannot be read whole; it is kept as it is for --undo",
        "unknown": "is not known as long as Postgres is down; what is worth it is kept for --undo",
    }
    if request.new_cluster:
        report.say("There now is set aside with all of Postgres's data; the API is away from here on until the end")
    else:
        report.say(f"There now {kept.get(plan.live, 'is nothing to keep')}")
    for note in plan.notes:
        report.say(f"          {note}")
    if facts.prefect != plan.prefect:
        report.say(f"Prefect   {facts.prefect} there, {plan.prefect} here: migrations run before the swap")
    if request.as_is:
        report.say("Runs      stay as the backup has them (--as-is)")
    elif plan.cancel_before is None:
        report.say("Late runs all run late (--run-late)")
    else:
        when = plan.cancel_before.astimezone().strftime("%Y-%m-%d %H:%M:%S %Z")
        report.say(f"Late runs due before {when} are cancelled, later ones run late")
    report.say(
        "Workers   " + (f"drain up to {request.drain:.0f} s" if request.drain else "are stopped: their runs end")
    )


def unfinished_of(state: Path, report: Report) -> Journal | None:
    """The restore that did not end, if there is one; said in words, in front of whatever is decided."""
    try:
        found = Journal.load(state)
    except Failure as failure:
        report.say(f"Unfinished restore: {failure.fact}", style="yellow")
        return None
    if found is not None:
        ago = duration(datetime.now(UTC).timestamp() - found.started)
        now = "; systemd is at work on it" if lock.holder(state) == RESUMPTION else ""
        report.say(f"Unfinished {found.name}, begun {ago} ago: {MEANING[found.phase]}{now}", style="yellow")
    return found


def explain_undo(host: Host, unfinished: Journal | None) -> int:
    """What an undo would do; gives the identity of the database that it goes back to, see Request.shown."""
    if not host.postgres.answers():
        host.report.say("Postgres is down: it is started first; what there is to go back to is not known until then")
        return 0
    if unfinished is not None and undo_takes_back(host, unfinished):
        host.report.say(f"To take back: {unfinished.name}, and nothing more. The data of now stay.")
        return TAKE_BACK_ONLY
    host.report.say(f"To go back to: {undo.check(host)}")
    return host.postgres.oid(PREVIOUS)


def summary(result: dict[str, Any], report: Report) -> None:
    """The end, for who has to tell others."""
    report.say("")
    if "resumed" in result:
        report.say(f"{result['backup']}: {result['resumed']}.", style="bold green")
        return
    what = "Undone" if result["backup"] == "undo" else f"Restored {result['backup']} from {result['repository']}"
    report.say(f"{what}. The API was away for {result['downtime_seconds']} s.", style="bold green")
    if "crashed" in result:
        report.say(
            f"  {result['crashed']} flow runs that were at work then are Crashed, {result['cancelled']} whose time had"
            f" passed are Cancelled, {result['late']} run late; {result['slots_freed']} concurrency slots came free."
        )
    if "smoke" in result:
        seen = f"Smoke flow through the reverse proxy: {result['smoke']}"
        report.say(f"  {seen if result['smoke'] else 'No smoke flow ran: these data have no deployment for it'}.")
    report.say(f"  {workers_of(result['workers'], result['workers_down'])}")
    if result.get("undo"):
        report.say(f"  To undo: {result['undo']}")


def workers_of(back: int, down: list[str]) -> str:
    """What is true of the workers of this host.

    Args:
        back: how many ran before, and run again.
        down: those that start at boot and do not run.
    """
    said = f"{back} worker{' is' if back == 1 else 's are'} back."
    if not down:
        return said
    one = len(down) == 1
    return (
        f"{said} {len(down)} {'does' if one else 'do'} not run, and did not before: {', '.join(down)};"
        f" start {'it' if one else 'them'}: systemctl start {' '.join(down)}"
    )
