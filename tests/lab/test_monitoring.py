"""/status and /metrics/… through the reverse proxy: turned on by site.yml, read by accounts that may nothing else, turned off again."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator

import pytest

from tests.lab.vps.endpoint import Endpoint
from tests.lab.vps.playbook import PlaybookRun
from tests.lab.vps.vps import Vps

TAGS = ("--tags", "stack,metrics")
ON = json.dumps({"metrics_enabled": True, "prefect_monitors": ["pinger"]})
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
    """The listeners of before."""
    return listeners(vps)


def test_on_a_second_run_changes_nothing(vps: Vps, playbook: Callable[..., PlaybookRun], before: list[str]) -> None:
    first = playbook("site.yml", *TAGS, "--extra-vars", ON)
    assert "Listen for the reverse proxy, now and at boot" in first.changed_tasks
    assert playbook("site.yml", *TAGS, "--extra-vars", ON).recap["changed"] == 0
    assert listeners(vps) == before


@pytest.mark.parametrize("name", SAMPLES)
def test_a_scrape(endpoint: Endpoint, name: str) -> None:
    answer = endpoint.get(f"/metrics/{name}", user="pinger")
    assert answer.status_code == 200
    assert re.search(SAMPLES[name], answer.text, re.MULTILINE)


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
    assert re.search(r'^prefect_kit_check_level{check="API, a write"} 0$', scraped, re.MULTILINE)
    assert set(re.findall(r"^prefect_kit_collect_success{.*} (.*)$", scraped, re.MULTILINE)) == {"1"}


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
    assert code == 503 and text.startswith("Nobody has looked at this server in the last 150 s.")


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
    # The account is out, and there is nothing for others.
    assert endpoint.get("/status", user="pinger").status_code == 401
    assert endpoint.get("/metrics/node").status_code == 404
