"""What becomes of a restore that did not end, and which databases change names: pure decisions.

A journal (journal.py) in any phase lets a newer decision of a person through: it never has to be moved away by hand.
tests/unit/test_restore_table.py walks the whole table of phases, disasters and commands.
"""

from __future__ import annotations

from enum import Enum

from .postgres import GIVEN_UP, LIVE, PREVIOUS, RESTORING, SWAPPING


class Command(Enum):
    """What a person, or systemd after a death and at boot, has asked for."""

    # --latest, --id, --before, with or without --new-cluster.
    RESTORE = "restore"
    UNDO = "undo"
    # By a person, by the end of a unit that died, or at boot.
    RESUME = "resume"


class Live(Enum):
    """What the live database is, seen from the journal of a restore that did not end."""

    # Postgres does not start, or the database is missing or without a table.
    GONE = "gone"
    # The one that was served before.
    BEFORE = "before"
    # The one that was to take its place: the two have swapped.
    TARGET = "target"


class Action(Enum):
    """What is done about a restore that did not end."""

    NOTHING = "nothing"
    # What was served before is served again; nothing is left of it. Nothing else is done then, not even an undo.
    TAKE_BACK = "take back"
    # The databases have swapped: server, flow runs and workers follow.
    FINISH = "finish"
    # It ends here; the newer command goes on from what is there.
    GIVE_UP = "give up"
    # Neither way is open without a person's decision.
    STUCK = "stuck"


def unfinished(command: Command, phase: str | None, live: Live, served: bool = True, aside: bool = False) -> Action:
    """What to do about a restore in a phase (None: there is none).

    Args:
        served: whether the server was ready when it began. Where it was not, nobody waits for it to be so again.
        aside: whether the data of the cluster before were set aside, and can be put back.
    """
    if phase is None:
        return Action.NOTHING
    if command is Command.RESTORE:
        return Action.GIVE_UP
    if phase == "building" or (phase == "switching" and aside and live is not Live.TARGET):
        return Action.TAKE_BACK
    # By its database, not by the phase: it may have died between the swap and its next line in the journal.
    if command is Command.UNDO:
        return Action.TAKE_BACK if phase == "switching" and live is Live.BEFORE else Action.GIVE_UP
    if live is Live.TARGET:
        return Action.FINISH
    # Somebody has put the database of before back by hand, where the phase says that the two had swapped.
    if live is Live.BEFORE or (phase == "switching" and not served):
        return Action.TAKE_BACK
    return Action.STUCK


def safety_backup(live: str, wanted: bool, lost: bool) -> bool:
    """Whether what is there is backed up before a restore.

    Args:
        live: what the live database is, see plan.Plan.
        wanted: whether a person has said nothing else.
        lost: whether Postgres itself does not start (--new-cluster): then nothing can be read.
    """
    return wanted and not lost and live not in ("missing", "empty")


Renames = list[tuple[str, str]]


def of_restore(live: str, there: set[str], initial: bool, unserved: bool) -> tuple[Renames, bool]:
    """The renames of a restore, and whether what is live now is what `--undo` brings back afterwards.

    Args:
        live: what the live database is: "missing", "empty", "readable" or "unreadable".
        there: the databases.
        initial: whether this is the first restore on a new host.
        unserved: what is live was brought by a restore that never ended: a copy of a backup. The database of before that
            restore is worth more, and stays what `--undo` brings back.
    """
    worth = live in ("readable", "unreadable") and not initial and not (unserved and PREVIOUS in there)
    renames = [(PREVIOUS, GIVEN_UP), (LIVE, PREVIOUS)] if worth else [(LIVE, GIVEN_UP)]
    return possible([*renames, (RESTORING, LIVE)], there), worth


def of_undo(live_has_tables: bool, there: set[str]) -> Renames:
    """The renames of an undo; a live database that is missing or without a table is nothing to come back to."""
    if not live_has_tables:
        return possible([(LIVE, GIVEN_UP), (PREVIOUS, LIVE)], there)
    return possible([(LIVE, SWAPPING), (PREVIOUS, LIVE), (SWAPPING, PREVIOUS)], there)


def possible(renames: Renames, there: set[str]) -> Renames:
    """The renames whose database exists when their turn comes: one that somebody dropped is no obstacle."""
    names, chosen = set(there), []
    for old, new in renames:
        if old in names:
            names = names - {old} | {new}
            chosen.append((old, new))
    return chosen
