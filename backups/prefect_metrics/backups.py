"""Backups, verifications and upgrades, from what the tools have written down: no repository is opened."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from prefect_backups.last import read_last
from prefect_backups.restic import ID_FORMAT
from prefect_backups.settings import Settings
from prefect_backups.verify import read_verified
from prefect_upgrades.record import Cluster, ClusterJournal, Journal, Upgraded

from .exposition import Sample, sample


def _moment(identity: str) -> float:
    """When the backup of an id was made. Raises ValueError."""
    return datetime.strptime(identity, ID_FORMAT).replace(tzinfo=UTC).timestamp()


def of_backups(settings: Settings, last: Mapping[str, Any]) -> Iterator[Sample]:
    """Of the last backup and its copies.

    Args:
        last: what the last backup wrote down, see last.read_last.
    """
    yield sample("backup_max_age_seconds", settings.max_age_hours * 3600)
    if "id" in last:
        yield sample("backup_last_timestamp_seconds", _moment(last["id"]))
    for name, known in (
        ("backup_duration_seconds", "seconds"),
        ("backup_rows", "rows"),
        ("backup_dump_size_bytes", "dump_bytes"),
        ("backup_added_size_bytes", "added_bytes"),
    ):
        if known in last:
            yield sample(name, last[known])
    copies = last.get("offsite", {})
    for one in settings.offsite:
        copy = copies.get(one.name, {})
        if newest := max(copy.get("ids", []), default=None):
            yield sample("offsite_copy_last_timestamp_seconds", _moment(newest), repository=one.name)
        yield sample("offsite_copy_failed", bool(copy.get("error")), repository=one.name)


def of_verifications(settings: Settings, verified: Mapping[str, Any]) -> Iterator[Sample]:
    """Of the last verification, and the last good one.

    Args:
        verified: what verifications wrote down, see verify.read_verified.
    """
    yield sample("verification_max_age_seconds", settings.verify_max_age_days * 86400)
    if good := verified.get("good"):
        at = datetime.fromisoformat(good["at"]).timestamp()
        yield sample("verification_last_success_timestamp_seconds", at)
        if "restore_seconds" in good:
            yield sample("restore_duration_seconds", good["restore_seconds"])
    if last := verified.get("last"):
        yield sample("verification_failed", not last["ok"])


def of_upgrades(state: Path) -> Iterator[Sample]:
    """Of the last upgrades, and of one that is under way. Raises Failure where a file cannot be read."""
    if upgraded := Upgraded.load(state):
        yield sample("upgrade_last_timestamp_seconds", upgraded.at)
    if cluster := Cluster.load(state):
        yield sample("postgres_upgrade_last_timestamp_seconds", cluster.at)
    under_way = Journal.load(state) is not None or ClusterJournal.load(state) is not None
    yield sample("upgrade_under_way", under_way)


def samples(settings: Settings) -> list[Sample]:
    """All of them. Raises Failure, ValueError."""
    return [
        *of_backups(settings, read_last(settings)),
        *of_verifications(settings, read_verified(settings)),
        *of_upgrades(Path(settings.state)),
    ]
