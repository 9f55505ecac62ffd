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
    #: Seconds for which prefect-watch reuses what was found: what costs more is looked at less often.
    seconds: float = 60.0


def groups(loaded: Settings, host: Host) -> dict[str, Group]:
    """By name; each is tried by itself, so that what is down hides nothing else."""
    return {
        "containers": Group(lambda: containers.check(loaded)),
        "way in": Group(lambda: way_in.check(loaded)),
        "work": Group(lambda: work.findings(work.look(host))),
        "database": Group(lambda: database.findings(database.look(host))),
        "units": Group(lambda: units.findings(kit_units.look(loaded))),
        # Opens the repository, which derives a key: half a second of a core.
        "backups": Group(lambda: copies.check(loaded), 900.0),
        "machine": Group(lambda: machine.findings(machine.look(loaded))),
        # From samples, of which there is one every 5 minutes.
        "growth": Group(lambda: growth.check(loaded, time.time()), 900.0),
        "messages": Group(lambda: messages.check(loaded)),
    }
