"""The database of before the last restore, which is kept for a while so that the restore can be undone."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from .files import remove, write_whole
from .postgres import PREVIOUS, Postgres
from .settings import Settings


def _path(settings: Settings) -> Path:
    return Path(settings.state) / "previous.json"


def note(settings: Settings, backup: str) -> None:
    """Remember since when it is kept, and which backup took its place."""
    write_whole(_path(settings), json.dumps({"since": time.time(), "backup": backup}) + "\n")


def read(settings: Settings) -> dict[str, Any]:
    """What note() has written; empty when there is nothing."""
    try:
        return json.loads(_path(settings).read_text())
    except (OSError, ValueError):
        return {}


def expire(settings: Settings, postgres: Postgres) -> bool:
    """Drop it when its time is over; gives whether that was so. Raises Failure when Postgres does not answer."""
    since = read(settings).get("since")
    if since is None or time.time() - since < settings.keep_previous_days * 86400:
        return False
    postgres.drop(PREVIOUS)
    remove(_path(settings))
    return True
