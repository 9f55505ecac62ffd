"""Is a backup, a copy off-site or a verification overdue, and does everything run that a person relies on?

Asked every hour, so that silence means that all is well.
"""

from __future__ import annotations

import subprocess
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from . import lock, outbox, verify
from .errors import Code, Failure
from .journal import Journal
from .last import read_last
from .outbox import Message
from .progress import Report, duration
from .restic import ID_FORMAT, Backup, Repository
from .settings import Settings
from .stack import Stack


def findings(
    settings: Settings,
    now: float,
    backups: Sequence[Backup],
    last: Mapping[str, Any],
    verified: Mapping[str, Any],
) -> list[str]:
    """What is wrong, in plain language; empty when all is well. A pure decision.

    Args:
        now: seconds since 1970.
        backups: what the local repository has, newest first.
        last: what the last backup wrote down, see last.read_last.
        verified: what verifications wrote down, see verify.read_verified.
    """
    if not backups:
        return ["there is no backup: prefect-backup create"]
    found = []
    limit = settings.max_age_hours * 3600
    age = now - backups[0].time.timestamp()
    if age > limit:
        found.append(
            f"the newest backup, {backups[0].id}, is {_hours(age)} old; {_hours(limit)} are allowed"
            " (backups_max_age_hours): journalctl -u prefect-backup -n 30"
        )
    copies = last.get("offsite", {})
    for one in settings.offsite:
        found += _copy_findings(one.name, copies.get(one.name, {}), limit, now, backups[-1])
    return found + _verification_findings(settings, now, backups[-1], verified)


def _copy_findings(name: str, copy: Mapping[str, Any], limit: float, now: float, first: Backup) -> list[str]:
    """What is wrong with the copies in one off-site repository."""
    error = f"; the last attempt: {copy['error']}" if copy.get("error") else ""
    newest = max(copy.get("ids", []), default=None)
    # Before the first copy there is at least the time since the first backup.
    age = now - (_moment(newest) if newest else first.time.timestamp())
    if age <= limit:
        return []
    what = f"the newest copy in {name}, {newest}, is {_hours(age)} old" if newest else f"there is no copy in {name}"
    return [f"{what}; {_hours(limit)} are allowed (backups_max_age_hours){error}"]


def _verification_findings(settings: Settings, now: float, first: Backup, verified: Mapping[str, Any]) -> list[str]:
    """What is wrong with the verifications."""
    found = []
    limit = settings.verify_max_age_days * 86400
    good, last = verified.get("good"), verified.get("last")
    since = datetime.fromisoformat(good["at"]).timestamp() if good else first.time.timestamp()
    if now - since > limit:
        what = f"the last good verification was {duration(now - since)} ago" if good else "no backup was ever verified"
        found.append(
            f"{what}; {duration(limit)} are allowed (backups_verify_max_age_days): systemctl start prefect-backup-verify"
        )
    if last and not last["ok"]:
        found.append(
            f"the last verification, of {last['backup']}, failed: {last.get('error', 'it was cut off')};"
            " when that is solved: systemctl start prefect-backup-verify"
        )
    return found


# Units whose failure a person has to know of; systemd keeps it until they are started again.
UNITS = (
    "prefect-backup.service",
    "prefect-backup-verify.service",
    "prefect-restore.service",
    "prefect-upgrade.service",
)


def host_findings(
    units: Sequence[Mapping[str, str]], down: Sequence[str], unfinished: str, waiting: Sequence[Message], newest: float
) -> list[str]:
    """What is wrong on this host beside the backups themselves. A pure decision.

    Args:
        units: what systemd says of UNITS: Id, ActiveState, Result, ExecMainStatus, and `ended`, seconds since 1970.
        down: workers that start at boot and do not run.
        unfinished: the restore that did not end, in words; empty when there is none.
        waiting: messages to people that could not be delivered.
        newest: when the newest backup was made, in seconds since 1970: a failure before it is over.
    """
    found = []
    for unit in units:
        if unit.get("ActiveState") != "failed":
            continue
        if unit["Id"] == UNITS[0] and newest > float(unit.get("ended") or 0):
            continue
        how = f"result {unit.get('Result', '?')}, exit code {unit.get('ExecMainStatus', '?')}"
        found.append(f"{unit['Id']} has failed ({how}): journalctl -u {unit['Id'].removesuffix('.service')} -n 30")
    if unfinished:
        found.append(f"{unfinished} did not end: prefect-restore --resume, --undo, or --latest")
    if down:
        verb = "does" if len(down) == 1 else "do"
        found.append(f"{', '.join(down)} {verb} not run: systemctl start {' '.join(down)}")
    if waiting:
        since = datetime.fromtimestamp(waiting[0].made, UTC).strftime("%Y-%m-%d %H:%M UTC")
        found.append(
            f"people cannot be reached: messages that wait: {len(waiting)}, since {since}; the last attempt: {waiting[-1].error};"
            " see backups_notify_urls"
        )
    return found


def _look_at_host(settings: Settings, newest: float) -> list[str]:
    """What systemd, the journal of restores and the outbox say. Raises Failure (NOT_READY)."""
    properties = "--property=Id,ActiveState,Result,ExecMainStatus,InactiveEnterTimestamp"
    said = subprocess.run(
        ["systemctl", "show", properties, "--timestamp=unix", *UNITS], capture_output=True, text=True, check=False
    ).stdout
    units = [dict(line.split("=", 1) for line in block.splitlines() if "=" in line) for block in said.split("\n\n")]
    for unit in units:
        unit["ended"] = unit.get("InactiveEnterTimestamp", "").removeprefix("@")
    state = Path(settings.state)
    unfinished = ""
    # One that is at work at this moment is none that did not end.
    if lock.holder(state) is None:
        try:
            journal = Journal.load(state)
            unfinished = journal.name if journal else ""
        except Failure as failure:
            unfinished = f"a restore ({failure.fact})"
    waiting = [message for _, message in outbox.waiting(state)] if settings.notify_urls else []
    known = [unit for unit in units if unit.get("Id") in UNITS]
    return host_findings(known, Stack(settings).down_workers(), unfinished, waiting, newest)


def _hours(seconds: float) -> str:
    return f"{seconds / 3600:.1f} hours"


def _moment(identity: str) -> float:
    return datetime.strptime(identity, ID_FORMAT).replace(tzinfo=UTC).timestamp()


def _problems(
    settings: Settings, backups: Sequence[Backup], last: Mapping[str, Any], verified: Mapping[str, Any]
) -> list[str]:
    found = findings(settings, time.time(), backups, last, verified)
    return found + _look_at_host(settings, backups[0].time.timestamp() if backups else 0.0)


def everything(settings: Settings) -> tuple[list[str], datetime | None]:
    """All that is wrong, and when the newest backup was made, without a look at what is off-site. Raises Failure."""
    backups = Repository.local(settings).backups()
    found = _problems(settings, backups, read_last(settings), verify.read_verified(settings))
    return found, backups[0].time if backups else None


def check(settings: Settings, report: Report, offsite: bool = False) -> dict[str, Any]:
    """Check; gives the facts for --json. Raises Failure (OVERDUE) with all findings.

    Args:
        offsite: also open each off-site repository and look at what is there.
    """
    backups = Repository.local(settings).backups()
    last = read_last(settings)
    unreachable: list[str] = []
    if offsite:
        last = {**last, "offsite": dict(last.get("offsite", {}))}
        for repository in Repository.offsite(settings):
            try:
                repository.open()
                ids = [one.id for one in repository.backups()]
                last["offsite"][repository.name] = {**last["offsite"].get(repository.name, {}), "ids": ids}
            except Failure as failure:
                unreachable.append(failure.fact)
    verified = verify.read_verified(settings)
    found = unreachable + _problems(settings, backups, last, verified)
    if found:
        raise Failure(Code.OVERDUE, "; ".join(found), "see: prefect-backup list")
    good = verified.get("good") or {}
    report.say(f"well: {len(backups)} backups, the newest {backups[0].id}, last verified {good.get('at', 'never yet')}")
    return {
        "backups": len(backups),
        "newest": backups[0].id,
        "offsite": {
            one.name: max(last.get("offsite", {}).get(one.name, {}).get("ids", []), default=None)
            for one in settings.offsite
        },
        "verified": good.get("at"),
        "restore_seconds": good.get("restore_seconds"),
    }
