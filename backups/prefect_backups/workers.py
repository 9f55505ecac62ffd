"""Workers and work pools during a restore: drained, stopped, and started as they were."""

from __future__ import annotations

import time

from .errors import Failure
from .host import Host
from .journal import Journal
from .progress import duration


def remember(host: Host, journal: Journal) -> None:
    """What runs now shall run again."""
    journal.workers = sorted({*journal.workers, *host.stack.active_workers()})


def drain(host: Host, journal: Journal, seconds: float) -> None:
    """Take no new runs, and give the running ones time to end."""
    if not host.stack.serves():
        host.report.say("      nothing to drain: the server does not answer")
        return
    with host.report.step(f"running flow runs get {duration(seconds)} to end", "drain") as advance:
        journal.paused = sorted({*journal.paused, *host.in_server(do="pause")["paused"]})
        journal.save(host.state)
        end = time.monotonic() + seconds
        while (running := _running(host)) and time.monotonic() < end:
            advance(None, f"{running} running")
            time.sleep(1)
    if running:
        host.report.say(f"      {running} flow runs are still running and will be ended")


def _running(host: Host) -> int:
    with host.postgres.connect() as connection:
        query = "SELECT count(*) FROM flow_run WHERE state_type IN ('RUNNING', 'PENDING', 'CANCELLING')"
        return connection.execute(query).fetchone()[0]


def stop(host: Host, journal: Journal) -> None:
    """Stop them; the world before is left as it was found, should it come back by an undo. Raises Failure."""
    with host.report.step("workers stopped", "stop workers"):
        host.stack.stop_workers(journal.workers)
    unpause(host, journal)


def unpause(host: Host, journal: Journal) -> None:
    """Resume the work pools that were paused to drain."""
    if not journal.paused:
        return
    if host.stack.serves():
        host.in_server(do="unpause", paused=journal.paused)
    else:
        # Of a restore that was cut off with the server stopped.
        host.report.say(f"      paused in the database of before, should it come back: {', '.join(journal.paused)}")
    journal.paused = []
    journal.save(host.state)


def start(host: Host, journal: Journal) -> Failure | None:
    """Start what ran before; gives what does not come."""
    try:
        with host.report.step("workers started", "start workers"):
            host.stack.start_workers(journal.workers, wait=not host.by_systemd)
    except Failure as failure:
        return failure
    return None


def down(host: Host) -> list[str]:
    """Those that start at boot and do not run, though nothing of this restore has stopped them."""
    try:
        return [] if host.by_systemd else host.stack.down_workers()
    except Failure:
        return []
