"""`scripts/bench backup`: the kit's backup and restore beside pg_dump, gzip, psql and pg_restore as people use them."""

from __future__ import annotations

import argparse
import json
import math
from collections import defaultdict
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from _bench import console, new_table, result, step, timed

from tests.lab import seed
from tests.lab.vps.vps import Vps

# The goals, as ratios.
MOST_OF_BARE = 1.2
TIMES_FASTER = 3.0
MOST_SPACE = 1.5
MOST_DOWNTIME = 20.0
# A downtime that does not grow: what ten times the rows may add, in seconds.
MOST_GROWTH = 2.0

REPOSITORY = "/var/backups/prefect/repository"
PLAIN = "/root/bench.sql.gz"
# In the container: the staging directory is mounted there.
DIRECTORY = "/staging/bench"
SCRATCH = "bench"
TOOL = "docker exec --user=postgres prefect-postgres"

# Ways to tell that rows came back: what each costs is printed, to be held against the seconds of a backup.
CHECKSUMS = {
    "counts only": "SELECT count(*) FROM {table}",
    "and primary keys": "SELECT count(*), sum(hash_record_extended(ROW(one.{key}), 0)) FROM {table} AS one",
    "and whole rows": "SELECT count(*), sum(hashtextextended(one::text, 0)) FROM {table} AS one",
}


@dataclass
class Figures:
    """What was measured: seconds and bytes, by name; of several trials the best counts."""

    seconds: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    # Bytes stored after each backup.
    ours: list[int] = field(default_factory=list)
    plain: list[int] = field(default_factory=list)
    # Rows and downtimes: the small database, and the large one.
    downtime: dict[int, list[float]] = field(default_factory=lambda: defaultdict(list))
    new_runs: int = 0
    database: int = 0
    dump: int = 0
    jobs: int = 0

    def best(self, name: str) -> float:
        return min(self.seconds[name], default=math.nan)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--rows", type=int, default=1_000_000, metavar="N", help="rows of the large database")
    parser.add_argument("--backups", type=int, default=24, metavar="N", help="hourly backups that are stored")
    parser.add_argument("--trials", type=int, default=3, metavar="N", help="of everything that is timed")


def command(vps: Vps, text: str) -> float:
    """Seconds of a shell command on the VPS. Raises LabError when any part of a pipe fails."""
    return timed(lambda: vps.ssh(f"set -o pipefail; {text}", timeout=3600))


def quiet(vps: Vps) -> None:
    """Before a trial: nothing left to be written for the one before."""
    seed.psql(vps, "CHECKPOINT")


# --- both sides ---------------------------------------------------------------------------------------------------


def back_up(vps: Vps, figures: Figures) -> str:
    """A backup by the kit; gives its id."""
    quiet(vps)
    made: dict[str, Any] = {}
    seconds = timed(lambda: made.update(result(vps, "prefect-backup create --json")))
    figures.seconds["backup"].append(seconds)
    for name in ("dump", "store"):
        figures.seconds[name].append(made["seconds"][name])
    figures.database, figures.dump = made["database_bytes"], made["dump_bytes"]
    return made["id"]


def dump_plain(vps: Vps, figures: Figures) -> int:
    """`pg_dump | gzip`; gives the bytes of its file."""
    quiet(vps)
    figures.seconds["pg_dump | gzip"].append(
        command(vps, f"docker exec prefect-postgres pg_dump --username=prefect prefect | gzip > {PLAIN}")
    )
    return int(vps.ssh(f"stat --format=%s {PLAIN}").stdout)


def repository_bytes(vps: Vps) -> int:
    return int(vps.ssh(f"du --summarize --bytes {REPOSITORY}").stdout.split()[0])


def restore(vps: Vps, identity: str, figures: Figures, rows: int) -> None:
    """A restore by the kit, of a server that runs."""
    vps.ssh("prefect-restore --drop-previous")
    quiet(vps)
    made: dict[str, Any] = {}
    # What is there is what is in the backup: the safety backup would measure a backup once more.
    line = f"prefect-restore --id {identity} --yes --without-safety-backup --json"
    figures.seconds["restore, everything"].append(timed(lambda: made.update(result(vps, line))))
    seconds = made["seconds"]
    for name in ("fetch", "load", "compare", "analyze"):
        figures.seconds[name].append(seconds[name])
    figures.seconds["restore"].append(seconds["fetch"] + seconds["load"] + seconds["compare"])
    figures.downtime[rows].append(made["downtime_seconds"])


def scratch(vps: Vps) -> None:
    """An empty database beside the live one."""
    seed.psql(vps, f"DROP DATABASE IF EXISTS {SCRATCH} WITH (FORCE)", database="postgres")
    seed.psql(vps, f"CREATE DATABASE {SCRATCH} TEMPLATE template0", database="postgres")
    quiet(vps)


def load_bare(vps: Vps, figures: Figures) -> None:
    """pg_restore with as many processes, from a dump that lies there in its best form."""
    scratch(vps)
    line = f"{TOOL} pg_restore --username=prefect --dbname={SCRATCH} --no-owner --jobs={figures.jobs} {DIRECTORY}"
    figures.seconds["bare pg_restore"].append(command(vps, line))


def load_plain(vps: Vps, figures: Figures) -> None:
    """`gunzip | psql`."""
    scratch(vps)
    client = "docker exec --interactive prefect-postgres psql --quiet --username=prefect --set=ON_ERROR_STOP=1"
    line = f"gunzip --stdout {PLAIN} | {client} --dbname={SCRATCH} > /dev/null"
    figures.seconds["gunzip | psql"].append(command(vps, line))


def checksums(vps: Vps, figures: Figures) -> None:
    """What counting and checksums of all tables cost, in one session."""
    tables = seed.psql(
        vps,
        "SELECT conrelid::regclass || ' ' || attname FROM pg_constraint"
        " JOIN pg_attribute ON attrelid = conrelid AND attnum = conkey[1]"
        " WHERE contype = 'p' AND connamespace = 'public'::regnamespace",
    )
    for name, query in CHECKSUMS.items():
        text = ";\n".join(query.format(table=table, key=key) for table, key in map(str.split, tables.splitlines()))
        figures.seconds[name].append(timed(partial(seed.psql, vps, text)))


# --- the run ------------------------------------------------------------------------------------------------------


def measure(vps: Vps, options: argparse.Namespace) -> Figures:
    """All of it, in the order in which it happens; what is compared is done in turns."""
    figures = Figures()
    figures.jobs = json.loads(vps.ssh("cat /etc/prefect/backups/settings.json").stdout).get("jobs", 2)
    # A timer's backup in between would be measured too.
    vps.ssh("systemctl stop 'prefect-backup*.timer'")
    tenth = options.rows // 10

    with step(f"a small database: {tenth:,} rows, backed up and restored"):
        seed.seed(vps, tenth)
        identity = back_up(vps, figures)
        for _ in range(options.trials):
            restore(vps, identity, figures, tenth)
    # Its times do not count, and its backup must not be there for the large one to build on.
    figures.seconds.clear()
    vps.ssh(f"prefect-restore --drop-previous && rm -rf {REPOSITORY} && prefect-backup init")

    with step(f"ten times that: {options.rows:,} rows"):
        seed.seed(vps, options.rows - tenth)

    with step(f"{options.backups} hourly backups, 1 % new runs before each") as say:
        for hour in range(1, options.backups + 1):
            say(f"hour {hour}")
            if hour > 1:
                # Retention comes by four times a day.
                figures.new_runs += seed.work(vps, retention=hour % 6 == 0)
            identity = back_up(vps, figures)
            figures.ours.append(repository_bytes(vps))
            figures.plain.append(dump_plain(vps, figures))

    with step("checksums"):
        for _ in range(options.trials):
            checksums(vps, figures)

    before = seed.counts(vps)
    vps.ssh(f"{TOOL} pg_dump --username=prefect --format=directory --jobs=2 --compress=none --file={DIRECTORY} prefect")
    with step(f"{options.trials} restores by each, in turns") as say:
        for trial in range(1, options.trials + 1):
            say(f"trial {trial}: prefect-restore")
            restore(vps, identity, figures, options.rows)
            say(f"trial {trial}: pg_restore")
            load_bare(vps, figures)
            say(f"trial {trial}: gunzip | psql")
            load_plain(vps, figures)
    # What the smoke flow after a restore adds are not many rows, but some.
    lost = {name: rows for name, rows in seed.counts(vps).items() if rows < before[name]}
    if lost:
        raise AssertionError(f"rows were lost by the restore: {lost}, and before it there were {before}")
    return figures


# --- what came of it ----------------------------------------------------------------------------------------------


def run(vps: Vps, options: argparse.Namespace) -> int:
    """Measure and print; gives the exit code. A goal that is missed is said, and no error."""
    if options.short:
        options.rows, options.backups, options.trials = 2000, 1, 1
    figures = measure(vps, options)
    tell(figures, options.rows)
    return 0


def _mb(count: float) -> str:
    return f"{count / 1e6:.1f} MB"


def tell(figures: Figures, rows: int) -> None:
    """The tables: ours beside theirs, where our time goes, and the goals."""
    best = figures.best
    large, small = max(figures.downtime), min(figures.downtime)
    downtime = {number: min(seconds) for number, seconds in figures.downtime.items()}
    count = len(figures.ours)
    growth = (figures.ours[-1] - figures.ours[0]) / max(1, count - 1)
    console.print(
        f"\n{rows:,} rows: a database of {_mb(figures.database)}, a dump of {_mb(figures.dump)};"
        f" {figures.new_runs} flow runs were made between the backups; pg_dump and pg_restore with {figures.jobs} jobs"
    )

    table = new_table("Backup", "", "seconds", "stored after 1", f"stored after {count}", "ratio")
    table.add_row(
        "prefect-backup create",
        f"{figures.seconds['backup'][0]:.1f} first, {best('backup'):.1f} hourly",
        *(_mb(figures.ours[0]), _mb(figures.ours[-1]), f"{figures.ours[-1] / figures.ours[0]:.2f}"),
    )
    table.add_row(
        "pg_dump | gzip",
        f"{best('pg_dump | gzip'):.1f}",
        *(_mb(figures.plain[0]), _mb(sum(figures.plain)), f"{sum(figures.plain) / figures.plain[0]:.2f}"),
    )
    console.print(table)
    console.print(
        f"An hourly backup adds {_mb(growth)}; its dump takes {best('dump'):.1f} s, storing it {best('store'):.1f} s.\n"
    )

    table = new_table("Restore", "", "seconds", "of bare pg_restore", "gunzip | psql takes")
    for name in ("restore", "bare pg_restore", "gunzip | psql"):
        table.add_row(
            {"restore": "prefect-restore: fetch, load, compare"}.get(name, name),
            f"{best(name):.1f}",
            f"{best(name) / best('bare pg_restore'):.2f} x",
            f"{best('gunzip | psql') / best(name):.2f} x as long",
        )
    console.print(table)
    console.print(
        f"Fetched from the repository in {best('fetch'):.1f} s, loaded in {best('load'):.1f} s, compared with the manifest"
        f" in {best('compare'):.1f} s; statistics for the planner {best('analyze'):.1f} s more. With the stop, the swap,"
        f" the smoke flow and the workers' return the command takes {best('restore, everything'):.1f} s.\n"
    )

    table = new_table("Checks of what came back", "", *CHECKSUMS)
    table.add_row("seconds", *(f"{best(name):.1f}" for name in CHECKSUMS))
    console.print(table)

    table = new_table("Goals", "", "goal", "measured", "")
    for text, goal, measured, met in (
        (
            "restore, of bare pg_restore with the same jobs",
            f"<= {MOST_OF_BARE} x",
            f"{best('restore') / best('bare pg_restore'):.2f} x",
            best("restore") <= MOST_OF_BARE * best("bare pg_restore"),
        ),
        (
            "restore, faster than gunzip | psql",
            f">= {TIMES_FASTER:.0f} x",
            f"{best('gunzip | psql') / best('restore'):.2f} x",
            best("gunzip | psql") >= TIMES_FASTER * best("restore"),
        ),
        (
            f"space of {count} hourly backups, of one",
            f"< {MOST_SPACE} x",
            f"{figures.ours[-1] / figures.ours[0]:.2f} x",
            figures.ours[-1] < MOST_SPACE * figures.ours[0],
        ),
        (
            f"downtime with {large:,} rows",
            f"< {MOST_DOWNTIME:.0f} s",
            f"{downtime[large]:.1f} s",
            downtime[large] < MOST_DOWNTIME,
        ),
        (
            f"downtime with {small:,} rows, for comparison",
            f"within {MOST_GROWTH:.0f} s",
            f"{downtime[small]:.1f} s",
            downtime[large] - downtime[small] <= MOST_GROWTH,
        ),
    ):
        table.add_row(text, goal, measured, "[green]met[/]" if met else "[red]missed[/]")
    console.print(table)
