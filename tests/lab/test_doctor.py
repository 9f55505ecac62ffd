"""prefect-doctor on a server that is well, and on one where several things are broken by what breaks them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from tests.lab import restores
from tests.lab.vps.endpoint import Endpoint
from tests.lab.vps.vps import Vps

# What a VPS in a container has of the machine that it is on: its clock, its memory, its disk.
OF_THE_MACHINE = ("clock", "memory", "killed for memory", "disk", "security updates", "reboot")
WORKER = "prefect-worker@general-1"


def doctor(vps: Vps) -> dict[str, Any]:
    """What it has found, by check; `exit` is its exit code."""
    done = vps.ssh("prefect-doctor --json", check=False)
    said = json.loads(done.stdout)
    print(f"prefect-doctor took {said['seconds']} s")
    return {one["check"]: one for one in said["findings"]} | {"exit": done.returncode}


def wrong(found: dict[str, Any]) -> dict[str, str]:
    """The level of what is not well, without what is of the machine below."""
    return {
        name: one["level"]
        for name, one in found.items()
        if name != "exit" and one["level"] != "OK" and not name.startswith(OF_THE_MACHINE)
    }


def test_a_server_that_is_well(vps: Vps, endpoint: Endpoint) -> None:
    found = doctor(vps)
    assert wrong(found) == {}
    assert {"prefect-server", "API, a write", "certificate", "worker general-1", "database", "backups"} <= set(found)
    assert endpoint.get("/api/variables/name/prefect_kit_doctor").status_code == 404
    # For a person, in a pipe: no line is cut.
    table = vps.ssh("prefect-doctor", check=False).stdout
    assert "of" in table.splitlines()[-1] and "are well" in table.splitlines()[-1]


@contextmanager
def broken(vps: Vps, endpoint: Endpoint) -> Iterator[None]:
    """A worker that somebody has stopped, crash detection switched off, a slot of nobody's, a unit that fails, no proxy."""
    found = endpoint.post("/api/automations/filter", {"automations": {"name": {"any_": ["Crash detection"]}}}).json()
    automation = f"/api/automations/{found[0]['id']}"
    endpoint.request("PATCH", automation, json={"enabled": False}).raise_for_status()
    limit = {"name": "of-nobody", "limit": 2, "active": True, "active_slots": 1}
    endpoint.post("/api/v2/concurrency_limits/", limit).raise_for_status()
    vps.ssh(f"systemctl stop {WORKER}; systemd-run --wait --unit=lab-broken false", check=False)
    vps.ssh("docker stop prefect-caddy")
    try:
        yield
    finally:
        vps.ssh(f"docker start prefect-caddy; systemctl start {WORKER}; systemctl reset-failed lab-broken", check=False)
        restores.until("the proxy", lambda: "" if endpoint.get("/api/ready").status_code == 200 else "not ready")
        endpoint.delete("/api/v2/concurrency_limits/of-nobody").raise_for_status()
        endpoint.request("PATCH", automation, json={"enabled": True}).raise_for_status()


def test_each_thing_that_is_broken_is_named_with_what_mends_it(vps: Vps, endpoint: Endpoint) -> None:
    with broken(vps, endpoint):
        found = doctor(vps)
    assert found["exit"] == 2
    assert wrong(found) == {
        "prefect-caddy": "BAD",
        "certificate": "BAD",
        "API": "BAD",
        "API, a write": "BAD",
        "UI": "BAD",
        "workers of this host": "BAD",
        "crash detection": "BAD",
        "concurrency slots": "BAD",
        "failed units": "WARNING",
    }
    assert found["workers of this host"]["mend"] == f"systemctl start {WORKER}.service"
    assert found["concurrency slots"]["mend"].startswith("prefect global-concurrency-limit update of-nobody")
    assert all(one["mend"] for name, one in found.items() if name in wrong(found))


def test_it_is_well_again(vps: Vps) -> None:
    restores.until("all is well", lambda: wrong(doctor(vps)))
