"""Plausible samples of a week: a server with work by day, backups each hour, a night in which it was off, and a bad morning."""

from __future__ import annotations

import math
import random

from prefect_doctor.samples import EVERY, KEPT, Sample

#: The end of it: a Friday, 04:00 UTC.
NOW = 1_795_752_000.0
GB = 10**9
#: The numbers of the samples between which the host was off, Postgres was down, and no worker was there.
OFF, DOWN, NO_WORKER = range(900, 1030), range(1500, 1510), range(1200, 1216)


def a_week(count: int = KEPT) -> list[Sample]:
    """Its last `count` samples, oldest first."""
    return [sample(number, random.Random(number)) for number in range(KEPT - count, KEPT) if number not in OFF]


def sample(number: int, chance: random.Random) -> Sample:
    """The sample of a number, always the same."""
    at = NOW - (KEPT - 1 - number) * EVERY
    day = max(0.0, math.sin(2 * math.pi * (at / 86400 - 0.25)))
    backup = number % 12 == 0
    late = (number - NO_WORKER.start) * EVERY + 300 if number in NO_WORKER else 0.0
    # A restore leaves the database of before.
    disk = 14.0 + number / 700 + (1.2 if backup else 0) + (2.4 if number > 1600 else 0)
    found = Sample(
        at,
        {"/": (int(disk * GB), 40 * GB)},
        memory=(int((1.5 + 0.6 * day + 0.05 * chance.random()) * GB), 4 * GB),
        swap=(int((0.1 + 0.05 * day) * GB), 2 * GB),
        waited_memory=0.002 * day * chance.random(),
        waited_io=0.004 * chance.random() + (0.04 if backup else 0),
        cpu=0.05 + 0.35 * day + 0.08 * chance.random() + (0.3 if backup else 0),
        ticks=(number * 9000, number * 60000, "4f0c2b1a"),
    )
    if number in DOWN:
        return found
    failed = int(1 + 9 * day * chance.random()) + (60 if late else 0)
    ended = {"COMPLETED": int(60 + 300 * day + 20 * chance.random()), "FAILED": failed}
    if number in range(OFF.stop, OFF.stop + 12):
        ended["CRASHED"] = 4
    return Sample(
        **{
            **vars(found),
            "database": int(1.6 * GB + number * 3e5),
            "ended": ended,
            "late": (int(late > 0) * 7, late),
            "at_work": int(3 + 18 * day + 4 * chance.random()),
        }
    )
