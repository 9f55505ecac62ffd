"""Prefect's worker with a life under systemd: see the package's own words for what is added, and why.

`KitWorker` goes before one of Prefect's worker classes. It extends these methods of Prefect 3.8.8, which
tests/unit/test_worker_program.py finds again in the pinned version: get_and_submit_flow_runs, sync_with_backend,
_initialize_after_sync, _submit_scheduled_flow_runs, _submit_run, _submit_run_and_capture_errors, run.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import time
from collections.abc import Callable, Coroutine, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anyio
import httpx
from prefect.events.clients import get_events_subscriber
from prefect.events.filters import EventAnyResourceFilter, EventFilter, EventNameFilter
from prefect.states import Cancelled, Crashed, Scheduled

from . import again, api, late, memory
from .held import HeldRun, HeldRuns
from .notify import Systemd

if TYPE_CHECKING:
    from prefect.client.schemas.objects import FlowRun
    from prefect.client.schemas.responses import WorkerFlowRunResponse

#: Seconds between two signs of life. The window of the automation is at least three of them.
SECONDS_BETWEEN_SIGNS = 30
#: Seconds between two looks for crashed runs that an event has not told of.
SECONDS_BETWEEN_SWEEPS = 300
#: Seconds that a flow run has between SIGTERM, on which it can tidy up, and SIGKILL.
SECONDS_TO_TIDY_UP = 10
#: A new run is fetched when the server tells of it; a burst of such news leads to this many fetches in a second.
FETCHES_IN_A_SECOND = 4
NEWS = ["prefect.flow-run.Scheduled", "prefect.flow-run.Resuming", "prefect.flow-run.Crashed"]


@dataclass(frozen=True)
class Kit:
    """What the unit and its environment say."""

    state_directory: Path
    runtime_directory: Path
    #: Seconds that running flow runs have to end when the worker is told to stop, and when the host shuts down.
    drain_seconds: float
    shutdown_seconds: float
    #: Bytes that the flow runs of this worker may hold together; None: as many as there are.
    memory_limit: int | None

    @property
    def drain_mark(self) -> Path:
        """There while a person wants the worker to take no new runs."""
        return self.state_directory / "drain"

    def time_to_end(self) -> tuple[float, str]:
        """Seconds that flow runs have to end now that the worker is told to stop, and what has decided that.

        The marks are made by prefect-restore, and by the unit's ExecStop= when the whole host is going down.
        """
        if (self.runtime_directory / "at-once").exists():
            return 0, "prefect-restore"
        if (self.runtime_directory / "shutdown").exists():
            return self.shutdown_seconds, "workers_shutdown_seconds"
        return self.drain_seconds, "workers_drain_seconds"


class KitWorker:
    """What goes before ProcessWorker or DockerWorker."""

    @classmethod
    def __dispatch_key__(cls) -> str:
        """A key of its own in Prefect's registry of worker types, where `process` stays Prefect's."""
        return f"kit-{cls.type}"

    def __init__(self, *, kit: Kit, systemd: Systemd, **options: Any) -> None:
        super().__init__(**options)
        self._kit = kit
        self._systemd = systemd
        self._held = HeldRuns(kit.state_directory / "held.json")
        self._left = self._held.left_behind()
        self._active: set[str] = set()
        self._configurations: dict[str, Any] = {}
        self._ended: set[str] = set()
        self._crashed_before: set[str] = set()
        self._stopping = False
        self._lost_since: float | None = None
        self._fetch = asyncio.Lock()
        self._news = asyncio.Event()

    # -- taking runs

    @property
    def _taking(self) -> bool:
        return not self._stopping and not self._kit.drain_mark.exists()

    async def get_and_submit_flow_runs(self) -> list[FlowRun]:
        """Fetch and start what is due; nothing while draining. A server that is away is waited for.

        Prefect's own loop gives up after some minutes of errors and takes the running flows with it.
        """
        async with self._fetch:
            if not self._taking:
                # The health check counts from the last look for runs; not looking is no illness here.
                self._last_polled_time = datetime.now(UTC)
                return []
            if not self._has_successfully_synced:
                # Asks nothing yet, and so says nothing about the API.
                return await super().get_and_submit_flow_runs()
            return await self._through_outages(super().get_and_submit_flow_runs()) or []

    async def sync_with_backend(self) -> None:
        """The heartbeat of the worker itself; a server that is away is waited for."""
        await self._through_outages(super().sync_with_backend())

    async def _through_outages(self, call: Coroutine[Any, Any, Any]) -> Any:
        try:
            done = await call
        except (httpx.HTTPError, OSError) as error:
            if self._lost_since is None:
                self._lost_since = time.monotonic()
                self._logger.warning(
                    "The API does not answer as it should (%s: %s). Running flow runs go on, and the worker goes on asking.",
                    type(error).__name__, error,
                )  # fmt: skip
            self._last_polled_time = datetime.now(UTC)
            return None
        if self._lost_since is not None:
            self._logger.info("The API answers again, after %.0f s.", time.monotonic() - self._lost_since)
            self._lost_since = None
            self._news.set()
        return done

    async def _initialize_after_sync(self) -> None:
        if self._work_pool is not None and self._left:
            try:
                while self._left:
                    await self._report(self._left[0])
                    self._left.pop(0)
            except (httpx.HTTPError, OSError) as error:
                # At the next sync; until then no runs are taken.
                self._logger.warning("Flow runs of the worker before are not reported yet: %s", error)
                return
        await super()._initialize_after_sync()

    async def _submit_scheduled_flow_runs(self, flow_run_response: list[WorkerFlowRunResponse]) -> list[FlowRun]:
        now, useful = datetime.now(UTC), []
        for entry in flow_run_response:
            run = entry.flow_run
            lateness = late.too_late(run.auto_scheduled, run.expected_start_time, run.tags, now)
            if lateness is None:
                useful.append(entry)
            else:
                text = f"Skipped: due at {run.expected_start_time:%Y-%m-%d %H:%M:%S} UTC, {lateness.total_seconds():.0f} s ago (tag skip-if-late)."
                await api.set_state(self.client, run.id, Cancelled(name="Skipped", message=text))
                self._logger.info("Flow run %s. %s", run.name, text)
        return await super()._submit_scheduled_flow_runs(useful)

    # -- holding runs

    async def _submit_run(self, flow_run: FlowRun) -> None:
        run_id = str(flow_run.id)
        # Before it is claimed: a worker that is killed in the middle of that must know it at its next start.
        self._held.add(HeldRun(run_id, flow_run.name, datetime.now(UTC).isoformat(timespec="seconds")))
        try:
            await super()._submit_run(flow_run)
        except (httpx.HTTPError, OSError) as error:
            # Prefect's worker would end here, and all its flow runs with it. It is fetched again.
            self._logger.warning("Flow run %s is not claimed: %s", flow_run.name, error)
            self._submitting_flow_run_ids.discard(flow_run.id)
            self._release_limit_slot(flow_run.id)
        finally:
            if run_id not in self._active:
                self._held.remove(run_id)

    async def _submit_run_and_capture_errors(self, flow_run: FlowRun, task_status: Any = None) -> Any:
        run_id = str(flow_run.id)
        self._active.add(run_id)
        self._in_background(self._send({run_id: api.ALIVE}))
        self._say_status()
        try:
            return await super()._submit_run_and_capture_errors(flow_run, task_status)
        finally:
            self._active.discard(run_id)
            self._let_go(run_id)
            # A place is free.
            self._news.set()

    async def run(self, flow_run: FlowRun, configuration: Any, task_status: Any = None) -> Any:
        run_id = str(flow_run.id)
        self._configurations[run_id] = configuration
        return await super().run(
            flow_run, configuration, _Told(task_status, lambda at: self._held.started(run_id, str(at)))
        )

    def _let_go(self, run_id: str) -> None:
        self._configurations.pop(run_id, None)
        self._crashed_before.discard(run_id)
        self._held.remove(run_id)
        self._ended.add(run_id)
        self._in_background(self._send({}))
        self._say_status()

    def _in_background(self, work: Coroutine[Any, Any, None]) -> None:
        if self._runs_task_group is None:
            work.close()
        else:
            self._runs_task_group.start_soon(lambda: work)

    async def _send(self, signs: dict[str, str]) -> None:
        """Send signs, and the ends that have not been sent; what cannot be sent now is not lost but for the signs."""
        ended = set(self._ended)
        try:
            await api.send_signs(
                self.client, signs | dict.fromkeys(ended, api.ENDED), self.name, str(self.work_pool.id)
            )
        except (httpx.HTTPError, OSError, RuntimeError) as error:
            self._logger.debug("Signs of life not sent: %s", error)
        else:
            self._ended -= ended

    # -- what goes on beside

    async def beside(self) -> None:
        """Everything that Prefect's own loops do not do; until cancelled."""
        async with anyio.create_task_group() as group:
            for work in self._signs, self._listen, self._fetch_on_news, self._sweep, self._guard_memory, self._watchdog:
                group.start_soon(self._for_ever, work)

    async def _for_ever(self, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        while True:
            try:
                await work()
            except Exception as error:
                # The server is away, mostly; its return is told by the loops above.
                self._logger.debug("%s: %s", work.__name__, error, exc_info=True)
                await asyncio.sleep(5)

    async def _signs(self) -> None:
        """A sign of life for each run; and an end for those that the server has given up meanwhile."""
        await asyncio.sleep(SECONDS_BETWEEN_SIGNS)
        runs = [run.id for run in self._held]
        if not runs:
            if self._ended:
                await self._send({})
            return
        known = await api.states_of(self.client, runs)
        living = [run_id for run_id in runs if run_id in known and not known[run_id].state.is_final()]
        inside = await api.subflows_under_way(self.client, living)
        await self._send(dict.fromkeys([*living, *(str(run.id) for run in inside)], api.ALIVE))
        # After a cut of the network, say: a new run may be under way elsewhere, and two must not go on. Seen twice,
        # because a process that is just ending has told its last state already.
        given_up = {run_id for run_id, run in known.items() if run.state.is_crashed() and run_id in self._active}
        for run_id in given_up & self._crashed_before:
            self._tell_run(
                known[run_id], "The server has given this flow run up as Crashed; its process is ended here."
            )
            await self._end(run_id)
        self._crashed_before = given_up

    async def _listen(self) -> None:
        """Hear of new and of crashed runs of the pool when it happens."""
        while self._work_pool is None:
            await asyncio.sleep(1)
        wanted = EventFilter(
            event=EventNameFilter(name=NEWS),
            any_resource=EventAnyResourceFilter(id=[f"prefect.work-pool.{self._work_pool.id}"]),
        )
        async with get_events_subscriber(filter=wanted) as news:
            # What happened before the connection stood is found by looking.
            self._news.set()
            async for event in news:
                if event.event == "prefect.flow-run.Crashed":
                    run_id = event.resource.id.removeprefix("prefect.flow-run.")
                    await self._run_again(*(await api.states_of(self.client, [run_id])).values())
                else:
                    self._news.set()
        await asyncio.sleep(1)

    async def _fetch_on_news(self) -> None:
        await self._news.wait()
        self._news.clear()
        if self._limiter is None or self._limiter.available_tokens > 0:
            await self.get_and_submit_flow_runs()
        await asyncio.sleep(1 / FETCHES_IN_A_SECOND)

    async def _sweep(self) -> None:
        """Crashed runs that no event has told of: no worker was there, or the connection was not."""
        while self._work_pool is None:
            await asyncio.sleep(1)
        await self._run_again(*await api.crashed_lately(self.client, self._work_pool_name))
        await asyncio.sleep(SECONDS_BETWEEN_SWEEPS)

    async def _run_again(self, *runs: FlowRun) -> None:
        for run in runs:
            # A run that another flow run has started belongs to that one.
            if run.deployment_id is None or run.parent_task_run_id is not None:
                continue
            following = again.next_attempt(str(run.id), run.name, run.tags, run.idempotency_key)
            if following is None:
                continue
            new = await api.run_again(self.client, run, following)
            if (datetime.now(UTC) - new.created).total_seconds() < SECONDS_BETWEEN_SIGNS:
                self._tell_run(run, f"Run again as {new.name} ({following.attempt} of at most {following.attempts}).")

    async def _guard_memory(self) -> None:
        await asyncio.sleep(1)
        limit = self._kit.memory_limit
        if limit is None or not self._active:
            return
        pids = {run.id: int(run.infrastructure) for run in self._held if run.infrastructure.isdigit()}
        sizes = {run_id: memory.used(memory.family(pid)) for run_id, pid in pids.items()}
        if run_id := memory.victim(sizes, memory.used([os.getpid()]), limit):
            text = (
                f"Out of memory: this flow run held {memory.megabytes(sizes[run_id])}, and the flow runs of the worker "
                f"{self.name} have {memory.megabytes(limit)} together (memory_max in prefect_workers). It is ended."
            )
            if run := (await self._known(run_id)):
                self._tell_run(run, text)
            # At once: while it tidies up it would go on growing.
            self._kill(memory.family(pids[run_id]))

    async def _known(self, run_id: str) -> FlowRun | None:
        with contextlib.suppress(httpx.HTTPError, OSError):
            return (await api.states_of(self.client, [run_id])).get(run_id)
        return None

    async def _watchdog(self) -> None:
        self._systemd.tell(WATCHDOG=1)
        await asyncio.sleep((self._systemd.watchdog_seconds or 120) / 4)

    # -- ends

    async def drain(self) -> None:
        """Take no new runs; wait for those under way as long as there is time; end and report the rest."""
        self._stopping = True
        seconds, decided = self._kit.time_to_end()
        deadline = time.monotonic() + seconds
        self._logger.info("Told to stop: no new flow runs; %d under way have %.0f s to end.", len(self._held), seconds)
        while len(self._held) and time.monotonic() < deadline:
            self._systemd.tell(STOPPING=1, EXTEND_TIMEOUT_USEC=30_000_000, STATUS=self._status(deadline))
            await asyncio.sleep(min(1.0, max(0.05, deadline - time.monotonic())))
        left = [run for run in self._held]
        self._systemd.tell(STOPPING=1, EXTEND_TIMEOUT_USEC=60_000_000, STATUS=f"Ending {len(left)} flow runs")
        text = f"The worker {self.name} was told to stop, and this flow run had not ended {seconds:.0f} s later ({decided})."
        async with anyio.create_task_group() as group:
            for run in left:
                group.start_soon(self._end_and_report, run, text)

    async def _end_and_report(self, held: HeldRun, text: str) -> None:
        if run := await self._known(held.id):
            self._tell_run(run, text + " It is ended.")
        await self._end(held.id)
        # The worker reports the process's end by itself; it must not be gone before.
        for _ in range(100):
            if held.id not in self._held:
                break
            await asyncio.sleep(0.1)
        run = await self._known(held.id)
        if run is not None and not run.state.is_final():
            await api.set_state(self.client, run.id, Crashed(message=text))

    async def _end(self, run_id: str) -> None:
        """End a run's process: SIGTERM, on which it reports itself, then SIGKILL for it and for all that it started."""
        held = self._held.get(run_id)
        if held is None or not held.infrastructure:
            return
        if not held.infrastructure.isdigit():
            with contextlib.suppress(Exception):
                await self.kill_infrastructure(
                    infrastructure_pid=held.infrastructure,
                    configuration=self._configurations.get(run_id),
                    grace_seconds=SECONDS_TO_TIDY_UP,
                )
            return
        pid = int(held.infrastructure)
        # What the flow has started may outlive it.
        family = memory.family(pid)
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGTERM)
        deadline = time.monotonic() + SECONDS_TO_TIDY_UP
        while run_id in self._held and time.monotonic() < deadline:
            await asyncio.sleep(0.1)
        self._kill({*family, *memory.family(pid)} if run_id in self._held else set(family) - {pid})

    def _kill(self, pids: Iterable[int]) -> None:
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    async def _outlived(self, left: HeldRun) -> bool:
        """Whether what an earlier worker started is still there. Processes are not: systemd ends them with the worker."""
        return False

    async def _report(self, left: HeldRun) -> None:
        """Report a run that an earlier worker of this name left behind, or go on holding it where it has outlived that."""
        run = (await api.states_of(self.client, [left.id])).get(left.id)
        if run is not None and await self._outlived(left):
            self._held.add(left)
            self._in_background(self._hold(left))
            return
        if run is None or run.state.is_final() or run.state.is_scheduled() or run.state.is_paused():
            return
        if run.labels.get("prefect.worker.name", self.name) != self.name:
            # Claimed by another worker at the very moment when this one wanted to.
            return
        self._ended.add(left.id)
        if run.start_time is None and run.state.is_pending():
            text = f"The worker {self.name} ended before it could start this flow run; it is to be run by the next one."
            await api.set_state(self.client, run.id, Scheduled(message=text))
        else:
            text = f"The worker {self.name} ended without notice (killed, or its host went down), and this flow run with it."
            for inside in await api.subflows_under_way(self.client, [left.id]):
                await api.set_state(self.client, inside.id, Crashed(message=text))
            await api.set_state(self.client, run.id, Crashed(message=text))
        self._tell_run(run, text)

    async def _hold(self, left: HeldRun) -> None:
        """Hold a run that has outlived the worker that started it, until it ends; then see to it that it is reported."""
        self._logger.info("Flow run %s has outlived the worker before; it is held on.", left.name)
        with contextlib.suppress(asyncio.CancelledError):
            while await self._outlived(left):
                await asyncio.sleep(2)
            run = await self._known(left.id)
            if run is not None and not run.state.is_final():
                await api.set_state(
                    self.client, run.id, Crashed(message=f"The flow run's {left.infrastructure} has ended.")
                )
        self._let_go(left.id)

    # -- words

    def _tell_run(self, run: FlowRun, text: str) -> None:
        """Into the run's own logs, where its owner looks, and into the worker's."""
        self.get_flow_run_logger(run).warning(text)

    def _status(self, deadline: float | None = None) -> str:
        runs = ", ".join(run.name for run in self._held) or "none"
        if deadline is not None:
            return f"Stopping; up to {deadline - time.monotonic():.0f} s more for flow runs: {runs}"
        return f"{'Taking no new flow runs' if not self._taking else 'Taking flow runs'}; under way: {runs}"

    def _say_status(self) -> None:
        self._systemd.tell(STATUS=self._status())


class _Told:
    """A task status that also tells us where the process is."""

    def __init__(self, inner: Any, tell: Callable[[Any], None]) -> None:
        self._inner = inner
        self._tell = tell

    def started(self, value: Any = None) -> None:
        self._tell(value)
        if self._inner is not None:
            self._inner.started(value)
