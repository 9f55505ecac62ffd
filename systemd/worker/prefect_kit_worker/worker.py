"""Prefect's worker with a life under systemd: see the package's own words for what is added, and why.

`KitWorker` goes before one of Prefect's worker classes. It extends public methods of theirs (get_and_submit_flow_runs,
sync_with_backend, run) and those that `WorkerSeam` (seam.py) makes of private ones; no private name of Prefect's is here.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import UUID

import anyio
import httpx
from prefect.events.clients import get_events_subscriber
from prefect.events.filters import EventAnyResourceFilter, EventFilter, EventNameFilter
from prefect.exceptions import Abort, ObjectNotFound
from prefect.states import Cancelled, Crashed, Pending, Scheduled
from prefect.utilities.engine import propose_state

from . import again, api, late, memory
from .held import HeldRun, HeldRuns
from .notify import Systemd
from .seam import WorkerSeam

if TYPE_CHECKING:
    from prefect.client.schemas.objects import FlowRun
    from prefect.client.schemas.responses import WorkerFlowRunResponse

#: Seconds between two signs of life. The window of the automation is at least three of them.
SECONDS_BETWEEN_SIGNS = 30
#: Seconds between two tries to send the first one of a run.
SECONDS_BETWEEN_FIRST_HEARTBEATS = 1
#: Seconds that a request for them may take before it is made anew: after a cut of the network the old one would go on
#: waiting, up to a minute and with growing pauses, in which the window closes.
SECONDS_FOR_A_REQUEST = 30
#: Seconds that the end of a flow run waits for its name and its logs; it comes without them when the API is away.
SECONDS_FOR_WORDS = 10
#: Seconds until a run is due again that could not be started because the API failed.
SECONDS_UNTIL_RUN_AGAIN = 5
#: Seconds after which a run that somebody has claimed has its worker's name, however slow the server is.
SECONDS_TO_NAME_A_CLAIM = 60
#: Seconds between two looks for crashed runs that an event has not told of.
SECONDS_BETWEEN_SWEEPS = 300
#: Seconds that a flow run has between SIGTERM, on which it can tidy up, and SIGKILL.
SECONDS_TO_TIDY_UP = 10
#: Seconds that its hooks (on_crashed) have when the worker itself is being stopped.
SECONDS_FOR_LAST_HOOKS = 30
#: A new run is fetched when the server tells of it; a burst of such news leads to this many fetches in a second.
FETCHES_IN_A_SECOND = 4
#: What flow runs are started with, unless their deployment or worker says otherwise. While the server is away the door has
#: them wait for it (caddy/Caddyfile). When not even the door answers (the network is cut, say) Prefect's clients ask 5
#: times again, for a minute, and then the run is Failed, with all its work done. 7 times are 2 + 4 + … + 128 s: longer
#: than the 180 s (workers_crash_seconds) after which it is taken for dead. And a server whose database is away answers
#: 500, which Prefect's clients take for final.
RETRIES = {"PREFECT_CLIENT_MAX_RETRIES": "7", "PREFECT_CLIENT_RETRY_EXTRA_CODES": "500"}
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
        self._active: set[str] = set()
        # Whose process has ended, and whose end the server does not know yet; whose claim was not answered.
        self._settling: set[str] = set()
        self._unsure: set[str] = set()
        # Which could not be started because the API failed, and how.
        self._given_back: dict[str, str] = {}
        # Why a run was ended here, for its state.
        self._reasons: dict[str, str] = {}
        self._configurations: dict[str, Any] = {}
        self._ended: set[str] = set()
        self._over_before: set[str] = set()
        self._signs_due = 0.0
        self._stopping = False
        self._lost_since: float | None = None
        self._fetch = asyncio.Lock()
        self._news = asyncio.Event()

    # -- taking runs

    @property
    def _taking(self) -> bool:
        return not self._stopping and not os.path.lexists(self._kit.drain_mark)

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
        if self.pool is not None and self._held.left:
            try:
                for run in list(self._held.left):
                    await self._report(run)
                    self._held.reported(run)
            except (httpx.HTTPError, OSError) as error:
                # At the next sync; until then no runs are taken.
                self.log.warning("Flow runs of the worker before are not reported yet: %s", error)
                return
        await super().after_sync()

    async def submit_due(self, due: list[WorkerFlowRunResponse]) -> list[FlowRun]:
        if not self._taking:
            # Told to stop or to drain while this answer was on its way, which may take minutes.
            return []
        now, useful = datetime.now(UTC), []
        for entry in due:
            run = entry.flow_run
            lateness = late.too_late(run.auto_scheduled, run.expected_start_time, run.tags, now)
            if lateness is None:
                useful.append(entry)
            else:
                text = f"Skipped: due at {run.expected_start_time:%Y-%m-%d %H:%M:%S} UTC, {lateness.total_seconds():.0f} s ago (tag skip-if-late)."
                await api.set_state(self.client, run.id, Cancelled(name="Skipped", message=text))
                self.log.info("Flow run %s. %s", run.name, text)
        return await super().submit_due(useful)

    # -- holding runs

    async def take_run(self, flow_run: FlowRun) -> None:
        run_id = str(flow_run.id)
        # Before it is claimed: a worker that is killed in the middle of that must know it at its next start.
        self._held.add(HeldRun(run_id, flow_run.name, datetime.now(UTC).isoformat(timespec="seconds")))
        try:
            await super().take_run(flow_run)
        except (httpx.HTTPError, OSError) as error:
            # Prefect's worker would end here, and all its flow runs with it. It is fetched again.
            self.log.warning("Flow run %s is not claimed: %s", flow_run.name, error)
            self.forget_submitting(flow_run.id)
        except asyncio.CancelledError:
            # In the middle of a claim: the file goes on naming the run, for the next worker to look at.
            self._unsure.add(run_id)
            raise
        finally:
            if run_id not in self._active | self._settling:
                # Prefect's worker keeps the place of a run whose deployment is gone.
                self.free_place(flow_run.id)
                if run_id not in self._unsure:
                    self._held.remove(run_id)

    async def claim(self, flow_run: FlowRun) -> bool:
        """Claim a run. Prefect's own takes a lost answer for a refusal, and a run that was claimed stays Pending then."""
        try:
            state = await propose_state(self.client, Pending(), flow_run_id=flow_run.id)
        except Abort as refusal:
            # Maybe because a claim before this one, whose answer was lost, was heard: that is left to _settle_claim.
            self.log.debug("Flow run %s is not for us: %s", flow_run.name, refusal)
            return False
        except Exception as error:
            self.log.warning("Whether flow run %s is claimed is not known yet: %s", flow_run.name, error)
            self._unsure.add(str(flow_run.id))
            return False
        # Now it is known, also of a claim before this one.
        self._unsure.discard(str(flow_run.id))
        return state.is_pending()

    async def start_and_wait(self, flow_run: FlowRun, task_status: Any = None) -> Any:
        run_id = str(flow_run.id)
        self._active.add(run_id)
        # Before it has a process: when the host is lost before the server has had its first heartbeat, the run stays
        # Running for ever.
        if not await self._send({run_id: api.ALIVE}):
            self._in_background(self._send_first_heartbeat(run_id))
        self._say_status()
        # When it is cancelled the worker itself ends: the file goes on naming the run, for the next one to look at.
        done = await super().start_and_wait(flow_run, task_status)
        if isinstance(done, Exception) and (held := self._held.get(run_id)):
            # The connection to what it runs in is lost, but that may go on.
            while await self._outlived(held):
                await asyncio.sleep(2)
        await self._settle(run_id)
        return done

    async def report_crash(self, flow_run: FlowRun, message: str, client: Any = None) -> None:
        """Prefect's own, but for a run that has no process yet because the API failed: that is given back (_settle)."""
        if str(flow_run.id) not in self._configurations and api.is_away(sys.exception()):
            self._given_back[str(flow_run.id)] = message
            return
        await super().report_crash(flow_run, message, client)

    async def _settle(self, run_id: str) -> None:
        """The process has ended: let go when the server knows an end, however long it is away."""
        self._settling.add(run_id)
        self._active.discard(run_id)
        # Its number may soon be another process's.
        self._held.started(run_id, "")
        # A place is free.
        self._news.set()
        text = self._reasons.pop(run_id, "The flow run's process has ended, and nobody could report how.")
        while True:
            try:
                await self._see_to_an_end(run_id, text)
                break
            except ObjectNotFound:
                break
            except (httpx.HTTPError, OSError):
                await asyncio.sleep(5)
        self._settling.discard(run_id)
        self._let_go(run_id)

    async def _see_to_an_end(self, run_id: str, text: str) -> None:
        run = (await api.states_of(self.client, [run_id])).get(run_id)
        if run is None or run.labels.get("prefect.worker.name", self.name) != self.name:
            return
        failure = self._given_back.get(run_id)
        if failure is not None and run.state.is_pending():
            text = f"The worker {self.name} could not start this flow run, because the API failed; it is run again. ({failure})"
            # Not at once: the same may happen again.
            later = datetime.now(UTC) + timedelta(seconds=SECONDS_UNTIL_RUN_AGAIN)
            await api.set_state(self.client, run.id, Scheduled(scheduled_time=later, message=text))
            return
        # Paused, suspended and rescheduled runs have no process, and go on later.
        if api.is_under_way(run):
            for inside in await api.subflows_under_way(self.client, [run_id]):
                await api.set_state(self.client, inside.id, Crashed(message=text))
            end = Cancelled if run.state.is_cancelling() else Crashed
            await api.set_state(self.client, run.id, end(message=text))

    async def run(self, flow_run: FlowRun, configuration: Any, task_status: Any = None) -> Any:
        run_id = str(flow_run.id)
        self._configurations[run_id] = configuration
        configuration.env = RETRIES | configuration.env
        return await super().run(
            flow_run, configuration, _Told(task_status, lambda at: self._held.started(run_id, str(at)))
        )

    def _let_go(self, run_id: str) -> None:
        self._active.discard(run_id)
        self._given_back.pop(run_id, None)
        self._configurations.pop(run_id, None)
        self._over_before.discard(run_id)
        self._held.remove(run_id)
        self._ended.add(run_id)
        self._in_background(self._send({}))
        self._say_status()

    def _in_background(self, work: Coroutine[Any, Any, None]) -> None:
        async def guarded() -> None:
            # An error in that group would end the worker, and all its flow runs with it.
            try:
                await work
            except Exception:
                self.log.exception("In the background:")

        if not self.start_beside(guarded):
            work.close()

    async def _send(self, signs: dict[str, str]) -> bool:
        """Send signs, and the ends that have not been sent; says whether that went well. Ends are sent later otherwise."""
        ended = set(self._ended)
        try:
            told = signs | dict.fromkeys(ended, api.ENDED)
            await _soon(api.send_signs(self.client, told, self.name, str(self.work_pool.id)))
        except (httpx.HTTPError, OSError, RuntimeError) as error:
            self.log.debug("Heartbeats not sent: %s", error)
            return False
        self._ended -= ended
        return True

    async def _send_first_heartbeat(self, run_id: str) -> None:
        """Try until it is sent, or the run has ended: the next ones may be half a minute away."""
        while run_id in self._active and not await self._send({run_id: api.ALIVE}):
            await asyncio.sleep(SECONDS_BETWEEN_FIRST_HEARTBEATS)
        if run_id not in self._held:
            # It has ended while this was on its way: its end has to be the last word.
            self._ended.add(run_id)
            await self._send({})

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
                self.log.debug("%s: %s", work.__name__, error, exc_info=True)
                await asyncio.sleep(5)

    async def _signs(self) -> None:
        """A sign of life for each run; and an end for those that the server has given up meanwhile.

        What cannot be sent is tried again in some seconds, and not when the next signs are due: the window is short.
        """
        await asyncio.sleep(max(0.0, self._signs_due - time.monotonic()))
        # Not those that are only about to be claimed: a refused claim would leave a window that nobody ends.
        runs = [run.id for run in self._under_way if run.id in self._active or run.infrastructure]
        known = await _soon(api.states_of(self.client, runs))
        living = [run_id for run_id in runs if run_id in known and not known[run_id].state.is_final()]
        inside = await _soon(api.subflows_under_way(self.client, living))
        sent = await self._send(dict.fromkeys([*living, *(str(run.id) for run in inside)], api.ALIVE))
        if not sent:
            await asyncio.sleep(5)
            return
        self._signs_due = time.monotonic() + SECONDS_BETWEEN_SIGNS
        # What has ended while this was on its way: its end has to be the last word, or a window begins that nobody ends.
        self._ended |= {run_id for run_id in living if run_id not in self._held}
        if self._ended:
            await self._send({})
        for run_id in list(self._unsure):
            await self._settle_claim(run_id)
        await self._end_what_the_server_has_ended({run_id: known[run_id] for run_id in runs if run_id in known})

    async def _settle_claim(self, run_id: str) -> None:
        """A claim whose answer was lost: give the run back when it was ours after all."""
        run = (await _soon(api.states_of(self.client, [run_id]))).get(run_id)
        if self._is_in_hand(run_id):
            # It has been fetched again meanwhile.
            return
        ours = run is not None and "prefect.worker.name" not in run.labels
        if ours and run.state.is_pending() and run.start_time is None:
            if (datetime.now(UTC) - run.state.timestamp).total_seconds() < SECONDS_TO_NAME_A_CLAIM:
                # Or another worker has just claimed it, and its name is on the way.
                return
            text = f"The answer to the claim of the worker {self.name} was lost; the run is given back."
            await _soon(api.set_state(self.client, run.id, Scheduled(message=text)))
        self._unsure.discard(run_id)
        self._held.remove(run_id)

    def _is_in_hand(self, run_id: str) -> bool:
        """Whether a run is being claimed, under way or being settled."""
        return run_id in self._active | self._settling or self.is_submitting(UUID(run_id))

    async def _end_what_the_server_has_ended(self, known: dict[str, FlowRun]) -> None:
        """End the processes of runs that have ended on the server, or are Cancelling without their having heard of it.

        Crashed, after a cut of the network, say: a new run may be under way elsewhere, and two must not go on.
        Cancelled, by somebody who did not wait. Cancelling: Prefect's own listener for that gives up for good when the server is away for a minute.
        """
        over = {
            run_id: run
            for run_id, run in known.items()
            # With a process, or a container that has outlived the worker that started it.
            if (held := self._held.get(run_id)) is not None
            and held.infrastructure
            and (run.state.is_crashed() or run.state.is_cancelled() or run.state.is_cancelling())
        }
        # Seen twice, because a process that is just ending has told its last state already.
        for run_id, run in over.items():
            if run_id not in self._over_before:
                continue
            text = f"On the server this flow run is {run.state.name}; its process is ended here."
            self._tell_run(run, text)
            self._reasons[run_id] = text
            # Beside the signs of life of the others: each may take its time to end.
            self._in_background(self._end(run_id))
        self._over_before = set(over)

    async def _listen(self) -> None:
        """Hear of new and of crashed runs of the pool when it happens."""
        while self.pool is None:
            await asyncio.sleep(1)
        wanted = EventFilter(
            event=EventNameFilter(name=NEWS),
            any_resource=EventAnyResourceFilter(id=[f"prefect.work-pool.{self.pool.id}"]),
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
        if self.has_place:
            await self.get_and_submit_flow_runs()
        await asyncio.sleep(1 / FETCHES_IN_A_SECOND)

    async def _sweep(self) -> None:
        """Crashed runs that no event has told of: no worker was there, or the connection was not."""
        while self.pool is None:
            await asyncio.sleep(1)
        await self._run_again(*await api.crashed_lately(self.client, self.pool_name))
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
        sizes = {run.id: memory.used(pids) for run in self._under_way if (pids := self._processes(run.id))}
        if run_id := memory.victim(sizes, memory.used([os.getpid()]), limit):
            text = (
                f"Out of memory: this flow run held {memory.megabytes(sizes[run_id])}, and the flow runs of the worker "
                f"{self.name} have {memory.megabytes(limit)} together (memory_max in prefect_workers). It is ended."
            )
            self._reasons[run_id] = text
            # At once: while it tidies up, or the API is asked, it would go on growing.
            self._kill_processes(run_id)
            self._in_background(self._tell(run_id, text))

    async def _tell(self, run_id: str, text: str) -> None:
        """Into the logs of a run, if the API gives its name at once; else into the worker's own."""
        run = None
        with contextlib.suppress(httpx.HTTPError, OSError):
            run = (await _soon(api.states_of(self.client, [run_id]), SECONDS_FOR_WORDS)).get(run_id)
        if run is not None:
            self._tell_run(run, text)
        else:
            self.log.warning("Flow run %s: %s", run_id, text)

    async def _watchdog(self) -> None:
        self._systemd.tell(WATCHDOG=1)
        await asyncio.sleep((self._systemd.watchdog_seconds or 120) / 4)

    # -- ends

    async def drain(self) -> None:
        """Take no new runs; wait for those under way as long as there is time; end and report the rest."""
        self._stopping = True
        if not self.waits_for_runs:
            self.log.info("Told to stop: no new flow runs; %d under way go on without this worker.", len(self._held))
            # But what is just being started must be known by where it runs.
            deadline = time.monotonic() + SECONDS_TO_TIDY_UP
            while any(not run.infrastructure for run in self._held) and time.monotonic() < deadline:
                await asyncio.sleep(0.1)
            return
        seconds, decided = self._kit.time_to_end()
        deadline = time.monotonic() + seconds
        self.log.info("Told to stop: no new flow runs; %d under way have %.0f s to end.", len(self._held), seconds)
        while self._under_way and time.monotonic() < deadline:
            self._systemd.tell(STOPPING=1, EXTEND_TIMEOUT_USEC=30_000_000, STATUS=self._status(deadline))
            await asyncio.sleep(min(1.0, max(0.05, deadline - time.monotonic())))
        left = self._under_way
        self._systemd.tell(STOPPING=1, EXTEND_TIMEOUT_USEC=60_000_000, STATUS=f"Ending {len(left)} flow runs")
        text = f"The worker {self.name} was told to stop, and this flow run had not ended {seconds:.0f} s later ({decided})."
        async with anyio.create_task_group() as group:
            for run in left:
                group.start_soon(self._end_and_report, run, text)

    @property
    def _under_way(self) -> list[HeldRun]:
        """The runs that have a process, or are about to get one."""
        return [run for run in self._held if run.id not in self._settling | self._unsure]

    async def _end_and_report(self, held: HeldRun, text: str) -> None:
        self._reasons[held.id] = text
        await self._tell(held.id, text + " It is ended.")
        await self._end(held.id)
        # Until its end is known to the server; when that is away, the next worker of this name reports it.
        began = time.monotonic()
        while held.id in self._held:
            words = self._has_last_words(held.id)
            if time.monotonic() - began > (SECONDS_FOR_LAST_HOOKS if words else SECONDS_TO_TIDY_UP):
                return
            await asyncio.sleep(0.1)

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
        # It may have ended, and its number be another one's, while its hooks are still running.
        if pid in self._processes(run_id):
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGTERM)
        deadline = time.monotonic() + SECONDS_TO_TIDY_UP
        while self._processes(run_id) and time.monotonic() < deadline:
            await asyncio.sleep(0.1)
        self._kill_processes(run_id)

    # -- what a worker whose flow runs are processes knows of them

    def _processes(self, run_id: str) -> list[int]:
        """The processes of a flow run, all that it has started included."""
        return []

    def _kill_processes(self, run_id: str) -> None:
        """End them all at once."""

    def _has_last_words(self, run_id: str) -> bool:
        """Whether hooks of a run that has ended are running."""
        return False

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
        if run is None or not api.is_under_way(run):
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
        """Hold a run that has outlived the worker that started it, until it ends; then see to it that this is known."""
        self.log.info("Flow run %s has outlived the worker before; it is held on.", left.name)
        while await self._outlived(left):
            await asyncio.sleep(2)
        await self._settle(left.id)

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


async def _soon(request: Coroutine[Any, Any, Any], seconds: float = SECONDS_FOR_A_REQUEST) -> Any:
    """The answer to a request. Raises TimeoutError (an OSError) when it takes longer."""
    async with asyncio.timeout(seconds):
        return await request


class _Told:
    """A task status that also tells us where the process is."""

    def __init__(self, inner: Any, tell: Callable[[Any], None]) -> None:
        self._inner = inner
        self._tell = tell

    def started(self, value: Any = None) -> None:
        self._tell(value)
        if self._inner is not None:
            self._inner.started(value)
