"""The journal of a restore: what must be known to finish it, or to take it back, after it was killed at any point.

It exists from before the first change until after the last one. The phases say what to do then (decide.py):

    building    the new database is made beside the live one: throw it away, nothing has happened
    switching   workers and server are being stopped: whether the databases have swapped is told by their identities
    ordering    the databases have swapped: start the server, reconcile the flow runs, start the workers
    starting    the flow runs are reconciled, which must not be done twice: start the workers

A newer restore takes the place of one that did not end. It keeps that one's journal inside its own until it has ended,
so that taking back the newer one leaves what was there before it: the older one, unfinished.
"""

from __future__ import annotations

import dataclasses
import json
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .errors import Code, Failure
from .files import remove, sync_directory, write_whole

PHASES = ("building", "switching", "ordering", "starting")
# In words, for a person who has to decide.
MEANING = {
    "building": "its database was being made beside the live one",
    "switching": "the databases were about to swap",
    "ordering": "the databases have swapped, and the server was being started",
    "starting": "its data are served, and the workers were being started",
}


@dataclass
class Journal:
    """One restore, or one undo of it, that has begun and not ended."""

    # The id of the backup, or "undo".
    backup: str
    phase: str = "building"
    # Postgres's identities of the database that shall go live (oid) and of its cluster; a name says nothing once names
    # have swapped, and another cluster may have given the same oid to another database.
    target: int = 0
    cluster: str = ""
    # Units of workers that ran before and shall run again.
    workers: list[str] = field(default_factory=list)
    # Work pools that were paused to let running flow runs end.
    paused: list[str] = field(default_factory=list)
    # Whether what was live is kept for an undo; an empty database is not.
    keep_previous: bool = True
    # Scheduled runs from before this moment (seconds since 1970) are cancelled; none with 0.
    cancel_before: float = 0.0
    # The image of Prefect that is to serve these data, and the one that served before; empty where it stays the same.
    image: str = ""
    image_before: str = ""
    # Whether runs and slots stay as the backup has them.
    as_is: bool = False
    # Seconds since 1970: when it began, and when the server was stopped.
    started: float = field(default_factory=time.time)
    stopped: float = 0.0
    # Whether the server was ready when it began.
    served: bool = True
    # Of --new-cluster: where the data of the cluster before are meanwhile.
    aside: str = ""
    # Tables that the database of an undo lacks: the server cannot be ready with it.
    lost: list[str] = field(default_factory=list)
    # How often systemd has tried to finish it or to take it back.
    tries: int = 0
    # The journal of the unfinished restore whose place this one has taken.
    replaces: dict[str, Any] | None = None

    @staticmethod
    def path(state: Path) -> Path:
        return state / "restore.json"

    @property
    def name(self) -> str:
        """What it is, for a sentence."""
        return "the undo" if self.backup == "undo" else f"the restore of {self.backup}"

    def save(self, state: Path) -> None:
        """Write it, for good: what it announces comes after."""
        write_whole(self.path(state), json.dumps(dataclasses.asdict(self), indent=2) + "\n")

    def enter(self, state: Path, phase: str) -> None:
        """Go on to a phase."""
        self.phase = phase
        self.save(state)

    def take_place_of(self, earlier: Journal) -> None:
        """Go on where an unfinished restore has left off."""
        self.workers = sorted({*self.workers, *earlier.workers})
        self.paused, self.served, self.stopped = list(earlier.paused), earlier.served, earlier.stopped
        # One that was only building leaves nothing that a newer one would have to come back to.
        self.replaces = earlier.replaces if earlier.phase == "building" else dataclasses.asdict(earlier)

    def replaced(self) -> Journal | None:
        """The unfinished restore that is there again when this one is taken back."""
        if self.replaces is None:
            return None
        earlier = Journal(**self.replaces)
        earlier.workers = sorted({*earlier.workers, *self.workers})
        return earlier

    @classmethod
    def load(cls, state: Path) -> Journal | None:
        """The journal of an unfinished restore, if there is one. Raises Failure when it cannot be read."""
        hint = "the next restore sets it aside: prefect-restore --latest"
        try:
            values = json.loads(cls.path(state).read_text())
            found = cls(**values)
        except FileNotFoundError:
            return None
        except (ValueError, TypeError) as error:
            raise Failure(Code.SETTINGS, f"the journal {cls.path(state)} cannot be read: {error}", hint) from error
        if found.phase not in PHASES:
            raise Failure(
                Code.SETTINGS, f'{cls.path(state)}: phase is "{found.phase}", but must be one of {PHASES}', hint
            )
        return found

    @classmethod
    def set_aside(cls, state: Path) -> Path:
        """Rename a journal that cannot be read; gives where it is."""
        aside = cls.path(state).with_name(time.strftime("restore.unreadable-%Y%m%dT%H%M%SZ.json", time.gmtime()))
        cls.path(state).rename(aside)
        sync_directory(state)
        return aside

    def end(self, state: Path) -> None:
        """Everything is done."""
        remove(self.path(state))
