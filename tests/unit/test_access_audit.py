"""What is noted of a request: whose, what it was about, in a line that nobody else can write."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "compose" / "server"))

from access import audit, lines, naming, routes
from access.decide import Asked
from access.naming import Target
from access.roles import Account

ID, OTHER = "11111111-1111-1111-1111-111111111111", "22222222-2222-2222-2222-222222222222"
FLOW, TYPE = "f1111111-1111-1111-1111-111111111111", "b1111111-1111-1111-1111-111111111111"
#: What Prefect answers.
THINGS: dict[str, dict[str, Any]] = {
    f"/api/deployments/{ID}": {"name": "nightly", "flow_id": FLOW},
    f"/api/deployments/{OTHER}": {"name": "weekly", "flow_id": FLOW},
    f"/api/flows/{FLOW}": {"name": "etl"},
    f"/api/flow_runs/{ID}": {"name": "brave-owl", "deployment_id": ID},
    f"/api/flow_runs/{OTHER}": {"name": "shy-cat", "deployment_id": None},
    f"/api/block_documents/{ID}": {"name": "db", "block_type": {"slug": "secret"}, "data": {"value": "hush"}},
    f"/api/block_types/{TYPE}": {"name": "Secret", "slug": "secret"},
    f"/api/block_schemas/{ID}": {"block_type": {"name": "Secret", "slug": "secret"}},
    f"/api/automations/{ID}": {"name": "tell me"},
    f"/api/concurrency_limits/{ID}": {"tag": "db"},
    f"/api/v2/concurrency_limits/{ID}": {"name": "api"},
    f"/api/work_queues/{ID}": {"name": "high", "work_pool_name": "general"},
    f"/api/artifacts/{ID}": {"key": "report"},
    f"/api/variables/{ID}": {"name": "x", "value": "hush"},
}


async def get(path: str) -> dict[str, Any]:
    return THINGS.get(path, {})


@pytest.mark.parametrize(
    ("method", "path", "body", "kind", "name"),
    [
        ("DELETE", f"/api/deployments/{ID}", None, "deployment", "etl/nightly"),
        ("PATCH", f"/api/deployments/{ID}", {"description": "hush"}, "deployment", "etl/nightly"),
        ("POST", f"/api/deployments/{ID}/create_flow_run", {"name": "mine"}, "deployment", "etl/nightly"),
        ("PATCH", f"/api/deployments/{ID}/schedules/{OTHER}", {}, "deployment", "etl/nightly"),
        ("POST", "/api/deployments/", {"name": "new", "flow_id": FLOW}, "deployment", "etl/new"),
        ("POST", "/api/deployments/", {"name": "new", "flow_id": 7}, "deployment", "new"),
        (
            "POST",
            "/api/deployments/bulk_delete",
            {"deployments": {"id": {"any_": [ID, OTHER]}}},
            "deployments",
            "etl/nightly, etl/weekly",
        ),
        ("POST", "/api/deployments/bulk_delete", {"deployments": {"name": {"any_": ["x"]}}}, "deployments", ""),
        ("POST", f"/api/flow_runs/{ID}/set_state", {}, "flow run", "brave-owl of etl/nightly"),
        ("DELETE", f"/api/flow_runs/{OTHER}", None, "flow run", "shy-cat"),
        (
            "POST",
            "/api/flow_runs/bulk_set_state",
            {"flow_runs": {"id": {"any_": [OTHER] * 7}}},
            "flow runs",
            f"{', '.join(['shy-cat'] * 5)} and 2 more",
        ),
        ("DELETE", f"/api/block_documents/{ID}", None, "block", "secret/db"),
        ("POST", "/api/block_documents/", {"name": "db", "block_type_id": TYPE, "data": {}}, "block", "secret/db"),
        ("PATCH", f"/api/block_types/{TYPE}", {}, "block type", "secret"),
        ("DELETE", f"/api/block_schemas/{ID}", None, "block schema", "secret"),
        ("PUT", f"/api/automations/{ID}", {"name": "new"}, "automation", "tell me"),
        (
            "DELETE",
            f"/api/automations/owned-by/prefect.deployment.{ID}",
            None,
            "automations of deployment",
            "etl/nightly",
        ),
        ("DELETE", "/api/automations/owned-by/x.y", None, "automations of x", "x.y"),
        ("POST", "/api/work_pools/", {"name": "gpu"}, "work pool", "gpu"),
        ("PATCH", "/api/work_pools/gpu", {}, "work pool", "gpu"),
        ("POST", "/api/work_pools/gpu/queues", {"name": "high"}, "work queue", "gpu/high"),
        ("DELETE", "/api/work_pools/gpu/queues/high", None, "work queue", "gpu/high"),
        ("DELETE", "/api/work_pools/gpu/workers/w", None, "worker", "gpu/w"),
        ("DELETE", f"/api/work_queues/{ID}", None, "work queue", "general/high"),
        ("POST", "/api/variables/", {"name": "x", "value": "hush"}, "variable", "x"),
        ("PATCH", "/api/variables/name/x", {"value": "hush"}, "variable", "x"),
        ("DELETE", f"/api/variables/{ID}", None, "variable", "x"),
        ("DELETE", f"/api/variables/{OTHER}", None, "variable", OTHER),
        ("DELETE", f"/api/concurrency_limits/{ID}", None, "tag concurrency limit", "db"),
        ("POST", "/api/concurrency_limits/tag/db/reset", None, "tag concurrency limit", "db"),
        ("PATCH", "/api/v2/concurrency_limits/api", {}, "concurrency limit", "api"),
        ("DELETE", f"/api/v2/concurrency_limits/{ID}", None, "concurrency limit", "api"),
        ("DELETE", f"/api/artifacts/{ID}", None, "artifact", "report"),
        ("PUT", "/api/admin/storage", {}, "", ""),
        ("DELETE", "/api/new_things/x", None, "", ""),
        ("POST", "/", "x", "", ""),
    ],
)
def test_what_a_request_is_about(method, path, body, kind, name):
    wanted = naming.target(Asked(method, path, {}, body), routes.table().find(method, path))
    found = asyncio.run(naming.Names(get).of(wanted))
    assert (found.kind, found.name) == (kind, name)
    assert "hush" not in repr(found)


@pytest.mark.parametrize("body", [None, [], 7, {"name": 7}, {"deployments": []}, {"deployments": {"id": {"any_": 7}}}])
def test_a_body_of_any_shape_is_no_error(body):
    for path in ("/api/deployments/bulk_delete", "/api/deployments/", "/api/work_pools/", "/api/variables/"):
        assert naming.target(Asked("POST", path, {}, body), routes.table().find("POST", path)).name in ("", "/")


def test_a_name_that_cannot_be_found_holds_nothing_up():
    async def broken(path: str) -> dict[str, Any]:
        raise RuntimeError

    assert asyncio.run(naming.Names(broken).of(Target("deployment", "", (ID,), "deployments"))).name == ID


def test_names_that_never_change_are_looked_up_once():
    asked: list[str] = []

    async def counted(path: str) -> dict[str, Any]:
        asked.append(path)
        return await get(path)

    async def go() -> None:
        names = naming.Names(counted)
        for _ in range(3):
            found = await names.of(Target("flow run", "", (ID,), "flow_runs"))
            assert found.name == "brave-owl of etl/nightly"

    asyncio.run(go())
    run, deployment, flow = (f"/api/{area}" for area in (f"flow_runs/{ID}", f"deployments/{ID}", f"flows/{FLOW}"))
    assert asked == [run, deployment, flow, run, run]


WHO = {role: Account(role, role) for role in ("admin", "deployer", "worker", "trigger")}


@pytest.mark.parametrize(
    ("method", "path", "state", "roles"),
    [
        ("GET", f"/api/deployments/{ID}", "", set()),
        ("POST", "/api/deployments/filter", "", set()),
        ("WS", "/api/events/in", "", set()),
        ("DELETE", f"/api/deployments/{ID}", "", set(WHO)),
        ("POST", f"/api/deployments/{ID}/create_flow_run", "", set(WHO)),
        ("POST", f"/api/flow_runs/{ID}/set_state", "RUNNING", set(WHO) - {"worker"}),
        ("POST", f"/api/flow_runs/{ID}/set_state", "cancelling", set(WHO)),
        # A flow that runs on a laptop, and a person who renames its flow run.
        ("POST", "/api/logs/", "", set()),
        ("POST", "/api/task_runs/", "", set()),
        ("POST", "/api/flows/", "", set()),
        ("POST", "/api/v2/concurrency_limits/increment", "", set()),
        ("PATCH", f"/api/flow_runs/{ID}", "", set(WHO) - {"worker"}),
        ("POST", "/api/work_pools/x/get_scheduled_flow_runs", "", set()),
        # What no version that we know has.
        ("POST", "/api/new_things/", "", set(WHO)),
        ("TRACE", "/api/flows/", "", set(WHO)),
    ],
)
def test_what_is_a_change_that_somebody_made(method, path, state, roles):
    asked = Asked(method, path, {}, {"state": {"type": state}} if state else None)
    found = routes.table().find(method, path)
    assert {role for role, account in WHO.items() if audit.changes(account, asked, found)} == roles


def entry(path: str = "/api/x", name: str = "", state: Any = None, forwarded: str = "192.0.2.7") -> audit.Entry:
    asked = Asked("POST", path, {"token": "hush"}, {"state": {"type": state}})
    scope = {"headers": [(b"x-forwarded-for", forwarded.encode())] * bool(forwarded), "client": ("198.51.100.1", 1)}
    return audit.entry("a", WHO["admin"], asked, Target("flow", name), 200, "", scope)


@pytest.mark.parametrize("mark", ["x", "\n", '"', "\u20ac", "\U0001f600", "\udcff"])
def test_a_line_is_one_line_that_a_pipe_takes_whole(mark):
    long = mark * 20000
    one = audit.Entry("t" * 30, long, "r", long, long, "tag concurrency limit", long, "S" * 20, 200, long, "a" * 64)
    text = one.line(audit.Number("12345678", 10**9))
    assert text.startswith(audit.FIRST) and text.isascii() and text.isprintable()
    assert len(text) + 1 <= audit.LONGEST
    assert json.loads(text)["path"].strip(mark) == ""


def test_whose_address_it_is():
    """Caddy alone sends this header, and overwrites what a client has written there."""
    assert entry().address == "192.0.2.7"
    assert entry(forwarded="203.0.113.9, 192.0.2.7").address == "192.0.2.7"
    assert entry(forwarded="").address == "198.51.100.1"


def test_a_state_is_one_of_prefects_or_none():
    assert entry(state="Cancelled").state == "CANCELLED"
    assert entry(state="hush hush").state == entry(state="x" * 30).state == entry(state=7).state == ""


def test_the_playbook_places_all_of_the_package():
    files = {path.name for path in Path(audit.__file__).parent.iterdir() if path.is_file()}
    role = yaml.safe_load((Path(__file__).resolve().parents[2] / "ansible/roles/stack/vars/main.yml").read_text())
    assert set(role["__stack_access"]) == files


# --- where it is written ------------------------------------------------------------------------------------------------


def read(descriptor: int) -> bytes:
    os.set_blocking(descriptor, False)
    found = b""
    try:
        while part := os.read(descriptor, 65536):
            found += part
    except BlockingIOError:
        pass
    return found


def test_a_pipe_that_is_full_holds_nothing_up(monkeypatch):
    reader, writer = os.pipe()
    try:
        written = lines.Lines(writer)
        many = [json.dumps({"number": number, "more": "x" * 900}) for number in range(80 + lines.KEPT)]
        for line in many:
            written.write(line)
        found = read(reader).splitlines()
        assert len(found) < 80
        for _ in range(200):
            written.flush()
            found += read(reader).splitlines()
        # The newest find no room.
        assert [one.decode() for one in found] == many[: len(found)] and lines.KEPT < len(found) < len(many)
        written.write("after")
        assert read(reader) == b"after\n"
    finally:
        os.close(reader)
        os.close(writer)


def test_it_is_tried_again(monkeypatch):
    monkeypatch.setattr(lines, "AGAIN", 0.01)

    async def go() -> bytes:
        reader, writer = os.pipe()
        written, line = lines.Lines(writer), "x" * 4000
        while not written._waiting:
            written.write(line)
        first = read(reader)
        await asyncio.sleep(0.05)
        return first + read(reader)

    found = asyncio.run(go())
    assert len(found) % 4001 == 0 and found.count(b"\n") * 4001 == len(found)
    assert len(found) > 65536 - 4001


def test_a_pipe_that_nobody_reads_is_said_and_ends_nothing(capsys):
    reader, writer = os.pipe()
    os.close(reader)
    written = lines.Lines(writer)
    written.write("x")
    os.close(writer)
    assert capsys.readouterr().err == "audit: 1 lines are not written: [Errno 32] Broken pipe\n"


def test_of_what_else_is_printed_stderr_has_all(tmp_path):
    """The stdout of the server's container is for these lines alone: Docker tells the two apart."""
    code = "import os, sys; sys.path.append(sys.argv[1]); from access import lines; own = lines.apart(); print('\\n{\"audit\": 1, forged');"
    code += "os.system('echo child'); lines.Lines(own).write('line')"
    server = str(Path(lines.__file__).parents[1])
    done = subprocess.run([sys.executable, "-c", code, server], capture_output=True, text=True, check=True)
    assert done.stdout == "line\n"
    assert sorted(done.stderr.split("\n")) == ["", "", "child", '{"audit": 1, forged']
