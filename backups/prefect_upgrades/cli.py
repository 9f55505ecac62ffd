"""prefect-upgrade: another version of Prefect on this host, and back. `upgrade.yml` calls it; a person may, too.

The work runs as a unit of systemd (prefect-upgrade-run-NUMBER), so that a lost ssh connection does not end it, and so that
its death at any point starts prefect-upgrade.service, which takes it back or finishes it.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from typing import Any

from prefect_backups import progress, settings
from prefect_backups.errors import Code, Failure
from prefect_backups.host import Host
from prefect_backups.progress import Report
from prefect_backups.restore_unit import in_unit
from prefect_backups.stopping import Interrupted

from .cluster import PostgresUpgrade
from .upgrade import Upgrade, words

UNIT = f"prefect-upgrade-run-{os.getpid()}.service"
UNITS = "prefect-upgrade-run-*.service"
RESUMER = "prefect-upgrade.service"


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(
        prog="prefect-upgrade",
        description="Upgrade the Prefect server of this host, and go back. From the control machine: upgrade.yml.",
    )
    verbs = made.add_mutually_exclusive_group(required=True)
    verbs.add_argument(
        "--rehearse", metavar="IMAGE", help="migrate a copy beside the live data, and ask both servers on it"
    )
    verbs.add_argument("--to", metavar="IMAGE", help="upgrade; it must have been rehearsed")
    verbs.add_argument("--back", action="store_true", help="back to the version of before the last upgrade")
    verbs.add_argument("--resume", action="store_true", help="finish, or take back, an upgrade that was cut off")
    verbs.add_argument(
        "--rehearse-postgres", metavar="IMAGE", help="bring the newest backup back in another major version of Postgres"
    )
    verbs.add_argument("--postgres", metavar="IMAGE", help="upgrade Postgres; it must have been rehearsed")
    verbs.add_argument(
        "--postgres-back", action="store_true", help="back to the cluster of before the last upgrade of Postgres"
    )
    verbs.add_argument(
        "--drop-previous-postgres", action="store_true", help="remove that cluster; then there is no way back"
    )
    made.add_argument(
        "--from-backup",
        action="store_true",
        help="with --back: by the backup from before, where the schema does not go back",
    )
    made.add_argument(
        "--lose-newer", action="store_true", help="with --postgres-back, or --from-backup: lose what was written since"
    )
    made.add_argument("--json", action="store_true", help="print what was done as JSON")
    made.add_argument("--in-unit", action="store_true", help=argparse.SUPPRESS)
    return made


def work(options: argparse.Namespace, report: Report) -> dict[str, Any]:
    """What is done in the unit. Raises Failure."""
    host = Host.here(settings.load(), report)
    upgrade, postgres = Upgrade(host), PostgresUpgrade(host)
    if options.rehearse_postgres:
        return postgres.rehearse(options.rehearse_postgres)
    if options.postgres:
        return postgres.run(options.postgres)
    if options.postgres_back:
        return postgres.back(options.lose_newer)
    if options.drop_previous_postgres:
        return postgres.drop_previous()
    if options.rehearse:
        found = upgrade.rehearse(options.rehearse)
        words(found, report)
        return found
    if options.to:
        return upgrade.run(options.to)
    if options.back:
        return upgrade.back()
    done = postgres.resume() or upgrade.resume()
    if done is None:
        report.say("There is nothing to resume.")
    subprocess.run(["systemctl", "reset-failed", UNITS, RESUMER], capture_output=True, check=False)
    return done or {"resumed": "nothing"}


def by_backup(lose_newer: bool, report: Report) -> int:
    """The way back by a restore, which has a unit, a journal and a resumption of its own; gives the exit code. Raises Failure."""
    upgrade = Upgrade(Host.here(settings.load(), report))
    status = subprocess.run(upgrade.back_by_backup(lose_newer), check=False).returncode
    if status == 0:
        upgrade.forget_last()
    return status


def main() -> int:
    """The command; gives the exit code."""
    arguments = sys.argv[1:]
    options = parser().parse_args(arguments)
    report = Report(sys.stderr, log="prefect-upgrade" if options.in_unit else "")
    try:
        if os.geteuid() != 0:
            raise Failure(Code.SETTINGS, "prefect-upgrade needs root", "sudo prefect-upgrade …")
        if options.back and options.from_backup:
            return by_backup(options.lose_newer, report)
        if not (options.in_unit or options.resume):
            return in_unit(arguments, report, UNIT, "Upgrade of Prefect", RESUMER)
        result = work(options, report)
    except Failure as failure:
        report.say(str(failure), style="bold red")
        if options.json:
            progress.result(
                {"error": failure.fact, "hint": failure.hint, "code": failure.code.name, "exit": failure.code.value}
            )
        return failure.code.value
    except Interrupted as interrupted:
        report.say(f"Stopped by {interrupted}: everything is as it was.")
        return 130
    if options.json:
        progress.result(result)
    return 0
