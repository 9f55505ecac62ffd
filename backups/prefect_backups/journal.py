"""The journal of a restore: what must be known to finish it, or to take it back, after it was killed at any point.

It exists from before the first change until after the last one. The phases say what to do then:

    building    the new database is made beside the live one: throw it away, nothing has happened
    switching   workers and server are being stopped: whether the databases have swapped is told by their identities
    ordering    the databases have swapped: start the server, put the restored world in order, start the workers
"""

from __future__ import annotations

import dataclasses
import json
import time
from dataclasses import dataclass, field
from pathlib import Path

from .errors import Code, Failure
from .files import remove, write_whole

PHASES = ("building", "switching", "ordering")


@dataclass
class Journal:
    """One restore, or one undo of it, that has begun and not ended."""

    # The id of the backup, or "undo".
    backup: str
    phase: str = "building"
    # Postgres's identity (oid) of the database that shall go live; a name says nothing once names have swapped.
    target: int = 0
    # Units of workers that ran before and shall run again.
    workers: list[str] = field(default_factory=list)
    # Work pools that were paused to let running flow runs end.
    paused: list[str] = field(default_factory=list)
    # Whether what was live is worth keeping for an undo; an empty database is not.
    keep_previous: bool = True
    # Scheduled runs from before this moment (seconds since 1970) are cancelled; none with 0.
    cancel_before: float = 0.0
    # Seconds since 1970: when it began, and when the server was stopped.
    started: float = field(default_factory=time.time)
    stopped: float = 0.0

    @staticmethod
    def path(state: Path) -> Path:
        return state / "restore.json"

    def save(self, state: Path) -> None:
        """Write it, for good: what it announces comes after."""
        write_whole(self.path(state), json.dumps(dataclasses.asdict(self), indent=2) + "\n")

    def enter(self, state: Path, phase: str) -> None:
        """Go on to a phase."""
        self.phase = phase
        self.save(state)

    @classmethod
    def load(cls, state: Path) -> Journal | None:
        """The journal of an unfinished restore, if there is one. Raises Failure when it cannot be read."""
        try:
            values = json.loads(cls.path(state).read_text())
            found = cls(**values)
        except FileNotFoundError:
            return None
        except (ValueError, TypeError) as error:
            raise Failure(
                Code.SETTINGS, f"the journal {cls.path(state)} cannot be read: {error}", "move it away, then run again"
            ) from error
        if found.phase not in PHASES:
            raise Failure(Code.SETTINGS, f'{cls.path(state)}: phase is "{found.phase}", but must be one of {PHASES}')
        return found

    def end(self, state: Path) -> None:
        """Everything is done."""
        remove(self.path(state))
