"""Put a restored world in order, or pause the one before. Runs inside the server's container, with the Prefect that is there, as `python -c`.

The processes of the runs that the backup saw at work are gone, but nobody will ever say so: Prefect leaves such runs
Running, and their concurrency slots taken, for good. Reads ORDER (JSON) from the environment, prints JSON.
"""

import asyncio
import json
import os
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import Any

from prefect import get_client
from prefect.client.orchestration import PrefectClient
from prefect.client.schemas.actions import GlobalConcurrencyLimitUpdate, WorkPoolUpdate
from prefect.client.schemas.filters import FlowRunFilter, TaskRunFilter
from prefect.client.schemas.objects import FlowRun
from prefect.client.schemas.sorting import FlowRunSort
from prefect.states import Cancelled, Crashed

ORDER: dict[str, Any] = json.loads(os.environ["ORDER"])
# Prefect's own ceiling for one page.
PAGE = 200
# A run in one of these has a process, or is waiting for one that was just starting.
ALIVE = ["RUNNING", "PENDING", "CANCELLING"]


async def all_of(read: Callable[..., Awaitable[Any]], **more: Any) -> list[Any]:
    """Every page of what one of the client's methods reads."""
    found: list[Any] = []
    while True:
        page = await read(limit=PAGE, offset=len(found), **more)
        found += page
        if len(page) < PAGE:
            return found


async def pages(client: PrefectClient, wanted: dict[str, Any]) -> list[FlowRun]:
    """All flow runs of a filter."""
    chosen = FlowRunFilter.model_validate(wanted)
    return await all_of(client.read_flow_runs, flow_run_filter=chosen, sort=FlowRunSort.ID_DESC)


async def crash_dead_runs(client: PrefectClient) -> tuple[int, int]:
    """Flow runs, and their task runs, that were at work when the backup was made."""
    flow_runs = await pages(client, {"state": {"type": {"any_": ALIVE}}})
    for run in flow_runs:
        await client.set_flow_run_state(run.id, Crashed(message=ORDER["message"]), force=True)
    count = 0
    while True:
        # Those that are done no longer match, so the first page is always the next.
        task_runs = await client.read_task_runs(
            task_run_filter=TaskRunFilter.model_validate({"state": {"type": {"any_": ALIVE}}}), limit=PAGE
        )
        for run in task_runs:
            await client.set_task_run_state(run.id, Crashed(message=ORDER["message"]), force=True)
        count += len(task_runs)
        if len(task_runs) < PAGE:
            return len(flow_runs), count


async def cancel_past_runs(client: PrefectClient) -> tuple[int, int]:
    """Cancel what was due before the outage; gives how many, and how many are due since and will run late."""
    now = datetime.now(UTC)
    limit = datetime.fromtimestamp(ORDER["cancel_before"], UTC)
    due = {"state": {"type": {"any_": ["SCHEDULED"]}}, "next_scheduled_start_time": {"before_": now.isoformat()}}
    cancelled = late = 0
    for run in await pages(client, due):
        # No time of its own means "as soon as possible", that is when it was made.
        when = run.next_scheduled_start_time or run.expected_start_time or run.created or now
        if when < limit:
            await client.set_flow_run_state(run.id, Cancelled(message=ORDER["cancel_message"]), force=True)
            cancelled += 1
        else:
            late += 1
    return cancelled, late


async def free_slots(client: PrefectClient) -> int:
    """Concurrency slots that the dead hold; gives how many."""
    freed = 0
    for limit in await all_of(client.read_global_concurrency_limits):
        if limit.active_slots:
            freed += limit.active_slots
            await client.update_global_concurrency_limit(limit.name, GlobalConcurrencyLimitUpdate(active_slots=0))
    for limit in await all_of(client.read_concurrency_limits):
        if limit.active_slots:
            freed += len(limit.active_slots)
            await client.reset_concurrency_limit_by_tag(limit.tag)
    return freed


async def order(client: PrefectClient) -> dict[str, Any]:
    """The whole: slots, runs that were at work, runs whose time has passed."""
    # Before runs are crashed: that frees slots too, and they would not be counted.
    freed = await free_slots(client)
    crashed, crashed_tasks = await crash_dead_runs(client)
    cancelled, late = await cancel_past_runs(client)
    await free_slots(client)
    counts = {"crashed": crashed, "crashed_task_runs": crashed_tasks, "cancelled": cancelled, "late": late}
    return {**counts, "slots_freed": freed}


async def pause(client: PrefectClient) -> dict[str, Any]:
    """Pause every work pool that is not paused: workers finish what they have and take nothing new."""
    pools = [pool.name for pool in await all_of(client.read_work_pools) if not pool.is_paused]
    for name in pools:
        await client.update_work_pool(name, WorkPoolUpdate(is_paused=True))
    return {"paused": pools}


async def unpause(client: PrefectClient) -> dict[str, Any]:
    """Take that back."""
    for name in ORDER["paused"]:
        await client.update_work_pool(name, WorkPoolUpdate(is_paused=False))
    return {}


async def main() -> None:
    async with get_client() as client:
        print(json.dumps(await {"order": order, "pause": pause, "unpause": unpause}[ORDER["do"]](client)))


asyncio.run(main())
