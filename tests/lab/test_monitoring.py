"""/status and /metrics/… through the reverse proxy, and the way out of what automations send: turned on by site.yml, used, turned
off again.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import Any

import pytest

from tests.lab import restores
from tests.lab.people import Person, gateway
from tests.lab.vps.endpoint import Endpoint
from tests.lab.vps.playbook import REPOSITORY, PlaybookRun
from tests.lab.vps.vps import Vps

sys.path.insert(0, str(REPOSITORY / "scripts"))
import _promtool

TAGS = ("--tags", "stack,metrics,automations")
SOCKETS = "/var/lib/prefect/monitoring"
#: A sample that each address has, whatever the machine.
SAMPLES = {
    "node": r'^node_systemd_unit_state{name="prefect-stack.service",state="active",type="oneshot"} 1$',
    "postgres": r"^pg_up 1$",
    "prefect": r"^python_info{",
    "caddy": r"^caddy_http_requests_total{",
}


def listeners(vps: Vps) -> list[str]:
    """The TCP addresses on which something listens, without what the kernel has chosen."""
    said = vps.ssh("ss --listening --tcp --numeric --no-header | awk '{print $4}' | sort --unique").stdout.split()
    return [address for address in said if int(address.rpartition(":")[2]) < 32768]


@pytest.fixture(scope="module")
def before(vps: Vps) -> list[str]:
    """The listeners of before, once the worker's health endpoint is one of them."""
    restores.until("the worker", lambda: "" if "127.0.0.1:8080" in (seen := listeners(vps)) else seen)
    return listeners(vps)


@pytest.fixture(scope="module")
def person(vps: Vps) -> Iterator[Person]:
    """Whom automations notify; the only host that they may reach."""
    with Person(gateway(vps)) as listening:
        yield listening


@pytest.fixture(scope="module")
def webhook(endpoint: Endpoint, person: Person) -> Iterator[Callable[[str], str]]:
    """`webhook(URL)` makes a block of Prefect's that calls this address; gives its id."""
    kind = endpoint.get("/api/block_types/slug/webhook").json()["id"]
    of_kind = {"block_schemas": {"block_type_id": {"any_": [kind]}}}
    schema = endpoint.post("/api/block_schemas/filter", of_kind).json()[0]["id"]
    ids = []

    def made(url: str) -> str:
        name = f"lab-{len(url)}-{url.rpartition('/')[2]}"
        body = {"name": name, "data": {"url": url}, "block_type_id": kind, "block_schema_id": schema}
        ids.append(endpoint.post("/api/block_documents/", body).raise_for_status().json()["id"])
        return ids[-1]

    yield made
    for one in ids:
        endpoint.delete(f"/api/block_documents/{one}")


def settings(address: str) -> list[str]:
    """Everything turned on."""
    on = {"metrics_enabled": True, "prefect_monitors": ["pinger"], "automations_allowed_hosts": [address]}
    return ["--extra-vars", json.dumps(on)]


def test_on_a_second_run_changes_nothing(vps: Vps, playbook: Callable[..., PlaybookRun], before: list[str]) -> None:
    on = settings(gateway(vps))
    first = playbook("site.yml", *TAGS, *on)
    assert {"Listen for the reverse proxy, now and at boot", "Start it, now and at boot"} <= set(first.changed_tasks)
    assert playbook("site.yml", *TAGS, *on).recap["changed"] == 0
    # The forward proxy listens on the host's loopback.
    assert listeners(vps) == sorted([*before, "127.0.0.1:3128"])


def test_automations_reach_who_is_allowed_and_nobody_else(
    vps: Vps, endpoint: Endpoint, person: Person, webhook: Callable[[str], str]
) -> None:
    """A webhook and a notification, of the server's own services; where they may not go, the doctor says so."""
    allowed, refused = webhook(person.url.replace("json://", "http://")), webhook("http://refused.example.org/x")
    for name, block in (("allowed", allowed), ("refused", refused)):
        body = {
            "name": f"lab {name}",
            "trigger": {"type": "event", "expect": [f"lab.{name}"], "posture": "Reactive", "threshold": 1, "within": 0},
            "actions": [{"type": "call-webhook", "block_document_id": block, "payload": f'{{"told": "{name}"}}'}],
        }
        automation = endpoint.post("/api/automations/", body).raise_for_status().json()["id"]
        event = {"event": f"lab.{name}", "resource": {"prefect.resource.id": "lab"}, "id": str(uuid.uuid4())}
        occurred = datetime.now(UTC).isoformat()

        def seen(event: dict[str, Any] = event, occurred: str = occurred, name: str = name) -> str:
            # The automation is known to the services some seconds after it was made: so until it has acted.
            endpoint.post("/api/events", [{**event, "id": str(uuid.uuid4()), "occurred": occurred}]).raise_for_status()
            if name == "allowed":
                return "" if {"told": name} in person.messages else f"nothing: {person.messages}"
            found = json.loads(vps.ssh("prefect-doctor --json", check=False).stdout)["findings"]
            (of_automations,) = [one for one in found if one["check"] == "automations"]
            return "" if "refused: refused.example.org (" in of_automations["measured"] else str(of_automations)

        restores.until(f"the webhook of {name}", seen, limit=90)
        endpoint.delete(f"/api/automations/{automation}")


@pytest.mark.parametrize("name", SAMPLES)
def test_a_scrape(endpoint: Endpoint, name: str) -> None:
    answer = endpoint.get(f"/metrics/{name}", user="pinger")
    assert answer.status_code == 200
    assert re.search(SAMPLES[name], answer.text, re.MULTILINE)
    assert_promtool_takes(answer.text)


def assert_promtool_takes(text: str) -> None:
    """It reads the whole, and finds nothing to say about names and units of the kit's own."""
    if not (promtool := _promtool.there()):
        # Lint, which comes before, has said that this machine has none.
        return
    # 3: it has read everything, and would have called something otherwise.
    done = subprocess.run([promtool, "check", "metrics"], input=text, capture_output=True, text=True)
    assert done.returncode in (0, 3), done.stderr
    assert "prefect_kit" not in done.stdout + done.stderr


def test_a_monitor_reads_nothing_else(endpoint: Endpoint) -> None:
    for path in ("/", "/api/health", "/api/metrics", "/metrics/../api/health", "/ui-settings"):
        assert endpoint.get(path, user="pinger").status_code == 401
    assert endpoint.post("/metrics/node", {}, user="pinger").status_code == 405
    for path in ("/status", "/metrics/node"):
        assert endpoint.get(path, user="pinger", password="wrong").status_code == 401
        assert endpoint.get(path, user=None).status_code == 401
    assert endpoint.get("/metrics/node").status_code == 200


def test_only_the_proxy_gets_to_the_exporters_and_they_to_little(vps: Vps, endpoint: Endpoint) -> None:
    connect = "import socket, sys; socket.socket(socket.AF_UNIX).connect(sys.argv[1])"
    for name in ("node", "postgres"):
        refused = vps.ssh(f"runuser -u nobody -- python3 -c '{connect}' {SOCKETS}/{name}.sock", check=False)
        assert "PermissionError" in refused.stderr
    rows = "docker exec --user postgres prefect-postgres psql -U prefect_metrics -d prefect -c 'SELECT 1 FROM flow_run'"
    assert "permission denied" in vps.ssh(rows, check=False).stderr
    # Figures of the kit's own, written by its watch, and of anybody's.
    vps.ssh("echo lab_figure 7 > /var/lib/prometheus/node-exporter/lab.prom; systemctl start prefect-watch.service")
    scraped = endpoint.get("/metrics/node", user="pinger").text
    assert "\nlab_figure 7\n" in scraped
    assert re.search(r'^prefect_kit_info{.*version="', scraped, re.MULTILINE)
    assert re.search(r'^prefect_kit_check_level{check="API write"} 0$', scraped, re.MULTILINE)
    assert set(re.findall(r"^prefect_kit_collect_success{.*} (.*)$", scraped, re.MULTILINE)) == {"1"}
    assert_promtool_takes(scraped)


@pytest.fixture
def nobody_watches(vps: Vps) -> Iterator[None]:
    """While this test writes what the watch would."""
    timer = vps.ssh("systemctl is-active prefect-watch.timer", check=False).stdout.strip()
    if timer == "active":
        vps.ssh("systemctl stop prefect-watch.timer prefect-watch.service")
    yield
    vps.ssh(f"rm --force {SOCKETS}/status.txt")
    if timer == "active":
        vps.ssh("systemctl start prefect-watch.timer")


def test_the_status_is_what_was_found_and_not_long_ago(vps: Vps, endpoint: Endpoint, nobody_watches: None) -> None:
    def found(level: str, seconds: int) -> tuple[int, str]:
        program = (
            "from datetime import UTC, datetime, timedelta; from prefect_watch import status;"
            " from prefect_doctor.finding import Finding, Level; status.write(status.PATH,"
            f" [Finding('workers', Level.{level}, 'lab')], datetime.now(UTC) - timedelta(seconds={seconds}))"
        )
        root = "/opt/prefect/backups"
        vps.ssh(f'umask 077; PYTHONPATH={root}/current {root}/venv/bin/python -B -c "{program}"')
        answer = endpoint.get("/status", user="pinger")
        return answer.status_code, answer.text

    code, text = found("OK", 0)
    assert code == 200 and re.fullmatch(r"ok \d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ\n", text)
    code, text = found("BAD", 0)
    assert code == 503 and text.endswith("Z\nBAD workers: lab\n")
    code, text = found("OK", 200)
    assert code == 503 and text.startswith("The checks of this server have not run in the last 150 s.")


def test_off_again_leaves_nothing(
    vps: Vps, playbook: Callable[..., PlaybookRun], endpoint: Endpoint, before: list[str]
) -> None:
    playbook("site.yml", *TAGS)
    left = vps.ssh(
        "find / -xdev ( -path /var/lib/docker -o -path /var/cache -o -path /proc -o -path /opt/prefect ) -prune -o"
        " ( -name '*prometheus*' -o -name 'prefect-metrics*' -o -name metrics.applied ) -print".replace(
            "(", r"\("
        ).replace(")", r"\)")
    ).stdout
    assert left == ""
    assert vps.ssh(f"ls -A {SOCKETS} | grep sock; getent passwd prometheus", check=False).stdout == ""
    roles = "docker exec --user postgres prefect-postgres psql -U prefect -Atc 'SELECT rolname FROM pg_roles'"
    assert "prefect_metrics" not in vps.ssh(roles).stdout
    assert vps.ssh("systemctl list-units --all --no-legend 'prefect-metrics*' 'prometheus*'").stdout == ""
    assert listeners(vps) == before
    made = "ls -d /etc/systemd/system/prefect-automations* /etc/prefect-automations/* /var/lib/prefect/automations/*"
    assert vps.ssh(made, check=False).stdout == ""
    # The account is out, and there is nothing for others.
    assert endpoint.get("/status", user="pinger").status_code == 401
    assert endpoint.get("/metrics/node").status_code == 404
