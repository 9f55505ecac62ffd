"""The flow runs that a worker has in hand: every transition at every stage, what held.json says then, and the questions."""

from __future__ import annotations

import inspect
from pathlib import Path

import pytest
from prefect_kit_worker import runs as module
from prefect_kit_worker.held import HeldRun, HeldRuns
from prefect_kit_worker.runs import TRANSITIONS, Refused, Run, Runs, Stage

RUN = "0198a1b2-0000-7000-8000-000000000001"
OTHER = "0198a1b2-0000-7000-8000-000000000002"
CLAIMING, UNSURE, RUNNING, SETTLING = Stage
#: Let go, or never taken.
GONE = None
#: What a transition at a stage leads to: as the picture has it, written once more. What is not here is refused.
LEADS_TO = {
    "take": {GONE: CLAIMING, CLAIMING: CLAIMING, UNSURE: UNSURE, RUNNING: RUNNING, SETTLING: SETTLING},
    "claim_lost": {CLAIMING: UNSURE, UNSURE: UNSURE, RUNNING: RUNNING, SETTLING: SETTLING},
    "claim_answered": {CLAIMING: CLAIMING, UNSURE: CLAIMING, RUNNING: RUNNING, SETTLING: SETTLING},
    "not_started": {CLAIMING: GONE, UNSURE: UNSURE, RUNNING: RUNNING, SETTLING: SETTLING},
    "start": {GONE: RUNNING, CLAIMING: RUNNING, UNSURE: RUNNING, RUNNING: RUNNING, SETTLING: RUNNING},
    "take_over": {GONE: RUNNING},
    "has_process": {RUNNING: RUNNING},
    "end": {RUNNING: SETTLING, SETTLING: SETTLING},
    "let_go": {UNSURE: GONE, SETTLING: GONE},
}
STAGES = (GONE, *Stage)


class Worker:
    """Runs with their file, and ways to each stage."""

    def __init__(self, directory: Path) -> None:
        self.path = directory / "held.json"
        self.runs = Runs(HeldRuns(self.path))

    def at(self, stage: Stage | None) -> Run:
        """A run at a stage, by the shortest way through the picture; one that has a process where it can."""
        run = self.runs.take(RUN, "swift-fox")
        if stage is GONE:
            self.runs.not_started(run)
        if stage is UNSURE:
            self.runs.claim_lost(run)
        if stage in (RUNNING, SETTLING):
            self.runs.start(RUN, "swift-fox")
            self.runs.has_process(run, "4711")
        if stage is SETTLING:
            self.runs.end(run)
        assert (run.stage if self.runs.has(run) else GONE) is stage
        return run

    def do(self, transition: str, run: Run) -> Run | bool:
        if transition in ("take", "start"):
            return getattr(self.runs, transition)(run.id, run.name)
        if transition == "take_over":
            return self.runs.take_over(HeldRun(run.id, run.name, "now", "engine:container"))
        if transition == "has_process":
            return self.runs.has_process(run, "4712")
        return getattr(self.runs, transition)(run)

    @property
    def file(self) -> dict[str, str]:
        """What held.json names, and where each runs."""
        return {run.id: run.infrastructure for run in HeldRuns.read(self.path)}


@pytest.fixture
def worker(tmp_path) -> Worker:
    return Worker(tmp_path)


def test_every_transition_is_here_and_in_the_picture():
    assert {name: set(row) for name, row in TRANSITIONS.items()} == {name: set(row) for name, row in LEADS_TO.items()}
    for name in LEADS_TO:
        assert name in module.__doc__
    for stage in Stage:
        assert stage.name in module.__doc__


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("transition", LEADS_TO)
def test_where_each_transition_leads_from_each_stage(worker, transition, stage):
    run = worker.at(stage)
    before = worker.file
    if stage is GONE and transition not in ("take", "start", "take_over"):
        # It is told by somebody who was slower.
        assert worker.do(transition, run) is False
        assert RUN not in worker.runs
        return
    if stage not in LEADS_TO[transition]:
        with pytest.raises(Refused, match=f'Refusing "{transition}" of the flow run {RUN}, which is {stage.name}'):
            worker.do(transition, run)
        assert (run.stage, worker.runs.get(RUN), worker.file) == (stage, run, before)
        return
    assert worker.do(transition, run)
    now = worker.runs.get(RUN)
    assert (now.stage if now else GONE) is LEADS_TO[transition][stage]
    # Always the same runs, and those of the file.
    assert set(worker.file) == {one.id for one in worker.runs}


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("transition", [name for name in LEADS_TO if name not in ("take", "start", "take_over")])
def test_what_is_told_of_a_run_that_has_been_claimed_once_more_changes_nothing(worker, transition, stage):
    """Its process before was still ending, or its end being settled."""
    former = worker.at(stage)
    if stage not in (RUNNING, SETTLING):
        worker.runs.start(RUN, "swift-fox")
        former = Run(HeldRun(RUN, "swift-fox", "before", "4711"), stage or RUNNING)
    now = worker.runs.start(RUN, "swift-fox")
    assert now is not former
    worker.runs.has_process(now, "4800")
    assert worker.do(transition, former) is False
    assert (worker.runs.get(RUN), now.stage, worker.file) == (now, RUNNING, {RUN: "4800"})


# --- held.json at each step --------------------------------------------------------------------------------------


def test_the_file_names_a_run_from_before_its_claim_until_the_server_knows_its_end(worker):
    run = worker.runs.take(RUN, "swift-fox")
    assert worker.file == {RUN: ""}
    worker.runs.claim_answered(run)
    assert worker.runs.start(RUN, "swift-fox") is run
    assert worker.file == {RUN: ""}
    worker.runs.has_process(run, "4711")
    assert worker.file == {RUN: "4711"}
    # Its number may soon be another process's.
    worker.runs.end(run)
    assert worker.file == {RUN: ""}
    assert run.infrastructure == ""
    worker.runs.let_go(run)
    assert worker.file == {}


def test_a_run_that_is_refused_stands_in_the_file_no_longer_and_an_unsure_one_does(worker):
    run = worker.runs.take(RUN, "swift-fox")
    other = worker.runs.take(OTHER, "slow-cat")
    worker.runs.claim_lost(other)
    for one in run, other:
        worker.runs.not_started(one)
    assert worker.file == {OTHER: ""}
    # It is fetched again and refused: that may be due to its first claim, which was heard.
    assert worker.runs.take(OTHER, "slow-cat") is other
    worker.runs.not_started(other)
    assert worker.file == {OTHER: ""}
    # It is fetched again and another answer comes.
    worker.runs.take(OTHER, "slow-cat")
    worker.runs.claim_answered(other)
    worker.runs.not_started(other)
    assert worker.file == {}


@pytest.mark.parametrize("stage", [RUNNING, SETTLING])
def test_a_run_that_is_fetched_while_it_is_in_hand_keeps_its_place_and_its_process(worker, stage):
    run = worker.at(stage)
    before = worker.file
    assert worker.runs.take(RUN, "swift-fox") is run
    worker.runs.not_started(run)
    assert (run.stage, worker.file) == (stage, before)


def test_what_has_outlived_the_worker_before_stays_in_the_file(tmp_path):
    left = HeldRun(RUN, "swift-fox", "2026-11-21T12:00:00+00:00", "engine:container")
    HeldRuns(tmp_path / "held.json").add(left)
    held = HeldRuns(tmp_path / "held.json")
    runs = Runs(held)
    # What is left is not in hand before it is taken over.
    assert len(runs) == 0
    run = runs.take_over(held.left[0])
    held.reported(held.left[0])
    assert HeldRuns.read(tmp_path / "held.json") == [left]
    assert (run.infrastructure, runs.with_heartbeat) == ("engine:container", [run])
    runs.end(run)
    runs.let_go(run)
    assert HeldRuns.read(tmp_path / "held.json") == []


def test_a_run_that_is_claimed_once_more_knows_nothing_of_the_time_before(worker):
    run = worker.at(SETTLING)
    run.failure, run.reason, run.seen_over, run.configuration = "no route", "told to stop", True, object()
    now = worker.runs.start(RUN, "swift-fox")
    assert (now.failure, now.reason, now.seen_over, now.configuration) == (None, None, False, None)


# --- questions ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("stage", "under_way", "with_heartbeat", "unsure", "started", "running"),
    [
        (GONE, False, False, False, False, False),
        (CLAIMING, True, False, False, False, False),
        (UNSURE, False, False, True, False, False),
        (RUNNING, True, True, False, True, True),
        (SETTLING, False, False, False, True, False),
    ],
)
def test_what_is_asked_of_a_run(worker, stage, under_way, with_heartbeat, unsure, started, running):
    run, runs = worker.at(stage), worker.runs
    in_hand = stage is not GONE
    assert (RUN in runs, len(runs), runs.has(run), [*runs]) == (
        in_hand,
        int(in_hand),
        in_hand,
        [run] if in_hand else [],
    )
    assert (run in runs.under_way, run in runs.with_heartbeat, run in runs.unsure) == (
        under_way,
        with_heartbeat,
        unsure,
    )
    assert (runs.is_started(RUN), runs.is_running(run)) == (started, running)


def test_runs_may_be_let_go_while_they_are_looked_through(worker):
    for number in range(3):
        worker.runs.take(f"{number}", "x")
    for run in worker.runs:
        worker.runs.not_started(run)
    assert len(worker.runs) == 0


def test_no_prefect_is_needed_for_it():
    assert "import prefect" not in inspect.getsource(module)
    assert "from prefect" not in inspect.getsource(module)
