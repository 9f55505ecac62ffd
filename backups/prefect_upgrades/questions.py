"""Ask a server for what the smoke flow needs. Runs inside its container, with the Prefect that is there, as `python -c`.

A real flow, run by this process against the server beside it: its states, task runs (which arrive as events), logs, a
deployment whose schedule the server's own services have to follow, a variable. What is there already is read, too.
Prints JSON: the seconds that each took, those of the container's settings that its Prefect does not know, and each deployment
as it reads it, as hashes. Ends with 1 and words on stderr when one of the questions fails.
"""

import asyncio
import hashlib
import json
import os
import sys
import time
from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import Any

from prefect import flow, get_client, get_run_logger, task
from prefect.client.orchestration import PrefectClient
from prefect.client.schemas.actions import DeploymentScheduleCreate
from prefect.client.schemas.filters import FlowRunFilter, LogFilter, TaskRunFilter
from prefect.client.schemas.schedules import IntervalSchedule

NAME = "prefect-kit-rehearsal"
TASKS = 3
# Seconds until what arrives in the background has arrived: a slow host under load.
PATIENCE = 300.0
PAGE = 200
# What of a deployment changes while nobody changes it.
PASSING = {"created", "updated", "created_by", "updated_by", "last_polled", "status", "active_slots"}


@task
def count(number: int) -> int:
    """One of the tasks."""
    get_run_logger().info("task %d", number)
    return number + 1


@flow(name=NAME)
def rehearsal() -> int:
    """The flow that is run."""
    return sum(count(number) for number in range(TASKS))


async def until(what: str, there: Callable[[], Awaitable[Any]]) -> None:
    """Wait until `there` finds something. Raises TimeoutError with the words `what`."""
    end = time.monotonic() + PATIENCE
    while not await there():
        if time.monotonic() > end:
            raise TimeoutError(f"{what}: not within {PATIENCE:.0f} s")
        await asyncio.sleep(0.5)


async def reads(client: PrefectClient) -> None:
    """What is there already, as the UI lists it."""
    await client.read_flow_runs(limit=200)
    await client.read_task_runs(limit=200)
    await client.read_deployments(limit=200)
    await client.read_work_pools(limit=200)
    await client.read_block_documents(limit=200, include_secrets=False)
    await client.read_automations()
    await client.read_global_concurrency_limits(limit=200)


async def deployments(client: PrefectClient) -> dict[str, dict[str, str]]:
    """Each deployment by its id: `name`, and a hash of the value of each other field, as this version reads it."""
    flows: dict[Any, str] = {}
    found: dict[str, dict[str, str]] = {}
    while page := await client.read_deployments(limit=PAGE, offset=len(found)):
        for one in page:
            if one.flow_id not in flows:
                flows[one.flow_id] = (await client.read_flow(one.flow_id)).name
            fields = lasting(one.model_dump(mode="json"))
            hashes = {name: json.dumps(value, sort_keys=True).encode() for name, value in fields.items()}
            found[str(one.id)] = {name: hashlib.sha256(value).hexdigest()[:12] for name, value in hashes.items()} | {
                "name": f"{flows[one.flow_id]}/{one.name}"
            }
    return found


def lasting(value: Any) -> Any:
    """A value without what passes, at any depth (schedules and limits have times and counts of their own)."""
    if isinstance(value, dict):
        return {name: lasting(one) for name, one in value.items() if name not in PASSING}
    return [lasting(one) for one in value] if isinstance(value, list) else value


async def runs(client: PrefectClient) -> None:
    """A flow run with its tasks and logs."""
    state = await asyncio.to_thread(rehearsal, return_state=True)
    if not state.is_completed():
        raise RuntimeError(f"the flow run is {state.name}: {state.message}")
    run = str(state.state_details.flow_run_id)
    mine = FlowRunFilter.model_validate({"id": {"any_": [run]}})

    async def tasks() -> bool:
        completed = TaskRunFilter.model_validate({"state": {"type": {"any_": ["COMPLETED"]}}})
        return len(await client.read_task_runs(flow_run_filter=mine, task_run_filter=completed)) == TASKS

    async def logs() -> bool:
        return len(await client.read_logs(LogFilter.model_validate({"flow_run_id": {"any_": [run]}}))) >= TASKS

    await until("its task runs", tasks)
    await until("its logs", logs)


async def schedules(client: PrefectClient) -> None:
    """A deployment, and the scheduled flow runs that the server makes for it."""
    made = await client.create_flow_from_name(NAME)
    deployment = await client.create_deployment(
        flow_id=made,
        name=NAME,
        schedules=[DeploymentScheduleCreate(schedule=IntervalSchedule(interval=timedelta(hours=1)), active=True)],
    )

    async def scheduled() -> bool:
        wanted = {"deployment_id": {"any_": [str(deployment)]}, "state": {"type": {"any_": ["SCHEDULED"]}}}
        return bool(await client.read_flow_runs(flow_run_filter=FlowRunFilter.model_validate(wanted)))

    await until("scheduled flow runs of a deployment", scheduled)
    await client.delete_deployment(deployment)


def unknown_settings() -> list[str]:
    """Variables that Prefect would read if it had such a setting; it ignores others silently."""
    try:
        from prefect.settings import Settings
        from prefect.settings.legacy import _get_valid_setting_names
    except ImportError:
        # Private: a version that has it elsewhere cannot be asked.
        return []
    return sorted({name for name in os.environ if name.startswith("PREFECT_")} - _get_valid_setting_names(Settings))


async def main() -> int:
    """Gives the exit code."""
    seconds = {}
    async with get_client() as client:
        for ask in reads, runs, schedules:
            began = time.monotonic()
            try:
                await ask(client)
            except Exception as error:
                print(f"{ask.__name__}: {type(error).__name__}: {error}", file=sys.stderr)
                return 1
            seconds[ask.__name__] = round(time.monotonic() - began, 2)
        read = await deployments(client)
    print(json.dumps({"seconds": seconds, "unknown_settings": unknown_settings(), "deployments": read}))
    return 0


sys.exit(asyncio.run(main()))
