"""./scripts/migrate: what comes over and what does not, the transfer, the switch and its ways back, against a stand-in of the API."""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Iterator
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from tests.lab.cloud_api import KEY, CloudApi, served_workspace

ROOT = Path(__file__).resolve().parents[2]
PASSWORD = "correct-horse"


def load() -> ModuleType:
    """The script, which has no ending that Python knows."""
    sys.path[:0] = [str(ROOT / "scripts"), str(ROOT / "backups")]
    spec = importlib.util.spec_from_loader(
        "scripts_migrate", SourceFileLoader("scripts_migrate", str(ROOT / "scripts/migrate"))
    )
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


migrate = load()
side = sys.modules["_migrate_side"]
switching = sys.modules["_migrate_switch"]


@pytest.fixture
def cloud() -> Iterator[CloudApi]:
    with served_workspace() as api:
        yield api


@pytest.fixture
def ours() -> Iterator[CloudApi]:
    """A server like the kit's, with a work pool and Prefect's own block type."""
    with CloudApi(path="/api", key="") as api:
        api.pool("general", "process")
        secret = api.add("block_types", name="Secret", slug="secret")
        api.add("block_schemas", checksum="sha256:1", block_type_id=secret["id"], fields={"secret_fields": ["value"]})
        yield api
        api.shutdown()


@pytest.fixture
def run(cloud: CloudApi, ours: CloudApi, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> Any:
    """`run("plan", …)`: exit code, JSON, what was said."""
    for name in ("PREFECT_HOME", "PREFECT_API_URL", *side.SETTINGS):
        monkeypatch.delenv(name, raising=False)
    key = tmp_path / "key"
    key.write_text(f"{KEY}\n")
    monkeypatch.setenv("PREFECT_FROM_API_URL", cloud.url)
    monkeypatch.setenv("PREFECT_FROM_API_KEY_FILE", str(key))
    monkeypatch.setenv("PREFECT_API_URL", ours.url)

    def go(verb: str, *more: str) -> tuple[int, dict[str, Any], str]:
        state = ["--state", str(tmp_path / "state.json")] if verb == "switch" else []
        monkeypatch.setattr(sys, "argv", ["migrate", verb, "--json", *state, *more])
        try:
            code = migrate.main()
        except SystemExit as ended:
            code = int(ended.code or 0)
        told = capsys.readouterr()
        return code, json.loads(told.out) if told.out else {}, told.err

    return go


def active(api: CloudApi) -> dict[str, list[bool]]:
    """Schedules and automations that are on."""
    found = {one["name"]: [each["active"] for each in one["schedules"]] for one in api.objects.get("deployments", [])}
    return found | {one["name"]: [one["enabled"]] for one in api.objects.get("automations", [])}


# --- the sides -------------------------------------------------------------------------------------------------------


def test_sides_are_profiles_or_the_environment(tmp_path, monkeypatch):
    (tmp_path / "profiles.toml").write_text(
        '[profiles.cloud]\nPREFECT_API_URL = "https://api.example/api/accounts/a/workspaces/w"\nPREFECT_API_KEY = "k"\n'
    )
    monkeypatch.setenv("PREFECT_PROFILES_PATH", str(tmp_path / "profiles.toml"))
    monkeypatch.setenv("PREFECT_API_URL", "https://prefect.example/api/")
    monkeypatch.setenv("PREFECT_CLIENT_CUSTOM_HEADERS", '{"Authorization": "Basic x"}')
    source, destination = side.sides("cloud", None)
    assert (source.cloud, source.headers) == (True, {"Authorization": "Bearer k"})
    assert (destination.url, destination.headers) == ("https://prefect.example/api", {"Authorization": "Basic x"})
    assert "Bearer" not in repr(source)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({}, "the source is not named: here has no PREFECT_API_URL"),
        ({"PREFECT_API_URL": f"https://admin:{PASSWORD}@h/api"}, "without user and password"),
        ({"PREFECT_API_URL": "h/api"}, "it has to be http(s)://HOST/api"),
        ({"PREFECT_API_URL": "https://h/api", "PREFECT_CLIENT_CUSTOM_HEADERS": PASSWORD}, "are no JSON"),
        ({"PREFECT_API_URL": "https://h/api", "PREFECT_API_SSL_CERT_FILE": "/no/ca"}, 'the CA file "/no/ca"'),
    ],
)
def test_a_side_that_cannot_be_one_is_refused_without_its_secrets(settings, words):
    with pytest.raises(side.Refused, match=words.replace("(", r"\(").replace(")", r"\)")) as refused:
        side.side("source", settings, "here")
    assert PASSWORD not in f"{refused.value.fact} {refused.value.hint}"


def test_a_side_that_does_not_answer_or_let_us_in_changes_nothing(run, ours, monkeypatch):
    monkeypatch.setenv("PREFECT_FROM_API_KEY_FILE", "/dev/null")
    code, _, said = run("transfer")
    assert (code, ours.changes) == (2, [])
    assert "401 the key or password is wrong, or missing" in said


def test_the_ca_of_a_side_goes_before_that_of_this_machine(tmp_path, monkeypatch):
    seen = []
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", "/etc/company.pem")
    monkeypatch.setattr(side.requests.Session, "send", lambda *_, **more: seen.append(more["verify"]) or answered())

    def answered() -> Any:
        answer = side.requests.Response()
        answer.status_code = 204
        return answer

    side.Api(side.Side("destination", "https://h/api", ca="/ca.crt")).get("/x")
    side.Api(side.Side("destination", "https://h/api")).get("/x")
    assert seen == ["/ca.crt", "/etc/company.pem"]


# --- what comes over -------------------------------------------------------------------------------------------------


def test_the_inventory_reads_more_than_a_page_and_waits_when_it_is_asked_too_often(run, cloud):
    for number in range(450):
        cloud.add("variables", name=f"v{number}", value=1, tags=[])
    cloud.busy = 1
    code, facts, _ = run("inventory")
    assert code == 0
    assert len(facts["source"]["objects"]["variable"]) == 451
    assert facts["only"]["deployment"] == {
        "source": ["etl/nightly", "etl/pushed", "etl/quick", "etl/served"],
        "destination": [],
    }
    assert [one["name"] for one in facts["source"]["objects"]["concurrency limit"]] == ["db", "tag:gpu"]
    assert facts["source"]["webhooks"] == ["from-github"]
    assert "s3cr3t" not in json.dumps(facts)


def test_the_plan_says_what_does_not_come_and_how_to_make_it_again(run, ours):
    code, facts, _ = run("plan")
    assert (code, ours.changes) == (0, [])
    by_hand = {
        f"{one['kind']} {one['name']}": f"{one['why']}; {one['then']}"
        for one in facts["items"]
        if one["verdict"] == "by hand"
    }
    assert sorted(by_hand) == [
        "automation broken",
        "automation of-pushed",
        "deployment etl/pushed",
        "history 9 flow runs",
        "roles members, service accounts",
        "webhook from-github",
        "work pool managed",
        "work pool serverless",
        "work queue managed/default",
        "work queue serverless/default",
    ]
    assert "which is gone" in by_hand["automation broken"]
    assert "deployment etl/pushed" in by_hand["automation of-pushed"]
    assert "--pool serverless=" in by_hand["deployment etl/pushed"]
    assert "prefect_work_pools" in by_hand["work pool managed"]
    assert "prefect_users" in by_hand["roles members, service accounts"]
    assert "s3cr3t" not in json.dumps(facts)


def test_a_secret_that_the_account_may_not_read_does_not_come_over_as_stars(run, cloud, ours):
    cloud.secrets = False
    _, facts, _ = run("transfer")
    assert "block_documents" not in ours.objects
    assert facts["missing"]["block"] == ["secret/token"]
    assert [one["why"] for one in facts["by_hand"] if one["kind"] == "block"] == [
        "its account may not read the secret in it"
    ]


def test_a_transfer_makes_what_comes_inactive_and_a_second_one_nothing(run, cloud, ours):
    code, facts, _ = run("transfer")
    assert (code, facts["failed"]) == (0, [])
    assert active(ours) == {"nightly": [False, False], "served": [False, False], "quick": [], "pause": [False]}
    nightly = next(one for one in ours.objects["deployments"] if one["name"] == "nightly")
    pause = ours.objects["automations"][0]
    assert pause["actions"][0]["deployment_id"] == nightly["id"]
    assert pause["trigger"]["match_related"] == {"prefect.resource.id": f"prefect.deployment.{nightly['id']}"}
    assert ours.objects["block_documents"][0]["data"] == {"value": "s3cr3t"}
    assert [one.get("active_slots") for one in ours.objects["v2/concurrency_limits"]] == [None, None]
    assert facts["missing"] == {
        "work pool": ["managed", "serverless"],
        "work queue": ["managed/default", "serverless/default"],
        "deployment": ["etl/pushed"],
        "automation": ["broken", "of-pushed"],
    }
    ours.changes.clear()
    code, facts, _ = run("transfer")
    assert (code, facts["made"], ours.changes) == (0, [], [])
    assert not cloud.changes


def test_deployments_of_a_pool_that_does_not_come_go_to_another_one(run, ours):
    code, facts, _ = run("transfer", "--pool", "serverless=general")
    assert code == 0
    pushed = next(one for one in ours.objects["deployments"] if one["name"] == "pushed")
    assert (pushed["work_pool_name"], pushed["job_variables"]) == ("general", {"env": {"A": "1"}})
    assert {one["name"] for one in ours.objects["automations"]} == {"pause", "of-pushed"}
    assert facts["missing"]["automation"] == ["broken"]


@pytest.mark.parametrize("word", ["serverless", "serverless=nope", "nope=general"])
def test_a_wrong_pool_is_refused(run, ours, word):
    code, _, said = run("transfer", "--pool", word)
    assert (code, ours.changes) == (2, [])
    assert "--pool" in said


def test_a_pool_of_another_type_gets_deployments_only_when_somebody_says_so(run, ours):
    ours.pool("default", "docker")
    _, facts, _ = run("transfer")
    assert facts["missing"]["deployment"] == ["etl/nightly", "etl/pushed", "etl/quick"]
    code, facts, _ = run("transfer", "--pool", "default=default")
    assert (code, facts["missing"]["deployment"]) == (0, ["etl/pushed"])


def test_one_that_fails_keeps_only_what_refers_to_it(run, ours):
    ours.failing["POST", "/flows/$"] = 500
    code, facts, _ = run("transfer")
    assert code == 1
    failed = {f"{one['kind']} {one['name']}": one["error"] for one in facts["failed"]}
    assert failed["flow etl"] == "POST /flows/: 500 it fails"
    assert failed["deployment etl/served"] == "its flow is not at the destination"
    assert "it refers to what is not at the destination" in failed["automation pause"]
    assert {one["name"] for one in ours.objects["block_documents"]} == {"token"}
    ours.failing.clear()
    code, facts, _ = run("transfer")
    assert (code, facts["missing"]["deployment"]) == (0, ["etl/pushed"])


def test_what_is_at_the_destination_stays_as_it_is(run, ours):
    flow = ours.add("flows", name="etl")
    ours.add("deployments", name="nightly", flow_id=flow["id"], entrypoint="mine.py:f", schedules=[])
    run("transfer")
    nightly = next(one for one in ours.objects["deployments"] if one["name"] == "nightly")
    assert nightly["entrypoint"] == "mine.py:f"


# --- the switch ------------------------------------------------------------------------------------------------------

LEAVE = ("--leave", "etl/pushed", "--leave", "broken", "--leave", "of-*")


@pytest.fixture
def over(run: Any) -> Any:
    """Two sides between which everything has been transferred."""
    assert run("transfer")[0] == 0
    return run


def test_a_switch_and_back(over, cloud, ours, tmp_path):
    before = active(cloud), active(ours)
    code, facts, _ = over("switch", *LEAVE)
    assert (code, len(facts["switched"])) == (0, 3)
    assert active(ours) == {"nightly": [True, False], "served": [True, False], "quick": [], "pause": [True]}
    assert active(cloud)["nightly"] == active(cloud)["served"] == [False, False]
    assert (active(cloud)["pushed"], active(cloud)["broken"]) == ([True, False], [True])
    # Once more: nothing is active at the source, and nothing is lost.
    assert over("switch", *LEAVE)[0] == 0
    code, facts, _ = over("switch", "--back")
    assert (code, facts, (active(cloud), active(ours))) == (0, {"back": 3, "gone": []}, before)
    assert not (tmp_path / "state.json").exists()
    assert over("switch", "--back")[0] == 2


def test_a_schedule_that_was_on_before_stays_on(over, ours):
    nightly = next(one for one in ours.objects["deployments"] if one["name"] == "nightly")
    nightly["schedules"][0]["active"] = True
    over("switch", *LEAVE)
    over("switch", "--back")
    assert active(ours)["nightly"] == [True, False]


def test_a_switch_without_its_like_at_the_destination_is_refused(over, cloud, ours):
    before = active(cloud), active(ours)
    code, _, said = over("switch")
    assert code == 2
    for words in ('the deployment "etl/pushed"', 'the automation "broken"', "--leave NAME"):
        assert words in said
    assert over("switch", "--leave", "nope")[0] == 2
    assert (active(cloud), active(ours)) == before


def test_a_switch_to_a_pool_without_a_worker_is_refused(over, cloud, ours):
    next(one for one in ours.objects["work_pools"] if one["name"] == "default")["status"] = "NOT_READY"
    before = active(cloud)
    code, _, said = over("switch", *LEAVE)
    assert (code, active(cloud)) == (2, before)
    assert "no worker is online for default" in said
    assert over("switch", *LEAVE, "--without-workers")[0] == 0


@pytest.mark.parametrize("half", ["source", "destination"])
def test_a_half_that_fails_is_taken_back(over, cloud, ours, half, tmp_path):
    before = active(cloud), active(ours)
    # The last of its requests.
    {"source": cloud, "destination": ours}[half].failing["PATCH", "/automations/"] = 500
    code, _, said = over("switch", *LEAVE)
    if half == "source":
        # It cannot be turned on again there either.
        assert code == 1
        assert "--back" in said
        cloud.failing.clear()
        assert over("switch", "--back")[0] == 0
    else:
        # Off at the destination fails likewise, so what was off at the source stays off: never both.
        assert code == 1
        assert not any(active(cloud)["nightly"])
        ours.failing.clear()
        assert over("switch", "--back")[0] == 0
    assert (active(cloud), active(ours)) == before
    assert not (tmp_path / "state.json").exists()


def test_a_failure_of_one_request_leaves_all_as_it_was(over, cloud, ours, tmp_path, monkeypatch):
    before = active(cloud), active(ours)
    original, count = ours.answer, [0]

    def once(method: str, path: str, body: Any) -> tuple[int, Any]:
        count[0] += method == "PATCH"
        return (500, {"detail": "it fails"}) if (method, count[0]) == ("PATCH", 2) else original(method, path, body)

    monkeypatch.setattr(ours, "answer", once)
    code, _, said = over("switch", *LEAVE)
    assert (code, (active(cloud), active(ours))) == (1, before)
    assert "what was switched is as it was before" in said
    assert not (tmp_path / "state.json").exists()


def test_a_switch_that_was_killed_goes_on_or_back(over, cloud, ours, tmp_path):
    before = active(cloud), active(ours)
    over("switch", *LEAVE)
    state = tmp_path / "state.json"
    values = json.loads(state.read_text())
    # Killed when the source was off and the destination not yet on.
    state.write_text(json.dumps({**values, "phase": "switching"}))
    for one in ours.objects["deployments"]:
        for schedule in one["schedules"]:
            schedule["active"] = False
    assert over("switch", *LEAVE)[0] == 0
    assert active(ours)["nightly"] == [True, False]
    assert over("switch", "--back")[0] == 0
    assert (active(cloud), active(ours)) == before
    assert state.exists() is False


def test_a_state_of_another_migration_is_refused(over, tmp_path):
    (tmp_path / "state.json").write_text('{"format": 1, "source": "a", "destination": "b", "phase": "", "pairs": []}')
    code, _, said = over("switch", *LEAVE)
    assert code == 2
    assert "is of a migration from a to b" in said


def test_a_state_that_cannot_be_written_changes_nothing(over, cloud, ours):
    before = active(cloud), active(ours)
    code, _, said = over("switch", *LEAVE, "--state", "/nowhere/state.json")
    assert (code, (active(cloud), active(ours))) == (1, before)
    assert "--state FILE, where it can be written" in said


def test_schedules_are_the_same_by_slug_or_by_what_they_say():
    def schedule(number: int, **more: Any) -> dict[str, Any]:
        return {"id": str(number), "schedule": {"cron": "0 3 * * *", "timezone": "UTC"}, "parameters": {}, **more}

    there = [schedule(1, parameters={"a": 1}), schedule(2, slug="x"), schedule(3)]
    assert switching.like(schedule(9, slug="x"), there, set())["id"] == "2"
    assert switching.like(schedule(9, parameters={"a": 1}), there, set())["id"] == "1"
    assert switching.like(schedule(9), there, {"2"})["id"] == "3"
    assert switching.like(schedule(9, schedule={"interval": 60, "anchor_date": "2020"}), there, set()) is None
