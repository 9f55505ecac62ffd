"""When a disk is full: what grows steadily is told in time, and what goes up and down, or up once, alarms nobody."""

from __future__ import annotations

import math
import random
from collections.abc import Callable

import pytest
from prefect_doctor import growth
from prefect_doctor.finding import Finding, Level
from prefect_doctor.growth import DAY, days_until, trend
from prefect_doctor.samples import Sample

OK, WARNING, BAD = Level.OK, Level.WARNING, Level.BAD
GB = 1e9
#: One point each half hour is as good as six.
STEP = 1800.0


def series(
    days: float, value: Callable[[float], float], without: tuple[float, float] = (0, 0), step: float = STEP
) -> list[tuple[float, float]]:
    """Points of `value`, which is a function of the day; none between two days of `without`."""
    times = [index * step / DAY for index in range(int(days * DAY / step))]
    return [(1e9 + day * DAY, value(day)) for day in times if not without[0] < day < without[1]]


def noise(amount: float, seed: int = 1) -> Callable[[float], float]:
    source = random.Random(seed)
    return lambda day: 20 * GB + source.gauss(0, amount)


@pytest.mark.parametrize("days", [2.5, 4, 7])
def test_what_grows_steadily(days):
    bumps = noise(0.3 * GB)
    assert trend(series(days, lambda day: 2 * GB * day)) == pytest.approx(2 * GB, rel=0.02)
    assert trend(series(days, lambda day: bumps(day) + 2 * GB * day)) == pytest.approx(2 * GB, rel=0.15)
    assert trend(series(days, lambda day: 50 * GB - 2 * GB * day)) == pytest.approx(-2 * GB, rel=0.02)


@pytest.mark.parametrize("days", [2.1, 3, 5, 7])
@pytest.mark.parametrize(
    "value",
    [
        noise(2 * GB),
        # Each day: backups come, and are pruned at night; of both phases.
        lambda day: 20 * GB + 5 * GB * (day % 1),
        lambda day: 20 * GB + 5 * GB * ((day + 0.5) % 1),
        lambda day: 20 * GB + 2 * GB * math.sin(2 * math.pi * day),
        # Each hour, a dump that is there for a while.
        lambda day: 20 * GB + (3 * GB if day * 24 % 1 < 0.4 else 0),
        lambda day: 20 * GB,
    ],
    ids=["noise", "prune", "prune at noon", "tide", "dumps", "flat"],
)
def test_what_goes_up_and_down_does_not_grow(days, value):
    assert (trend(series(days, value)) or 0) <= 0.2 * GB


@pytest.mark.parametrize("at", [0.3, 1, 2, 3, 3.5, 4, 5, 6, 6.8])
def test_a_step_is_no_growth(at):
    """A large restore, whose database of before is kept for a week."""
    bumps = noise(0.05 * GB)
    assert trend(series(7, lambda day: 30 * GB if day > at else 10 * GB)) == 0
    assert abs(trend(series(7, lambda day: bumps(day) + (20 * GB if day > at else 0))) or 0) < 0.1 * GB
    # Down again, and what grows beside it is seen, or not, but as no more than it is.
    assert 0 <= (trend(series(7, lambda day: GB * day + (20 * GB if day > at else 0))) or 0) <= 1.3 * GB


def test_a_load_of_each_night_is_growth():
    found = trend(series(7, lambda day: 10 * GB + 5 * GB * int(day + 0.3)))
    assert found == pytest.approx(5 * GB, rel=0.2)


def test_a_host_that_was_off():
    assert trend(series(7, lambda day: 2 * GB * day, without=(2, 4.5))) == pytest.approx(2 * GB, rel=0.05)
    # An hour at each end says nothing of what is between.
    assert trend(series(7, lambda day: 2 * GB * day, without=(0.05, 6.95))) is None


def test_too_early_to_say():
    assert trend([]) is None
    assert trend([(1e9, 1.0)]) is None
    assert trend(series(1.9, lambda day: 50 * GB * day)) is None


def test_days():
    assert days_until(10 * GB, 2 * GB) == 5
    assert days_until(10 * GB, 0) == days_until(10 * GB, -GB) == math.inf
    assert days_until(-1, GB) == 0


def of(free: float, grows: float) -> Finding:
    return growth.disk("/", series(4, lambda day: 20 * GB + grows * day), free)


@pytest.mark.parametrize(
    ("free", "grows", "level", "words"),
    [
        (60 * GB, 2 * GB, OK, "grows by 2.0 GB a day, full in 30 days; 60.0 GB free"),
        (20 * GB, 2 * GB, WARNING, "grows by 2.0 GB a day, full in 10 days; 20.0 GB free"),
        (5 * GB, 2 * GB, BAD, "grows by 2.0 GB a day, full in 2 days; 5.0 GB free"),
        (60 * GB, 1e7, OK, "grows by 10 MB a day, full in more than a year; 60.0 GB free"),
        (5 * GB, 0, OK, "does not grow; 5.0 GB free"),
        (5 * GB, -GB, OK, "shrinks by 1.0 GB a day; 5.0 GB free"),
    ],
)
def test_a_disk_that_will_be_full(free, grows, level, words):
    found = of(free, grows)
    assert (found.check, found.level, found.measured) == ("disk / growth", level, words)
    assert bool(found.mend) is (level is not OK)


def test_a_dump_that_comes_and_goes_does_not_change_who_is_told():
    def at(hour: int) -> Finding:
        times = series(
            4 + hour / 24, lambda day: 5 * GB + 1 * GB * day + (2 * GB if day * 24 % 1 < 0.2 else 0), step=600
        )
        return growth.findings([Sample(at, {"/": (int(used), int(25 * GB))}) for at, used in times])[0]

    assert [at(hour).level for hour in range(0, 12)] == [OK] * 12
    assert {at(hour).level for hour in range(60, 72)} == {WARNING}


def test_what_the_newest_sample_has_is_told():
    (none,) = growth.findings([])
    assert none.level is OK
    times = series(3, lambda day: day)
    made = [Sample(at, {"/": (int(10 * GB + day * GB), int(20 * GB))}, database=int(day * 1e8)) for at, day in times]
    # A disk that is gone; and Postgres was down for a moment.
    made[0] = Sample(made[0].at, {"/gone": (1, 2), **made[0].disks})
    disk, database = growth.findings(made)
    assert (disk.check, disk.level) == ("disk / growth", WARNING)
    assert (database.check, database.level) == ("database growth", OK)
    assert database.measured.startswith("grows by 100 MB a day, is ")
    (_, early) = growth.findings(made[:20])
    assert early.measured == "not known yet: needs 2 days of samples, has 9 hours"
