"""The place of private names of Prefect's: how it starts the process of a flow run, and who runs that run's hooks.

What Prefect's process worker (3.8.8) does inside `run` is not to be extended by its class alone:

- `prefect.runner._starter_engine.run_process` starts the process and waits for it *and for everybody who has its output*:
  a child that the flow leaves behind keeps the worker waiting for hours. Prefect's own comment there says to replace this
  name. Ours starts it in the run's control group, and ends the rest of the group when the process itself has ended.
- `prefect.runner._workspace_hook_runner.run_process` starts the hooks of a run without a `command`, in its environment.
- `prefect.runner._flow_run_executor.HookRunner` runs the hooks of a run with a `command`: it imports the flow into the
  worker. Ours starts prefect_hooks.py with that command's own interpreter.

tests/unit/test_worker_seam.py finds these names again in the pinned version, and tries what replaces them.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable, Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prefect.logging.loggers import flow_run_logger
from prefect.runner import _flow_run_executor, _starter_engine, _workspace_hook_runner
from prefect.utilities.processutils import command_from_string, run_process

from .groups import RunGroup

if TYPE_CHECKING:
    from prefect.client.schemas.objects import FlowRun, State

HOOKS = Path(__file__).resolve().parents[1] / "prefect_hooks.py"
#: Seconds that a flow's hooks have, all together: one that hangs would keep its run Cancelling, and a place of the worker.
SECONDS_FOR_HOOKS = 300
SECONDS_BETWEEN_LOOKS = 0.1
#: Seconds in which what a process leaves may end by itself: helpers that tidy up after it, as Python's resource tracker.
SECONDS_TO_FOLLOW = 2.0


@dataclass
class RunInHand:
    """The flow run that the present task and those that it starts work for."""

    group: RunGroup
    #: Gives the group in which its hooks run, when there are any to run.
    hooks_group: Callable[[], RunGroup]
    #: Starts the flow's own interpreter, as its words before `-m prefect.engine`; None where that cannot be told.
    interpreter: str | None
    #: Overrides what the worker itself has.
    environment: Mapping[str, str]
    #: With what the process was started, for its hooks.
    started_with: dict[str, Any] = field(default_factory=dict)
    hooks_running: bool = False
    #: Names of the programs that had to be ended after the flow's own process.
    left: list[str] = field(default_factory=list)


in_hand: ContextVar[RunInHand | None] = ContextVar("in_hand", default=None)


def install() -> None:
    """Put ours in the places of Prefect's; more than once is the same as once."""
    _starter_engine.run_process = _run_the_flow
    _workspace_hook_runner.run_process = _run_hooks_of_a_workspace
    _flow_run_executor.HookRunner = HooksOutside


async def _run_the_flow(
    command: list[str], *, task_status: Any = None, task_status_handler: Any = None, **more: Any
) -> Any:
    run = in_hand.get()
    if run is None:
        return await run_process(command, task_status=task_status, task_status_handler=task_status_handler, **more)
    more["env"] = {**(more.get("env") or os.environ), **run.environment}
    run.started_with = {name: more[name] for name in ("env", "cwd", "stream_output") if name in more}
    watching: list[asyncio.Task[None]] = []

    def started(process: Any) -> Any:
        run.group.holds(process.pid)
        watching.append(asyncio.ensure_future(_end_the_rest(process, run.group, run.left)))
        return task_status_handler(process) if task_status_handler else process.pid

    try:
        done = await run_process(
            run.group.entering(command, more["env"]),
            task_status=_Nobody() if task_status is None else task_status,
            task_status_handler=started,
            **more,
        )
        # It returns at once where what is left has closed its output.
        await asyncio.gather(*watching)
        return done
    finally:
        for task in watching:
            task.cancel()
        run.group.kill()
        run.group.forget()


async def _end_the_rest(process: Any, group: RunGroup, left: list[str]) -> None:
    """When the process has ended, end what it has left: it holds its output open, which is waited for."""
    while process.returncode is None:
        await asyncio.sleep(SECONDS_BETWEEN_LOOKS)
    deadline = asyncio.get_running_loop().time() + SECONDS_TO_FOLLOW
    while group.pids() and asyncio.get_running_loop().time() < deadline:
        await asyncio.sleep(SECONDS_BETWEEN_LOOKS)
    left += group.names()
    group.kill()
    group.forget()


async def _run_hooks_of_a_workspace(command: list[str], **more: Any) -> Any:
    run = in_hand.get()
    if run is None:
        return await run_process(command, **more)
    more["env"] = {**(more.get("env") or os.environ), **run.environment}
    return await _in_the_hooks_group(run, command, more)


async def _in_the_hooks_group(run: RunInHand, command: list[str], more: dict[str, Any]) -> Any:
    """Run a command in a group of its own, for as long as hooks may take. Raises TimeoutError when it takes longer."""
    group = run.hooks_group()

    def started(process: Any) -> Any:
        group.holds(process.pid)
        watching.append(asyncio.ensure_future(_end_the_rest(process, group, [])))

    def expire() -> None:
        expired.set()
        # Not by cancelling: Prefect would go on waiting for the process.
        group.kill()

    watching: list[asyncio.Task[None]] = []
    expired = asyncio.Event()
    timer = asyncio.get_running_loop().call_later(SECONDS_FOR_HOOKS, expire)
    run.hooks_running = True
    try:
        done = await run_process(
            group.entering(command, more["env"]), task_status=_Nobody(), task_status_handler=started, **more
        )
        if expired.is_set():
            raise TimeoutError
        return done
    finally:
        timer.cancel()
        for task in watching:
            task.cancel()
        await group.end()
        run.hooks_running = False


class _Nobody:
    """A task status for `run_process`, which calls its handler only where somebody waits for one."""

    def started(self, value: Any = None) -> None:
        return


class HooksOutside:
    """In the place of Prefect's HookRunner: the hooks run in a process of the flow run's own, not in the worker."""

    def __init__(self, *, resolve_flow: Callable[[FlowRun], Awaitable[Any]]) -> None:
        """As Prefect calls it; `resolve_flow`, which would import the flow here, is never called."""

    async def run_cancellation_hooks(self, flow_run: FlowRun, state: State) -> None:
        if state.is_cancelling():
            await self._run("on_cancellation", flow_run, state)

    async def run_crashed_hooks(self, flow_run: FlowRun, state: State) -> None:
        if state.is_crashed():
            await self._run("on_crashed", flow_run, state)

    async def _run(self, kind: str, flow_run: FlowRun, state: State) -> None:
        run = in_hand.get()
        logger = flow_run_logger(flow_run)
        if run is None or run.interpreter is None or not run.started_with:
            logger.warning(
                "Hooks (%s) of this flow run are not run: its command does not end in -m prefect.engine, so nothing is "
                "known of the Python that its flow needs.",
                kind,
            )
            return
        said = state.model_dump_json(include={"id", "type", "name", "message", "timestamp", "state_details"})
        more = {**run.started_with, "env": {**run.started_with["env"], "KIT_HOOK_STATE": said}}
        try:
            done = await _in_the_hooks_group(run, [*command_from_string(run.interpreter), str(HOOKS), kind], more)
        except TimeoutError:
            logger.warning("Hooks (%s) of this flow run were ended after %d s.", kind, SECONDS_FOR_HOOKS)
            return
        except OSError as error:
            logger.warning("Hooks (%s) of this flow run could not be started: %s", kind, error)
            return
        if done.returncode:
            logger.warning("The process of this flow run's hooks (%s) ended with status %d.", kind, done.returncode)
