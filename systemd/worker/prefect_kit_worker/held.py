"""The flow runs that a worker holds, in a file that outlives it.

Read at the next start: what stands there then was left by a worker that was killed, or by a power cut. Also read by
`prefect-worker-drain`, which shows what is still running.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path


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
        """What a file names; nothing when it is absent or no longer whole."""
        try:
            return [HeldRun(**entry) for entry in json.loads(path.read_text())]
        except (OSError, ValueError, TypeError):
            return []

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

    def get(self, run_id: str) -> HeldRun | None:
        return self._runs.get(run_id)

    def __iter__(self) -> Iterator[HeldRun]:
        return iter(list(self._runs.values()))

    def __len__(self) -> int:
        return len(self._runs)

    def __contains__(self, run_id: str) -> bool:
        return run_id in self._runs

    def _write(self) -> None:
        new = self._path.with_suffix(".new")
        try:
            with new.open("w") as file:
                json.dump([asdict(run) for run in [*self.left, *self._runs.values()]], file)
                file.flush()
                # A power cut must not leave an empty file: what it names would stay Running until its window ends.
                os.fsync(file.fileno())
            new.replace(self._path)
        except OSError as error:
            # A full disk must not end the worker, and all its flow runs with it. The signs of life cover them still.
            print(f"{self._path} cannot be written: {error}", file=sys.stderr, flush=True)
