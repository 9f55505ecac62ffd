"""The flow runs that a worker holds, in a file that outlives it.

Read at the next start: what stands there then was left by a worker that was killed, or by a power cut. Also read by
`prefect-worker-drain`, which shows what is still running.
"""

from __future__ import annotations

import json
import os
import stat
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

#: Bytes that are read; a run takes some two hundred.
LARGEST = 4_000_000


@dataclass
class HeldRun:
    """A flow run from when it is claimed until its process has ended."""

    id: str
    name: str
    #: When it was claimed, in UTC, ISO 8601.
    since: str
    #: The process's id, or `engine:container`; empty until it has been started.
    infrastructure: str = ""


class HeldRuns:
    """The runs by their ids; each change is on disk before the next step."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._runs: dict[str, HeldRun] = {}
        #: What an earlier worker of this name held when it ended, until it is reported.
        self.left = self.read(path)

    @staticmethod
    def read(path: Path) -> list[HeldRun]:
        """What a file names; nothing when it is absent, no longer whole, or something else than a file of ours.

        Flow runs can write where it lies, and root reads it (`prefect-worker-drain`): a link is not followed, and a pipe
        that nobody writes to is not waited for.
        """
        try:
            with open(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
                if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                    return []
                runs = [HeldRun(**entry) for entry in json.loads(file.read(LARGEST))]
        except (OSError, ValueError, TypeError, RecursionError):
            return []
        if not all(isinstance(value, str) for run in runs for value in asdict(run).values()):
            return []
        return runs

    def reported(self, run: HeldRun) -> None:
        """One that was left behind needs no further look."""
        self.left.remove(run)
        self._write()

    def add(self, run: HeldRun) -> None:
        self._runs[run.id] = run
        self._write()

    def started(self, run_id: str, infrastructure: str) -> None:
        """Note where the run's process is."""
        if run := self._runs.get(run_id):
            run.infrastructure = infrastructure
            self._write()

    def remove(self, run_id: str) -> None:
        if self._runs.pop(run_id, None):
            self._write()

    def __len__(self) -> int:
        return len(self._runs)

    def __contains__(self, run_id: str) -> bool:
        return run_id in self._runs

    def _write(self) -> None:
        new = self._path.with_suffix(".new")
        try:
            # Whatever lies there: a link that a flow run has left, say, which would lead to another file.
            new.unlink(missing_ok=True)
            with new.open("x") as file:
                json.dump([asdict(run) for run in [*self.left, *self._runs.values()]], file)
                file.flush()
                # A power cut must not leave an empty file: what it names would stay Running until its window ends.
                os.fsync(file.fileno())
            new.replace(self._path)
        except OSError as error:
            # A full disk must not end the worker, and all its flow runs with it. Their heartbeats cover them still.
            print(f"{self._path} cannot be written: {error}", file=sys.stderr, flush=True)
