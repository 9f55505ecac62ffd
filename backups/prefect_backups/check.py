"""Is a backup, a copy off-site or a verification overdue, and does everything run that a person relies on?

Asked at the end of site.yml, and by whoever monitors this host; prefect-watch tells people of the same by the doctor's checks.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from . import units, verify
from .errors import Code, Failure
from .last import read_last
from .progress import Report, duration
from .restic import ADOPTED, Backup, Repository, moment
from .settings import Settings
from .unit_names import UNITS
from .units import Units


def own(backups: Sequence[Backup]) -> list[Backup]:
    """Those of this server."""
    return [one for one in backups if one.kind != ADOPTED]


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
        backups: what the local repository has of this server, newest first.
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
    age = now - (moment(newest) if newest else first.time.timestamp())
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


def host_findings(found: Units) -> list[str]:
    """What is wrong on this host beside the backups themselves. A pure decision."""
    said = []
    for name, unit in found.units.items():
        if unit.get("ActiveState") != "failed":
            continue
        if name == UNITS[0] and found.newest > float(unit.get("ended") or 0):
            continue
        how = f"result {unit.get('Result', '?')}, exit code {unit.get('ExecMainStatus', '?')}"
        said.append(f"{name} has failed ({how}): journalctl -u {name.removesuffix('.service')} -n 30")
    if found.unfinished:
        said.append(f"{found.unfinished} did not end: prefect-restore --resume, --undo, or --latest")
    if found.down:
        verb = "does" if len(found.down) == 1 else "do"
        said.append(f"{', '.join(found.down)} {verb} not run: systemctl start {' '.join(found.down)}")
    return said


def _hours(seconds: float) -> str:
    return f"{seconds / 3600:.1f} hours"


def overdue(settings: Settings) -> tuple[list[str], datetime | None]:
    """What is wrong with the backups, and when the newest was made, without a look at what is off-site. Raises Failure."""
    backups = own(Repository.local(settings).backups())
    found = findings(settings, time.time(), backups, read_last(settings), verify.read_verified(settings))
    return found, backups[0].time if backups else None


def check(settings: Settings, report: Report, offsite: bool = False) -> dict[str, Any]:
    """Check; gives the facts for --json. Raises Failure (OVERDUE) with all findings.

    Args:
        offsite: also open each off-site repository and look at what is there.
    """
    backups = own(Repository.local(settings).backups())
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
    found = unreachable + findings(settings, time.time(), backups, last, verified) + host_findings(units.look(settings))
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
