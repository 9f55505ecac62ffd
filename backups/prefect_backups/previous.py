"""The database of before the last restore, which is kept for a while so that the restore can be undone."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from .files import remove, write_whole
from .journal import Journal
from .postgres import PREVIOUS, Postgres
from .settings import Settings


def _path(settings: Settings) -> Path:
    return Path(settings.state) / "previous.json"


def note(settings: Settings, backup: str, image: str = "") -> None:
    """Remember since when it is kept, which backup took its place, and the image that served it, if another one does now."""
    known = {"since": time.time(), "backup": backup, "marked": True} | ({"image": image} if image else {})
    write_whole(_path(settings), json.dumps(known) + "\n")


def read(settings: Settings) -> dict[str, Any]:
    """What note() has written; empty when there is nothing."""
    try:
        return json.loads(_path(settings).read_text())
    except (OSError, ValueError):
        return {}


def unmarked(settings: Settings) -> bool:
    """Whether it was made by a kit that did not mark its databases yet."""
    known = read(settings)
    return "since" in known and not known.get("marked")


def marked(settings: Settings) -> None:
    """It has its mark now."""
    if unmarked(settings):
        write_whole(_path(settings), json.dumps({**read(settings), "marked": True}) + "\n")


def forget(settings: Settings) -> None:
    """There is none any more."""
    remove(_path(settings))


def expire(settings: Settings, postgres: Postgres) -> bool:
    """Drop it when its time is over; gives whether that was so. Raises Failure when Postgres does not answer."""
    since = read(settings).get("since")
    if since is None or time.time() - since < settings.keep_previous_days * 86400:
        return False
    # An unfinished restore may still need it.
    if Journal.path(Path(settings.state)).exists():
        return False
    if unmarked(settings) and PREVIOUS in postgres.databases():
        postgres.adopt(PREVIOUS)
    postgres.drop(PREVIOUS)
    forget(settings)
    return True
