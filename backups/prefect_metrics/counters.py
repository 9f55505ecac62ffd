"""What only grows: flow runs that have ended or begun, counted on from one minute to the next, and kept on disk between.

Counting them all each time would read the whole table; an hour of it is some milliseconds by an index.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from prefect_backups.files import write_whole

from .catalogue import DELAYS

FORMAT = 1
#: Deployments, and work pools, that have series of their own; all others are summed.
DEPLOYMENTS, POOLS = 50, 20
#: Seconds without a flow run after which one gives its place to another that has some.
IDLE = 7 * 86400.0
#: Seconds that are counted at once: after a longer silence the rest is left out.
LONGEST = 3600.0
#: Seconds after which a flow run that has ended is surely seen: its transaction is committed.
SETTLED = 10.0
#: A flow run of no deployment, or in no work pool; no deployment's name ("flow/deployment") is either word.
NONE, OTHER = "none", "other"
#: State types in which a flow run has ended.
END = ("COMPLETED", "FAILED", "CRASHED", "CANCELLED")


@dataclass(frozen=True)
class Ended:
    """Flow runs that have ended, of one deployment in one work pool."""

    state: str
    pool: str
    deployment: str
    count: int
    #: Those that had begun, and the seconds for which they ran.
    ran: int
    seconds: float


@dataclass(frozen=True)
class Begun:
    """Flow runs of one work pool that have begun."""

    pool: str
    #: Of those that were not later than each of DELAYS.
    buckets: list[int]
    count: int
    #: Seconds from when they were due.
    seconds: float


@dataclass
class Places:
    """Which names have series of their own, and when each had a flow run: the number of series is bounded."""

    most: int
    taken: dict[str, float] = field(default_factory=dict)

    def offer(self, name: str) -> None:
        """Give a name a place as long as there are some: it has flow runs, and none that does anything."""
        if name != NONE and len(self.taken) < self.most:
            self.taken.setdefault(name, 0.0)

    def see(self, name: str, now: float) -> None:
        """Give a name a place, if there is one, or if another has not used its own for IDLE."""
        if name == NONE:
            return
        if name not in self.taken and len(self.taken) >= self.most:
            oldest = min(self.taken, key=lambda one: self.taken[one])
            if now - self.taken[oldest] < IDLE:
                return
            del self.taken[oldest]
        self.taken[name] = now

    def label(self, name: str) -> str:
        """The name itself, or that of all who have no place."""
        return name if name == NONE or name in self.taken else OTHER


@dataclass
class Counters:
    """What has been counted up to a moment."""

    #: Seconds since 1970 by Postgres's clock; 0: never.
    mark: float = 0.0
    deployments: Places = field(default_factory=lambda: Places(DEPLOYMENTS))
    pools: Places = field(default_factory=lambda: Places(POOLS))
    #: State, work pool and deployment: how many have ended, had begun, and the seconds for which they ran.
    ended: dict[tuple[str, str, str], tuple[int, int, float]] = field(default_factory=dict)
    #: Work pool: buckets, count and seconds of the start delay.
    begun: dict[str, tuple[list[int], int, float]] = field(default_factory=dict)

    def window(self, now: float) -> tuple[float, float]:
        """From when until when flow runs are to be counted now; the first time none are."""
        until = now - SETTLED
        # A mark of the future is of a clock that was wrong.
        known = 0 < self.mark <= until
        return (max(self.mark, until - LONGEST) if known else until), until

    def begin(self, pool: str, deployment: str) -> None:
        """Have a deployment's counters at 0 before it has anything to count: a first failure is then an increase."""
        for state in END:
            self.ended.setdefault((state, self.pools.label(pool), self.deployments.label(deployment)), (0, 0, 0.0))

    def add(self, ended: Iterable[Ended], begun: Iterable[Begun], until: float) -> None:
        """Count on. The places have been given before; who has lost his loses what was counted of him."""
        for one in ended:
            key = (one.state, self.pools.label(one.pool), self.deployments.label(one.deployment))
            count, ran, seconds = self.ended.get(key, (0, 0, 0.0))
            self.ended[key] = (count + one.count, ran + one.ran, seconds + one.seconds)
        for new in begun:
            pool = self.pools.label(new.pool)
            buckets, count, seconds = self.begun.get(pool, ([0] * len(DELAYS), 0, 0.0))
            added = [before + more for before, more in zip(buckets, new.buckets, strict=True)]
            self.begun[pool] = (added, count + new.count, seconds + new.seconds)
        self.ended = {key: value for key, value in self.ended.items() if self._has_place(*key[1:])}
        self.begun = {pool: value for pool, value in self.begun.items() if self._has_place(pool)}
        self.mark = until

    def _has_place(self, pool: str, deployment: str = NONE) -> bool:
        known = {NONE, OTHER}
        return (pool in known or pool in self.pools.taken) and (
            deployment in known or deployment in self.deployments.taken
        )

    def to_json(self) -> str:
        """For the file."""
        return json.dumps(
            {
                "format": FORMAT,
                "mark": self.mark,
                "deployments": self.deployments.taken,
                "pools": self.pools.taken,
                "ended": [[*key, *value] for key, value in self.ended.items()],
                "begun": [[pool, *value] for pool, value in self.begun.items()],
            }
        )

    @classmethod
    def from_json(cls, text: str) -> Counters:
        """Empty ones for what cannot be read: counters that begin at 0 again are what Prometheus expects of a restart."""
        try:
            known: dict[str, Any] = json.loads(text)
            if known["format"] != FORMAT:
                return cls()
            made = cls(
                float(known["mark"]),
                Places(DEPLOYMENTS, dict(known["deployments"])),
                Places(POOLS, dict(known["pools"])),
                {(a, b, c): (count, ran, seconds) for a, b, c, count, ran, seconds in known["ended"]},
                {pool: (buckets, count, seconds) for pool, buckets, count, seconds in known["begun"]},
            )
        except (ValueError, TypeError, KeyError):
            return cls()
        # Of a kit with other buckets.
        made.begun = {pool: value for pool, value in made.begun.items() if len(value[0]) == len(DELAYS)}
        return made


def path(state: Path) -> Path:
    """Where they are kept."""
    return state / "metrics.json"


def load(state: Path) -> Counters:
    """Those of this host; empty where there are none yet."""
    try:
        return Counters.from_json(path(state).read_text())
    except (OSError, UnicodeDecodeError):
        return Counters()


def save(state: Path, counters: Counters) -> None:
    """Whole, or as they were before. Raises OSError."""
    write_whole(path(state), counters.to_json() + "\n")
