"""Makes the run that follows a crashed one; again.py decides which that is, if any."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING

from . import again

if TYPE_CHECKING:
    from prefect.client.schemas.objects import FlowRun

    from .api import Api
    from .protocols import Worker

#: Seconds between two looks for crashed runs that an event has not told of.
SECONDS_BETWEEN_SWEEPS = 300
#: Seconds for which a run that follows is new: whoever gets an older one has not made it, and tells nobody of it.
SECONDS_NEW = 30


class Reruns:
    """Every worker of a pool tries it for every crashed run; the server makes one run of it."""

    def __init__(self, api: Api, worker: Worker) -> None:
        self._api = api
        self._worker = worker

    async def heard_of_a_crash(self, run_id: str) -> None:
        """An event has told of it."""
        for run in (await self._api.states_of([run_id])).values():
            await self._run_again(run)

    async def sweep(self, pool: str) -> None:
        """Crashed runs that no event has told of: no worker was there, or the connection was not."""
        for run in await self._api.crashed_lately(pool):
            await self._run_again(run)

    async def _run_again(self, run: FlowRun) -> None:
        # A run that another flow run has started belongs to that one.
        if run.deployment_id is None or run.parent_task_run_id is not None:
            return
        following = again.next_attempt(str(run.id), run.name, run.tags, run.idempotency_key)
        if following is None:
            return
        new = await self._api.run_again(run, following)
        if (datetime.now(UTC) - new.created).total_seconds() < SECONDS_NEW:
            self._worker.tell_run(
                run, f"Run again as {new.name} ({following.attempt} of at most {following.attempts})."
            )
