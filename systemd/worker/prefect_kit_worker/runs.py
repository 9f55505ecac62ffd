"""The flow runs that a worker has in hand, and at which stage each of them is. Pure: nothing of Prefect, nothing that waits.

        take
          |
          v      not_started
      CLAIMING ---------------> (let go)
       |  |  ^
       |  |  |  claim_answered
       |  |  +-----------------+
       |  |                    |
       |  |     claim_lost     |        let_go
       |  +----------------> UNSURE ---------------> (let go)
       |                       |
       | start                 | start
       v                       |
      RUNNING <----------------+
       |   ^ ^
       |   | +---- take_over (a container that has outlived the worker before)
       |   +------ has_process (it stays RUNNING, and it is known where)
       | end
       v            let_go
      SETTLING ---------------> (let go)

A run that is let go is at none of them, and held.json no longer names it. What may look out of order is not:

- The same run is fetched while it is in hand: the server's answer was on its way for long, or the run was suspended and
  resumed. The worker leaves out those that are started (`is_started`). One that starts only then changes nothing
  (`take`), and neither does a refused or unanswered claim of a run that is past its claim.
- UNSURE is left by an answer only. A refusal (`not_started`) says nothing: it may be due to the claim before it.
- A claim that is accepted while the process before it ends, or its end is being settled, makes another `Run` (`start`):
  what is then told of the one before changes nothing. The same goes for a run that has been let go meanwhile. Those
  transitions say False.

A transition that neither the picture nor this list has is an error of the worker's own, and raises `Refused`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import Enum
from typing import Any

from .held import HeldRun, HeldRuns


class Stage(Enum):
    """How far the worker is with a flow run. It is not the state that the server gives it."""

    #: It stands in held.json; its claim is not answered.
    CLAIMING = "claiming"
    #: The answer to its claim was lost: it may be ours.
    UNSURE = "unsure"
    #: It is ours, from its start to the end of its process; also a container that has outlived the worker before.
    RUNNING = "running"
    #: Its process has ended; the server does not know an end yet.
    SETTLING = "settling"


#: The picture: from which stage each transition leads where. None: not in hand.
TRANSITIONS: dict[str, dict[Stage | None, Stage | None]] = {
    "take": {
        None: Stage.CLAIMING,
        Stage.CLAIMING: Stage.CLAIMING,
        Stage.UNSURE: Stage.UNSURE,
        Stage.RUNNING: Stage.RUNNING,
        Stage.SETTLING: Stage.SETTLING,
    },
    "claim_lost": {
        Stage.CLAIMING: Stage.UNSURE,
        Stage.UNSURE: Stage.UNSURE,
        Stage.RUNNING: Stage.RUNNING,
        Stage.SETTLING: Stage.SETTLING,
    },
    "claim_answered": {
        Stage.CLAIMING: Stage.CLAIMING,
        Stage.UNSURE: Stage.CLAIMING,
        Stage.RUNNING: Stage.RUNNING,
        Stage.SETTLING: Stage.SETTLING,
    },
    "not_started": {
        Stage.CLAIMING: None,
        Stage.UNSURE: Stage.UNSURE,
        Stage.RUNNING: Stage.RUNNING,
        Stage.SETTLING: Stage.SETTLING,
    },
    # Never refused: the server has given us the run.
    "start": {
        None: Stage.RUNNING,
        Stage.CLAIMING: Stage.RUNNING,
        Stage.UNSURE: Stage.RUNNING,
        Stage.RUNNING: Stage.RUNNING,
        Stage.SETTLING: Stage.RUNNING,
    },
    "take_over": {None: Stage.RUNNING},
    "has_process": {Stage.RUNNING: Stage.RUNNING},
    "end": {Stage.RUNNING: Stage.SETTLING, Stage.SETTLING: Stage.SETTLING},
    "let_go": {Stage.SETTLING: None, Stage.UNSURE: None},
}


class Refused(RuntimeError):
    """A transition that the picture does not have."""


# By identity: a run that is claimed once more is another one.
@dataclass(eq=False)
class Run:
    """A flow run in hand. Its stage, and what held.json says of it, change by transitions of `Runs` only."""

    held: HeldRun
    stage: Stage = Stage.CLAIMING
    #: How it could not be started because the API failed: it is given back then.
    failure: str | None = None
    #: Why it was ended here, for its state.
    reason: str | None = None
    #: Whether the server has been seen to have ended it.
    seen_over: bool = False
    #: What it is started with; None before that.
    configuration: Any = None

    @property
    def id(self) -> str:
        return self.held.id

    @property
    def name(self) -> str:
        return self.held.name

    @property
    def infrastructure(self) -> str:
        """The process's id, or `engine:container`; empty while there is none."""
        return self.held.infrastructure


class Runs:
    """The runs in hand by their ids. held.json names each of them before the next step."""

    def __init__(self, held: HeldRuns) -> None:
        self._held = held
        self._by_id: dict[str, Run] = {}

    # -- transitions

    def take(self, run_id: str, name: str) -> Run:
        """It is about to be claimed. A worker that is killed in the middle of that must know it at its next start."""
        run = self._by_id.get(run_id)
        to = _next("take", run)
        if run is None:
            run = self._by_id[run_id] = Run(_new(run_id, name))
        elif to in (Stage.CLAIMING, Stage.UNSURE):
            # In its place: the order in which runs are named stays.
            run.held = _new(run_id, name)
        else:
            return run
        self._held.add(run.held)
        return run

    def claim_lost(self, run: Run) -> bool:
        """Whether the server has heard the claim is not known."""
        return self._go(run, "claim_lost")

    def claim_answered(self, run: Run) -> bool:
        """Now it is known, also of a claim before this one."""
        return self._go(run, "claim_answered")

    def not_started(self, run: Run) -> bool:
        """The claim is over and the run is not started; one that may be ours after all is kept."""
        return self._go(run, "not_started")

    def start(self, run_id: str, name: str) -> Run:
        """The claim is accepted: gives the run that is to have a process."""
        run = self._by_id.get(run_id)
        _next("start", run)
        if run is None or run.stage in (Stage.RUNNING, Stage.SETTLING):
            run = self._by_id[run_id] = Run(_new(run_id, name))
            self._held.add(run.held)
        run.stage = Stage.RUNNING
        return run

    def take_over(self, left: HeldRun) -> Run:
        """What the worker before started has outlived it."""
        _next("take_over", self._by_id.get(left.id))
        run = self._by_id[left.id] = Run(left, Stage.RUNNING)
        self._held.add(left)
        return run

    def has_process(self, run: Run, infrastructure: str) -> bool:
        """Its process or container has been started, and where."""
        if not self._go(run, "has_process"):
            return False
        self._held.started(run.id, infrastructure)
        return True

    def end(self, run: Run) -> bool:
        """Its process has ended."""
        if not self._go(run, "end"):
            return False
        # Its number may soon be another process's.
        self._held.started(run.id, "")
        return True

    def let_go(self, run: Run) -> bool:
        """The server knows an end of it, or that it is not ours."""
        return self._go(run, "let_go")

    def _go(self, run: Run, transition: str) -> bool:
        if not self.has(run):
            return False
        to = _next(transition, run)
        if to is None:
            del self._by_id[run.id]
            self._held.remove(run.id)
        else:
            run.stage = to
        return True

    # -- questions

    def get(self, run_id: str) -> Run | None:
        return self._by_id.get(run_id)

    def has(self, run: Run) -> bool:
        """Whether this very run is in hand: not let go, nor claimed once more."""
        return self._by_id.get(run.id) is run

    def is_running(self, run: Run) -> bool:
        return self.has(run) and run.stage is Stage.RUNNING

    def is_started(self, run_id: str) -> bool:
        """Whether a run is past its claim."""
        run = self._by_id.get(run_id)
        return run is not None and run.stage in (Stage.RUNNING, Stage.SETTLING)

    @property
    def under_way(self) -> list[Run]:
        """Those that have a process, or are about to get one."""
        return [run for run in self if run.stage in (Stage.CLAIMING, Stage.RUNNING)]

    @property
    def with_heartbeat(self) -> list[Run]:
        """Not those that are only about to be claimed: a refused claim would leave a window that nobody ends."""
        return [run for run in self if run.stage is Stage.RUNNING]

    @property
    def unsure(self) -> list[Run]:
        """Those of which is to be found out whether they are ours."""
        return [run for run in self if run.stage is Stage.UNSURE]

    def __iter__(self) -> Iterator[Run]:
        return iter(list(self._by_id.values()))

    def __len__(self) -> int:
        return len(self._by_id)

    def __contains__(self, run_id: str) -> bool:
        return run_id in self._by_id


def _next(transition: str, run: Run | None) -> Stage | None:
    """Where a transition leads. Raises Refused where the picture does not have it."""
    stage = run.stage if run else None
    try:
        return TRANSITIONS[transition][stage]
    except KeyError:
        where = stage.name if stage else "not in hand"
        raise Refused(f'Refusing "{transition}" of the flow run {run.id if run else "?"}, which is {where}') from None


def _new(run_id: str, name: str) -> HeldRun:
    return HeldRun(run_id, name, datetime.now(UTC).isoformat(timespec="seconds"))
