"""What the worker asks of the API beyond what Prefect's worker does, each in one place and by Prefect's own client."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, TypeVar
from uuid import UUID, uuid4

import httpx
from prefect.client.schemas.filters import (
    FlowRunFilter,
    FlowRunFilterEndTime,
    FlowRunFilterId,
    FlowRunFilterParentFlowRunId,
    FlowRunFilterState,
    FlowRunFilterStateType,
    WorkPoolFilter,
    WorkPoolFilterName,
)
from prefect.client.schemas.objects import FlowRun, State, StateType
from prefect.client.schemas.sorting import FlowRunSort
from prefect.states import Pending
from prefect.utilities.engine import propose_state

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterable

    from prefect.client.orchestration import PrefectClient

    from .again import Again

T = TypeVar("T")
#: Seconds that a request for heartbeats may take before it is made again: after a cut of the network the old one would go
#: on waiting, up to a minute and with growing pauses, in which the window closes.
SECONDS_FOR_A_REQUEST = 30
#: The heartbeat of a run, and its end: the automation "Crash detection" waits for one or the other.
ALIVE = "prefect-worker.flow-run.alive"
ENDED = "prefect-worker.flow-run.ended"
#: A run in one of these states has a process, or should have.
UNDER_WAY = [StateType.PENDING, StateType.RUNNING, StateType.CANCELLING]
#: The server's own limit of one answer.
PAGE = 200
#: How far back a worker that starts looks for crashed runs that nobody has run again.
LOOK_BACK = timedelta(hours=1)


def is_under_way(run: FlowRun) -> bool:
    """Whether a run has a process, or should have.

    One that waits for a retry inside its process is called Scheduled, and no worker would ever fetch it.
    """
    if run.state.is_scheduled():
        return getattr(run.empirical_policy, "retry_type", None) == "in_process"
    return run.state.type in UNDER_WAY


def is_away(error: BaseException | None) -> bool:
    """Whether an error says that the API failed, and not that it was asked for something wrong."""
    if isinstance(error, httpx.HTTPStatusError):
        return error.response.status_code >= 500
    return isinstance(error, (httpx.TransportError, ConnectionError, TimeoutError))


async def soon(request: Coroutine[Any, Any, T], seconds: float = SECONDS_FOR_A_REQUEST) -> T:
    """The answer to a request. Raises TimeoutError (an OSError) when it takes longer."""
    async with asyncio.timeout(seconds):
        return await request


class Api:
    """The server, as the worker's components ask it. `client`: Prefect's, which a worker has only once it has begun."""

    def __init__(self, client: Callable[[], PrefectClient]) -> None:
        self._prefect = client

    async def claim(self, run_id: UUID) -> State[Any]:
        """Claim a run; gives the state that it has then. Raises Abort when the server refuses."""
        return await propose_state(self._prefect(), Pending(), flow_run_id=run_id)

    async def send_heartbeats(self, events: dict[str, str], worker: str, pool: str) -> None:
        """Send one event for each run, `events` being its id and the event's name.

        By HTTP and not by the events' websocket: what is sent has then arrived, or an error says that it has not.
        """
        now = datetime.now(UTC).isoformat()
        body = [
            {
                "id": str(uuid4()),
                "occurred": now,
                "event": event,
                "resource": {"prefect.resource.id": f"prefect.flow-run.{run_id}"},
                "related": [
                    {"prefect.resource.id": f"prefect.worker.{worker}", "prefect.resource.role": "worker"},
                    {"prefect.resource.id": f"prefect.work-pool.{pool}", "prefect.resource.role": "kit-work-pool"},
                ],
            }
            for run_id, event in events.items()
        ]
        if body:
            response = await self._prefect().request("POST", "/events", json=body)
            response.raise_for_status()

    async def states_of(self, run_ids: Iterable[str]) -> dict[str, FlowRun]:
        """The runs by their ids; one that has been deleted is missing."""
        ids = [UUID(run_id) for run_id in run_ids]
        found: dict[str, FlowRun] = {}
        for start in range(0, len(ids), PAGE):
            wanted = FlowRunFilter(id=FlowRunFilterId(any_=ids[start : start + PAGE]))
            found |= {
                str(run.id): run for run in await self._prefect().read_flow_runs(flow_run_filter=wanted, limit=PAGE)
            }
        return found

    async def _all_of(self, **filters: Any) -> list[FlowRun]:
        """Every run that the filters find, page by page: one answer has no more than PAGE of them.

        The newest first: what comes in between pages shifts the rest towards the end, so nothing is missed; nothing is twice.
        """
        found: dict[UUID, FlowRun] = {}
        offset = 0
        while True:
            page = await self._prefect().read_flow_runs(**filters, sort=FlowRunSort.ID_DESC, limit=PAGE, offset=offset)
            found |= {run.id: run for run in page}
            if len(page) < PAGE:
                return list(found.values())
            offset += PAGE

    async def subflows_under_way(self, run_ids: Iterable[str]) -> list[FlowRun]:
        """The subflow runs of the runs, and theirs, that are not at their end: they live in the same processes."""
        found: list[FlowRun] = []
        parents = [UUID(run_id) for run_id in run_ids]
        while parents:
            children: list[FlowRun] = []
            for start in range(0, len(parents), PAGE):
                children += await self._all_of(
                    flow_run_filter=FlowRunFilter(
                        parent_flow_run_id=FlowRunFilterParentFlowRunId(any_=parents[start : start + PAGE]),
                        state=FlowRunFilterState(type=FlowRunFilterStateType(any_=[*UNDER_WAY, StateType.SCHEDULED])),
                    ),
                )
            # Those of deployments have processes, and workers, of their own.
            children = [run for run in children if run.deployment_id is None and is_under_way(run)]
            found += children
            parents = [run.id for run in children]
        return found

    async def crashed_lately(self, pool: str) -> list[FlowRun]:
        """Runs of a pool that crashed within the last hour."""
        return await self._all_of(
            flow_run_filter=FlowRunFilter(
                state=FlowRunFilterState(type=FlowRunFilterStateType(any_=[StateType.CRASHED])),
                end_time=FlowRunFilterEndTime(after_=datetime.now(UTC) - LOOK_BACK),
            ),
            work_pool_filter=WorkPoolFilter(name=WorkPoolFilterName(any_=[pool])),
        )

    async def set_state(self, run_id: UUID, state: State[Any]) -> None:
        """Give a run a state, whatever rules would say: for runs whose process is known to be gone."""
        await self._prefect().set_flow_run_state(run_id, state, force=True)

    async def run_again(self, run: FlowRun, again: Again) -> FlowRun:
        """Make the run that follows a crashed one: same deployment, parameters and tags, from the beginning."""
        assert run.deployment_id is not None
        return await self._prefect().create_flow_run_from_deployment(
            run.deployment_id,
            parameters=run.parameters,
            name=again.name,
            tags=run.tags,
            idempotency_key=again.idempotency_key,
            work_queue_name=run.work_queue_name,
            job_variables=run.job_variables or None,
            labels={"prefect-worker.rerun-of": str(run.id)},
        )
