"""Ends a flow run that goes on writing when the disk is nearly full: what is left then is for the rest of the host, a database, say.

The space is the file system's own figure, so this works on any of them. What a run writes is the kernel's account of its processes:
what they hand to a disk, not what they keep in memory, and not what they only read.
"""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from .memory import megabytes

if TYPE_CHECKING:
    from .protocols import Infrastructure, Worker
    from .runs import Runs

SECONDS_BETWEEN_LOOKS = 1
#: Bytes that a run may still write when the disk is nearly full: its logs, a small result.
ALLOWANCE = 64_000_000


def free(places: Iterable[Path]) -> int | None:
    """Bytes that are free for a worker where there are the fewest; None where none of the places is there."""
    found = []
    for place in places:
        try:
            there = os.statvfs(place)
        except OSError:
            continue
        found.append(there.f_bavail * there.f_frsize)
    return min(found, default=None)


def written(pids: Iterable[int], proc: Path = Path("/proc")) -> int:
    """Bytes that processes, and those of their children that have ended, have written to disks."""
    total = 0
    for pid in pids:
        try:
            text = (proc / str(pid) / "io").read_text()
        except OSError:
            continue
        if match := re.search(r"^write_bytes: (\d+)$", text, re.MULTILINE):
            total += int(match[1])
    return total


class DiskGuard:
    """`reserve`: bytes that flow runs leave free at these places; 0: none."""

    def __init__(
        self, runs: Runs, worker: Worker, infrastructure: Infrastructure, places: list[Path], reserve: int
    ) -> None:
        self._runs = runs
        self._worker = worker
        self._infrastructure = infrastructure
        self._places = places
        self._reserve = reserve
        #: What each run had written when the disk was found to be nearly full.
        self._before: dict[str, int] = {}

    async def guard(self) -> None:
        await asyncio.sleep(SECONDS_BETWEEN_LOOKS)
        self.look()

    def look(self) -> None:
        """End the runs that have written too much since the disk is nearly full."""
        left = free(self._places) if self._reserve else None
        if left is None or left >= self._reserve:
            self._before.clear()
            return
        for run in self._runs.under_way:
            size = written(self._infrastructure.processes_of(run.id))
            if size - self._before.setdefault(run.id, size) < ALLOWANCE or run.reason is not None:
                continue
            run.reason = (
                f"Out of disk space: {megabytes(left)} are free, flow runs leave {megabytes(self._reserve)} "
                f"(workers_disk_reserve_mb), and this flow run went on writing. It is ended; what it has written is still there."
            )
            # At once, as with memory.
            self._infrastructure.kill_processes(run.id)
            self._worker.in_background(self._worker.tell_run_soon(run.id, run.reason))
