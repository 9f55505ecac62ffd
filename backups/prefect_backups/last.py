"""The last backup, as this host remembers it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .files import write_whole
from .lock import briefly
from .settings import Settings


def read_last(settings: Settings) -> dict[str, Any]:
    """What the last backup wrote down about itself, its copies and prunes; empty when there is nothing."""
    try:
        return json.loads((Path(settings.state) / "last.json").read_text())
    except (OSError, ValueError):
        return {}


def merged(known: Mapping[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """What is known, with new values in it; of what is itself a mapping, such as `pruned`, only the names that they hold."""
    result = dict(known)
    for name, value in values.items():
        nested = isinstance(value, Mapping) and isinstance(result.get(name), Mapping)
        result[name] = merged(result[name], value) if nested else value
    return result


def remember(settings: Settings, **values: Any) -> None:
    """Write down what is new. A copy off-site and a backup do so side by side, each without the other's lock."""
    state = Path(settings.state)
    with briefly(state):
        write_whole(state / "last.json", json.dumps(merged(read_last(settings), values), indent=2) + "\n")
