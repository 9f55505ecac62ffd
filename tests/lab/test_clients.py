"""Prefect's own CLI and SDK from outside, with an account, as README says."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
import time
import uuid

import pytest


@pytest.fixture
def environment(endpoint, tmp_path):
    """What README has a person export, in a clean home."""
    return environment_of(endpoint, tmp_path, "admin")


def environment_of(endpoint, tmp_path, user):
    secret = base64.b64encode(f"{user}:{endpoint.passwords[user]}".encode()).decode()
    kept = {name: os.environ[name] for name in ("PATH", "LANG") if name in os.environ}
    return kept | {
        "HOME": str(tmp_path),
        "PREFECT_HOME": str(tmp_path / "prefect"),
        "PREFECT_API_URL": f"{endpoint.url}/api",
        "PREFECT_API_SSL_CERT_FILE": str(endpoint.ca),
        "PREFECT_CLIENT_CUSTOM_HEADERS": json.dumps({"Authorization": f"Basic {secret}"}),
        "DO_NOT_TRACK": "1",
        "PYTHONUNBUFFERED": "1",
    }


def run(environment, *command, timeout=120):
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=timeout)


def prefect(environment, *words, timeout=120):
    return run(environment, sys.executable, "-m", "prefect", *words, timeout=timeout)


def test_the_cli_runs_a_deployment_and_shows_its_logs(environment, endpoint):
    done = prefect(environment, "deployment", "run", "hello/hello", "--watch")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Completed" in done.stdout
    ended = {"flow_runs": {"state": {"type": {"any_": ["COMPLETED"]}}}, "deployments": {"name": {"any_": ["hello"]}}}
    found = endpoint.post("/api/flow_runs/filter", {**ended, "sort": "END_TIME_DESC", "limit": 1}).json()[0]
    deadline = time.monotonic() + 30
    while "Hello" not in (said := prefect(environment, "flow-run", "logs", found["id"]).stdout):
        assert time.monotonic() < deadline, said
        time.sleep(1)


PROJECT = """
prefect-version: 3.8.8
pull: []
deployments:
  - name: by-a-deployer
    entrypoint: program.py:nothing
    work_pool: {name: general}
    schedules: [{cron: "0 4 * * *", timezone: Europe/Berlin}]
"""


def test_a_deployer_deploys_and_an_operator_does_not(endpoint, tmp_path):
    (tmp_path / "program.py").write_text("from prefect import flow\n\n@flow\ndef nothing():\n    pass\n")
    (tmp_path / "prefect.yaml").write_text(PROJECT)
    deployer, operator = (environment_of(endpoint, tmp_path, user) for user in ("ada", "bob"))
    command = (sys.executable, "-m", "prefect", "--no-prompt", "deploy", "--all")
    done = subprocess.run(command, env=deployer, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    name = "nothing/by-a-deployer"
    done = prefect(operator, "deployment", "schedule", "create", name, "--interval", "3600")
    assert done.returncode == 0, done.stdout + done.stderr
    refused = prefect(operator, "deployment", "delete", name)
    assert refused.returncode != 0
    said = " ".join((refused.stdout + refused.stderr).split())
    assert "The role operator may not create, change or delete flows and deployments" in said
    assert prefect(deployer, "deployment", "delete", name).returncode == 0


def test_the_cli_is_refused_with_a_wrong_password(environment):
    wrong = base64.b64encode(b"admin:not-the-password").decode()
    environment["PREFECT_CLIENT_CUSTOM_HEADERS"] = json.dumps({"Authorization": f"Basic {wrong}"})
    done = prefect(environment, "work-pool", "ls")
    assert done.returncode != 0
    assert "401" in done.stdout + done.stderr


def test_the_cli_does_not_trust_a_stranger(environment):
    """Without the authority's certificate there is no connection: nobody has turned verification off."""
    del environment["PREFECT_API_SSL_CERT_FILE"]
    done = prefect(environment, "work-pool", "ls")
    assert done.returncode != 0
    assert "CERTIFICATE_VERIFY_FAILED" in done.stdout + done.stderr


FLOW = """
import sys
from prefect import flow, get_run_logger, task
from prefect.deployments import run_deployment

@task
def square(x):
    get_run_logger().info("square of %s", x)
    return x * x

@flow(name=sys.argv[1])
def squares():
    return [future.result() for future in square.map(range(4))]

assert squares() == [0, 1, 4, 9]
run = run_deployment("hello/hello", timeout=90, as_subflow=False)
assert run.state.is_completed(), run.state
print("state:", run.state.name)
"""


def test_the_sdk_runs_a_flow_here_and_a_deployment_there(environment, endpoint, tmp_path):
    """A flow on this machine: its task runs (events websocket) and logs reach the server through the reverse proxy."""
    program, name = tmp_path / "program.py", f"from-outside-{uuid.uuid4().hex[:8]}"
    program.write_text(FLOW)
    done = run(environment, sys.executable, str(program), name, timeout=180)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "state: Completed" in done.stdout
    (flow,) = endpoint.post("/api/flows/filter", {"flows": {"name": {"any_": [name]}}}).json()
    (found,) = endpoint.post("/api/flow_runs/filter", {"flows": {"id": {"any_": [flow["id"]]}}}).json()
    of_run = {"flow_runs": {"id": {"any_": [found["id"]]}}}
    deadline = time.monotonic() + 30
    while True:
        tasks = endpoint.post("/api/task_runs/filter", of_run).json()
        logs = endpoint.post("/api/logs/filter", {"logs": {"flow_run_id": {"any_": [found["id"]]}}}).json()
        states = [task["state_name"] for task in tasks]
        squares = sorted(line["message"] for line in logs if line["message"].startswith("square of"))
        if states == ["Completed"] * 4 and len(squares) == 4:
            break
        assert time.monotonic() < deadline, (states, squares)
        time.sleep(1)


def test_events_arrive_by_websocket(environment, tmp_path):
    """`prefect event stream` shows what another client does."""
    stream = subprocess.Popen(
        [sys.executable, "-m", "prefect", "event", "stream", "--format", "json"],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        time.sleep(8)
        name = f"lab.{uuid.uuid4().hex}"
        emit = f"from prefect.events import emit_event; emit_event('{name}', resource={{'prefect.resource.id': 'lab'}})"
        done = run(environment, sys.executable, "-c", emit)
        assert done.returncode == 0, done.stderr
        deadline = time.monotonic() + 30
        for line in stream.stdout:
            if name in line:
                break
            assert time.monotonic() < deadline, "the event did not come"
        else:
            pytest.fail("the stream ended")
    finally:
        stream.terminate()
        stream.wait(20)
