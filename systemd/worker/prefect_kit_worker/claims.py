"""Claims of flow runs, and what becomes of one whose answer was lost."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from typing import TYPE_CHECKING
from uuid import UUID

from prefect.exceptions import Abort
from prefect.states import Scheduled

from .api import Api, soon
from .runs import Run, Runs, Stage

if TYPE_CHECKING:
    from prefect.client.schemas.objects import FlowRun

    from .protocols import Worker

#: Seconds after which a run that somebody has claimed has its worker's name, however slow the server is.
SECONDS_TO_NAME_A_CLAIM = 60


class Claims:
    """Prefect's own takes a lost answer for a refusal, and a run that was claimed stays Pending then.

    `is_submitting` says whether a run has been fetched (again), and is not started yet.
    """

    def __init__(self, runs: Runs, api: Api, worker: Worker, is_submitting: Callable[[UUID], bool]) -> None:
        self._runs = runs
        self._api = api
        self._worker = worker
        self._is_submitting = is_submitting

    async def claim(self, flow_run: FlowRun) -> bool:
        """Claim a run that has been taken; whether it is ours to start."""
        run = self._runs.get(str(flow_run.id))
        try:
            state = await self._api.claim(flow_run.id)
        except Abort as refusal:
            # Maybe because a claim before this one, whose answer was lost, was heard: that is left to settle_unsure.
            self._worker.log.debug("Flow run %s is not for us: %s", flow_run.name, refusal)
            return False
        except Exception as error:
            self._worker.log.warning("Whether flow run %s is claimed is not known yet: %s", flow_run.name, error)
            if run is not None:
                self._runs.claim_lost(run)
            return False
        if run is not None:
            self._runs.claim_answered(run)
        return state.is_pending()

    async def settle_unsure(self) -> None:
        """Find out whose those are whose claim was not answered."""
        for run in self._runs.unsure:
            await self._settle(run)

    async def _settle(self, run: Run) -> None:
        """A claim whose answer was lost: give the run back when it was ours after all."""
        flow_run = (await soon(self._api.states_of([run.id]))).get(run.id)
        if self._is_fetched_again(run):
            return
        ours = flow_run is not None and "prefect.worker.name" not in flow_run.labels
        if ours and flow_run.state.is_pending() and flow_run.start_time is None:
            if (datetime.now(UTC) - flow_run.state.timestamp).total_seconds() < SECONDS_TO_NAME_A_CLAIM:
                # Or another worker has just claimed it, and its name is on the way.
                return
            text = f"The answer to the claim of the worker {self._worker.name} was lost; the run is given back."
            await soon(self._api.set_state(flow_run.id, Scheduled(message=text)))
            # It is Scheduled, and may have been fetched before that answer was here.
            if self._is_fetched_again(run):
                return
        self._runs.let_go(run)

    def _is_fetched_again(self, run: Run) -> bool:
        return run.stage is not Stage.UNSURE or self._is_submitting(UUID(run.id))
