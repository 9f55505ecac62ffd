"""The files that the playbook has placed on this host, and which of them are others now.

Its module `prefect_files` keeps their SHA-256 in a file. Standard library only: a host that only runs workers is looked
at by it, too.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from .files import write_whole

RECORD = Path("/var/lib/prefect/placed.json")


def _hash(path: Path) -> str:
    """Of a file that can be read; else empty."""
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError:
        return ""


def read(record: Path = RECORD) -> dict[str, str]:
    """The SHA-256 of each file by its path; empty where no playbook has kept any, or not whole."""
    try:
        known = json.loads(record.read_text())
    except (OSError, ValueError):
        return {}
    return known if isinstance(known, dict) else {}


def changed(known: dict[str, str]) -> list[str]:
    """The paths of files that are not as they were placed, or are gone."""
    return sorted(path for path, wanted in known.items() if _hash(Path(path)) != wanted)


def note(path: Path, record: Path = RECORD) -> None:
    """Keep what a file is now: a tool of the kit has changed it. One that no playbook has placed is left out."""
    known = read(record)
    if str(path) not in known:
        return
    known[str(path)] = _hash(path)
    write_whole(record, json.dumps(known, indent=1, sort_keys=True) + "\n")
