"""The flow runs that a worker holds, in a file that outlives it.

Read at the next start: what stands there then was left by a worker that was killed, or by a power cut. Also read by
`prefect-worker-drain`, which shows what is still running.
"""

from __future__ import annotations

import json
import os
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

    def left_behind(self) -> list[HeldRun]:
        """What an earlier worker of this name held when it ended; nothing when the file is absent or no longer whole."""
        try:
            return [HeldRun(**entry) for entry in json.loads(self._path.read_text())]
        except (OSError, ValueError, TypeError):
            return []

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
        with new.open("w") as file:
            json.dump([asdict(run) for run in self._runs.values()], file)
            file.flush()
            # A power cut must not leave an empty file: what it names would stay Running until its window ends.
            os.fsync(file.fileno())
        new.replace(self._path)
