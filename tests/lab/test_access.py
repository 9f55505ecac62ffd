"""Who may do what: each role at each route, through the reverse proxy, and what somebody with a leaked password tries."""

from __future__ import annotations

import base64
import json
import re
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from testinfra.host import Host
from websockets.exceptions import ConnectionClosed, InvalidStatus

from tests.lab.test_proxy import basic, greet, websocket

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "compose" / "server"))

from access import routes
from access.roles import ROLES

#: Accounts of the lab's inventory (tests/lab/vps/inventory.py), and the role of each.
ACCOUNTS = {"ada": "deployer", "bob": "operator", "eve": "viewer", "shop": "trigger", "worker-general-1": "worker"}
#: Routes that change nothing, whoever asks.
READS = frozenset({"read", "blocks", "public"})
#: What Caddy itself answers, before the server is asked.
BY_THE_PROXY = re.compile(r"(/api)?/(docs|redoc|openapi\.json|metrics)(/.*)?")
SECRET = f"hush-{uuid.uuid4().hex}"
ACCOUNTS_FILE = "/etc/prefect/access/accounts.json"


def concrete(template: str) -> str:
    """An address of a route, of a thing that is not there."""
    values = {"id": str(uuid.uuid4()), "work_pool_name": "general", "path": "x"}
    return re.sub(r"\{(\w+)\}", lambda name: values.get(name[1], str(uuid.uuid4())), template)


def all_routes() -> list[routes.Route]:
    return [one for one in routes.parsed(routes.TABLE.read_text()) if not BY_THE_PROXY.fullmatch(one.template)]


@pytest.mark.parametrize("account", [*ACCOUNTS, "admin"])
def test_each_route_for_each_role(endpoint, account: str) -> None:
    """What the table refuses is refused; what it allows and changes nothing arrives."""
    role = ACCOUNTS.get(account, "admin")
    wrong = []
    with endpoint.client(account) as client:
        for route in all_routes():
            if route.method == "WS":
                continue
            allowed = route.permission in ROLES[role]
            if allowed and (route.permission not in READS or route.method == "HEAD"):
                continue
            answer = client.request(route.method, concrete(route.template), json={} if route.method != "GET" else None)
            if (answer.status_code == 403) == allowed or answer.status_code in (401, 502):
                wrong.append((route.method, route.template, route.permission, answer.status_code))
    assert wrong == []


def test_each_websocket_for_each_role(endpoint) -> None:
    found = [one for one in all_routes() if one.method == "WS"]
    assert len(found) == 5
    for account, role in ACCOUNTS.items():
        for route in found:
            path, header = concrete(route.template), basic(endpoint, account)
            if route.permission in ROLES[role]:
                with websocket(endpoint, path, Authorization=header) as connection:
                    greet(connection)
            else:
                with pytest.raises(InvalidStatus) as refused:
                    websocket(endpoint, path, Authorization=header)
                assert refused.value.response.status_code == 403


def test_nobody_and_wrong_passwords_get_to_no_route(endpoint) -> None:
    with endpoint.client(None) as client:
        for route in all_routes():
            if route.method != "WS":
                assert client.request(route.method, concrete(route.template)).status_code == 401, route
    # A wrong password costs a hash, so each tenth.
    for user in ("eve", "whoever"):
        with endpoint.client(user, "wrong") as client:
            for route in all_routes()[::10]:
                if route.method != "WS":
                    assert client.request(route.method, concrete(route.template)).status_code == 401, (user, route)


@pytest.fixture
def secret_block(endpoint) -> Iterator[str]:
    """The name of a block Secret that an administrator has made."""
    name = f"lab-{uuid.uuid4().hex[:8]}"
    kind = endpoint.get("/api/block_types/slug/secret").json()["id"]
    schema = endpoint.post("/api/block_schemas/filter", {"block_schemas": {"block_type_id": {"any_": [kind]}}}).json()[
        0
    ]
    block = {"name": name, "data": {"value": SECRET}, "block_type_id": kind, "block_schema_id": schema["id"]}
    made = endpoint.post("/api/block_documents/", block)
    assert made.status_code == 201, made.text
    yield name
    assert endpoint.delete(f"/api/block_documents/{made.json()['id']}").status_code == 204


@pytest.mark.parametrize("account", ACCOUNTS)
def test_nobody_but_administrators_reads_a_secret(endpoint, secret_block: str, account: str) -> None:
    named = f"/api/block_types/slug/secret/block_documents/name/{secret_block}"
    block = endpoint.get(named).json()
    tries: list[tuple[str, str, Any]] = [
        ("POST", "/api/block_documents/filter", {"include_secrets": True}),
        ("POST", "/api/block_documents/filter", {"include_secrets": "yes"}),
        ("GET", "/api/block_types/slug/secret/block_documents?include_secrets=true", None),
        ("GET", f"{named}?include_secrets=true", None),
        ("GET", f"{named}?include_secrets=false&include_secrets=1", None),
        ("GET", f"/api/block_documents/{block['id']}?include_secrets=true", None),
        ("GET", f"/api//block_documents/{block['id']}?include_secrets=true", None),
        ("GET", f"/api/%62lock_documents/{block['id']}?include_secrets=true", None),
        ("GET", f"/v2/../api/block_documents/{block['id']}?include_secrets=true", None),
    ]
    with endpoint.client(account) as client:
        for method, path, body in tries:
            answer = client.request(method, path, json=body)
            assert SECRET not in answer.text, path
            assert answer.status_code in (403, 404, 200) and (
                answer.status_code != 200 or "text/html" in answer.headers["content-type"]
            ), path
        forged = {"X-Prefect-Account": "admin", "X-Forwarded-For": "127.0.0.1"}
        assert client.get(f"{named}?include_secrets=true", headers=forged).status_code == 403
    assert SECRET in endpoint.get(f"{named}?include_secrets=true").text


def test_an_application_and_its_deployment(endpoint) -> None:
    """It runs what is named for it, looks at that flow run, and cancels it."""
    with endpoint.client("shop") as client:
        found = client.get("/api/deployments/name/hello/hello").json()
        run = client.post(f"/api/deployments/{found['id']}/create_flow_run", json={}).json()
        assert client.get(f"/api/flow_runs/{run['id']}").json()["name"] == run["name"]
        code = client.post(
            f"/api/deployments/{found['id']}/create_flow_run", json={"job_variables": {"command": "id > /tmp/owned"}}
        )
        assert code.status_code == 403 and "may not set job_variables" in code.text
        others = next(one for one in endpoint.post("/api/deployments/filter", {}).json() if one["id"] != found["id"])
        refused = client.post(f"/api/deployments/{others['id']}/create_flow_run", json={})
        assert refused.json() == {"detail": "The account shop may not run this deployment."}
        cancelled = client.post(f"/api/flow_runs/{run['id']}/set_state", json={"state": {"type": "CANCELLING"}})
        assert cancelled.status_code in (200, 201), cancelled.text


def test_what_is_refused_is_told_with_who_may(endpoint) -> None:
    said = endpoint.delete(f"/api/deployments/{uuid.uuid4()}", user="bob")
    assert said.status_code == 403
    assert said.json()["detail"] == (
        "The role operator may not create, change or delete flows and deployments. Roles that may: admin, deployer."
    )


def write_rights(host: Host, accounts: dict[str, Any]) -> None:
    """Replace the server's file of accounts in one step, as the playbook does."""
    new, text = f"{ACCOUNTS_FILE}.new", base64.b64encode(json.dumps(accounts).encode()).decode()
    host.run_expect(
        [0],
        f"cp --preserve=all {ACCOUNTS_FILE} {new} && echo {text} | base64 --decode > {new} && mv {new} {ACCOUNTS_FILE}",
    )


def test_a_removed_user_is_out_at_once_and_nobody_else(endpoint, host: Host) -> None:
    """Open websockets included. A reload of the proxy, by which its password goes, cuts off nobody."""
    kept = json.loads(host.check_output(f"cat {ACCOUNTS_FILE}"))
    with (
        websocket(endpoint, "/api/events/out", Authorization=basic(endpoint, "eve")) as removed,
        websocket(endpoint, "/api/events/out", Authorization=basic(endpoint, "bob")) as demoted,
        websocket(endpoint, "/api/events/out", Authorization=basic(endpoint, "ada")) as stays,
    ):
        for connection in (removed, demoted, stays):
            greet(connection)
        try:
            write_rights(
                host,
                {name: one for name, one in kept.items() if name != "eve"}
                | {"bob": {"role": "trigger", "deployments": []}},
            )
            for connection in (removed, demoted):
                with pytest.raises(ConnectionClosed):
                    connection.recv(timeout=10)
            assert endpoint.post("/api/flow_runs/filter", {}, user="eve").status_code == 403
        finally:
            write_rights(host, kept)
        host.check_output("systemctl reload prefect-stack")
        assert endpoint.get("/api/health").status_code == 200
        assert stays.ping().wait(10)
