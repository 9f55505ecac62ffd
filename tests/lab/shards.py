"""The order of the lab's test files, and which of them run side by side.

Much of what the lab does is waiting, so `./scripts/test` runs several shards at a time. Each has a main VPS made from a
snapshot, on a network and with a hosts file of its own. The first shard's was made by the last release of the kit, and is
upgraded at its end; the others' have the Prefect that a new server gets. But for the tests of upgrades, a file may be in any
shard: where it stands balances the time that they take, and which Prefect it is run with. tests/unit/test_shards.py holds
that every file is in one shard.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass

from tests.lab.vps.images import EARLIER, NEWEST

#: Which shard pytest runs, when not the first.
VARIABLE = "PREFECT_LAB_SHARD"
#: A word that keeps the VPSs of one checkout apart from those of another on the same machine.
SPACE = "PREFECT_LAB_SPACE"
#: The share of the processors that VPSs get when all are busy, in units of Docker's --cpu-shares.
WEIGHT = "PREFECT_LAB_WEIGHT"
#: Docker's own.
EVEN = 1024


@dataclass(frozen=True)
class Shard:
    """Names of its main VPS and of its network, and the version of Prefect that site.yml has provisioned it with."""

    vps: str
    network: str
    prefect: str
    weight: int = EVEN


FILES = (
    # The first file makes a snapshot, while the other shards begin with what needs none.
    (
        "test_released",
        "test_host",
        "test_stack",
        "test_workers",
        "test_releases",
        "test_proxy",
        "test_access",
        "test_clients",
        "test_flows",
        "test_tls_modes",
        # From the earlier Prefect to the newest; its database keeps the newer schema.
        "test_upgrade",
        "test_upgrade_postgres",
    ),
    (
        "test_newcomer",
        "test_browser",
        "test_sso",
        "test_scripts",
        # It leaves flows held, which the next file wants and ends.
        "test_egress",
        "test_docker_pool",
        "test_restore_refusals",
        "test_restore",
        "test_restore_deaths",
        "test_migrate",
        # Its server is where it was, at the end.
        "test_move",
        # Passwords, keys and the authority are others afterwards.
        "test_rotation",
        # After the loss its VPS is of no use to anybody else.
        "test_total_loss",
    ),
    # Most of it is waiting, and most of the limits of time are here: two shards keep two cores busy, so a third one costs
    # less than its own time, if it comes first where all three want to work.
    (
        "test_preflight",
        "test_provision",
        "test_doctor",
        "test_watch",
        "test_monitoring",
        "test_worker_life",
        "test_worker_hosts",
        "test_resilience",
        "test_backups",
        "test_backups_faults",
        "test_demo",
    ),
)
ORDER = tuple(file for files in FILES for file in files)


def shard(number: int, space: str = "") -> Shard:
    """The shard of this number, from 1; with the word that sets a checkout apart."""
    more = f"-{space}" if space else ""
    return Shard(
        f"tests-{number}{more}",
        f"prefect-lab-{number}{more}",
        EARLIER if number == 1 else NEWEST,
        4 * EVEN if number == len(FILES) else EVEN,
    )


def split(words: Iterable[str]) -> dict[int, list[str]]:
    """What pytest is given in which shard: the files that the words name go to their own, all else to each of these.

    Args:
        words: files (tests/lab/test_x.py, with ::test_some or without) and options; without a file all files are meant.
    """
    named: dict[int, list[str]] = {}
    options: list[str] = []
    for word in words:
        stem = word.split("::")[0].rpartition("/")[2].removesuffix(".py")
        number = next(
            (number for number, files in enumerate(FILES, 1) if word.startswith("tests/") and stem in files), 0
        )
        (named.setdefault(number, []) if number else options).append(word)
    if not named:
        named = {number: [f"tests/lab/{file}.py" for file in files] for number, files in enumerate(FILES, 1)}
    return {number: [*files, *options] for number, files in sorted(named.items())}


def this_shard() -> Shard:
    """The shard that the environment names; the first, when it names none."""
    return shard(int(os.environ.get(VARIABLE, "1")), os.environ.get(SPACE, ""))
