"""What the tests of prefect-watch share: its unit with settings of theirs, and looks between which time has gone by."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from tests.lab import backups
from tests.lab.vps.vps import Vps

UNIT = "prefect-watch.service"
#: On a host that watches the server of another one.
UNIT_ELSEWHERE = "prefect-watch-from.service"
ETC = "/run/watch-etc"
MEMORY = (
    "/run/prefect-watch/memory.json /var/lib/prefect/backups/watch/memory.json /var/lib/prefect-watch/watch/memory.json"
)
EVENTS = "/run/prefect-watch/datadog.json /var/lib/prefect/backups/watch/datadog.json"
# Moves all moments back that it remembers: as if the time had gone by.
AGE = """
import json, os, sys
def aged(value):
    if isinstance(value, dict): return {name: aged(one) for name, one in value.items()}
    if isinstance(value, list): return [aged(one) for one in value]
    return value - SECONDS if isinstance(value, float) and value > 1e9 else value
for path in filter(os.path.exists, sys.argv[1:]):
    with open(path) as file: known = json.load(file)
    known["looked"] = {}
    with open(path, "w") as file: json.dump({**aged(known), "at": known["at"]}, file)
"""


@contextmanager
def told(vps: Vps, settings: dict[str, Any], unit: str = UNIT) -> Iterator[None]:
    """The unit has these settings, and remembers nothing from before; nothing of it stays. Its timer is stopped by the caller."""
    vps.ssh(f"rm -f {MEMORY} {EVENTS}; install -d -m 700 {ETC}; cat > {ETC}/settings.json", text=json.dumps(settings))
    try:
        with backups.unit_environment(vps, unit, PREFECT_WATCH_ETC=ETC):
            yield
    finally:
        vps.ssh(f"rm -rf {ETC} {MEMORY} {EVENTS}")


def look(vps: Vps, seconds: float = 0, unit: str = UNIT) -> str:
    """Have it look once, after so many seconds have gone by; gives what it has said."""
    if seconds:
        vps.ssh(f"python3 - {MEMORY}", text=AGE.replace("SECONDS", str(seconds)))
    ended = backups.start(vps, unit)
    assert ended.result == "success", ended.said
    return ended.said
