"""Tell a person of flow runs that have crashed: `prefect-notify --crashes`, by prefect-crashes.timer.

The server itself has no way out (compose.yml), so its automations cannot send anything; this host can. Prefect's own
word for it is kept: Crashed is what was ended from outside, and not a flow's own Failed. One message names all the runs
since the last one.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from .files import write_whole
from .postgres import Postgres

#: The first look goes back so far, and so does one after a long time without any.
LOOK_BACK = timedelta(hours=1)
#: A message names so many, and counts the rest.
NAMED = 20

QUERY = """
SELECT run.name, coalesce(deployment.name, '-'), state.timestamp, coalesce(state.message, ''), run.id
FROM flow_run_state AS state
JOIN flow_run AS run ON run.id = state.flow_run_id
LEFT JOIN deployment ON deployment.id = run.deployment_id
WHERE state.type = 'CRASHED' AND state.timestamp > %s AND state.timestamp <= %s
ORDER BY state.timestamp
"""


@dataclass(frozen=True)
class Crash:
    """A flow run that has crashed."""

    run: str
    deployment: str
    when: datetime
    message: str
    id: str


def since(path: Path, now: datetime) -> datetime:
    """Up to when crashes have been told, or kept to be told (outbox.py)."""
    try:
        told = datetime.fromisoformat(json.loads(path.read_text())["until"])
    except (OSError, ValueError, KeyError, TypeError):
        return now - LOOK_BACK
    return max(told, now - LOOK_BACK)


def crashes(postgres: Postgres, after: datetime, until: datetime) -> list[Crash]:
    """The runs that crashed after one moment and up to another. Raises Failure (NO_DATABASE)."""
    with postgres.connect() as connection:
        rows = connection.execute(QUERY, (after, until)).fetchall()
    return [Crash(run, deployment, when, message, str(run_id)) for run, deployment, when, message, run_id in rows]


def text(found: list[Crash], host: str, url: str) -> tuple[str, str]:
    """Title and body of the message."""
    title = f"{host}: {len(found)} flow run{'s' if len(found) > 1 else ''} crashed"
    lines = []
    for crash in found[:NAMED]:
        lines += [
            f"{crash.when.astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC  {crash.run} (deployment {crash.deployment})",
            f"  {crash.message}",
            f"  {url}/runs/flow-run/{crash.id}",
        ]
    if len(found) > NAMED:
        lines.append(f"and {len(found) - NAMED} more: {url}/runs?state=crashed")
    return title, "\n".join(lines) + "\n"


def note(path: Path, until: datetime) -> None:
    """Remember up to when crashes have been told."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    write_whole(path, json.dumps({"until": until.isoformat()}))
