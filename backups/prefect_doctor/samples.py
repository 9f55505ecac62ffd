"""A small ring of samples: what machine, database and work were like in the last 7 days, one every 5 minutes.

A sample is a line of JSON in `samples.jsonl` beside what else the tools remember. It is appended by one write; about once
a day the file is written anew with the newest lines only. Nothing is removed by its time, so a clock that is wrong for
a while costs no samples: whoever reads takes those of the days that he is interested in. The caller is one at a time
(prefect-watch); two at once would at worst take a sample too many.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from prefect_backups.files import write_whole
from prefect_backups.settings import Settings

from .database import Database
from .machine import Machine, pressure_of
from .work import Work

#: Seconds between two samples, and by how much a timer that calls each minute may be early.
EVERY, EARLY = 300.0, 30.0
DAYS = 7
#: Samples that are kept, and how many more there may be before the file is written anew.
KEPT, MORE = int(DAYS * 86400 / EVERY), 288
#: Bytes that the file never exceeds, and that it has at most when it was written anew: for a line of 350 bytes, as it is
#: with four file systems, that are 7 days; with one it has some 220.
MOST_BYTES, KEPT_BYTES = 800_000, 720_000
#: Sizes are written in MB.
MB = 1_000_000

T = TypeVar("T")


@dataclass(frozen=True)
class Sample:
    """One sample. What could not be measured is None."""

    #: Seconds since 1970.
    at: float
    #: Bytes that are used, and all, by the path of each file system. What only root may use counts as used.
    disks: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    #: Bytes in use, and all.
    memory: tuple[int, int] | None = None
    swap: tuple[int, int] | None = None
    #: Share of five minutes in which all processes waited, for memory and for disks (PSI, "full").
    waited_memory: float | None = None
    waited_io: float | None = None
    #: Share of the time of all CPUs since the sample before (of the same boot, else since boot) in which they were busy or
    #: taken by other virtual machines. It is the machine's: in a container that of the machine below.
    cpu: float | None = None
    #: What that is computed from: busy and all ticks since boot, and the boot's id.
    ticks: tuple[int, int, str] | None = None
    #: Bytes of Prefect's database.
    database: int | None = None
    #: Flow runs that ended in the hour before, by the type of their state; a type without one is not in it.
    ended: Mapping[str, int] | None = None
    #: Late flow runs (see work.LATE_WARNING), and the seconds of the latest.
    late: tuple[int, float] | None = None
    #: Flow and task runs at work.
    at_work: int | None = None


def file_of(settings: Settings) -> Path:
    """Where the samples are."""
    return Path(settings.state) / "samples.jsonl"


# --- a sample and its line ---------------------------------------------------------------------------------------


def line_of(sample: Sample) -> bytes:
    """A sample as its line, without the end of it."""
    late, ticks = sample.late, sample.ticks
    values = {
        "at": round(sample.at),
        "disk": {path: _megabytes(pair) for path, pair in sample.disks.items()},
        "memory": sample.memory and _megabytes(sample.memory),
        "swap": sample.swap and _megabytes(sample.swap),
        "waited": [_rounded(sample.waited_memory), _rounded(sample.waited_io)],
        "cpu": _rounded(sample.cpu),
        "ticks": ticks,
        "database": sample.database,
        "ended": sample.ended,
        "late": late and [late[0], round(late[1])],
        "work": sample.at_work,
    }
    return json.dumps(values, separators=(",", ":")).encode()


def _megabytes(pair: tuple[int, int]) -> list[int]:
    return [round(size / MB) for size in pair]


def _rounded(share: float | None) -> float | None:
    return None if share is None else round(share, 4)


def _count(value: Any) -> int:
    """A whole number from 0 up. Raises ValueError, TypeError, OverflowError."""
    number = int(value)
    if isinstance(value, str) or not 0 <= number < 1 << 62:
        raise ValueError(value)
    return number


def _number(value: Any) -> float:
    if isinstance(value, str) or not math.isfinite(value):
        raise ValueError(value)
    return float(value)


def _pair(value: Any) -> tuple[int, int]:
    first, second = value
    return _count(first), _count(second)


def _bytes(value: Any) -> tuple[int, int]:
    used, total = _pair(value)
    return used * MB, total * MB


def _or_none(convert: Callable[[Any], T], value: Any) -> T | None:
    return None if value is None else convert(value)


def sample_of(line: bytes) -> Sample | None:
    """The sample of a line; None for one that is torn or of somebody else."""
    try:
        found = json.loads(line)
        memory, io = found["waited"]
        return Sample(
            at=_number(found["at"]),
            disks={str(path): _bytes(pair) for path, pair in found["disk"].items()},
            memory=_or_none(_bytes, found["memory"]),
            swap=_or_none(_bytes, found["swap"]),
            waited_memory=_or_none(_number, memory),
            waited_io=_or_none(_number, io),
            cpu=_or_none(_number, found["cpu"]),
            ticks=_or_none(lambda three: (*_pair(three[:2]), str(three[2])), found["ticks"]),
            database=_or_none(_count, found["database"]),
            ended=_or_none(
                lambda states: {str(state): _count(number) for state, number in states.items()}, found["ended"]
            ),
            late=_or_none(lambda two: (_count(two[0]), _number(two[1])), found["late"]),
            at_work=_or_none(_count, found["work"]),
        )
    except (ValueError, TypeError, LookupError, AttributeError, OverflowError, RecursionError):
        return None


# --- decisions ---------------------------------------------------------------------------------------------------


def newest(lines: Sequence[bytes]) -> Sample | None:
    """The sample that was written last, whatever its time."""
    return next((sample for line in reversed(lines) if (sample := sample_of(line))), None)


def due(last: Sample | None, now: float) -> bool:
    """Whether it is time for the next; after a clock that has jumped back it always is."""
    return last is None or not 0 <= now - last.at < EVERY - EARLY


def trimmed(lines: Sequence[bytes], line: bytes) -> list[bytes] | None:
    """The lines of a file that has become too large, with the new one; None where it can be appended."""
    size = sum(map(len, lines)) + len(lines) + len(line) + 1
    if len(lines) < KEPT + MORE and size <= MOST_BYTES:
        return None
    kept, room = [line], KEPT_BYTES - len(line) - 1
    for old in reversed(lines):
        room -= len(old) + 1
        if len(kept) >= KEPT or room < 0:
            break
        kept.append(old)
    return kept[::-1]


def busy_share(before: tuple[int, int, str] | None, ticks: tuple[int, int, str]) -> float:
    """The share of busy ticks since `before`, or since boot where that is of another boot."""
    busy, total, boot = ticks
    if before and before[2] == boot and before[1] < total:
        busy, total = busy - before[0], total - before[1]
    # Some kernels let the time that was idle go back a little.
    return min(max(busy / max(total, 1), 0.0), 1.0)


def ticks_of(stat: str, boot: str) -> tuple[int, int, str] | None:
    """Busy and all ticks from /proc/stat; what was idle or waited for a disk is not busy.

    Args:
        boot: the id of this boot.
    """
    name, *words = stat.partition("\n")[0].split()
    if name != "cpu" or len(words) < 8:
        return None
    # user nice system idle iowait irq softirq steal; guest time is in user's.
    ticks = [int(word) for word in words[:8]]
    return sum(ticks) - ticks[3] - ticks[4], sum(ticks), boot.replace("-", "")[:8]


def swap_of(meminfo: str) -> tuple[int, int] | None:
    """Bytes of swap in use, and all, from /proc/meminfo."""
    found = dict(line.split(":", 1) for line in meminfo.splitlines() if line.startswith("Swap"))
    try:
        total, free = (int(found[name].split()[0]) * 1024 for name in ("SwapTotal", "SwapFree"))
    except (LookupError, ValueError):
        return None
    return total - free, total


# --- taking and reading them -------------------------------------------------------------------------------------


def _text(path: str) -> str:
    try:
        return Path(path).read_text()
    except OSError:
        return ""


def take(
    work: Work | None, database: Database | None, machine: Machine | None, now: float, before: Sample | None
) -> Sample:
    """A sample from what was found, and the little of /proc that nobody else looks at."""
    meminfo, stat = _text("/proc/meminfo"), _text("/proc/stat")
    ticks = ticks_of(stat, _text("/proc/sys/kernel/random/boot_id").strip()) if stat else None
    return Sample(
        at=now,
        disks={one.path: (one.total - one.free, one.total) for one in machine.disks} if machine else {},
        memory=(machine.memory - machine.memory_available, machine.memory) if machine else None,
        swap=swap_of(meminfo),
        waited_memory=machine.pressure if machine else None,
        waited_io=pressure_of(_text("/proc/pressure/io")),
        cpu=busy_share(before.ticks if before else None, ticks) if ticks else None,
        ticks=ticks,
        database=database.size if database else None,
        ended=dict(work.ended) if work else None,
        late=(work.late, work.latest) if work else None,
        at_work=work.at_work if work else None,
    )


def lines_of(path: Path) -> list[bytes]:
    """The lines of the file; none where there is no file."""
    try:
        return path.read_bytes().splitlines()
    except OSError:
        return []


def _append(path: Path, line: bytes) -> None:
    """Append a line, whole or not at all. Raises OSError."""
    descriptor = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        size = os.fstat(descriptor).st_size
        # After a power cut the last line may be torn: it must not spoil this one.
        torn = size > 0 and os.pread(descriptor, 1, size - 1) != b"\n"
        text = (b"\n" if torn else b"") + line + b"\n"
        if os.write(descriptor, text) < len(text):
            os.ftruncate(descriptor, size)
    finally:
        os.close(descriptor)


def record(
    settings: Settings, work: Work | None, database: Database | None, machine: Machine | None, now: float
) -> bool:
    """Take a sample if five minutes have passed since the last; whether one was due.

    To be called each minute with what the doctor's `look` functions have found; None stands for what could not be looked
    at. It never fails: what cannot be written, for a disk that is full, is lost.

    Args:
        now: seconds since 1970.
    """
    path = file_of(settings)
    lines = lines_of(path)
    last = newest(lines)
    if not due(last, now):
        return False
    line = line_of(take(work, database, machine, now, last))
    with suppress(OSError):
        anew = trimmed(lines, line)
        if anew is None:
            _append(path, line)
        else:
            write_whole(path, "\n".join(one.decode(errors="ignore") for one in anew) + "\n")
    return True


def read(settings: Settings, now: float, each: int = 1) -> list[Sample]:
    """The samples of the last days, oldest first. Those from a clock that ran ahead are left out.

    Args:
        now: seconds since 1970.
        each: one of so many is enough, and the newest.
    """
    found = (sample_of(line) for line in lines_of(file_of(settings))[::-each])
    return sorted((one for one in found if one and now - DAYS * 86400 <= one.at <= now + EVERY), key=lambda one: one.at)
