"""Who may do what at Prefect's API: the table of routes, roles, and decisions."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "compose" / "server"))

from access import decide, roles, routes  # noqa: E402
from access.decide import NOTHING, Asked, Question, Thing  # noqa: E402
from access.roles import ROLES, Account  # noqa: E402

ID = "11111111-1111-1111-1111-111111111111"
ACCOUNTS = {
    **{role: Account(role, role) for role in ("admin", "operator", "deployer", "viewer")},
    "worker": Account("worker-a", "worker", pools=frozenset({"general"}), blocks=frozenset({"secret/mine"})),
    "trigger": Account("shop", "trigger", deployments=frozenset({"order/ship"})),
}
#: Things of the worker's work pool, and of the trigger's deployment; and of others'.
OWN, OTHERS = Thing("general", "order/ship"), Thing("gpu", "other/one")
ALL = tuple(ACCOUNTS)


def refused(
    role: str, method: str, path: str, body: Any = None, query: dict[str, str] | None = None, thing: Thing = OWN
) -> str:
    asked = Asked(method, path, query or {}, body)
    account, found = ACCOUNTS[role], routes.table().find(method, path)
    answers = dict.fromkeys(decide.questions(account, asked, found), thing)
    return decide.refusal(account, asked, found, answers)


def may(method: str, path: str, **more: Any) -> set[str]:
    """The roles that may."""
    return {role for role in ALL if not refused(role, method, path, **more)}


PEOPLE = {"admin", "operator", "deployer", "viewer"}


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("GET", "/api/health", set(ALL)),
        ("GET", "/runs/flow-run/1", set(ALL)),
        ("HEAD", "/", set(ALL)),
        ("POST", "/", {"admin"}),
        ("POST", "/api/flow_runs/filter", PEOPLE | {"worker"}),
        ("WS", "/api/events/out", PEOPLE | {"worker"}),
        ("WS", "/api/events/in", {"admin", "deployer", "worker"}),
        ("WS", "/api/work_pools/general/workers/connect", {"admin", "worker"}),
        ("POST", "/api/work_pools/general/get_scheduled_flow_runs", {"admin", "worker"}),
        ("POST", "/api/work_pools/gpu/get_scheduled_flow_runs", {"admin"}),
        ("POST", "/api/deployments/get_scheduled_flow_runs", {"admin"}),
        ("POST", f"/api/deployments/{ID}/create_flow_run", set(ALL) - {"viewer"}),
        ("POST", f"/api/deployments/{ID}/pause_deployment", {"admin", "operator", "deployer"}),
        ("POST", "/api/deployments/", {"admin", "deployer"}),
        ("PATCH", f"/api/deployments/{ID}", {"admin", "deployer"}),
        ("DELETE", f"/api/flow_runs/{ID}", {"admin"}),
        ("POST", "/api/automations/", {"admin"}),
        ("POST", "/api/work_pools/", {"admin"}),
        ("PATCH", "/api/work_pools/general", {"admin"}),
        ("POST", "/api/block_documents/", {"admin"}),
        ("POST", "/api/variables/", {"admin", "deployer"}),
        ("GET", "/api/csrf-token", set(ALL)),
        ("GET", "/docs", set()),
        # What no version that we know has.
        ("POST", "/api/new_things/filter", {"admin"}),
        ("GET", "/api/new_things", {"admin"}),
        ("GET", "/api", {"admin"}),
        ("TRACE", "/api/flow_runs/filter", {"admin"}),
    ],
)
def test_what_the_route_says(method, path, allowed):
    assert may(method, path) == allowed


def test_a_worker_gets_to_no_other_work_pool_by_a_body():
    crashed = {"flow_runs": {}, "state": {"type": "CRASHED"}, "force": True}
    assert refused("worker", "POST", "/api/flow_runs/bulk_set_state", crashed)
    command = {"flow_id": ID, "job_variables": {"command": "sh"}}
    assert refused("worker", "POST", "/api/flow_runs/", {**command, "work_pool_name": "gpu"}).endswith(" gpu.")
    for pool in ("general", "", None):
        assert not refused("worker", "POST", "/api/flow_runs/", {**command, "work_pool_name": pool})
    assert may("POST", "/api/flow_runs/bulk_set_state", body={"state": {"type": "CANCELLING"}}) == {
        "admin",
        "operator",
        "deployer",
    }


def test_deployments_of_other_work_pools_that_a_workers_flows_may_run():
    account = Account("worker-a", "worker", pools=frozenset({"general"}), deployments=frozenset({"other/one"}))
    path = f"/api/deployments/{ID}/create_flow_run"
    found, question = routes.table().find("POST", path), Question("deployment", ID)
    assert not decide.refusal(account, Asked("POST", path, {}, {}), found, {question: OTHERS})
    why = decide.refusal(account, Asked("POST", path, {}, {}), found, {question: Thing("gpu", "other/two")})
    assert why.startswith("The account worker-a may not run the deployment other/two, which is of another work pool;")
    # Their flow runs stay another worker's.
    path = f"/api/flow_runs/{ID}/set_state"
    found = routes.table().find("POST", path)
    assert decide.refusal(account, Asked("POST", path, {}, {}), found, {Question("flow_run", ID): OTHERS})


@pytest.mark.parametrize("where", [{"query": {"include_secrets": "true"}}, {"body": {"include_secrets": True}}])
@pytest.mark.parametrize("word", ["true", "1", "yes", "on", "TRUE", " t", "y", "", "surely"])
def test_secrets_of_blocks(where, word):
    """Whatever may be taken for true is true."""
    where = {kind: dict.fromkeys(value, word if kind == "query" else True) for kind, value in where.items()}
    for path in ("/api/block_documents/filter", "/api/block_types/slug/secret/block_documents"):
        method = "POST" if path.endswith("filter") else "GET"
        assert may(method, path, **where) == {"admin"}
        assert may(method, path) == PEOPLE | {"worker"}
    named = "/api/block_types/slug/secret/block_documents/name/{}"
    assert may("GET", named.format("mine"), **where) == {"admin", "worker"}
    assert may("GET", named.format("theirs"), **where) == {"admin"}
    assert may("GET", f"/api/block_documents/{ID}", thing=Thing(name="secret/mine"), **where) == {"admin", "worker"}
    assert may("GET", f"/api/block_documents/{ID}", thing=Thing(name="secret/theirs"), **where) == {"admin"}
    assert may("GET", f"/api/block_documents/{ID}", thing=NOTHING, **where) == {"admin"}


@pytest.mark.parametrize(
    ("own", "name", "may_read"),
    [
        ({"secret/a"}, "secret/a", True),
        ({"secret/a"}, "secret/ab", False),
        ({"secret/*"}, "secret/ab", True),
        ({"secret/*"}, "s3-bucket/ab", False),
        ({"*"}, "s3-bucket/ab", True),
        ({"*"}, "", True),
        ({"secret/*"}, "", False),
        (set(), "/", False),
    ],
)
def test_blocks_of_an_account(own, name, may_read):
    account = Account("worker-a", "worker", blocks=frozenset(own))
    assert decide.may_read_block(account, name) == may_read


@pytest.mark.parametrize("value", ["false", "0", "off", "no", "f", "n", "False", " FALSE "])
def test_blocks_without_their_secrets(value):
    path = "/api/block_documents/filter"
    assert may("POST", path, query={"include_secrets": value}, body={"include_secrets": False}) == PEOPLE | {"worker"}


def test_a_worker_has_to_do_with_its_own_work_pools():
    for method, path, body in (
        ("POST", f"/api/flow_runs/{ID}/set_state", {"state": {"type": "CRASHED"}, "force": True}),
        ("PATCH", f"/api/flow_runs/{ID}", {}),
        ("POST", f"/api/deployments/{ID}/create_flow_run", {"job_variables": {"command": "x"}}),
        ("POST", "/api/flow_runs/", {"deployment_id": ID}),
    ):
        assert not refused("worker", method, path, body)
        assert "work pool" in refused("worker", method, path, body, thing=OTHERS)
        assert refused("worker", method, path, body, thing=NOTHING)
    # A program that a flow has started, or a person, has made a flow run of its own.
    assert not refused("worker", "PATCH", f"/api/flow_runs/{ID}", {}, thing=Thing())
    assert refused("worker", "POST", f"/api/deployments/{ID}/create_flow_run", {}, thing=Thing(name="served/by-hand"))
    # A subflow.
    assert not refused("worker", "POST", "/api/flow_runs/", {"flow_id": ID}, thing=OTHERS)


def test_a_state_is_forced_by_administrators_and_by_workers():
    path = f"/api/flow_runs/{ID}/set_state"
    assert may("POST", path, body={"state": {"type": "CANCELLED"}}) == set(ALL) - {"viewer"}
    assert may("POST", path, body={"state": {"type": "CANCELLED"}, "force": True}) == {"admin", "worker"}


def test_what_is_executed_is_no_choice_of_whoever_runs_it():
    path = f"/api/deployments/{ID}/create_flow_run"
    for body in ({"job_variables": {"command": "sh"}}, {"work_queue_name": "gpu"}):
        assert may("POST", path, body=body) == {"admin", "deployer", "worker"}
    bulk = [{"parameters": {}}, {"job_variables": {"command": "sh"}}]
    assert may("POST", f"{path}/bulk", body={"flow_runs": bulk}) == {"admin", "deployer", "worker"}
    assert may("POST", f"{path}/bulk", body=bulk) == {"admin", "deployer", "worker"}


def test_a_trigger():
    """It makes flow runs of its deployments, looks at them, and cancels them."""
    for method, path, body in (
        ("POST", f"/api/deployments/{ID}/create_flow_run", {"parameters": {"a": 1}}),
        ("GET", f"/api/flow_runs/{ID}", None),
        ("POST", f"/api/flow_runs/{ID}/set_state", {"state": {"type": "CANCELLING"}}),
    ):
        assert not refused("trigger", method, path, body)
        assert refused("trigger", method, path, body, thing=OTHERS)
        assert refused("trigger", method, path, body, thing=NOTHING)
    assert not refused("trigger", "GET", "/api/deployments/name/order/ship")
    assert refused("trigger", "GET", "/api/deployments/name/order/other")
    assert refused("trigger", "POST", f"/api/flow_runs/{ID}/set_state", {"state": {"type": "COMPLETED"}})
    assert refused("trigger", "POST", "/api/flow_runs/filter", {})
    assert refused("trigger", "GET", f"/api/deployments/{ID}")


@pytest.mark.parametrize("body", [None, [], "x", 7, {"state": "x"}, {"state": None}, {"flow_runs": "x"}, [[]]])
def test_a_body_of_any_shape_is_no_error(body):
    for role in ALL:
        for method, path in (
            ("POST", f"/api/flow_runs/{ID}/set_state"),
            ("POST", f"/api/deployments/{ID}/create_flow_run/bulk"),
            ("POST", "/api/block_documents/filter"),
            ("POST", "/api/flow_runs/"),
        ):
            refused(role, method, path, body)


def test_nobody():
    for path, why in (("/api/health", ""), ("/api/admin/version", "This account has no role.")):
        assert decide.refusal(None, Asked("GET", path), routes.table().find("GET", path), {}) == why


def test_roles_have_permissions_that_there_are():
    assert set().union(*ROLES.values()) == set(routes.PERMISSIONS) - {"nobody"}
    found = routes.parsed(routes.TABLE.read_text())
    assert len({(one.method, one.template) for one in found}) == len(found)


def test_a_table_that_is_none():
    with pytest.raises(ValueError, match="line 2 has no permission that there is: everything"):
        routes.parsed("# x\nGET /api everything")
    with pytest.raises(ValueError, match="line 1 is not METHOD PATH PERMISSION"):
        routes.parsed("GET /api")


def test_accounts_are_read_again_when_they_change(tmp_path, capsys):
    path = tmp_path / "accounts.json"
    accounts = roles.Accounts(path)
    assert accounts.get("a") is None
    path.write_text('{"a": {"role": "viewer"}}')
    assert accounts.get("a") == Account("a", "viewer")
    (tmp_path / "new").write_text('{"b": {"role": "worker", "pools": ["x"]}}')
    (tmp_path / "new").rename(path)
    assert accounts.get("a") is None and accounts.get("b") == Account("b", "worker", pools=frozenset({"x"}))
    (tmp_path / "new").write_text('{"b": {"role": "king"}}')
    (tmp_path / "new").rename(path)
    assert accounts.get("b") is None
    assert "no role that there is: 'king'" in capsys.readouterr().out


def test_questions_are_only_asked_where_they_decide():
    found = routes.table().find("POST", f"/api/flow_runs/{ID}/set_state")
    asked = Asked("POST", f"/api/flow_runs/{ID}/set_state", {}, {})
    assert decide.questions(ACCOUNTS["worker"], asked, found) == [Question("flow_run", ID)]
    assert decide.questions(ACCOUNTS["operator"], asked, found) == []
