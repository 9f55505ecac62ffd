"""Resuming: what a restore that was cut off has left is finished or taken back; at boot, when its unit died, or by a person."""

from __future__ import annotations

import contextlib
import time
from typing import Any

from . import unfinished
from .decide import Action, Command
from .errors import Code, Failure
from .host import Host
from .journal import Journal
from .postgres import LIVE
from .progress import duration
from .switch import go_live
from .take_back import put_cluster_back, take_back_and_say

# So often systemd tries it by itself; then a person has to decide.
TRIES = 3


def resume(host: Host) -> dict[str, Any] | None:
    """Finish, or take back, for who holds the lock; None: there was nothing. Raises Failure."""
    journal = Journal.load(host.state)
    if journal is None:
        return None
    ago = duration(time.time() - journal.started)
    host.report.say(f'A restore of "{journal.backup}" was cut off (begun {ago} ago, phase "{journal.phase}").')
    _count(host, journal)
    host.stack.repair_caddy_data()
    if journal.aside and journal.phase == "building":
        put_cluster_back(host, journal)
    down = ""
    try:
        host.start_postgres()
    except Failure as failure:
        if failure.code is Code.NO_ROOM and journal.phase != "building":
            raise
        down = failure.fact
    action = unfinished.action(host, Command.RESUME, journal)
    if action is Action.TAKE_BACK:
        return take_back_and_say(host, journal)
    if action is Action.STUCK:
        raise _stuck(host, journal, down)
    facts = go_live(host, journal)
    host.report.say("It is finished: the restored data are served.")
    return {"backup": journal.backup, "resumed": "finished", **facts}


def _count(host: Host, journal: Journal) -> None:
    """systemd tries a few times; a person as often as wanted. Raises Failure when it has tried enough."""
    if not host.by_systemd:
        journal.tries = 0
    elif journal.tries >= TRIES:
        raise Failure(
            Code.NOT_READY,
            f"{journal.name}, which did not end, was tried {journal.tries} times, and is not tried again by itself",
            "try it once more: prefect-restore --resume ; go back: --undo ; or give it up for a backup: --latest",
        )
    else:
        journal.tries += 1
    # A disk that is full must not keep it from trying.
    with contextlib.suppress(OSError):
        journal.save(host.state)


def _stuck(host: Host, journal: Journal, down: str) -> Failure:
    """Neither way is open. `down` is why Postgres does not start; empty where it runs."""
    there = not down and host.postgres.oid(LIVE)
    why = down or (f'the database "{LIVE}" has no tables' if there else f'there is no database "{LIVE}"')
    hint = "bring a backup back, which gives it up: prefect-restore --latest"
    if why.startswith("Postgres"):
        hint += " ; where Postgres does not start: --latest --new-cluster"
    return Failure(Code.NOT_READY, f"{journal.name}, which did not end, cannot go on: {why}", hint)
