"""Flow runs, work pools and concurrency limits, by SQL and not by the API, which would be asked for page after page.

Each query goes by an index, over flow runs that have not ended or over a bounded window, never over all that ever were. With
1.03 million flow runs, 30,000 of them scheduled, on Postgres 15: 19 ms for those that have not ended, 5 ms for the 6,000 of an
hour. A query that takes longer than PATIENCE is given up, and the metrics of this part are missing.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from prefect_backups.host import Host
from prefect_doctor.work import LATE_WARNING, SILENT
from psycopg import sql

from .catalogue import DELAYS
from .counters import NONE, OTHER, Begun, Counters, Ended
from .exposition import Sample, sample, short_enough

#: Seconds that a query may take.
PATIENCE = 3.0
#: Global concurrency limits that have series of their own.
LIMITS = 50

SESSION = sql.SQL("""
SET statement_timeout = {patience}; SET default_transaction_read_only = on;
SET jit = off; SET max_parallel_workers_per_gather = 0
""").format(patience=sql.Literal(int(PATIENCE * 1000)))
NOW = "SELECT extract(epoch FROM now())::float8"
# By ix_flow_run__state_type.
CURRENT = """
SELECT state_type::text, work_queue_id, deployment_id, count(*),
  count(*) FILTER (WHERE next_scheduled_start_time < now() - make_interval(secs => %s)),
  coalesce(max(extract(epoch FROM now() - next_scheduled_start_time)), 0)::float8
FROM flow_run WHERE state_type IN ('SCHEDULED', 'PENDING', 'RUNNING', 'PAUSED', 'CANCELLING') GROUP BY 1, 2, 3
"""
# By ix_flow_run__end_time_desc.
ENDED = """
SELECT state_type::text, work_queue_id, deployment_id, count(*), count(start_time),
  coalesce(sum(extract(epoch FROM total_run_time)) FILTER (WHERE start_time IS NOT NULL), 0)::float8
FROM flow_run WHERE end_time > to_timestamp(%s) AND end_time <= to_timestamp(%s)
  AND state_type IN ('COMPLETED', 'FAILED', 'CRASHED', 'CANCELLED') GROUP BY 1, 2, 3
"""
# By ix_flow_run__start_time. A worker may take a flow run some seconds before it is due.
BEGUN = sql.SQL("""
SELECT work_queue_id, ARRAY[{buckets}]::int[], count(*), coalesce(sum(delay), 0)::float8
FROM (
  SELECT work_queue_id, greatest(extract(epoch FROM start_time - expected_start_time), 0) AS delay FROM flow_run
  WHERE start_time > to_timestamp({since}) AND start_time <= to_timestamp({until}) AND work_queue_id IS NOT NULL
) AS begun GROUP BY 1
""").format(
    buckets=sql.SQL(", ").join(
        sql.SQL("count(*) FILTER (WHERE delay <= {})").format(sql.Literal(bound)) for bound in DELAYS
    ),
    since=sql.Placeholder(),
    until=sql.Placeholder(),
)
QUEUES = "SELECT queue.id, pool.name FROM work_queue queue JOIN work_pool pool ON pool.id = queue.work_pool_id"
DEPLOYMENT_NAMES = """
SELECT deployment.id, flow.name || '/' || deployment.name FROM deployment JOIN flow ON flow.id = deployment.flow_id
WHERE deployment.id = ANY(%s)
"""
WORK_POOLS = """
SELECT name, is_paused, concurrency_limit, (
  SELECT count(*) FROM worker WHERE work_pool_id = pool.id AND last_heartbeat_time > now() - make_interval(secs => %s))
FROM work_pool pool ORDER BY name
"""
# That of a deployment is called by its id there.
SLOTS = """
SELECT coalesce('deployment:' || flow.name || '/' || deployment.name, slots.name), active_slots, "limit"
FROM concurrency_limit_v2 slots LEFT JOIN deployment ON concurrency_limit_id = slots.id
LEFT JOIN flow ON flow.id = deployment.flow_id WHERE active ORDER BY 2 DESC, 1
"""


@dataclass(frozen=True)
class Current:
    """Flow runs in one state that have not ended, of one deployment in one work pool."""

    state: str
    pool: str
    deployment: str
    count: int
    #: Those that are later than the doctor allows, and the seconds by which the latest is due.
    late: int = 0
    latest: float = 0.0


@dataclass(frozen=True)
class Pool:
    """A work pool."""

    name: str
    paused: bool
    limit: int | None
    online: int


@dataclass(frozen=True)
class FlowRuns:
    """What the database says."""

    #: Seconds since 1970 by Postgres's clock, and up to when `ended` and `begun` are.
    now: float
    until: float
    current: Sequence[Current] = ()
    ended: Sequence[Ended] = ()
    begun: Sequence[Begun] = ()
    pools: Sequence[Pool] = ()
    #: Name, slots that are held, and slots, of global concurrency limits; those with the most held first.
    slots: Sequence[tuple[str, int, int]] = ()


def look(host: Host, counters: Counters) -> FlowRuns:
    """What has changed since the counters' mark, and what there is. Raises Failure, psycopg.Error."""
    with host.postgres.connect() as connection:
        connection.execute(SESSION)

        def rows(query: Any, *values: Any) -> list[tuple[Any, ...]]:
            return connection.execute(query, values).fetchall()

        now: float = rows(NOW)[0][0]
        since, until = counters.window(now)
        current = rows(CURRENT, LATE_WARNING)
        ended = rows(ENDED, since, until)
        begun = rows(BEGUN, since, until)
        pools = {queue: short_enough(name) for queue, name in rows(QUEUES)}
        ids = list({row[2] for row in (*current, *ended) if row[2] is not None})
        names = {one: short_enough(name) for one, name in rows(DEPLOYMENT_NAMES, ids)}

        def named(row: tuple[Any, ...]) -> tuple[str, str, str]:
            # A queue or a deployment that has been deleted is none.
            return row[0], pools.get(row[1], NONE), names.get(row[2], NONE)

        return FlowRuns(
            now,
            until,
            [Current(*named(row), *row[3:]) for row in current],
            [Ended(*named(row), *row[3:]) for row in ended],
            [Begun(pools.get(row[0], NONE), *row[1:]) for row in begun],
            [Pool(short_enough(row[0]), *row[1:]) for row in rows(WORK_POOLS, SILENT)],
            [(short_enough(name), held, limit) for name, held, limit in rows(SLOTS)],
        )


def count_on(counters: Counters, found: FlowRuns) -> None:
    """Give the places to those that have flow runs, those that do something first; then count on what has ended and begun."""
    for ended in sorted(found.ended, key=lambda one: -one.count):
        counters.deployments.see(ended.deployment, found.now)
    for one in found.current:
        if one.state != "SCHEDULED":
            counters.deployments.see(one.deployment, found.now)
    for one in found.current:
        counters.deployments.offer(one.deployment)
    for pool in found.pools:
        counters.pools.see(pool.name, found.now)
    for pool_name, deployment in {(one.pool, one.deployment) for runs in (found.current, found.ended) for one in runs}:
        counters.begin(pool_name, deployment)
    counters.add(found.ended, found.begun, found.until)


def samples(found: FlowRuns, counters: Counters) -> list[Sample]:
    """All of them."""
    return [*_current(found, counters), *_counted(counters), *_pools(found, counters), *_slots(found.slots)]


def _current(found: FlowRuns, counters: Counters) -> Iterator[Sample]:
    runs: dict[tuple[str, str, str], int] = defaultdict(int)
    # A pool without a late flow run says so.
    late = {counters.pools.label(pool.name): (0, 0.0) for pool in found.pools}
    for one in found.current:
        pool, deployment = counters.pools.label(one.pool), counters.deployments.label(one.deployment)
        runs[one.state, pool, deployment] += one.count
        # What is in no work pool waits for nobody: its own process begins it.
        if one.state == "SCHEDULED" and one.pool != NONE:
            count, latest = late.get(pool, (0, 0.0))
            late[pool] = (count + one.late, max(latest, one.latest))
    for (state, pool, deployment), count in sorted(runs.items()):
        yield sample("flow_runs", count, state=state, work_pool=pool, deployment=deployment)
    for pool, (count, latest) in late.items():
        yield sample("late_flow_runs", count, work_pool=pool)
        yield sample("flow_run_lateness_max_seconds", latest, work_pool=pool)


def _counted(counters: Counters) -> Iterator[Sample]:
    durations: dict[tuple[str, str], tuple[int, float]] = defaultdict(lambda: (0, 0.0))
    for (state, pool, deployment), (count, ran, seconds) in sorted(counters.ended.items()):
        yield sample("flow_runs_ended_total", count, state=state, work_pool=pool, deployment=deployment)
        before = durations[pool, deployment]
        durations[pool, deployment] = (before[0] + ran, before[1] + seconds)
    for (pool, deployment), (ran, seconds) in durations.items():
        for ending, value in (("_sum", seconds), ("_count", ran)):
            yield sample("flow_run_duration_seconds", value, ending, work_pool=pool, deployment=deployment)
    for pool, (buckets, count, seconds) in sorted(counters.begun.items()):
        name = "flow_run_start_delay_seconds"
        bounds = [*(str(bound).removesuffix(".0") for bound in DELAYS), "+Inf"]
        for bound, value in zip(bounds, [*buckets, count], strict=True):
            yield sample(name, value, "_bucket", bound, work_pool=pool)
        yield sample(name, seconds, "_sum", work_pool=pool)
        yield sample(name, count, "_count", work_pool=pool)


def _pools(found: FlowRuns, counters: Counters) -> Iterator[Sample]:
    for pool in found.pools:
        # The sum of paused pools, or of their limits, says nothing.
        if counters.pools.label(pool.name) == OTHER:
            continue
        yield sample("workers_online", pool.online, work_pool=pool.name)
        yield sample("work_pool_paused", pool.paused, work_pool=pool.name)
        if pool.limit is not None:
            yield sample("work_pool_concurrency_limit", pool.limit, work_pool=pool.name)


def _slots(slots: Iterable[tuple[str, int, int]]) -> Iterator[Sample]:
    known = list(slots)
    shown = {name: (held, limit) for name, held, limit in known[:LIMITS]}
    if rest := known[LIMITS:]:
        shown[OTHER] = (sum(held for _, held, _ in rest), sum(limit for _, _, limit in rest))
    for name, (held, limit) in shown.items():
        yield sample("concurrency_slots_active", held, limit=name)
        yield sample("concurrency_slots_limit", limit, limit=name)
