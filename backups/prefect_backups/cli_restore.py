"""prefect-restore: what a tired person types on the bad night.

It asks, shows and decides in front, and changes nothing there; the work itself runs as a unit of systemd
(prefect-restore-run-NUMBER), so that a lost ssh connection does not end it, and so that its death at any point starts
prefect-restore.service, which finishes it.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich.prompt import Confirm, Prompt

from . import choose, lock, progress, settings, undo
from .errors import Code, Failure
from .host import Host
from .lock import only_one
from .plan import Planner
from .postgres import PREVIOUS
from .progress import Report
from .restic import FULL, Backup
from .restore import RESUMPTION, Restore
from .restore_options import parser, request_of, settled
from .restore_unit import KEY_UNITS, RESUMER, UNITS, in_unit, only_one_but_the_resumer
from .restore_words import explain, explain_undo, summary, table_of, unfinished_of
from .stopping import Interrupted
from .unfinished import tolerated

# So many are shown where one is to be chosen; --list shows all.
SHOWN = 20


def ask(backups: list[Backup], state: Path, report: Report) -> str:
    """Show what there is, and let the person choose; gives the id. Raises Failure where nobody can answer."""
    if not backups:
        choose.pick(backups, None, None)
    report.console.print(table_of(backups[:SHOWN], state, datetime.now(UTC)))
    if len(backups) > SHOWN:
        report.say(f"and {len(backups) - SHOWN} older ones: prefect-restore --list, then --id ID")
    if not sys.stdin.isatty():
        raise Failure(
            Code.DECLINED,
            "no backup was named, and nobody can be asked here",
            "prefect-restore --latest --yes, or --id ID",
        )
    numbers = [str(number) for number in range(1, len(backups[:SHOWN]) + 1)]
    answer = Prompt.ask("Which one?", console=report.console, choices=numbers, show_choices=False, default="1")
    return backups[int(answer) - 1].id


def work(options: argparse.Namespace, report: Report) -> dict[str, Any]:
    """What is done in the unit. Raises Failure."""
    host = Host.here(settings.load(), report, by_systemd=options.by_systemd)
    restore = Restore(host)
    now = datetime.now(UTC)
    if options.resume:
        result = restore.resume() or {"resumed": "nothing"}
        if not options.by_systemd and result == {"resumed": "nothing"}:
            report.say("There is nothing to resume.")
    else:
        request = request_of(options, now)
        result = restore.undo(request) if options.undo else restore.run(request)
        summary(result, report)
    # That one of them has failed before is over.
    subprocess.run(["systemctl", "reset-failed", UNITS, KEY_UNITS, RESUMER], capture_output=True, check=False)
    return result


def front(options: argparse.Namespace, report: Report) -> dict[str, Any] | int:
    """Show, check and ask, without changing anything; then the result, or the exit code of the unit that did the work."""
    host = Host.here(settings.load(), report)
    planner = Planner(host)
    state = host.state
    request = request_of(options, datetime.now(UTC))
    if options.list:
        backups = planner.backups(options.repository)
        if not options.json:
            report.console.print(table_of(backups, state, datetime.now(UTC)))
        return {"backups": [one.id for one in backups]}
    # Said now, not in the middle of what a unit says.
    if lock.holder(state) not in (None, RESUMPTION):
        with only_one(state, "a restore"):
            pass
    if options.drop_previous:
        with only_one_but_the_resumer(state):
            undo.drop_previous(host)
        return {"dropped": PREVIOUS}
    earlier = unfinished_of(state, report)
    plan, shown = None, 0
    if options.undo:
        shown = explain_undo(host, earlier)
    else:
        if not (options.latest or options.id or options.before):
            options.id = ask(planner.backups(options.repository), state, report)
            request = request_of(options, datetime.now(UTC))
        if options.dry_run or not options.yes:
            plan = planner.plan(request, touch=False, tolerated=tolerated(host, earlier))
            explain(plan, request, report)
            if earlier is not None:
                report.say(f"          {earlier.name}, which did not end, is given up")
    if options.dry_run:
        report.say("Nothing was changed (--dry-run).")
        return {"dry_run": True} | ({"unfinished": earlier.backup} if earlier else {})
    if not options.yes:
        if not sys.stdin.isatty():
            raise Failure(Code.DECLINED, "nobody can be asked here", "say so beforehand: --yes")
        if not Confirm.ask("Go on?", console=report.console, default=False):
            raise Failure(Code.DECLINED, "nothing was changed")
    # It may be trying for minutes what this gives up.
    subprocess.run(["systemctl", "stop", RESUMER], check=False)
    return in_unit(settled(options, plan, shown), report)


def failed(failure: Failure, options: argparse.Namespace, report: Report) -> int:
    """Tell what has failed; gives the exit code."""
    report.say(str(failure), style="bold red")
    if options.json:
        facts = {"error": failure.fact, "hint": failure.hint, "code": failure.code.name, "exit": failure.code.value}
        progress.result(facts)
    return failure.code.value


def main() -> int:
    """The command; gives the exit code."""
    arguments = sys.argv[1:]
    options = parser().parse_args(arguments)
    report = Report(sys.stderr, log="prefect-restore" if options.in_unit else "")
    try:
        if os.geteuid() != 0:
            raise Failure(Code.SETTINGS, "prefect-restore needs root", "sudo prefect-restore …")
        if options.in_unit or options.resume:
            result: dict[str, Any] | int = work(options, report)
        else:
            result = front(options, report)
    except OSError as error:
        if not FULL.search(str(error)):
            raise
        failure = Failure(Code.NO_ROOM, f"the disk is full: {error}", "make room, then the same command again: df -h")
        return failed(failure, options, report)
    except Failure as failure:
        return failed(failure, options, report)
    except Interrupted as interrupted:
        report.say(f"Stopped by {interrupted}: everything is as it was.")
        return 130
    except (KeyboardInterrupt, EOFError):
        report.say("Stopped: nothing was changed.")
        return 130
    if isinstance(result, int):
        return result
    if options.json:
        progress.result(result)
    return 0
