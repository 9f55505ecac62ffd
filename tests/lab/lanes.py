"""The order of the lab's test files, and which of them run side by side.

Much of what the lab does is waiting, so `./scripts/test` runs two lanes at a time on two cores, each with a main VPS of
its own; a file belongs to the lane whose VPS it finds, and leaves, as the others need it. tests/unit/test_lanes.py
holds that every file is in one lane.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, replace

#: Which lane pytest runs, when not the first with all files one after the other.
VARIABLE = "PREFECT_LAB_LANE"
#: A word that keeps the VPSs of one checkout apart from those of another on the same machine.
SPACE = "PREFECT_LAB_SPACE"


@dataclass(frozen=True)
class Lane:
    """A main VPS by its name, its domain, and the files that use it, in this order."""

    vps: str
    domain: str
    files: tuple[str, ...]


LANES = (
    Lane(
        vps="tests",
        domain="prefect.lab.test",
        files=(
            "test_preflight",
            "test_provision",
            "test_host",
            "test_stack",
            "test_workers",
            "test_door",
            "test_clients",
            "test_browser",
            "test_flows",
            "test_releases",
            "test_docker_pool",
            "test_tls_modes",
            "test_worker_hosts",
        ),
    ),
    Lane(
        vps="tests-2",
        domain="prefect-2.lab.test",
        files=(
            "test_resilience",
            "test_worker_life",
            "test_backups",
            "test_backups_faults",
            "test_restore_refusals",
            "test_restore",
            "test_restore_deaths",
            # After the loss its VPS is of no use to anybody else.
            "test_total_loss",
            "test_demo",
        ),
    ),
)
ORDER = tuple(file for lane in LANES for file in lane.files)


def this_lane() -> Lane:
    """The lane that the environment names (1 or 2); the first, when it names none."""
    lane = LANES[int(os.environ.get(VARIABLE, "1")) - 1]
    space = os.environ.get(SPACE)
    return replace(lane, vps=f"{lane.vps}-{space}", domain=f"{space}-{lane.domain}") if space else lane
