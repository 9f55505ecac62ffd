"""The work: late and stuck flow runs, workers, leaked concurrency slots, crash detection. By SQL and not by the API, which
would need a page for each 200 runs.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from shlex import quote
from typing import Any, LiteralString

from prefect_backups.host import Host
from prefect_backups.postgres import LOOK
from prefect_backups.progress import duration

from .finding import Finding, Level, cli, graded, playbook

#: Seconds by which a flow run may be late: workers poll every 15 s, and a start takes some.
LATE_WARNING, LATE_BAD = 300.0, 3600.0
#: Seconds in which a flow run has left Pending or Cancelling, whoever has it.
STUCK = 900.0
#: Seconds since a worker was heard from; one sends a heartbeat every 30 s.
SILENT = 120.0
#: One that was not heard from for so many days is of another time.
FORGOTTEN_DAYS = 7
#: What each account may do. A worker NAME of the playbook's has the account worker-NAME; one elsewhere that of its own name.
ACCOUNTS = Path("/etc/prefect/access/accounts.json")
OF_PLAYBOOK = "worker-"

LATE = """
SELECT count(*), coalesce(max(extract(epoch FROM now() - next_scheduled_start_time)), 0)::float8 FROM flow_run
WHERE state_type = 'SCHEDULED' AND next_scheduled_start_time < now() - make_interval(secs => %s)
  AND (deployment_id IS NOT NULL OR work_queue_id IS NOT NULL)
"""
STANDING = """
SELECT state_type::text, count(*) FROM flow_run
WHERE state_type IN ('PENDING', 'CANCELLING') AND state_timestamp < now() - make_interval(secs => %s) GROUP BY 1 ORDER BY 1
"""
WORKERS = """
SELECT pool.name, worker.name, extract(epoch FROM now() - last_heartbeat_time)::float8
FROM worker JOIN work_pool pool ON pool.id = work_pool_id
WHERE last_heartbeat_time > now() - make_interval(days => %s) ORDER BY 1, 2
"""
# Pools with work that is due, of which nobody is heard from.
UNSERVED = """
SELECT pool.name, count(*) FROM flow_run run JOIN work_queue queue ON queue.id = run.work_queue_id
JOIN work_pool pool ON pool.id = queue.work_pool_id
WHERE run.state_type = 'SCHEDULED' AND run.next_scheduled_start_time < now() AND NOT pool.is_paused
  AND NOT EXISTS (SELECT FROM worker WHERE work_pool_id = pool.id AND last_heartbeat_time > now() - make_interval(secs => %s))
GROUP BY 1 ORDER BY 1
"""
SLOTS = """SELECT name, active_slots FROM concurrency_limit_v2 WHERE active AND active_slots > 0 ORDER BY 1"""
AT_WORK = """
SELECT (SELECT count(*) FROM flow_run WHERE state_type IN ('RUNNING', 'PENDING', 'CANCELLING'))
     + (SELECT count(*) FROM task_run WHERE state_type IN ('RUNNING', 'PENDING', 'CANCELLING'))
"""
# A run has an end in states that are final only, and Prefect an index of it: no condition more, or another is taken, too.
ENDED = """
SELECT state_type::text, count(*) FROM flow_run WHERE end_time > now() - make_interval(hours => 1) GROUP BY 1 ORDER BY 1
"""
DETECTION = """SELECT enabled, trigger, actions FROM automation WHERE name = 'Crash detection' ORDER BY created"""

#: What that automation waits for, and does, as the role `workers` makes it (detection.yml; a test holds the two together).
TRIGGER = {
    "type": "event",
    "posture": "Proactive",
    "match": {"prefect.resource.id": "prefect.flow-run.*"},
    "after": ["prefect-worker.flow-run.alive"],
    "expect": [
        "prefect-worker.flow-run.alive",
        "prefect-worker.flow-run.ended",
        "prefect.flow-run.Completed",
        "prefect.flow-run.Failed",
        "prefect.flow-run.Crashed",
        "prefect.flow-run.Cancelled",
    ],
    "for_each": ["prefect.resource.id"],
    "threshold": 1,
}
ACTION = {"type": "change-flow-run-state", "state": "CRASHED"}


@dataclass(frozen=True)
class Work:
    """What the database says."""

    #: Flow runs that are later than LATE_WARNING, and the seconds of the latest.
    late: int = 0
    latest: float = 0.0
    #: Flow runs that have been in a state that passes for longer than STUCK.
    standing: list[tuple[str, int]] = field(default_factory=list)
    #: Pool, name, and seconds since it was heard from, of each worker.
    workers: list[tuple[str, str, float]] = field(default_factory=list)
    #: Pools with due flow runs and no worker, with their number.
    unserved: list[tuple[str, int]] = field(default_factory=list)
    #: Global concurrency limits whose slots are held, and runs at work.
    slots: list[tuple[str, int]] = field(default_factory=list)
    at_work: int = 0
    #: Automations "Crash detection": enabled, and all.
    detection: tuple[int, int] = (0, 0)
    #: What of it is other than the playbook has made it.
    edited: list[str] = field(default_factory=list)
    #: Flow runs that ended within the last hour, by the type of their state: for the history.
    ended: list[tuple[str, int]] = field(default_factory=list)
    #: Workers that have an account, which are those of the inventory; None: not known.
    accounts: frozenset[str] | None = None
    #: Those of workers that the playbook does not make: missed once they were there, and not before.
    elsewhere: frozenset[str] = frozenset()


def _same(wanted: Any, found: Any) -> bool:
    # Prefect keeps names of events as a set.
    return sorted(found) == sorted(wanted) if isinstance(wanted, list) and isinstance(found, list) else found == wanted


def edited(trigger: dict[str, Any], actions: list[dict[str, Any]]) -> list[str]:
    """What of the automation somebody has changed, by its names in the API."""
    changed = [name for name, wanted in TRIGGER.items() if not _same(wanted, trigger.get(name))]
    if len(actions) != 1 or any(actions[0].get(name) != wanted for name, wanted in ACTION.items()):
        return [*changed, "actions"]
    # The message names the seconds that the playbook has given it; there is no other record of them here.
    if f" {trigger.get('within') or 0:.0f} seconds" not in str(actions[0].get("message")):
        changed.append("within")
    return changed


def accounts(path: Path = ACCOUNTS) -> tuple[frozenset[str] | None, frozenset[str]]:
    """Names of the workers that have an account: of the playbook's own (None where that cannot be read), and of others."""
    try:
        names = [name for name, account in json.loads(path.read_text()).items() if account["role"] == "worker"]
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None, frozenset()
    own = frozenset(name.removeprefix(OF_PLAYBOOK) for name in names if name.startswith(OF_PLAYBOOK))
    return own, frozenset(name for name in names if not name.startswith(OF_PLAYBOOK))


def look(host: Host) -> Work:
    """Raises Failure, psycopg.Error."""
    with host.postgres.connect(patience=LOOK) as connection:

        def rows(query: LiteralString, *values: float) -> list[tuple[Any, ...]]:
            return connection.execute(query, values).fetchall()

        ((late, latest),) = rows(LATE, LATE_WARNING)
        detection = rows(DETECTION)
        own, elsewhere = accounts()
        return Work(
            late,
            latest,
            rows(STANDING, STUCK),
            rows(WORKERS, FORGOTTEN_DAYS),
            rows(UNSERVED, SILENT),
            rows(SLOTS),
            rows(AT_WORK)[0][0],
            (sum(enabled for enabled, *_ in detection), len(detection)),
            edited(*detection[0][1:]) if detection else [],
            rows(ENDED),
            accounts=own,
            elsewhere=elsewhere,
        )


def late_runs(work: Work) -> Finding:
    """Flow runs that should have started."""
    limit = f"none by more than {duration(LATE_WARNING)}"
    if not work.late:
        return Finding("late flow runs", Level.OK, "none", limit)
    measured = f"{work.late}, the latest by {duration(work.latest)}"
    mend = f"systemctl status 'prefect-worker@*'; {cli('flow-run ls --state Late; prefect work-pool ls')}"
    return Finding("late flow runs", graded(work.latest, LATE_WARNING, LATE_BAD), measured, limit, mend)


def standing_runs(work: Work) -> Finding:
    """Flow runs in a state that passes, for too long."""
    measured = ", ".join(f"{count} {state.capitalize()}" for state, count in work.standing) or "none"
    mend = cli("flow-run ls --state Pending --state Cancelling; prefect flow-run cancel ID") if work.standing else ""
    return Finding(
        "stuck flow runs",
        Level.WARNING if work.standing else Level.OK,
        measured,
        f"none for more than {duration(STUCK)}",
        mend,
    )


def workers_online(work: Work) -> list[Finding]:
    """Each worker that this server knows of, and each that should be there."""
    limit = f"a heartbeat within {duration(SILENT)}"
    findings = []
    for pool, name, silent in work.workers:
        # One that was taken out of the inventory, or that somebody has run by hand, may stop as it likes.
        if silent > SILENT and work.accounts is not None and name not in work.accounts | work.elsewhere:
            continue
        level = Level.BAD if silent > SILENT else Level.OK
        there, setting = f"on its host: systemctl status {quote(f'prefect-worker@{name}')}", "prefect_workers"
        if name in work.elsewhere:
            there, setting = "look at it where it runs (docs/kubernetes.md, docs/serverless.md)", "prefect_users"
        again = playbook("site.yml --tags stack,workers")
        mend = f"{there}; gone for good? Take it out of {setting}, then {again}" if level else ""
        findings.append(
            Finding(f"worker {name}", level, f"pool {pool}, last heartbeat {duration(silent)} ago", limit, mend)
        )
    for name in sorted((work.accounts or frozenset()) - {name for _, name, _ in work.workers}):
        mend = f"on its host: systemctl status prefect-worker@{name}; {playbook('site.yml --tags workers')}"
        findings.append(Finding(f"worker {name}", Level.BAD, f"no heartbeat in {FORGOTTEN_DAYS} days", limit, mend))
    if not findings:
        mend = "systemctl start 'prefect-worker@*'"
        return [Finding("workers", Level.WARNING, "no heartbeat from any", "one or more", mend)]
    return findings


def pools_served(work: Work) -> list[Finding]:
    """Pools with due flow runs and no worker online."""
    return [
        Finding(
            f"work pool {pool}",
            Level.BAD,
            f"{count} flow {'run is' if count == 1 else 'runs are'} due, but no worker is online",
            "a worker",
            f"add a worker of this pool to prefect_workers, then {playbook('site.yml --tags stack,workers')}",
        )
        for pool, count in work.unserved
    ]


def free_slots(work: Work) -> Finding:
    """Leaked slots: held while nothing is running."""
    held = ", ".join(f"{name}: {count}" for name, count in work.slots)
    lost = bool(held) and not work.at_work
    mend = cli(f"global-concurrency-limit update {quote(work.slots[0][0])} --active-slots 0") if lost else ""
    measured = f"{held} held, but nothing is running" if lost else f"{held} held" if held else "none held"
    return Finding("concurrency slots", Level.BAD if lost else Level.OK, measured, "held by running runs only", mend)


def crash_detection(work: Work) -> Finding:
    """The automation without which a lost run stays Running for ever."""
    enabled, there = work.detection
    words = (
        "enabled"
        if (enabled, there) == (1, 1) and not work.edited
        else "missing"
        if not there
        else "disabled"
        if not enabled
        else f"{there} automations of that name"
        if there > 1
        else f"edited: {', '.join(work.edited)}"
    )
    well = (enabled, there) == (1, 1) and not work.edited
    mend = "" if well else playbook("site.yml --tags workers")
    return Finding("crash detection", Level.OK if well else Level.BAD, words, "enabled and unedited", mend)


def findings(work: Work) -> Sequence[Finding]:
    """All of them."""
    return [
        late_runs(work),
        standing_runs(work),
        *workers_online(work),
        *pools_served(work),
        free_slots(work),
        crash_detection(work),
    ]
