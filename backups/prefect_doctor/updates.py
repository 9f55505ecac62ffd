"""Pending security updates, and whether apt looks for them. Expensive: apt-get reads all of its lists. Standard library only."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from prefect_backups.words import duration

from .asked import said
from .finding import Finding, Level, playbook

#: Days that they may wait for: unattended-upgrades installs them within a day.
DAYS = 3


@dataclass(frozen=True)
class Updates:
    """What apt says."""

    #: Packages with security updates that are not installed.
    packages: list[str] = field(default_factory=list)
    #: Seconds since the lists were fetched.
    lists: float = 0.0


def security_updates(text: str) -> list[str]:
    """Packages of `apt-get --simulate upgrade` that come from a security archive."""
    lines = [line.split() for line in text.splitlines() if line.startswith("Inst ") and "-Security" in line]
    return [words[1] for words in lines]


def look() -> Updates:
    """Takes 0.6 s of a processor."""
    try:
        lists = time.time() - Path("/var/lib/apt/lists/partial").stat().st_mtime
    except OSError:
        lists = 0.0
    return Updates(security_updates(said("apt-get", "--simulate", "--quiet", "upgrade")), lists)


def updates(found: Updates) -> Finding:
    """Those that wait; lists that nobody has fetched for days say nothing."""
    if found.lists > DAYS * 86400:
        return Finding(
            "security updates",
            Level.WARNING,
            f"last looked for {duration(found.lists)} ago",
            f"every {DAYS} days",
            "systemctl status apt-daily.timer apt-daily-upgrade.timer",
        )
    level = Level.WARNING if found.packages else Level.OK
    mend = f"they are installed within a day; now: {playbook('upgrade.yml --tags host')}" if level else ""
    return Finding("security updates", level, ", ".join(found.packages) or "none pending", "none", mend)


def findings(found: Updates) -> Sequence[Finding]:
    """All of them."""
    return [updates(found)]
