"""Which flow run state changes Datadog has, and which wait: so many are sent each minute, in their order.

The database is the queue: what is kept is how far it was read. A state bears the server's time at which it was made, and is seen
only when its transaction has ended, so each look goes OVERLAP back, and the ids of what was sent since then are kept. They are
written down after each event: nothing is lost while Datadog, or the way there, is away. An event is sent twice only where nobody can
know that it has arrived: its answer was lost, or the program was killed before it was written down.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psycopg
from prefect_backups.errors import Failure
from prefect_backups.files import remove, write_whole
from prefect_backups.postgres import Postgres
from prefect_backups.progress import duration

from .datadog import ANSWER_SECONDS, WAIT_MOST, Answer, Change, Sender, event_of
from .memory import RUN
from .settings import Datadog

#: Seconds by which each look goes back behind the one before.
OVERLAP = 300.0
#: Events that are sent in one look, which is one each minute. Datadog takes 250,000 a minute of one organization.
MOST = 100
#: Seconds for all events of a look: the next one, a minute later, does not wait for them.
LOOK_SECONDS = 20.0
#: Seconds: Datadog takes no events that are older than 18 hours; five minutes are for clocks and the way there.
OLDEST = 18 * 3600.0 - 300.0
#: Answers to an event that is wrong itself, and would hold up all others for ever.
REFUSED = (400, 413, 422)

SELECT = """FROM flow_run_state AS state
WHERE state.updated >= %(since)s AND lower(state.name) = ANY(%(states)s) AND NOT state.id::text = ANY(%(sent)s)"""
# By `updated`, which has an index.
QUERY = f"""
SELECT state.id::text, extract(epoch FROM state.updated)::float8, extract(epoch FROM state.timestamp)::float8, state.name,
  coalesce(state.message, ''), run.id::text, run.name, flow.name, coalesce(deployment.name, ''), coalesce(pool.name, ''), run.tags
FROM (SELECT * {SELECT} ORDER BY state.updated, state.id LIMIT %(most)s) AS state
JOIN flow_run AS run ON run.id = state.flow_run_id
JOIN flow ON flow.id = run.flow_id
LEFT JOIN deployment ON deployment.id = run.deployment_id
LEFT JOIN work_queue ON work_queue.id = run.work_queue_id
LEFT JOIN work_pool AS pool ON pool.id = work_queue.work_pool_id
ORDER BY state.updated, state.id
"""
COUNT = f"SELECT count(*) {SELECT} AND state.updated < %(before)s"


@dataclass(frozen=True)
class Position:
    """How far the state changes were read, and how sending them went. Moments in seconds since 1970."""

    at: float = 0.0
    #: When events began to be wanted: what was before is not sent.
    begun: float = 0.0
    #: Everything that the server has written down before is dealt with.
    until: float = 0.0
    #: Ids of the states after `until` that are dealt with, and when the server has written them down.
    sent: dict[str, float] = field(default_factory=dict)
    #: Datadog wants no event before.
    not_before: float = 0.0
    #: What is wrong, and since when; and when the oldest that still waits was written down.
    error: str = ""
    error_since: float = 0.0
    waiting_since: float = 0.0
    #: Events that Datadog has taken, the last of them when; that it has refused for good; that were too old for it.
    taken: int = 0
    last: float = 0.0
    refused: int = 0
    too_old: int = 0


def places(state: Path) -> list[Path]:
    """Where the position is kept: on a disk that is full, events go on."""
    return [RUN.with_name("datadog.json"), state / "watch" / "datadog.json"]


def load(kept: Sequence[Path]) -> Position:
    """The newest that can be read; an empty one where there is none."""
    found = [Position()]
    for path in kept:
        with contextlib.suppress(OSError, ValueError, TypeError):
            found.append(Position(**json.loads(path.read_text())))
    return max(found, key=lambda one: one.at)


def save(position: Position, kept: Sequence[Path]) -> None:
    """Write it to all places. Raises OSError when it could be written to none of them."""
    errors = []
    for path in kept:
        try:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            write_whole(path, json.dumps(asdict(position)) + "\n")
        except OSError as error:
            errors.append(error)
    if len(errors) == len(kept):
        raise errors[0]


def since(position: Position, now: float) -> float:
    """From which moment on states are looked at; a clock that was set back loses none, and may send some twice."""
    begun = position.begun if position.begun <= now else 0.0
    return max(min(position.until, now - OVERLAP), begun)


def done(position: Position, change: Change) -> Position:
    """One more is dealt with."""
    return replace(position, sent={**position.sent, change.id: change.updated})


def advance(position: Position, looked: float, now: float, reached: float | None) -> Position:
    """What is known after a look.

    Args:
        looked: from which moment on was looked.
        reached: the moment of the last change that is dealt with, where others wait; None: none does.
    """
    # A second less, as several changes may have one moment.
    until = max(looked, min(now - OVERLAP, now if reached is None else reached - 1))
    sent = {id: moment for id, moment in position.sent.items() if moment >= until - 1}
    return replace(position, until=until, sent=sent)


def look(postgres: Postgres, states: Sequence[str], position: Position, now: float) -> tuple[list[Change], int]:
    """The state changes that wait, oldest first, one more than are sent; and how many are too old for Datadog.

    Raises:
        Failure: NO_DATABASE.
        psycopg.Error: the query failed, or took more than 5 s.
    """
    begin, cutoff = since(position, now), now - OLDEST
    given: dict[str, Any] = {"states": [name.lower() for name in states], "sent": list(position.sent), "most": MOST + 1}
    too_old = 0
    with postgres.connect(patience=5.0) as connection:
        if begin < cutoff:
            moments = {"since": datetime.fromtimestamp(begin, UTC), "before": datetime.fromtimestamp(cutoff, UTC)}
            counted = connection.execute(COUNT, {**given, **moments}).fetchone()
            too_old = int(counted[0]) if counted else 0
        begin = max(begin, cutoff)
        rows = connection.execute(QUERY, {**given, "since": datetime.fromtimestamp(begin, UTC)}).fetchall()
    return [Change(*row) for row in rows], too_old


def send(
    position: Position,
    changes: Sequence[Change],
    event: Callable[[Change], Mapping[str, Any]],
    post: Callable[[Mapping[str, Any], float], Answer],
    keep: Callable[[Position], None],
    now: float,
    clock: Callable[[], float] = time.monotonic,
) -> tuple[Position, list[str]]:
    """Send what waits, in its order, until something goes wrong or the time is over; gives what is known then, and what to say.

    Args:
        changes: one more than MOST, where there are more.
        keep: writes a position down, after each event. Raises OSError.
        now: in seconds since 1970.
    """
    end, looked, words = clock() + LOOK_SECONDS, since(position, now), []
    reached: float | None = looked if changes else None
    # Until Datadog has been asked again, what was wrong is wrong.
    error, waiting = position.error, 0.0
    for number, change in enumerate(changes):
        left = end - clock()
        if number == MOST or left < 1:
            waiting = change.updated
            break
        if change.when < now - OLDEST:
            position = replace(position, too_old=position.too_old + 1)
        else:
            answer = post(event(change), min(ANSWER_SECONDS, left))
            error = ""
            if answer.taken:
                position = replace(position, taken=position.taken + 1, last=now)
            elif answer.status in REFUSED:
                words.append(f"{answer.error} to the event of flow run {change.run_id}, which is left out")
                position = replace(position, refused=position.refused + 1)
            else:
                error, waiting = answer.error, change.updated
                position = replace(position, not_before=now + answer.wait if answer.status == 429 else 0.0)
                break
        position, reached = done(position, change), change.updated
        keep(position)
    position = advance(position, looked, now, reached if waiting else None)
    if error and error != position.error:
        words.append(error)
    if position.error and not error:
        words.append("Datadog takes events again")
    began = (position.error_since if position.error else now) if error else 0.0
    return replace(position, error=error, error_since=began, waiting_since=waiting), words


def run(wanted: Datadog, postgres: Postgres, kept: Sequence[Path], url: str, host: str, now: float) -> list[str]:
    """One look: send what has changed since the last one; gives what is new to say of it, in words.

    Args:
        url: of Prefect's UI.
        host: this one.
    """
    if not wanted.api_key or not wanted.flow_run_states:
        # Turned on again, it begins with what is then.
        for path in kept:
            if path.exists():
                remove(path)
        return []
    before = load(kept)
    position = replace(before, at=now)
    try:
        if not before.begun:
            save(replace(position, begun=now, until=now), kept)
            return []
        if 0 < before.not_before - now <= WAIT_MOST:
            return []
        changes, too_old = look(postgres, wanted.flow_run_states, before, now)
        # The too old are counted once.
        until = max(since(before, now), now - OLDEST)
        position = replace(position, too_old=before.too_old + too_old, until=until)
        # Whoever cannot remember what was sent would send it each minute.
        save(position, kept)
        position, words = send(
            position,
            changes,
            lambda change: event_of(change, url, host),
            Sender(wanted).send,
            lambda one: save(one, kept),
            now,
        )
        save(position, kept)
    except (Failure, psycopg.Error):
        # That the database is away is told by the checks; the state changes are sent when it is back.
        return []
    except OSError as error:
        return [f"no events are sent to Datadog, since what was sent cannot be written down: {error.strerror}"]
    if lost := position.too_old - before.too_old:
        words.append(f"{lost} flow run state changes were not sent to Datadog: it takes none of more than 18 hours ago")
    return words


def status(wanted: Datadog, position: Position, now: float) -> str:
    """A line for a person; empty where no events are wanted."""
    if not wanted.api_key or not wanted.flow_run_states:
        return ""

    def ago(moment: float) -> str:
        return duration(max(0.0, now - moment))

    words = [f"{position.taken} events sent" + (f", the last one {ago(position.last)} ago" if position.last else "")]
    words += [f"{position.refused} refused"] if position.refused else []
    words += [f"{position.too_old} were too old to be taken"] if position.too_old else []
    words += [f"what has changed in the last {ago(position.waiting_since)} waits"] if position.waiting_since else []
    words += [f"for {ago(position.error_since)}: {position.error}"] if position.error else []
    return "Datadog: " + "; ".join(words)
