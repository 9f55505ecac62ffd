"""The files that the audit is kept in: one a month, to which whole lines are added and nothing else is done.

Nothing is lost or doubled when a collection dies: each line has its place in the journal with it, and the last one of the newest
file says where to go on. A line that was cut off by a power cut is removed, and read again.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

from prefect_backups.errors import Code, Failure
from prefect_backups.files import remove, sync_directory, write_whole
from prefect_backups.lock import briefly

from . import journal
from .journal import Line

#: A file's name; nothing else in the directory is touched.
MONTH = re.compile(r"(\d{4})-(0[1-9]|1[0-2])\.jsonl")
#: Below the directory: what backups of a host before this one had.
RESTORED = "restored"
#: And where they arrive.
ARRIVALS = ".arrivals"
#: Its time of change is that of the last collection.
COLLECTED = "collected"
#: Bytes at the end of the newest file whose lines are known not to be new.
TAIL = 256 * 1024
#: Bytes that are written at once.
CHUNK = 1024 * 1024


def months(directory: Path) -> list[Path]:
    """The files of a directory, oldest first."""
    try:
        return sorted(path for path in directory.iterdir() if MONTH.fullmatch(path.name))
    except FileNotFoundError:
        return []


def lines_of(path: Path) -> Iterator[Line]:
    """The lines of a file; damaged ones are left out."""
    with path.open(errors="replace") as file:
        for text in file:
            if line := journal.of_file(text):
                yield line


def tail(path: Path) -> list[Line]:
    """The last lines of a file."""
    with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - TAIL))
        found = [journal.of_file(text) for text in file.read().decode(errors="replace").splitlines()]
    return [line for line in found if line]


def newest(directory: Path) -> list[Line]:
    """The last lines that are kept; none where there are none."""
    for path in reversed(months(directory)):
        if found := tail(path):
            return found
    return []


def mend(path: Path) -> None:
    """Cut off the end of a file that is no whole line."""
    with path.open("rb+") as file:
        size = file.seek(0, os.SEEK_END)
        start = max(0, size - TAIL)
        file.seek(start)
        whole = start + file.read().rfind(b"\n") + 1
        if whole < size:
            file.truncate(whole)
            os.fsync(file.fileno())


def collect(directory: Path, days: float, now: datetime) -> int:
    """Add what the journal has since the last time, and remove what is too old; gives how many lines are new. Raises Failure.

    Args:
        days: for which a line is kept at least.
    """
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    with briefly(directory):
        try:
            there = months(directory)
            if there:
                mend(there[-1])
            known = newest(directory)
            count = _add(directory, journal.after(known[-1].cursor if known else "", [one.cursor for one in known]))
            for place in (directory, directory / RESTORED):
                expire(place, days, now)
            (directory / COLLECTED).touch(mode=0o600)
        except OSError as error:
            raise Failure(
                Code.NO_ROOM if error.errno == 28 else Code.FILES,
                f"the audit cannot be kept in {directory}: {error.strerror}",
                "the lines stay in the journal until it is rotated; make room, then: prefect-audit collect",
            ) from error
    return count


def _add(directory: Path, found: Iterable[Line]) -> int:
    """Add lines, each to the file of its month, or to the newest where a clock was set back: the newest one has the last line."""
    there = months(directory)
    name, count, waiting = (there[-1].name if there else ""), 0, ""
    for line in found:
        month = max(name, f"{line.time[:7]}.jsonl")
        if not MONTH.fullmatch(month):
            continue
        if waiting and (month != name or len(waiting) > CHUNK):
            append(directory / name, waiting)
            waiting = ""
        name, count, waiting = month, count + 1, waiting + line.kept()
    if waiting:
        append(directory / name, waiting)
    return count


def append(path: Path, text: str) -> None:
    """Add whole lines to a file, for good."""
    new = not path.exists()
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW, 0o600)
    with open(descriptor, "w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    if new:
        sync_directory(path.parent)


def expire(directory: Path, days: float, now: datetime) -> None:
    """Remove the files whose last line is older than so many days."""
    for path in months(directory):
        year, month = map(int, path.stem.split("-"))
        end = datetime(year + month // 12, month % 12 + 1, 1, tzinfo=UTC)
        if end + timedelta(days=days) <= now:
            remove(path)


@contextlib.contextmanager
def arrivals(directory: Path) -> Iterator[Path]:
    """An empty directory, root's alone, for what comes out of a backup; it goes at the end of the block."""
    into = directory / ARRIVALS
    shutil.rmtree(into, ignore_errors=True)
    into.mkdir(mode=0o700, parents=True)
    try:
        yield into
    finally:
        shutil.rmtree(into, ignore_errors=True)


def bring_back(directory: Path, came: Path) -> int:
    """Take in what a backup had, beside what this host has; gives how many lines are new.

    Args:
        directory: of this host. No file of its own is changed: what is new goes below RESTORED.
        came: what was such a directory when the backup was made.
    """
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    restored = directory / RESTORED
    count = 0
    with briefly(directory):
        for name in sorted({path.name for place in (came, came / RESTORED) for path in months(place)}):
            had = _both(restored / name)
            known = {line.cursor for line in [*had, *_both(directory / name)]}
            new = {
                line.cursor: line
                for place in (came, came / RESTORED)
                for line in _both(place / name)
                if line.cursor not in known
            }
            if new:
                restored.mkdir(mode=0o700, exist_ok=True)
                every = sorted([*had, *new.values()], key=lambda line: line.time)
                write_whole(restored / name, "".join(line.kept() for line in every))
                count += len(new)
    return count


def _both(path: Path) -> list[Line]:
    """The lines of a file that may not be there."""
    return list(lines_of(path)) if path.is_file() else []


def kept(directory: Path, since: str = "") -> Iterator[Line]:
    """All lines that are kept.

    Args:
        since: a time (ISO 8601, UTC); files that have nothing of it or later are not read.
    """
    for place in (directory / RESTORED, directory):
        for path in months(place):
            if path.name[:7] >= since[:7]:
                yield from lines_of(path)
