"""The program that deploys a release: what it refuses before it touches anything, what it adds, and whose things it
leaves alone. The last part goes through the program as a whole, against a real Prefect server.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
import yaml
from prefect import flow
from prefect.cli.deploy._storage import _PullStepStorage
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import DeploymentScheduleCreate, DeploymentUpdate, WorkPoolCreate
from prefect.client.schemas.schedules import CronSchedule, IntervalSchedule
from prefect.deployments.runner import RunnerDeployment
from prefect.settings import PREFECT_API_URL, temporary_settings
from prefect.workers.process import ProcessWorker

FILES = Path(__file__).resolve().parents[2] / "ansible/roles/flows/files"


def load(name: str) -> Any:
    spec = importlib.util.spec_from_file_location(name, FILES / f"{name}.py")
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


deploy_seam = load("deploy_seam")
deploy_schedules = load("deploy_schedules")
definition = load("flows_definition")
ownership = load("deploy_ownership")
for name in ("deploy_imports", "deploy_server"):
    load(name)
deploy_flows = load("deploy_flows")


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


def deployment(**changes: object) -> RunnerDeployment:
    given = {"name": "mine", "work_pool_name": "general", "work_queue_name": "high", "entrypoint": "x.py:greet"}
    made = RunnerDeployment(**{**given, "flow_name": "greet", **changes})
    made._set_defaults_from_flow(greet)
    return made


def errors(schedules: tuple = (), **changes: object) -> list[str]:
    return asyncio.run(deploy_flows.rule_errors(deployment(**changes), list(schedules)))


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
    (tmp_path / "good.py").write_text("from prefect import flow\n\n\n@flow\ndef good(a, b=1):\n    pass\n")
    (tmp_path / "any.py").write_text(
        "from prefect import flow\n\n\n@flow(version='2')\ndef any(a, **more):\n    pass\n"
    )
    (tmp_path / "bad.py").write_text("import no_such_module_at_all\n")
    (tmp_path / "ends.py").write_text("raise SystemExit('here')\n")
    names = ["good.py:good", "any.py:any", "good.py:none", "bad.py:bad", "ends.py:ends", "away.py:away"]
    flows, versioned, said = deploy_flows.imported(names)
    assert versioned == {"any.py:any"}
    assert flows == {"good.py:good": ["a", "b"], "any.py:any": None}
    assert len(said) == 4
    assert '"bad.py:bad" does not import: ' in said[1]
    assert "no_such_module_at_all" in said[1]
    assert '"ends.py:ends" does not import: SystemExit: here' in said


# --- what prefect.yaml says --------------------------------------------------------------------------------------

POOLS = {"general": {"type": "process", "variables": {"command", "env", "stream_output"}}}
ENTRY: dict[str, Any] = {"name": "mine", "entrypoint": "x.py:greet", "work_pool": {"name": "general"}}


def entry_errors(**changes: Any) -> list[str]:
    entry = {key: value for key, value in {**ENTRY, **changes}.items() if value != "-"}
    return definition.entry_errors(entry, POOLS, ["name", "times"])


def scheduled(**schedule: Any) -> dict[str, Any]:
    return {"schedules": [schedule]}


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"version": "1.4.0", "tags": ["a"], "description": "x", "paused": True, "triggers": []},
        {"work_pool": "-"},
        {"work_pool": {"name": "general", "work_queue_name": "high", "job_variables": {"env": {"A": "1"}}}},
        {"build": None, "push": None, "pull": None},
        {"schedule": {"cron": "0 3 * * *"}},
        {"schedules": []},
        {"schedules": None},
        scheduled(cron="0 3 * * *", timezone="Europe/Berlin", day_or=False, slug="x", active=False),
        scheduled(interval=900, anchor_date="2026-01-01T00:00:00Z"),
        scheduled(interval="PT15M", parameters={"times": 3}),
        scheduled(rrule="FREQ=DAILY;COUNT=3", timezone="UTC"),
        scheduled(cron="{{ prefect.variables.when }}", timezone="{{ prefect.variables.zone }}"),
        {"parameters": {"name": "Ada"}},
        {"work_pool": {"name": "general", "job_variables": {"env": "{{ prefect.variables.env }}"}}},
        {"concurrency_limit": 1},
        {"concurrency_limit": {"limit": 1, "collision_strategy": "CANCEL_NEW", "grace_period_seconds": 60}},
    ],
)
def test_a_deployment_that_prefect_takes(changes):
    assert entry_errors(**changes) == []


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"tag": ["a"]}, 'there is no key "tag"; did you mean "tags"?'),
        ({"work_queue_name": "high"}, '"work_queue_name" does nothing here; it belongs into work_pool'),
        ({"cron": "0 3 * * *"}, '"cron" does nothing here; it belongs into schedules'),
        ({"work_pool": {"name": "general", "schedules": []}},
         'work_pool: "schedules" does nothing here; it belongs into the deployment itself'),
        ({"name": "-"}, "has no name"),
        ({"entrypoint": "-"}, "has no entrypoint (such as hello.py:hello)"),
        ({"tags": "a"}, 'tags: is "a", and must be a list of texts'),
        ({"version": 1.4}, 'version: is 1.4, and must be a text: put it in quotes, "1.4"'),
        ({"work_pool": {"name": "genral"}},
         'work_pool: there is no work pool "genral"; there are general (prefect_work_pools in the inventory)'),
        ({"work_pool": "general"}, 'work_pool: is "general", and must be a mapping with name'),
        ({"work_pool": {"name": "general", "job_variables": {"comand": "x"}}},
         'work_pool: job_variables: the work pool "general" has no job variable "comand"; did you mean "command"?'),
        ({"parameters": {"nmae": "x"}}, 'parameters: the flow has no parameter "nmae"; did you mean "name"?'),
        ({"parameters": {"x": 1}}, 'parameters: the flow has no parameter "x"; it has name, times'),
        (scheduled(cron="0 3 * * *", parameters={"x": 1}),
         'schedule 1: parameters: the flow has no parameter "x"; it has name, times'),
        (scheduled(cron="61 * * * *"),
         'schedule 1: cron: "61 * * * *" is not a cron expression (minute hour day month weekday, such as "15 3 * * *")'),
        (scheduled(cron="0 3 * * *", timezone="Europe/Berln"),
         'schedule 1: timezone: "Europe/Berln" is not a time zone; did you mean "Europe/Berlin"?'),
        (scheduled(interval=0), 'schedule 1: interval: "0" is no length of time (seconds, or such as "PT15M")'),
        (scheduled(interval="soon"), 'schedule 1: interval: "soon" is no length of time (seconds, or such as "PT15M")'),
        (scheduled(rrule="EVERY DAY"), 'schedule 1: rrule: "EVERY DAY" is not a recurrence rule (RFC 5545)'),
        (scheduled(interval=60, anchor_date="never"),
         'schedule 1: anchor_date: "never" is no date (such as "2026-01-01T00:00:00Z")'),
        (scheduled(cron="0 3 * * *", anchor_date="2026-01-01"),
         'schedule 1: "anchor_date" does nothing beside cron, only beside interval'),
        (scheduled(cron="0 3 * * *", timezome="UTC"), 'schedule 1: there is no key "timezome"; did you mean "timezone"?'),
        (scheduled(cron="0 3 * * *", interval=60),
         "schedule 1: must have exactly one of cron, interval, rrule, and has cron and interval"),
        (scheduled(slug="x"), "schedule 1: must have exactly one of cron, interval, rrule, and has none"),
        (scheduled(cron="0 3 * * *", active="maybe"), 'schedule 1: active: "maybe" is neither true nor false'),
        ({"schedules": [{"cron": "0 3 * * *", "slug": "a"}, {"cron": "0 4 * * *", "slug": "a"}]},
         'schedule 2: the slug "a" is there twice'),
        ({"schedules": [{"cron": "0 3 * * *"}, {"cron": "0 3 * * *"}]}, "schedule 2: is there twice"),
        ({"schedules": [], "schedule": {"cron": "0 3 * * *"}},
         'has both "schedule" and "schedules"; use "schedules" alone'),
        ({"concurrency_limit": {"limit": 1, "strategy": "ENQUEUE"}},
         'concurrency_limit: there is no key "strategy"; did you mean "collision_strategy"?'),
        ({"concurrency_limit": {"limit": 1, "collision_strategy": "WAIT"}},
         'concurrency_limit: collision_strategy: "WAIT" is not one of ENQUEUE, CANCEL_NEW'),
        ({"pull": [{"prefect.deployments.steps.git_clone": {"repository": "https://tok3n@git.example.org/f.git"}}]},
         'pull: "https://***@git.example.org/f.git" has a credential in it, which everybody reads who sees the '
         'deployment; give it by a Secret block: access_token: "{{ prefect.blocks.secret.NAME }}"'),
    ],
)  # fmt: skip
def test_a_deployment_that_prefect_would_misread(changes, said):
    assert entry_errors(**changes) == [said]


def test_a_whole_file_says_everything_that_is_wrong_at_once():
    content = {
        "schedules": [{"cron": "0 3 * * *"}],
        "deployment": [],
        "common": {"anything": "for anchors"},
        "definitions": {"x": 1},
        "deployments": [
            {**ENTRY, "tag": ["x"], "parameters": {"x": 1}},
            {**ENTRY, "name": "well", "version": "{{ $FLOWS_VERSION }}"},
            {**ENTRY, "name": "no-import", "entrypoint": "away.py:away"},
            "text",
        ],
    }
    found = definition.check(content, POOLS, {"x.py:greet": ["name"]}, {"FLOWS_VERSION": "abc"})
    assert found.errors == [
        '"schedules" does nothing at the head of prefect.yaml; it belongs into a deployment',
        'prefect.yaml has no key "deployment"; did you mean "deployments"?',
        'deployment "mine": there is no key "tag"; did you mean "tags"?',
        'deployment "mine": parameters: the flow has no parameter "x"; it has name',
        'deployment 4: is "text", and must be a mapping',
    ]
    # What is well by itself is tried out all the same.
    assert [entry["name"] for entry in found.entries] == ["well"]
    assert definition.check(["x"], POOLS, {}, {}).errors == ["prefect.yaml has no list of deployments"]
    assert definition.check({"deployments": []}, POOLS, {}, {}).errors == ["prefect.yaml has no deployments"]


# --- whose a deployment is ---------------------------------------------------------------------------------------


def test_what_somebody_else_has_made_is_not_ours(tmp_path):
    """The neighbours: a copy in the UI of one of ours, one by hand with a release's interpreter, one without anything."""
    releases = tmp_path / "releases"
    (releases / "abc").mkdir(parents=True)
    (releases / "abc" / "prefect.yaml").write_text("deployments: [{name: mine, entrypoint: 'x.py:greet'}]\n")
    env = {"RELEASE_DIRECTORY": str(releases / "abc")}
    marked = {"name": "mine", "job_variables": {"env": {**env, "RELEASE_DEPLOYMENT": "greet/mine"}}}

    def ours(one: dict[str, Any], name: str = "greet/mine") -> bool:
        return ownership.made_by_kit({"entrypoint": "x.py:greet", **one}, name, releases)

    assert ours(marked)
    assert ours({**marked, "version": "1.4.0"})
    assert not ours({**marked, "name": "copy"}, "greet/copy")
    # As earlier versions of the kit left them: the release is the version.
    old = {"name": "mine", "version": "abc", "job_variables": {"env": env}}
    assert ours(old)
    assert ours({**old, "job_variables": {}, "pull_steps": [{"x": {"directory": str(releases / "abc")}}]})
    assert not ours({**old, "version": None})
    assert not ours({**old, "version": "1.4.0"})
    assert not ours({**old, "name": "copy"}, "greet/copy")
    assert not ours({**old, "entrypoint": "y.py:greet"})
    assert not ours({"name": "mine", "job_variables": {"command": f"{releases}/abc/.venv/bin/python"}})
    assert not ours({"name": "mine", "job_variables": None, "pull_steps": None})


@pytest.mark.parametrize(
    ("wanted", "ours", "others", "flags", "said"),
    [
        ("ab", "ab", "x", (), []),
        ("ab", "", "", (), []),
        ("ab", "abc", "", (), []),
        ("ab", "abcd", "", (), []),
        ("ab", "acde", "", (), [
            "prefect.yaml has 2 deployments, and deploying it would remove 3 that earlier releases made: c, d, e. "
            "To remove them: -e flows_remove_deployments=true"]),
        ("a", "bc", "", (), [
            "prefect.yaml has 1 deployment, and deploying it would remove all 2 that earlier releases made: b, c. "
            "To remove them: -e flows_remove_deployments=true"]),
        ("abc", "d", "", (), [
            "prefect.yaml has 3 deployments, and deploying it would remove all 1 that earlier releases made: d. "
            "To remove them: -e flows_remove_deployments=true"]),
        ("abc", "d", "", ("remove",), []),
        ("ab", "a", "b", (), [
            "deploying it would replace what somebody else has made or changed: b. Give other names to the deployments of "
            "prefect.yaml, or, to replace those: -e flows_replace_deployments=true"]),
        ("ab", "a", "b", ("replace",), []),
    ],
)  # fmt: skip
def test_what_is_not_done_without_a_word(wanted, ours, others, flags, said):
    planned = ownership.plan(wanted, ours, others)
    assert planned.refusals(len(wanted), "remove" in flags, "replace" in flags) == said


# --- what is added -----------------------------------------------------------------------------------------------


@pytest.fixture
def release(monkeypatch, tmp_path) -> Path:
    """The directory of a release, as the unit that deploys has it."""
    path = tmp_path / "releases" / "abc"
    path.mkdir(parents=True)
    enter(monkeypatch, path)
    return path


def enter(monkeypatch: pytest.MonkeyPatch, path: Path, **more: str) -> None:
    monkeypatch.chdir(path)
    python = str(path / ".venv/bin/python")
    given = {
        "VERSION": path.name,
        "DIRECTORY": str(path),
        "PYTHON": python,
        "POOL": "general",
        "REMOVE": "",
        "AGAIN": "",
        **more,
    }
    for name, value in given.items():
        monkeypatch.setenv(f"FLOWS_{name}", value)


def completed(kind: str, steps: list | None = None, **changes: object) -> tuple[list[str], RunnerDeployment]:
    one = deployment(**changes, storage=_PullStepStorage([step(".")] if steps is None else steps))
    return deploy_flows.complete(one, kind, has_version="version" in changes), one


def step(directory: str) -> dict[str, Any]:
    """What `prefect deploy` and `prefect init` write; `.` is where the deploy runs."""
    return {deploy_flows.SET_DIRECTORY: {"directory": str(Path.cwd()) if directory == "." else directory}}


LEADS_TO_RELEASE = [{deploy_flows.SET_DIRECTORY: {"directory": "{{ $RELEASE_DIRECTORY }}"}}]


def test_a_plain_deployment_gets_what_a_worker_needs(release):
    added, one = completed("process")
    assert added == ["version", "job variable command", "pull step", "environment variable RELEASE_DIRECTORY"]
    assert one.version == "abc"
    assert one.job_variables == {
        "command": f"{release}/.venv/bin/python -m prefect.engine",
        "env": {"RELEASE_DIRECTORY": str(release), "RELEASE_DEPLOYMENT": "greet/mine"},
    }
    assert one.storage.pull_steps == LEADS_TO_RELEASE


def test_what_a_deployment_says_itself_stays(release):
    given = {"command": "mine", "env": {"A": "1", "RELEASE_DIRECTORY": "/srv"}}
    clone = [{"prefect.deployments.steps.git_clone": {"repository": "https://git.example.org/f.git"}}]
    added, one = completed("process", clone, version="1.4.0", job_variables=given)
    assert added == []
    assert one.version == "1.4.0"
    assert one.job_variables == {**given, "env": {**given["env"], "RELEASE_DEPLOYMENT": "greet/mine"}}
    assert one.storage.pull_steps == clone
    assert completed("process", [])[1].storage.pull_steps == []


def test_a_directory_of_the_laptop_leads_to_the_release(release):
    added, one = completed("process", [step("/home/ada/flows-of-mine")], version="x")
    assert one.storage.pull_steps == LEADS_TO_RELEASE
    assert (
        'the release as directory of the pull step, instead of "/home/ada/flows-of-mine", which is not there' in added
    )
    assert completed("process", [step("/tmp")])[1].storage.pull_steps == [step("/tmp")]  # noqa: S108  it is there


def test_a_directory_that_cannot_even_be_looked_at_leads_to_the_release(release, monkeypatch):
    """The unit that deploys has ProtectHome=yes."""

    def closed(self: Path) -> bool:
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Path, "is_dir", closed)
    assert completed("process", [step("/home/ada/flows")])[1].storage.pull_steps == LEADS_TO_RELEASE


def test_a_container_gets_the_image_of_the_release(release, monkeypatch):
    monkeypatch.setenv("FLOWS_IMAGE", "prefect-flows:abc")
    added, one = completed("docker")
    assert "job variable image" in added and "job variable command" not in added
    assert one.job_variables["image"] == "prefect-flows:abc"
    assert one.storage.pull_steps == LEADS_TO_RELEASE
    added, one = completed("docker", [step("/opt/prefect")], job_variables={"image": "theirs:1"})
    assert one.job_variables["image"] == "theirs:1"
    assert one.storage.pull_steps == [step("/opt/prefect")]


# --- schedules ---------------------------------------------------------------------------------------------------


def of_file(**config: Any) -> Any:
    return deploy_schedules.Wanted.of(deploy_schedules.schedule_of_entry(config))


def there(schedule: Any, slug: str | None = None, active: bool = True) -> SimpleNamespace:
    return SimpleNamespace(schedule=schedule, slug=slug, active=active, parameters={})


NIGHT, NOON = CronSchedule(cron="0 3 * * *"), CronSchedule(cron="0 12 * * *")
FILE_NIGHT, FILE_NOON = of_file(cron="0 3 * * *"), of_file(cron="0 12 * * *")


def changes(found: list, before: list, wanted: list) -> tuple[list, list, list, list]:
    made = deploy_schedules.schedule_changes(found, before, wanted)
    return made.delete, made.update, made.create, made.others


def test_what_came_from_the_file_goes_with_it_and_what_a_person_made_stays():
    mine, persons, slugged = there(NIGHT, FILE_NIGHT.slug), there(NOON), there(NOON, "by-ada")
    assert changes([persons, mine, slugged], [FILE_NIGHT], []) == ([mine], [], [], [persons, slugged])
    named = of_file(cron="0 3 * * *", slug="nightly")
    mine = there(NIGHT, "nightly")
    assert changes([persons, mine, slugged], [named], []) == ([mine], [], [], [persons, slugged])


def test_a_schedule_without_a_slug_of_an_earlier_version_of_the_kit_is_found_by_its_content():
    mine, persons = there(NIGHT), there(NOON)
    assert changes([mine, persons], [FILE_NIGHT], []) == ([mine], [], [], [persons])
    assert changes([mine, persons], [FILE_NIGHT], [FILE_NIGHT]) == ([], [(mine, FILE_NIGHT)], [], [persons])
    hourly = there(IntervalSchedule(interval=3600))
    assert changes([hourly], [of_file(interval=3600)], [])[0] == [hourly]


def test_a_schedule_keeps_its_identity():
    mine = there(NIGHT, FILE_NIGHT.slug, active=False)
    # Another time, no slug: it takes the place of the one before, and stays paused.
    assert changes([mine], [FILE_NIGHT], [FILE_NOON]) == ([], [(mine, FILE_NOON)], [], [])
    # A slug for what had none; a new slug for an old one.
    named = of_file(cron="0 3 * * *", slug="nightly")
    assert changes([mine], [FILE_NIGHT], [named]) == ([], [(mine, named)], [], [])
    renamed = of_file(cron="0 12 * * *", slug="noon", replaces="nightly")
    mine = there(NIGHT, "nightly")
    assert changes([mine], [named], [renamed]) == ([], [(mine, renamed)], [], [])
    # Another slug, another time: another schedule.
    noon = of_file(cron="0 12 * * *", slug="noon")
    assert changes([mine], [named], [noon]) == ([mine], [], [noon], [])


def test_one_that_is_there_already_is_not_made_twice():
    persons = there(NIGHT)
    assert changes([persons], [], [FILE_NIGHT]) == ([], [(persons, FILE_NIGHT)], [], [])
    slugged = there(NOON, "nightly")
    named = of_file(cron="0 3 * * *", slug="nightly")
    assert changes([slugged], [], [named]) == ([], [(slugged, named)], [], [])


def test_what_is_said_of_schedules():
    named, persons = of_file(cron="0 3 * * *", slug="nightly", active=True), there(NOON)
    paused = there(NIGHT, FILE_NIGHT.slug, active=False)
    made = deploy_schedules.ScheduleChanges(
        delete=[paused, there(NOON, "noon")],
        update=[(there(NIGHT, "nightly", active=False), named), (paused, FILE_NIGHT), (there(NOON), FILE_NOON)],
        others=[persons],
    )
    assert deploy_schedules.schedule_notes("a/b", made) == [
        'Removed the schedule cron "0 3 * * *" of a/b, which was paused: prefect.yaml no longer has it.',
        'Removed the schedule "noon" (cron "0 12 * * *") of a/b: prefect.yaml no longer has it.',
        'The schedule "nightly" (cron "0 3 * * *") of a/b is active now: prefect.yaml says so.',
        'The schedule cron "0 3 * * *" of a/b stays paused.',
        'The schedule cron "0 12 * * *" of a/b was not made from prefect.yaml, and stays as it is.',
    ]


# --- the whole program, with a real server -----------------------------------------------------------------------

FLOWS = """
from prefect import flow


@flow
def orders(day: str = "2026-01-01"):
    pass


@flow
def invoices(month: int = 1):
    pass
"""
# What a person's own file is like, who has heard of Prefect and not of the kit.
PLAIN = """
name: my-flows
build: null
push: null
pull:
- prefect.deployments.steps.set_working_directory: {directory: /home/ada/my-flows}
deployments:
- name: orders
  entrypoint: orders.py:orders
  work_pool: {name: general}
  schedules:
  - {cron: "0 4 * * *", timezone: Europe/Berlin}
- name: old
  version: "1.4.0"
  entrypoint: orders.py:orders
  work_pool: {name: general}
- name: invoices
  entrypoint: orders.py:invoices
"""


@pytest.fixture(scope="module", autouse=True)
def starting(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a Prefect server that starts while the tests run that need none.

    Not prefect_test_harness: that loads all of the server into this process as well, and runs its services.
    """
    if not any("server" in item.fixturenames for item in request.session.items if item.module is request.module):
        yield ""
        return
    home = tmp_path_factory.mktemp("prefect")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {
        **os.environ,
        "PREFECT_HOME": str(home),
        "PREFECT_SERVER_DATABASE_CONNECTION_URL": f"sqlite+aiosqlite:///{home}/prefect.db",
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "PREFECT_SERVER_LOGGING_LEVEL": "ERROR",
    }
    command = [sys.executable, "-m", "prefect", "server", "start", "--no-services", "--no-ui"]
    with (home / "output").open("w") as output:
        process = subprocess.Popen(
            [*command, "--host", "127.0.0.1", "--port", str(port)],
            env=environment,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    yield f"http://127.0.0.1:{port}/api"
    process.terminate()
    process.wait(30)


@pytest.fixture(scope="module")
def server(starting: str) -> Iterator[SyncPrefectClient]:
    wait_for(f"{starting}/health", seconds=240)
    with temporary_settings({PREFECT_API_URL: starting}), get_client(sync_client=True) as client:
        template = ProcessWorker.get_default_base_job_template()
        client.create_work_pool(WorkPoolCreate(name="general", type="process", base_job_template=template))
        yield client


def wait_for(url: str, seconds: float) -> None:
    """Until something answers with 200."""
    deadline = time.monotonic() + seconds
    while True:
        with contextlib.suppress(httpx.TransportError):
            if httpx.get(url).status_code == 200:
                return
        assert time.monotonic() < deadline, f"{url} does not answer"
        time.sleep(0.1)


@pytest.fixture
def deploy(server, monkeypatch, tmp_path, capsys) -> Iterator[Any]:
    """`deploy("abc", text)` deploys a release of that name with this prefect.yaml; gives exit code and lines."""
    for name in deploy_seam.ASKED_ONCE:
        monkeypatch.setattr(deploy_seam.PrefectClient, name, getattr(deploy_seam.PrefectClient, name))
    monkeypatch.setattr(sys, "argv", sys.argv)
    monkeypatch.setattr(sys, "path", list(sys.path))

    def run(name: str, text: str, **more: str) -> tuple[int, list[str]]:
        path = tmp_path / "releases" / name
        path.mkdir(parents=True, exist_ok=True)
        (path / "prefect.yaml").write_text(text)
        (path / "orders.py").write_text(FLOWS)
        enter(monkeypatch, path, **more)
        capsys.readouterr()
        code = deploy_flows.main()
        said = capsys.readouterr()
        return code, [*said.out.splitlines(), *said.err.splitlines()]

    yield run
    for one in deploy_flows.deployments_there(server).values():
        server.delete_deployment(one["id"])


def changed(text: str, **changes: Any) -> str:
    """The plain file with `deployments` changed by name; None takes one out."""
    content = yaml.safe_load(text)
    entries = [{**one, **(changes.get(one["name"], {}) or {})} for one in content["deployments"]]
    content["deployments"] = [one for one in entries if changes.get(one["name"], {}) is not None]
    return yaml.safe_dump(content)


def schedules(client: SyncPrefectClient, name: str) -> dict[str, bool]:
    return {one.schedule.cron: one.active for one in client.read_deployment_by_name(name).schedules}


def test_a_plain_file_is_deployed_and_nothing_of_anybody_else_is_touched(server, deploy, tmp_path):
    """A first deploy; a neighbour that a person made; a second one; what is taken out of the file."""
    code, said = deploy("abc", PLAIN)
    assert (code, said) == (0, [
        "3 of 3 deployments made.",
        "NOTE: Added where prefect.yaml does not say it: version (2 of 3), job variable command (3 of 3), the release as "
        'directory of the pull step, instead of "/home/ada/my-flows", which is not there (3 of 3), environment variable '
        "RELEASE_DIRECTORY (3 of 3), work pool general (1 of 3).",
    ])  # fmt: skip
    made = server.read_deployment_by_name("orders/orders")
    assert made.version == "abc"
    assert made.pull_steps == LEADS_TO_RELEASE
    assert made.job_variables["env"]["RELEASE_DIRECTORY"] == str(tmp_path / "releases" / "abc")
    assert server.read_deployment_by_name("orders/old").version == "1.4.0"

    # A person copies one of them, as the UI does; pauses a schedule and a deployment; makes a schedule.
    copy = json.loads(made.model_dump_json(include={"flow_id", "entrypoint", "pull_steps", "job_variables", "version"}))
    server.create_deployment(**copy, name="copy", work_pool_name="general")
    server.update_deployment_schedule(made.id, made.schedules[0].id, active=False)
    server.create_deployment_schedules(made.id, [DeploymentScheduleCreate(schedule=NOON)])
    old = server.read_deployment_by_name("orders/old")
    server.update_deployment(old.id, DeploymentUpdate(paused=True))

    code, said = deploy("def", changed(PLAIN, invoices=None))
    assert (code, said[0]) == (0, "2 of 2 deployments made.")
    assert said[2:] == [
        'NOTE: The schedule cron "0 4 * * *" Europe/Berlin of orders/orders stays paused.',
        'NOTE: The schedule cron "0 12 * * *" of orders/orders was not made from prefect.yaml, and stays as it is.',
        "NOTE: orders/old stays paused.",
        "NOTE: Removed, because prefect.yaml no longer has it: invoices/invoices.",
    ]
    assert schedules(server, "orders/orders") == {"0 4 * * *": False, "0 12 * * *": True}
    assert server.read_deployment_by_name("orders/old").paused
    assert sorted(deploy_flows.deployments_there(server)) == ["orders/copy", "orders/old", "orders/orders"]

    code, said = deploy("fed", changed(PLAIN, invoices=None, orders={"schedules": []}))
    assert code == 0
    assert schedules(server, "orders/orders") == {"0 12 * * *": True}
    assert (
        'NOTE: Removed the schedule cron "0 4 * * *" Europe/Berlin of orders/orders, which was paused: prefect.yaml no '
        "longer has it." in said
    )


def test_a_deploy_that_would_empty_the_server_is_refused_with_the_list(server, deploy):
    assert deploy("abc", PLAIN)[0] == 0
    before = {name: one["updated"] for name, one in deploy_flows.deployments_there(server).items()}
    other = changed(PLAIN, old=None, orders={"name": "others"}, invoices=None)
    code, said = deploy("def", other)
    assert (code, said) == (deploy_flows.REFUSED, [
        "ERROR: prefect.yaml has 1 deployment, and deploying it would remove all 3 that earlier releases made: "
        "invoices/invoices, orders/old, orders/orders. To remove them: -e flows_remove_deployments=true"
    ])  # fmt: skip
    assert {name: one["updated"] for name, one in deploy_flows.deployments_there(server).items()} == before
    assert deploy("def", other, REMOVE="true")[0] == 0
    assert list(deploy_flows.deployments_there(server)) == ["orders/others"]


def test_what_was_deployed_before_can_be_gone_back_to_whatever_the_rules_are_by_now(server, deploy):
    """An earlier version of the kit took what Prefect takes, keys that it ignores included."""
    older = changed(PLAIN, orders={"tag": ["x"]}, old=None, invoices=None)
    assert deploy("abc", older)[0] == deploy_flows.REFUSED
    code, said = deploy("abc", older, AGAIN="true", REMOVE="true")
    assert (code, said[:2]) == (0, [
        "1 of 1 deployments made.",
        'NOTE: Of prefect.yaml: deployment "orders": there is no key "tag"; did you mean "tags"?',
    ])  # fmt: skip


def test_what_somebody_else_has_made_is_not_replaced_without_a_word(server, deploy):
    flow_id = server.create_flow_from_name("orders")
    made = server.create_deployment(flow_id=flow_id, name="orders", entrypoint="/home/ada/x.py:orders")
    code, said = deploy("abc", PLAIN)
    assert (code, said) == (deploy_flows.REFUSED, [
        "ERROR: deploying it would replace what somebody else has made or changed: orders/orders. Give other names to the "
        "deployments of prefect.yaml, or, to replace those: -e flows_replace_deployments=true"
    ])  # fmt: skip
    assert list(deploy_flows.deployments_there(server)) == ["orders/orders"]
    code, said = deploy("abc", PLAIN, REPLACE="true")
    assert code == 0
    assert "NOTE: Replaced, although somebody else had made or changed it: orders/orders." in said
    assert server.read_deployment_by_name("orders/orders").id == made


def test_all_that_is_wrong_is_said_at_once_and_nothing_is_made(server, deploy):
    wrong = changed(
        PLAIN,
        orders={"tag": ["x"], "schedules": [{"cron": "61 * * * *", "timezone": "Europe/Berln"}]},
        old={"work_pool": {"name": "genral"}, "parameters": {"dya": "x"}},
        invoices={"parameters": {"month": "x"}, "work_pool": {"name": "general", "work_queue_name": "none"}},
    )
    code, said = deploy("abc", wrong)
    assert code == deploy_flows.REFUSED
    assert said[:5] == [
        'ERROR: deployment "orders": there is no key "tag"; did you mean "tags"?',
        'ERROR: deployment "orders": schedule 1: timezone: "Europe/Berln" is not a time zone; did you mean '
        '"Europe/Berlin"?',
        'ERROR: deployment "orders": schedule 1: cron: "61 * * * *" is not a cron expression (minute hour day month '
        'weekday, such as "15 3 * * *")',
        'ERROR: deployment "old": work_pool: there is no work pool "genral"; there are general (prefect_work_pools in '
        "the inventory)",
        'ERROR: deployment "old": parameters: the flow has no parameter "dya"; did you mean "day"?',
    ]
    assert said[5].startswith('ERROR: deployment "invoices/invoices": parameters: ')
    assert said[6] == (
        'ERROR: deployment "invoices/invoices": work_queue_name: the pool "general" has no queue "none", only default'
    )
    assert len(said) == 7
    assert deploy_flows.deployments_there(server) == {}
