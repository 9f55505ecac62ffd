"""prefect-audit: who did what at this Prefect server."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from itertools import chain
from pathlib import Path

from prefect_backups import progress, settings
from prefect_backups.errors import Code, Failure
from prefect_backups.progress import Report
from prefect_doctor.finding import one_line
from rich.console import Console
from rich.table import Table

from . import journal, keep, words
from .choose import Missing, Wanted, chosen, moment
from .journal import Line

#: Lines of the table, unless told otherwise.
LIMIT = 100


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(
        prog="prefect-audit",
        description="Show who did what at this Prefect server: each change, and each refusal, newest last.",
        epilog="Times are UTC. What flow runs and workers do by themselves is in Prefect's UI, not here.",
    )
    made.add_argument("verb", nargs="?", choices=("show", "collect"), default="show", help=_VERBS, metavar="VERB")
    made.add_argument("--account", default="", metavar="NAME", help="only what this account did")
    made.add_argument(
        "--object",
        default="",
        metavar="TEXT",
        help="only what has this in it, such as etl/nightly or 'delete deployment'",
    )
    made.add_argument("--since", default="", metavar="TIME", help="2h, 3d, 2026-11-27 or '2026-11-27 14:30'")
    made.add_argument("--until", default="", metavar="TIME", help="the same")
    made.add_argument("--refused", action="store_true", help="only what was refused")
    made.add_argument(
        "--limit", type=int, default=LIMIT, metavar="N", help=f"so many lines at most, 0: all (default: {LIMIT})"
    )
    made.add_argument("--json", action="store_true", help="the lines as JSON on stdout")
    return made


_VERBS = "show (what no verb means), or collect: keep what is new in the journal, as prefect-audit.timer does"


def table_of(lines: Sequence[Line]) -> Table:
    """For a person."""
    table = Table(box=None, pad_edge=False)
    for title in ("time (UTC)", "account", "role", "what", "result", "address"):
        table.add_column(title, overflow="fold", no_wrap=title == "time (UTC)")
    for line in lines:
        entry = line.entry
        told = (
            line.time[:19].replace("T", " "),
            str(entry.get("account", "")),
            str(entry.get("role", "")),
            words.what(entry),
            words.result(entry),
            str(entry.get("address", "")),
        )
        table.add_row(*(one_line(word).replace("[", r"\[") for word in told))
    return table


def as_json(line: Line) -> dict[str, object]:
    """For --json: as the server wrote it, and in words."""
    entry = {key: value for key, value in line.entry.items() if key not in ("audit", "start", "number")}
    in_words = {"object": words.object_of(entry), "what": words.what(entry), "result": words.result(entry)}
    return {**entry, **in_words}


def show(directory: Path, options: argparse.Namespace, now: datetime) -> int:
    """What is kept, and what the journal has since. Raises Failure."""
    since, until = (
        moment(text, option, now) if text else ""
        for text, option in ((options.since, "--since"), (options.until, "--until"))
    )
    if since and until and until <= since:
        raise Failure(Code.SETTINGS, f"--until {options.until} is not after --since {options.since}")
    if options.limit < 0:
        raise Failure(Code.SETTINGS, f"--limit is {options.limit}, but must be 0 (all) or more")
    wanted = Wanted(options.account, options.object, since, until, options.refused)
    known = keep.newest(directory)
    new = journal.after(known[-1].cursor if known else "", [one.cursor for one in known])
    missing = Missing()
    found = chosen(missing.through(chain(keep.kept(directory, since), new)), wanted, options.limit)
    if missing.count:
        words_of_it = "journald has dropped them, or rotated them away before they were collected (docs/audit.md)"
        Report(sys.stderr).say(f"{missing.count} lines are missing: {words_of_it}", style="yellow")
    if options.json:
        progress.result([as_json(line) for line in found])
        return 0
    # A table that is cut is of no use in a pipe.
    console = Console(highlight=False) if sys.stdout.isatty() else Console(width=200, highlight=False)
    if not found:
        console.print("nothing was changed or refused" if wanted == Wanted() else "nothing of that kind")
        return 0
    console.print(table_of(found))
    if options.limit and len(found) == options.limit:
        console.print(f"the newest {options.limit}; more: --limit 0, --since, --account, --object")
    return 0


def run(options: argparse.Namespace) -> int:
    """Do what was asked for; gives the exit code. Raises Failure."""
    if os.geteuid() != 0:
        raise Failure(Code.SETTINGS, "prefect-audit needs root", "sudo prefect-audit …")
    loaded, now = settings.load(), datetime.now(UTC)
    if options.verb == "collect":
        keep.collect(Path(loaded.audit), loaded.audit_keep_days, now)
        return 0
    return show(Path(loaded.audit), options, now)


def main() -> int:
    """The command; gives the exit code."""
    options = parser().parse_args()
    try:
        return run(options)
    except Failure as failure:
        Report(sys.stderr).say(str(failure), style="bold red")
        return failure.code.value
