"""`scripts/bench upgrade`: the downtime of an upgrade by the kit, beside that of docker compose by itself.

Prefect's guide to compose (https://docs.prefect.io/v3/how-to-guides/self-hosted/docker-compose) has a server that migrates
the database when it starts, and `docker compose down` and `up`. Both are done to what that guide has, server and Postgres,
and then `up` alone, which is quicker. The guide has no proxy: the kit's stays, and one client asks through it all the time.
While no server can be reached, the proxy holds a request for 5 s before it fails (caddy/Caddyfile, lb_try_duration): fewer
fail than would without it.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

import httpx
from _bench import console, new_table, result, step, timed

from tests.lab import restores, seed
from tests.lab.asking import SECONDS_UNNOTICED, Asking, Downtime, serves
from tests.lab.vps import images
from tests.lab.vps.endpoint import Endpoint
from tests.lab.vps.shell import LabError
from tests.lab.vps.vps import Vps

# The goal: a share of the downtime of the quickest way without the kit.
MOST_OF_PLAIN = 1 / 3
HERE, LATER = images.EARLIER, images.NEWEST
LATER_IMAGE = images.prefect_image(LATER)
# Rows of a short run.
FEW_ROWS = 2000
# Migrations of a large database take as long as they take.
SECONDS_AT_MOST = 3600
# The client asks for so long before and after: what fails late is seen, too.
SECONDS_AROUND = 5
FAILURES_SHOWN = 3
OWN_VPS = "the bench makes a VPS of its own: ./scripts/bench upgrade"

TO, BACK = "prefect-upgrade --to", "prefect-upgrade --back"
# What is typed without the kit, after the new image was pulled; `up` starts Postgres first.
PLAIN = {
    "docker compose down, up": ("rm --stop --force server postgres", "up --detach server"),
    "docker compose up": ("up --detach server",),
}
COMPOSE = "docker compose --env-file /etc/prefect/stack.env --file /opt/prefect/compose/compose.yml"
OVERRIDE = "/root/bench-compose.yml"
ARCHIVE = "/root/bench-images.archive"


class Way(NamedTuple):
    """One way from a version to another: the seconds of all of it, and what the client has seen."""

    seconds: float
    seen: Downtime


@dataclass
class Figures:
    """What was measured."""

    rows: int = 0
    database: int = 0
    #: The rehearsal, for which nobody waits, and what each step of it and of the upgrade took.
    rehearsal: float = 0.0
    rehearsal_steps: dict[str, float] = field(default_factory=dict)
    upgrade_steps: dict[str, float] = field(default_factory=dict)
    ways: dict[str, Way] = field(default_factory=dict)


class Goal(NamedTuple):
    """A goal, what was measured, and whether that meets it."""

    text: str
    goal: str
    measured: str
    met: bool


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--rows", type=int, default=100_000, metavar="N", help="rows of the database (default: 100,000)"
    )


# --- decisions ----------------------------------------------------------------------------------------------------


def override() -> dict[str, Any]:
    """What compose reads after compose.yml for the ways without the kit: the guide's server, and nothing that watches it."""
    server = {
        "image": LATER_IMAGE,
        "command": ["prefect", "server", "start"],
        "environment": {"PREFECT_SERVER_DATABASE_MIGRATE_ON_START": "true"},
        # It reads what the kit's own start program writes.
        "healthcheck": {"test": ["NONE"]},
    }
    return {"services": {"server": server}}


def goals(kit: Downtime, plain: Sequence[Downtime]) -> list[Goal]:
    """The goals: held against the least that any way without the kit has cost."""
    made = []
    for text, ours, theirs in (
        ("longest time without an answer", kit.longest, min(one.longest for one in plain)),
        ("all times without an answer", kit.total, min(one.total for one in plain)),
    ):
        share = f"{ours / theirs:.2f} x" if theirs else f"{ours:.1f} s, and 0 s without the kit"
        made.append(Goal(text, f"<= {MOST_OF_PLAIN:.2f} x", share, ours <= MOST_OF_PLAIN * theirs))
    return [*made, Goal("failed requests", "none", str(kit.failed), kit.failed == 0)]


# --- each way -----------------------------------------------------------------------------------------------------


def load(vps: Vps) -> None:
    """Have the later image on the VPS: no way has to wait for it."""
    if vps.ssh(f"docker image inspect {LATER_IMAGE}", check=False).returncode == 0:
        return
    archive = images.ensure_images(LATER).archive
    if archive is None:
        vps.ssh(f"docker pull --quiet {LATER_IMAGE}", timeout=SECONDS_AT_MOST)
        return
    vps.copy(archive, ARCHIVE)
    vps.ssh(f"docker load --quiet --input {ARCHIVE} && rm {ARCHIVE}", timeout=SECONDS_AT_MOST)


def fill(vps: Vps, rows: int) -> int:
    """Bring the database to so many rows; gives its bytes. One that was kept may have them already."""
    if (missing := rows - sum(seed.counts(vps).values())) > 0:
        seed.seed(vps, missing)
    # Now, and not by chance in the middle of one of the ways.
    seed.psql(vps, "VACUUM ANALYZE")
    return int(seed.psql(vps, "SELECT pg_database_size('prefect')"))


def revision(vps: Vps) -> str:
    """The revision of the database's schema."""
    return seed.psql(vps, "SELECT version_num FROM alembic_version")


def answers(endpoint: Endpoint) -> str:
    """The version of Prefect that answers, or why none does."""
    try:
        return serves(endpoint)
    except httpx.HTTPError as error:
        return repr(error)


def seen(vps: Vps, endpoint: Endpoint, work: Callable[[], object]) -> Way:
    """Do something while a client asks."""
    seed.psql(vps, "CHECKPOINT")
    with Asking(endpoint) as asking:
        time.sleep(SECONDS_AROUND)
        seconds = timed(work)
        time.sleep(SECONDS_AROUND)
    for words in asking.failed[:FAILURES_SHOWN]:
        # The rest of a line is an address that explains the status.
        console.print(f"  failed: {words[:90]}", markup=False)
    return Way(seconds, asking.downtime)


def upgrade_plainly(vps: Vps, endpoint: Endpoint, commands: Sequence[str]) -> None:
    """By docker compose alone, until the later Prefect answers."""
    for words in commands:
        vps.ssh(f"{COMPOSE} --file {OVERRIDE} {words}", timeout=SECONDS_AT_MOST)
    restores.until(
        f"Prefect {LATER} to answer",
        lambda: "" if (now := answers(endpoint)) == LATER else now,
        limit=SECONDS_AT_MOST,
    )


def take_back(vps: Vps, to: str) -> None:
    """The earlier Prefect on the schema of before, so that the next way has the same to do."""
    vps.ssh(f"{COMPOSE} rm --stop --force server")
    if revision(vps) != to:
        # Only the later image knows the migrations that go.
        command = f"migrate prefect server database downgrade -y -r {to}"
        vps.ssh(f"PREFECT_IMAGE={LATER_IMAGE} {COMPOSE} run --rm --no-TTY --no-deps {command}", timeout=SECONDS_AT_MOST)
    vps.ssh(f"{COMPOSE} up --detach --wait server", timeout=SECONDS_AT_MOST)


# --- the run ------------------------------------------------------------------------------------------------------


def measure(vps: Vps, endpoint: Endpoint, rows: int) -> Figures:
    """All of it, in the order in which it happens; at the end the VPS is as it was, with more rows.

    The kit comes first, and finds the least in memory.
    """
    if (here := answers(endpoint)) != HERE:
        raise LabError(
            f'the VPS "{vps.name}" runs Prefect "{here}", and the bench goes from {HERE} to {LATER}',
            OWN_VPS,
        )
    figures = Figures(rows=rows)
    with restores.no_timers(vps):
        with step(f"the image of Prefect {LATER}"):
            load(vps)
        with step(f"{rows:,} rows, and a backup of them"):
            figures.database = fill(vps, rows)
            result(vps, "prefect-backup create --json")

        with step(f"prefect-upgrade --rehearse {LATER_IMAGE}"):
            rehearsed: dict[str, Any] = {}
            figures.rehearsal = timed(
                lambda: rehearsed.update(result(vps, f"prefect-upgrade --rehearse {LATER_IMAGE} --json"))
            )
        figures.rehearsal_steps = rehearsed["seconds"]
        before = rehearsed["revision_before"]
        if before == rehearsed["revision_after"]:
            raise LabError(
                f'the database of the VPS "{vps.name}" has the schema of {LATER} already: "{before}"',
                OWN_VPS,
            )
        with step(f"{TO} {LATER_IMAGE}"):
            upgraded: dict[str, Any] = {}
            figures.ways[TO] = seen(vps, endpoint, lambda: upgraded.update(result(vps, f"{TO} {LATER_IMAGE} --json")))
        figures.upgrade_steps = upgraded["seconds"]
        with step(BACK):
            figures.ways[BACK] = seen(vps, endpoint, lambda: result(vps, f"{BACK} --json"))

        vps.ssh(f"cat > {OVERRIDE}", text=json.dumps(override()))
        for name, commands in PLAIN.items():
            with step(f"Prefect {HERE} and its schema again"):
                take_back(vps, before)
            with step(name):
                figures.ways[name] = seen(vps, endpoint, partial(upgrade_plainly, vps, endpoint, commands))
        with step(f"Prefect {HERE} and its schema again"):
            take_back(vps, before)
            vps.ssh(f"rm {OVERRIDE}")
    return figures


def tell(figures: Figures) -> bool:
    """The tables: the kit beside docker compose, where its time goes, and the goals. Gives whether all are met."""
    console.print(
        f"\nFrom Prefect {HERE} to {LATER}: {figures.rows:,} rows, a database of {figures.database / 1e6:.1f} MB."
        " The images were there."
    )
    title = f"Without an answer: the longest time, and all that are longer than {SECONDS_UNNOTICED:.0f} s"
    table = new_table(title, "", "takes, s", "longest, s", "all, s", "requests", "failed")
    table.add_row("prefect-upgrade --rehearse", f"{figures.rehearsal:.1f}", "", "", "", "")
    for name, (seconds, one) in figures.ways.items():
        counts = (f"{seconds:.1f}", f"{one.longest:.1f}", f"{one.total:.1f}", str(one.tried), str(one.failed))
        table.add_row(name, *counts)
    console.print(table)
    if "beside" not in figures.upgrade_steps:
        console.print("There was too little memory for a second server: the API was away while the new one started.")

    table = new_table("Seconds of the kit's steps", "", "rehearsal", TO)
    for name in dict.fromkeys([*figures.rehearsal_steps, *figures.upgrade_steps]):
        columns = (figures.rehearsal_steps, figures.upgrade_steps)
        table.add_row(name, *(f"{steps[name]:.1f}" if name in steps else "" for steps in columns))
    console.print(table)

    table = new_table("Goals, of the least without the kit", "", "goal", "measured", "")
    found = goals(figures.ways[TO].seen, [figures.ways[name].seen for name in PLAIN])
    for text, goal, measured, met in found:
        table.add_row(text, goal, measured, "[green]met[/]" if met else "[red]missed[/]")
    console.print(table)
    facts = dataclasses.asdict(figures)
    facts["ways"] = {
        name: {"seconds": way.seconds, **dataclasses.asdict(way.seen)} for name, way in figures.ways.items()
    }
    console.print_json(json.dumps(facts))
    return all(one.met for one in found)


def run(vps: Vps, options: argparse.Namespace, endpoint: Endpoint) -> int:
    """Measure and print; gives the exit code, for which the goals do not count in a short run."""
    well = tell(measure(vps, endpoint, FEW_ROWS if options.short else options.rows))
    return 0 if well or options.short else 1
