"""What comes back by itself after a crash, a stop, a reboot or a power cut, while a scheduled flow goes on.

A deployment of the smoke flow runs on a schedule all the time. A fault is over when a run that the schedule made and
that began after it is Completed, and its task runs have arrived: database, server, scheduler, events, proxy and worker
then all work again. How long that took stands in a table at the end.
"""

from __future__ import annotations

import json
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest

from tests.lab import restores
from tests.lab.vps.vps import Vps

WORKER = "prefect-worker@general-1.service"
CONTAINERS = ("prefect-postgres", "prefect-server", "prefect-caddy")
BEAT = 10  # seconds between two runs of the schedule
TASKS = 3  # of the smoke flow
BACK_LIMIT = 90  # seconds until what was killed runs and is healthy again
BEAT_LIMIT = 120  # seconds from then until a scheduled run is Completed
# Seconds for which the API may be away where no container has ended: the proxy finds the server by the engine's own name
# service, and while the engine is away it holds a request until that lookup has failed twice, 5 s each.
A_MOMENT = 15
KILLS = 7  # in a row; systemd's own limit is five starts in ten seconds
CLOSED_PORT = 5555  # no port of ours
STACK_ENV = "/etc/prefect/stack.env"


def until(what: str, wrong: Callable[[], str], limit: float) -> None:
    """Wait until `wrong` has nothing to say.

    Raises:
        AssertionError: with the last thing that it said, if it still does after `limit` seconds.
    """
    deadline = time.monotonic() + limit
    while seen := wrong():
        assert time.monotonic() < deadline, f"{what}: not within {limit} s; last seen: {seen}"
        time.sleep(0.5)


class Knocking(threading.Thread):
    """Asks at the reverse proxy all the time whether the API is ready, and remembers when it was not."""

    def __init__(self, endpoint: Any) -> None:
        super().__init__(daemon=True)
        self.endpoint = endpoint
        self.over = threading.Event()
        self.answers: list[str] = []  # other than 200
        self.seconds_away = 0.0  # longest time from a question with another answer to the next 200

    def run(self) -> None:
        client = self.endpoint.client()
        # A connection of its own for each question: those that are open outlive more than new ones do.
        client.headers["Connection"] = "close"
        # A first packet that is lost while rules are set is sent again after 1, 2, 4, 8 s: that would be measured, and
        # not how long the API is away.
        client.timeout = httpx.Timeout(30, connect=2)
        since = 0.0
        while not self.over.wait(0.2):
            asked = time.monotonic()
            try:
                answer = str(client.get("/api/ready").status_code)
            except httpx.TransportError as error:
                answer = type(error).__name__
            if answer != "200":
                since = since or asked
                self.answers.append(answer)
            elif since:
                self.seconds_away = max(self.seconds_away, time.monotonic() - since)
                since = 0.0

    def stop(self) -> None:
        self.over.set()
        self.join()


class Heart:
    """The scheduled deployment, and what has become of its runs."""

    def __init__(self, endpoint: Any) -> None:
        self.endpoint = endpoint
        smoke = endpoint.get("/api/deployments/name/smoke/smoke").raise_for_status().json()
        same = ("flow_id", "entrypoint", "path", "pull_steps", "work_pool_name", "work_queue_name", "job_variables")
        body = {key: smoke[key] for key in same}
        body |= {"name": "resilience", "schedules": [{"schedule": {"interval": BEAT}, "active": True}]}
        self.id = endpoint.post("/api/deployments/", body).raise_for_status().json()["id"]

    def runs(self, **wanted: Any) -> list[dict[str, Any]]:
        """Its flow runs that fit a filter, the latest first."""
        body = {"deployments": {"id": {"any_": [self.id]}}, "flow_runs": wanted, "sort": "START_TIME_DESC"}
        return self.endpoint.post("/api/flow_runs/filter", body).raise_for_status().json()

    def completed_since(self, moment: datetime) -> str:
        """What is wrong with the runs that began after a moment; nothing as soon as one is whole."""
        try:
            runs = self.runs(start_time={"after_": moment.isoformat()})
            for run in runs:
                if run["state_type"] == "COMPLETED":
                    return self.missing(run)
        except (httpx.HTTPError, KeyError) as error:
            return repr(error)
        return f"{len(runs)} run(s) began since then, in the states {[run['state_name'] for run in runs]}"

    def missing(self, run: dict[str, Any]) -> str:
        """What a Completed run lacks of its task runs."""
        body = {
            "flow_runs": {"id": {"any_": [run["id"]]}},
            "task_runs": {"state": {"type": {"any_": ["COMPLETED"]}}},
        }
        count = self.endpoint.post("/api/task_runs/count", body).raise_for_status().json()
        return "" if count == TASKS else f"{run['name']} is Completed, with {count} of {TASKS} task runs"

    def remove(self) -> None:
        """Remove the deployment and its runs: those that a fault has left Running or Pending hold the worker's slots."""
        self.endpoint.delete(f"/api/deployments/{self.id}").raise_for_status()
        while runs := self.runs():
            for run in runs:
                self.endpoint.delete(f"/api/flow_runs/{run['id']}").raise_for_status()


@dataclass
class Row:
    """What was seen after a fault; times in seconds from the fault on."""

    fault: str
    began: datetime
    back: float = 0.0
    away: float = 0.0
    flow: float = 0.0
    answers: list[str] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        answers = ", ".join(f"{count} x {answer}" for answer, count in Counter(self.answers).items())
        lost = ", ".join(f"{count} {state}" for state, count in Counter(self.lost).items())
        times = f"{self.back:>7.1f}{self.away:>7.1f}{self.flow:>7.1f}"
        return f"{self.fault:<36}{times}  {answers or 'only 200'}; {lost or 'none'}"


HEADING = f"{'fault; seconds until':<36}{'back':>7}{'API':>7}{'flow':>7}  the API's answers; runs that did not end"


class Fault:
    """A fault, from its first moment until the scheduled flow has run again."""

    def __init__(self, heart: Heart, row: Row) -> None:
        self.heart, self.row = heart, row
        self.knocking = Knocking(heart.endpoint)

    def __enter__(self) -> Fault:
        self.knocking.start()
        self.began = time.monotonic()
        return self

    def back(self, wrong: Callable[[], str], limit: float = BACK_LIMIT) -> None:
        """Wait until what was hit is well again."""
        until(f"{self.row.fault}, well again", wrong, limit)
        self.row.back = time.monotonic() - self.began

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            if kind is None:
                moment = datetime.now(UTC)
                until(f"{self.row.fault}, a scheduled run", lambda: self.heart.completed_since(moment), BEAT_LIMIT)
                self.row.flow = time.monotonic() - self.began
        finally:
            self.knocking.stop()
            self.row.away, self.row.answers = self.knocking.seconds_away, self.knocking.answers


@pytest.fixture(scope="module", autouse=True)
def no_timers(vps: Vps) -> Iterator[None]:
    """A backup of the hour would fail, rightly, while Postgres is killed here."""
    with restores.no_timers(vps):
        yield


@pytest.fixture(scope="module")
def table(request: pytest.FixtureRequest) -> Iterator[list[Row]]:
    """The rows of the table that is printed after the last test."""
    rows: list[Row] = []
    yield rows
    with request.config.pluginmanager.getplugin("capturemanager").global_and_fixture_disabled():
        print("", HEADING, *rows, sep="\n")


@pytest.fixture(scope="module")
def heart(vps: Vps, endpoint: Any) -> Iterator[Heart]:
    """The scheduled flow, running."""
    heart = Heart(endpoint)
    try:
        until("the schedule, its first run", lambda: heart.completed_since(datetime.fromtimestamp(0, UTC)), BEAT_LIMIT)
        yield heart
    finally:
        heart.remove()


@pytest.fixture
def fault(heart: Heart, table: list[Row], record_property: Any) -> Iterator[Callable[[str], Fault]]:
    """`with fault("what is done") as it:` times what follows."""
    rows: list[Row] = []

    def begin(name: str) -> Fault:
        rows.append(Row(name, datetime.now(UTC)))
        return Fault(heart, rows[-1])

    yield begin
    table.extend(rows)
    for row in rows:
        record_property(row.fault, f"back {row.back:.1f} s, API away {row.away:.1f} s, flow {row.flow:.1f} s")


def shown(vps: Vps, unit: str, *names: str) -> dict[str, str]:
    """Properties of a unit, as systemd has them."""
    said = vps.ssh(f"systemctl show {unit} --property {','.join(names)}").stdout
    return dict(line.split("=", 1) for line in said.splitlines())


def containers(vps: Vps) -> dict[str, dict[str, Any]]:
    """State of each container: process id, health, time of its start."""
    said = vps.ssh(f"docker inspect --format '{{{{json .State}}}}' {' '.join(CONTAINERS)}", check=False).stdout
    return dict(zip(CONTAINERS, map(json.loads, said.splitlines()), strict=False))


def processes(vps: Vps) -> dict[str, tuple[int, str]]:
    """Main process of each container and when it started: another one after a restart."""
    return {name: (state["Pid"], state["StartedAt"]) for name, state in containers(vps).items()}


def not_healthy(vps: Vps) -> str:
    """What is wrong with the containers."""
    states = {name: f"{state['Status']} {state['Health']['Status']}" for name, state in containers(vps).items()}
    return "" if states == dict.fromkeys(CONTAINERS, "running healthy") else str(states or "the engine does not answer")


def main_pid(vps: Vps, unit: str) -> int:
    return int(shown(vps, unit, "MainPID")["MainPID"])


def not_anew(vps: Vps, unit: str, former: int) -> str:
    """What is wrong with a unit that is to run with another main process than the former one."""
    now = shown(vps, unit, "ActiveState", "SubState", "MainPID", "Result")
    return "" if now["SubState"] == "running" and int(now["MainPID"]) not in (0, former) else str(now)


def kill(vps: Vps, unit: str, times: int = 1) -> int:
    """Kill -9 the main process of a unit, `times` in a row; gives the last one, after which nobody starts the unit."""
    pid = f"systemctl show --property MainPID --value {unit}"
    gone = f'while test "$({pid})" = $killed; do sleep 0.1; done'
    once = f"systemctl start {unit} && killed=$({pid}) && kill -9 $killed && {gone}"
    return int(vps.ssh(f"for i in $(seq {times}); do {once} || exit 1; done; echo $killed").stdout)


def test_a_killed_worker_comes_back_however_often(vps: Vps, fault: Any) -> None:
    with fault(f"kill -9 of the worker, {KILLS} in a row") as it:
        killed = kill(vps, WORKER, KILLS)
        it.back(lambda: not_anew(vps, WORKER, killed))
    assert it.row.answers == []


@pytest.mark.parametrize("name", CONTAINERS)
def test_a_killed_container_comes_back(vps: Vps, fault: Any, name: str) -> None:
    before = processes(vps)
    with fault(f"kill -9 of {name}") as it:
        vps.ssh(f"kill -9 {before[name][0]}")
        it.back(lambda: not_healthy(vps) or ("" if processes(vps)[name] != before[name] else "the former process"))
    after = processes(vps)
    assert {other for other in CONTAINERS if after[other] != before[other]} == {name}


@pytest.mark.parametrize(("unit", "times"), [("docker.service", KILLS), ("containerd.service", 1)])
def test_containers_outlive_a_killed_engine(vps: Vps, fault: Any, unit: str, times: int) -> None:
    before = processes(vps)
    with fault(f"kill -9 of {unit}" + (f", {times} in a row" if times > 1 else "")) as it:
        killed = kill(vps, unit, times)
        # The engine finds containerd again some seconds after it is back, and can start nothing until then.
        use = "docker exec prefect-caddy true"
        it.back(lambda: not_anew(vps, unit, killed) or not_healthy(vps) or vps.ssh(use, check=False).stderr)
    assert processes(vps) == before
    assert it.row.away < A_MOMENT, it.row.answers


def test_reload_keeps_the_containers_and_the_proxy_open(vps: Vps, fault: Any) -> None:
    before = processes(vps)
    # Their checks fail while containerd is away, so that one or the other may be unhealthy just now.
    killed = kill(vps, "containerd.service")
    # It takes the engine some seconds to start containers again.
    new = "docker run --rm --network none $(docker inspect --format '{{.Config.Image}}' prefect-caddy) true"

    def wrong() -> str:
        return not_anew(vps, "containerd.service", killed) or vps.ssh(new, check=False).stderr

    until("a new container, with the new containerd", wrong, BACK_LIMIT)
    with fault("systemctl reload prefect-stack") as it:
        vps.ssh("systemctl reload prefect-stack")
        it.back(lambda: not_healthy(vps))
    assert processes(vps) == before
    # Caddy cuts connections that come in while it changes over; Prefect's clients then ask again.
    assert it.row.away < A_MOMENT, it.row.answers


def test_stop_means_stop_and_the_worker_waits_for_the_server(vps: Vps, fault: Any) -> None:
    running = "docker ps --format '{{.Names}}'"
    try:
        vps.ssh("systemctl stop prefect-stack")
        assert vps.ssh(running).stdout == "", "systemctl stop prefect-stack left containers running"
        # Also after a start that fails, and whoever has started the containers.
        vps.ssh(f"cp -a {STACK_ENV} /root/stack.env && echo CADDY_MEMORY=much >> {STACK_ENV}")
        vps.ssh("systemctl start --no-block prefect-stack")
        said = "journalctl --unit prefect-stack --lines 1 --output cat"
        until(
            "a start that fails",
            lambda: "" if "Tried again in 15 s." in (it := vps.ssh(said).stdout) else it or "nothing",
            BACK_LIMIT,
        )
        vps.ssh(f"docker start {' '.join(CONTAINERS)} && systemctl stop prefect-stack")
        assert vps.ssh(running).stdout == "", "systemctl stop prefect-stack, after a start that failed"
        vps.ssh(f"mv /root/stack.env {STACK_ENV}")
        vps.ssh("systemctl restart docker")
        # Upstream's worker ends when its server is away at its start.
        killed = kill(vps, WORKER)
        until("the worker, started without a server", lambda: not_anew(vps, WORKER, killed), BACK_LIMIT)
        assert vps.ssh(running).stdout == "", "a restart of Docker brought stopped containers back"
        assert shown(vps, "prefect-stack", "ActiveState")["ActiveState"] == "inactive"
        with fault("systemctl stop prefect-stack; start") as it:
            vps.ssh("systemctl start prefect-stack")
            assert not_healthy(vps) == "", "systemctl start prefect-stack returned before all was healthy"
            it.back(lambda: not_anew(vps, WORKER, killed))
    finally:
        vps.ssh(f"test ! -e /root/stack.env || mv /root/stack.env {STACK_ENV}; systemctl start prefect-stack")


def test_a_lost_table_is_no_health(vps: Vps) -> None:
    """And no reason to end a server: a restart brings no table back."""
    before = processes(vps)
    check = "docker exec prefect-server sh /opt/prefect-start/healthcheck.sh"
    sql = "docker exec prefect-postgres psql -qU prefect -c 'ALTER TABLE {} RENAME TO {}' prefect"

    def said() -> str:
        return vps.ssh(check, check=False).stdout.strip()

    vps.ssh(sql.format("block_schema_reference", "away"))
    try:
        lost = (
            'the database "prefect" has no table block_schema_reference: restore a backup with prefect-restore --latest'
        )
        until("a lost table, found", lambda: "" if (seen := said()) == lost else seen or "healthy", 30)
    finally:
        vps.ssh(sql.format("away", "block_schema_reference"))
    until("the table, back", said, 30)
    assert processes(vps) == before


@pytest.mark.parametrize("how", ["reboot", "power cut"])
def test_everything_returns_after_a_boot(vps: Vps, heart: Heart, fault: Any, how: str) -> None:
    # A whole one: task runs of the last seconds are in the server's memory still, and a power cut takes them.
    last = next(run for run in heart.runs(state={"type": {"any_": ["COMPLETED"]}}) if not heart.missing(run))
    boot = "cat /proc/sys/kernel/random/boot_id"
    before = vps.ssh(boot).stdout
    with fault(how) as it:
        # Waits until systemd says that all is started and nothing has failed.
        vps.reboot(hard=how == "power cut")
        it.back(lambda: not_healthy(vps))
    assert vps.ssh(boot).stdout != before
    assert heart.endpoint.get(f"/api/flow_runs/{last['id']}").json()["state_name"] == "Completed"
    assert heart.missing(last) == ""
    units = ("prefect-firewall.service", "prefect-stack.service", WORKER)
    assert {unit: shown(vps, unit, "ActiveState")["ActiveState"] for unit in units} == dict.fromkeys(units, "active")
    assert_only_the_proxy_is_open(vps)


def assert_only_the_proxy_is_open(vps: Vps) -> None:
    """The firewall is up: who listens on another port is not reached from outside."""
    vps.ssh(f"systemd-run --quiet --collect --unit listener python3 -m http.server --directory /run {CLOSED_PORT}")
    try:
        listens = f"ss --no-header --listening --tcp 'sport = :{CLOSED_PORT}'"
        until("a listener", lambda: "" if vps.ssh(listens).stdout else "nothing listens", 10)
        reach = f"curl --silent --output /dev/null --max-time 2 http://{vps.address}"
        said = vps.outsider("sh", "-c", f"{reach}:80 && {{ {reach}:{CLOSED_PORT}; echo $?; }}", check=False)
        timed_out = "28"
        assert said.stdout.strip() == timed_out, f"port {CLOSED_PORT} from outside: {said.stdout}{said.stderr}"
    finally:
        vps.ssh("systemctl stop listener")


def test_nothing_has_failed_in_the_end(vps: Vps, heart: Heart, table: list[Row]) -> None:
    assert vps.ssh("systemctl --failed --plain --no-legend").stdout == ""
    # Runs that were going on when their worker died are another matter; the table says after which fault there were some.
    for run in heart.runs(state={"type": {"any_": ["RUNNING", "PENDING", "CRASHED", "FAILED"]}}):
        began = datetime.fromisoformat(run["start_time"] or run["expected_start_time"])
        before = [row for row in table if row.began - timedelta(seconds=BEAT) <= began]
        if before:
            before[-1].lost.append(run["state_name"])
