"""Synthetic data for a Prefect database: a million rows in less than a minute, then hours of work as Prefect does it.

The rows are those of flow runs of the deployments that are there, all ended, over the hours up to now: flow_run,
flow_run_state, task_run, task_run_state, log, events and event_resources, with right links and in real shapes (see
plan.sql). Everything goes through psql in the container prefect-postgres.

    seed(vps, rows=1_000_000)     many rows at once
    work(vps, share=0.01)         1 % new flow runs, with the server's own statements and commits, and what
                                  retention and autovacuum would have done by then
    counts(vps)                   rows of each of those tables
"""

from __future__ import annotations

import json
import secrets
from pathlib import Path

from tests.lab.vps.vps import Vps

# The tables that grow.
TABLES = ("event_resources", "events", "flow_run", "flow_run_state", "log", "task_run", "task_run_state")
# 1 % new runs in an hour means that a hundred hours made what there is.
HOURS = 100.0

_PSQL = "docker exec --interactive prefect-postgres psql --username=prefect --quiet --no-psqlrc"
_HERE = Path(__file__).parent


def psql(vps: Vps, text: str, *, database: str = "prefect", timeout: float = 600) -> str:
    """Run SQL as the owner; gives its output, unaligned and without headers. Raises LabError with psql's words."""
    command = f"{_PSQL} --dbname={database} --tuples-only --no-align --set=ON_ERROR_STOP=1"
    return vps.ssh(command, text=text, timeout=timeout).stdout.strip()


def _run(vps: Vps, files: tuple[str, ...], **settings: float | str) -> None:
    lines = [f"SET seed.{name} = '{value}';" for name, value in settings.items()]
    psql(vps, "\n".join([*lines, *((_HERE / file).read_text() for file in files)]))


def seed(vps: Vps, rows: int, hours: float = HOURS) -> int:
    """Add flow runs with about `rows` rows in TABLES, spread over the last `hours`; gives how many were added.

    A few per cent more than `rows`, which depends on chance. 1,000,000 rows took 40 to 55 s on two busy cores.
    """
    before = sum(counts(vps).values())
    # A few more, because runs differ in their number of tasks.
    _run(vps, ("plan.sql", "bulk.sql"), rows=int(rows * 1.02) + 400, hours=hours, salt=secrets.token_hex(8))
    return sum(counts(vps).values()) - before


def work(vps: Vps, share: float = 0.01, hours: float = HOURS, retention: bool = False) -> int:
    """An hour of work: new flow runs, `share` of those there are, from Scheduled to their end; gives how many.

    With `retention`, events older than `hours` are deleted as the server does it.
    """
    runs = max(1, round(counts(vps)["flow_run"] * share))
    _run(vps, ("plan.sql", "hour.sql"), runs=runs, hours=1, salt=secrets.token_hex(8))
    if retention:
        _run(vps, ("retention.sql",), hours=hours)
    _run(vps, ("autovacuum.sql",))
    return runs


def counts(vps: Vps) -> dict[str, int]:
    """Exact numbers of rows in TABLES."""
    pairs = ", ".join(f"'{table}', (SELECT count(*) FROM {table})" for table in TABLES)
    return json.loads(psql(vps, f"SELECT json_build_object({pairs})"))
