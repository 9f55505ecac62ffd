"""prefect-backup: make, list, verify and prune backups, and see whether one is overdue."""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from . import (
    adopt,
    backup,
    check,
    new_block_key,
    new_password,
    progress,
    repositories,
    restore_unit,
    settings,
    upkeep,
    verify,
)
from .errors import Code, Failure
from .last import read_last
from .progress import Report, duration, size
from .restic import Backup
from .settings import Settings

# Seconds that a timer's job waits while another one is at work; a person is told at once.
PATIENCE = 1800.0


class Interrupted(BaseException):
    """SIGTERM, SIGINT or SIGHUP: what is under way is undone on the way out."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(
        prog="prefect-backup",
        description="Make, list, verify and prune backups of this Prefect server.",
        epilog="To bring one back: prefect-restore",
    )
    # Only the unit itself says this.
    made.add_argument("--in-unit", action="store_true", help=argparse.SUPPRESS)
    verbs = made.add_subparsers(dest="verb", required=True, metavar="VERB")

    def verb(name: str, text: str) -> argparse.ArgumentParser:
        added = verbs.add_parser(name, help=text, description=text)
        added.add_argument("--json", action="store_true", help="the result as JSON on stdout")
        return added

    verb("init", "Make the repositories that are not there yet.")
    create = verb("create", "Make a backup, and copy it off-site.")
    create.add_argument("--kind", choices=backup.KINDS, default="manual", help="how it is kept (default: manual)")
    listed = verb("list", "Show the backups, newest first.")
    listed.add_argument(
        "--repository", metavar="NAME", help='a name, "off-site", or "all" (default: the one on this host)'
    )
    proof = verb("verify", "Bring a backup back into a throwaway Postgres, and hold it against its manifest.")
    proof.add_argument("--id", help="which one (default: the newest)")
    proof.add_argument(
        "--repository", metavar="NAME", help='a name, "off-site", or "all" (default: the one on this host)'
    )
    fetched = verb("fetch", "Copy to this host the backups of another repository, as for a new server.")
    fetched.add_argument("repository", metavar="NAME", help='its name, or "off-site"')
    verb("prune", "Forget what the policy does not keep, and free its data, here and off-site.")
    adopted = verb(
        "adopt", "Make a backup of a dump of another Prefect server's Postgres; prefect-restore --id brings it in."
    )
    adopted.add_argument("dump", metavar="DUMP", type=Path, help="of pg_dump, in custom or directory format")
    adopted.add_argument(
        "--key-file", metavar="FILE", type=Path, help="holds its PREFECT_SERVER_ENCRYPTION_KEY, if it had one"
    )
    overdue = verb("check", "Is a backup, a copy or a verification overdue, or something down?")
    overdue.add_argument("--offsite", action="store_true", help="also open each off-site repository")
    verb("password", "Give all repositories the password on stdin, and take the old one away from them.")
    key = verb(
        "encryption-key", "Encrypt the secrets in blocks with a new key, or finish that; the server stops for seconds."
    )
    key.add_argument("--finish", action="store_true", help="only finish a change that has begun")
    verb("clean", "Remove what a killed backup or verification has left.")
    for one in (create, proof, adopted):
        one.add_argument(
            "--wait",
            metavar="SECONDS",
            type=float,
            help=f"while something else is at work (default: 0 in a terminal, else {PATIENCE:.0f})",
        )
    return made


def patience(wanted: float | None, terminal: bool) -> float:
    """Seconds to wait for the lock."""
    if wanted is not None:
        return wanted
    return 0.0 if terminal else PATIENCE


def places(one: Backup, last: Mapping[str, Any]) -> list[str]:
    """Where a backup is: where it was listed, and the off-site repositories that had it at the last copy."""
    copies = last.get("offsite", {})
    return [
        one.repository,
        *(name for name in copies if one.id in copies[name].get("ids", []) and name != one.repository),
    ]


def table_of(backups: list[Backup], last: Mapping[str, Any], verified: Mapping[str, str], now: datetime) -> Table:
    """For a person."""
    table = Table(box=None, pad_edge=False)
    for title in ("id", "age", "size", "added", "kind", "Prefect", "Postgres", "where", "verified"):
        table.add_column(title, justify="right" if title in ("age", "size", "added") else "left", no_wrap=True)
    for one in backups:
        age = duration((now - one.time).total_seconds())
        where = ", ".join(places(one, last))
        versions = (one.prefect, one.postgres)
        table.add_row(
            one.id, age, size(one.size), size(one.added), one.kind, *versions, where, verified.get(one.id, "")
        )
    return table


def _list(options: argparse.Namespace, loaded: Settings, report: Report) -> dict[str, Any]:
    backups = repositories.backups(repositories.find(loaded, options.repository), report)
    last, verified = read_last(loaded), verify.verified(Path(loaded.state))
    if not options.json:
        # A table that is cut is of no use in a pipe.
        console = Console() if sys.stdout.isatty() else Console(width=200)
        console.print(table_of(backups, last, verified, datetime.now(UTC)))
    return {
        "backups": [
            {
                **{name: getattr(one, name) for name in ("id", "snapshot", "kind", "size", "added")},
                **{name: getattr(one, name) for name in ("prefect", "postgres", "revision", "kit")},
                "time": one.time.isoformat(),
                "where": places(one, last),
                "verified": verified.get(one.id),
            }
            for one in backups
        ]
    }


def _encryption_key(options: argparse.Namespace, loaded: Settings, report: Report) -> dict[str, Any] | int:
    """In a unit of its own: neither the end of a connection nor a death of ours leaves the server stopped."""
    if not options.in_unit:
        words = [f"--{name}" for name in ("json", "finish") if getattr(options, name)]
        return restore_unit.in_unit(
            [options.verb, *words], report, restore_unit.KEY_UNIT, "New key of the secrets in blocks"
        )
    result = new_block_key.change(loaded, report, options.finish)
    # That one of them has failed before is over.
    units = (restore_unit.KEY_UNITS, restore_unit.RESUMER)
    subprocess.run(["systemctl", "reset-failed", *units], capture_output=True, check=False)
    return result


def run(options: argparse.Namespace, report: Report) -> dict[str, Any] | int:
    """Do what was asked for; gives the result for --json, or the exit code of the unit that did it. Raises Failure."""
    if os.geteuid() != 0:
        raise Failure(Code.SETTINGS, "prefect-backup needs root", "sudo prefect-backup …")
    loaded = settings.load()
    if options.verb == "create":
        return backup.create(loaded, options.kind, report, patience(options.wait, sys.stdin.isatty()))
    if options.verb == "verify":
        wait = patience(options.wait, sys.stdin.isatty())
        return verify.verify(loaded, report, options.id, options.repository, wait)
    if options.verb == "adopt":
        wait = patience(options.wait, sys.stdin.isatty())
        return adopt.adopt(loaded, options.dump, report, options.key_file, wait)
    if options.verb == "list":
        return _list(options, loaded, report)
    if options.verb == "fetch":
        return upkeep.fetch(loaded, options.repository, report)
    if options.verb == "check":
        return check.check(loaded, report, options.offsite)
    if options.verb == "password":
        return new_password.change(loaded, sys.stdin.read().rstrip("\n"), report)
    if options.verb == "encryption-key":
        return _encryption_key(options, loaded, report)
    return {"init": upkeep.init, "prune": upkeep.prune, "clean": backup.clean}[options.verb](loaded, report)


def _interrupt(number: int, frame: object) -> None:
    # Once: what follows is the cleaning up, which must come to its end.
    for one in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(one, signal.SIG_IGN)
    raise Interrupted(number)


def main() -> int:
    """The command; gives the exit code."""
    options = parser().parse_args()
    report = Report(sys.stderr)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, _interrupt)
    try:
        result = run(options, report)
    except Failure as failure:
        report.say(str(failure), style="bold red")
        if options.json:
            facts = {"error": failure.fact, "hint": failure.hint, "code": failure.code.name, "exit": failure.code.value}
            progress.result(facts)
        return failure.code.value
    except Interrupted as interrupted:
        report.say(f"Stopped by {interrupted}: nothing half-made is left, earlier backups are whole.")
        return 128 + interrupted.number
    if isinstance(result, int):
        return result
    if options.json:
        progress.result(result)
    return 0
