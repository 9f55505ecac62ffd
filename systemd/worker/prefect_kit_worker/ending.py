"""The end of a flow run's processes, and of those whose run has ended on the server already."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from prefect.client.schemas.objects import FlowRun

    from .protocols import Infrastructure, Worker
    from .runs import Run, Runs

#: Seconds that a flow run has between SIGTERM, on which it can tidy up, and SIGKILL.
SECONDS_TO_TIDY_UP = 10


def is_over(flow_run: FlowRun) -> bool:
    """Whether a run's process must not go on.

    Crashed, after a cut of the network, say: a new run may be under way elsewhere, and two must not go on. Cancelled, by
    somebody who did not wait. Cancelling: Prefect's own listener for that gives up for good when the server is away for a
    minute.
    """
    state = flow_run.state
    return state.is_crashed() or state.is_cancelled() or state.is_cancelling()


class Ending:
    """Ends what flow runs run in."""

    def __init__(self, runs: Runs, worker: Worker, infrastructure: Infrastructure) -> None:
        self._runs = runs
        self._worker = worker
        self._infrastructure = infrastructure

    def end_what_the_server_has_ended(self, known: dict[str, FlowRun]) -> None:
        """End the processes of runs that have ended on the server, or are Cancelling without their having heard of it."""
        for run in self._runs:
            flow_run = known.get(run.id)
            # With a process, or a container that has outlived the worker that started it.
            over = flow_run is not None and bool(run.infrastructure) and is_over(flow_run)
            # Seen twice, because a process that is just ending has told its last state already.
            if over and run.seen_over:
                run.reason = f"On the server this flow run is {flow_run.state.name}; its process is ended here."
                self._worker.tell_run(flow_run, run.reason)
                # Beside the heartbeats of the others: each may take its time to end.
                self._worker.in_background(self.end(run))
            run.seen_over = over

    async def end(self, run: Run) -> None:
        """End a run's process: SIGTERM, on which it reports itself, then SIGKILL for it and for all that it started."""
        if not self._runs.has(run) or not run.infrastructure:
            return
        if not run.infrastructure.isdigit():
            with contextlib.suppress(Exception):
                await self._infrastructure.kill_infrastructure(
                    infrastructure_pid=run.infrastructure,
                    configuration=run.configuration,
                    grace_seconds=SECONDS_TO_TIDY_UP,
                )
            return
        pid = int(run.infrastructure)
        # It may have ended, and its number be another one's, while its hooks are still running.
        if pid in self._infrastructure.processes_of(run.id):
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGTERM)
        deadline = time.monotonic() + SECONDS_TO_TIDY_UP
        while self._infrastructure.processes_of(run.id) and time.monotonic() < deadline:
            await asyncio.sleep(0.1)
        self._infrastructure.kill_processes(run.id)
