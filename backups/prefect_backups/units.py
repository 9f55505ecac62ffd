"""What systemd, and the journal of restores, say of the kit's own units on this host."""

from __future__ import annotations

import contextlib
import subprocess
from dataclasses import dataclass, field
from pathlib import Path

from . import block_key, lock
from .errors import Failure
from .journal import Journal
from .last import read_last
from .restic import moment
from .settings import Settings
from .stack import Stack
from .unit_names import UNITS

EXPORTER = "prefect-metrics-postgres.service"
#: Last lines of its journal, for whoever is told.
LINES = 15
#: Characters of one: the journal takes 48,000.
LINE = 300


@dataclass(frozen=True)
class Units:
    """What was found."""

    #: Of UNITS, by name: ActiveState, Result, ExecMainStatus as systemd says them, `ended` in seconds since 1970, `lines`.
    units: dict[str, dict[str, str]] = field(default_factory=dict)
    #: Workers that start at boot and do not run; and those that are being started or stopped.
    down: list[str] = field(default_factory=list)
    passing: list[str] = field(default_factory=list)
    workers: int = 0
    #: The restore, or the change of the key of the blocks, that did not end, in words; empty where there is none.
    unfinished: str = ""
    #: When the newest backup was made, in seconds since 1970.
    newest: float = 0.0


def look(settings: Settings) -> Units:
    """Asks no repository, and costs little. Raises Failure."""
    properties = "--property=Id,ActiveState,Result,ExecMainStatus,InactiveEnterTimestamp"
    said = _said("systemctl", "show", properties, "--timestamp=unix", *UNITS)
    blocks = [dict(line.split("=", 1) for line in block.splitlines() if "=" in line) for block in said.split("\n\n")]
    units = {block["Id"]: block for block in blocks if block.get("Id") in UNITS}
    for name, unit in units.items():
        unit["ended"] = unit.get("InactiveEnterTimestamp", "").removeprefix("@")
        if unit.get("ActiveState") == "failed":
            unit["lines"] = last_run(
                _said("journalctl", "--quiet", "--no-pager", "--output=cat", f"--lines={LINES}", f"--unit={name}")
            )
    state = Path(settings.state)
    unfinished = ""
    # One that is at work at this moment is none that did not end.
    if lock.holder(state) is None:
        try:
            journal = Journal.load(state)
            unfinished = journal.name if journal else ""
        except Failure as failure:
            unfinished = f"a restore ({failure.fact})"
        if not unfinished and block_key.next_path(settings).exists():
            # --resume finishes that, too.
            unfinished = "a change of the key of the blocks"
    stack = Stack(settings)
    identity = read_last(settings).get("id", "")
    newest = moment(identity) if identity else 0.0
    return Units(units, stack.down_workers(), stack.passing_workers(), len(stack.enabled_workers()), unfinished, newest)


def restart_exporter() -> None:
    """Have the exporter of Postgres' figures begin again, where there is one: its role is made at its start, in each new cluster."""
    with contextlib.suppress(OSError):
        subprocess.run(["systemctl", "try-restart", EXPORTER], capture_output=True, check=False)


def last_run(lines: str) -> str:
    """Of the journal of a unit what it has said since it was started last; all of it where that was longer ago."""
    told = [line[:LINE] for line in lines.splitlines()]
    starts = [number for number, line in enumerate(told) if line.startswith("Starting ")]
    return "\n".join(told[starts[-1] + 1 :] if starts else told)


def _said(*command: str) -> str:
    # A line of the journal has what its program wrote, in any encoding.
    return subprocess.run(command, capture_output=True, text=True, errors="replace", check=False).stdout
