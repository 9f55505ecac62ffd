"""prefect-watch: look at this server, and tell a person what is wrong and when it is well again."""

from __future__ import annotations

import argparse
import os
import sys
import time
from datetime import UTC, datetime
from pathlib import Path

from prefect_backups import progress, settings
from prefect_backups.errors import Code, Failure
from prefect_backups.progress import Report, duration
from prefect_doctor.cli import MOVED
from rich.console import Console
from rich.table import Table

from . import memory, pause, round, send
from . import settings as watch_settings


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(
        prog="prefect-watch",
        description="Look at this Prefect server each minute, and tell a person what is wrong and when it is well again.",
        epilog="What is wrong now: prefect-doctor",
    )
    verbs = made.add_subparsers(dest="verb", required=True, metavar="VERB")

    def verb(name: str, text: str) -> argparse.ArgumentParser:
        return verbs.add_parser(name, help=text, description=text)

    verb("run", "One look, as prefect-watch.timer has it each minute.")
    status = verb("status", "What people have been told of, and whether they are told now.")
    status.add_argument("--json", action="store_true", help="the same as JSON on stdout")
    paused = verb("pause", "Tell nobody for some time, such as 2h: work on the server is no alarm.")
    paused.add_argument("time", metavar="TIME", help="30m, 2h, 1d; at most 7d")
    paused.add_argument("--why", default="", metavar="TEXT", help="for whoever asks prefect-watch status")
    verb("resume", "End a pause.")
    verb("test", "Send a message to each address of watch_notify_urls, and say which did not take it.")
    return made


def _test(watch: watch_settings.Watch, host: str) -> str:
    if not watch.notify_urls:
        raise Failure(
            Code.NOTIFY,
            "there is nobody to tell: watch_notify_urls is empty",
            "set it in the inventory, such as [mailto://user:password@example.org]; then: site.yml --tags watch",
        )
    now = datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
    _, error = send.send(
        watch.notify_urls, f"{host}: a test", f"prefect-watch test, typed on {host} at {now}: messages arrive here.\n"
    )
    if error:
        raise Failure(Code.NOTIFY, error, "look at watch_notify_urls, and at whether this host gets there")
    return f"sent to {len(watch.notify_urls)} addresses: look whether it has arrived"


def _status(known: memory.Memory, why: str, as_json: bool, now: float) -> int:
    open_problems = [one for one in known.problems.values() if not one.well]
    if as_json:
        facts = [
            {
                "check": one.check,
                "level": one.level.name,
                "measured": one.measured,
                "since": one.since,
                "told": one.told or None,
            }
            for one in open_problems
        ]
        progress.result({"looked": known.at or None, "nobody_is_told": why or None, "problems": facts})
        return 0
    console = Console(highlight=False) if sys.stdout.isatty() else Console(width=200, highlight=False)
    looked = f"{duration(max(0.0, now - known.at))} ago" if known.at else "never: systemctl status prefect-watch.timer"
    console.print(f"last look: {looked}")
    console.print(f"people are not told now: {why}" if why else "people are told")
    if open_problems:
        table = Table(box=None, pad_edge=False)
        for title in ("level", "check", "measured", "for", "told"):
            table.add_column(title, overflow="fold")
        for one in open_problems:
            told = f"{duration(max(0.0, now - one.told))} ago" if one.told else "not yet"
            words = (one.level.name.lower(), one.check, one.measured, duration(max(0.0, now - one.since)), told)
            table.add_row(*(word.replace("[", r"\[") for word in words))
        console.print(table)
    else:
        console.print("nothing is wrong that it knows of")
    return 0


def _pause(options: argparse.Namespace, path: Path, now: float) -> int:
    if options.verb == "resume":
        pause.end(path)
        print("people are told again")
        return 0
    until = now + pause.seconds_of(options.time)
    pause.begin(path, until, options.why)
    print(f"nobody is told until {datetime.fromtimestamp(until, UTC):%Y-%m-%d %H:%M UTC}; before: prefect-watch resume")
    return 0


def run(options: argparse.Namespace) -> int:
    """Do what was asked for; gives the exit code. Raises Failure."""
    if os.geteuid() != 0:
        raise Failure(Code.SETTINGS, "prefect-watch needs root", "sudo prefect-watch …")
    watch, now = watch_settings.load(), time.time()
    # On a host that only watches the server of another one there are no settings of backups.
    loaded = None if watch.server.url else settings.load()
    if loaded and MOVED.exists():
        if options.verb == "run":
            return 0
        raise Failure(Code.SETTINGS, f"the server of this host has moved: {MOVED}", "go to the host that it names")
    state = Path(loaded.state) if loaded else round.ELSEWHERE
    path = state / "watch" / "paused.json"
    if options.verb in ("pause", "resume"):
        return _pause(options, path, now)
    if options.verb == "test":
        print(_test(watch, round.hostname()))
        return 0
    if options.verb == "status":
        return _status(memory.load(round.places(state)), round.why_nobody(loaded, path, now), options.json, now)
    try:
        return round.run(loaded, watch, path, now) if loaded else round.run_from(watch, path, now)
    except Exception as error:
        # A watch that dies in silence is worse than none.
        round.tell_of_own_failure(watch, state, error, now)
        raise


def main() -> int:
    """The command; gives the exit code."""
    options = parser().parse_args()
    try:
        return run(options)
    except Failure as failure:
        Report(sys.stderr).say(str(failure), style="bold red")
        return failure.code.value
