"""Is a backup, a copy off-site or a verification overdue? Asked every hour, so that silence means that all is well."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from . import backup, verify
from .errors import Code, Failure
from .progress import Report, duration
from .restic import ID_FORMAT, Backup, Repository
from .settings import Settings


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
        last: what the last backup wrote down, see backup.read_last.
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


def _hours(seconds: float) -> str:
    return f"{seconds / 3600:.1f} hours"


def _moment(identity: str) -> float:
    return datetime.strptime(identity, ID_FORMAT).replace(tzinfo=UTC).timestamp()


def check(settings: Settings, report: Report, offsite: bool = False) -> dict[str, Any]:
    """Check; gives the facts for --json. Raises Failure (OVERDUE) with all findings.

    Args:
        offsite: also open each off-site repository and look at what is there.
    """
    local = Repository.local(settings)
    local.open()
    backups = local.backups()
    last = backup.read_last(settings)
    unreachable = []
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
    found = unreachable + findings(settings, time.time(), backups, last, verified)
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
