"""Every example flow, run by the worker and watched through the reverse proxy, to the end that is expected of it.

All runs are started at once and looked at one by one: the worker's limit decides how many go on together.
"""

from __future__ import annotations

import json
import os
import secrets
import socket
import ssl
import subprocess
import sys
import time
import uuid
from base64 import b64encode
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import datetime
from itertools import pairwise
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import httpx
import pytest
import yaml

FLOWS = Path(__file__).resolve().parents[2] / "flows"
RUN_LIMIT = 600  # seconds from the start of all runs to the end of the last
ARRIVAL_LIMIT = 30  # seconds from the end of a run until its last task runs and logs can be read
ENDS = {"COMPLETED", "FAILED", "CRASHED", "CANCELLED"}


class Api:
    """Prefect's API through the reverse proxy, as the account admin, in plain HTTP."""

    def __init__(self, endpoint: Any) -> None:
        self.client = httpx.Client(
            base_url=f"{endpoint.url}/api",
            verify=ssl.create_default_context(cafile=endpoint.ca),
            auth=("admin", endpoint.passwords["admin"]),
            timeout=30,
        )

    def get(self, path: str) -> Any:
        return self.client.get(path).raise_for_status().json()

    def post(self, path: str, body: dict[str, Any]) -> Any:
        return self.client.post(path, json=body).raise_for_status().json()

    def start(self, deployment: str, parameters: dict[str, Any] | None = None) -> str:
        """Start a run and return its id."""
        identity = self.get(f"/deployments/name/{deployment}")["id"]
        return self.post(f"/deployments/{identity}/create_flow_run", {"parameters": parameters or {}})["id"]

    def ended(self, run: str, limit: float = RUN_LIMIT) -> dict[str, Any]:
        """Wait until the run has ended; return it.

        Raises:
            AssertionError: if it has not after `limit` seconds.
        """
        deadline = time.monotonic() + limit
        while (flow_run := self.get(f"/flow_runs/{run}"))["state"]["type"] not in ENDS:
            assert time.monotonic() < deadline, f"{flow_run['name']} is still {flow_run['state']['name']}"
            time.sleep(0.5)
        return flow_run

    def task_runs(self, run: str) -> list[dict[str, Any]]:
        body = {"flow_runs": {"id": {"any_": [run]}}, "sort": "EXPECTED_START_TIME_ASC"}
        return self.post("/task_runs/filter", body)

    def messages(self, run: str) -> str:
        body = {"logs": {"flow_run_id": {"any_": [run]}}, "limit": 200}
        return "\n".join(line["message"] for line in self.post("/logs/filter", body))

    def result(self, run: str, task_runs: int, log: str) -> Result:
        """Wait for the run's end, and for as many task runs and the log line; return what is there.

        Task runs and logs travel by themselves, a little behind the state of the flow run.
        """
        flow_run = self.ended(run)
        deadline = time.monotonic() + ARRIVAL_LIMIT
        while True:
            result = Result(self, flow_run, self.task_runs(run), self.messages(run))
            arrived = len(result.task_runs) >= task_runs and log in result.messages
            if arrived and all(task_run["state_type"] in ENDS for task_run in result.task_runs):
                return result
            if time.monotonic() > deadline:
                return result
            time.sleep(0.5)

    def scheduled(self, deployment: str) -> list[datetime]:
        """The times for which runs of a deployment are scheduled by its schedule."""
        identity = self.get(f"/deployments/name/{deployment}")["id"]
        body = {
            "deployments": {"id": {"any_": [identity]}},
            "flow_runs": {"state": {"type": {"any_": ["SCHEDULED"]}}, "tags": {"all_": ["auto-scheduled"]}},
            "sort": "EXPECTED_START_TIME_ASC",
        }
        runs = self.post("/flow_runs/filter", body)
        return [datetime.fromisoformat(run["expected_start_time"]) for run in runs]


@dataclass
class Result:
    """A run that has ended, with what it left behind."""

    api: Api
    run: dict[str, Any]
    task_runs: list[dict[str, Any]]
    messages: str

    @property
    def task_states(self) -> list[str]:
        return [task_run["state_name"] for task_run in self.task_runs]


Check = Callable[[Result], None]


@dataclass
class Case:
    """A run of an example and what has to come of it."""

    deployment: str
    state: str
    log: str
    task_runs: int  # exactly
    parameters: dict[str, Any] = field(default_factory=dict)
    check: Check = lambda result: None

    def __str__(self) -> str:
        name = "-".join([self.deployment.partition("/")[2], *map(str, self.parameters.values())])
        return name.replace(REPORT, "new report")


def overlapped(result: Result) -> None:
    """The two tasks that were submitted first were under way at the same time."""
    first, second = (
        (datetime.fromisoformat(run["start_time"]), datetime.fromisoformat(run["end_time"]))
        for run in [run for run in result.task_runs if run["name"].startswith("fetch")][:2]
    )
    assert max(first[0], second[0]) < min(first[1], second[1])


def three_subflows(result: Result) -> None:
    body = {"flow_runs": {"parent_flow_run_id": {"any_": [result.run["id"]]}}}
    runs = result.api.post("/flow_runs/filter", body)
    assert {run["name"]: run["state_name"] for run in runs} == {
        "region-north": "Completed",
        "region-south": "Completed",
        "region-": "Failed",
    }


def tried(times: int) -> Check:
    def check(result: Result) -> None:
        assert [run["run_count"] for run in result.task_runs] == [times]

    return check


def task_states(*names: str) -> Check:
    def check(result: Result) -> None:
        assert result.task_states == list(names)

    return check


def ended_in_time(result: Result) -> None:
    assert 5 <= result.run["total_run_time"] < 15


def last_task_tagged(*tags: str) -> Check:
    def check(result: Result) -> None:
        assert set(tags) == set(result.task_runs[-1]["tags"])
        assert "tagged-by-deployment" in result.run["tags"]

    return check


def all_six_lines(result: Result) -> None:
    for way in ("get_run_logger", "logging", "print"):
        for place in ("the flow", "a task"):
            assert f"by {way}, from {place}" in result.messages


def four_smoke_lines(result: Result) -> None:
    lines = [line for line in result.messages.splitlines() if line.startswith("smoke:")]
    assert sorted(lines) == ["smoke: done", *(f"smoke: task {number} of 3" for number in (1, 2, 3))]


REPORT = f"report-{uuid.uuid4()}"  # one that no earlier run has cached
CASES = [
    Case("hello/hello", "Completed", "Hello, world!", 0),
    Case("hello/hello", "Completed", "Hello, Ada!", 0, {"name": "Ada"}),
    Case("steps/steps", "Completed", "the square is 9", 2),
    Case("parallel/parallel", "Completed", "sum of squares: 30", 2 + 4 + 4 + 1, {}, overlapped),
    Case("subflows/subflows", "Completed", "region '' left out", 3, {}, three_subflows),
    Case("retries/retries", "Completed", "answered at try 3", 1, {}, tried(3)),
    Case("retries/retries", "Failed", "the service refuses this request", 1, {"rejected": True}, tried(1)),
    Case("task-timeout/task-timeout", "Completed", "the task ended TimedOut", 1, {}, task_states("TimedOut")),
    Case("flow-timeout/flow-timeout", "TimedOut", "working for 60.0 s", 0, {}, ended_in_time),
    Case(
        "caching/caching",
        "Completed",
        f"really computed for '{REPORT}'",
        2,
        {"report": REPORT},
        task_states("Completed", "Cached"),
    ),
    Case("branches/branches", "Completed", "branch taken: nothing to do", 1, {"rows": 0}),
    Case(
        "branches/branches",
        "Completed",
        "branch taken: increment of 10 rows",
        2,
        {},
        last_task_tagged("database"),
    ),
    Case(
        "branches/branches",
        "Completed",
        "branch taken: full reload",
        2,
        {"rows": 5000},
        last_task_tagged("database", "slow"),
    ),
    Case("files/files", "Completed", "total 333328333350000", 2),
    Case("database/database", "Failed", "there is no Secret block 'nowhere'", 0, {"block": "nowhere"}),
    Case("database/database", "Failed", "may not read the secrets of the block secret/others", 0, {"block": "others"}),
    Case("shell/shell", "Completed", "awk says 42", 2),
    Case("shell/shell", "Failed", "No such file or directory", 1, {"path": "/; id"}),
    Case("logs/logs", "Completed", "by logging, from a task", 1, {}, all_six_lines),
    Case("report/on-demand", "Completed", "on-demand: 7 day(s) until", 0),
    Case("report/nightly", "Completed", "nightly: 1 day(s) until", 0),
    Case("report/interval", "Completed", "interval: 1 day(s) until", 0),
    Case("again/again", "Completed", "3 of 3 items done now", 3, {"batch": REPORT}),
    Case("smoke/smoke", "Completed", "smoke: done", 3, {}, four_smoke_lines),
]

EXCLUSIVE = ("exclusive/one-at-a-time", "exclusive/one-or-none")


@pytest.fixture(scope="module")
def api(endpoint: Any) -> Api:
    return Api(endpoint)


@pytest.fixture(scope="module")
def overlapping(api: Api) -> dict[str, list[str]]:
    """Two runs of each deployment that takes one at a time, started together and long enough to meet."""
    return {name: [api.start(name, {"seconds": 10}) for _ in range(2)] for name in EXCLUSIVE}


@pytest.fixture(scope="module")
def started(api: Api, overlapping: dict[str, list[str]]) -> dict[str, str]:
    """The ids of the runs of all cases, started after those that wait for each other."""
    return {str(case): api.start(case.deployment, case.parameters) for case in CASES}


def test_every_deployment_is_there_and_has_a_case(api: Api) -> None:
    wanted = {entry["name"] for entry in yaml.safe_load((FLOWS / "prefect.yaml").read_text())["deployments"]}
    there = {entry["name"] for entry in api.post("/deployments/filter", {"limit": 200})}
    tested = {name.partition("/")[2] for name in [*EXCLUSIVE, *(case.deployment for case in CASES)]}
    assert wanted <= there
    assert wanted == tested


@pytest.mark.parametrize("case", CASES, ids=str)
def test_example(api: Api, started: dict[str, str], case: Case) -> None:
    result = api.result(started[str(case)], case.task_runs, case.log)
    assert result.run["state"]["name"] == case.state, result.messages
    assert case.log in result.messages
    assert len(result.task_runs) == case.task_runs
    case.check(result)


def test_a_cached_result_outlives_its_run(api: Api, started: dict[str, str]) -> None:
    api.ended(next(started[str(case)] for case in CASES if case.parameters.get("report") == REPORT))
    result = api.result(api.start("caching/caching", {"report": REPORT}), 2, "both answers")
    assert result.task_states == ["Cached", "Cached"]


def test_one_at_a_time_makes_the_second_run_wait(api: Api, overlapping: dict[str, list[str]]) -> None:
    runs = [api.ended(run) for run in overlapping["exclusive/one-at-a-time"]]
    first, second = sorted(runs, key=lambda run: run["start_time"])
    assert [first["state_name"], second["state_name"]] == ["Completed", "Completed"]
    assert first["end_time"] < second["start_time"]
    states = api.get(f"/flow_run_states/?flow_run_id={second['id']}")
    assert "AwaitingConcurrencySlot" in [state["name"] for state in states]


def test_one_or_none_cancels_the_second_run(api: Api, overlapping: dict[str, list[str]]) -> None:
    runs = [api.ended(run) for run in overlapping["exclusive/one-or-none"]]
    assert sorted(run["state_name"] for run in runs) == ["Cancelled", "Completed"]
    [cancelled] = [run for run in runs if run["state_name"] == "Cancelled"]
    assert cancelled["state"]["message"] == "Deployment concurrency limit reached."


def test_the_nightly_run_keeps_its_hour_in_summer_and_winter(api: Api) -> None:
    times = [time.astimezone(ZoneInfo("Europe/Berlin")) for time in api.scheduled("report/nightly")]
    assert times and {(time.hour, time.minute) for time in times} == {(3, 15)}


def test_the_interval_counts_from_its_anchor_not_from_the_deploy(api: Api) -> None:
    times = api.scheduled("report/interval")
    assert times and all(time.timestamp() % 900 == 0 for time in times)
    assert {(after - before).total_seconds() for before, after in pairwise(times)} == {900}


def test_parameters_are_for_paths_not_for_data(api: Api) -> None:
    with pytest.raises(httpx.HTTPStatusError) as refusal:
        api.start("hello/hello", {"name": "x" * 524_288})
    assert refusal.value.response.status_code == 422
    assert "Flow run parameters must be less than 524,288 bytes" in refusal.value.response.text


def test_a_parameter_of_the_wrong_type_starts_no_run(api: Api) -> None:
    with pytest.raises(httpx.HTTPStatusError) as refusal:
        api.start("retries/retries", {"good_at_try": "soon"})
    assert refusal.value.response.status_code == 409
    assert "'soon' is not of type 'integer'" in refusal.value.response.text


@pytest.fixture
def client_environment(endpoint: Any, tmp_path: Path) -> dict[str, str]:
    """What a Prefect client needs in its environment to come through the reverse proxy."""
    login = b64encode(f"admin:{endpoint.passwords['admin']}".encode()).decode()
    return {
        **os.environ,
        "PREFECT_HOME": str(tmp_path),
        "PREFECT_API_URL": f"{endpoint.url}/api",
        "PREFECT_CLIENT_CUSTOM_HEADERS": json.dumps({"Authorization": f"Basic {login}"}),
        "PREFECT_API_SSL_CERT_FILE": str(endpoint.ca),
    }


@pytest.fixture
def secret_block(vps: Any, api: Api, client_environment: dict[str, str]) -> Iterator[str]:
    """The name of a Secret block, which the inventory lets flows load, with the address of a scratch Postgres on the VPS."""
    password, name = secrets.token_hex(16), "lab-flows"
    vps.ssh(
        "docker run --rm --detach --name flows-scratch --publish 127.0.0.1:55432:5432 --env-file /dev/stdin "
        "$(docker inspect --format '{{.Config.Image}}' prefect-postgres) postgres -c fsync=off",
        text=f"POSTGRES_PASSWORD={password}\n",
    )
    try:
        # By TCP: while the image makes the database, its server answers on the local socket only.
        ready = "docker exec flows-scratch pg_isready --quiet --host 127.0.0.1"
        vps.ssh(f"timeout 60 sh -c 'until {ready}; do sleep 0.5; done'")
        save = (
            "import os; from prefect.blocks.system import Secret; "
            f"Secret(value=os.environ['SCRATCH_ADDRESS']).save('{name}', overwrite=True)"
        )
        address = f"postgresql://postgres:{password}@127.0.0.1:55432/postgres"
        environment = client_environment | {"SCRATCH_ADDRESS": address}
        subprocess.run([sys.executable, "-c", save], env=environment, check=True, timeout=120)
        yield name
        block = api.get(f"/block_types/slug/secret/block_documents/name/{name}")
        api.client.delete(f"/block_documents/{block['id']}").raise_for_status()
    finally:
        vps.ssh("docker rm --force flows-scratch")


def test_an_upsert_is_idempotent(api: Api, secret_block: str) -> None:
    def messages(celsius: float) -> str:
        parameters = {"block": secret_block, "celsius": celsius}
        result = api.result(api.start("database/database", parameters), 1, "in the table")
        assert result.run["state"]["name"] == "Completed", result.messages
        return result.messages

    assert "3 rows written, 3 in the table" in messages(20)
    assert "0 rows written, 3 in the table" in messages(20)
    assert "3 rows written, 3 in the table" in messages(21)


@pytest.fixture
def application(client_environment: dict[str, str]) -> Iterator[str]:
    """The address of trigger_app.py, served on loopback."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "uvicorn", "trigger_app:app", "--port", str(port)]
    with subprocess.Popen(command, cwd=FLOWS, env=client_environment) as process:
        try:
            address = f"http://127.0.0.1:{port}"
            deadline = time.monotonic() + 60
            while True:
                try:
                    httpx.get(f"{address}/docs")
                    break
                except httpx.TransportError:
                    assert process.poll() is None and time.monotonic() < deadline
                    time.sleep(0.2)
            yield address
        finally:
            process.terminate()


def test_an_application_starts_a_run_and_has_its_id_at_once(api: Api, application: str) -> None:
    order = {"Idempotency-Key": str(uuid.uuid4())}
    with httpx.Client(base_url=application, timeout=30) as browser:
        answer = browser.post("/greetings", params={"name": "Grace"}, headers=order)
        assert answer.status_code == 202
        run = answer.json()["flow_run_id"]
        assert api.get(f"/flow_runs/{run}")["state"]["type"] not in ENDS, "it answered only after the run"
        again = browser.post("/greetings", params={"name": "Grace"}, headers=order)
        assert again.json() == {"flow_run_id": run}
        assert "Hello, Grace!" in api.result(run, 0, "Hello, Grace!").messages
        assert browser.get(f"/greetings/{run}").json() == {"state": "Completed"}
