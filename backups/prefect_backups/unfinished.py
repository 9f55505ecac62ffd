"""A restore that did not end, as this host shows it: what its journal says, and what Postgres says to that.

What is done about it is decided in decide.py; take_back.py and resume.py do it.
"""

from __future__ import annotations

import contextlib

import psycopg

from . import decide, previous
from .decide import Action, Command, Live
from .errors import Failure
from .host import Host
from .journal import MEANING, Journal
from .postgres import GIVEN_UP, LIVE, PREVIOUS, RESTORING


def read(host: Host) -> Journal | None:
    """The restore that did not end; a journal that cannot be read is set aside."""
    try:
        found = Journal.load(host.state)
    except Failure as failure:
        host.report.say(f"      {failure.fact}; it is kept as {Journal.set_aside(host.state)}", style="yellow")
        return None
    host.stack.repair_caddy_data()
    return found


def live(host: Host, journal: Journal) -> Live:
    """What the live database is, seen from a journal."""
    try:
        oid = host.postgres.oid(LIVE)
        if not oid:
            return Live.GONE
        same = not journal.cluster or journal.cluster == host.postgres.cluster()
    except (Failure, psycopg.Error):
        return Live.GONE
    with contextlib.suppress(Failure, psycopg.Error):
        # One that is too broken for that question is broken in another way.
        if not host.postgres.tables():
            return Live.GONE
    return Live.TARGET if same and oid == journal.target else Live.BEFORE


def action(host: Host, command: Command, journal: Journal) -> Action:
    """What a command does about it."""
    return decide.unfinished(command, journal.phase, live(host, journal), journal.served, bool(journal.aside))


def swapped(host: Host, journal: Journal) -> bool:
    """Whether its databases have swapped; asked of Postgres where the phase does not tell."""
    if journal.phase == "switching":
        with contextlib.suppress(Failure):
            host.start_postgres()
        return live(host, journal) is Live.TARGET
    return journal.phase != "building"


def undo_takes_back(host: Host, journal: Journal) -> bool:
    """Whether an undo takes it back, and does nothing more: its databases have not swapped yet."""
    return action(host, Command.UNDO, journal) is Action.TAKE_BACK


def give_up(host: Host, earlier: Journal | None, journal: Journal) -> bool:
    """Let a new journal take the place of an unfinished one; gives whether the live database is one of it, unserved."""
    if earlier is None:
        return False
    where = live(host, earlier)
    host.report.say(f"      given up: {earlier.name}, which did not end ({MEANING[earlier.phase]})")
    journal.take_place_of(earlier)
    return where is Live.TARGET and earlier.backup != "undo" and earlier.keep_previous


def tolerated(host: Host, earlier: Journal | None) -> list[str]:
    """Databases of ours that may have no mark: of a kit before there were marks, or killed before it was made."""
    names = [RESTORING, GIVEN_UP] if earlier is not None else []
    return names + [PREVIOUS] * previous.unmarked(host.settings)


def refuse_foreign(host: Host, what: str, earlier: Journal | None) -> None:
    """Raise Failure (FOREIGN) where a person's database has a name of ours; what is ours is marked so."""
    there = host.postgres.databases()
    for name in tolerated(host, earlier):
        if name in there:
            host.postgres.adopt(name)
    previous.marked(host.settings)
    host.postgres.refuse_foreign(what)
