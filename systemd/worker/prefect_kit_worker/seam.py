"""The only place of private names of Prefect's in the worker; the other modules know the names that are made here.

For each: why it is needed, and what Prefect would have to offer for it to go.

Put in the place of (`install`, for flow runs in processes):

- `prefect.runner._starter_engine.run_process` starts the process and waits for it *and for everybody who has its output*:
  a child that the flow leaves behind keeps the worker waiting for hours. Prefect's own comment there says to replace this
  name. Ours starts it in the run's control group, and ends the rest of the group when the process itself has ended.
  To go: a starter that can be handed to ProcessWorker.
- `prefect.runner._workspace_hook_runner.run_process` starts the hooks of a run without a `command`, in its environment.
  To go: the same.
- `prefect.runner._flow_run_executor.HookRunner` runs the hooks of a run with a `command`: it imports the flow into the
  worker. Ours starts prefect_hooks.py with that command's own interpreter. To go: hooks run by the flow's own command.

Methods of workers that are extended, and what is read of them: at each of `WorkerSeam` and `DockerSeam`.

tests/unit/test_contract.py holds all of it against every supported version of Prefect.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable, Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prefect.logging.loggers import flow_run_logger
from prefect.runner import _flow_run_executor, _starter_engine, _workspace_hook_runner
from prefect.utilities.processutils import command_from_string, run_process

from .groups import RunGroup

if TYPE_CHECKING:
    from uuid import UUID

    from prefect.client.schemas.objects import FlowRun, State, WorkPool
    from prefect.client.schemas.responses import WorkerFlowRunResponse

HOOKS = Path(__file__).resolve().parents[1] / "prefect_hooks.py"
#: Seconds that a flow's hooks have, all together: one that hangs would keep its run Cancelling, and a place of the worker.
SECONDS_FOR_HOOKS = 300
SECONDS_BETWEEN_LOOKS = 0.1
#: Seconds in which what a process leaves may end by itself: helpers that tidy up after it, as Python's resource tracker.
SECONDS_TO_FOLLOW = 2.0


class WorkerSeam:
    """Goes before one of Prefect's workers. Prefect calls the private methods, which call ours; `super()` of ours is Prefect's.

    To go: hooks of BaseWorker that a subclass may extend, one for each step of a flow run's life.
    """

    # -- extended: Prefect calls these

    async def _initialize_after_sync(self) -> None:
        await self.after_sync()

    async def _submit_scheduled_flow_runs(self, flow_run_response: list[WorkerFlowRunResponse]) -> list[FlowRun]:
        return await self.submit_due(flow_run_response)

    async def _submit_run(self, flow_run: FlowRun) -> None:
        await self.take_run(flow_run)

    async def _propose_pending_state(self, flow_run: FlowRun) -> bool:
        return await self.claim(flow_run)

    async def _submit_run_and_capture_errors(self, flow_run: FlowRun, task_status: Any = None) -> Any:
        return await self.start_and_wait(flow_run, task_status)

    async def _propose_crashed_state(self, flow_run: FlowRun, message: str, client: Any = None) -> None:
        await self.report_crash(flow_run, message, client)

    async def after_sync(self) -> None:
        """After each sync with the server: what the worker before has left is reported before runs are taken."""
        await super()._initialize_after_sync()

    async def submit_due(self, due: list[WorkerFlowRunResponse]) -> list[FlowRun]:
        """Between the fetch of runs and their start: those that come too late are skipped."""
        return await super()._submit_scheduled_flow_runs(due)

    async def submit_beside(self, due: list[WorkerFlowRunResponse]) -> list[FlowRun]:
        """`_limiter`: start runs that wait for no place; while they run, others have as many places less."""
        limiter = self._limiter
        if limiter is None:
            return await super()._submit_scheduled_flow_runs(due)
        limit = limiter.total_tokens
        limiter.total_tokens = max(limit, limiter.borrowed_tokens) + len(due)
        try:
            return await super()._submit_scheduled_flow_runs(due)
        finally:
            limiter.total_tokens = limit

    async def take_run(self, flow_run: FlowRun) -> None:
        """All of one run: noted before it is claimed, and an API that fails then must not end the worker."""
        await super()._submit_run(flow_run)

    async def claim(self, flow_run: FlowRun) -> bool:
        """Prefect's own takes a lost answer for a refusal."""
        return await super()._propose_pending_state(flow_run)

    async def start_and_wait(self, flow_run: FlowRun, task_status: Any = None) -> Any:
        """From a claimed run's start to the end of its process, in which it is held."""
        return await super()._submit_run_and_capture_errors(flow_run, task_status)

    async def report_crash(self, flow_run: FlowRun, message: str, client: Any = None) -> None:
        """Not for a run that could not be started because the API failed: that is given back."""
        await super()._propose_crashed_state(flow_run, message, client)

    # -- read and set. To go: the same, public

    @property
    def log(self) -> Any:
        """`_logger`: the worker's own log, where its other lines are."""
        return self._logger

    @property
    def pool(self) -> WorkPool | None:
        """`_work_pool`: None before it is known; the public `work_pool` raises then."""
        return self._work_pool

    @property
    def pool_name(self) -> str:
        """`_work_pool_name`: crashed runs are looked for by it."""
        return self._work_pool_name

    @property
    def has_synced(self) -> bool:
        """`_has_successfully_synced`: a fetch before that asks nothing, and so says nothing about the API."""
        return self._has_successfully_synced

    @property
    def has_place(self) -> bool:
        """`_limiter`: whether another run may be started; a fetch without a place would be for nothing."""
        return self._limiter is None or self._limiter.available_tokens > 0

    def count_as_polled(self) -> None:
        """`_last_polled_time`: the health check counts from it, and a worker that waits on purpose is not ill."""
        self._last_polled_time = datetime.now(UTC)

    def is_submitting(self, run_id: UUID) -> bool:
        """`_submitting_flow_run_ids`: whether a run has been fetched and is not started yet."""
        return run_id in self._submitting_flow_run_ids

    def forget_submitting(self, run_id: UUID) -> None:
        """`_submitting_flow_run_ids`: a run whose claim failed is fetched again only when it is not named there."""
        self._submitting_flow_run_ids.discard(run_id)

    def free_place(self, run_id: UUID) -> None:
        """`_release_limit_slot`: Prefect keeps the place of a run whose deployment is gone."""
        self._release_limit_slot(run_id)

    def start_beside(self, work: Callable[..., Awaitable[Any]], *values: Any) -> bool:
        """`_runs_task_group`: work that ends with the worker, as its runs do. False where the worker has not begun."""
        if self._runs_task_group is None:
            return False
        self._runs_task_group.start_soon(work, *values)
        return True

    def revive_cancellations(self) -> None:
        """`_cancelling_observer._polling_task`: the listener for cancelled runs gives up for good after a while without
        the server; the next sync makes a new one where there is none. 3.9.1 revives it itself, and has no such task.
        """
        task = getattr(self._cancelling_observer, "_polling_task", None)
        if task is not None and task.done():
            self._cancelling_observer = None


class DockerSeam(WorkerSeam):
    """Goes before DockerWorker (prefect-docker). To go: the same methods, public."""

    def never_make_the_pool(self) -> None:
        """`_create_pool_if_not_found`: set here, whatever the worker was made with."""
        self._create_pool_if_not_found = False

    def docker_client(self) -> Any:
        """`_get_client`: a client of the engine that the worker's own containers run in."""
        return self._get_client()

    def container_identifier(self, container_id: str) -> str:
        """`_get_infrastructure_pid`: `engine's address:container's id`, as Prefect names what a run runs in."""
        return self._get_infrastructure_pid(container_id)

    def create_and_start(self, configuration: Any) -> Any:
        """`_create_and_start_container`: the first half of DockerWorker.run, whose second half is replaced."""
        return self._create_and_start_container(configuration)

    def watch_container(self, container: Any, configuration: Any, created: Any) -> None:
        """`_watch_container_safe`: its output goes to the journal and into the run's logs until it ends."""
        self._watch_container_safe(container, configuration, created)


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
