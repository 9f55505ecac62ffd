"""The pipeline of events: a check sends one through the API, and looks for it in the database.

Events carry crash detection, automations and the history in the UI. While their pipeline is dead (the service that writes them, or
Redis between two processes), the API still takes them, and answers 200 to everything.
"""

from __future__ import annotations

import contextlib
import json
import time
import uuid
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psycopg
import requests
from prefect_backups.files import write_whole
from prefect_backups.host import Host
from prefect_backups.postgres import LOOK
from prefect_backups.progress import duration
from prefect_backups.settings import Settings

from . import way_in
from .finding import Finding, Level, graded

#: Prefect writes events each 5 s, or 20 at a time: seconds from sending one to its being seen.
SLOW, TOO_SLOW = 15.0, 120.0
#: The event of the look before answers by itself, if it is so many seconds old; else this one's is waited for.
SINCE, UNTIL = SLOW, 900.0
#: Seconds for which one is waited for, and between two looks at the database.
PATIENCE, POLL = 7.0, 0.5
EVENT = "prefect-kit.doctor.looked"

# Those of before, which are of no use to anybody: else the feed of events in the UI has 288 of them a day.
FORGET = """
WITH ours AS (DELETE FROM events WHERE event = %(event)s AND occurred > now() - interval '1 day'
              AND occurred < to_timestamp(%(before)s) RETURNING id)
DELETE FROM event_resources WHERE event_id IN (SELECT id FROM ours)
"""
SEEN = "SELECT extract(epoch FROM created - occurred)::float8 FROM events WHERE id = %s::uuid"


@dataclass(frozen=True)
class Sent:
    """An event of ours."""

    id: str
    #: Seconds since 1970.
    at: float


@dataclass(frozen=True)
class Seen:
    """What became of one."""

    #: Seconds since it was sent.
    age: float
    #: Seconds until it was in the database; None: it is not there.
    after: float | None
    #: Why none could be sent, if so.
    refused: str = ""


def _path(settings: Settings) -> Path:
    return Path(settings.state) / "doctor_event.json"


def remembered(path: Path) -> Sent | None:
    """The event of the look before; None where there is none, or the file is not whole."""
    try:
        return Sent(**json.loads(path.read_text()))
    except (OSError, ValueError, TypeError):
        return None


def answers(before: Sent | None, now: float) -> bool:
    """Whether the event of the look before is old enough to be there, and not too old to say how things are now."""
    return before is not None and SINCE <= now - before.at <= UNTIL


def just_sent(before: Sent | None, now: float) -> bool:
    """Whether another look has just sent one. One of the future is of a clock that was set back: it would be waited for till then."""
    return before is not None and 0 <= now - before.at < SINCE


def send(client: requests.Session, url: str) -> tuple[Sent, str]:
    """Send one; gives it, and why it was refused."""
    sent = Sent(str(uuid.uuid4()), time.time())
    body: dict[str, Any] = {
        "id": sent.id,
        "occurred": datetime.fromtimestamp(sent.at, UTC).isoformat(),
        "event": EVENT,
        "resource": {"prefect.resource.id": "prefect-kit.doctor"},
    }
    try:
        answer = client.post(f"{url}/api/events", json=[body], timeout=way_in.TOO_SLOW)
    except requests.RequestException as error:
        return sent, f"no answer: {error}"
    return sent, "" if answer.ok else f"{answer.status_code}: {answer.text[:120].strip()}"


def _seen(connection: psycopg.Connection, sent: Sent) -> float | None:
    row = connection.execute(SEEN, [sent.id]).fetchone()
    return None if row is None else row[0]


def _forget(connection: psycopg.Connection, before: Sent) -> None:
    """Delete the events of earlier looks. What keeps it from that is of no weight: a later look does it."""
    with contextlib.suppress(psycopg.Error), connection.transaction():
        connection.execute("SET LOCAL lock_timeout = '500ms'")
        connection.execute(FORGET, {"event": EVENT, "before": before.at})


def look(settings: Settings, host: Host) -> Seen:
    """Send an event; the one of the look before says how long they take, or else this one is waited for.

    Raises Failure, psycopg.Error.
    """
    path, before = _path(settings), remembered(_path(settings))
    url = settings.endpoint.url.rstrip("/")
    now = time.time()
    if before is not None and just_sent(before, now):
        sent = before
    else:
        sent, refused = send(way_in.session(settings.endpoint), url)
        if refused:
            return Seen(0.0, None, refused)
        write_whole(path, json.dumps(asdict(sent)) + "\n")
    with host.postgres.connect(patience=LOOK) as connection:
        if before is not None and answers(before, now):
            after, age = _seen(connection, before), now - before.at
        else:
            after, age = _seen(connection, sent), time.time() - sent.at
            while after is None and age <= PATIENCE:
                time.sleep(POLL)
                after, age = _seen(connection, sent), time.time() - sent.at
        if after is not None and before is not None:
            _forget(connection, before)
    return Seen(age, after)


def pipeline(seen: Seen) -> Finding:
    """Whether an event has arrived, and when."""
    limit = f"stored within {SLOW:.0f} s"
    mend = "docker logs --tail 50 prefect-server; systemctl restart prefect-stack"
    if seen.refused:
        return Finding("events", Level.BAD, f"the API takes no event: {seen.refused}", limit, way_in.LOGS)
    if seen.after is None:
        # Of one that was sent just now, a slow machine may be the reason.
        level = Level.BAD if seen.age >= SLOW else Level.WARNING
        return Finding("events", level, f"an event sent {duration(seen.age)} ago is not in the database", limit, mend)
    level = graded(seen.after, SLOW, TOO_SLOW)
    return Finding("events", level, f"stored after {seen.after:.1f} s", limit, mend if level else "")


def findings(seen: Seen) -> Sequence[Finding]:
    """All of them."""
    return [pipeline(seen)]
