"""All groups of checks: the one list that prefect-doctor shows and prefect-watch tells of."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from prefect_backups import units as kit_units
from prefect_backups.host import Host
from prefect_backups.settings import Settings

from . import containers, copies, database, growth, machine, messages, units, way_in, work
from .finding import Finding


@dataclass(frozen=True)
class Group:
    """Checks that are looked at in one go."""

    look: Callable[[], Sequence[Finding]]
    #: Seconds for which prefect-watch reuses what was found: what costs more is looked at less often. 0: never.
    seconds: float = 0.0


@dataclass
class Seen:
    """What checks have found, for who wants its figures; None for what could not be looked at, or was not."""

    work: work.Work | None = None
    database: database.Database | None = None
    machine: machine.Machine | None = None


def groups(loaded: Settings, host: Host, seen: Seen | None = None) -> dict[str, Group]:
    """By name; each is tried by itself, so that what is down hides nothing else.

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

    return {
        "containers": Group(lambda: containers.check(loaded)),
        "way in": Group(lambda: way_in.check(loaded)),
        "work": Group(of_work),
        "database": Group(of_database),
        "units": Group(lambda: units.findings(kit_units.look(loaded))),
        # Opens the repository, which derives a key: half a second of a core.
        "backups": Group(lambda: copies.check(loaded), 900.0),
        "machine": Group(of_machine),
        # From samples, of which there is one every 5 minutes.
        "growth": Group(lambda: growth.check(loaded, time.time()), 900.0),
        "messages": Group(lambda: messages.check(loaded)),
    }
