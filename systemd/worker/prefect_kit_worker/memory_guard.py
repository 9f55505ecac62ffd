"""Ends the largest flow run before all of them together use up the worker's memory; memory.py decides which and when."""

from __future__ import annotations

import asyncio
import os
from typing import TYPE_CHECKING

from . import memory

if TYPE_CHECKING:
    from .protocols import Infrastructure, Worker
    from .runs import Runs

SECONDS_BETWEEN_LOOKS = 1


class MemoryGuard:
    """`limit`: bytes that the flow runs may hold together; None: as many as there are."""

    def __init__(self, runs: Runs, worker: Worker, infrastructure: Infrastructure, limit: int | None) -> None:
        self._runs = runs
        self._worker = worker
        self._infrastructure = infrastructure
        self._allowed = limit

    async def guard(self) -> None:
        await asyncio.sleep(SECONDS_BETWEEN_LOOKS)
        self.look()

    def look(self) -> None:
        """End the largest run when all of them hold too much."""
        if self._allowed is None:
            return
        processes = {run.id: self._infrastructure.processes_of(run.id) for run in self._runs.under_way}
        sizes = {run_id: memory.used(pids) for run_id, pids in processes.items() if pids}
        run_id = memory.victim(sizes, memory.used([os.getpid()]), self._allowed) if sizes else None
        run = self._runs.get(run_id) if run_id else None
        if run is None:
            return
        run.reason = (
            f"Out of memory: this flow run held {memory.megabytes(sizes[run.id])}, and the flow runs of the worker "
            f"{self._worker.name} have {memory.megabytes(self._allowed)} together (memory_max in prefect_workers). It is ended."
        )
        # At once: while it tidies up, or the API is asked, it would go on growing.
        self._infrastructure.kill_processes(run.id)
        self._worker.in_background(self._worker.tell_run_soon(run.id, run.reason))
