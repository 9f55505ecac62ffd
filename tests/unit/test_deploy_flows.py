"""The program that deploys a release: what it refuses before it touches anything."""

from __future__ import annotations

import asyncio
import importlib.util
from pathlib import Path
from types import SimpleNamespace

import pytest
from prefect import flow
from prefect.deployments.runner import RunnerDeployment

ROOT = Path(__file__).resolve().parents[2]
SPEC = importlib.util.spec_from_file_location("deploy_flows", ROOT / "ansible/roles/flows/files/deploy_flows.py")
deploy_flows = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(deploy_flows)


@flow
def greet(name: str = "world", times: int = 1) -> None:
    """A flow with parameters."""


class Server:
    """As much of Prefect's client as is asked: one pool, which wants a boolean, and its queues."""

    async def __aenter__(self) -> Server:
        return self

    async def __aexit__(self, *_: object) -> None:
        return None

    async def read_work_pool(self, name: str) -> SimpleNamespace:
        variables = {"type": "object", "properties": {"stream_output": {"type": "boolean"}}}
        return SimpleNamespace(name=name, base_job_template={"variables": variables})

    async def read_work_queues(self, work_pool_name: str) -> list[SimpleNamespace]:
        return [SimpleNamespace(name="high"), SimpleNamespace(name="default")]


@pytest.fixture
def pool(monkeypatch) -> None:
    monkeypatch.setattr(deploy_flows, "get_client", Server)


def errors(schedules: tuple = (), **changes: object) -> list[str]:
    given = {"name": "mine", "work_pool_name": "general", "work_queue_name": "high", "entrypoint": "x.py:greet"}
    deployment = RunnerDeployment(**{**given, "flow_name": "greet", **changes})
    deployment._set_defaults_from_flow(greet)
    return asyncio.run(deploy_flows.rule_errors(deployment, list(schedules)))


def test_what_is_well(pool):
    assert errors() == []
    assert errors(parameters={"name": "Ada", "times": 2}, job_variables={"stream_output": True}) == []
    assert errors(schedules=({"schedule": {"cron": "0 3 * * *"}, "slug": "nightly"},), concurrency_limit=1) == []


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"parameters": {"times": "often"}}, "parameters: "),
        ({"job_variables": {"stream_output": "perhaps"}}, "job_variables: "),
        ({"concurrency_limit": 0}, "concurrency_limit: 0 is not 1 or more"),
        ({"name": "a/b"}, "name: "),
        ({"work_queue_name": "x"}, 'work_queue_name: the pool "general" has no queue "x", only default, high'),
        ({"schedules": ({"schedule": {"cron": "never"}},)}, "schedules: "),
        ({"schedules": ({"schedule": {"cron": "0 3 * * *"}, "parameters": {"times": "x"}},)}, "parameters: "),
    ],
)
def test_what_is_refused(pool, changes, words):
    try:
        said = errors(**changes)
    except ValueError as reason:  # Prefect's own class refuses it already
        said = [f"name: {reason}"]
    assert [line for line in said if line.startswith(words)], said


def test_a_flow_that_does_not_import(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "good.py").write_text("from prefect import flow\n\n\n@flow\ndef good():\n    pass\n")
    (tmp_path / "bad.py").write_text("import no_such_module_at_all\n")
    (tmp_path / "ends.py").write_text("raise SystemExit('here')\n")
    names = ["good.py:good", "good.py:none", "bad.py:bad", "ends.py:ends", "away.py:away", None]
    said = deploy_flows.import_errors([{"entrypoint": name} for name in names])
    assert len(said) == 5
    assert '"bad.py:bad" does not import: ' in said[2]
    assert "no_such_module_at_all" in said[2]
    assert '"ends.py:ends" does not import: SystemExit: here' in said
    assert not [line for line in said if "good.py:good" in line]
