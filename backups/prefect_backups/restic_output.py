"""What restic prints, made into facts: backups, progress, errors; and what it is told of retention. Pure."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from .progress import size
from .settings import Keep

# Kinds that the policy of hours, days, weeks and months is for; the others are kept for a while, and the last few.
SCHEDULED = "scheduled"
# Of another server: chosen only by its id, and no proof that this one is backed up.
ADOPTED = "adopted"
OTHER_KINDS = ("manual", "safety", "before-migration", "before-upgrade", ADOPTED)
KEEP_OTHERS = ("--keep-within=7d", "--keep-last=3")
ID_FORMAT = "%Y%m%dT%H%M%SZ"
ID_TAG = re.compile(r"id=\d{8}T\d{6}Z")
# restic has one exit code for a disk that is full, a line that is cut and a repository that is damaged. What it says
# decides only which of our codes a script sees; it is always quoted too.
FULL = re.compile(r"no space left|disk quota exceeded|file too large", re.IGNORECASE)
BROKEN = re.compile(
    r"ciphertext verification|invalid data returned|not found in (index|repository)|repository contains errors|"
    r"unexpected (pack|blob|content)|does not match|decompress|is damaged|pack .* (missing|not found)",
    re.IGNORECASE,
)
# What is left of a failed ssh when restic has ended before it could pass on what that said.
SSH_ENDED = re.compile(r"(server unexpectedly closed connection: unexpected EOF|file already closed)$")


@dataclass(frozen=True)
class Backup:
    """One backup, as the repository lists it."""

    # Ours, the same in every repository: the moment that it shows, such as 20261121T051200Z.
    id: str
    # restic's, another one in each repository.
    snapshot: str
    time: datetime
    kind: str
    # "local", or the name of the off-site repository.
    repository: str
    # Bytes that were read, and that this backup added to the repository; 0 when unknown.
    size: int
    added: int
    prefect: str
    postgres: str
    revision: str
    kit: str


def parse_snapshots(text: str, repository: str) -> list[Backup]:
    """Our backups in the JSON of `restic snapshots`, newest first; what does not carry an id is not ours."""
    found = []
    for snapshot in json.loads(text) or []:
        tags = dict(tag.split("=", 1) for tag in snapshot.get("tags") or [] if "=" in tag)
        if "id" not in tags:
            continue
        summary = snapshot.get("summary") or {}
        found.append(
            Backup(
                id=tags["id"],
                snapshot=snapshot["id"],
                time=_moment(tags["id"], snapshot["time"]),
                kind=tags.get("kind", "?"),
                repository=repository,
                size=summary.get("total_bytes_processed", 0),
                added=summary.get("data_added_packed", summary.get("data_added", 0)),
                prefect=tags.get("prefect", "?"),
                postgres=tags.get("postgres", "?"),
                revision=tags.get("revision", "?"),
                kit=tags.get("kit", "?"),
            )
        )
    return sorted(found, key=lambda backup: backup.id, reverse=True)


def moment(identity: str) -> float:
    """When a backup was made, from its id; in seconds since 1970. Raises ValueError for what is no id of ours."""
    return datetime.strptime(identity, ID_FORMAT).replace(tzinfo=UTC).timestamp()


def _moment(identity: str, fallback: str) -> datetime:
    try:
        return datetime.fromtimestamp(moment(identity), UTC)
    except ValueError:
        return datetime.fromisoformat(fallback)


def progress_of(line: str) -> tuple[float | None, str] | None:
    """How far restic is, from one line of its --json; None for a line that says something else."""
    try:
        message = json.loads(line)
    except ValueError:
        return None
    if not isinstance(message, dict) or message.get("message_type") != "status":
        return None
    done: Any = message.get("bytes_done", message.get("bytes_restored", 0))
    total = message.get("total_bytes", 0)
    return message.get("percent_done"), f"{size(done)} of {size(total)}" if total else ""


def last_words(text: str) -> str:
    """The end of restic's stderr, as plain text: its --json wraps errors."""
    words = []
    for line in text.strip().splitlines():
        try:
            message = json.loads(line)
        except ValueError:
            message = None
        if isinstance(message, dict):
            if message.get("message_type") == "status":
                continue
            error = message.get("error")
            line = message.get("message") or (error.get("message") if isinstance(error, dict) else error) or line
        words.append(" ".join(str(line).split()))
    return " / ".join(words[-4:])


def explained(words: str) -> str:
    """restic's last words, with what they mean where they are of no use to a person."""
    return f"{words} (ssh ended before there was a session)" if SSH_ENDED.search(words) else words


def hide_password(url: str) -> str:
    """An address without the password that it may hold: rest:https://user:secret@host/ and the like."""
    return re.sub(r"(://[^:/@]*):[^@/]*@", r"\1:…@", url)


def old_backups(text: str) -> list[str]:
    """Our snapshots in the JSON of `restic forget --dry-run` that it would remove.

    A person may keep snapshots of their own in the same repository, with tags like ours: only ours have an id.
    """
    groups = json.loads(text) or []
    removed = [snapshot for group in groups for snapshot in group.get("remove") or []]
    return [one["id"] for one in removed if any(ID_TAG.fullmatch(tag) for tag in one.get("tags") or [])]


def keep_options(keep: Keep) -> list[str]:
    """The retention policy as options of `restic forget`; the newest backup is always kept."""
    counts = {"hourly": keep.hourly, "daily": keep.daily, "weekly": keep.weekly, "monthly": keep.monthly}
    return ["--keep-last=1", *(f"--keep-{unit}={count}" for unit, count in counts.items() if count)]
