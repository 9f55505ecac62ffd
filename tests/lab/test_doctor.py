"""prefect-doctor on a server that is well, and on one where several things are broken by what breaks them."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from tests.lab import restores
from tests.lab.seed import psql
from tests.lab.vps.endpoint import Endpoint
from tests.lab.vps.playbook import REPOSITORY
from tests.lab.vps.vps import Vps

# What a VPS in a container has of the machine that it is on: its clock, its memory, its disk.
OF_THE_MACHINE = ("clock", "memory", "out-of-memory kills", "disk", "swap", "security updates", "reboot")
# They are of the last hour, and stay for that long.
OF_THE_HOUR = ("failed logins", "failed ssh logins")
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
        if name != "exit" and one["level"] != "OK" and not name.startswith((*OF_THE_MACHINE, *OF_THE_HOUR))
    }


def test_a_server_that_is_well(vps: Vps, endpoint: Endpoint) -> None:
    # What was due while the snapshot was one, its worker takes in its first minute.
    restores.until("late runs have begun", lambda: "late flow runs" in wrong(doctor(vps)) and "some wait")
    found = doctor(vps)
    assert wrong(found) == {}
    assert {"prefect-server", "API write", "certificate", "worker general-1", "database", "backups"} <= set(found)
    assert {
        "events",
        "DNS",
        "deployed files",
        "container configuration",
        "failed logins",
        "certificate renewal",
    } <= set(found)
    assert endpoint.get("/api/variables/name/prefect_kit_doctor").status_code == 404
    # For a person, in a pipe: no line is cut.
    table = vps.ssh("prefect-doctor", check=False).stdout
    assert "of" in table.splitlines()[-1] and "checks are ok" in table.splitlines()[-1]


@contextmanager
def broken(vps: Vps, endpoint: Endpoint) -> Iterator[None]:
    """A worker that somebody has stopped, crash detection switched off, a slot of nobody's, a unit that fails, no proxy."""
    found = endpoint.post("/api/automations/filter", {"automations": {"name": {"any_": ["Crash detection"]}}}).json()
    automation = f"/api/automations/{found[0]['id']}"
    endpoint.request("PATCH", automation, json={"enabled": False}).raise_for_status()
    limit = {"name": "of-nobody", "limit": 2, "active": True, "active_slots": 1}
    endpoint.post("/api/v2/concurrency_limits/", limit).raise_for_status()
    vps.ssh(f"systemctl stop {WORKER}; systemd-run --wait --unit=lab-broken false", check=False)
    # Without an event of the look before, whose arrival would be told.
    vps.ssh("docker stop prefect-caddy; rm --force /var/lib/prefect/backups/doctor_event.json")
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
        "API write": "BAD",
        "UI": "BAD",
        "events": "BAD",
        "workers on this host": "BAD",
        "crash detection": "BAD",
        "concurrency slots": "BAD",
        "failed units": "WARNING",
    }
    assert found["workers on this host"]["mend"] == f"systemctl start {WORKER}.service"
    assert found["concurrency slots"]["mend"].endswith(
        "prefect global-concurrency-limit update of-nobody --active-slots 0"
    )
    assert all(one["mend"] for name, one in found.items() if name in wrong(found))


# Answers each question for an IPv4 address with 192.0.2.99.
NAME_SERVER = """
import socket
server = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
server.bind(("127.0.0.1", 53))
while True:
    asked, client = server.recvfrom(512)
    four = asked[-3] == 1
    answer = b"\\xc0\\x0c\\0\\1\\0\\1\\0\\0\\0\\0\\0\\4\\xc0\\0\\2\\x63" if four else b""
    server.sendto(asked[:2] + b"\\x81\\x80\\0\\1\\0" + bytes([four, 0, 0, 0, 0]) + asked[12:] + answer, client)
"""
TIMER, STACK = "/etc/systemd/system/prefect-backup.timer", "/etc/prefect/stack.env"


def proxy_beside(vps: Vps, tls: str) -> None:
    """The kit's Caddyfile in a container without a network, for some seconds: it gets a certificate by itself, or not from ACME."""
    vps.ssh(
        "timeout 3 docker run --rm --network none --log-driver journald --log-opt tag=prefect-caddy --tmpfs /data --tmpfs /config"
        " --volume /opt/prefect/caddy:/etc/caddy:ro --volume /etc/prefect/caddy:/etc/prefect-caddy:ro"
        f" --env PREFECT_DOMAIN=lab.example.org --env PREFECT_TLS={tls} --env PREFECT_ACME_EMAIL=lab@example.org"
        " --env PREFECT_ACME_DIRECTORY=https://127.0.0.1:1/directory"
        " $(docker inspect --format '{{.Config.Image}}' prefect-caddy)"
        " caddy run --config /etc/caddy/Caddyfile --adapter caddyfile",
        check=False,
    )


@contextmanager
def drifted(vps: Vps, endpoint: Endpoint) -> Iterator[None]:
    """Files changed by hand, a name server that leads elsewhere, guessed passwords, no certificate, no room for events."""
    with endpoint.client("nobody", "guessed") as stranger:
        assert {stranger.get("/").status_code for _ in range(100)} == {401}
    vps.ssh("ssh -o BatchMode=yes -o StrictHostKeyChecking=accept-new nobody@127.0.0.1", check=False)
    vps.ssh(f"cp --preserve {TIMER} {STACK} /etc/resolv.conf /root/")
    vps.ssh(f"echo '# by hand' >> {TIMER}; sed --in-place 's/^CADDY_MEMORY=.*/CADDY_MEMORY=201m/' {STACK}")
    vps.ssh("cat > /root/name_server.py; systemd-run --unit=lab-dns python3 /root/name_server.py", text=NAME_SERVER)
    vps.ssh("echo nameserver 127.0.0.1 > /etc/resolv.conf")
    proxy_beside(vps, "acme")
    vps.ssh("rm --force /var/lib/prefect/backups/doctor_event.json")
    lock = "BEGIN; LOCK TABLE events IN SHARE MODE; SELECT pg_sleep(11)"
    vps.ssh(f"docker exec --detach prefect-postgres psql --username=prefect --command='{lock}'")
    try:
        yield
    finally:
        vps.ssh(
            f"cat /root/resolv.conf > /etc/resolv.conf; systemctl stop lab-dns; mv /root/stack.env {STACK};"
            f" mv /root/prefect-backup.timer {TIMER}; systemctl daemon-reload"
        )
        proxy_beside(vps, "internal")


def test_what_is_not_as_it_was_deployed_and_who_knocks(vps: Vps, endpoint: Endpoint) -> None:
    with drifted(vps, endpoint):
        found = doctor(vps)
    assert wrong(found) == {
        "deployed files": "WARNING",
        "unit files": "WARNING",
        "container configuration": "WARNING",
        "DNS": "WARNING",
        "certificate renewal": "WARNING",
        # One of some seconds ago; of one that is older it would be bad.
        "events": "WARNING",
    }
    measured = {name: one["measured"] for name, one in found.items() if name != "exit"}
    assert measured["deployed files"] == f"changed by hand or gone: {STACK}, {TIMER}"
    assert measured["unit files"] == "changed, not reloaded: prefect-backup.timer"
    assert measured["container configuration"] == "outdated: caddy"
    assert "resolves to 192.0.2.99 (name servers asked: 127.0.0.1); 192.0.2.99 is not an address of" in measured["DNS"]
    assert "https://127.0.0.1:1/directory" in measured["certificate renewal"]
    assert found["failed logins"]["level"] == "WARNING"
    # All are told, of the one address; those that a run before this one has left are among them.
    count, _, words = measured["failed logins"].partition(" in the last hour from ")
    assert (int(count) >= 100, words.startswith(f"1 address, the most ({count}) from ")) == (True, True)
    assert int(measured["failed ssh logins"].split()[0]) >= 1


# 120,000 dead rows that no vacuum may remove, and an index that could not be built.
WORN = """
CREATE TABLE lab_worn (id int) WITH (autovacuum_enabled = false);
INSERT INTO lab_worn SELECT generate_series(1, 120000); UPDATE lab_worn SET id = 1;
"""
INDEX = "CREATE UNIQUE INDEX CONCURRENTLY lab_index ON lab_worn (id)"
# As a program that opens connections and gives none back.
CONNECTIONS = """
import time, psycopg
kept = [psycopg.connect("host=/var/lib/prefect/postgres/socket user=prefect dbname=prefect") for _ in range(28)]
open("/run/lab-connected", "w")
time.sleep(60)
"""
PYTHON = "/opt/prefect/backups/venv/bin/python"
STAGING = "/var/backups/prefect/staging"


def due(endpoint: Endpoint, pool: str, state: str) -> str:
    """A flow run of ten minutes ago that nobody has taken on since; gives its id."""
    deployment = endpoint.get("/api/deployments/name/hello/hello").raise_for_status().json()
    since = (datetime.now(UTC) - timedelta(minutes=10)).isoformat()
    body = {
        "flow_id": deployment["flow_id"],
        "deployment_id": deployment["id"],
        "state": {"type": state, "state_details": {"scheduled_time": since}},
        "work_pool_name": pool,
    }
    return endpoint.post("/api/flow_runs/", body).raise_for_status().json()["id"]


@contextmanager
def worn(vps: Vps, endpoint: Endpoint) -> Iterator[None]:
    """Dead rows, an index that is not valid, hardly a connection or a disk left, work for nobody, a reboot due."""
    endpoint.post("/api/work_pools/", {"name": "lab-empty", "type": "process"}).raise_for_status()
    ids = [due(endpoint, "lab-empty", state) for state in ("SCHEDULED", "PENDING")]
    # The server takes no time of a state from a client.
    psql(vps, f"{WORN} UPDATE flow_run SET state_timestamp = now() - interval '20 minutes' WHERE id = '{ids[1]}'")
    vps.ssh(f"docker exec prefect-postgres psql --username=prefect --command='{INDEX}'", check=False)
    vps.ssh(
        f"systemd-run --unit=lab-connections {PYTHON} -c '{CONNECTIONS}'; touch -d '8 days ago' /run/reboot-required;"
        f" mount -t tmpfs -o size=64m none {STAGING}"
        "; for i in $(seq 100); do test -e /run/lab-connected && break; sleep 0.1; done"
    )
    try:
        yield
    finally:
        vps.ssh(f"umount {STAGING}; systemctl stop lab-connections; rm -f /run/reboot-required /run/lab-connected")
        psql(vps, "DROP TABLE lab_worn")
        for one in ids:
            endpoint.delete(f"/api/flow_runs/{one}").raise_for_status()
        endpoint.delete("/api/work_pools/lab-empty").raise_for_status()


def test_a_database_that_is_worn_and_work_that_nobody_does(vps: Vps, endpoint: Endpoint) -> None:
    # What the test before has held up, events among it, is over.
    restores.until("all is well", lambda: wrong(doctor(vps)))
    with worn(vps, endpoint):
        found = doctor(vps)
    measured = {name: found[name]["measured"] for name in wrong(found)}
    print(measured)
    assert wrong(found) == {
        "dead rows": "WARNING",
        "indexes": "WARNING",
        "connections": "WARNING",
        "late flow runs": "WARNING",
        "stuck flow runs": "WARNING",
        "work pool lab-empty": "BAD",
    }
    assert measured["dead rows"].startswith("lab_worn: 120,000 (50%)")
    assert (measured["indexes"], measured["stuck flow runs"]) == ("not valid: lab_index", "1 Pending")
    assert (measured["late flow runs"], measured["work pool lab-empty"]) == (
        "1, the latest by 10 minutes",
        "1 flow run is due, but no worker is online",
    )
    assert (found[f"disk {STAGING}"]["level"], found[f"disk {STAGING}"]["measured"]) == ("BAD", "0% used, 67 MB free")
    assert (found["reboot"]["level"], found["reboot"]["measured"]) == ("WARNING", "pending for 8 days")


def test_from_the_laptop(vps: Vps, inventory_directory: Path, tmp_path: Path) -> None:
    """All hosts of an inventory; of one that nobody reaches that is said."""
    mine = tmp_path / "mine"
    shutil.copytree(inventory_directory, mine)
    away = "workers: {hosts: {away: {ansible_host: 127.0.0.1, ansible_port: 1}}}\n"
    with (mine / "hosts.yml").open("a") as file:
        file.write(away)
    command = [REPOSITORY / "scripts" / "doctor", "-i", mine, "--json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    print(done.stdout, done.stderr)
    found = {(one["host"], one["check"]): one for one in json.loads(done.stdout)["findings"]}
    assert found[vps.name, "prefect-server"]["level"] == "OK"
    assert (found["away", "host"]["level"], done.returncode) == ("UNKNOWN", 3)
    assert "Connection refused" in found["away", "host"]["measured"]


def test_it_is_well_again(vps: Vps) -> None:
    restores.until("all is well", lambda: wrong(doctor(vps)))
