"""Which lines of the audit a person wants to see."""

from __future__ import annotations

import heapq
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from prefect_backups.errors import Code, Failure

from . import words
from .journal import Line

AGO = re.compile(r"(\d{1,6})([mhdw])")
SECONDS = {"m": 60, "h": 3600, "d": 86400, "w": 604800}


def moment(text: str, option: str, now: datetime) -> str:
    """A time as lines have it, in UTC, from what a person types. Raises Failure."""
    if match := AGO.fullmatch(text):
        try:
            return _as_kept(now - timedelta(seconds=int(match[1]) * SECONDS[match[2]]))
        except OverflowError:
            return _as_kept(datetime(1, 1, 1, tzinfo=UTC))
    try:
        found = datetime.fromisoformat(text)
    except ValueError:
        raise Failure(
            Code.SETTINGS,
            f'{option} is "{text}", but must be a time or how long ago it was',
            f"such as {option} 2h, 3d or 2w; {option} 2026-11-27; {option} '2026-11-27 14:30' (UTC)",
        ) from None
    return _as_kept(found if found.tzinfo else found.replace(tzinfo=UTC))


def _as_kept(moment: datetime) -> str:
    return moment.astimezone(UTC).isoformat(timespec="milliseconds")


@dataclass(frozen=True)
class Wanted:
    """What a line must have; whatever is empty does not matter."""

    account: str = ""
    #: In what was done, or in the path; upper and lower case alike.
    object: str = ""
    since: str = ""
    until: str = ""
    refused: bool = False

    def takes(self, line: Line) -> bool:
        """Whether a line is wanted."""
        entry = line.entry
        if (self.since and line.time < self.since) or (self.until and line.time >= self.until):
            return False
        if self.account and entry.get("account") != self.account:
            return False
        if self.refused and not entry.get("refused"):
            return False
        return not self.object or self.object.lower() in f"{words.what(entry)} {entry.get('path', '')}".lower()


class Missing:
    """How many lines are missing among those that go through: the server numbers them from each of its starts on."""

    def __init__(self) -> None:
        #: First and last number of a start, and how many lines of it there are.
        self._starts: dict[str, tuple[int, int, int]] = {}

    def through(self, found: Iterable[Line]) -> Iterator[Line]:
        """The same lines."""
        for line in found:
            start, number = line.entry.get("start"), line.entry.get("number")
            if isinstance(start, str) and isinstance(number, int):
                first, last, count = self._starts.get(start, (number, number, 0))
                self._starts[start] = (min(first, number), max(last, number), count + 1)
            yield line

    @property
    def count(self) -> int:
        """Between the first and the last of each start."""
        return sum(max(0, last - first + 1 - count) for first, last, count in self._starts.values())


def chosen(found: Iterable[Line], wanted: Wanted, limit: int) -> list[Line]:
    """The newest lines that are wanted, newest last, each once.

    Args:
        limit: how many; 0 for all.
    """
    matching = ((line.time, line.cursor, line) for line in found if wanted.takes(line))
    # In both places at once a line is while a collection is under way.
    ordered = sorted(matching, key=_order) if not limit else heapq.nlargest(2 * limit, matching, key=_order)[::-1]
    once = {cursor: line for _, cursor, line in ordered}
    return list(once.values())[-limit:] if limit else list(once.values())


def _order(one: tuple[str, str, Line]) -> tuple[str, str]:
    return one[0], one[1]
