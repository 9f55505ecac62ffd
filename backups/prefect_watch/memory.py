"""The state of prefect-watch between runs.

It is written to /run and to the disk: a full disk must be alerted to, too, and only once.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from prefect_backups.files import write_whole
from prefect_doctor.finding import Finding, Level

from . import flow_runs
from .alerts import Looked, Problem
from .flow_runs import Told

#: On tmpfs; emptied by a reboot.
RUN = Path("/run/prefect-watch/memory.json")


@dataclass
class Memory:
    """All of it. Moments in seconds since 1970."""

    at: float = 0.0
    problems: dict[str, Problem] = field(default_factory=dict)
    told: Told = field(default_factory=Told)
    #: What each group of checks found when it last ran, and when that was.
    looks: dict[str, Looked] = field(default_factory=dict)
    looked: dict[str, float] = field(default_factory=dict)
    #: Packages with pending security updates, of the last run of that check; None: none yet.
    updates: list[str] | None = None
    #: Whether there was anybody to tell at the last look (watch_notify_urls).
    people: bool = True


def load(places: Sequence[Path]) -> Memory:
    """The newest that can be read; an empty one where there is none, or only another version's."""
    found = [Memory()]
    for path in places:
        with contextlib.suppress(OSError, ValueError, TypeError, KeyError, AttributeError):
            found.append(_read(json.loads(path.read_text())))
    return max(found, key=lambda one: one.at)


def save(memory: Memory, places: Sequence[Path]) -> str:
    """Write it to all places; gives why it could be written to none of them, or nothing."""
    text = json.dumps(_shown(memory))
    errors = []
    for path in places:
        try:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            write_whole(path, text)
        except OSError as error:
            errors.append(f"{path}: {error.strerror}")
    return "; ".join(errors) if len(errors) == len(places) else ""


def _shown(memory: Memory) -> dict[str, Any]:
    return {
        "at": memory.at,
        "problems": {check: asdict(one) for check, one in memory.problems.items()},
        "told": flow_runs.as_json(memory.told),
        "looks": {group: asdict(one) for group, one in memory.looks.items()},
        "looked": memory.looked,
        "updates": memory.updates,
        "people": memory.people,
    }


def _read(value: dict[str, Any]) -> Memory:
    levels = ("level", "told_level")
    known: dict[str, dict[str, Any]] = value["problems"]
    problems = {}
    for check, one in known.items():
        one.update({name: Level(one[name]) for name in levels})
        problems[check] = Problem(**one)
    looks = {
        group: Looked([Finding(**{**one, "level": Level(one["level"])}) for one in look["findings"]], look["failed"])
        for group, look in value["looks"].items()
    }
    return Memory(
        float(value["at"]),
        problems,
        flow_runs.from_json(value["told"]),
        looks,
        dict(value["looked"]),
        value["updates"],
        bool(value.get("people", True)),
    )
