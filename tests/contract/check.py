"""`python tests/contract/check.py`, in the environment of one version of Prefect: what the seams of the kit rely on there.

Each check is a function; what is wrong is printed, a line for each that fails, and the exit code is 1 then. Run by
tests/unit/test_contract.py, and without pytest, which is no part of these environments.
"""

from __future__ import annotations

import ast
import asyncio
import inspect
import os
import re
import shutil
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from uuid import uuid4

ROOT = Path(__file__).resolve().parents[2]
WORKER = ROOT / "systemd" / "worker"
DEPLOY = ROOT / "ansible" / "roles" / "flows" / "files"
PACKAGE = WORKER / "prefect_kit_worker"
ROLES = ROOT / "ansible" / "roles"
SEAMS = {PACKAGE / "seam.py", DEPLOY / "deploy_seam.py", WORKER / "prefect_engine.py"}
sys.path[:0] = [str(WORKER), str(DEPLOY), str(ROOT / "compose" / "server")]

# Prefect reads its home and its settings when it is imported.
HOME = tempfile.TemporaryDirectory()
os.environ["PREFECT_HOME"] = HOME.name
os.chdir(HOME.name)

import analytics  # noqa: E402
import anyio  # noqa: E402
import deploy_seam  # noqa: E402
import httpcore  # noqa: E402
import prefect  # noqa: E402
import prefect_engine  # noqa: E402
import way_out  # noqa: E402
import yaml  # noqa: E402
from prefect.cli.deploy import _core  # noqa: E402
from prefect.client.base import PrefectHttpxAsyncClient, PrefectHttpxSyncClient  # noqa: E402
from prefect.client.orchestration import PrefectClient  # noqa: E402
from prefect.client.schemas.objects import FlowRun  # noqa: E402
from prefect.deployments.runner import RunnerDeployment  # noqa: E402
from prefect.flows import Flow, load_flow_from_flow_run  # noqa: E402
from prefect.runner import (  # noqa: E402
    _flow_run_executor,
    _hook_runner,
    _starter_engine,
    _workspace_hook_runner,
    _workspace_starter,
)
from prefect.settings import PREFECT_CLIENT_CUSTOM_HEADERS, temporary_settings  # noqa: E402
from prefect.workers.base import BaseJobConfiguration, BaseWorker  # noqa: E402
from prefect.workers.process import ProcessWorker  # noqa: E402
from prefect_docker.worker import DockerWorker, DockerWorkerJobConfiguration  # noqa: E402
from prefect_kit_worker import seam  # noqa: E402
from prefect_kit_worker.docker import DockerKitWorker, fix  # noqa: E402
from prefect_kit_worker.kit import Kit  # noqa: E402
from prefect_kit_worker.notify import Systemd  # noqa: E402
from prefect_kit_worker.process import ProcessKitWorker  # noqa: E402
from prefect_kit_worker.worker import SMOKE  # noqa: E402

#: What Prefect calls, by its name; the name that the seam gives it; and its parameters.
EXTENDED = {
    "_initialize_after_sync": ("after_sync", []),
    "_submit_scheduled_flow_runs": ("submit_due", ["flow_run_response"]),
    "_submit_run": ("take_run", ["flow_run"]),
    "_propose_pending_state": ("claim", ["flow_run"]),
    "_submit_run_and_capture_errors": ("start_and_wait", ["flow_run", "task_status"]),
    "_propose_crashed_state": ("report_crash", ["flow_run", "message", "client"]),
}
PUBLIC = {
    "get_and_submit_flow_runs": [],
    "sync_with_backend": [],
    "run": ["flow_run", "configuration", "task_status"],
}
#: What the worker reads or sets, with its value in a worker that has not begun.
ATTRIBUTES = {
    "_work_pool": None,
    "_work_pool_name": "general",
    "_has_successfully_synced": False,
    "_limiter": None,
    "_runs_task_group": None,
    "_cancelling_observer": None,
    "_submitting_flow_run_ids": set(),
}
DOCKER = {
    "_get_client": [],
    "_get_infrastructure_pid": ["container_id"],
    "_create_and_start_container": ["configuration"],
    "_watch_container_safe": ["container", "configuration", "created_event"],
}


def parameters(function: Callable[..., Any]) -> list[str]:
    return [name for name in inspect.signature(function).parameters if name != "self"]


def made(kind: type) -> Any:
    """A worker of the kit's that has not begun."""
    directory = Path(tempfile.mkdtemp(dir=HOME.name))
    kit = Kit(directory, directory, drain_seconds=1, shutdown_seconds=1, memory_limit=None)
    return kind(kit=kit, systemd=Systemd(), name="w", work_pool_name="general", create_pool_if_not_found=False)


def modules() -> Iterator[Path]:
    yield from (
        path for path in [*PACKAGE.glob("*.py"), *WORKER.glob("*.py"), *DEPLOY.glob("*.py")] if path not in SEAMS
    )


def check_methods_of_the_worker() -> None:
    for kind in ProcessWorker, DockerWorker:
        wanted = (
            {name: more for name, (_, more) in EXTENDED.items()} | PUBLIC | {"_release_limit_slot": ["flow_run_id"]}
        )
        assert {name: parameters(getattr(kind, name)) for name in wanted} == wanted, kind
        for name in EXTENDED.keys() | PUBLIC.keys():
            assert inspect.iscoroutinefunction(getattr(kind, name)), name
    source = inspect.getsource(sys.modules[BaseWorker.__module__])
    for name in EXTENDED:
        assert f"self.{name}" in source, f"Prefect does not call {name}"
    assert {name: parameters(getattr(DockerWorker, name)) for name in DOCKER} == DOCKER


def check_attributes_after_construction() -> None:
    for kind in ProcessKitWorker, DockerKitWorker:
        worker = made(kind)
        assert {name: getattr(worker, name) for name in ATTRIBUTES} == ATTRIBUTES
        assert worker._create_pool_if_not_found is False
        assert (worker.pool, worker.pool_name, worker.has_synced, worker.has_place) == (None, "general", False, True)
        worker._limiter = SimpleNamespace(available_tokens=0)
        assert not worker.has_place
        worker._limiter = None
        worker._last_polled_time = datetime.now(UTC) - timedelta(days=1)
        worker.count_as_polled()
        assert datetime.now(UTC) - worker._last_polled_time < timedelta(minutes=1)
        run_id = uuid4()
        worker._submitting_flow_run_ids.add(run_id)
        assert worker.is_submitting(run_id)
        worker.forget_submitting(run_id)
        assert not worker.is_submitting(run_id)
        started: list[tuple[Any, ...]] = []
        assert not worker.start_beside(started.append)
        worker._runs_task_group = SimpleNamespace(start_soon=lambda *values, to=started: to.append(values))
        assert worker.start_beside(print, 1)
        assert started == [(print, 1)]
        worker.log.debug("a logger")
        # Nothing was taken for it; Prefect itself takes that for an ordinary case.
        worker.free_place(run_id)


def check_each_step_comes_to_ours() -> None:
    async def all_steps() -> None:
        for kind, theirs in (ProcessKitWorker, ProcessWorker), (DockerKitWorker, DockerWorker):
            worker = made(kind)
            for private, (ours, names) in EXTENDED.items():
                seen: list[Any] = []

                async def note(*values: Any, seen: list[Any] = seen) -> str:
                    seen.append(values)
                    return "answer"

                setattr(worker, ours, note)
                answer = await getattr(worker, private)(*names)
                delattr(worker, ours)
                assert seen == [tuple(names)], (private, seen)
                assert answer in ("answer", None)
                # And on to Prefect's own.
                real, passed = getattr(BaseWorker, private), []

                async def prefects(self: Any, *values: Any, passed: list[Any] = passed) -> str:
                    passed.append(values)
                    return "answer"

                owner = next(one for one in theirs.__mro__ if private in vars(one))
                setattr(owner, private, prefects)
                try:
                    await getattr(seam.WorkerSeam, ours)(worker, *names)
                finally:
                    setattr(owner, private, real)
                assert passed == [tuple(names)], (private, passed)

    asyncio.run(all_steps())


def check_cancellations_are_heard_after_an_outage() -> None:
    """By our hand where the listener has a task that gives up; by Prefect itself where it has none."""
    worker = made(ProcessKitWorker)
    worker.revive_cancellations()
    worker._cancelling_observer = SimpleNamespace(_polling_task=SimpleNamespace(done=lambda: True))
    worker.revive_cancellations()
    assert worker._cancelling_observer is None
    for observer in (
        SimpleNamespace(_polling_task=SimpleNamespace(done=lambda: False)),
        SimpleNamespace(_polling_task=None),
        SimpleNamespace(),
    ):
        worker._cancelling_observer = observer
        worker.revive_cancellations()
        assert worker._cancelling_observer is observer
    source = inspect.getsource(sys.modules[BaseWorker.__module__].FlowRunCancellingObserver)
    assert ("_polling_task" in source) == (prefect.__version__ == "3.8.8"), "who revives the listener has changed"
    # A sync makes a new one where there is none.
    assert "self._cancelling_observer is not None or" in inspect.getsource(sys.modules[BaseWorker.__module__])


def check_the_smoke_flow_waits_for_no_place() -> None:
    async def submitted(worker: Any, tags: list[str]) -> list[Any]:
        run = FlowRun(id=uuid4(), flow_id=uuid4(), name="r", tags=tags)
        return [one.id for one in await worker.submit_due([SimpleNamespace(flow_run=run)])]

    async def all_steps(kind: type) -> None:
        worker = made(kind)
        worker._limiter = anyio.CapacityLimiter(1)
        worker._runs_task_group = SimpleNamespace(start_soon=lambda *_: None)
        worker.get_flow_run_logger = lambda _: worker.log
        [plain] = await submitted(worker, [])
        assert await submitted(worker, []) == []
        [smoke] = await submitted(worker, [SMOKE])
        assert (worker._limiter.total_tokens, worker._limiter.borrowed_tokens, worker.has_place) == (1, 2, False)
        worker.free_place(smoke)
        assert await submitted(worker, []) == []
        worker.free_place(plain)
        assert worker.has_place
        worker._limiter = None
        assert len(await submitted(worker, [SMOKE])) == 1

    for kind in ProcessKitWorker, DockerKitWorker:
        asyncio.run(all_steps(kind))
    definition = yaml.safe_load((ROLES / "checks" / "vars" / "main.yml").read_text())["__checks_smoke_deployment"]
    assert definition["tags"] == [SMOKE]


def check_no_name_of_ours_is_one_of_prefects() -> None:
    for kind, ours in (DockerWorker, seam.DockerSeam), (ProcessWorker, seam.WorkerSeam):
        worker = made(DockerKitWorker if kind is DockerWorker else ProcessKitWorker)
        public = {name for one in ours.__mro__[:-1] for name in vars(one) if not name.startswith("_")}
        assert not public & set(dir(kind)), public & set(dir(kind))
        plain = kind(work_pool_name="general")
        assert not public & set(dir(plain)), public & set(dir(plain))
        assert isinstance(worker, ours)


def check_private_names_stand_in_the_seams_only() -> None:
    theirs = {
        name
        for one in (ProcessWorker(work_pool_name="general"), DockerWorker(work_pool_name="general"), RunnerDeployment)
        for name in dir(one)
        if name.startswith("_") and not name.startswith("__")
    }
    for path in modules():
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Attribute | ast.FunctionDef | ast.AsyncFunctionDef):
                name = node.attr if isinstance(node, ast.Attribute) else node.name
                assert name not in theirs, f"{path.name}:{node.lineno}: {name} is a private name of Prefect's"
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("prefect"):
                words = [*(node.module or "").split("."), *(name.name for name in node.names)]
                assert not [word for word in words if word.startswith("_")], f"{path.name}:{node.lineno}: {words}"


def check_what_starts_a_run_and_its_hooks() -> None:
    assert "Uses module-level `run_process` reference -- patch the module to override." in inspect.getsource(
        _starter_engine.EngineCommandStarter
    )
    assert "await run_process(" in inspect.getsource(_starter_engine.EngineCommandStarter)
    assert "await run_process(" in inspect.getsource(_workspace_hook_runner.WorkspaceHookRunner)
    assert "HookRunner(resolve_flow=resolve_flow)" in inspect.getsource(_flow_run_executor.FlowRunExecutorContext)
    # A run without a command, and its supervisor, are started by the same starter.
    assert "EngineCommandStarter(" in inspect.getsource(_workspace_starter)
    assert "EngineCommandStarter(" in inspect.getsource(ProcessWorker.run)
    for name in ("__init__", "run_cancellation_hooks", "run_crashed_hooks"):
        theirs, ours = (parameters(getattr(one, name)) for one in (_hook_runner.HookRunner, seam.HooksOutside))
        assert theirs == ours, name
    assert {"on_cancellation", "on_crashed"} <= set(parameters(Flow.__init__))
    # What prefect_hooks.py loads a flow with, in the environment of the flows.
    assert {"flow_run", "use_placeholder_flow"} <= set(parameters(load_flow_from_flow_run))
    assert {"command", "stream_output", "task_status", "task_status_handler"} <= set(parameters(seam.run_process))
    seam.install()
    seam.install()
    assert _starter_engine.run_process is seam._run_the_flow
    assert _workspace_hook_runner.run_process is seam._run_hooks_of_a_workspace
    assert _flow_run_executor.HookRunner is seam.HooksOutside


def check_a_process_is_started_through_the_seam() -> None:
    """Without a run in hand it is Prefect's own run_process, which must understand all that is passed on."""
    done = asyncio.run(seam._run_the_flow([sys.executable, "-c", "raise SystemExit(3)"], stream_output=False))
    assert done.returncode == 3


def check_clients_ask_again_from_the_first_request_on() -> None:
    for client in PrefectHttpxAsyncClient, PrefectHttpxSyncClient:
        assert "self._has_connected: bool = False" in inspect.getsource(client)
        assert 'headers.get("Prefect-Maintenance") != "true"' in inspect.getsource(client)
    assert PrefectHttpxSyncClient()._has_connected is False
    prefect_engine.be_patient()
    assert PrefectHttpxSyncClient()._has_connected is True
    assert PrefectHttpxAsyncClient()._has_connected is True


def check_what_deploys() -> None:
    for name in ("deploy_config", "actions"):
        assert name in parameters(_core._run_single_deploy)
    assert parameters(_core._create_deployment_triggers) == ["client", "deployment_id", "triggers"]
    source = inspect.getsource(_core)
    assert source.count("await _run_single_deploy(") >= 1
    assert "_create_deployment_triggers(" in inspect.getsource(_core._run_single_deploy)
    assert ".apply(" in inspect.getsource(_core._run_single_deploy)
    for name in "schedules", "work_pool_name", "image":
        assert name in parameters(RunnerDeployment.aapply), name
    for name in deploy_seam.ASKED_ONCE:
        assert inspect.iscoroutinefunction(getattr(PrefectClient, name)), name
    assert "schedule_config" in parameters(deploy_seam.schedule_of_entry)
    made = deploy_seam.schedule_of_entry({"cron": "0 6 * * *", "timezone": "Europe/Berlin", "slug": "daily"})
    assert (made["schedule"].cron, made["schedule"].timezone, made["slug"]) == ("0 6 * * *", "Europe/Berlin", "daily")
    assert deploy_seam.parse_datetime("2026-11-26T03:00:00+00:00") == datetime(2026, 11, 26, 3, tzinfo=UTC)
    for model in (deploy_seam.DeploymentConfig, deploy_seam.WorkPoolConfig, deploy_seam.RawScheduleConfig):
        assert model.model_fields, model
    # Every key that is told apart by name.
    assert {"name", "entrypoint", "schedules", "work_pool", "paused", "version"} <= set(
        deploy_seam.DeploymentConfig.model_fields
    )
    assert "_parameter_openapi_schema" in RunnerDeployment.__private_attributes__


def check_a_rehearsal_writes_nothing_and_tells_of_each() -> None:
    before = (_core._run_single_deploy, _core._create_deployment_triggers, RunnerDeployment.apply)
    failures: list[tuple[Any, str]] = []

    async def look(*_: Any, **__: Any) -> None:
        return None

    async def rehearse() -> None:
        with deploy_seam.rehearsed_by(look, lambda name, reason: failures.append((name, type(reason).__name__))):
            assert RunnerDeployment.apply is look
            assert await _core._create_deployment_triggers(None, None, []) is None
            # Nothing that it could deploy.
            await _core._run_single_deploy({"name": "a", "entrypoint": "no/such.py:f"}, {}, None, None)

    asyncio.run(rehearse())
    assert [name for name, _ in failures] == ["a"], failures
    assert before == (_core._run_single_deploy, _core._create_deployment_triggers, RunnerDeployment.apply)


def check_what_is_asked_once() -> None:
    asked: list[str] = []

    async def read(self: Any, name: str) -> str:
        asked.append(name)
        return name.upper()

    real = PrefectClient.read_work_pool
    PrefectClient.read_work_pool = read
    try:
        deploy_seam.ask_once("read_work_pool")
        client = object.__new__(PrefectClient)
        assert [asyncio.run(client.read_work_pool(name)) for name in ("a", "b", "a")] == ["A", "B", "A"]
    finally:
        PrefectClient.read_work_pool = real
    assert asked == ["a", "b"]


def check_webhooks_take_the_way_out() -> None:
    from prefect.blocks.webhook import Webhook

    os.environ["HTTPS_PROXY"] = "http://127.0.0.1:9"
    try:
        way_out.take_it()
    finally:
        del os.environ["HTTPS_PROXY"]
    for verify in (True, False):
        block = Webhook(url="https://example.org", verify=verify)
        assert isinstance(block._client._transport._pool, httpcore.AsyncHTTPProxy), block._client._transport


def routes_of(routes: Any, prefix: str = "") -> Iterator[tuple[str, str]]:
    """Method (WS: a websocket) and path of each route of an application. Included routers are private to FastAPI."""
    for route in routes:
        if hasattr(route, "effective_route_contexts"):
            for context in route.effective_route_contexts():
                yield from routes_of([getattr(context, "original_route", context)], prefix + _prefix(context))
            continue
        path = prefix + getattr(route, "path", "")
        if "WebSocket" in type(route).__name__:
            yield "WS", path
        elif methods := getattr(route, "methods", None):
            yield from ((method, path) for method in methods)
        elif inner := getattr(route, "routes", None) or getattr(getattr(route, "app", None), "routes", None):
            yield from routes_of(inner, path)


def _prefix(context: Any) -> str:
    """What stands before the path of a route within the router that includes it."""
    path, own = getattr(context, "path", None), context.original_route.path
    return path.removesuffix(own) if path else ""


def check_what_a_container_may_have_is_fixed() -> None:
    """Each field that ansible/roles/docker_pool fixes is one of Prefect's, and is set whatever was there."""
    fixed = {
        "privileged": False,
        "networks": ["prefect-flows"],
        "network_mode": None,
        "volumes": ["/srv/data:/data:ro"],
        "auto_remove": False,
        "container_create_kwargs": {"cap_drop": ["ALL"], "user": "64202:64202"},
    }
    asked = {
        "volumes": ["/:/host"],
        "privileged": True,
        "network_mode": "host",
        "container_create_kwargs": {"user": "0"},
    }
    configuration = DockerWorkerJobConfiguration(image="x", **asked)
    assert sorted(fix(configuration, fixed)) == sorted([*asked, "networks"])
    assert {name: getattr(configuration, name) for name in fixed} == fixed
    assert fix(configuration, fixed) == []


def check_a_worker_elsewhere_keeps_its_password_out_of_what_it_asks_for() -> None:
    """A worker hands on what it knows itself; what the kit's templates set to null is left out, whatever a deployment adds."""
    secret = "PREFECT_CLIENT_CUSTOM_HEADERS"
    roles = yaml.safe_load((ROLES / "workers" / "vars" / "main.yml").read_text())
    configurations = [one["env"] for one in roles["__workers_job_configurations"].values()]
    assert configurations and all(secret in one for one in configurations)
    for env in ({}, *configurations):
        template = {"job_configuration": {"env": env}, "variables": {"properties": {"env": {"type": "object"}}}}
        run = FlowRun(id=uuid4(), flow_id=uuid4(), name="brave-owl")
        with temporary_settings({PREFECT_CLIENT_CUSTOM_HEADERS: {"Authorization": "Basic x"}}):
            made = asyncio.run(
                BaseJobConfiguration.from_template_and_values(template, {"env": {"A": "1"}}, client=object())
            )
            made.prepare_for_flow_run(run)
        assert made.env["A"] == "1", made.env
        assert (secret in made.env) == (env == {}), made.env


def check_the_newer_ui_has_one_key_for_analytics() -> None:
    """And asks for it before it does anything with analytics."""
    with tempfile.TemporaryDirectory() as directory:
        shutil.copytree(prefect.__ui_v2_static_path__, directory, dirs_exist_ok=True)
        [changed] = analytics.turn_off(Path(directory))
        text = (Path(directory) / "assets" / changed).read_text()
    [name] = re.findall(r"function (\w+)\(\)\{return``\}", text)
    assert re.search(rf"let (\w)={name}\(\);return \1\?\(\w+\(\1,.{{0,200}},!0\):!1", text), "it is set up all the same"


def check_each_route_has_a_permission() -> None:
    from access import routes as table
    from prefect.server.api.server import create_app

    known = {(one.method, one.template) for one in table.parsed(table.TABLE.read_text())}
    found = {(method, re.sub(r":(uuid|str|path)}", "}", path)) for method, path in routes_of(create_app().routes)}
    # 208 of 3.8.8: fewer, and this check does not see them any more.
    assert len(found) > 200, len(found)
    # FastAPI answers HEAD where Starlette's own routes do; the table has GET for both.
    assert not (new := {one for one in found - known if one[0] != "HEAD"}), (
        f"routes without a permission: {sorted(new)}"
    )


def check_uvicorn_is_given_the_application() -> None:
    """The gate is put around what `prefect server start` gives to uvicorn.run."""
    import uvicorn
    from access import lines, wall
    from access.gate import Gate
    from prefect.cli import _server_utils

    calls = [node for node in ast.walk(ast.parse(inspect.getsource(_server_utils))) if isinstance(node, ast.Call)]
    given = [ast.unparse(call) for call in calls if ast.unparse(call.func) == "uvicorn.run"]
    assert any("app=create_app(final=True" in call for call in given), given
    served: list[Any] = []
    wall.guarded(lambda app, **_: served.append(app), lines.Lines(2))(app=lambda: None, host="x")
    assert isinstance(served[0], Gate) and uvicorn.run


def main() -> int:
    """Run every check; gives the exit code."""
    checks = [function for name, function in globals().items() if name.startswith("check_")]
    failed = 0
    for check in checks:
        try:
            check()
        except Exception as reason:  # each is to be told of
            failed += 1
            at = traceback.extract_tb(reason.__traceback__)[-1]
            print(
                f"FAILED {check.__name__}: {type(reason).__name__}: {reason} (line {at.lineno} of {Path(at.filename).name}: {at.line})"
            )
    print(f"{prefect.__version__}: {len(checks) - failed} of {len(checks)} hold")
    return int(failed > 0)


if __name__ == "__main__":
    raise SystemExit(main())
