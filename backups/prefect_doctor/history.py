"""prefect-doctor --history: disk, memory, CPU, database and flow runs of the last 7 days, in the terminal or as a page."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import urlsplit

from prefect_backups.errors import Code, Failure
from prefect_backups.files import write_whole
from prefect_backups.progress import duration
from prefect_backups.settings import Settings
from rich.console import Console
from rich.table import Table

from . import history_page, samples
from .charts import Span, charts, figures, slots, span
from .samples import DAYS, EVERY, Sample

BLOCKS = "▁▂▃▄▅▆▇█"
NONE = "There are no samples yet. prefect-watch.timer takes one every 5 minutes: systemctl status prefect-watch.timer"


def sparkline(values: Sequence[float | None], top: float) -> str:
    """A character a value, from 0 to `top`; a dot where there is none."""
    last = len(BLOCKS) - 1
    return "".join(
        "·" if value is None else BLOCKS[min(max(round(value / top * last), 0), last) if top > 0 else 0]
        for value in values
    )


def moment(at: float) -> str:
    """A time in words, of a wrong clock, too."""
    return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%d %H:%M UTC")


def summary(found: Sequence[Sample], shown: Span) -> str:
    """Since when there are samples, and when there were none."""
    if len(found) == 1:
        return f"One sample yet, of {moment(found[0].at)}: there is one every {EVERY / 60:.0f} minutes."
    words = f"{len(found)} samples since {moment(found[0].at)}, over {duration(shown.end - found[0].at)}."
    if not shown.gaps:
        return words
    longest = max(shown.gaps, key=lambda gap: gap[1] - gap[0])
    gaps = "1 gap" if len(shown.gaps) == 1 else f"{len(shown.gaps)} gaps, the longest"
    return f"{words} {gaps} of {duration(longest[1] - longest[0])} from {moment(longest[0])}: the host or prefect-watch was off."


# --- in the terminal and as a page -------------------------------------------------------------------------------


def table_of(found: Sequence[Sample], shown: Span, width: int) -> Table:
    """For a terminal.

    Args:
        width: its columns.
    """
    lines = [(chart, line) for chart in charts(found) for line in chart.lines if line.points]
    names = [line.name if line.name == chart.title else f"{chart.title}: {line.name}" for chart, line in lines]
    table = Table(box=None, pad_edge=False)
    drawn = max(20, width - max(map(len, names), default=0) - 50)
    table.add_column("", overflow="fold")
    table.add_column(f"{datetime.fromtimestamp(shown.begin, UTC):%d %b %H:%M} to now", no_wrap=True)
    for title in ("min", "now", "max"):
        table.add_column(title, justify="right", no_wrap=True)
    table.add_column("unit", no_wrap=True)
    for name, (chart, line) in zip(names, lines, strict=True):
        picture = sparkline(slots(line.points, shown, drawn), chart.highest(line))
        table.add_row(name.replace("[", r"\["), picture, *figures(line), line.unit)
    return table


def show(settings: Settings, target: str, now: float | None = None) -> None:
    """Show the last days. Raises Failure where the page cannot be written.

    Args:
        target: the file of the page, "-" for stdout; empty: in the terminal.
        now: seconds since 1970; None: the time that it is.
    """
    now = time.time() if now is None else now
    found = samples.read(settings, now)
    shown = span(found, now) if found else Span(now, now)
    words = summary(found, shown) if found else NONE
    if not target:
        console = Console(highlight=False) if sys.stdout.isatty() else Console(width=160, highlight=False)
        if found:
            console.print(table_of(found, shown, console.width))
        console.print(words, markup=False, soft_wrap=True)
        return
    host = urlsplit(settings.endpoint.url).hostname or "Prefect"
    text = history_page.page(f"{host}: the last {DAYS} days", words, charts(found) if found else [], shown)
    if target == "-":
        print(text)
        return
    try:
        # Figures only: whoever has called sudo may take it along.
        write_whole(Path(target), text, 0o644)
    except OSError as error:
        raise Failure(
            Code.SETTINGS, f'"{target}" cannot be written: {error.strerror}', "prefect-doctor --history FILE.html"
        ) from error
    print(f"{target}: {words}")
