"""What becomes of flow runs whose process has ended: held on to until the server knows an end, however long it is away.

Those of this worker, and what the worker before of this name has left behind.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import httpx
from prefect.exceptions import ObjectNotFound
from prefect.states import Cancelled, Crashed, Scheduled

from .api import Api, is_under_way

if TYPE_CHECKING:
    from prefect.client.schemas.objects import FlowRun, State

    from .heartbeats import Heartbeats
    from .held import HeldRun, HeldRuns
    from .protocols import Infrastructure, Worker
    from .runs import Run, Runs

#: Seconds until a run is due again that could not be started because the API failed.
SECONDS_UNTIL_RUN_AGAIN = 5
SECONDS_BETWEEN_TRIES = 5
#: Seconds between two looks at a container whose end nobody else sees.
SECONDS_BETWEEN_LOOKS = 2


class Settling:
    """Sees to the ends of runs. `changed` is called when a run's process has ended, `let_go` when it is let go."""

    def __init__(
        self,
        runs: Runs,
        api: Api,
        worker: Worker,
        infrastructure: Infrastructure,
        heartbeats: Heartbeats,
        changed: Callable[[], None],
        let_go: Callable[[], None],
    ) -> None:
        self._runs = runs
        self._api = api
        self._worker = worker
        self._infrastructure = infrastructure
        self._heartbeats = heartbeats
        self._changed = changed
        self._let_go = let_go

    async def settle(self, run: Run) -> None:
        """The process has ended: let go when the server knows an end."""
        self._runs.end(run)
        self._changed()
        text = run.reason or "The flow run's process has ended, and nobody could report how."
        while self._runs.has(run):
            try:
                await self._see_to_an_end(run, text)
                break
            except ObjectNotFound:
                break
            except (httpx.HTTPError, OSError):
                await asyncio.sleep(SECONDS_BETWEEN_TRIES)
        if self._runs.let_go(run):
            self._heartbeats.send_end(run.id)
            self._let_go()

    async def _see_to_an_end(self, run: Run, text: str) -> None:
        flow_run = (await self._api.states_of([run.id])).get(run.id)
        if flow_run is None or self._is_another_worker_s(flow_run) or not self._runs.has(run):
            return
        if run.failure is not None and flow_run.state.is_pending():
            text = f"The worker {self._worker.name} could not start this flow run, because the API failed; it is run again. ({run.failure})"
            # Not at once: the same may happen again.
            later = datetime.now(UTC) + timedelta(seconds=SECONDS_UNTIL_RUN_AGAIN)
            await self._api.set_state(flow_run.id, Scheduled(scheduled_time=later, message=text))
            return
        # Paused, suspended and rescheduled runs have no process, and go on later.
        if is_under_way(flow_run):
            end = Cancelled if flow_run.state.is_cancelling() else Crashed
            await self._end_on_the_server(flow_run, end(message=text))

    async def _end_on_the_server(self, flow_run: FlowRun, end: State) -> None:
        """With the subflow runs in it, which had the same process."""
        for inside in await self._api.subflows_under_way([str(flow_run.id)]):
            await self._api.set_state(inside.id, Crashed(message=end.message))
        await self._api.set_state(flow_run.id, end)

    def _is_another_worker_s(self, flow_run: FlowRun) -> bool:
        name = self._worker.name
        return flow_run.labels.get("prefect.worker.name", name) != name

    async def wait_while_it_goes_on(self, run: Run) -> None:
        """The connection to what it runs in is lost, but that may go on."""
        while self._runs.has(run) and await self._infrastructure.has_outlived(run.held):
            await asyncio.sleep(SECONDS_BETWEEN_LOOKS)

    # -- what the worker before has left

    async def report_left(self, held: HeldRuns) -> bool:
        """Report what an earlier worker left behind; whether that is done. Until then no runs are taken."""
        try:
            for left in list(held.left):
                await self._report(left)
                held.reported(left)
        except (httpx.HTTPError, OSError) as error:
            # At the next sync.
            self._worker.log.warning("Flow runs of the worker before are not reported yet: %s", error)
            return False
        return True

    async def _report(self, left: HeldRun) -> None:
        """Report a run that an earlier worker of this name left behind, or go on holding it where it has outlived that."""
        flow_run = (await self._api.states_of([left.id])).get(left.id)
        if flow_run is not None and await self._infrastructure.has_outlived(left):
            if left.id not in self._runs:
                self._worker.in_background(self._hold(self._runs.take_over(left)))
            return
        if flow_run is None or not is_under_way(flow_run):
            return
        if self._is_another_worker_s(flow_run):
            # Claimed by another worker at the very moment when this one wanted to.
            return
        self._heartbeats.note_end(left.id)
        name = self._worker.name
        if flow_run.start_time is None and flow_run.state.is_pending():
            text = f"The worker {name} ended before it could start this flow run; it is to be run by the next one."
            await self._api.set_state(flow_run.id, Scheduled(message=text))
        else:
            text = f"The worker {name} ended without notice (killed, or its host went down), and this flow run with it."
            await self._end_on_the_server(flow_run, Crashed(message=text))
        self._worker.tell_run(flow_run, text)

    async def _hold(self, run: Run) -> None:
        """Hold a run that has outlived the worker that started it, until it ends; then see to it that this is known."""
        self._worker.log.info("Flow run %s has outlived the worker before; it is held on.", run.name)
        await self.wait_while_it_goes_on(run)
        await self.settle(run)
