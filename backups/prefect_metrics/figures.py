"""The file that node exporter's textfile collector reads: every figure of the kit's, once a minute.

    seconds = figures.write(path, settings, host, findings, time.time(), Seen(work=..., database=...))

What the doctor has looked at in the same minute is given along, so that nothing is asked twice.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from prefect_backups.files import write_whole
from prefect_backups.host import Host
from prefect_backups.settings import Settings
from prefect_backups.stack import Stack
from prefect_doctor import containers, database, way_in, work
from prefect_doctor.containers import Container
from prefect_doctor.database import Database
from prefect_doctor.finding import Finding, worst_first
from prefect_doctor.registry import Seen
from prefect_doctor.work import Work

from . import backups, counters, flow_runs
from .exposition import Sample, sample, text

#: Checks, and workers, that have series of their own.
CHECKS, WORKERS = 200, 100
#: Debian's, after an update that is in effect from the next boot on.
REBOOT = Path("/run/reboot-required")


def of_findings(findings: Iterable[Finding]) -> Iterator[Sample]:
    """Of several of the same check the worst."""
    levels: dict[str, int] = {}
    for one in worst_first(findings):
        levels.setdefault(one.check, one.level)
    for check, level in list(levels.items())[:CHECKS]:
        yield sample("check_level", level, check=check)


def of_work(found: Work, now: float) -> Iterator[Sample]:
    """Of workers, and of flow runs that stand still."""
    standing = {"PENDING": 0, "CANCELLING": 0, **dict(found.standing)}
    for state, count in standing.items():
        yield sample("stuck_flow_runs", count, state=state)
    for pool, name, silent in sorted(found.workers, key=lambda one: one[2])[:WORKERS]:
        # Tenths of a second would make another number of it each time.
        heard = round(now - silent)
        yield sample("worker_last_heartbeat_timestamp_seconds", heard, work_pool=pool, worker=name)


def of_database(found: Database) -> Iterator[Sample]:
    """Of Postgres itself, as far as its own exporter says nothing, or the doctor allows less."""
    yield sample("database_size_bytes", found.size)
    yield sample("database_connections", found.connections)
    yield sample("database_connections_max", found.max_connections)
    yield sample("database_longest_transaction_seconds", found.transaction)
    yield sample("database_invalid_indexes", len(found.invalid))
    yield sample("database_checksum_failures_total", found.checksum_failures)


def of_containers(found: Mapping[str, Container | None]) -> Iterator[Sample]:
    """Of the containers of the stack; one that is not there does not run."""
    for name, one in found.items():
        well = one is not None and one.status == "running" and one.health != "unhealthy"
        yield sample("container_running", well, container=name)
        if one is not None:
            yield sample("container_restarts_total", one.restarts, container=name)
            yield sample("container_oom_killed", one.killed_for_memory, container=name)


def of_certificate(not_before: float, not_after: float) -> Iterator[Sample]:
    """Of the certificate that is served."""
    yield sample("certificate_not_before_timestamp_seconds", not_before)
    yield sample("certificate_not_after_timestamp_seconds", not_after)


def of_machine(now: float, updates: Sequence[str] | None, reboot: Path = REBOOT) -> Iterator[Sample]:
    """What node exporter does not say of the machine.

    Args:
        reboot: a file that is there while a reboot waits, and as old as that.
    """
    try:
        since = reboot.stat().st_mtime
    except FileNotFoundError:
        since = now
    yield sample("reboot_pending_seconds", max(now - since, 0.0))
    if updates is not None:
        yield sample("security_updates_pending", len(updates))


def tag(image: str) -> str:
    """The tag of an image; the whole of one that is named by its digest alone."""
    name = image.partition("@")[0]
    _, colon, found = name.rpartition(":")
    return found if colon and "/" not in found else image


def of_versions(kit: str, environment: Mapping[str, str]) -> Sample:
    """What is deployed.

    Args:
        environment: the stack's env-file.
    """
    images = {
        name: tag(environment.get(variable, ""))
        for name, variable in (("prefect", "PREFECT_IMAGE"), ("postgres", "POSTGRES_IMAGE"), ("caddy", "CADDY_IMAGE"))
    }
    return sample("info", 1, version=kit, **images)


def _flow_runs(host: Host) -> list[Sample]:
    known = counters.load(host.state)
    found = flow_runs.look(host, known)
    flow_runs.count_on(known, found)
    counters.save(host.state, known)
    return flow_runs.samples(found, known)


def parts(settings: Settings, host: Host, now: float, seen: Seen) -> dict[str, Callable[[], Iterable[Sample]]]:
    """What is taken, by its name: each by itself, so that what is down hides nothing else."""
    endpoint = settings.endpoint
    return {
        "flow_runs": lambda: _flow_runs(host),
        "work": lambda: of_work(seen.work or work.look(host), now),
        "database": lambda: of_database(seen.database or database.look(host)),
        "containers": lambda: of_containers(seen.containers or containers.look(settings)[0]),
        "certificate": lambda: of_certificate(
            *(seen.certificate or way_in.served_certificate(endpoint.url, endpoint.ca_file))
        ),
        "backups": lambda: backups.samples(settings),
        "versions": lambda: [of_versions(settings.kit, Stack(settings).environment())],
        "machine": lambda: of_machine(now, seen.updates),
    }


def _taken(name: str, take: Callable[[], Iterable[Sample]]) -> list[Sample]:
    """The samples of one part, and whether they could be taken."""
    try:
        found = list(take())
    except Exception:
        # Whatever it was: the doctor says it, and the others have figures.
        return [sample("collect_success", 0, part=name)]
    return [*found, sample("collect_success", 1, part=name)]


def take(taken: Mapping[str, Callable[[], Iterable[Sample]]]) -> list[Sample]:
    """All parts at once, since each waits for something else."""
    with ThreadPoolExecutor(len(taken)) as pool:
        return [one for found in pool.map(_taken, taken.keys(), taken.values()) for one in found]


def write(
    path: Path,
    settings: Settings,
    host: Host,
    findings: Sequence[Finding],
    now: float,
    seen: Seen | None = None,
) -> float:
    """Write the file whole, for all to read; gives the seconds that it took. Raises OSError where it cannot be written.

    Args:
        path: such as /var/lib/prometheus/node-exporter/prefect_kit.prom.
        now: seconds since 1970.
    """
    began = time.monotonic()
    # What is None in it is looked at here, but for the updates: apt is too dear to be asked each minute.
    found = [*of_findings(findings), *take(parts(settings, host, now, seen or Seen()))]
    found.append(sample("collect_duration_seconds", round(time.monotonic() - began, 3)))
    write_whole(path, text(found), mode=0o644)
    return time.monotonic() - began
