"""The checks of a host that only runs workers, and has none of the tools: standard library only.

./scripts/doctor sends this package there, with what it needs, as one file for the host's own python3. On a server it runs
prefect-doctor instead.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from . import clocks, drift, egress, machine, updates
from .asked import said
from .finding import Finding, Level, playbook, worst, worst_first

#: Of a server.
DOCTOR = Path("/usr/local/sbin/prefect-doctor")
# Where systemd keeps what was enabled.
UNITS = Path("/etc/systemd/system")
PATTERN = "prefect-worker@*.service"


def states(text: str) -> dict[str, str]:
    """The state of each unit of `systemctl list-units --output=json`; empty where that gave none."""
    try:
        return {unit["unit"]: unit["active"] for unit in json.loads(text or "[]")}
    except (ValueError, KeyError, TypeError):
        return {}


def workers(enabled: Sequence[str], active: Mapping[str, str]) -> Finding:
    """Whether the workers run that start at boot.

    Args:
        enabled: their units.
        active: the state of each unit that systemd knows.
    """
    check, limit = "workers on this host", "all that start at boot run"
    if not enabled:
        return Finding(check, Level.WARNING, "none starts at boot", limit, playbook("site.yml --tags workers"))
    down = [unit for unit in enabled if active.get(unit, "inactive") in ("inactive", "failed")]
    if down:
        verb = "does" if len(down) == 1 else "do"
        return Finding(
            check, Level.BAD, f"{', '.join(down)} {verb} not run", limit, f"systemctl start {' '.join(down)}"
        )
    return Finding(check, Level.OK, f"{len(enabled)} run", limit)


def here() -> Finding:
    """Those of this host."""
    enabled = sorted({link.name for link in UNITS.glob(f"*.wants/{PATTERN}")})
    return workers(enabled, states(said("systemctl", "list-units", "--all", "--plain", "--output=json", PATTERN)))


def tried(name: str, group: Callable[[], Sequence[Finding]]) -> Sequence[Finding]:
    """The findings of a group of checks, or that it failed."""
    try:
        return group()
    except OSError as error:
        return [Finding(name, Level.UNKNOWN, str(error), "", "uptime; df -h")]


def look() -> list[Finding]:
    """All of them, worst first."""
    groups: dict[str, Callable[[], Sequence[Finding]]] = {
        "workers on this host": lambda: [here()],
        "machine": lambda: machine.findings(machine.look(None)),
        "clock": clocks.look,
        "egress": lambda: egress.findings(egress.look()),
        "drift": lambda: drift.findings(drift.look()),
        "security updates": lambda: updates.findings(updates.look()),
    }
    return worst_first(finding for name, group in groups.items() for finding in tried(name, group))


def main() -> int:
    """Print what was found, as `prefect-doctor --json` does; gives the exit code."""
    if DOCTOR.exists():
        os.execv(DOCTOR, [str(DOCTOR), "--json"])
    began = time.monotonic()
    found = look()
    facts = [{**asdict(one), "level": one.level.name} for one in found]
    level = worst(found)
    print(json.dumps({"worst": level.name, "seconds": round(time.monotonic() - began, 2), "findings": facts}))
    return level


if __name__ == "__main__":
    sys.exit(main())
