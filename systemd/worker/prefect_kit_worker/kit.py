"""What the unit of a worker and its environment say."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Kit:
    """The settings that Prefect's own worker does not have."""

    state_directory: Path
    runtime_directory: Path
    #: Seconds that running flow runs have to end when the worker is told to stop, and when the host shuts down.
    drain_seconds: float
    shutdown_seconds: float
    #: Bytes that the flow runs of this worker may hold together; None: as many as there are.
    memory_limit: int | None
    #: Bytes of the disk that they leave free; 0: none.
    disk_reserve: int = 0

    @property
    def places(self) -> list[Path]:
        """Where flow runs write to a disk: their state, cached results, and /var/tmp (/tmp is memory, or on the disk of that)."""
        results = os.environ.get("PREFECT_LOCAL_STORAGE_PATH")
        return [self.state_directory, *([Path(results)] if results else []), Path("/var/tmp")]  # noqa: S108

    @property
    def drain_mark(self) -> Path:
        """There while a person wants the worker to take no new runs."""
        return self.state_directory / "drain"

    def time_to_end(self) -> tuple[float, str]:
        """Seconds that flow runs have to end now that the worker is told to stop, and what has decided that.

        The marks are made by prefect-restore, and by the unit's ExecStop= when the whole host is going down.
        """
        if (self.runtime_directory / "at-once").exists():
            return 0, "prefect-restore"
        if (self.runtime_directory / "shutdown").exists():
            return self.shutdown_seconds, "workers_shutdown_seconds"
        return self.drain_seconds, "workers_drain_seconds"
