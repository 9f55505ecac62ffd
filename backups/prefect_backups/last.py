"""The last backup, as this host remembers it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from .files import write_whole
from .settings import Settings


def read_last(settings: Settings) -> dict[str, Any]:
    """What the last backup wrote down about itself, its copies and prunes; empty when there is nothing."""
    try:
        return json.loads((Path(settings.state) / "last.json").read_text())
    except (OSError, ValueError):
        return {}


def remember(settings: Settings, **values: Any) -> dict[str, Any]:
    """Write down more of it; gives the whole."""
    last = {**read_last(settings), **values}
    write_whole(Path(settings.state) / "last.json", json.dumps(last, indent=2) + "\n")
    return last
