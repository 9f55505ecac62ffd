"""Releases of flows: deploy.yml and rollback.yml, and what runs, and stays on the host, meanwhile.

The flows are a small git repository of the test's own. Its one flow says which code it began with, waits until it is
told to go on, and imports the rest of its code only then.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

KIT_FLOWS = Path(__file__).parents[2] / "flows"
RELEASES = "/opt/prefect/flows/releases"
ENDS = {"COMPLETED", "FAILED", "CRASHED", "CANCELLED"}
SECONDS_TO_ARRIVE = 120
FLOW = '''
import time
from pathlib import Path

from prefect import flow

VERSION = "{version}"


@flow(log_prints=True)
def code(wait: str = ""):
    """Say which code this is, at the beginning and at the end."""
    print(f"begun with {{VERSION}}")
    while wait and not (Path.home() / wait).exists():
        time.sleep(0.2)
    import late

    print(f"ended with {{late.VERSION}}")
'''
# Imported a third time, in the midst of the deploy itself, it ends the program.
BREAKS_OFF = """
import os

from prefect import flow

os.environ["IMPORTED"] = str(int(os.environ.get("IMPORTED", 0)) + 1)
if os.environ["IMPORTED"] == "3":
    raise SystemExit("broken off")


@flow
def breaks_off():
    pass
"""
# A release without changes, on a machine that may be busy; README names what it takes on a free one.
SECONDS_WITHOUT_CHANGES = 60


class Repository:
    """A git repository with flows, of which each commit says another version."""

    def __init__(self, path: Path) -> None:
        self.path = path
        (path / "flows").mkdir(parents=True)
        self.git("init", "--quiet", "--initial-branch", "main")
        shutil.copy(KIT_FLOWS / "requirements.txt", path / "flows")

    def git(self, *arguments: str) -> str:
        who = ["-c", "user.name=Test", "-c", "user.email=test@lab.test"]
        command = ["git", "-C", str(self.path), *who, *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    def commit(self, version: str, more: Sequence[dict[str, Any]] = (), **changes: Any) -> str:
        """Write the flow, with a tag of the version's name, and commit it; gives the commit.

        Its prefect.yaml is a plain one, without a line that only the kit knows. `changes` are made to its deployment;
        `more` deployments follow it, with changes of their own.
        """
        deployment = {"name": "code", "entrypoint": "code.py:code", "work_pool": {"name": "general"}, **changes}
        deployments = [deployment, *({**deployment, **other} for other in more)]
        definition = {"name": "test", "deployments": deployments}
        (self.path / "flows" / "prefect.yaml").write_text(yaml.safe_dump(definition))
        (self.path / "flows" / "code.py").write_text(FLOW.format(version=version))
        (self.path / "flows" / "late.py").write_text(f'VERSION = "{version}"\n')
        self.git("add", "--all")
        self.git("commit", "--quiet", "--message", f"Version {version}")
        self.git("tag", version)
        return self.git("rev-parse", "HEAD")

    def given(self, ref: str, **more: Any) -> tuple[str, str]:
        """The arguments of deploy.yml for a ref of it."""
        extra = {"flows_git": str(self.path), "flows_git_directory": "flows", "flows_ref": ref, **more}
        return "--extra-vars", json.dumps(extra)


class Runs:
    """Runs of the deployment code/code."""

    def __init__(self, endpoint: Any) -> None:
        self.endpoint = endpoint

    def deployment(self) -> dict[str, Any]:
        return self.endpoint.get("/api/deployments/name/code/code").json()

    def start(self, wait: str = "") -> str:
        path = f"/api/deployments/{self.deployment()['id']}/create_flow_run"
        return self.endpoint.post(path, {"parameters": {"wait": wait}}).raise_for_status().json()["id"]

    def logs(self, run: str) -> str:
        lines = self.endpoint.post("/api/logs/filter", {"logs": {"flow_run_id": {"any_": [run]}}, "limit": 200}).json()
        return "\n".join(line["message"] for line in lines)

    def state(self, run: str) -> str:
        return self.endpoint.get(f"/api/flow_runs/{run}").json()["state"]["type"]

    def until(self, what: str, run: str, condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + SECONDS_TO_ARRIVE
        while not condition():
            assert time.monotonic() < deadline, f"{what}: run is {self.state(run)}, logs: {self.logs(run)}"
            time.sleep(0.5)

    def said(self, run: str) -> list[str]:
        """Wait for the end of a run; gives what the flow printed."""
        self.until("the end", run, lambda: self.state(run) in ENDS)
        self.until("the last line", run, lambda: "ended with" in self.logs(run))
        return re.findall(r"(?:begun|ended) with \w+", self.logs(run))


def release_of(run: Any) -> str:
    """The release that a playbook says it has deployed."""
    found = re.search(r"Release ([0-9a-f]{12}) of", run.joined)
    assert found, run.stdout[-3000:]
    return found.group(1)


def on_host(host: Any) -> set[str]:
    return set(host.check_output(f"ls {RELEASES}").split())


@pytest.fixture(scope="module")
def runs(endpoint: Any) -> Runs:
    return Runs(endpoint)


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Repository:
    made = Repository(tmp_path_factory.mktemp("releases") / "repository")
    made.commit("one")
    made.commit("two", schedules=[{"slug": "yearly", "cron": "0 0 1 1 *"}])
    made.commit("three")
    return made


@pytest.fixture(scope="module", autouse=True)
def the_kit_s_flows_come_back(playbook: Any, vps: Any, endpoint: Any) -> Iterator[None]:
    """Other tests want the deployments of flows/, and no more."""
    yield
    if (person := endpoint.get("/api/deployments/name/hello/of-ada")).status_code == 200:
        endpoint.delete(f"/api/deployments/{person.json()['id']}")
    playbook("deploy.yml", "--extra-vars", "flows_remove_deployments=true")
    assert playbook("site.yml", "--tags", "flows").recap["changed"] == 0


@pytest.fixture(scope="module")
def one(playbook: Any, repository: Repository, vps: Any, endpoint: Any) -> str:
    """The release of the tag `one`, deployed in the place of the kit's own flows; a person's deployment is there too."""
    person = endpoint.get("/api/deployments/name/hello/hello").raise_for_status().json()
    copied = {name: person[name] for name in ("flow_id", "entrypoint", "version", "pull_steps", "job_variables")}
    endpoint.post("/api/deployments/", {**copied, "name": "of-ada", "work_pool_name": "general"}).raise_for_status()
    refused = playbook("deploy.yml", *repository.given("one"), check=False)
    assert refused.returncode
    assert (
        "prefect.yaml has 1 deployment, and deploying it would remove all 20 that earlier releases made: again/again, "
        in (refused.joined)
    )
    assert "hello/of-ada" not in refused.joined
    assert "To remove them: -e flows_remove_deployments=true" in refused.joined
    assert "No deployment has been touched." in refused.joined
    run = playbook("deploy.yml", *repository.given("one", flows_remove_deployments=True))
    # Copied from one of the kit's, and nobody's but the person's.
    assert endpoint.get("/api/deployments/name/hello/of-ada").status_code == 200
    assert (
        "Added where prefect.yaml does not say it: version (1 of 1), job variable command (1 of 1), pull step"
        in run.joined
    )
    assert "Removed, because prefect.yaml no longer has it: again/again, branches/branches, " in run.joined
    commit = repository.git("rev-parse", "one")
    assert f"of {repository.path} one (commit {commit[:12]}, flows): Version one" in run.joined
    assert "1 new" in run.joined
    return release_of(run)


def test_a_tag_of_a_git_repository_is_deployed(one, host, runs, repository):
    deployment = runs.deployment()
    assert deployment["version"] == one
    assert deployment["job_variables"] == {
        "command": f"{RELEASES}/{one}/.venv/bin/python -m prefect.engine",
        "env": {"RELEASE_DIRECTORY": f"{RELEASES}/{one}", "RELEASE_DEPLOYMENT": "code/code"},
    }
    assert not host.file("/run/prefect-deploy-once.env").exists
    last = json.loads(host.check_output("tail -n 1 /opt/prefect/flows/history"))
    assert (last["release"], last["commit"]) == (one, repository.git("rev-parse", "one"))
    assert not list(Path("/tmp").glob("prefect-flows-*"))  # noqa: S108  the export is gone


def test_without_changes_it_takes_seconds_and_changes_nothing(one, playbook, repository, capsys):
    run = playbook("deploy.yml", *repository.given("one"))
    assert run.recap["changed"] == 0, run.changed_tasks
    assert "It was deployed already: nothing to do." in run.joined
    with capsys.disabled():
        print(f"\ndeploy.yml without changes: {run.seconds:.1f} s")
    assert run.seconds < SECONDS_WITHOUT_CHANGES


def test_a_run_ends_on_the_release_it_began_with(one, playbook, repository, runs, host, capsys):
    """Two deploys go by meanwhile, of which the second removes all that nobody needs: the run's release stays."""
    soon = {"flows_keep_releases": 0, "__flows_young_seconds": 0}
    old = runs.start(wait="go")
    runs.until("the first line", old, lambda: "begun with one" in runs.logs(old))
    try:
        run = playbook("deploy.yml", *repository.given("two"))
        two = release_of(run)
        with capsys.disabled():
            print(f"\ndeploy.yml with changed code: {run.seconds:.1f} s")
        assert [schedule["slug"] for schedule in runs.deployment()["schedules"]] == ["yearly"]
        assert runs.said(runs.start()) == ["begun with two", "ended with two"]

        playbook("deploy.yml", *repository.given("three", **soon))
        three = release_of(playbook("deploy.yml", *repository.given("three", **soon)))
        assert runs.said(runs.start()) == ["begun with three", "ended with three"]
        # Prefect by itself would go on with the schedule that the release no longer has.
        assert runs.deployment()["schedules"] == []
        assert two not in on_host(host)
        assert {one, three} <= on_host(host)
        assert runs.state(old) == "RUNNING"
    finally:
        host.check_output("touch /var/lib/prefect-worker/general-1/go")
    assert runs.said(old) == ["begun with one", "ended with one"]
    host.check_output("rm /var/lib/prefect-worker/general-1/go")

    run = playbook("deploy.yml", *repository.given("three", **soon))
    assert f"no longer used: {one}" in run.joined, run.stdout[-2000:]
    assert not {one, two} & on_host(host)
    # Its environment is still there: the three have it in common.
    assert runs.said(runs.start()) == ["begun with three", "ended with three"]


def test_back_and_forward_again(one, playbook, repository, runs):
    first = runs.deployment()["version"]
    second = release_of(playbook("deploy.yml", *repository.given("two")))

    back = playbook("rollback.yml")
    assert release_of(back) == first
    assert "The next deploy.yml or site.yml deploys what the inventory says" in back.joined
    assert runs.said(runs.start()) == ["begun with three", "ended with three"]

    assert release_of(playbook("rollback.yml")) == second
    assert runs.deployment()["version"] == second
    # Nothing of it is in the way of what comes next.
    assert playbook("deploy.yml", *repository.given("two")).recap["changed"] == 0

    wrong = playbook("rollback.yml", "--extra-vars", "release=0123456789ab", check=False)
    assert wrong.returncode
    assert 'Refusing to go back: the release "0123456789ab" is not on' in wrong.joined
    assert f"{first} " in wrong.joined
    assert f"{second} " in wrong.joined
    assert runs.deployment()["version"] == second


def test_a_release_that_does_not_import_is_refused(playbook, endpoint, host, tmp_path):
    """All or none: no deployment points to it, and the reason is in the playbook's words."""
    before = {entry["id"]: entry["updated"] for entry in endpoint.post("/api/deployments/filter", {}).json()}
    flows = tmp_path / "flows"
    shutil.copytree(KIT_FLOWS, flows, ignore=shutil.ignore_patterns("__pycache__"))
    (flows / "hello.py").write_text("import no_such_module\n")
    done = playbook("deploy.yml", "--extra-vars", json.dumps({"flows_directory": str(flows)}), check=False)
    assert done.returncode
    assert '"hello.py:hello" does not import' in done.joined
    assert "no_such_module" in done.joined
    assert "No deployment has been touched." in done.joined
    after = {entry["id"]: entry["updated"] for entry in endpoint.post("/api/deployments/filter", {}).json()}
    assert before.keys() == after.keys()
    assert host.check_output("systemctl --failed --plain --no-legend") == ""


def test_a_release_whose_deployments_are_not_valid_is_refused(one, playbook, repository, runs, host):
    """Everything that is wrong is said at once; the live deployments are as they were."""
    before = runs.deployment()
    pool = {**before["job_variables"], "stream_output": "perhaps"}
    repository.commit(
        "broken",
        work_pool={"name": "general", "work_queue_name": "none-such", "job_variables": pool},
        parameters={"wait": ["no", "text"]},
        concurrency_limit=0,
    )
    done = playbook("deploy.yml", *repository.given("broken"), check=False)
    assert done.returncode
    for words in (
        'the pool "general" has no queue "none-such", only default, high, low',
        'deployment "code/code": parameters: ',
        'deployment "code/code": job_variables: ',
        'deployment "code/code": concurrency_limit: 0 is not 1 or more',
        "No deployment has been touched.",
    ):
        assert words in done.joined
    after = runs.deployment()
    for volatile in ("updated", "last_polled", "status"):
        before.pop(volatile, None), after.pop(volatile, None)
    assert after == before
    assert host.check_output("systemctl --failed --plain --no-legend") == ""


def test_a_deploy_that_breaks_off_is_taken_back(one, playbook, repository, runs, endpoint, host):
    """The first deployment has changed, and the second is not there yet, when the deploy dies."""
    live = runs.deployment()["version"]
    (repository.path / "flows" / "breaks_off.py").write_text(BREAKS_OFF)
    repository.commit("breaks-off", more=[{"name": "second", "entrypoint": "breaks_off.py:breaks_off"}])
    done = playbook("deploy.yml", *repository.given("breaks-off"), check=False)
    assert done.returncode
    assert f"The deployments that it had changed are those of the release {live} again." in done.joined
    assert runs.deployment()["version"] == live
    assert runs.said(runs.start())[0] != "begun with breaks-off"
    assert host.check_output("systemctl --failed --plain --no-legend") == ""


def test_a_ref_that_is_not_there_is_refused(playbook, repository):
    done = playbook("deploy.yml", *repository.given("none-such"), check=False)
    assert done.returncode
    assert f'"{repository.path}" has no branch, tag or commit "none-such"' in done.joined
    assert done.recap["changed"] == 0


def test_for_development_a_run_clones_its_code(one, runs, host, endpoint):
    """No release: the worker clones a repository for each run (flows/README.md); the interpreter is a release's."""
    version = runs.deployment()["version"]
    host.check_output("command -v git || apt-get install --quiet --yes --no-install-recommends git")
    host.check_output("rm -rf /srv/flows.git && git init --quiet --initial-branch mine /srv/flows.git")
    for name, content in {"code.py": FLOW.format(version="cloned"), "late.py": 'VERSION = "cloned"\n'}.items():
        host.check_output("printf %%s %s > /srv/flows.git/%s", content, name)
    who = "-c user.name=Test -c user.email=test@lab.test"
    host.check_output(f"cd /srv/flows.git && git add . && git {who} commit --quiet --message x")
    # git reads no repository of somebody else's.
    host.check_output("chown -R prefect_general-1: /srv/flows.git")
    clone = {"repository": "file:///srv/flows.git", "branch": "mine"}
    made = endpoint.post(
        "/api/deployments/",
        {
            "name": "dev",
            "flow_id": runs.deployment()["flow_id"],
            "entrypoint": "code.py:code",
            "pull_steps": [{"prefect.deployments.steps.git_clone": clone}],
            "work_pool_name": "general",
            "job_variables": {"command": f"{RELEASES}/{version}/.venv/bin/python -m prefect.engine"},
        },
    ).raise_for_status()
    deployment = made.json()["id"]
    try:
        run = endpoint.post(f"/api/deployments/{deployment}/create_flow_run", {}).raise_for_status().json()["id"]
        assert runs.said(run) == ["begun with cloned", "ended with cloned"]
    finally:
        endpoint.delete(f"/api/deployments/{deployment}")
        host.check_output("rm -rf /srv/flows.git")
