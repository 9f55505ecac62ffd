"""The gate before Prefect's application, around one that stands for it."""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "compose" / "server"))

from access import audit, naming
from access.gate import Gate
from access.roles import Accounts
from prefect_doctor import way_in

NUMBER = audit.Number("12345678", 1)
RUN, SUB, FAR = (f"{number}1111111-1111-1111-1111-111111111111" for number in (1, 2, 3))
DEPLOYMENT = "d1111111-1111-1111-1111-111111111111"
THINGS = {
    f"/api/flow_runs/{RUN}": {"work_pool_name": "general", "deployment_id": DEPLOYMENT, "name": "brave-owl"},
    f"/api/flow_runs/{SUB}": {"work_pool_name": None, "parent_task_run_id": "t"},
    f"/api/flow_runs/{FAR}": {"work_pool_name": "gpu", "deployment_id": None},
    "/api/task_runs/t": {"flow_run_id": RUN},
    f"/api/deployments/{DEPLOYMENT}": {"name": "ship", "flow_id": "f", "work_pool_name": "general"},
    "/api/flows/f": {"name": "order"},
}
ACCOUNTS = {
    "alice": {"role": "viewer"},
    "root": {"role": "admin"},
    "backups": {"role": "operator", "more": ["variables"]},
    "worker-a": {"role": "worker", "pools": ["general"]},
    "shop": {"role": "trigger", "deployments": ["order/ship"]},
}


class Prefect:
    """Answers what it is asked for, and knows what it was asked."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, str, bytes]] = []
        self.headers: list[dict[bytes, bytes]] = []

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "websocket":
            self.asked.append(("WS", scope["path"], b""))
            await send({"type": "websocket.accept"})
            return
        body, more = b"", True
        while more:
            message = await receive()
            body += message["body"]
            more = message["more_body"]
        self.asked.append((scope["method"], scope["path"], body))
        self.headers.append(dict(scope["headers"]))
        found = THINGS.get(scope["path"]) if scope["method"] == "GET" else {}
        await send({"type": "http.response.start", "status": 200 if found is not None else 404, "headers": []})
        await send({"type": "http.response.body", "body": json.dumps(found).encode(), "more_body": False})


class World:
    def __init__(self, path: Path) -> None:
        (path / "accounts.json").write_text(json.dumps(ACCOUNTS))
        self.accounts = path / "accounts.json"
        self.prefect, self.notes = Prefect(), []
        self.gate = Gate(self.prefect, Accounts(self.accounts), self.notes.append)

    def ask(self, who: str, method: str, path: str, body: Any = None, query: bytes = b"", local: bool = False) -> int:
        kind = "websocket" if method == "WS" else "http"
        headers = [(b"x-prefect-account", who.encode())] + [(b"x-forwarded-for", b"192.0.2.7")] * (not local)
        scope = {
            "type": kind,
            "method": method,
            "path": path,
            "query_string": query,
            "headers": headers,
            "client": ("127.0.0.1", 1),
        }
        text = b"" if body is None else json.dumps(body).encode()
        waiting = [text[:3], text[3:]]
        said: list[Any] = []

        async def receive() -> Any:
            if kind == "websocket":
                return {"type": "websocket.connect"}
            part = waiting.pop(0)
            return {"type": "http.request", "body": part, "more_body": bool(waiting)}

        async def send(message: Any) -> None:
            said.append(message)

        asyncio.run(self.gate(scope, receive, send))
        return said[0].get("status", 101 if said[0]["type"] == "websocket.accept" else said[0].get("code"))


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def test_what_is_allowed_arrives_as_it_came(world):
    body = {"state": {"type": "CANCELLING"}, "force": False}
    assert world.ask("shop", "POST", f"/api/flow_runs/{RUN}/set_state", body) == 200
    method, path, text = world.prefect.asked[-1]
    assert (method, path, json.loads(text)) == ("POST", f"/api/flow_runs/{RUN}/set_state", body)
    assert b"x-prefect-account" not in world.prefect.headers[-1]


def test_whoever_has_no_role_is_nobody(world):
    assert world.ask("stranger", "GET", "/api/admin/version") == 403
    assert world.ask("", "GET", "/api/admin/version") == 403
    assert world.prefect.asked == []
    assert world.ask("stranger", "GET", "/api/health") == 404
    assert world.ask("alice", "GET", "/api/admin/version") == 404


def test_what_is_in_the_container_may_do_all(world):
    """A restore puts runs in order from there; a client that says it is local comes by the proxy."""
    assert world.ask("", "POST", "/api/work_pools/", {}, local=True) == 200
    assert world.ask("", "POST", "/api/work_pools/", {}) == 403


def test_a_worker_and_the_flow_runs_of_its_work_pool(world):
    crashed = {"state": {"type": "CRASHED"}, "force": True}
    assert world.ask("worker-a", "POST", f"/api/flow_runs/{RUN}/set_state", crashed) == 200
    assert world.ask("worker-a", "POST", f"/api/flow_runs/{SUB}/set_state", crashed) == 200
    assert world.ask("worker-a", "POST", f"/api/flow_runs/{FAR}/set_state", crashed) == 403
    assert world.ask("worker-a", "POST", "/api/flow_runs/99/set_state", crashed) == 403
    # What was found out once is known.
    asked = len(world.prefect.asked)
    assert world.ask("worker-a", "POST", f"/api/flow_runs/{SUB}/set_state", crashed) == 200
    assert len(world.prefect.asked) == asked + 1


def test_websockets(world):
    assert world.ask("alice", "WS", "/api/events/out") == 101
    assert world.ask("alice", "WS", "/api/events/in") == 1008
    assert world.ask("worker-a", "WS", "/api/work_pools/gpu/workers/connect") == 1008


def test_secrets_are_asked_for_twice(world):
    path = f"/api/block_documents/{RUN}"
    for query in (b"include_secrets=false&include_secrets=true", b"include_secrets=true&include_secrets=false"):
        assert world.ask("alice", "GET", path, query=query) == 403
    assert world.ask("alice", "GET", path, query=b"include_secrets=false") == 404


def noted(world: World) -> list[dict[str, Any]]:
    """The lines, as they are written down."""
    return [json.loads(note.line(NUMBER)) for note in world.notes]


def test_what_is_noted(world):
    world.ask("root", "POST", "/api/variables/", {"name": "x", "value": "hush"}, query=b"token=hush")
    world.ask("alice", "POST", "/api/variables/", {"name": "x", "value": "hush"})
    world.ask("alice", "POST", "/api/flow_runs/filter", {})
    world.ask("worker-a", "POST", "/api/logs/", [{"message": "hush"}])
    done, refused = noted(world)
    assert {**done, "time": ""} == {
        "start": "12345678", "number": 1, "audit": 1, "time": "", "account": "root", "role": "admin", "method": "POST", "path": "/api/variables/",
        "kind": "variable", "name": "x", "status": 200, "address": "192.0.2.7",
    }  # fmt: skip
    assert (refused["account"], refused["status"], refused["address"]) == ("alice", 403, "192.0.2.7")
    assert "may not create, change or delete variables" in refused["refused"]
    assert not any("hush" in note.line(NUMBER) for note in world.notes)


def test_the_kits_own_check_is_not_noted(world):
    """It writes a variable each minute. Another of that account's is noted."""
    assert audit.PROBE == ("backups", naming.Target("variable", way_in.VARIABLE))
    for name in (way_in.VARIABLE, "x"):
        assert world.ask("backups", "POST", "/api/variables/", {"name": name, "value": 1}) == 200
        assert world.ask("backups", "DELETE", f"/api/variables/name/{name}") == 200
    assert [one["name"] for one in noted(world)] == ["x", "x"]


def test_what_is_deleted_is_noted_by_its_name(world):
    assert world.ask("root", "DELETE", "/api/deployments/" + DEPLOYMENT) == 200
    assert world.ask("alice", "DELETE", "/api/deployments/" + DEPLOYMENT) == 403
    assert world.ask("stranger", "DELETE", "/api/deployments/" + DEPLOYMENT) == 403
    assert [(one["account"], one["kind"], one.get("name"), one["status"]) for one in noted(world)] == [
        ("root", "deployment", "order/ship", 200),
        ("alice", "deployment", "order/ship", 403),
        # Who is nobody makes nobody look anything up.
        ("stranger", "deployment", None, 403),
    ]


def test_a_body_arrives_whole_however_large(world):
    text = "x" * (2 * naming.MOST)
    assert world.ask("root", "POST", "/api/variables/", {"name": "x", "value": text}) == 200
    assert json.loads(world.prefect.asked[-1][2])["value"] == text
    assert "name" not in noted(world)[-1]


def test_a_change_without_an_answer_is_noted(world):
    async def dies(*_: Any) -> None:
        raise RuntimeError("hush")

    world.gate = Gate(dies, Accounts(world.accounts), world.notes.append)
    with pytest.raises(RuntimeError):
        world.ask("root", "DELETE", f"/api/flow_runs/{RUN}")
    (one,) = noted(world)
    assert (one["kind"], one["status"]) == ("flow run", 0)


def test_states_of_flow_runs_are_noted_when_a_person_sets_them(world):
    path = f"/api/flow_runs/{RUN}/set_state"
    for who, state in (("worker-a", "RUNNING"), ("worker-a", "CANCELLING"), ("root", "FAILED"), ("shop", "CANCELLED")):
        assert world.ask(who, "POST", path, {"state": {"type": state}}) == 200
    assert [(one["account"], one["state"], one["name"]) for one in noted(world)] == [
        (who, state, "brave-owl of order/ship")
        for who, state in (("worker-a", "CANCELLING"), ("root", "FAILED"), ("shop", "CANCELLED"))
    ]


def test_whoever_is_refused_for_ever_fills_no_disk(world):
    for _ in range(200):
        assert world.ask("alice", "DELETE", "/api/variables/name/x") == 403
    assert world.ask("worker-a", "DELETE", "/api/variables/name/x") == 403
    assert len(world.notes) == audit.REFUSALS + 1
    assert world.notes[-2].refused.endswith("Further refusals of this account are not noted for a minute.")
    refusals = audit.Refusals()
    assert [bool(refusals.words("a", "no", now)) for now in [0.0] * 61 + [59.9, 60.0]] == [True] * 60 + [
        False,
        False,
        True,
    ]


def test_a_body_that_is_too_large_is_not_half_read(world, monkeypatch):
    monkeypatch.setattr("access.gate.LARGEST", 10)
    assert world.ask("shop", "POST", f"/api/flow_runs/{RUN}/set_state", {"state": {"type": "CANCELLING"}}) == 413
    assert world.prefect.asked == []


def test_an_open_websocket_ends_with_its_account(tmp_path, monkeypatch):
    """That of somebody else, and one from within the container, stay."""
    monkeypatch.setattr("access.gate.WATCHED", 0.01)
    path, ended, said = tmp_path / "accounts.json", [], {}
    path.write_text(json.dumps(ACCOUNTS))

    async def prefect(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "websocket.accept"})
        try:
            await asyncio.Event().wait()
        finally:
            ended.append(scope["who"])

    async def never() -> Any:
        await asyncio.Event().wait()

    async def talk() -> None:
        gate = Gate(prefect, Accounts(path), lambda _: None)

        def opened(who: str, local: bool = False) -> asyncio.Task[None]:
            async def send(message: Any) -> None:
                said.setdefault(who, []).append(message["type"])

            headers = [(b"x-prefect-account", who.encode())] + [(b"x-forwarded-for", b"192.0.2.7")] * (not local)
            scope = {
                "type": "websocket",
                "path": "/api/events/out",
                "headers": headers,
                "client": ("127.0.0.1", 1),
                "who": who,
            }
            return asyncio.create_task(gate(scope, never, send))

        tasks = {who: opened(who, local=not who) for who in ("alice", "root", "")}
        await asyncio.sleep(0.05)
        assert not ended
        (tmp_path / "new").write_text(json.dumps({key: value for key, value in ACCOUNTS.items() if key != "alice"}))
        (tmp_path / "new").rename(path)
        await asyncio.wait_for(tasks["alice"], 5)
        assert ended == ["alice"] and not tasks["root"].done() and not tasks[""].done()
        assert said["alice"] == ["websocket.accept", "websocket.close"] and said["root"] == ["websocket.accept"]
        for task in tasks.values():
            task.cancel()
        await asyncio.gather(*tasks.values(), return_exceptions=True)
        assert sorted(ended) == ["", "alice", "root"]

    asyncio.run(talk())


def test_somebody_whom_single_sign_on_knows(tmp_path):
    """The role of the group that may do most; an account's name in that header is none."""
    path = tmp_path / "accounts.json"
    path.write_text(json.dumps({"root": {"role": "admin"}, "@data": {"role": "operator"}, "@all": {"role": "viewer"}}))
    seen: list[str] = []

    async def prefect(scope: Any, receive: Any, send: Any) -> None:
        seen.append(scope["path"])
        assert not [name for name, _ in scope["headers"] if name.startswith(b"x-prefect-")]
        await send({"type": "http.response.start", "status": 200, "headers": []})

    notes: list[Any] = []
    gate = Gate(prefect, Accounts(path), notes.append)

    def ask(method: str, path: str, account: str, person: str, groups: str) -> int:
        named = {"x-prefect-account": account, "x-prefect-person": person, "x-prefect-groups": groups}
        headers = [(name.encode(), value.encode()) for name, value in named.items() if value]
        scope = {"type": "http", "method": method, "path": path, "headers": [*headers, (b"x-forwarded-for", b"::1")]}
        said: list[Any] = []

        async def receive() -> Any:
            return {"type": "http.request", "body": b"{}", "more_body": False}

        async def send(message: Any) -> None:
            said.append(message)

        asyncio.run(gate(scope, receive, send))
        return said[0]["status"]

    run = f"/api/deployments/{RUN}/create_flow_run"
    assert ask("POST", run, "", "ada@example.org", "all, data") == 200
    assert ask("POST", run, "", "ada@example.org", "all") == 403
    assert ask("GET", "/api/admin/version", "", "ada@example.org", "all") == 200
    for groups in ("", "others", "root", "@data"):
        assert ask("GET", "/api/admin/version", "", "root", groups) == 403
    # Whoever has a password is that account, whatever else is said.
    assert ask("POST", "/api/work_pools/", "root", "ada", "all") == 200
    assert ask("POST", "/api/work_pools/", "stranger", "ada", "data") == 403
    assert [note.account for note in notes][:2] == ["ada@example.org", "ada@example.org"]
