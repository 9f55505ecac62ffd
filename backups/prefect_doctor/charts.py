"""The charts of the history: which figures there are, over what time, and on which scales. Pure: from samples to numbers."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from prefect_backups.progress import size

from .samples import EVERY, Sample

#: Seconds without a sample that are a gap, and of a slot: what is shown as one point.
GAP = SLOT = 3 * EVERY
#: Seconds that are shown at least.
SHORTEST = 3600.0
#: Types of states in which a run ends, as they are always shown, so that none is missed for being zero.
ENDED = ("COMPLETED", "FAILED", "CRASHED", "CANCELLED")
HOUR = 3600
#: Seconds between two marks of time.
MARKS = (HOUR // 4, HOUR, 3 * HOUR, 6 * HOUR, 12 * HOUR, 24 * HOUR)

Point = tuple[float, float]


@dataclass(frozen=True)
class Line:
    """A figure over time."""

    name: str
    unit: str
    #: Seconds since 1970 and value, in the order of time; a moment at which it was not known is not among them.
    points: Sequence[Point]


@dataclass(frozen=True)
class Chart:
    """Lines of one unit that belong together."""

    title: str
    unit: str
    lines: Sequence[Line]
    #: The end of its scale, which begins at 0, if no value is higher.
    least: float
    #: What one has to know to read it.
    note: str = ""

    def highest(self, *lines: Line) -> float:
        """The end of the scale of some of its lines."""
        return max([self.least, *(value for line in lines for _, value in line.points)])


@dataclass(frozen=True)
class Span:
    """The time that is shown, in seconds since 1970, and the stretches of it that have no samples."""

    begin: float
    end: float
    gaps: Sequence[tuple[float, float]] = ()


# --- what is shown -----------------------------------------------------------------------------------------------


def _percent(pair: tuple[int, int] | None) -> float | None:
    return 100 * pair[0] / pair[1] if pair and pair[1] else None


def _hundred(share: float | None) -> float | None:
    return None if share is None else 100 * share


def charts(found: Sequence[Sample]) -> list[Chart]:
    """All that is shown of some samples, of which there is one or more."""

    newest = found[-1]
    totals = {path: pair[1] for one in found for path, pair in one.disks.items()}
    # A disk that is gone comes last.
    paths = sorted(totals, key=lambda path: (path not in newest.disks, path))
    memory = next((one.memory[1] for one in reversed(found) if one.memory), 0)
    swap = next((one.swap[1] for one in reversed(found) if one.swap), 0)
    unit = "GB" if max((one.database or 0 for one in found), default=0) >= 2e9 else "MB"
    # What a newer Prefect may call its states comes after those that are known.
    states = [*ENDED, *sorted({state for one in found for state in one.ended or ()} - set(ENDED))]

    def line(name: str, unit: str, value: Callable[[Sample], float | None]) -> Line:
        return Line(name, unit, [(one.at, float(number)) for one in found if (number := value(one)) is not None])

    def disk(path: str) -> Line:
        return line(path, f"% of {size(totals[path])}", lambda one: _percent(one.disks.get(path)))

    def ended(state: str) -> Line:
        return line(state.capitalize(), "an hour", lambda one: None if one.ended is None else one.ended.get(state, 0))

    in_memory = [line("memory", f"% of {size(memory)}", lambda one: _percent(one.memory))]
    if swap:
        in_memory.append(line("swap", f"% of {size(swap)}", lambda one: _percent(one.swap)))
    waited = [
        line("for memory", "%", lambda one: _hundred(one.waited_memory)),
        line("for disks", "%", lambda one: _hundred(one.waited_io)),
    ]
    database = line(
        "Database", unit, lambda one: None if one.database is None else one.database / (1e9 if unit == "GB" else 1e6)
    )
    late = line("Late flow runs", "minutes", lambda one: one.late[1] / 60 if one.late else None)
    return [
        Chart("Disk in use", "%", [disk(path) for path in paths], 100),
        Chart("Memory in use", "%", in_memory, 100),
        Chart("CPU busy", "%", [line("CPU busy", "%", lambda one: _hundred(one.cpu))], 100, "All CPUs of the machine."),
        Chart("Waiting (PSI)", "%", waited, 10, "Share of five minutes in which all processes waited for it."),
        Chart("Database", unit, [database], 1),
        Chart(
            "Flow runs ended",
            "an hour",
            [ended(state) for state in states],
            5,
            "Flow runs that ended in the hour before.",
        ),
        Chart("Late flow runs", "minutes", [late], 10, "A flow run counts as late after 5 minutes."),
        Chart("Running", "runs", [line("Running", "runs", lambda one: one.at_work)], 5, "Flow and task runs."),
    ]


# --- scales ------------------------------------------------------------------------------------------------------


def span(found: Sequence[Sample], now: float) -> Span:
    """The time that samples cover, up to now, and its gaps.

    Args:
        found: oldest first, one or more.
        now: seconds since 1970.
    """
    end = max(now, found[-1].at)
    times = [*(one.at for one in found), end]
    gaps = [(a, b) for a, b in pairwise(times) if b - a > GAP]
    return Span(min(found[0].at, end - SHORTEST), end, gaps)


def slots(points: Sequence[Point], shown: Span, most: int) -> list[float | None]:
    """The highest value of each of at most `most` equal stretches of time, none shorter than SLOT; None: no sample."""
    count = max(1, min(most, int((shown.end - shown.begin) / SLOT)))
    length = max(shown.end - shown.begin, 1.0) / count
    found: list[float | None] = [None] * count
    for at, value in points:
        index = min(int((at - shown.begin) / length), count - 1)
        before = found[index]
        found[index] = value if before is None else max(before, value)
    return found


def numbers(values: Sequence[float]) -> list[str]:
    """Values that stand together, in as many digits as a person reads."""
    highest = max(map(abs, values), default=0)
    whole = all(abs(value - round(value)) < 1e-9 for value in values)
    digits = 0 if whole or highest >= 100 else 1 if highest >= 10 else 2
    return [f"{value:,.{digits}f}" for value in values]


def figures(line: Line) -> list[str]:
    """The lowest, the newest and the highest value of a line; dashes where it has none."""
    values = [value for _, value in line.points]
    return numbers([min(values), values[-1], max(values)]) if values else ["-"] * 3


def ticks(highest: float) -> list[float]:
    """Four to six round numbers for a scale from 0 to a value above 0; the last is the end of the scale."""
    rough = highest / 5
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * (1 - 1e-9))
    return [step * index for index in range(math.ceil(highest / step - 1e-9) + 1)]


def marks(shown: Span) -> list[int]:
    """Round moments (UTC) for an axis of time, at most nine."""
    step = next((one for one in MARKS if (shown.end - shown.begin) / one <= 8), MARKS[-1])
    return list(range(math.ceil(shown.begin / step) * step, math.floor(shown.end) + 1, step))
