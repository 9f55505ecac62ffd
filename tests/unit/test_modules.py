"""The Ansible modules that talk to Prefect's API: what they decide, against a server that is a dictionary."""

from __future__ import annotations

import contextlib
import errno
import importlib.util
import io
import itertools
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

ANSIBLE = Path(__file__).resolve().parents[2] / "ansible"
URL = "https://prefect.example.org/api"


def load(name: str, path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


# Under the name that Ansible gives it on a host.
prefect_api = load("ansible.module_utils.prefect_api", ANSIBLE / "module_utils/prefect_api.py")
work_pool = load("prefect_work_pool", ANSIBLE / "library/prefect_work_pool.py")
deployments = load("prefect_deployments", ANSIBLE / "library/prefect_deployments.py")
automation = load("prefect_automation", ANSIBLE / "library/prefect_automation.py")
flow_releases = load("prefect_flow_releases", ANSIBLE / "library/prefect_flow_releases.py")
git_export = load("prefect_git_export", ANSIBLE / "library/prefect_git_export.py")
flow_run = load("prefect_flow_run", ANSIBLE / "library/prefect_flow_run.py")
online = load("prefect_workers_online", ANSIBLE / "library/prefect_workers_online.py")


class Ended(Exception):
    """What a module ends with."""


class Module:
    """As much of AnsibleModule as the client needs."""

    def __init__(self) -> None:
        self.params = {"api_url": URL + "/", "url_username": "playbook", "url_password": "unsaid", "ca_path": None}

    def fail_json(self, **result: Any) -> None:
        raise Ended(result["msg"])


@pytest.fixture
def answers(monkeypatch) -> Iterator[list[tuple[int, Any]]]:
    """The answers of the next requests, as (status, body); what was asked is in `answers.asked`."""

    class Answers(list):
        asked: list[SimpleNamespace]

    queue = Answers()
    queue.asked = []

    def fetch_url(module, url, data=None, headers=None, method=None, timeout=None, ca_path=None):
        queue.asked.append(SimpleNamespace(method=method, path=url.removeprefix(URL), data=data, headers=headers))
        status, body = queue.pop(0)
        if status <= 0:
            return None, {"status": status, "msg": body}
        if status >= 400:
            return None, {"status": status, "body": body, "msg": "HTTP error"}
        return io.BytesIO(b"" if body is None else json.dumps(body).encode()), {"status": status, "msg": "OK"}

    monkeypatch.setattr(prefect_api, "fetch_url", fetch_url)
    monkeypatch.setattr(prefect_api.time, "sleep", lambda seconds: None)
    yield queue
    assert not queue, "not all that was prepared was asked for"


@pytest.fixture
def api(answers):
    return prefect_api.PrefectApi(Module())


# --- the client --------------------------------------------------------------------------------------------------


def test_a_write_carries_a_token_that_is_fetched_once(api, answers):
    answers += [(200, {"token": "t"}), (201, {"id": 1}), (204, None)]
    assert api.call("POST", "/work_pools/", {"name": "a"}) == {"id": 1}
    assert api.call("DELETE", "/work_pools/a") is None
    assert [(one.method, one.path.partition("?")[0]) for one in answers.asked] == [
        ("GET", "/csrf-token"),
        ("POST", "/work_pools/"),
        ("DELETE", "/work_pools/a"),
    ]
    client = answers.asked[0].path.partition("=")[2]
    for one in answers.asked[1:]:
        assert one.headers["Prefect-Csrf-Client"] == client
        assert one.headers["Prefect-Csrf-Token"] == "t"
    assert json.loads(answers.asked[1].data) == {"name": "a"}
    assert answers.asked[2].data is None


@pytest.mark.parametrize("status", [404, 422])
def test_a_server_without_that_protection_is_not_asked_again(api, answers, status):
    answers += [(status, "off"), (204, None), (204, None)]
    api.call("DELETE", "/a")
    api.call("DELETE", "/b")
    assert len(answers.asked) == 3


def test_a_status_that_is_accepted_is_no_error(api, answers):
    answers += [(404, "no such pool")]
    assert api.call("GET", "/work_pools/a", accept=(404,)) is None


@pytest.mark.parametrize(
    ("status", "body", "words"),
    [
        (
            500,
            b"Internal Server Error\n",
            f'GET {URL}/flows answered 500: "Internal Server Error". HINT: look at: journalctl CONTAINER_TAG=prefect-server',
        ),
        (
            401,
            "",
            f'GET {URL}/flows answered 401: "". HINT: the reverse proxy does not know the account "playbook" or its password; '
            "run site.yml --tags stack",
        ),
        (
            -1,
            "Name or service not known",
            f'GET {URL}/flows answered -1: "Name or service not known". HINT: is the name right, the port open, the '
            "certificate trusted? Look at: journalctl CONTAINER_TAG=prefect-caddy",
        ),
    ],
)
def test_an_error_is_a_fact_and_a_hint_without_the_password(api, answers, status, body, words):
    answers += [(status, body)]
    with pytest.raises(Ended) as ended:
        api.call("GET", "/flows")
    assert str(ended.value) == words
    assert "unsaid" not in words


def test_all_pages_are_read(api, answers):
    full = [{"id": number} for number in range(200)]
    answers += [(200, {"token": "t"}), (200, full), (200, full), (200, [{"id": 400}])]
    assert len(api.filter("/flows/filter", {"sort": "NAME"})) == 401
    bodies = [json.loads(one.data) for one in answers.asked[1:]]
    assert bodies == [{"sort": "NAME", "limit": 200, "offset": offset} for offset in (0, 200, 400)]


def test_waiting_ends_when_the_database_answers_too(api, answers):
    answers += [(-1, "Connection refused"), (502, "starting"), (503, "no database"), (200, {"message": "OK"})]
    api.ready(60)


def test_waiting_for_a_proxy_that_refuses_the_password_ends_at_once(api, answers):
    answers += [(401, "")]
    with pytest.raises(Ended, match='does not know the account "playbook"'):
        api.ready(60)


def test_waiting_ends_in_time(api, answers):
    answers += [(502, "starting")]
    with pytest.raises(Ended, match=f'^{URL}/ready answers 502 after 0 s: "starting"'):
        api.ready(0)


# --- work pools --------------------------------------------------------------------------------------------------


KINDS = ("process", "docker")
TEMPLATE = {"job_configuration": {"env": "{{ env }}"}, "variables": {"properties": {"env": {"type": "object"}}}}


class Server:
    """Work pools as Prefect keeps them: each with a queue "default", and moving a queue moves those behind it."""

    def __init__(self) -> None:
        self.pools: dict[str, dict[str, Any]] = {}
        self.queues: dict[str, dict[str, dict[str, Any]]] = {}
        self.writes: list[tuple[str, str]] = []
        self.warnings: list[str] = []

    def call(self, method: str, path: str, body: Any = None, accept: tuple[int, ...] = ()) -> Any:
        _, *words = path.strip("/").split("/")
        if path == work_pool.VIEW:
            return {"some-collection": {kind: {"default_base_job_configuration": TEMPLATE} for kind in KINDS}}
        if method == "GET":
            return self.pools.get(words[0])
        self.writes.append((method, path))
        if not words:
            self.pools[body["name"]] = dict(body)
            self.queues[body["name"]] = {"default": {"name": "default", "priority": 1, "concurrency_limit": None}}
        elif len(words) == 1:
            self.pools[words[0]].update(body)
        else:
            queues, name = self.queues[words[0]], body.get("name") or words[2]
            queues[name] = {**queues.get(name, {}), **body, "name": name}
            self._make_room(queues, queues[name])
        return None

    @staticmethod
    def _make_room(queues: dict[str, dict[str, Any]], moved: dict[str, Any]) -> None:
        """The algorithm of prefect.server.models.workers.bulk_update_work_queue_priorities for one queue."""
        others = sorted((queue for queue in queues.values() if queue is not moved), key=lambda x: x["priority"])
        for index, queue in enumerate(others):
            if queue["priority"] >= moved["priority"]:
                others.insert(index, moved)
                break
        last = 0
        for queue in others:
            if queue["priority"] <= last:
                queue["priority"] = last + 1
            last = queue["priority"]

    def filter(self, path: str, body: dict[str, Any]) -> list[dict[str, Any]]:
        return [dict(queue) for queue in self.queues[path.strip("/").split("/")[1]].values()]


@pytest.fixture
def server() -> Server:
    return Server()


@pytest.fixture
def make(monkeypatch, server):
    """`make(name="general", …)` runs the module against `server`; gives what it ends with."""

    def run(check_mode: bool = False, **parameters: Any) -> dict[str, Any]:
        params = {"type": "process", "concurrency_limit": None, "queues": [], **parameters}
        params = {"job_defaults": {}, "job_fixed": {}, "job_configuration": {}, "overwrite_template": False, **params}
        params["queues"] = [{"concurrency_limit": None, **queue} for queue in params["queues"]]
        return ended(monkeypatch, work_pool, server, params, check_mode)

    return run


def ended(monkeypatch, module: ModuleType, server: Any, params: dict[str, Any], check_mode: bool) -> dict[str, Any]:
    """Run a module's main with parameters that are filled in; gives its result. Raises Ended when it fails."""
    results: list[dict[str, Any]] = []

    class Exit(Exception):
        pass

    class Ansible:
        def __init__(self, argument_spec: dict[str, Any], supports_check_mode: bool) -> None:
            assert supports_check_mode
            assert set(params) <= set(argument_spec)
            self.params, self.check_mode = {"ready_timeout": 0, **params}, check_mode
            if server is not None:
                server.module = self

        def warn(self, text: str) -> None:
            server.warnings.append(text)

        def exit_json(self, **result: Any) -> None:
            results.append(result)
            raise Exit

        def fail_json(self, **result: Any) -> None:
            raise Ended(result["msg"])

    monkeypatch.setattr(module, "AnsibleModule", Ansible)
    monkeypatch.setattr(module, "PrefectApi", lambda _: server, raising=False)
    with pytest.raises(Exit):
        module.main()
    return results[0]


@pytest.mark.parametrize("seconds", [0, 60])
def test_a_module_first_waits_for_the_api_where_it_is_told_how_long(monkeypatch, seconds):
    class Waited(Server):
        def ready(self, timeout: float) -> None:
            assert not self.writes
            self.waited = timeout

    server = Waited()
    params = {"name": "general", "type": "process", "concurrency_limit": None, "queues": []}
    params |= {"job_defaults": {}, "job_fixed": {}, "job_configuration": {}, "overwrite_template": False}
    params["ready_timeout"] = seconds
    assert ended(monkeypatch, work_pool, server, params, check_mode=False)["changed"]
    assert getattr(server, "waited", 0) == seconds


QUEUES = [{"name": "high", "priority": 1}, {"name": "default", "priority": 2}, {"name": "low", "priority": 3}]


def test_a_new_pool(make, server):
    result = make(name="general", concurrency_limit=8, queues=QUEUES)
    assert result["changed"]
    assert result["diff"]["before"] == {}
    assert server.pools["general"].pop("base_job_template")["job_configuration"] == TEMPLATE["job_configuration"]
    assert server.pools["general"] == {"name": "general", "type": "process", "concurrency_limit": 8}
    assert {name: queue["priority"] for name, queue in server.queues["general"].items()} == {
        "high": 1,
        "default": 2,
        "low": 3,
    }
    assert result["work_pool"] == result["diff"]["after"]


def test_a_second_time_changes_nothing(make, server):
    make(name="general", queues=QUEUES)
    server.writes.clear()
    assert not make(name="general", queues=QUEUES)["changed"]
    assert server.writes == []


def test_check_mode_says_so_and_writes_nothing(make, server):
    result = make(check_mode=True, name="general", queues=QUEUES)
    assert result["changed"]
    assert list(result["diff"]["after"]["queues"]) == ["high", "default", "low"]
    assert server.writes == []


def test_only_what_differs_is_written(make, server):
    make(name="general", queues=QUEUES)
    server.writes.clear()
    assert make(name="general", concurrency_limit=3, queues=QUEUES)["changed"]
    assert server.writes == [("PATCH", "/work_pools/general")]
    server.writes.clear()
    limited = [*QUEUES[:2], {**QUEUES[2], "concurrency_limit": 1}]
    assert make(name="general", concurrency_limit=3, queues=limited)["changed"]
    assert server.writes == [("PATCH", "/work_pools/general/queues/low")]


def test_a_limit_that_is_gone_from_the_inventory_is_taken_away(make, server):
    make(name="general", concurrency_limit=3, queues=[{**QUEUES[0], "concurrency_limit": 2}])
    assert make(name="general", queues=[QUEUES[0]])["changed"]
    assert server.pools["general"]["concurrency_limit"] is None
    assert server.queues["general"]["high"]["concurrency_limit"] is None


@pytest.mark.parametrize("after", list(itertools.permutations(["default", "a", "b", "c"])), ids="-".join)
def test_every_order_of_queues_is_reached_from_every_other(make, server, after):
    """A queue of somebody else's is among them; it may be moved, and is never deleted."""
    wanted = [{"name": name, "priority": priority} for priority, name in enumerate(after, 1)]
    for number, before in enumerate(itertools.permutations(["default", "a", "b", "c"])):
        pool = f"pool-{number}"
        make(name=pool, queues=[{"name": name, "priority": priority} for priority, name in enumerate(before, 1)])
        server.call("POST", f"/work_pools/{pool}/queues", {"name": "foreign", "priority": 2, "concurrency_limit": 7})
        make(name=pool, queues=wanted)
        found = {name: queue["priority"] for name, queue in server.queues[pool].items()}
        foreign = found.pop("foreign")
        assert found == {queue["name"]: queue["priority"] for queue in wanted}
        assert foreign not in found.values()
        assert not make(name=pool, queues=wanted)["changed"]


def test_a_pool_of_another_type_is_refused(make, server):
    make(name="general", type="docker")
    server.writes.clear()
    with pytest.raises(Ended) as refused:
        make(name="general")
    assert str(refused.value) == (
        'Refusing to change the work pool "general": it is of type "docker", not "process", and Prefect cannot change a '
        "pool's type. Give the pool another name in prefect_work_pools."
    )
    assert server.writes == []


def test_the_template_follows_the_parameters_until_somebody_edits_it(make, server):
    ours = {"name": "d", "type": "docker", "job_defaults": {"env": {"A": "1"}}, "job_fixed": {"privileged": False}}
    make(**ours)
    template = server.pools["d"]["base_job_template"]
    assert template["job_configuration"] == {"env": "{{ env }}", "privileged": False}
    assert template["variables"]["properties"] == {"env": {"type": "object", "default": {"A": "1"}}}
    assert not make(**ours)["changed"]
    other = {**ours, "job_defaults": {"env": {"A": "2"}}}
    server.writes.clear()
    assert make(check_mode=True, **other)["changed"] and server.writes == []
    assert make(**other)["template"] == "write"
    assert server.writes == [("PATCH", "/work_pools/d")]
    server.pools["d"]["base_job_template"]["job_configuration"]["privileged"] = True
    result = make(**other)
    assert (result["changed"], result["template"]) == (False, "keep")
    assert server.warnings[0].startswith('the work pool "d" keeps its base job template')
    assert make(overwrite_template=True, **other)["changed"]
    assert server.pools["d"]["base_job_template"]["job_configuration"]["privileged"] is False


def test_values_of_a_template_leave_its_variables(make, server):
    """What takes a variable of the worker's own environment out of a flow run's, and a deployment adds to."""
    ours = {"name": "d", "type": "docker", "job_configuration": {"env": {"SECRET": None}, "labels": {"a": "{{ env }}"}}}
    make(**ours)
    template = server.pools["d"]["base_job_template"]
    assert template["job_configuration"]["env"] == {"SECRET": None}
    assert template["job_configuration"]["labels"] == {"a": "{{ env }}"}
    assert list(template["variables"]["properties"]) == ["env"]
    assert not make(**ours)["changed"]


def test_the_template_of_a_pool_that_is_there_is_nobody_s_business_without_parameters(make, server):
    make(name="general")
    server.pools["general"]["base_job_template"] = {}
    server.writes.clear()
    assert not make(name="general")["changed"] and server.writes == []


def test_a_type_or_a_variable_that_the_server_does_not_know_is_refused(make):
    with pytest.raises(Ended, match='the server knows no worker type "ecs" \\(work pool "a"\\)'):
        make(name="a", type="ecs")
    with pytest.raises(
        Ended, match=r"\Awork pool .a.: the base .* of the type docker has no variable 'memory'; it has env\Z"
    ):
        make(name="a", type="docker", job_defaults={"memory": "1g"})


# --- deployments -------------------------------------------------------------------------------------------------

RELEASES = "/opt/prefect/flows/releases"


def step(directory: Any) -> dict[str, Any]:
    return {"prefect.deployments.steps.set_working_directory": {"directory": directory}}


@pytest.mark.parametrize(
    ("steps", "release"),
    [
        ([step(f"{RELEASES}/0123456789ab")], "0123456789ab"),
        ([{"prefect.deployments.steps.git_clone": {"repository": "x"}}, step(f"{RELEASES}/a/flows")], "a"),
        ([step(RELEASES)], None),
        ([step(f"{RELEASES}-of-somebody/a")], None),
        ([step("/home/ada/flows")], None),
        ([step(None)], None),
        ([{"prefect.deployments.steps.run_shell_script": None}], None),
        ([], None),
        (None, None),
    ],
)
def test_the_release_that_a_deployment_works_in(steps, release):
    assert deployments.release_of({"pull_steps": steps}, RELEASES) == release
    assert deployments.release_of({"pull_steps": steps}, RELEASES + "/") == release
    if release:
        variables = {"env": {"RELEASE_DIRECTORY": f"{RELEASES}/{release}"}}
        assert deployments.release_of({"job_variables": variables}, RELEASES) == release


@pytest.mark.parametrize(
    ("env", "version", "marked"),
    [
        ({"RELEASE_DEPLOYMENT": "hello/one", "RELEASE_DIRECTORY": f"{RELEASES}/a"}, "1.4.0", True),
        # A copy, as the UI makes it.
        ({"RELEASE_DEPLOYMENT": "hello/two", "RELEASE_DIRECTORY": f"{RELEASES}/a"}, "a", False),
        # As earlier versions of the kit left them.
        ({"RELEASE_DIRECTORY": f"{RELEASES}/a"}, "a", True),
        ({"RELEASE_DIRECTORY": f"{RELEASES}/a"}, None, False),
        ({"RELEASE_DIRECTORY": "/home/ada/a"}, "a", False),
        (None, None, False),
    ],
)
def test_the_mark_of_a_deployment(env, version, marked):
    deployment = {"job_variables": {"env": env}, "version": version}
    assert deployments.is_marked(deployment, "hello/one", RELEASES) is marked


class Deployments:
    """A server with some deployments: one of the kit, and two of its neighbours."""

    def filter(self, path: str, body: dict[str, Any]) -> list[dict[str, Any]]:
        if path.startswith("/flows"):
            return [{"id": "f", "name": "hello"}]
        env = {"RELEASE_DEPLOYMENT": "hello/one", "RELEASE_DIRECTORY": f"{RELEASES}/new"}
        borrowed = {"command": f"{RELEASES}/borrowed/.venv/bin/python -m prefect.engine"}
        return [
            {"flow_id": "f", "name": "one", "version": "1.4.0", "job_variables": {"env": env}},
            {"flow_id": "f", "name": "copy", "version": "new", "job_variables": {"env": env}},
            {"flow_id": "f", "name": "by-hand", "version": None, "job_variables": borrowed},
            {"flow_id": "gone", "name": "four", "version": None, "pull_steps": None},
        ]


def test_what_the_kit_has_made_and_which_releases_anybody_needs(monkeypatch):
    result = ended(monkeypatch, deployments, Deployments(), {"directory": RELEASES}, False)
    assert result == {"changed": False, "deployments": {"hello/one": "new"}, "releases": ["borrowed", "new"]}


# --- releases on a host ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "names"),
    [
        (b"/opt/prefect/flows/releases/abc", {"abc"}),
        (b"/opt/prefect/flows/releases/abc/.venv/bin/python\0-m\0prefect.engine\0", {"abc"}),
        (b"A=/opt/prefect/flows/releases/abc:/opt/prefect/flows/releases/def/x\0B=2", {"abc", "def"}),
        (b"7f r-xp 00 08:01 12 /opt/prefect/flows/releases/abc/x.so\n", {"abc"}),
        (b"/opt/prefect/flows/releases", set()),
        (b"/opt/prefect/flows/releases/", set()),
        (b"/opt/prefect/flows/venvs/abc", set()),
    ],
)
def test_what_a_process_uses(text, names):
    assert flow_releases.names_in(text, Path(RELEASES)) == names


def test_a_process_with_its_directory_in_a_release_uses_it(tmp_path):
    for name in ("used", "unused"):
        (tmp_path / "releases" / name).mkdir(parents=True)
    with subprocess.Popen(["sleep", "60"], cwd=tmp_path / "releases" / "used") as process:
        try:
            assert flow_releases.names_in(flow_releases.processes_text(), tmp_path / "releases") == {"used"}
        finally:
            process.kill()


A, B, C, D, E = (letter * 12 for letter in "abcde")


@pytest.mark.parametrize(
    ("stay", "young_seconds", "gone"),
    [
        ({A}, 0, [B, f"{C}.new"]),
        ({A}, 100, [B]),
        ({A, B}, 100, []),
        (set(), 2000, []),
    ],
)
def test_what_may_go(stay, young_seconds, gone):
    there = {A: 1000.0, B: 1500.0, f"{C}.new": 1990.0, "of-ada": 0.0, "backup": 0.0, "abc": 0.0}
    assert flow_releases.may_go(there, stay, now=2000.0, young_seconds=young_seconds) == gone


@pytest.mark.parametrize("error", [None, errno.EXDEV, errno.EACCES])
def test_a_release_goes_at_once_or_where_it_has_no_other_name_in_its_place(error, tmp_path, monkeypatch):
    """On an overlay, directories of the image below cannot be renamed."""
    release = tmp_path / "0123456789ab"
    (release / "sub").mkdir(parents=True)

    def rename(self, target):
        raise OSError(error, "no")

    if error:
        monkeypatch.setattr(Path, "rename", rename)
    with pytest.raises(OSError) if error == errno.EACCES else contextlib.nullcontext():
        flow_releases.remove(release)
    assert release.exists() is (error == errno.EACCES)
    assert [path for path in tmp_path.iterdir() if path != release] == []


def test_environments_go_with_the_last_release_that_uses_them(monkeypatch, tmp_path):
    """What a person has put beside them stays, with the environment that it uses."""
    used = {A: C, B: C, D: E, f"{E}.new": "f" * 12, "of-ada": "1" * 12}
    for release, venv in used.items():
        (tmp_path / "releases" / release).mkdir(parents=True)
        (tmp_path / "venvs" / venv).mkdir(parents=True, exist_ok=True)
        (tmp_path / "releases" / release / ".venv").symlink_to(tmp_path / "venvs" / venv)
    (tmp_path / "venvs" / "ada-tries-something").mkdir()
    leaving = f".removing-{'9' * 12}"
    (tmp_path / "releases" / leaving).mkdir()
    params = {"root": str(tmp_path), "keep": [A, "not-here"], "young_seconds": 0}
    for check_mode in (True, False, False):
        again = not check_mode and not (tmp_path / "releases" / B).exists()
        result = ended(monkeypatch, flow_releases, None, params, check_mode)
        removed = [] if again else [leaving, B, D, f"{E}.new", f"venvs/{E}", f"venvs/{'f' * 12}"]
        assert result == {"changed": not again, "releases": [A, "of-ada"], "in_use": [], "removed": removed}
        assert (tmp_path / "releases" / B).exists() is check_mode
    assert {path.name for path in (tmp_path / "releases").iterdir()} == {A, "of-ada"}
    assert {path.name for path in (tmp_path / "venvs").iterdir()} == {C, "1" * 12, "ada-tries-something"}


# --- git ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("repository", "ref", "words"),
    [
        (
            "https://ada:secret@git.example.org/flows.git",
            "main",
            'Refusing to use "https://***@git.example.org/flows.git": it has an account or a credential in it, ',
        ),
        ("https://secret@git.example.org/flows.git", "main", 'Refusing to use "https://***@git.example.org/flows.git"'),
        ("HTTPS://secret:@git.example.org/f", "main", 'Refusing to use "HTTPS://***@git.example.org/f"'),
        (" https://:secret@git.example.org/f", "main", 'Refusing to use " https://***@git.example.org/f"'),
        ("https::https://secret@git.example.org/f", "main", 'Refusing to use "https::https://***@git.example.org/f"'),
        ("ssh://ada:secret@git.example.org/f", "main", 'Refusing to use "ssh://***@git.example.org/f"'),
        ("ada:secret@git.example.org:f.git", "main", 'Refusing to use "***@git.example.org:f.git"'),
        ("git://secret@git.example.org/f", "main", 'Refusing to use "git://***@git.example.org/f"'),
        ("https://git.example.org/f?private_token=secret", "main", 'Refusing to use "https://git.example.org/f?***"'),
        ("--upload-pack=x", "main", '"--upload-pack=x" is no address of a git repository'),
        (" ", "main", '" " is no address'),
        ("../flows", "--help", '"--help" is no branch, tag or commit'),
        ("../flows", "a b", '"a b" is no branch'),
        ("../flows", "", '"" is no branch'),
    ],
)
def test_what_git_is_not_even_asked(repository, ref, words):
    said = git_export.refusal(repository, ref)
    assert said.startswith(words)
    assert "secret" not in said


@pytest.mark.parametrize(
    "repository",
    [
        "git@git.example.org:team/flows.git",
        "ssh://git@git.example.org/flows",
        "https://git.example.org/f",
        ".",
        "git+ssh://git@h/f",
    ],
)
@pytest.mark.parametrize("ref", ["main", "v1.2", "feature/x-1", "0123456789abcdef0123456789abcdef01234567", "HEAD"])
def test_what_git_is_asked(repository, ref):
    assert git_export.refusal(repository, ref) is None


@pytest.mark.parametrize(
    ("name", "target", "out"),
    [
        ("a", "b", False),
        ("sub/a", "../b", False),
        ("sub/a", "../../b", True),
        ("a", "..", True),
        ("a", "/etc/shadow", True),
        ("a", "sub/../../b", True),
        ("a", "..b", False),
    ],
)
def test_links_that_lead_out_of_a_repository(name, target, out):
    assert git_export.leads_out(name, target) is out


# --- flow runs ---------------------------------------------------------------------------------------------------


class Runs:
    """A server on which a run goes through `states`, and whose task runs and logs come in late."""

    def __init__(self, states: list[str], counts: list[tuple[int, int]]) -> None:
        self.states, self.counts = states, counts
        self.deployment: dict[str, Any] | None = {"id": "d", "work_pool_name": "general"}
        self.made: dict[str, Any] | None = None

    def call(self, method: str, path: str, body: Any = None, accept: tuple[int, ...] = ()) -> Any:
        if path.startswith("/deployments/name/"):
            self.asked = path
            return self.deployment
        if path == "/flows/":
            return {"id": f"flow {body['name']}"}
        if path == "/deployments/":
            self.made = body
            return {"id": "d", **body}
        if path == "/deployments/d/create_flow_run":
            return {"id": "r"}
        if path == "/task_runs/count":
            return self.counts[0][0]
        state = self.states.pop(0) if len(self.states) > 1 else self.states[0]
        return {
            "id": "r",
            "name": "brave-owl",
            "state_type": state,
            "state_name": state.title(),
            "state": {"message": "told so"},
        }

    def filter(self, path: str, body: dict[str, Any]) -> list[dict[str, Any]]:
        _, logs = self.counts.pop(0) if len(self.counts) > 1 else self.counts[0]
        # Lines of Prefect's own come with those of the flow, and do not count.
        return [{"message": "smoke: task"}] * logs + [{"message": "Beginning flow run"}] * 9


def run(monkeypatch, server: Runs, check_mode: bool = False, **parameters: Any) -> dict[str, Any]:
    clock = itertools.count()
    monkeypatch.setattr(flow_run, "time", SimpleNamespace(monotonic=lambda: next(clock), sleep=lambda _: None))
    params = {"deployment": "smoke/smoke", "state": "COMPLETED", "task_runs": 3, "log_lines": 5, "timeout": 20}
    params |= {"log_prefix": "smoke:", "definition": None}
    return ended(monkeypatch, flow_run, server, {**params, **parameters}, check_mode)


def test_a_run_is_waited_for_and_so_are_its_task_runs_and_logs(monkeypatch):
    server = Runs(["SCHEDULED", "RUNNING", "COMPLETED"], [(1, 0), (3, 2), (3, 6)])
    result = run(monkeypatch, server)
    assert result["flow_run"] == {"id": "r", "name": "brave-owl", "state": "Completed"}
    assert (result["changed"], result["task_runs"], result["log_lines"]) == (False, 3, 6)


def test_a_run_that_does_not_end_well(monkeypatch):
    with pytest.raises(Ended) as failed:
        run(monkeypatch, Runs(["RUNNING", "FAILED"], [(3, 5)]))
    assert str(failed.value) == (
        'the flow run "brave-owl" of "smoke/smoke" is "Failed" after 3 s, not "COMPLETED": "told so". HINT: look at '
        "its logs in the UI, and at: journalctl --lines 50 --unit 'prefect-worker@*'. After an update of the kit run the "
        "whole site.yml first"
    )


def test_a_run_that_nobody_takes(monkeypatch):
    with pytest.raises(Ended) as failed:
        run(monkeypatch, Runs(["SCHEDULED"], [(0, 0)]))
    assert str(failed.value) == (
        'the flow run "brave-owl" of "smoke/smoke" is "Scheduled" after 23 s, not "COMPLETED": "told so". HINT: does a '
        'worker of the pool "general" run? Look at: systemctl status "prefect-worker@*"'
    )


DEFINITION = {"entrypoint": "smoke.py:smoke", "work_pool_name": "general", "tags": ["prefect-kit"]}


def test_a_deployment_of_the_kits_own_is_made_when_it_is_missing_or_otherwise(monkeypatch):
    for found in None, {"id": "d", **DEFINITION, "work_pool_name": "gpu"}:
        server = Runs(["COMPLETED"], [(3, 5)])
        server.deployment = found
        assert run(monkeypatch, server, deployment="prefect-kit/smoke", definition=DEFINITION)["changed"] is True
        assert server.made == {**DEFINITION, "name": "smoke", "flow_id": "flow prefect-kit"}


def test_a_deployment_that_is_as_defined_is_left_alone(monkeypatch):
    server = Runs(["COMPLETED"], [(3, 5)])
    # What the server adds is no difference.
    server.deployment = {"id": "d", **DEFINITION, "labels": {"prefect.flow.id": "x"}}
    assert run(monkeypatch, server, deployment="prefect-kit/smoke", definition=DEFINITION)["changed"] is False
    assert server.made is None


def test_a_run_whose_logs_are_lost(monkeypatch):
    with pytest.raises(Ended) as failed:
        run(monkeypatch, Runs(["COMPLETED"], [(3, 0)]))
    assert str(failed.value) == (
        'the flow run "brave-owl" of "smoke/smoke" has 3 task runs and 0 log lines on the server; 3 and 5 were made. HINT: '
        "what is between worker and server loses websockets or requests: look at journalctl CONTAINER_TAG=prefect-caddy "
        "and the worker's journal"
    )


def test_no_run_is_made_in_check_mode(monkeypatch):
    result = run(monkeypatch, Runs([], []), check_mode=True)
    assert result == {"changed": False, "skipped": True, "msg": "a flow run is not made in check mode"}


def test_the_name_of_a_flow_may_hold_a_blank(monkeypatch):
    server = Runs(["COMPLETED"], [(3, 5)])
    run(monkeypatch, server, deployment="my flow/smoke")
    assert server.asked == "/deployments/name/my%20flow/smoke"


# --- workers of other hosts --------------------------------------------------------------------------------------


def test_workers_that_are_not_heard_from():
    workers = [{"name": name, "pool": "general"} for name in "abc"]
    assert online.missing(workers, {("general", "a"): "ONLINE", ("general", "b"): "OFFLINE"}) == [
        '"b" of the pool "general" is OFFLINE',
        '"c" of the pool "general" is unknown to the server',
    ]


# --- automations -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wanted", "found", "different"),
    [
        ({"a": 1}, {"a": 1.0, "id": "x"}, False),
        ({"a": 1}, {"a": 2}, True),
        # The server keeps names of events in an order of its own.
        ({"expect": ["x", "y"]}, {"expect": ["y", "x"]}, False),
        ({"expect": ["x"]}, {"expect": ["x", "y"]}, True),
        ([{"type": "a", "state": "CRASHED"}], [{"type": "a", "state": "CRASHED", "force": False}], False),
        ([{"type": "a"}], [{"type": "b"}], True),
        ({"a": {"b": 1}}, {"a": None}, True),
        ({"enabled": True}, {"enabled": False}, True),
    ],
)
def test_an_automation_differs_only_in_what_is_wanted(wanted, found, different):
    assert automation.differs(wanted, found) is different
