"""What a worker does that is told to stop: take no new runs, wait for those under way, end and report the rest."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

import anyio

from .ending import SECONDS_TO_TIDY_UP, Ending
from .notify import Systemd, status

if TYPE_CHECKING:
    from .kit import Kit
    from .protocols import Infrastructure, Worker
    from .runs import Run, Runs

#: Seconds that the hooks of a run (on_crashed) have when the worker itself is being stopped.
SECONDS_FOR_LAST_HOOKS = 30


class Shutdown:
    """The end of the worker itself."""

    def __init__(
        self, runs: Runs, worker: Worker, infrastructure: Infrastructure, ending: Ending, kit: Kit, systemd: Systemd
    ) -> None:
        self._runs = runs
        self._worker = worker
        self._infrastructure = infrastructure
        self._ending = ending
        self._kit = kit
        self._systemd = systemd
        #: Whether the worker is told to stop: it takes no new runs from then on.
        self.told = False

    async def leave(self) -> None:
        """Stop without the runs under way, which the next worker takes over."""
        self.told = True
        self._worker.log.info(
            "Told to stop: no new flow runs; %d under way go on without this worker.", len(self._runs)
        )
        # But what is just being started must be known by where it runs.
        deadline = time.monotonic() + SECONDS_TO_TIDY_UP
        while any(not run.infrastructure for run in self._runs) and time.monotonic() < deadline:
            await asyncio.sleep(0.1)

    async def drain(self) -> None:
        """Wait for the runs under way as long as there is time; end and report the rest."""
        self.told = True
        seconds, decided = self._kit.time_to_end()
        deadline = time.monotonic() + seconds
        self._worker.log.info(
            "Told to stop: no new flow runs; %d under way have %.0f s to end.", len(self._runs), seconds
        )
        while self._runs.under_way and time.monotonic() < deadline:
            words = status([run.name for run in self._runs], taking=False, seconds=deadline - time.monotonic())
            self._systemd.tell(STOPPING=1, EXTEND_TIMEOUT_USEC=30_000_000, STATUS=words)
            await asyncio.sleep(min(1.0, max(0.05, deadline - time.monotonic())))
        left = self._runs.under_way
        self._systemd.tell(STOPPING=1, EXTEND_TIMEOUT_USEC=60_000_000, STATUS=f"Ending {len(left)} flow runs")
        text = f"The worker {self._worker.name} was told to stop, and this flow run had not ended {seconds:.0f} s later ({decided})."
        async with anyio.create_task_group() as group:
            for run in left:
                group.start_soon(self._end_and_report, run, text)

    async def _end_and_report(self, run: Run, text: str) -> None:
        run.reason = text
        await self._worker.tell_run_soon(run.id, text + " It is ended.")
        await self._ending.end(run)
        # Until its end is known to the server; when that is away, the next worker of this name reports it.
        began = time.monotonic()
        while self._runs.has(run):
            hooks = self._infrastructure.has_hooks_running(run.id)
            if time.monotonic() - began > (SECONDS_FOR_LAST_HOOKS if hooks else SECONDS_TO_TIDY_UP):
                return
            await asyncio.sleep(0.1)
