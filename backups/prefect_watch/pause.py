"""Times without alerts: a pause that a person asked for, and work that takes the server down on purpose."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from prefect_backups.errors import Code, Failure
from prefect_backups.files import remove, write_whole

#: Seconds of each unit.
UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
#: Seconds that a pause may last: one that is forgotten ends by itself.
MOST = 7 * 86400.0
#: Work of our own tools during which the server may be away: what a holder of the tools' lock says of itself begins so.
AWAY = ("a restore", "an undo of a restore", "the rest of a restore", "an upgrade")
#: Seconds for which such work turns alerts off: one that hangs must be alerted to.
BELIEVED = 4 * 3600.0
#: Seconds for which a start of the stack turns alerts off. A slow machine may need longer, and somebody wants to know that, too.
STARTING = 300.0
#: What systemd says of the stack while it is started, stopped or brought up to date.
PASSING = ("activating", "deactivating", "reloading")


@dataclass(frozen=True)
class Pause:
    """Asked for by a person or a playbook. Moments in seconds since 1970."""

    until: float
    why: str = ""


@dataclass(frozen=True)
class Stack:
    """What systemd says of prefect-stack.service."""

    #: active, activating, failed, …
    state: str = "active"
    #: Starts that have failed, and were tried again by itself, since somebody last started it.
    restarts: int = 0
    #: When it came into this state, in seconds since 1970.
    since: float = 0.0


def stack_of(text: str) -> Stack:
    """What `systemctl show --timestamp=unix` says of it; what it does not say is as of a stack that runs."""
    said = dict(line.split("=", 1) for line in text.splitlines() if "=" in line)
    since, restarts = said.get("StateChangeTimestamp", "").removeprefix("@"), said.get("NRestarts", "")
    return Stack(
        said.get("ActiveState", "active"),
        int(restarts) if restarts.isdecimal() else 0,
        float(since) if since.isdecimal() else 0.0,
    )


def seconds_of(text: str) -> float:
    """The seconds of 30m, 2h or 1d. Raises Failure (SETTINGS)."""
    found = re.fullmatch(r"([0-9]+)([smhd])", text)
    seconds = float(found[1]) * UNITS[found[2]] if found else 0.0
    if not 0 < seconds <= MOST:
        raise Failure(
            Code.SETTINGS, f"a pause of {text!r} is not possible", "prefect-watch pause 30m, or 2h, or 1d; at most 7d"
        )
    return seconds


def read(path: Path, now: float) -> Pause | None:
    """The pause that is in force; a file that nobody can read is none."""
    try:
        found = Pause(**json.loads(path.read_text()))
        # A clock that was set back does not make it longer than it could be.
        return found if 0 < found.until - now <= MOST else None
    except (OSError, ValueError, TypeError):
        return None


def begin(path: Path, until: float, why: str) -> None:
    """Pause."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    write_whole(path, json.dumps(asdict(Pause(until, why))) + "\n")


def end(path: Path) -> None:
    """Go on."""
    if path.parent.exists():
        remove(path)


def reason(pause: Pause | None, held: tuple[str, float] | None, stack: Stack | None, now: float) -> str:
    """Why alerts are off now; empty while they are on.

    Args:
        held: what the holder of the tools' lock says that it does, and since when; None where nobody holds it.
        stack: None on a host that has none.
    """
    if pause:
        return f"paused{f' ({pause.why})' if pause.why else ''}"
    if held and _takes_it_away(held[0]) and 0 <= now - held[1] < BELIEVED:
        return f"{held[0]} is running"
    return f"prefect-stack is {stack.state}" if stack and _passes(stack, now) else ""


def _passes(stack: Stack, now: float) -> bool:
    """Whether it is on its way. A start that has failed is tried again for ever: that is no work on purpose."""
    return stack.state in PASSING and not stack.restarts and now - stack.since < STARTING


def _takes_it_away(what: str, away: Sequence[str] = AWAY) -> bool:
    return what.startswith(tuple(away))
