"""The short stop: workers, server, one transaction in which the databases swap names, server, flow runs, workers."""

from __future__ import annotations

import contextlib
import json
import time
from pathlib import Path
from typing import Any

import psycopg

from . import block_key, previous, unfinished, workers
from .decide import Live, Renames
from .errors import Code, Failure
from .files import remove
from .host import Host
from .journal import Journal
from .postgres import GIVEN_UP, LIVE, RESTORING
from .progress import failpoint
from .served import serve_with
from .take_back import take_back

#: The journals of upgrades that are under way (prefect_upgrades/record.py).
UPGRADES = ("upgrade.json", "postgres-upgrade.json")
CRASHED = "Its process did not survive: the server was restored from the backup {backup}."
CANCELLED = "Its time passed before the server was restored from the backup {backup}."


def switch(host: Host, journal: Journal, renames: Renames, drain: float = 0.0) -> dict[str, Any]:
    """From the old data to the new ones; gives the facts for --json. Raises Failure.

    Args:
        drain: seconds that running flow runs get to end; none with 0.
    """
    report, postgres = host.report, host.postgres
    workers.remember(host, journal)
    journal.enter(host.state, "switching")
    stopped = time.monotonic()
    try:
        if drain:
            workers.drain(host, journal, drain)
        workers.stop(host, journal)
        # Of a restore that was killed after its swap.
        postgres.drop(GIVEN_UP)
        stopped = time.monotonic()
        with report.step("server stopped", "stop server"):
            host.stack.stop_server()
            host.stack.forget_leases()
        for old, new in renames:
            if new == LIVE:
                _settle(host, old)
        with report.step("databases swap names in one transaction", "swap"):
            postgres.swap(*renames)
    except BaseException:
        # Where Postgres does not answer, nobody knows yet whether they have swapped: the journal tells a resumption.
        if postgres.answers() and unfinished.live(host, journal) is not Live.TARGET:
            take_back(host, journal)
        raise
    return go_live(host, journal, time.monotonic() - stopped)


def _settle(host: Host, database: str) -> None:
    """The key of one that a kit of before has made is in it. One that is broken stays as it is."""
    if mine := block_key.here(host.settings):
        with contextlib.suppress(psycopg.Error), host.postgres.connect(database, autocommit=False) as connection:
            block_key.settle(connection, mine)


def go_live(host: Host, journal: Journal, before: float = 0.0) -> dict[str, Any]:
    """Everything after the swap; what is done twice does no harm. `before` is the downtime so far, in seconds."""
    facts: dict[str, Any] = {}
    started = time.monotonic()
    reconciled = journal.phase == "starting"
    if not reconciled:
        journal.enter(host.state, "ordering")
        if journal.keep_previous:
            previous.note(host.settings, journal.backup, journal.image_before)
        if journal.lost:
            return _go_back_to_a_broken_one(host, journal)
    with host.report.step("server started and ready", "start server"):
        if journal.image and not reconciled:
            serve_with(host, journal.image)
        host.stack.start_server()
    facts["downtime_seconds"] = round(before + time.monotonic() - started, 1)
    if not reconciled and not journal.as_is:
        with host.report.step("runs of the dead, runs whose time has passed, slots", "order"):
            facts |= host.in_server(
                do="order",
                cancel_before=journal.cancel_before,
                message=CRASHED.format(backup=journal.backup),
                cancel_message=CANCELLED.format(backup=journal.backup),
            )
    journal.enter(host.state, "starting")
    _start_proxy(host)
    late = workers.start(host, journal)
    _drop_given_up(host)
    give_up_upgrades(host)
    failpoint("end")
    # Also where a worker does not come: nothing is left that a resumption could do better than systemd.
    journal.end(host.state)
    if late is not None:
        raise late
    return {**facts, "workers": len(journal.workers), "workers_down": workers.down(host)}


def give_up_upgrades(host: Host) -> None:
    """A restore is a person's newer decision: an upgrade that did not end must not come back to it at the next boot."""
    for name in UPGRADES:
        if (path := host.state / name).exists():
            aside = _set_aside(path)
            remove(path)
            host.report.say(f"      given up: the upgrade that did not end ({path})", style="yellow")
            if aside:
                kept = (
                    f"the cluster that it had set aside stays in {aside}; when nobody needs it any more: rm -r {aside}"
                )
                host.report.say(f"      {kept}", style="yellow")


def _set_aside(journal: Path) -> str:
    """Where an upgrade of Postgres has put the cluster of before; empty where there is none, or nothing says so."""
    try:
        aside = json.loads(journal.read_text()).get("aside", "")
    except (OSError, ValueError, AttributeError):
        return ""
    return aside if aside and Path(aside).is_dir() else ""


def _go_back_to_a_broken_one(host: Host, journal: Journal) -> dict[str, Any]:
    """An undo to a database that the server cannot serve: as it was before, which nobody has to wait for. Raises Failure."""
    with host.report.step("server started, with the database as it was", "start server"):
        host.stack.start_server(wait=False)
    with contextlib.suppress(Failure):
        host.stack.start_workers(journal.workers, wait=False)
    _drop_given_up(host)
    journal.end(host.state)
    raise Failure(
        Code.NOT_READY,
        "the database of before is back as it was, without the tables"
        f" {', '.join(journal.lost[:5])}{' …' if len(journal.lost) > 5 else ''}: the server cannot serve it",
        "forward again: prefect-restore --undo ; or another backup: prefect-restore --list",
    )


def _start_proxy(host: Host) -> None:
    """Workers and people come through it; the data are restored with and without it."""
    try:
        host.stack.start_proxy()
    except Failure as failure:
        host.report.say(f"      the reverse proxy does not start: {failure.fact}", style="yellow")


def _drop_given_up(host: Host) -> None:
    """The undo of an earlier restore is given up only now, when this one has one of its own; and what one that did
    not end had built."""
    for name in (GIVEN_UP, RESTORING):
        host.postgres.drop(name)
