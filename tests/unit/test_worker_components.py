"""The components of the worker, each with runs of its own, and a server and infrastructure that are fakes of our protocols.

And the life of a run from its claim to its end: in KitWorker, before a stand-in that calls as Prefect's worker does.
"""

from __future__ import annotations

import asyncio
import os
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any
from uuid import UUID, uuid4

import httpx
import pytest
from prefect_kit_worker import memory
from prefect_kit_worker.held import HeldRun, HeldRuns
from prefect_kit_worker.kit import Kit
from prefect_kit_worker.notify import Systemd, status
from prefect_kit_worker.runs import Run, Runs, Stage

RUN = "0198a1b2-0000-7000-8000-000000000001"
OTHER = "0198a1b2-0000-7000-8000-000000000002"
ALIVE, ENDED = "prefect-worker.flow-run.alive", "prefect-worker.flow-run.ended"


def flow_run(state: str = "RUNNING", run_id: str = RUN, **more: Any) -> Any:
    from prefect.client.schemas.objects import FlowRun, FlowRunPolicy, State

    at = more.pop("at", datetime.now(UTC))
    name = state.title()
    more = {"name": "swift-fox", "labels": {"prefect.worker.name": "w"}, "deployment_id": uuid4()} | more
    return FlowRun(
        id=run_id,
        flow_id=RUN,
        state=State(type=state, name=name, timestamp=at),
        empirical_policy=FlowRunPolicy(),
        **more,
    )


class FakeApi:
    """The server: what it knows of runs, and what it has been told."""

    def __init__(self, *runs: Any) -> None:
        self.runs = {str(run.id): run for run in runs}
        self.inside: list[Any] = []
        self.sent: list[dict[str, str]] = []
        self.set: list[tuple[str, str, str]] = []
        self.made: list[str] = []
        self.away = False
        #: Done when it is asked for states, and before it answers a change.
        self.meanwhile = lambda: None
        self.answer: Any = None

    def _ask(self) -> None:
        if self.away:
            raise httpx.ConnectError("refused")

    async def claim(self, run_id: UUID) -> Any:
        self._ask()
        # Abort is a signal of Prefect's, and no Exception.
        if isinstance(self.answer, BaseException):
            raise self.answer
        return self.answer

    async def states_of(self, run_ids: Any) -> dict[str, Any]:
        self._ask()
        return {run_id: self.runs[run_id] for run_id in run_ids if run_id in self.runs}

    async def subflows_under_way(self, run_ids: Any) -> list[Any]:
        self._ask()
        return self.inside

    async def send_heartbeats(self, events: dict[str, str], worker: str, pool: str) -> None:
        self.meanwhile()
        self._ask()
        if events:
            self.sent.append(events)

    async def set_state(self, run_id: UUID, state: Any) -> None:
        self._ask()
        self.set.append((str(run_id), state.type.value, state.message))
        self.meanwhile()

    async def crashed_lately(self, pool: str) -> list[Any]:
        return list(self.runs.values())

    async def run_again(self, run: Any, following: Any) -> Any:
        self.made.append(following.name)
        return SimpleNamespace(name=following.name, created=datetime.now(UTC) - timedelta(seconds=len(self.made) * 20))


class FakeWorker:
    """protocols.Worker and protocols.Infrastructure."""

    name = "w"

    def __init__(self) -> None:
        self.said: list[str] = []
        self.killed: list[Any] = []
        self.processes: dict[str, list[int]] = {}
        self.outlived = 0
        self.background: list[Any] = []
        self.log = SimpleNamespace(**dict.fromkeys(("debug", "info", "warning"), self._say))

    def _say(self, text: str, *values: Any) -> None:
        self.said.append(text % values)

    def tell_run(self, flow_run: Any, text: str) -> None:
        self.said.append(text)

    async def tell_run_soon(self, run_id: str, text: str) -> None:
        self.said.append(text)

    def in_background(self, work: Any) -> None:
        self.background.append(asyncio.ensure_future(work))

    def processes_of(self, run_id: str) -> list[int]:
        return self.processes.get(run_id, [])

    def kill_processes(self, run_id: str) -> None:
        self.killed.append(run_id)

    def has_hooks_running(self, run_id: str) -> bool:
        return False

    async def has_outlived(self, left: HeldRun) -> bool:
        self.outlived -= 1
        return self.outlived >= 0

    async def kill_infrastructure(self, infrastructure_pid: str, configuration: Any, grace_seconds: int) -> None:
        self.killed.append((infrastructure_pid, configuration))


class Parts:
    """A worker's components without the worker."""

    def __init__(self, directory: Any, *flow_runs: Any) -> None:
        from prefect_kit_worker.claims import Claims
        from prefect_kit_worker.ending import Ending
        from prefect_kit_worker.heartbeats import Heartbeats
        from prefect_kit_worker.settling import Settling
        from prefect_kit_worker.shutdown import Shutdown

        self.held = HeldRuns(directory / "held.json")
        self.runs = Runs(self.held)
        self.api = FakeApi(*flow_runs)
        self.worker = FakeWorker()
        self.submitting: set[str] = set()
        self.changes: list[str] = []
        self.heartbeats = Heartbeats(self.runs, self.api, self.worker, lambda: "pool")
        self.claims = Claims(self.runs, self.api, self.worker, lambda run_id: str(run_id) in self.submitting)
        self.ending = Ending(self.runs, self.worker, self.worker)
        self.settling = Settling(
            self.runs, self.api, self.worker, self.worker, self.heartbeats,
            changed=lambda: self.changes.append("ended"), let_go=lambda: self.changes.append("let go"),
        )  # fmt: skip
        kit = Kit(directory, directory, drain_seconds=0.3, shutdown_seconds=0, memory_limit=None)
        self.shutdown = Shutdown(self.runs, self.worker, self.worker, self.ending, kit, Systemd())

    def running(self, run_id: str = RUN, at: str = "engine:container") -> Run:
        run = self.runs.start(run_id, "swift-fox")
        self.runs.has_process(run, at)
        return run

    async def settled(self) -> None:
        await asyncio.gather(*self.worker.background)


@pytest.fixture
def quick(monkeypatch):
    """What waits for seconds waits for a moment."""
    from prefect_kit_worker import heartbeats, memory_guard, settling

    for module in heartbeats, settling, memory_guard:
        for name in vars(module):
            if name.startswith(("SECONDS_BETWEEN_TRIES", "SECONDS_BETWEEN_FIRST", "SECONDS_BETWEEN_LOOKS")):
                monkeypatch.setattr(module, name, 0.01)


# --- heartbeats --------------------------------------------------------------------------------------------------


def test_a_heartbeat_for_each_run_and_its_subflows_and_none_for_what_has_no_process(tmp_path):
    parts = Parts(tmp_path, flow_run(), flow_run("COMPLETED", OTHER))
    parts.running()
    parts.running(OTHER)
    parts.runs.take(str(uuid4()), "about to be claimed")
    parts.runs.end(parts.runs.start(str(uuid4()), "settling"))
    parts.api.inside = [flow_run(run_id=(inside := str(uuid4())))]
    known = asyncio.run(parts.heartbeats.send_when_due())
    assert parts.api.sent == [{RUN: ALIVE, inside: ALIVE}]
    # What else is to be decided on needs those at their end, too.
    assert set(known) == {RUN, OTHER}


def test_heartbeats_that_cannot_be_sent_are_tried_again_soon(tmp_path, quick):
    parts = Parts(tmp_path, flow_run())
    parts.running()

    def falls_away() -> None:
        parts.api.away = True

    async def beat() -> None:
        parts.api.meanwhile = falls_away
        assert await parts.heartbeats.send_when_due() is None
        parts.api.away, parts.api.meanwhile = False, lambda: None
        assert await parts.heartbeats.send_when_due() is not None

    asyncio.run(asyncio.wait_for(beat(), 5))
    assert parts.api.sent == [{RUN: ALIVE}]


def test_the_end_of_a_run_is_the_last_word_whatever_was_on_its_way(tmp_path):
    parts = Parts(tmp_path, flow_run())
    run = parts.running()

    def ends() -> None:
        parts.api.meanwhile = lambda: None
        parts.runs.end(run)
        parts.runs.let_go(run)

    parts.api.meanwhile = ends
    asyncio.run(parts.heartbeats.send_when_due())
    assert parts.api.sent == [{RUN: ALIVE}, {RUN: ENDED}]


def test_the_first_heartbeat_is_tried_until_it_is_sent_and_its_end_is_the_last_word(tmp_path, quick):
    parts = Parts(tmp_path)
    run = parts.running()
    parts.api.away = True

    async def begin() -> None:
        # It does not wait for a server that is away.
        await parts.heartbeats.send_first(run)
        await asyncio.sleep(0.05)
        parts.runs.end(run)
        parts.runs.let_go(run)
        parts.api.away = False
        await parts.settled()

    asyncio.run(begin())
    assert parts.api.sent[-1] == {RUN: ENDED}


def test_an_end_that_cannot_be_sent_goes_with_the_next_heartbeats(tmp_path):
    parts = Parts(tmp_path)

    async def end() -> None:
        parts.api.away = True
        parts.heartbeats.send_end(RUN)
        await parts.settled()
        parts.api.away = False
        await parts.heartbeats.send_when_due()

    asyncio.run(end())
    assert parts.api.sent == [{RUN: ENDED}]


# --- claims ------------------------------------------------------------------------------------------------------


def claimed(parts: Parts, answer: Any) -> tuple[bool, Stage]:
    parts.api.answer = answer
    run = parts.runs.take(RUN, "swift-fox")
    return asyncio.run(parts.claims.claim(flow_run("SCHEDULED"))), run.stage


def test_what_the_answer_to_a_claim_says(tmp_path):
    from prefect.exceptions import Abort
    from prefect.states import Pending, Running

    parts = Parts(tmp_path)
    assert claimed(parts, Abort("claimed by another")) == (False, Stage.CLAIMING)
    assert claimed(parts, httpx.ReadTimeout("")) == (False, Stage.UNSURE)
    # Maybe because the first claim was heard.
    assert claimed(parts, Abort("it is Pending")) == (False, Stage.UNSURE)
    assert claimed(parts, Running()) == (False, Stage.CLAIMING)
    assert claimed(parts, Pending()) == (True, Stage.CLAIMING)


@pytest.mark.parametrize(
    ("known", "given_back", "kept"),
    [
        ({"state": "PENDING", "labels": {}, "seconds": 61}, True, False),
        # Or another worker has just claimed it, and its name is on the way.
        ({"state": "PENDING", "labels": {}, "seconds": 5}, False, True),
        ({"state": "PENDING", "labels": {"prefect.worker.name": "other"}, "seconds": 61}, False, False),
        ({"state": "RUNNING", "labels": {}, "seconds": 61}, False, False),
        ({"state": "SCHEDULED", "labels": {}, "seconds": 1}, False, False),
        (None, False, False),
    ],
)
def test_a_claim_that_was_not_answered_is_given_back_when_it_was_heard(tmp_path, known, given_back, kept):
    parts = Parts(tmp_path)
    if known:
        at = datetime.now(UTC) - timedelta(seconds=known["seconds"])
        parts.api.runs = {RUN: flow_run(known["state"], labels=known["labels"], at=at)}
    run = parts.runs.take(RUN, "swift-fox")
    parts.runs.claim_lost(run)
    asyncio.run(parts.claims.settle_unsure())
    text = "The answer to the claim of the worker w was lost; the run is given back."
    assert parts.api.set == ([(RUN, "SCHEDULED", text)] if given_back else [])
    assert (RUN in parts.runs) == kept


@pytest.mark.parametrize("when", ["before", "while it is given back"])
def test_an_unsure_run_that_is_fetched_again_is_left_to_that(tmp_path, when):
    at = datetime.now(UTC) - timedelta(seconds=61)
    parts = Parts(tmp_path, flow_run("PENDING", labels={}, at=at))
    run = parts.runs.take(RUN, "swift-fox")
    parts.runs.claim_lost(run)
    if when == "before":
        parts.submitting.add(RUN)
    parts.api.meanwhile = lambda: parts.submitting.add(RUN)
    asyncio.run(parts.claims.settle_unsure())
    assert len(parts.api.set) == (0 if when == "before" else 1)
    assert parts.runs.has(run)


# --- settling ----------------------------------------------------------------------------------------------------

NOBODY = "The flow run's process has ended, and nobody could report how."


@pytest.mark.parametrize(
    ("state", "reason", "told"),
    [
        ("COMPLETED", None, []),
        ("PAUSED", None, []),
        ("SCHEDULED", None, []),
        ("RUNNING", None, [(OTHER, "CRASHED", NOBODY), (RUN, "CRASHED", NOBODY)]),
        ("RUNNING", "Out of memory.", [(OTHER, "CRASHED", "Out of memory."), (RUN, "CRASHED", "Out of memory.")]),
        ("CANCELLING", None, [(OTHER, "CRASHED", NOBODY), (RUN, "CANCELLED", NOBODY)]),
    ],
)
def test_what_the_server_is_told_of_a_run_whose_process_has_ended(tmp_path, state, reason, told):
    parts = Parts(tmp_path, flow_run(state))
    parts.api.inside = [flow_run(run_id=OTHER)]
    run = parts.running()
    run.reason = reason

    async def settle() -> None:
        await parts.settling.settle(run)
        await parts.settled()

    asyncio.run(settle())
    assert parts.api.set == told
    assert (len(parts.runs), parts.api.sent, parts.changes) == (0, [{RUN: ENDED}], ["ended", "let go"])


def test_another_worker_s_run_and_a_deleted_one_are_let_go(tmp_path):
    parts = Parts(tmp_path, flow_run(labels={"prefect.worker.name": "other"}))

    async def settle() -> None:
        for run in [parts.running(), parts.running(OTHER)]:
            await parts.settling.settle(run)

    asyncio.run(settle())
    assert (parts.api.set, len(parts.runs)) == ([], 0)


def test_a_run_that_could_not_be_started_because_the_api_failed_is_given_back(tmp_path):
    parts = Parts(tmp_path, flow_run("PENDING"))
    run = parts.running()
    run.failure = "500"
    asyncio.run(parts.settling.settle(run))
    assert parts.api.set == [
        (RUN, "SCHEDULED", "The worker w could not start this flow run, because the API failed; it is run again. (500)")
    ]


def test_a_run_is_held_until_the_server_is_back(tmp_path, quick):
    parts = Parts(tmp_path, flow_run())
    run = parts.running()
    parts.api.away = True

    async def settle() -> None:
        settling = asyncio.ensure_future(parts.settling.settle(run))
        await asyncio.sleep(0.05)
        assert (run.stage, parts.changes) == (Stage.SETTLING, ["ended"])
        parts.api.away = False
        await settling

    asyncio.run(settle())
    assert parts.api.set == [(RUN, "CRASHED", NOBODY)]
    assert len(parts.runs) == 0


def test_the_end_before_changes_nothing_of_a_run_that_is_claimed_once_more(tmp_path, quick):
    """It was suspended, and is resumed while the server, which is back, has not been told of the end of its process."""
    parts = Parts(tmp_path, flow_run())
    former = parts.running()
    parts.api.away = True

    async def settle() -> None:
        settling = asyncio.ensure_future(parts.settling.settle(former))
        await asyncio.sleep(0.03)
        parts.running(at="engine:another")
        parts.api.away = False
        await settling

    asyncio.run(settle())
    assert (parts.api.set, parts.api.sent) == ([], [])
    assert [run.infrastructure for run in parts.runs.with_heartbeat] == ["engine:another"]


@pytest.mark.parametrize(
    ("left", "told"),
    [
        ({"state": "PENDING"}, ("SCHEDULED", "The worker w ended before it could start this flow run; it is to be")),
        ({"state": "RUNNING"}, ("CRASHED", "The worker w ended without notice (killed, or its host went down), and")),
        ({"state": "COMPLETED"}, None),
        ({"state": "RUNNING", "labels": {"prefect.worker.name": "other"}}, None),
    ],
)
def test_what_the_worker_before_has_left_is_reported(tmp_path, left, told):
    HeldRuns(tmp_path / "held.json").add(HeldRun(RUN, "swift-fox", "before", "4711"))
    parts = Parts(tmp_path, flow_run(**left))
    parts.api.away = True
    assert not asyncio.run(parts.settling.report_left(parts.held))
    assert [run.id for run in HeldRuns.read(tmp_path / "held.json")] == [RUN]
    parts.api.away = False
    assert asyncio.run(parts.settling.report_left(parts.held))
    assert [(kind, text.startswith(told[1])) for _, kind, text in parts.api.set] == ([(told[0], True)] if told else [])
    assert HeldRuns.read(tmp_path / "held.json") == []


def test_what_has_outlived_the_worker_before_is_held_until_it_ends(tmp_path, quick):
    HeldRuns(tmp_path / "held.json").add(HeldRun(RUN, "swift-fox", "before", "engine:container"))
    parts = Parts(tmp_path, flow_run())
    parts.worker.outlived = 3

    async def report() -> None:
        assert await parts.settling.report_left(parts.held)
        (run,) = parts.runs.with_heartbeat
        assert (run.infrastructure, parts.held.left) == ("engine:container", [])
        await parts.settled()

    asyncio.run(report())
    assert parts.worker.said == ["Flow run swift-fox has outlived the worker before; it is held on."]
    assert (parts.api.set, len(parts.runs)) == ([(RUN, "CRASHED", NOBODY)], 0)


# --- ends --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("state", ["CRASHED", "CANCELLED", "CANCELLING", "COMPLETED", "RUNNING"])
def test_what_the_server_has_ended_is_ended_when_it_is_seen_twice(tmp_path, state):
    parts = Parts(tmp_path)
    run = parts.running()
    run.configuration = "configuration"
    over = state not in ("COMPLETED", "RUNNING")

    async def look(*known: Any) -> None:
        for one in known:
            parts.ending.end_what_the_server_has_ended({RUN: one})
        await parts.settled()

    # A process that is just ending has told its last state already.
    asyncio.run(look(flow_run(state), flow_run(), flow_run(state)))
    assert (parts.worker.killed, run.reason, run.seen_over) == ([], None, over)
    asyncio.run(look(flow_run(state)))
    if over:
        text = f"On the server this flow run is {state.title()}; its process is ended here."
        assert (parts.worker.killed, run.reason, parts.worker.said) == (
            [("engine:container", "configuration")],
            text,
            [text],
        )
    else:
        assert parts.worker.killed == []


def test_a_run_that_has_ended_meanwhile_is_not_ended(tmp_path):
    parts = Parts(tmp_path)
    run = parts.running()
    parts.runs.end(run)
    asyncio.run(parts.ending.end(run))
    parts.runs.let_go(run)
    asyncio.run(parts.ending.end(run))
    assert parts.worker.killed == []


def test_a_worker_that_is_told_to_stop_waits_then_ends_and_says_why(tmp_path):
    parts = Parts(tmp_path, flow_run())
    soon_over, run = parts.running(OTHER), parts.running()

    async def kill(infrastructure_pid: str, configuration: Any, grace_seconds: int) -> None:
        assert parts.runs.under_way == [run]
        parts.worker.in_background(parts.settling.settle(run))

    parts.worker.kill_infrastructure = kill

    async def drain() -> None:
        draining = asyncio.ensure_future(parts.shutdown.drain())
        await asyncio.sleep(0.1)
        assert parts.shutdown.told
        await parts.settling.settle(soon_over)
        await draining

    asyncio.run(drain())
    text = "The worker w was told to stop, and this flow run had not ended 0 s later (workers_drain_seconds)."
    assert parts.worker.said == ["Told to stop: no new flow runs; 2 under way have 0 s to end.", text + " It is ended."]
    assert parts.api.set == [(RUN, "CRASHED", text)]


def test_a_worker_that_leaves_its_runs_waits_until_it_is_known_where_they_are(tmp_path):
    parts = Parts(tmp_path)
    run = parts.runs.start(RUN, "swift-fox")

    async def leave() -> None:
        leaving = asyncio.ensure_future(parts.shutdown.leave())
        await asyncio.sleep(0.05)
        assert not leaving.done()
        parts.runs.has_process(run, "engine:container")
        await asyncio.wait_for(leaving, 5)

    asyncio.run(leave())
    assert parts.worker.said == ["Told to stop: no new flow runs; 1 under way go on without this worker."]
    assert parts.runs.has(run)


def test_what_systemctl_shows():
    assert status([], taking=True) == "Taking flow runs; under way: none"
    assert status(["a", "b"], taking=False) == "Taking no new flow runs; under way: a, b"
    assert status(["a"], taking=False, seconds=12.4) == "Stopping; up to 12 s more for flow runs: a"


# --- memory and reruns -------------------------------------------------------------------------------------------


def test_the_largest_run_is_ended_at_once_and_told_why(tmp_path, monkeypatch):
    from prefect_kit_worker.memory_guard import MemoryGuard

    parts = Parts(tmp_path)
    small, large = parts.running(), parts.running(OTHER)
    parts.worker.processes = {RUN: [1], OTHER: [2]}
    sizes = {1: 200_000_000, 2: 500_000_000}
    monkeypatch.setattr(memory, "used", lambda pids: sum(sizes.get(pid, 0) for pid in pids))

    async def look(limit: int | None) -> None:
        MemoryGuard(parts.runs, parts.worker, parts.worker, limit).look()
        await parts.settled()

    asyncio.run(look(None))
    asyncio.run(look(1_000_000_000))
    assert parts.worker.killed == []
    asyncio.run(look(700_000_000))
    assert parts.worker.killed == [OTHER]
    assert large.reason == (
        "Out of memory: this flow run held 500 MB, and the flow runs of the worker w have 700 MB together (memory_max in "
        "prefect_workers). It is ended."
    )
    assert (small.reason, parts.worker.said) == (None, [large.reason])


def test_a_run_that_goes_on_writing_is_ended_when_the_disk_is_nearly_full(tmp_path, monkeypatch):
    from prefect_kit_worker import disk_guard

    parts = Parts(tmp_path)
    modest, hoarder = parts.running(), parts.running(OTHER)
    parts.worker.processes = {RUN: [1], OTHER: [2]}
    # Much was written while there was room: that is no reason.
    written = {1: 900_000_000, 2: 5_000_000_000}
    left = 2_000_000_000
    monkeypatch.setattr(disk_guard, "written", lambda pids: sum(written[pid] for pid in pids))
    monkeypatch.setattr(disk_guard, "free", lambda places: left)

    async def look(guard: Any) -> None:
        guard.look()
        await parts.settled()
        parts.worker.background.clear()

    guard = disk_guard.DiskGuard(parts.runs, parts.worker, parts.worker, [tmp_path], 1_000_000_000)
    asyncio.run(look(guard))
    written[2] += 500_000_000
    left = 900_000_000
    asyncio.run(look(guard))
    assert parts.worker.killed == []
    written[1] += 10_000_000
    written[2] += 100_000_000
    asyncio.run(look(guard))
    asyncio.run(look(guard))
    assert parts.worker.killed == [OTHER]
    assert hoarder.reason == (
        "Out of disk space: 900 MB are free, flow runs leave 1000 MB (workers_disk_reserve_mb), and this flow run went on writing. "
        "It is ended; what it has written is still there."
    )
    assert (modest.reason, parts.worker.said) == (None, [hoarder.reason])
    # Without a reserve nobody looks.
    off = disk_guard.DiskGuard(parts.runs, parts.worker, parts.worker, [tmp_path], 0)
    written[1] += 900_000_000
    asyncio.run(look(off))
    assert parts.worker.killed == [OTHER]


def test_space_and_what_was_written_are_read_as_the_kernel_gives_them(tmp_path):
    from prefect_kit_worker import disk_guard

    assert disk_guard.free([tmp_path / "gone"]) is None
    there = os.statvfs(tmp_path)
    assert abs(disk_guard.free([tmp_path, tmp_path / "gone"]) - there.f_bavail * there.f_frsize) < 1e9
    (tmp_path / "7").mkdir()
    (tmp_path / "7" / "io").write_text(
        "rchar: 1\nwchar: 2\nread_bytes: 3\nwrite_bytes: 4096\ncancelled_write_bytes: 5\n"
    )
    assert disk_guard.written([7, 8], tmp_path) == 4096


def test_crashed_runs_are_followed_and_only_who_has_made_the_new_one_tells_of_it():
    from prefect_kit_worker.reruns import Reruns

    api, worker = FakeApi(), FakeWorker()
    crashed = [
        {"tags": ["rerun:2"], "name": "first"},
        {"tags": ["rerun:2"], "name": "second"},
        {"tags": []},
        {"tags": ["rerun:2"], "deployment_id": None},
        # It belongs to the flow run that has started it.
        {"tags": ["rerun:2"], "parent_task_run_id": uuid4()},
    ]
    api.runs = {str(run.id): run for run in (flow_run("CRASHED", str(uuid4()), **more) for more in crashed)}
    asyncio.run(Reruns(api, worker).sweep("general"))
    assert api.made == ["first-rerun-1", "second-rerun-1"]
    # The second is older: another worker has made it.
    assert worker.said == ["Run again as first-rerun-1 (1 of at most 2)."]
    asyncio.run(Reruns(api, worker).heard_of_a_crash(next(iter(api.runs))))
    assert api.made[2:] == ["first-rerun-1"]


# --- all of it ---------------------------------------------------------------------------------------------------


class StandIn:
    """Calls as Prefect's worker does, in the order in which it does."""

    type = "process"
    name = "w"
    work_pool = SimpleNamespace(id="pool")

    def __init__(self, during: Any) -> None:
        self.during = during
        self.tasks: list[Any] = []
        self.freed: list[UUID] = []
        self.crashes: list[str] = []
        self._logger = SimpleNamespace(
            **dict.fromkeys(("debug", "info", "warning", "exception"), lambda *_, **__: None)
        )
        self._submitting_flow_run_ids: set[UUID] = set()
        self._runs_task_group = SimpleNamespace(
            start_soon=lambda work, *values: self.tasks.append(asyncio.ensure_future(work(*values)))
        )

    def _release_limit_slot(self, run_id: UUID) -> None:
        self.freed.append(run_id)

    async def _submit_scheduled_flow_runs(self, due: list[Any]) -> list[Any]:
        return [entry.flow_run for entry in due]

    async def _submit_run(self, flow_run: Any) -> None:
        self._submitting_flow_run_ids.add(flow_run.id)
        self.during("submitting")
        if await self._propose_pending_state(flow_run):
            started = asyncio.Event()
            task_status = SimpleNamespace(started=lambda value: started.set())
            self.tasks.append(asyncio.ensure_future(self._submit_run_and_capture_errors(flow_run, task_status)))
            await started.wait()
        self._submitting_flow_run_ids.remove(flow_run.id)

    async def _submit_run_and_capture_errors(self, flow_run: Any, task_status: Any = None) -> Any:
        try:
            self.during("starting")
            return await self.run(flow_run, SimpleNamespace(env={}), task_status)
        except Exception as error:
            task_status.started(error)
            await self._propose_crashed_state(flow_run, f"{error}")
            return error

    async def run(self, flow_run: Any, configuration: Any, task_status: Any = None) -> Any:
        task_status.started(4711)
        self.during("running")
        await asyncio.sleep(0.01)
        return SimpleNamespace(status_code=0)

    async def _propose_crashed_state(self, flow_run: Any, message: str, client: Any = None) -> None:
        self.crashes.append(message)


@pytest.fixture
def made(tmp_path, monkeypatch):
    """`made(api, during)`: the kit's worker before the stand-in; `during` is called at each step."""
    from prefect_kit_worker import worker

    def make(api: FakeApi, during: Any = lambda step: None) -> Any:
        monkeypatch.setattr(worker, "Api", lambda client: api)
        kind = type("Worker", (worker.KitWorker, StandIn), {})
        kit = Kit(tmp_path, tmp_path, drain_seconds=1, shutdown_seconds=1, memory_limit=None)
        return kind(kit=kit, systemd=Systemd(), during=during)

    return make


def lived(worker: Any) -> None:
    async def live() -> None:
        await worker.take_run(flow_run("SCHEDULED"))
        while worker.tasks:
            await worker.tasks.pop(0)

    asyncio.run(asyncio.wait_for(live(), 10))


def test_a_run_s_life_in_the_worker(made, tmp_path):
    from prefect.states import Pending

    seen = {}
    api = FakeApi(flow_run("COMPLETED"))
    api.answer = Pending()

    def during(step: str) -> None:
        seen[step] = [(run.stage, run.infrastructure, list(api.sent)) for run in worker._runs]

    worker = made(api, during)
    lived(worker)
    assert seen == {
        "submitting": [(Stage.CLAIMING, "", [])],
        # Its first heartbeat is at the server before it has a process.
        "starting": [(Stage.RUNNING, "", [{RUN: ALIVE}])],
        "running": [(Stage.RUNNING, "4711", [{RUN: ALIVE}])],
    }
    assert api.sent == [{RUN: ALIVE}, {RUN: ENDED}]
    assert (len(worker._runs), HeldRuns.read(tmp_path / "held.json")) == (0, [])


def test_a_run_that_is_fetched_again_while_it_is_started_is_left_out(made):
    """Prefect's limiter of 3.8.8 ends the worker when a run that has its place asks for another."""
    other = str(uuid4())
    due = [
        SimpleNamespace(flow_run=flow_run("SCHEDULED", id_, auto_scheduled=False, expected_start_time=None, tags=[]))
        for id_ in (RUN, other)
    ]
    worker = made(FakeApi())

    async def submitted() -> list[str]:
        return [str(run.id) for run in await worker.submit_due(due)]

    async def live() -> None:
        worker._runs.take(RUN, "r")
        assert await submitted() == [RUN, other]
        run = worker._runs.start(RUN, "r")
        assert await submitted() == [other]
        worker._runs.end(run)
        assert await submitted() == [other]
        worker._runs.let_go(run)
        assert await submitted() == [RUN, other]

    asyncio.run(live())


def test_a_run_that_is_refused_or_cannot_be_asked_for_leaves_nothing_but_an_unsure_one_does(made, tmp_path):
    from prefect.exceptions import Abort

    def away(step: str) -> None:
        raise httpx.ConnectError("refused")

    for answer, during, kept in (
        (Abort("no"), lambda step: None, 0),
        (None, away, 0),
        (httpx.ReadTimeout(""), lambda step: None, 1),
    ):
        api = FakeApi()
        api.answer = answer
        worker = made(api, during)
        lived(worker)
        assert len(worker._runs) == len(HeldRuns.read(tmp_path / "held.json")) == kept
        assert worker._submitting_flow_run_ids == set()
        assert UUID(RUN) in worker.freed


@pytest.mark.parametrize("away", [True, False])
def test_a_run_that_cannot_be_started_is_given_back_or_crashes(made, away):
    """Given back when the API failed; Prefect reports it as Crashed when it is its own fault."""
    from prefect.states import Pending

    def during(step: str) -> None:
        if step == "starting":
            raise httpx.ConnectError("refused") if away else FileNotFoundError("no such interpreter")

    api = FakeApi(flow_run("PENDING"))
    api.answer = Pending()
    worker = made(api, during)
    lived(worker)
    assert worker.crashes == ([] if away else ["no such interpreter"])
    assert [kind for _, kind, _ in api.set] == (["SCHEDULED"] if away else ["CRASHED"])
    assert len(worker._runs) == 0


def test_a_worker_that_ends_in_the_middle_of_a_claim_leaves_the_run_in_its_file(made, tmp_path):
    api = FakeApi()
    worker = made(api)

    async def claim(run_id: UUID) -> None:
        await asyncio.sleep(60)

    api.claim = claim

    async def live() -> None:
        taking = asyncio.ensure_future(worker.take_run(flow_run("SCHEDULED")))
        await asyncio.sleep(0.01)
        taking.cancel()
        await asyncio.gather(taking, return_exceptions=True)

    asyncio.run(live())
    assert [run.id for run in HeldRuns.read(tmp_path / "held.json")] == [RUN]
