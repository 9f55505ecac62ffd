"""prefect-restore: what a tired person types on the bad night.

It asks, shows and decides in front, and changes nothing there; the work itself runs as a unit of systemd
(prefect-restore-run-NUMBER), so that a lost ssh connection does not end it, and so that its death at any point starts
prefect-restore.service, which finishes it.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich.prompt import Confirm, Prompt
from rich.table import Table

from . import choose, lock, progress, settings, verify
from .errors import Code, Failure
from .journal import MEANING, Journal
from .lock import only_one
from .plan import TAKE_BACK_ONLY, Plan, Request
from .postgres import PREVIOUS
from .progress import Report, duration, size
from .restic import FULL, Backup
from .restore import HANDOVER, RESUMPTION, Interrupted, Restore

# Each has a name of its own: systemd may keep that of one that died for a while.
UNIT = f"prefect-restore-run-{os.getpid()}.service"
UNITS = "prefect-restore-run-*.service"
# Before it counts as ended: what a killed safety backup has left.
CLEAN = "/usr/local/sbin/prefect-backup clean"
# What systemd-run says when the unit ended by a signal.
KILLED = 255
# So many are shown where one is to be chosen; --list shows all.
SHOWN = 20
# What tries to finish a restore, and gives way to a person's newer decision.
RESUMER = "prefect-restore.service"


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(
        prog="prefect-restore",
        description="Bring a backup back. Without an option: show what there is, and ask.",
        epilog="What is there now is backed up first and kept beside, so a restore can be undone: prefect-restore --undo",
    )
    which = made.add_mutually_exclusive_group()
    which.add_argument("--latest", action="store_true", help="the newest backup")
    which.add_argument("--id", help="the backup with this id (as --list shows it; its beginning is enough)")
    which.add_argument("--before", metavar="TIME", help='the newest from before: "2026-11-21 04:30", 04:30, 2h (ago)')
    which.add_argument("--list", action="store_true", help="show what there is, and do nothing")
    which.add_argument("--undo", action="store_true", help="swap back to the database of before the last restore")
    which.add_argument("--resume", action="store_true", help="finish, or take back, a restore that was cut off")
    which.add_argument("--drop-previous", action="store_true", help="give up the database that --undo would bring back")
    made.add_argument(
        "--from", dest="repository", metavar="NAME", help='another repository: its name, "off-site", or "all"'
    )
    made.add_argument("--dry-run", action="store_true", help="all checks, and what would be done; changes nothing")
    made.add_argument("--yes", action="store_true", help="do not ask")
    late = made.add_argument_group("runs whose time has passed")
    late.add_argument("--run-late", action="store_true", help="cancel none: all of them run now")
    late.add_argument("--outage-since", metavar="TIME", help="cancel those due before (default: the last heartbeat)")
    how = made.add_argument_group("how")
    how.add_argument("--drain", metavar="SECONDS", type=float, default=0.0, help="let running flow runs end, so long")
    how.add_argument("--without-safety-backup", action="store_true", help="go on when what is there cannot be read")
    how.add_argument(
        "--new-cluster", action="store_true", help="Postgres does not start: set its data aside, make a new cluster"
    )
    how.add_argument("--with-files", action="store_true", help="certificate authority and certificates too")
    how.add_argument(
        "--initial", action="store_true", help="first restore on a new host: no safety backup, no smoke flow"
    )
    made.add_argument("--json", action="store_true", help="the result as JSON on stdout")
    # Set by ourselves, inside the unit; the second is of an undo: the database that was shown and confirmed.
    made.add_argument("--in-unit", action="store_true", help=argparse.SUPPRESS)
    made.add_argument("--shown", type=int, default=0, help=argparse.SUPPRESS)
    # Set by prefect-restore.service.
    made.add_argument("--by-systemd", action="store_true", help=argparse.SUPPRESS)
    return made


def request_of(options: argparse.Namespace, now: datetime) -> Request:
    """The request that the options mean. Raises Failure for a time that is none."""
    return Request(
        id=options.id,
        before=choose.parse_time(options.before, now) if options.before else None,
        repository=options.repository,
        run_late=options.run_late,
        outage_since=choose.parse_time(options.outage_since, now) if options.outage_since else None,
        drain=options.drain,
        safety_backup=not options.without_safety_backup,
        new_cluster=options.new_cluster,
        with_files=options.with_files,
        initial=options.initial,
        shown=options.shown,
    )


def settled(options: argparse.Namespace, plan: Plan | None, shown: int) -> list[str]:
    """The arguments for the unit: what was shown and confirmed, and not what --latest or 2h would mean by then.

    Args:
        plan: what was shown of a restore; None of an undo, or where nothing was shown.
        shown: of an undo, the identity of the database that was shown.
    """
    words = ["--undo", "--shown", str(shown)] if options.undo else []
    if plan is not None:
        words = ["--id", plan.backup.id, "--from", plan.backup.repository]
        # Without a heartbeat that could be read, the moment of the restore itself is meant.
        if options.outage_since or plan.last_life:
            words += ["--outage-since", plan.cancel_before.isoformat()] if plan.cancel_before else []
    elif options.outage_since:
        words += ["--outage-since", options.outage_since]
    if plan is None and not options.undo:
        words += ["--latest"] * options.latest
        for name in ("id", "before"):
            words += [f"--{name}", getattr(options, name)] if getattr(options, name) else []
        words += ["--from", options.repository] if options.repository else []
    for name in ("run_late", "without_safety_backup", "new_cluster", "with_files", "initial", "json"):
        words += [f"--{name.replace('_', '-')}"] * getattr(options, name)
    return words + (["--drain", str(options.drain)] if options.drain else [])


def table_of(backups: list[Backup], state: Path, now: datetime) -> Table:
    """Backups, newest first, numbered."""
    table = Table(box=None, pad_edge=False)
    for title in ("", "id", "age", "size", "kind", "Prefect", "where", "verified"):
        table.add_column(title, justify="right" if title in ("", "age", "size") else "left")
    verified = verify.verified(state)
    for number, one in enumerate(backups, 1):
        age = duration((now - one.time).total_seconds())
        proof = verified.get(one.id, "")
        table.add_row(str(number), one.id, age, size(one.size), one.kind, one.prefect, one.repository, proof)
    return table


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


def explain(plan: Plan, request: Request, report: Report) -> None:
    """What would be done, in the words of who has to decide."""
    facts = plan.manifest
    rows = sum(table.rows for table in facts.tables.values())
    age = duration((datetime.now(UTC) - plan.backup.time).total_seconds())
    report.say(f"Backup    {plan.backup.id}, {age} old, from the repository {plan.repository.name}")
    report.say(
        f"          Prefect {facts.prefect}, Postgres {facts.postgres}, {rows:,} rows, {size(facts.database_bytes)}"
    )
    kept = {
        "readable": "is backed up first, then kept as it is for --undo",
        "unreadable": "cannot be read whole; it is kept as it is for --undo",
        "unknown": "is not known as long as Postgres is down; what is worth it is kept for --undo",
    }
    if request.new_cluster:
        report.say("There now is set aside with all of Postgres's data; the API is away from here on until the end")
    else:
        report.say(f"There now {kept.get(plan.live, 'is nothing to keep')}")
    for note in plan.notes:
        report.say(f"          {note}")
    if facts.prefect != plan.prefect:
        report.say(f"Prefect   {facts.prefect} there, {plan.prefect} here: migrations run before the swap")
    if plan.cancel_before is None:
        report.say("Late runs all run late (--run-late)")
    else:
        when = plan.cancel_before.astimezone().strftime("%Y-%m-%d %H:%M:%S %Z")
        report.say(f"Late runs due before {when} are cancelled, later ones run late")
    report.say(
        "Workers   " + (f"drain up to {request.drain:.0f} s" if request.drain else "are stopped: their runs end")
    )


def unfinished_of(state: Path, report: Report) -> Journal | None:
    """The restore that did not end, if there is one; said in words, in front of whatever is decided."""
    try:
        found = Journal.load(state)
    except Failure as failure:
        report.say(f"Unfinished restore: {failure.fact}", style="yellow")
        return None
    if found is not None:
        ago = duration(datetime.now(UTC).timestamp() - found.started)
        now = "; systemd is at work on it" if lock.holder(state) == RESUMPTION else ""
        report.say(f"Unfinished {found.name}, begun {ago} ago: {MEANING[found.phase]}{now}", style="yellow")
    return found


def in_unit(arguments: list[str], report: Report) -> int:
    """Run ourselves as a unit of systemd with our own stdin, stdout and stderr; gives its exit code."""
    command = ["systemd-run", "--quiet", f"--unit={UNIT}", "--description=Restore of a Prefect backup"]
    command += ["--service-type=exec", "--pipe", "--wait", "--collect"]
    # What dies, or fails and cannot clean up behind itself, is finished by that unit: it does nothing without a journal.
    # (No SuccessExitStatus: systemd-run would turn those exit codes into 0.)
    command += ["--property=OnFailure=prefect-restore.service"]
    # And half a safety backup, which has no journal, by this.
    command += [f"--property=ExecStopPost=-{CLEAN}"]
    for name in ("TERM", "COLUMNS", "LINES", "PREFECT_BACKUPS_FAILPOINT", "PREFECT_BACKUPS_ETC"):
        if name in os.environ:
            command += [f"--setenv={name}={os.environ[name]}"]
    command += ["--", str(Path(sys.argv[0]).resolve()), "--in-unit", *arguments]
    # A group of its own: Ctrl-C is for us to pass on, or systemd-run would end and leave the unit without a reader.
    waiting = subprocess.Popen(command, process_group=0)

    def pass_on(number: int, frame: object) -> None:
        subprocess.run(["systemctl", "kill", f"--signal={number}", "--kill-whom=main", UNIT], check=False)

    signal.signal(signal.SIGINT, pass_on)
    signal.signal(signal.SIGTERM, pass_on)
    status = waiting.wait()
    # A unit that has failed has nothing more to tell, and what it leaves to others has been started; systemd now and then
    # keeps it all the same (--collect), one that was killed above all.
    if status != 0:
        subprocess.run(["systemctl", "reset-failed", UNIT], capture_output=True, check=False)
    if status == KILLED:
        report.say(
            "The restore was killed. systemd takes it back or finishes it; look at: journalctl -u prefect-restore"
        )
    return status


def summary(result: dict[str, Any], report: Report) -> None:
    """The end, for who has to tell others."""
    report.say("")
    if "resumed" in result:
        report.say(f"{result['backup']}: {result['resumed']}.", style="bold green")
        return
    what = "Undone" if result["backup"] == "undo" else f"Restored {result['backup']} from {result['repository']}"
    report.say(f"{what}. The API was away for {result['downtime_seconds']} s.", style="bold green")
    report.say(
        f"  {result['crashed']} flow runs that were at work then are Crashed, {result['cancelled']} whose time had passed"
        f" are Cancelled, {result['late']} run late; {result['slots_freed']} concurrency slots came free."
    )
    if "smoke" in result:
        seen = f"Smoke flow through the reverse proxy: {result['smoke']}"
        report.say(f"  {seen if result['smoke'] else 'No smoke flow ran: these data have no deployment for it'}.")
    report.say(f"  {workers_of(result['workers'], result['workers_down'])}")
    if result.get("undo"):
        report.say(f"  To undo: {result['undo']}")


def workers_of(back: int, down: list[str]) -> str:
    """What is true of the workers of this host.

    Args:
        back: how many ran before, and run again.
        down: those that start at boot and do not run.
    """
    said = f"{back} worker{' is' if back == 1 else 's are'} back."
    if not down:
        return said
    one = len(down) == 1
    return (
        f"{said} {len(down)} {'does' if one else 'do'} not run, and did not before: {', '.join(down)};"
        f" start {'it' if one else 'them'}: systemctl start {' '.join(down)}"
    )


def work(options: argparse.Namespace, report: Report) -> dict[str, Any]:
    """What is done in the unit. Raises Failure."""
    restore = Restore(settings.load(), report, by_systemd=options.by_systemd)
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
    subprocess.run(["systemctl", "reset-failed", UNITS, RESUMER], capture_output=True, check=False)
    # Not at the top: what it sends with takes a second to load.
    from .notify import forget

    forget(restore.state, RESUMER)
    return result


def front(options: argparse.Namespace, report: Report) -> dict[str, Any] | int:
    """Show, check and ask, without changing anything; then the result, or the exit code of the unit that did the work."""
    loaded = settings.load()
    restore = Restore(loaded, report)
    state = Path(loaded.state)
    request = request_of(options, datetime.now(UTC))
    if options.list:
        backups = restore.planner.backups(options.repository)
        if not options.json:
            report.console.print(table_of(backups, state, datetime.now(UTC)))
        return {"backups": [one.id for one in backups]}
    # Said now, not in the middle of what a unit says.
    if lock.holder(state) not in (None, RESUMPTION):
        with only_one(state, "a restore"):
            pass
    if options.drop_previous:
        with only_one_but_the_resumer(state):
            restore.drop_previous()
        return {"dropped": PREVIOUS}
    unfinished = unfinished_of(state, report)
    plan, shown = None, 0
    if options.undo:
        shown = explain_undo(restore, unfinished, report)
    else:
        if not (options.latest or options.id or options.before):
            options.id = ask(restore.planner.backups(options.repository), state, report)
            request = request_of(options, datetime.now(UTC))
        if options.dry_run or not options.yes:
            plan = restore.planner.plan(request, touch=False, tolerated=restore.tolerated(unfinished))
            explain(plan, request, report)
            if unfinished is not None:
                report.say(f"          {unfinished.name}, which did not end, is given up")
    if options.dry_run:
        report.say("Nothing was changed (--dry-run).")
        return {"dry_run": True} | ({"unfinished": unfinished.backup} if unfinished else {})
    if not options.yes:
        if not sys.stdin.isatty():
            raise Failure(Code.DECLINED, "nobody can be asked here", "say so beforehand: --yes")
        if not Confirm.ask("Go on?", console=report.console, default=False):
            raise Failure(Code.DECLINED, "nothing was changed")
    # It may be trying for minutes what this gives up.
    subprocess.run(["systemctl", "stop", RESUMER], check=False)
    return in_unit(settled(options, plan, shown), report)


def explain_undo(restore: Restore, unfinished: Journal | None, report: Report) -> int:
    """What an undo would do; gives the identity of the database that it goes back to, see Request.shown."""
    if not restore.postgres.answers():
        report.say("Postgres is down: it is started first; what there is to go back to is not known until then")
        return 0
    if unfinished is not None and restore.undo_takes_back(unfinished):
        report.say(f"To take back: {unfinished.name}, and nothing more. The data of now stay.")
        return TAKE_BACK_ONLY
    report.say(f"To go back to: {restore.check_undo()}")
    return restore.previous_oid()


@contextlib.contextmanager
def only_one_but_the_resumer(state: Path) -> Iterator[None]:
    """The lock, also while a resumption is at work, which begins again afterwards."""
    resuming = lock.holder(state) == RESUMPTION
    if resuming:
        subprocess.run(["systemctl", "stop", RESUMER], check=False)
    try:
        with only_one(state, "a restore", patience=HANDOVER if resuming else 0.0):
            yield
    finally:
        if resuming:
            subprocess.run(["systemctl", "start", "--no-block", RESUMER], check=False)


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
