"""Messages about flow runs that entered one of the states of watch_flow_run_states.

By SQL, since the API would need many pages. One message names all flow runs that a run of prefect-watch finds; when there are
too many messages in an hour, further flow runs are counted, and summed up in one digest.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from typing import Any

from prefect_backups.postgres import LOOK, Postgres
from prefect_backups.progress import duration

from .settings import FlowRuns

#: Seconds that the first query goes back, and any query at most.
LOOK_BACK = 3600.0
#: Seconds by which queries overlap: a state has the time at which it was made, and is visible only after its commit.
OVERLAP = 300.0
#: A message names so many, and counts the rest; a digest gives so many kinds.
NAMED = 20
#: Last lines of a flow run's log, and the most characters of one; those of a name: Prefect bounds neither.
LINES, LINE, NAME = 5, 300, 120
#: Flow runs that are read at once; more are there at the next look.
MOST = 1000
#: Seconds in which messages are counted.
HOUR = 3600.0

# By `updated`, which has an index; the state's own time has none.
QUERY = """
SELECT state.id::text, left(run.name, 1000), left(coalesce(deployment.name, ''), 1000), left(flow.name, 1000), state.name,
  state.timestamp, left(coalesce(state.message, ''), 1000), run.id::text
FROM flow_run_state AS state
JOIN flow_run AS run ON run.id = state.flow_run_id
JOIN flow ON flow.id = run.flow_id
LEFT JOIN deployment ON deployment.id = run.deployment_id
WHERE state.updated > %(after)s AND lower(state.name) = ANY(%(states)s) AND state.id <> ALL(%(seen)s::uuid[])
  AND (%(tags)s::text[] = '{}' OR EXISTS (SELECT FROM jsonb_array_elements_text(run.tags) AS tag WHERE tag = ANY(%(tags)s)))
ORDER BY state.updated
LIMIT %(most)s
"""
LOG = """SELECT left(message, 1000) FROM log WHERE flow_run_id = %s::uuid ORDER BY timestamp DESC LIMIT %s"""


@dataclass(frozen=True)
class Ended:
    """A flow run that came into one of the states."""

    state_id: str
    run: str
    deployment: str
    flow: str
    state: str
    #: Seconds since 1970.
    when: float
    message: str
    id: str
    lines: list[str] = field(default_factory=list)

    @property
    def of(self) -> str:
        """What it is a run of."""
        return f"deployment {self.flow}/{self.deployment}" if self.deployment else f"flow {self.flow}"


@dataclass(frozen=True)
class Told:
    """Which flow runs were reported, and what waits for the next digest. Times are seconds since 1970."""

    until: float = 0.0
    #: Ids of states that have been seen, each with when that was.
    seen: dict[str, float] = field(default_factory=dict)
    #: When messages were sent within the last hour.
    sent: list[float] = field(default_factory=list)
    #: Flow runs for the next digest: how many of each kind, and since when.
    counted: dict[str, int] = field(default_factory=dict)
    counted_since: float = 0.0


def after(told: Told, now: float) -> float:
    """The time from which on states are queried."""
    return max(min(told.until, now) - OVERLAP, now - LOOK_BACK)


def look(postgres: Postgres, wanted: FlowRuns, told: Told, now: float) -> list[Ended]:
    """The flow runs that were not reported yet. Raises Failure (NO_DATABASE), psycopg.Error."""
    given = {
        "after": datetime.fromtimestamp(after(told, now), UTC),
        "states": [name.lower() for name in wanted.states],
        "tags": wanted.tags,
        "seen": list(told.seen),
        "most": MOST,
    }
    with postgres.connect(patience=LOOK) as connection:
        rows: list[tuple[Any, ...]] = connection.execute(QUERY, given).fetchall()
        found = [_ended(*row) for row in rows]
        return [
            replace(one, lines=_lines(row[0] for row in connection.execute(LOG, [one.id, LINES]).fetchall()))
            for one in found[:NAMED]
        ] + found[NAMED:]


def _ended(
    state_id: str, run: str, deployment: str, flow: str, state: str, when: datetime, message: str, run_id: str
) -> Ended:
    run, deployment, flow = (_line(name, NAME) for name in (run, deployment, flow))
    return Ended(state_id, run, deployment, flow, state, when.timestamp(), _line(message), run_id)


def _line(text: str, most: int = LINE) -> str:
    return " ".join(text.split())[:most]


def _lines(newest_first: Iterable[str]) -> list[str]:
    return [_line(line) for line in newest_first][::-1]


def decide(told: Told, found: Sequence[Ended], wanted: FlowRuns, now: float, quiet: bool = False) -> tuple[Told, bool]:
    """The state after this run, and whether a message is sent now: about `found`, and about what was counted before.

    Where none does, `found` is counted for a later digest.

    Args:
        quiet: no alerts now, because of a pause or planned work.
    """
    seen = {id: when for id, when in told.seen.items() if when > now - LOOK_BACK - OVERLAP}
    seen |= {one.state_id: now for one in found}
    sent = [moment for moment in told.sent if 0 <= now - moment < HOUR]
    # Where there were more than are read at once, the rest is of the same time.
    after_look = replace(told, until=told.until if len(found) >= MOST else now, seen=seen, sent=sent)
    if not quiet and len(sent) < max(wanted.messages_per_hour, 1) and (found or told.counted):
        return replace(after_look, sent=[*sent, now], counted={}, counted_since=0.0), True
    if not found:
        return after_look, False
    counted = Counter(told.counted)
    counted.update(f"{one.state} {one.of}" for one in found)
    return replace(after_look, counted=dict(counted), counted_since=told.counted_since or now), False


def text(found: Sequence[Ended], told: Told, host: str, url: str, now: float) -> tuple[str, str]:
    """Title and body of the message.

    Args:
        told: as it was before this run.
        url: of the UI.
    """
    number = len(found) + sum(told.counted.values())
    states = sorted({one.state for one in found} | {kind.split(" ", 1)[0] for kind in told.counted})
    title = f"{host}: {number} flow run{'s' if number > 1 else ''} {', '.join(states)}"
    lines: list[str] = []
    if told.counted:
        kinds = Counter(told.counted).most_common()
        lines.append(f"In the last {duration(now - told.counted_since)}, beyond those of earlier messages:")
        lines += [f"  {count} x {kind}" for kind, count in kinds[:NAMED]]
        lines += [f"  and {sum(count for _, count in kinds[NAMED:])} more", ""] if kinds[NAMED:] else [""]
    for one in found[:NAMED]:
        when = datetime.fromtimestamp(one.when, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
        lines += [f"{when}  {one.state}: {one.run} ({one.of})", f"  {url}/runs/flow-run/{one.id}"]
        lines += [f"  {one.message}"] if one.message else []
        lines += [f"    {line}" for line in one.lines]
    if len(found) > NAMED:
        lines.append(f"and {len(found) - NAMED} more: {url}/runs")
    return title, "\n".join(lines) + "\n"


def as_json(told: Told) -> dict[str, Any]:
    """For the state file."""
    return asdict(told)


def from_json(value: Mapping[str, Any]) -> Told:
    """From the state file. Raises TypeError for what another version has written."""
    return Told(**value)
