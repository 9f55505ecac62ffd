"""prefect-doctor: every check in one table, worst first: what was measured, what is allowed, what to do."""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from prefect_backups import progress, settings
from prefect_backups.errors import Code, Failure
from prefect_backups.host import Host
from prefect_backups.progress import Report
from rich.console import Console
from rich.table import Table

from . import history
from .finding import Finding, Level, readable, worst, worst_first
from .registry import groups

#: Written by move.yml on a host that the server has left.
MOVED = Path("/etc/prefect/moved.env")
STYLES = {Level.OK: "green", Level.WARNING: "yellow", Level.BAD: "bold red", Level.UNKNOWN: "bold magenta"}


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(
        prog="prefect-doctor",
        description="Check everything on this Prefect server: what is wrong, and what to type. Changes nothing.",
        epilog="Exit code: 0 all ok, 1 a warning, 2 something is bad, 3 something could not be checked. "
        "What leaves this host, and why: prefect-doctor residency --help",
    )
    instead = made.add_mutually_exclusive_group()
    instead.add_argument("--json", action="store_true", help="the findings as JSON on stdout")
    instead.add_argument(
        "--history",
        nargs="?",
        const="",
        metavar="FILE.html",
        help="disk, memory, CPU, database and flow runs of the last 7 days, here or as an HTML page (-: to stdout)",
    )
    made.add_argument("--bad", action="store_true", help="only what is not ok")
    return made


def tried(name: str, look: Callable[[], Sequence[Finding]]) -> Sequence[Finding]:
    """The findings of one group of checks; an error of its own becomes a finding, too."""
    try:
        return list(map(readable, look()))
    except Failure as failure:
        return [Finding(name, Level.UNKNOWN, failure.fact, "", failure.hint)]
    except Exception as error:
        # Whatever it was, the other checks go on.
        return [Finding(name, Level.UNKNOWN, f"could not be checked: {type(error).__name__}: {error}")]


def examine(looks: dict[str, Callable[[], Sequence[Finding]]]) -> list[Finding]:
    """All checks at once, since each waits for something else; worst first."""
    with ThreadPoolExecutor(len(looks)) as pool:
        found = pool.map(lambda item: tried(*item), looks.items())
    return worst_first(finding for findings in found for finding in findings)


def table_of(findings: Sequence[Finding]) -> Table:
    """For a person."""
    table = Table(box=None, pad_edge=False)
    for title in ("", "check", "measured", "allowed", "what to do"):
        table.add_column(title, overflow="fold", no_wrap=title in ("", "check"))
    for one in findings:
        words = (one.check, one.measured, one.allowed, one.mend)
        table.add_row(
            f"[{STYLES[one.level]}]{one.level.name.lower()}[/]", *(word.replace("[", r"\[") for word in words)
        )
    return table


def _shown(one: Finding) -> dict[str, str]:
    """For --json."""
    shown = {"check": one.check, "level": one.level.name, "measured": one.measured, "allowed": one.allowed}
    return {**shown, "mend": one.mend, **({"detail": one.detail} if one.detail else {})}


def main() -> int:
    """The command; gives the exit code."""
    if sys.argv[1:2] == ["residency"]:
        from prefect_residency.cli import main as residency

        return residency(sys.argv[2:])
    options = parser().parse_args()
    report = Report(sys.stderr)
    try:
        if os.geteuid() != 0:
            raise Failure(Code.SETTINGS, "prefect-doctor needs root", "sudo prefect-doctor")
        if MOVED.exists():
            raise Failure(
                Code.SETTINGS,
                f"the server of this host has moved: {MOVED}",
                "run prefect-doctor on the host that it names",
            )
        loaded = settings.load()
        if options.history is not None:
            history.show(loaded, options.history)
            return Level.OK
    except Failure as failure:
        report.say(str(failure), style="bold red")
        return Level.UNKNOWN
    began = time.monotonic()
    all_groups = groups(loaded, Host.here(loaded, Report.silent()))
    found = examine({name: group.look for name, group in all_groups.items()})
    level = worst(found)
    if options.json:
        facts = [_shown(one) for one in found]
        progress.result({"worst": level.name, "seconds": round(time.monotonic() - began, 2), "findings": facts})
        return level
    shown = [one for one in found if one.level] if options.bad else found
    # A table that is cut is of no use in a pipe.
    console = Console(highlight=False) if sys.stdout.isatty() else Console(width=200, highlight=False)
    if shown:
        console.print(table_of(shown))
    not_well = sum(one.level > Level.OK for one in found)
    console.print(f"{len(found) - not_well} of {len(found)} checks are ok ({time.monotonic() - began:.1f} s)")
    return level
