"""The database of before a restore, as an undo sees it: what it is, whether it can be served, and giving it up."""

from __future__ import annotations

import contextlib
import time

import psycopg

from . import previous
from .errors import Code, Failure
from .host import Host
from .journal import Journal
from .plan import TAKE_BACK_ONLY
from .postgres import LIVE, PREVIOUS
from .progress import duration, size

LOOK_AGAIN = "look again: prefect-restore --undo --dry-run"


def check(host: Host) -> str:
    """Whether there is something to undo; says what, and what is wrong with it. Raises Failure (NO_UNDO)."""
    if PREVIOUS not in host.postgres.databases():
        raise Failure(
            Code.NO_UNDO,
            f'there is no restore to undo: no database "{PREVIOUS}"',
            f"it is kept for {host.settings.keep_previous_days:.0f} days after a restore; safety backups are in:"
            " prefect-restore --list",
        )
    known = previous.read(host.settings)
    when = duration(time.time() - known["since"]) + " ago" if "since" in known else "at an unknown time"
    name = Journal(known.get("backup", "?")).name
    said = f"the database of before {name}, {when} ({size(host.postgres.size(PREVIOUS))})"
    if lost := lost_tables(host):
        said += f"\nBut the server cannot serve it: it lacks the tables {', '.join(lost)}"
    return said


def refuse_what_was_not_shown(shown: int, there: int) -> None:
    """Raise Failure (DECLINED) where the database of before is not the one that a person has confirmed.

    Args:
        shown: its identity then; 0 where none was shown.
        there: its identity now.
    """
    if shown not in (0, there):
        raise Failure(
            Code.DECLINED,
            "what --undo goes back to is not what was shown: another restore has come between",
            LOOK_AGAIN,
        )


def refuse_nothing_to_take_back(shown: int) -> None:
    """Raise Failure (DECLINED) where an undo was to take back an unfinished restore, and nothing more, and there is none."""
    if shown == TAKE_BACK_ONLY:
        raise Failure(
            Code.DECLINED,
            "there is nothing to take back any more: the unfinished restore has ended meanwhile",
            LOOK_AGAIN,
        )


def lost_tables(host: Host) -> list[str]:
    """Tables that the database of before lacks, and that the server needs."""
    postgres = host.postgres
    try:
        there = postgres.tables(PREVIOUS)
    except (Failure, psycopg.Error):
        # Broken in another way; that shows when it is served.
        return []
    with contextlib.suppress(Failure, psycopg.Error):
        if postgres.revision(PREVIOUS) == postgres.revision(LIVE):
            return sorted(postgres.tables(LIVE) - there)
    return sorted({"alembic_version", "flow_run", "flow", "deployment", "work_pool", "log"} - there)


def migrate(host: Host, image: str = "") -> None:
    """Bring the database of before to the Prefect that is to serve it; one without a migration of its own stays as it is.

    Args:
        image: which that is; the one that serves now without.
    """
    wanted = host.postgres.revision(PREVIOUS)
    here = host.postgres.revision(LIVE) if LIVE in host.postgres.databases() else None
    if wanted is None or wanted == here:
        return
    with host.report.step("migrations of the database before", "migrate"):
        host.postgres.hand_over(PREVIOUS)
        try:
            host.stack.migrate(PREVIOUS, image)
        except Failure as failure:
            # Alembic's words for a schema of a later version: after a way back of an upgrade by the image alone, which has
            # been seen to serve that (prefect_upgrades/rehearse.py). Should it not do so now, the undo is taken back.
            if "Can't locate revision" not in failure.fact:
                raise


def live_has_tables(host: Host) -> bool:
    """Whether what an undo leaves is something to come back to."""
    return LIVE in host.postgres.databases() and bool(host.postgres.tables(LIVE))


def command(host: Host) -> str | None:
    """The command that goes back from here, where there is something to go back to."""
    if PREVIOUS in host.postgres.databases():
        return "prefect-restore --undo"
    previous.forget(host.settings)
    return None


def drop_previous(host: Host) -> None:
    """Give up the database that --undo would bring back. Raises Failure."""
    if previous.unmarked(host.settings) and PREVIOUS in host.postgres.databases():
        host.postgres.adopt(PREVIOUS)
    host.postgres.drop(PREVIOUS)
    previous.forget(host.settings)
