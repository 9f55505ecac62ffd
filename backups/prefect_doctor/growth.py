"""Trends: the growth of the database, and the days until a disk is full, from the samples of the last days.

A disk is never quiet: backups come and go, images are pulled, a restore leaves a second database for some days. So a
trend is what most of the time shows, not what the ends of it are apart, and where it is not clear there is none.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from itertools import combinations
from statistics import median

from prefect_backups.progress import duration, size
from prefect_backups.settings import Settings

from . import samples
from .finding import Finding, Level
from .samples import Sample

DAY = 86400.0
#: Days until a disk is full.
FULL_WARNING, FULL_BAD = 14.0, 3.0
#: Days that the first and the newest sample must be apart, since each day has an up and down of its own, and hours in which there are some.
APART, HOURS = 2.0, 24
#: The most blocks that a series is divided into, each of an hour or more.
BLOCKS = 64
#: The share of all pairs of blocks of which the later must be the larger. A single step gives 0.75 at most.
RISING = 0.8
#: Seconds of which the middle value is what is used now.
LATELY = 3 * 3600.0
#: One of so many samples is enough: this is asked each minute.
EACH = 4
#: Days from which on their number says nothing.
FAR = 365.0


def trend(points: Sequence[tuple[float, float]]) -> float | None:
    """Growth of a series in units a day; 0 where there is none, None where there are too few points to say.

    Two estimates must agree, and the smaller is taken: the median slope of all pairs (Theil-Sen), which bears noise, and
    the median of the differences over a day, which bears a step such as a large restore. Neither bears a sawtooth, whose
    pairs rise about as often as they fall.

    Args:
        points: time in seconds and value, in the order of time.
    """
    if not points or points[-1][0] - points[0][0] < APART * DAY or len({at // 3600 for at, _ in points}) < HOURS:
        return None
    apart = points[-1][0] - points[0][0]
    length = max(3600.0, apart / BLOCKS)
    found: dict[int, list[float]] = {}
    for at, value in points:
        found.setdefault(int((at - points[0][0]) // length), []).append(value)
    blocks = {index: median(values) for index, values in found.items()}
    pairs = [(later - earlier, blocks[later] - blocks[earlier]) for earlier, later in combinations(blocks, 2)]
    lag = max(1, round(min(DAY, apart / 4) / length))
    steps = [(value - blocks[index - lag]) / lag for index, value in blocks.items() if index - lag in blocks]
    if not pairs or not steps:
        return None
    rising = sum(1.0 if rise > 0 else 0.5 if rise == 0 else 0.0 for _, rise in pairs) / len(pairs)
    if 1 - RISING < rising < RISING:
        return 0.0
    both = (median(rise / distance for distance, rise in pairs), median(steps))
    if min(both) <= 0 <= max(both):
        return 0.0
    return min(both, key=abs) * DAY / length


def days_until(free: float, growth: float) -> float:
    """Days until nothing is free; infinite where nothing grows.

    Args:
        free: bytes.
        growth: bytes a day.
    """
    return max(free, 0.0) / growth if growth > 0 else math.inf


def _words(growth: float) -> str:
    """Growth in words."""
    # Less than a tenth of a megabyte is nothing in these units.
    if abs(growth) < 1e5:
        return "does not grow"
    return f"grows by {size(growth)} a day" if growth > 0 else f"shrinks by {size(-growth)} a day"


def _unknown(points: Sequence[tuple[float, float]]) -> str:
    """That it is too early to say."""
    there = f"has {duration(points[-1][0] - points[0][0])}" if len(points) > 1 else "has one" if points else "has none"
    return f"not known yet: needs {APART:.0f} days of samples, {there}"


def disk(path: str, points: Sequence[tuple[float, float]], free: float) -> Finding:
    """When a disk is full, if all goes on as it does.

    Args:
        points: time in seconds and bytes that are used.
        free: bytes.
    """
    name, limit = f"disk {path} growth", f"full in more than {FULL_WARNING:.0f} days"
    growth = trend(points)
    if growth is None:
        return Finding(name, Level.OK, _unknown(points), limit)
    days = days_until(free, growth)
    level = Level.BAD if days < FULL_BAD else Level.WARNING if days < FULL_WARNING else Level.OK
    when = f", full in {duration(days * DAY) if days < FAR else 'more than a year'}" if days < math.inf else ""
    mend = (
        f"du -xhd2 {path} | sort -h | tail; docker system prune; prefect-backup prune; or get a larger disk"
        if level
        else ""
    )
    return Finding(name, level, f"{_words(growth)}{when}; {size(free)} free", limit, mend)


def database(points: Sequence[tuple[float, float]]) -> Finding:
    """By how much the database grows: for a person; the check of the disk says how much room is left.

    Args:
        points: time in seconds and bytes.
    """
    growth = trend(points)
    words = _unknown(points) if growth is None else f"{_words(growth)}, is {size(points[-1][1])}"
    return Finding("database growth", Level.OK, words)


def findings(found: Sequence[Sample]) -> Sequence[Finding]:
    """All of them, of what the newest sample has.

    Args:
        found: oldest first.
    """
    if not found:
        return [Finding("growth", Level.OK, "not known yet: has no samples, see prefect-doctor --history")]
    made = []
    for path, (_, total) in found[-1].disks.items():
        # A disk that was made larger counts from then on: what is used does not change by it.
        points = [(one.at, float(one.disks[path][0])) for one in found if path in one.disks]
        made.append(disk(path, points, total - _lately(points)))
    return [*made, database(_sizes(found))]


def _lately(points: Sequence[tuple[float, float]]) -> float:
    """The median of the last hours: a backup that comes and goes must not decide whether an alert is sent."""
    return median(value for at, value in points if at > points[-1][0] - LATELY)


def _sizes(found: Iterable[Sample]) -> list[tuple[float, float]]:
    return [(one.at, float(one.database)) for one in found if one.database is not None]


def check(settings: Settings, now: float) -> Sequence[Finding]:
    """All of them.

    Args:
        now: seconds since 1970.
    """
    return findings(samples.read(settings, now, EACH))
