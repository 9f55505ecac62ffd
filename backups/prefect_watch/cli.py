"""prefect-watch: check this server, and alert people when a problem begins and when it is resolved."""

from __future__ import annotations

import argparse
import os
import sys
import time
from datetime import UTC, datetime
from pathlib import Path

from prefect_backups import lock, progress, settings
from prefect_backups.errors import Code, Failure
from prefect_backups.progress import Report, duration
from prefect_doctor.cli import MOVED
from prefect_doctor.finding import playbook
from rich.console import Console
from rich.table import Table

from . import datadog, datadog_queue, memory, pause, round, send
from . import settings as watch_settings


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(
        prog="prefect-watch",
        description="Alert people when something is wrong with this Prefect server, and when it is resolved.",
        epilog="What is wrong now: prefect-doctor",
    )
    verbs = made.add_subparsers(dest="verb", required=True, metavar="VERB")

    def verb(name: str, text: str) -> argparse.ArgumentParser:
        return verbs.add_parser(name, help=text, description=text)

    verb("run", "Run the checks that are due, once, as the timer does each minute.")
    status = verb("status", "Show known problems, when people were alerted, and whether alerts are on.")
    status.add_argument("--json", action="store_true", help="the same as JSON on stdout")
    paused = verb("pause", "Send no alerts for a while, such as 2h, while you work on the server.")
    paused.add_argument("time", metavar="TIME", help="30m, 2h, 1d; at most 7d")
    paused.add_argument("--why", default="", metavar="TEXT", help="the reason, for prefect-watch status")
    verb("resume", "End a pause: send alerts again.")
    verb(
        "test",
        "Send a test message to each address of watch_notify_urls, name those that fail, and ask Datadog whether its key is valid.",
    )
    return made


def _test(watch: watch_settings.Watch, host: str) -> str:
    """What has arrived where, in lines. Raises Failure (NOTIFY)."""
    asked = datadog.Sender(watch.datadog) if watch.datadog.api_key else None
    answer = asked.validate() if asked else None
    said = [f"{asked.name} takes the API key"] if asked and answer and answer.taken else []
    refused = answer.error if answer else ""
    if watch.notify_urls or not asked:
        try:
            said.insert(0, _test_people(watch, host))
        except Failure as failure:
            if not answer:
                raise
            raise Failure(
                failure.code, "; ".join([failure.fact, *said, *filter(None, [refused])]), failure.hint
            ) from failure
    if refused:
        raise Failure(
            Code.NOTIFY,
            "; ".join([*said, refused]),
            "set watch_datadog_… in the inventory; then: site.yml --tags watch",
        )
    return "\n".join(said)


def _test_people(watch: watch_settings.Watch, host: str) -> str:
    if not watch.notify_urls:
        raise Failure(
            Code.NOTIFY,
            "watch_notify_urls is empty: there is nobody to alert",
            f"set it in the inventory, such as [mailtos://user:password@example.org?to=ops@example.org]; then {playbook('site.yml --tags watch')}",
        )
    now = datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
    _, error = send.send(
        watch.notify_urls,
        f"{host}: a test",
        f"Somebody ran prefect-watch test on {host} at {now}: messages arrive here.\n",
    )
    if error:
        raise Failure(Code.NOTIFY, error, "correct watch_notify_urls, or let this host reach that service")
    return f"sent to {len(watch.notify_urls)} addresses: check that it has arrived"


def _status(known: memory.Memory, why: str, events: str, as_json: bool, now: float, timer: str) -> int:
    open_problems = [one for one in known.problems.values() if not one.well]
    if as_json:
        facts = [
            {
                "check": one.check,
                "level": one.level.name,
                "measured": one.measured,
                "since": one.since,
                "alerted": one.told or None,
            }
            for one in open_problems
        ]
        shown = {"checked": known.at or None, "alerts_off": why or None, "problems": facts}
        progress.result(shown | ({"datadog": events} if events else {}))
        return 0
    console = Console(highlight=False) if sys.stdout.isatty() else Console(width=200, highlight=False)
    looked = f"{duration(max(0.0, now - known.at))} ago" if known.at else f"never: systemctl status {timer}"
    console.print(f"last check: {looked}")
    console.print(f"alerts are off: {why}" if why else "alerts are on")
    if events:
        console.print(events, markup=False)
    if open_problems:
        table = Table(box=None, pad_edge=False)
        for title in ("level", "check", "measured", "for", "alerted"):
            table.add_column(title, overflow="fold")
        for one in open_problems:
            told = f"{duration(max(0.0, now - one.told))} ago" if one.told else "not yet"
            words = (one.level.name.lower(), one.check, one.measured, duration(max(0.0, now - one.since)), told)
            table.add_row(*(word.replace("[", r"\[") for word in words))
        console.print(table)
    else:
        console.print("no known problems")
    return 0


def _pause(options: argparse.Namespace, path: Path, now: float) -> int:
    if options.verb == "resume":
        pause.end(path)
        print("alerts are on")
        return 0
    until = now + pause.seconds_of(options.time)
    pause.begin(path, until, options.why)
    print(
        f"alerts are off until {datetime.fromtimestamp(until, UTC):%Y-%m-%d %H:%M UTC}; earlier: prefect-watch resume"
    )
    return 0


def run(options: argparse.Namespace) -> int:
    """Do what was asked for; gives the exit code. Raises Failure."""
    if os.geteuid() != 0:
        raise Failure(Code.SETTINGS, "prefect-watch needs root", "sudo prefect-watch …")
    watch, now = watch_settings.load(), time.time()
    # On a host that only watches the server of another one there are no settings of backups.
    try:
        loaded = None if watch.server.url else settings.load()
    except Failure as failure:
        if options.verb == "run":
            round.tell_of_own_failure(watch, Path(settings.Settings.state), failure, now)
        raise
    if loaded and MOVED.exists():
        if options.verb == "run":
            return 0
        raise Failure(
            Code.SETTINGS, f"the server of this host has moved: {MOVED}", "run prefect-watch on the host that it names"
        )
    state = Path(loaded.state) if loaded else round.ELSEWHERE
    path = state / "watch" / "paused.json"
    if options.verb in ("pause", "resume"):
        return _pause(options, path, now)
    if options.verb == "test":
        print(_test(watch, round.hostname()))
        return 0
    if options.verb == "status":
        timer = "prefect-watch.timer" if loaded else "prefect-watch-from.timer"
        events = datadog_queue.status(watch.datadog, datadog_queue.load(datadog_queue.places(state)), now)
        why = round.why_nobody(loaded, path, now)
        return _status(memory.load(round.places(state)), why, events, options.json, now, timer)
    try:
        # One that a person runs beside the timer's waits: two at once would alert twice.
        memory.RUN.parent.mkdir(mode=0o700, exist_ok=True)
        with lock.briefly(memory.RUN.parent):
            return round.run(loaded, watch, path, now) if loaded else round.run_from(watch, path, now)
    except Exception as error:
        # A watch that fails in silence is worse than none.
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
