"""All groups of checks: the one list that prefect-doctor shows and prefect-watch alerts to, and how long their results stay valid.

prefect-doctor runs all of them; prefect-watch runs the cheap ones each minute. What each costs, in milliseconds of CPU,
with the programs that it calls (measured in the lab; to start Python and import all of this takes 250):

    containers 10, public endpoint 20, work 5, database 5, machine 15, events 15, logs 15 (5,000 failed logins: 70), DNS 10, automations 10, egress 30, growth 7, audit 0
    backups 530 (restic), drift 120 (docker compose), updates 650 (apt-get)
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from prefect_backups import units as kit_units
from prefect_backups.host import Host
from prefect_backups.settings import Settings

from . import (
    audit,
    automations,
    containers,
    copies,
    database,
    domain,
    drift,
    egress,
    events,
    growth,
    logs,
    machine,
    messages,
    units,
    updates,
    way_in,
    work,
)
from .finding import Finding

MINUTE = 60.0


@dataclass(frozen=True)
class Group:
    """Checks that run together: a failure of one group hides nothing of another."""

    look: Callable[[], Sequence[Finding]]
    #: Seconds for which prefect-watch reuses its findings. 0: it runs each minute.
    good_for: float = 0.0


@dataclass
class Seen:
    """What checks have found, for metrics and history; None for what could not be checked, or was not."""

    work: work.Work | None = None
    database: database.Database | None = None
    machine: machine.Machine | None = None
    containers: Mapping[str, containers.Container | None] | None = None
    #: Beginning and end of the life of the certificate that is served, in seconds since 1970.
    certificate: tuple[float, float] | None = None
    #: Packages with pending security updates.
    updates: Sequence[str] | None = None


def groups(loaded: Settings, host: Host, seen: Seen | None = None) -> dict[str, Group]:
    """The groups by name; nothing runs yet.

    Args:
        seen: is filled by those that are looked at.
    """
    kept = seen or Seen()

    def of_work() -> Sequence[Finding]:
        kept.work = work.look(host)
        return work.findings(kept.work)

    def of_database() -> Sequence[Finding]:
        kept.database = database.look(host)
        return database.findings(kept.database)

    def of_machine() -> Sequence[Finding]:
        kept.machine = machine.look(loaded)
        return machine.findings(kept.machine)

    def of_updates() -> Sequence[Finding]:
        found = updates.look()
        kept.updates = found.packages
        return updates.findings(found)

    return {
        "containers": Group(lambda: containers.check(loaded)),
        "public endpoint": Group(lambda: way_in.check(loaded)),
        "work": Group(of_work),
        "database": Group(of_database),
        "units": Group(lambda: units.findings(kit_units.look(loaded))),
        "machine": Group(of_machine),
        "messages": Group(lambda: messages.check(loaded)),
        "events": Group(lambda: events.findings(events.look(loaded, host)), 5 * MINUTE),
        "logs": Group(lambda: logs.findings(logs.look()), 5 * MINUTE),
        "egress": Group(lambda: egress.findings(egress.look()), 5 * MINUTE),
        "audit": Group(lambda: [audit.check(Path(loaded.audit), time.time())]),
        "automations": Group(lambda: automations.findings(automations.look()), 5 * MINUTE),
        "backups": Group(lambda: copies.check(loaded), 15 * MINUTE),
        # From samples, of which there is one every 5 minutes.
        "growth": Group(lambda: growth.check(loaded, time.time()), 15 * MINUTE),
        "DNS": Group(lambda: domain.findings(domain.look(loaded.endpoint.url)), 15 * MINUTE),
        "drift": Group(
            lambda: drift.findings(drift.look(loaded.compose_file, loaded.compose_environment)), 60 * MINUTE
        ),
        "updates": Group(of_updates, 60 * MINUTE),
    }
