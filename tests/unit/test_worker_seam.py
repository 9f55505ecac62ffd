"""What is put in the places of private names of Prefect's: what ours do (that those are there: test_contract.py)."""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from prefect_kit_worker import process, seam
from prefect_kit_worker.groups import Groups

ROOT = Path(__file__).resolve().parents[2]
RUN = "0198a1b2-0000-7000-8000-000000000001"


def in_hand(root: Path, interpreter: str | None = sys.executable) -> seam.RunInHand:
    groups = Groups(root)
    return seam.RunInHand(
        group=groups.make(RUN),
        hooks_group=lambda: groups.make(RUN, "hooks"),
        interpreter=interpreter,
        environment={"PREFECT_HOME": "/state"},
    )


def test_a_run_is_over_when_its_own_process_is(delegated, tmp_path):
    """Not when the last one that has its output is: `sleep` would keep a place of the worker for hours."""
    run = in_hand(delegated)

    async def start() -> tuple[int, list[int]]:
        seam.in_hand.set(run)
        # As the flow of F2: a shell that waits for its child, and is ended alone; here it leaves by itself.
        command = ["bash", "-c", f'setsid sleep 9999 & sleep 9998 & echo "$PREFECT_HOME" > {tmp_path}/home; exit 3']
        done = await seam._run_the_flow(command, stream_output=True, env=dict(os.environ), cwd=tmp_path)
        return done.returncode, run.group.pids()

    began = time.monotonic()
    status, _ = asyncio.run(start())
    assert time.monotonic() - began < 10
    assert status == 3
    deadline = time.monotonic() + 5
    while run.group.pids() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert run.group.pids() == []
    assert run.left == ["sleep", "sleep"]
    assert (tmp_path / "home").read_text() == "/state\n"
    assert run.started_with["cwd"] == tmp_path


def test_what_ends_by_itself_after_the_run_has_time_to_do_so(delegated, tmp_path):
    """Python's resource tracker, for one, which removes shared memory when its parent has gone."""
    run = in_hand(delegated)

    async def start() -> None:
        seam.in_hand.set(run)
        command = ["bash", "-c", f"(sleep 0.5; touch {tmp_path}/tidied) > /dev/null 2>&1 & exit 0"]
        await seam._run_the_flow(command, stream_output=True, env=dict(os.environ), cwd=tmp_path)

    asyncio.run(start())
    assert (tmp_path / "tidied").exists()
    assert run.left == []


def _state(kind: str):
    from prefect.states import Cancelling, Crashed

    return Cancelling(message="by hand") if kind == "on_cancellation" else Crashed(message="killed")


@pytest.mark.parametrize("kind", ["on_cancellation", "on_crashed"])
def test_hooks_run_with_the_run_s_interpreter_environment_and_directory(delegated, tmp_path, monkeypatch, kind):
    """And what they leave behind ends, too."""
    hooks = tmp_path / "hooks.py"
    hooks.write_text(
        "import json, os, subprocess, sys\n"
        "subprocess.Popen(['sleep', '9999'], start_new_session=True)\n"
        "json.dump([sys.argv[1:], os.getcwd(), os.environ['RELEASE'], os.environ['KIT_HOOK_STATE'], sys.executable],"
        " open('said', 'w'))\n"
    )
    monkeypatch.setattr(seam, "HOOKS", hooks)
    monkeypatch.setattr(seam, "flow_run_logger", _Log())
    run = in_hand(delegated)
    run.started_with = {"env": {**os.environ, "RELEASE": "abc"}, "cwd": tmp_path, "stream_output": True}

    async def end() -> None:
        seam.in_hand.set(run)
        runner = seam.HooksOutside(resolve_flow=None)
        # Each of them looks at the state for itself.
        await runner.run_cancellation_hooks(SimpleNamespace(id=RUN), _state(kind))
        await runner.run_crashed_hooks(SimpleNamespace(id=RUN), _state(kind))

    asyncio.run(end())
    arguments, directory, release, state, python = json.loads((tmp_path / "said").read_text())
    assert (arguments, directory, release, python) == ([kind], str(tmp_path), "abc", sys.executable)
    assert json.loads(state)["message"] in ("by hand", "killed")
    assert not (delegated / f"hooks-{RUN}").exists()
    assert not run.hooks_running
    assert _Log.lines == []


class _Log:
    lines: list[str] = []  # noqa: RUF012

    def __init__(self) -> None:
        _Log.lines = []

    def __call__(self, flow_run) -> _Log:
        return self

    def warning(self, text: str, *values: object) -> None:
        _Log.lines.append(text % values)


def test_hooks_that_hang_or_fail_or_cannot_be_started_are_told_of(delegated, tmp_path, monkeypatch):
    hooks = tmp_path / "hooks.py"
    hooks.write_text("import os, sys, time\nsys.exit(7) if 'FAIL' in os.environ else time.sleep(9999)\n")
    monkeypatch.setattr(seam, "HOOKS", hooks)
    monkeypatch.setattr(seam, "SECONDS_FOR_HOOKS", 1)
    monkeypatch.setattr(seam, "flow_run_logger", _Log())
    run = in_hand(delegated)

    async def end(**environment: str) -> None:
        seam.in_hand.set(run)
        run.started_with = {"env": {**os.environ, **environment}, "cwd": tmp_path}
        await seam.HooksOutside(resolve_flow=None).run_crashed_hooks(SimpleNamespace(id=RUN), _state("on_crashed"))

    asyncio.run(end())
    asyncio.run(end(FAIL="1"))
    run.interpreter = None
    asyncio.run(end())
    run.interpreter = "/no/such/python"
    asyncio.run(end())
    assert _Log.lines[:3] == [
        "Hooks (on_crashed) of this flow run were ended after 1 s.",
        "The process of this flow run's hooks (on_crashed) ended with status 7.",
        "Hooks (on_crashed) of this flow run are not run: its command does not end in -m prefect.engine, so nothing is "
        "known of the Python that its flow needs.",
    ]
    assert _Log.lines[3].startswith("Hooks (on_crashed) of this flow run could not be started: ")
    assert not (delegated / f"hooks-{RUN}").exists()


def test_every_hook_is_run_whatever_becomes_of_the_one_before(monkeypatch):
    """prefect_hooks.py, as the flow's own interpreter runs it: hooks of each kind, in their order."""
    import prefect.client.orchestration
    import prefect.flows
    import prefect.logging.loggers
    import prefect_hooks

    seen: list[tuple[str, str]] = []

    def first(flow, flow_run, state):
        seen.append(("first", state.message))

    def fails(flow, flow_run, state):
        raise RuntimeError("no")

    async def last(flow, flow_run, state):
        seen.append(("last", state.name))

    class Client:
        async def __aenter__(self):
            return self

        async def __aexit__(self, *_):
            return None

        async def read_flow_run(self, run_id):
            return SimpleNamespace(id=run_id)

    async def load(flow_run, use_placeholder_flow):
        return SimpleNamespace(on_crashed_hooks=[first, fails, last], on_cancellation_hooks=None)

    logs: list[str] = []
    logger = SimpleNamespace(
        info=lambda text, *values: logs.append(text % values),
        error=lambda text, *values, exc_info: logs.append(text % values),
    )
    monkeypatch.setattr(prefect.client.orchestration, "get_client", Client)
    monkeypatch.setattr(prefect.flows, "load_flow_from_flow_run", load)
    monkeypatch.setattr(prefect.logging.loggers, "flow_run_logger", lambda flow_run: logger)
    state = _state("on_crashed").model_dump_json(
        include={"id", "type", "name", "message", "timestamp", "state_details"}
    )
    monkeypatch.setenv("KIT_HOOK_STATE", state)
    monkeypatch.setenv("PREFECT__FLOW_RUN_ID", RUN)
    asyncio.run(prefect_hooks.main("on_crashed"))
    assert seen == [("first", "killed"), ("last", "Crashed")]
    assert "An error was encountered while running hook 'fails'" in logs
    assert logs[-1] == "Hook 'last' finished running successfully"
    # A flow without such hooks.
    asyncio.run(prefect_hooks.main("on_cancellation"))
    assert len(seen) == 2


def test_every_page_of_crashed_runs_and_subflows_is_read():
    """A large outage crashes more than one answer (200 runs) holds."""
    from uuid import UUID

    from prefect.client.schemas.objects import FlowRun, FlowRunPolicy, State
    from prefect_kit_worker import api

    def run(number: int) -> FlowRun:
        return FlowRun(
            id=UUID(int=number),
            flow_id=RUN,
            state=State(type="RUNNING"),
            empirical_policy=FlowRunPolicy(),
        )

    class Client:
        def __init__(self, runs: list[FlowRun]) -> None:
            self.runs = runs

        async def read_flow_runs(self, *, flow_run_filter, limit, offset, sort, work_pool_filter=None):
            assert limit <= 200
            if flow_run_filter.parent_flow_run_id and UUID(RUN) not in flow_run_filter.parent_flow_run_id.any_:
                return []
            return self.runs[offset : offset + limit]

    runs = [run(number) for number in range(401)]
    assert len(asyncio.run(api.Api(lambda: Client(runs)).crashed_lately("general"))) == 401
    assert len(asyncio.run(api.Api(lambda: Client(runs)).subflows_under_way([RUN]))) == 401
    assert len(asyncio.run(api.Api(lambda: Client(runs[:400])).crashed_lately("general"))) == 400


def test_the_interpreter_of_a_command():
    assert process.interpreter("/r/a/.venv/bin/python -m prefect.engine") == "/r/a/.venv/bin/python"
    assert process.interpreter("uv run -m prefect.engine") == "uv run"
    for other in ("bash run.sh", "python -m prefect.engine --more", None, ""):
        assert not process.interpreter(other)
