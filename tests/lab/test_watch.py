"""prefect-watch: who is told what, by a webhook and by mail, of what is really broken; and that it is well again.

The unit is started by hand, and what it remembers is aged in between: no test waits for minutes. That the timer has it looked
each minute is seen once.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from tests.lab import restores, watching
from tests.lab.datadog_api import KEY, DatadogApi
from tests.lab.people import PASSWORD, Mailbox, Person, gateway
from tests.lab.vps.endpoint import Endpoint
from tests.lab.vps.vps import Vps
from tests.lab.watching import ETC, UNIT

# What a VPS in a container has of the machine that it is on: its clock, its memory, its disk.
OF_THE_MACHINE = ("clock", "memory", "out-of-memory kills", "disk", "security updates", "reboot")


@pytest.fixture(scope="module")
def person(vps: Vps) -> Iterator[Person]:
    with Person(gateway(vps)) as listening:
        yield listening


@pytest.fixture(scope="module")
def mailbox(vps: Vps) -> Iterator[Mailbox]:
    with Mailbox(gateway(vps)) as listening:
        yield listening


@pytest.fixture(scope="module")
def datadog(vps: Vps) -> Iterator[DatadogApi]:
    with DatadogApi(gateway(vps)) as listening:
        yield listening


@pytest.fixture(scope="module", autouse=True)
def watched(vps: Vps, person: Person, mailbox: Mailbox, datadog: DatadogApi) -> Iterator[None]:
    """Its settings name these people; it looks only when a test has it look."""
    settings = {
        "notify_urls": [person.url, mailbox.url],
        "heartbeat_url": person.heartbeat,
        "flow_runs": {"states": ["Crashed", "Failed"], "tags": ["told"], "messages_per_hour": 2},
        "datadog": {"api_key": KEY, "url": datadog.url},
    }
    with restores.no_timers(vps), watching.told(vps, settings):
        yield


Look = Callable[..., str]


@pytest.fixture
def look(vps: Vps) -> Look:
    """`look()`: once; `look(seconds)`: after so many seconds have gone by. Gives what it has said."""

    return lambda seconds=0: watching.look(vps, seconds)


def of(told: dict[str, Any]) -> str:
    """A message without what is of the machine below the VPS."""
    entries = re.split(r"\n\n", told["message"])
    return "\n\n".join(one for one in entries if not re.match(rf"[A-Z ]+: ({'|'.join(OF_THE_MACHINE)})", one))


@contextmanager
def broken(vps: Vps, endpoint: Endpoint) -> Iterator[None]:
    """Postgres is stopped, and a worker that somebody has stopped does not come back."""
    vps.ssh(f"docker stop prefect-postgres; systemctl stop {restores.WORKER}")
    try:
        # What follows from it comes some seconds later, and then all of it is one message.
        health = "docker inspect --format '{{.State.Health.Status}}' prefect-server"
        restores.until("the server is unhealthy", lambda: "" if "unhealthy" in vps.ssh(health).stdout else "not yet")
        yield
    finally:
        vps.ssh(f"docker start prefect-postgres; systemctl start {restores.WORKER}")
        restores.until("the API", lambda: "" if endpoint.get("/api/ready").status_code == 200 else "not ready")
        # Docker finds the server healthy only some time later.
        restores.until("all runs again", lambda: restores.leftovers(vps))


def test_it_is_asked_to_look_each_minute(vps: Vps) -> None:
    """The role has enabled it; here it is stopped, so that only these tests have it look."""
    shown = vps.ssh("systemctl cat prefect-watch.timer; stat --format '%a %U' /etc/prefect/watch/settings.json").stdout
    assert "OnUnitActiveSec=1min" in shown and "600 root" in shown


def test_each_address_is_tried(vps: Vps, person: Person, mailbox: Mailbox, datadog: DatadogApi) -> None:
    done = vps.ssh(f"PREFECT_WATCH_ETC={ETC} prefect-watch test")
    assert "sent to 2 addresses" in done.stdout and f"\nDatadog ({datadog.url}) takes the API key\n" in done.stdout
    assert person.messages[-1]["title"].endswith(": a test") and "messages arrive here" in mailbox.text()
    person.away = True
    refused = vps.ssh(f"PREFECT_WATCH_ETC={ETC} prefect-watch test", check=False)
    person.away = False
    assert (refused.returncode, "1 of 2 addresses failed: number 1 (json)" in refused.stderr) == (29, True)
    assert PASSWORD not in done.stdout + refused.stderr


def test_people_are_told_once_what_is_broken_and_that_it_is_well_again(
    vps: Vps, endpoint: Endpoint, person: Person, mailbox: Mailbox, look: Look
) -> None:
    look()
    calls = person.calls
    assert calls > 0
    before, mails = len(person.messages), len(mailbox.mails)
    with broken(vps, endpoint):
        look()
        assert len(person.messages) == before
        look(95)
        # Bad, and so no heartbeat.
        assert person.calls == calls
        look(300)
        assert len(person.messages) == before + 1
        told = person.messages[-1]
        hostname = vps.ssh("hostname").stdout.strip()
        assert told["title"].startswith(f"{hostname}: bad: ")
        assert re.search(
            r"BAD: prefect-postgres: exited.*\n  since .* UTC \(\d+ s|2 minutes\)\n  what to do: ", of(told)
        )
        assert "  what to do: docker logs --tail 50 prefect-postgres; systemctl restart prefect-stack\n" in of(told)
        assert f"BAD: workers on this host: {restores.WORKER} does not run\n" in of(told)
        assert f"  what to do: systemctl start {restores.WORKER}\n" in of(told)
        assert "UNKNOWN: database: " in of(told)
        # The same by mail.
        assert mailbox.mails[mails]["subject"] == told["title"]
        assert f"{restores.WORKER} does not run" in mailbox.text(mails)
        status = vps.ssh("prefect-watch status").stdout
        assert "prefect-postgres" in status and "alerts are on" in status
    look()
    assert len(person.messages) == before + 1
    look(400)
    well = person.messages[-1]
    assert len(person.messages) == before + 2
    assert re.search(r"prefect-postgres \(was bad for \d+ minutes\)", well["message"])
    assert "workers on this host (was bad for" in well["message"]

    def no_heartbeat() -> str:
        look()
        return "" if person.calls > calls else vps.ssh("prefect-watch status").stdout

    # On a slow machine something takes its time, such as the first event of a server that has just come back.
    restores.until("the heartbeat", no_heartbeat, limit=90)


def test_each_look_may_leave_a_sample_for_the_history(vps: Vps, look: Look) -> None:
    vps.ssh("rm -f /var/lib/prefect/backups/samples.jsonl")
    look()
    look()
    shown = vps.ssh("prefect-doctor --history").stdout
    assert "One sample yet" in shown
    for figure in (
        "Disk in use: /",
        "Memory in use: memory",
        "CPU busy",
        "Database",
        "Flow runs ended: Completed",
        "Running",
    ):
        assert f"\n{figure} " in shown, figure
    assert vps.ssh("prefect-doctor --history -").stdout.startswith("<!doctype html>")


def test_a_pause_and_work_on_purpose_are_no_alarm(vps: Vps, person: Person, look: Look) -> None:
    before = len(person.messages)
    vps.ssh(f"systemctl stop {restores.WORKER}; prefect-watch pause 1h --why 'a test'")
    look()
    look(200)
    assert len(person.messages) == before
    assert "alerts are off: paused (a test)" in vps.ssh("prefect-watch status").stdout
    # The lock that a restore holds, of a process that says it is one.
    vps.ssh("prefect-watch resume")
    held = (
        "import sys, time; sys.path.insert(0, '/opt/prefect/backups/current'); from pathlib import Path;"
        " from prefect_backups.lock import only_one\n"
        "with only_one(Path('/var/lib/prefect/backups'), 'a restore'): Path('/run/held').touch(); time.sleep(60)"
    )
    vps.ssh(f'systemd-run --quiet --unit lab-held /opt/prefect/backups/venv/bin/python -c "{held}"')
    restores.until("the lock", lambda: vps.ssh("test -e /run/held || echo not yet", check=False).stdout)
    look()
    assert len(person.messages) == before
    assert "alerts are off: a restore is running" in vps.ssh("prefect-watch status").stdout
    vps.ssh("systemctl stop lab-held; rm /run/held")
    # A stack that is started is no alarm; one whose start fails again and again is, and keeps no check waiting.
    vps.ssh(f"mkdir -p {NO_START} && cat > {NO_START}/lab.conf && systemctl daemon-reload", text=FAILS)
    vps.ssh("systemctl restart --no-block prefect-stack")
    assert "alerts are off: prefect-stack is activating" in vps.ssh("prefect-watch status").stdout
    restores.until("its second start", lambda: "alerts are off" in vps.ssh("prefect-watch status").stdout and "not yet")
    look()
    vps.ssh(f"rm -r {NO_START}; systemctl daemon-reload")
    restores.until(
        "the stack", lambda: vps.ssh("systemctl is-active prefect-stack || true").stdout.strip() != "active" and "no"
    )
    assert len(person.messages) == before + 1
    assert f"{restores.WORKER} does not run" in person.messages[-1]["message"]
    vps.ssh(f"systemctl start {restores.WORKER}")
    look()
    # It comes and goes: well again is said later.
    look(400)
    over = "\n  workers on this host (was bad for "
    assert over not in person.messages[-1]["message"]
    look(300)
    assert over in person.messages[-1]["message"]


NO_START = "/run/systemd/system/prefect-stack.service.d"
# Its containers stay.
FAILS = """[Service]
ExecStart=
ExecStart=/bin/sh -c 'sleep 3; exit 1'
ExecStopPost=
"""


def end_run(endpoint: Endpoint, name: str, state: str, tags: list[str]) -> str:
    """Make a flow run that comes to this end at once; gives its id."""
    deployment = endpoint.get("/api/deployments/name/hello/hello").json()["id"]
    soon = {"type": "SCHEDULED", "state_details": {"scheduled_time": "2099-01-01T00:00:00Z"}}
    body = {"name": name, "state": soon, "tags": tags}
    made = endpoint.post(f"/api/deployments/{deployment}/create_flow_run", body).json()["id"]
    ended = {"state": {"type": state.upper(), "name": state, "message": f"{name} has ended"}, "force": True}
    log = {"name": "flow", "level": 40, "message": f"the last words of {name}", "flow_run_id": made}
    endpoint.post("/api/logs/", [{**log, "timestamp": "2026-01-01T00:00:00Z"}]).raise_for_status()
    assert endpoint.post(f"/api/flow_runs/{made}/set_state", ended).json()["status"] == "ACCEPT"
    return made


def test_flow_runs_that_the_settings_name_are_told_once(endpoint: Endpoint, person: Person, look: Look) -> None:
    # What another run of these tests has left on a VPS that was kept is told before.
    look(3700)
    before = len(person.messages)
    crashed = end_run(endpoint, "cut-off", "Crashed", ["told"])
    end_run(endpoint, "of-no-interest", "Crashed", [])
    end_run(endpoint, "well", "Completed", ["told"])
    look()
    look()
    assert len(person.messages) == before + 1
    told = person.messages[-1]
    assert re.search(r"UTC  Crashed: cut-off \(deployment hello/hello\)\n", told["message"])
    assert f"{endpoint.url}/runs/flow-run/{crashed}" in told["message"]
    assert "  cut-off has ended\n    the last words of cut-off" in told["message"]
    assert not re.search("of-no-interest|: well", told["message"])
    # Two messages an hour are sent; then they are counted, for the next hour.
    for number in range(3):
        end_run(endpoint, f"one-of-many-{number}", "Failed", ["told"])
        look()
    assert len(person.messages) == before + 2
    look(3700)
    digest = person.messages[-1]
    assert "2 x Failed deployment hello/hello" in digest["message"]
    assert len(person.messages) == before + 3


def events_of(datadog: DatadogApi, run: str) -> list[dict[str, Any]]:
    return [event for event in datadog.events if event["title"].startswith(f"Flow run {run} ")]


def test_the_same_flow_runs_are_events_in_datadog(vps: Vps, endpoint: Endpoint, datadog: DatadogApi) -> None:
    """By the looks of the test before; whatever their tags are, and each once."""
    (event,) = events_of(datadog, "one-of-many-2")
    happened, run, tags = (event.pop(name) for name in ("date_happened", "aggregation_key", "tags"))
    assert event == {
        "title": "Flow run one-of-many-2 (deployment hello/hello) is Failed",
        "text": f"Flow run one-of-many-2 (deployment hello/hello) is Failed\n{endpoint.url}/runs/flow-run/{run}\n"
        "Work pool: general\n\none-of-many-2 has ended",
        "alert_type": "error",
        "host": vps.ssh("hostname").stdout.strip(),
        "source_type_name": "prefect",
    }
    # Those of the deployment, too, which a flow run has.
    assert tags[:4] == ["service:prefect", "state:failed", "flow:hello", "deployment:hello/hello"]
    assert tags[4] == "work_pool:general" and sorted(tags[5:]) == ["example", "told"]
    assert time.time() - 600 < happened <= time.time()
    found = {
        run: [event["alert_type"] for event in events_of(datadog, run)] for run in ("cut-off", "of-no-interest", "well")
    }
    assert found == {"cut-off": ["error"], "of-no-interest": ["error"], "well": ["success"]}


def test_nothing_is_lost_while_the_way_out_is_down(
    vps: Vps, endpoint: Endpoint, person: Person, datadog: DatadogApi, look: Look
) -> None:
    look(3700)
    before = len(person.messages)
    person.away = True
    datadog.answer = (403, {})
    end_run(endpoint, "unheard", "Crashed", ["told"])
    assert "refuses the API key (403): look at watch_datadog_api_key" in look()
    status = vps.ssh(f"PREFECT_WATCH_ETC={ETC} prefect-watch status").stdout
    assert re.search(r"\nDatadog: \d+ events sent, .*; what has changed in the last .* waits; for .*\(403\)", status)
    waiting = json.loads(vps.ssh("prefect-doctor --json", check=False).stdout)["findings"]
    (found,) = [one for one in waiting if one["check"] == "alert delivery"]
    assert found["level"] == "BAD" and found["measured"].startswith("1 waiting since ")
    person.away = False
    datadog.answer = None
    vps.ssh('sed -i \'s/"tried": [0-9.]*/"tried": 0.0/\' /var/lib/prefect/backups/outbox/*.json')
    assert "1 earlier messages delivered, 0 waiting" in look()
    assert len(person.messages) == before + 1 and "unheard" in person.messages[-1]["message"]
    assert len(events_of(datadog, "unheard")) == 1


def test_no_secret_is_in_the_journal(vps: Vps) -> None:
    said = vps.ssh(f"journalctl --quiet --output=cat --unit={UNIT}").stdout
    assert PASSWORD not in said and KEY not in said
