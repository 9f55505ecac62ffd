"""Which backup is meant: pure decisions over a list of backups."""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

from .errors import Code, Failure
from .restic import ADOPTED, Backup


def parse_time(text: str, now: datetime) -> datetime:
    """A moment as a person writes it: 2026-11-21T04:30, "2026-11-21 04:30", 04:30 (today), or "2h"/"30m"/"3d" ago.

    Without a zone it is the host's own. Raises Failure (NOT_FOUND) for anything else.
    """
    ago = re.fullmatch(r"(\d+)\s*([mhd])", text.strip())
    if ago:
        return now - timedelta(minutes=int(ago[1]) * {"m": 1, "h": 60, "d": 1440}[ago[2]])
    if re.fullmatch(r"\d{1,2}:\d{2}", text.strip()):
        hour, minute = text.strip().split(":")
        try:
            return now.astimezone().replace(hour=int(hour), minute=int(minute), second=0, microsecond=0)
        except ValueError:
            pass
    try:
        return datetime.fromisoformat(text.strip()).astimezone(UTC)
    except ValueError:
        raise Failure(
            Code.NOT_FOUND,
            f'"{text}" is not a time',
            'write it as 2026-11-21T04:30, "2026-11-21 04:30+01:00", 04:30 (today), or 30m, 2h, 3d (ago)',
        ) from None


def merge(lists: Sequence[Sequence[Backup]]) -> list[Backup]:
    """The backups of several repositories, newest first, each once: from the first repository that has it."""
    found: dict[str, Backup] = {}
    for backups in lists:
        for backup in backups:
            found.setdefault(backup.id, backup)
    return sorted(found.values(), key=lambda backup: backup.id, reverse=True)


def pick(backups: Sequence[Backup], identity: str | None, before: datetime | None) -> Backup:
    """The newest one, the newest at or before a moment, or the one of an id (or its unmistakable beginning).

    Raises Failure (NOT_FOUND) that says what there is.
    """
    hint = "see what there is: prefect-restore --list"
    if not backups:
        raise Failure(Code.NOT_FOUND, "there is no backup", "another repository? prefect-restore --latest --from NAME")
    ordered = sorted(backups, key=lambda backup: backup.time, reverse=True)
    if identity is None:
        # One of another server is meant only where it is named.
        ordered = [backup for backup in ordered if backup.kind != ADOPTED]
    if not ordered:
        raise Failure(Code.NOT_FOUND, f"there are only adopted backups: {backups[0].id}", "prefect-restore --id ID")
    span = f"the oldest is {ordered[-1].id}, the newest {ordered[0].id}"
    if identity is not None:
        matching = [
            backup for backup in ordered if backup.id.startswith(identity) or backup.snapshot.startswith(identity)
        ]
        if len(matching) == 1:
            return matching[0]
        if not matching:
            raise Failure(Code.NOT_FOUND, f'there is no backup "{identity}"; {span}', hint)
        ids = ", ".join(backup.id for backup in matching[:5])
        raise Failure(Code.NOT_FOUND, f'"{identity}" is the beginning of {len(matching)} backups: {ids}', hint)
    if before is not None:
        for backup in ordered:
            if backup.time <= before:
                return backup
        raise Failure(
            Code.NOT_FOUND, f"there is no backup from before {before.astimezone():%Y-%m-%d %H:%M %Z}; {span}", hint
        )
    return ordered[0]


def newer(version: str, than: str) -> bool:
    """Whether a version such as "3.10.1" is newer than another; what is not a number counts as nothing."""

    def parts(text: str) -> list[int]:
        return [int(number) for number in re.findall(r"\d+", text)[:3]]

    return parts(version) > parts(than)
