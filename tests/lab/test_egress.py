"""What leaves the server: the watcher names it, and the firewall stops what may not.

It ends with flows that are held (workers_egress: listed), as all of test_docker_pool, the next file, wants them.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any

import pytest

from tests.lab import outside
from tests.lab.outside import EVIL_NAME, RESOLVER, STRANGER, STRANGER6, TRIES

WORKER = "general-1"
SETTINGS = {
    "workers_egress": "listed",
    "workers_egress_names": [outside.LISTED_NAME],
    "workers_egress_networks": outside.NETWORKS,
}
WATCHED = "/run/residency"
#: What a server of the lab may send, beside what its flows do.
REASONS = {
    "name server of the host",
    "packages and security updates",
    # Whoever asks its public endpoint looks its name up, now and then.
    "prefect_domain: the server itself",
    "stays on the link: neighbours, leases, multicast",
}


@pytest.fixture(scope="module")
def beyond(host) -> Iterator[outside.Outside]:
    made = outside.Outside(host)
    yield made
    made.down()


@pytest.fixture
def watched(host) -> Callable[[], AbstractContextManager[dict[str, Any]]]:
    """`with watched() as found:` watches until its end; `found` then has the exit code, and the reason by what was sent."""

    @contextlib.contextmanager
    def watch() -> Iterator[dict[str, Any]]:
        found: dict[str, Any] = {}
        host.check_output(
            f"rm --force {WATCHED}.*; systemd-run --quiet --collect --unit=residency --property=StandardOutput=append:{WATCHED}.json"
            f" --property=StandardError=append:{WATCHED}.log --property=ExecStopPost='/bin/sh -c \"echo $EXIT_STATUS > {WATCHED}.rc\"'"
            " --property=KillSignal=SIGINT --property=KillMode=mixed --property=TimeoutStopSec=20"
            " prefect-doctor residency --seconds 60 --json"
        )
        end = time.monotonic() + 30
        while "watching" not in host.run(f"cat {WATCHED}.log").stdout:
            assert time.monotonic() < end, host.run(f"cat {WATCHED}.log").stdout
            time.sleep(0.3)
        yield found
        # What was sent last is captured, too.
        time.sleep(1)
        host.check_output("systemctl stop residency.service")
        told = json.loads(host.check_output(f"cat {WATCHED}.json"))
        found["code"] = int(host.check_output(f"cat {WATCHED}.rc"))
        found["reasons"] = {line["what"]: line["reason"] for line in told["sent"]}

    return watch


def test_all_that_the_server_sends_has_a_reason(host, endpoint, watched, beyond):
    with watched() as found:
        deployment = endpoint.get("/api/deployments/name/prefect-kit/smoke").json()["id"]
        run = endpoint.post(f"/api/deployments/{deployment}/create_flow_run", {}).json()["id"]
        host.check_output("apt-get update --quiet")
        host.check_output("systemctl start prefect-backup.service prefect-watch.service")
        assert endpoint.get("/").status_code == 200
        end = time.monotonic() + 90
        while endpoint.get(f"/api/flow_runs/{run}").json()["state"]["name"] != "Completed":
            assert time.monotonic() < end
            time.sleep(0.5)
    assert (found["code"], set(found["reasons"].values()) - REASONS) == (0, set()), found
    assert set(found["reasons"].values()) >= {"name server of the host", "packages and security updates"}
    assert beyond.arrived() == set()


def test_the_watcher_names_each_way_by_which_a_flow_sends(host, watched, beyond):
    """TCP, UDP, names at the host's name server and at another one, ping, IPv6: while flows may connect to anywhere."""
    sent = [["tcp", STRANGER, 443], ["udp", STRANGER, 4444], ["ping", STRANGER, 0]]
    sent += [["tcp", STRANGER6, 443], ["udp", STRANGER6, 4444], ["ask", RESOLVER, EVIL_NAME], ["name", EVIL_NAME, 443]]
    with watched() as found:
        ended = outside.as_worker(host, WORKER, sent)
    assert ended[:5] == ["connected", "sent", "14", "connected", "sent"]
    unexplained = {what for what, reason in found["reasons"].items() if reason == "unexplained"}
    assert found["code"] == 1
    assert unexplained == {
        f"{STRANGER}:443/tcp",
        f"{STRANGER}:4444/udp",
        f"{STRANGER}/icmp",
        f"[{STRANGER6}]:443/tcp",
        f"[{STRANGER6}]:4444/udp",
        f"{RESOLVER}:53/udp",
        f"name {EVIL_NAME}",
    }
    assert beyond.arrived() >= {STRANGER, STRANGER6, RESOLVER}


def test_containers_of_the_stack_send_nothing(host, beyond):
    host.check_output("nft flush set inet prefect refused4")
    before = beyond.arrived_packets()
    assert (
        "Could not connect"
        in host.run(f"docker exec prefect-caddy curl --silent --show-error --max-time 5 http://{STRANGER}").stderr
    )
    tries = f'import socket; socket.create_connection(("{STRANGER}", 443), timeout=5)'
    assert "unreachable" in host.run(f"docker exec prefect-server python -c '{tries}'").stderr
    tries = f'import socket; socket.getaddrinfo("{EVIL_NAME}", 443)'
    assert "gaierror" in host.run(f"docker exec prefect-server python -c '{tries}'").stderr
    assert beyond.arrived_packets() == before
    found = json.loads(host.run("prefect-doctor --json").stdout)["findings"]
    (refused,) = [one for one in found if one["check"] == "egress of the stack"]
    assert refused["measured"] == f"refused: the reverse proxy to {STRANGER}:80/tcp (1 packet)"
    # Later tests want all to be well.
    host.check_output("nft flush set inet prefect refused4")


def test_a_flow_sends_only_where_it_may(host, playbook, beyond, aloud):
    settings = ("--extra-vars", json.dumps(SETTINGS))
    with aloud("flows may connect to what is listed"):
        playbook("site.yml", "--tags", "workers", *settings)
    beyond.resolve()
    before = beyond.arrived_packets()
    tries = [one for one, _ in TRIES]
    ended = list(zip(tries, outside.as_worker(host, WORKER, tries), TRIES, strict=True))
    assert [(one, how) for one, how, (_, allowed) in ended if how not in allowed] == []
    assert {outside.destination(line) for line in beyond.arrived_packets() - before} == {
        outside.LISTED,
        outside.LISTED6,
        outside.LISTED_ADDRESS,
    }
    assert "tunnel" not in beyond.asked() and "below" not in beyond.asked()
    found = json.loads(host.run("prefect-doctor --json").stdout)["findings"]
    (refused,) = [one for one in found if one["check"] == "egress of flows"]
    assert refused["level"] == "WARNING"
    for words in (f"prefect_{WORKER} to {STRANGER}:443/tcp", EVIL_NAME):
        assert words in refused["measured"]


def test_the_same_settings_again_change_nothing(playbook, beyond):
    again = playbook("site.yml", "--tags", "workers", "--extra-vars", json.dumps(SETTINGS))
    assert again.recap["changed"] == 0, again.changed_tasks
