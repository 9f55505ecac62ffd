"""Prefect's worker with a life under systemd: see the package's own words for what is added, and why.

`KitWorker` goes before one of Prefect's worker classes. It extends public methods of theirs (get_and_submit_flow_runs,
sync_with_backend, run) and those that `WorkerSeam` (seam.py) makes of private ones; no private name of Prefect's is here.
Here is what Prefect calls. What is done then is in components, each of which knows the runs in hand (runs.py) and of the
worker no more than protocols.py says.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
import time
from collections.abc import Callable, Coroutine
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import anyio
import httpx
from prefect.states import Cancelled

from . import late, news
from .api import Api, is_away, soon
from .claims import Claims
from .disk_guard import DiskGuard
from .ending import Ending
from .heartbeats import Heartbeats
from .held import HeldRun, HeldRuns
from .kit import Kit
from .memory_guard import MemoryGuard
from .notify import Systemd, status
from .reruns import SECONDS_BETWEEN_SWEEPS, Reruns
from .runs import Runs
from .seam import WorkerSeam
from .settling import Settling
from .shutdown import Shutdown

if TYPE_CHECKING:
    from prefect.client.schemas.objects import FlowRun
    from prefect.client.schemas.responses import WorkerFlowRunResponse

#: Seconds that the end of a flow run waits for its name and its logs; it comes without them when the API is away.
SECONDS_FOR_WORDS = 10
#: The tag of the kit's smoke flow (role checks). Its runs wait for no place.
SMOKE = "prefect-kit"
#: A new run is fetched when the server tells of it; a burst of such news leads to this many fetches in a second.
FETCHES_IN_A_SECOND = 4
#: What flow runs are started with, unless their deployment or worker says otherwise. While the server is away the reverse
#: proxy has them wait for it (caddy/Caddyfile). When not even that answers (the network is cut, say) Prefect's clients ask
#: 5 times again, for a minute, and then the run is Failed, with all its work done. 7 times are 2 + 4 + … + 128 s: longer
#: than the 180 s (workers_crash_seconds) after which it is taken for dead. And a server whose database is away answers
#: 500, which Prefect's clients take for final.
RETRIES = {"PREFECT_CLIENT_MAX_RETRIES": "7", "PREFECT_CLIENT_RETRY_EXTRA_CODES": "500"}


class KitWorker(WorkerSeam):
    """What goes before ProcessWorker or DockerWorker."""

    #: Whether flow runs end with the worker, which then has to wait for them.
    waits_for_runs = True

    @classmethod
    def __dispatch_key__(cls) -> str:
        """A key of its own in Prefect's registry of worker types, where `process` stays Prefect's."""
        return f"kit-{cls.type}"

    def __init__(self, *, kit: Kit, systemd: Systemd, **options: Any) -> None:
        super().__init__(**options)
        self._kit = kit
        self._systemd = systemd
        self._held = HeldRuns(kit.state_directory / "held.json")
        self._runs = Runs(self._held)
        self._api = Api(lambda: self.client)
        self._claims = Claims(self._runs, self._api, self, self.is_submitting)
        self._heartbeats = Heartbeats(self._runs, self._api, self, lambda: str(self.work_pool.id))
        self._ending = Ending(self._runs, self, self)
        self._memory_guard = MemoryGuard(self._runs, self, self, kit.memory_limit)
        self._disk_guard = DiskGuard(self._runs, self, self, kit.places, kit.disk_reserve)
        self._reruns = Reruns(self._api, self)
        self._shutdown = Shutdown(self._runs, self, self, self._ending, kit, systemd)
        # There may be a run to fetch, or a place for one.
        self._news = asyncio.Event()
        self._settling = Settling(
            self._runs, self._api, self, self, self._heartbeats, changed=self._news.set, let_go=self._say_status
        )
        self._lost_since: float | None = None
        self._fetch = asyncio.Lock()

    # -- taking runs

    @property
    def _taking(self) -> bool:
        return not self._shutdown.told and not os.path.lexists(self._kit.drain_mark)

    async def get_and_submit_flow_runs(self) -> list[FlowRun]:
        """Fetch and start what is due; nothing while draining. A server that is away is waited for.

        Prefect's own loop gives up after some minutes of errors and takes the running flows with it.
        """
        async with self._fetch:
            if not self._taking:
                # The health check counts from the last look for runs; not looking is no illness here.
                self.count_as_polled()
                return []
            if not self.has_synced:
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
                self.log.warning(
                    "The API does not answer as it should (%s: %s). Running flow runs go on, and the worker goes on asking.",
                    type(error).__name__, error,
                )  # fmt: skip
            self.count_as_polled()
            return None
        if self._lost_since is not None:
            self.log.info("The API answers again, after %.0f s.", time.monotonic() - self._lost_since)
            self._lost_since = None
            self._news.set()
            self.revive_cancellations()
        return done

    async def after_sync(self) -> None:
        if self.pool is not None and self._held.left and not await self._settling.report_left(self._held):
            return
        await super().after_sync()

    async def submit_due(self, due: list[WorkerFlowRunResponse]) -> list[FlowRun]:
        if not self._taking:
            # Told to stop or to drain while this answer was on its way, which may take minutes.
            return []
        now, useful, smoke = datetime.now(UTC), [], []
        for entry in due:
            run = entry.flow_run
            if self._runs.is_started(str(run.id)):
                # An answer that was on its way for long, or a run that is due again before its process is gone: fetched
                # again when that has been settled. It has its place still, and Prefect 3.8.8 ends the worker over that.
                continue
            lateness = late.too_late(run.auto_scheduled, run.expected_start_time, run.tags, now)
            if lateness is None:
                (smoke if SMOKE in (run.tags or ()) else useful).append(entry)
            else:
                text = f"Skipped: due at {run.expected_start_time:%Y-%m-%d %H:%M:%S} UTC, {lateness.total_seconds():.0f} s ago (tag skip-if-late)."
                await self._api.set_state(run.id, Cancelled(name="Skipped", message=text))
                self.log.info("Flow run %s. %s", run.name, text)
        # site.yml, a restore and an upgrade end with a run of it: on a worker that is at its limit they would wait for hours.
        first = await self.submit_beside(smoke) if smoke else []
        return [*first, *await super().submit_due(useful)]

    # -- one run

    async def take_run(self, flow_run: FlowRun) -> None:
        run = self._runs.take(str(flow_run.id), flow_run.name)
        try:
            await super().take_run(flow_run)
        except (httpx.HTTPError, OSError) as error:
            # Prefect's worker would end here, and all its flow runs with it. It is fetched again.
            self.log.warning("Flow run %s is not claimed: %s", flow_run.name, error)
            self.forget_submitting(flow_run.id)
        except asyncio.CancelledError:
            # In the middle of a claim: the file goes on naming the run, for the next worker to look at.
            self._runs.claim_lost(run)
            raise
        finally:
            if not self._runs.is_started(run.id):
                # Prefect's worker keeps the place of a run whose deployment is gone.
                self.free_place(flow_run.id)
            self._runs.not_started(run)

    async def claim(self, flow_run: FlowRun) -> bool:
        return await self._claims.claim(flow_run)

    async def start_and_wait(self, flow_run: FlowRun, task_status: Any = None) -> Any:
        run = self._runs.start(str(flow_run.id), flow_run.name)
        # Before it has a process.
        await self._heartbeats.send_first(run)
        self._say_status()
        # When it is cancelled the worker itself ends: the file goes on naming the run, for the next one to look at.
        done = await super().start_and_wait(flow_run, task_status)
        if isinstance(done, Exception):
            await self._settling.wait_while_it_goes_on(run)
        await self._settling.settle(run)
        return done

    async def run(self, flow_run: FlowRun, configuration: Any, task_status: Any = None) -> Any:
        run = self._runs.get(str(flow_run.id))
        configuration.env = RETRIES | configuration.env
        if run is not None:
            run.configuration = configuration
            task_status = _Told(task_status, lambda at: self._runs.has_process(run, str(at)))
        return await super().run(flow_run, configuration, task_status)

    async def report_crash(self, flow_run: FlowRun, message: str, client: Any = None) -> None:
        """Prefect's own, but for a run that has no process yet because the API failed: that is given back (settling.py)."""
        run = self._runs.get(str(flow_run.id))
        if run is not None and run.configuration is None and is_away(sys.exception()):
            run.failure = message
            return
        await super().report_crash(flow_run, message, client)

    # -- what goes on beside

    async def beside(self) -> None:
        """Everything that Prefect's own loops do not do; until cancelled."""
        async with anyio.create_task_group() as group:
            for work in (
                self._send_heartbeats,
                self._listen,
                self._fetch_on_news,
                self._sweep,
                self._memory_guard.guard,
                self._disk_guard.guard,
                self._watchdog,
            ):
                group.start_soon(self._for_ever, work)

    async def _for_ever(self, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        while True:
            try:
                await work()
            except Exception as error:
                # The server is away, mostly; its return is told by the loops above.
                self.log.debug("%s: %s", work.__name__, error, exc_info=True)
                await asyncio.sleep(5)

    async def _send_heartbeats(self) -> None:
        """And do what is due when the server can be asked, and has just been asked of every run."""
        known = await self._heartbeats.send_when_due()
        if known is not None:
            await self._claims.settle_unsure()
            self._ending.end_what_the_server_has_ended(known)

    async def _listen(self) -> None:
        await self._until_there_is_a_pool()
        await news.listen(str(self.pool.id), self._news.set, self._reruns.heard_of_a_crash)
        await asyncio.sleep(1)

    async def _fetch_on_news(self) -> None:
        await self._news.wait()
        self._news.clear()
        if self.has_place:
            await self.get_and_submit_flow_runs()
        await asyncio.sleep(1 / FETCHES_IN_A_SECOND)

    async def _sweep(self) -> None:
        await self._until_there_is_a_pool()
        await self._reruns.sweep(self.pool_name)
        await asyncio.sleep(SECONDS_BETWEEN_SWEEPS)

    async def _until_there_is_a_pool(self) -> None:
        while self.pool is None:
            await asyncio.sleep(1)

    async def _watchdog(self) -> None:
        self._systemd.tell(WATCHDOG=1)
        await asyncio.sleep((self._systemd.watchdog_seconds or 120) / 4)

    async def drain(self) -> None:
        """Take no new runs and come to an end: with those under way, or without them where they go on by themselves."""
        await (self._shutdown.drain() if self.waits_for_runs else self._shutdown.leave())

    # -- what its components know of a worker (protocols.Worker)

    def tell_run(self, flow_run: FlowRun, text: str) -> None:
        self.get_flow_run_logger(flow_run).warning(text)

    async def tell_run_soon(self, run_id: str, text: str) -> None:
        run = None
        with contextlib.suppress(httpx.HTTPError, OSError):
            run = (await soon(self._api.states_of([run_id]), SECONDS_FOR_WORDS)).get(run_id)
        if run is not None:
            self.tell_run(run, text)
        else:
            self.log.warning("Flow run %s: %s", run_id, text)

    def in_background(self, work: Coroutine[Any, Any, Any]) -> None:
        async def guarded() -> None:
            # An error in that group would end the worker, and all its flow runs with it.
            try:
                await work
            except Exception:
                self.log.exception("In the background:")

        if not self.start_beside(guarded):
            work.close()

    def _say_status(self) -> None:
        self._systemd.tell(STATUS=status([run.name for run in self._runs], self._taking))

    # -- and of what its flow runs run in (protocols.Infrastructure); a worker whose flow runs are processes knows more

    def processes_of(self, run_id: str) -> list[int]:
        return []

    def kill_processes(self, run_id: str) -> None:
        """Nothing: there are none."""

    def has_hooks_running(self, run_id: str) -> bool:
        return False

    async def has_outlived(self, left: HeldRun) -> bool:
        """Processes have not: systemd ends them with the worker."""
        return False


class _Told:
    """A task status that also tells us where the process is."""

    def __init__(self, inner: Any, tell: Callable[[Any], Any]) -> None:
        self._inner = inner
        self._tell = tell

    def started(self, value: Any = None) -> None:
        self._tell(value)
        if self._inner is not None:
            self._inner.started(value)
