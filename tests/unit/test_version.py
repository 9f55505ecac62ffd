"""The version of Prefect: what a host runs, what it may become, and that the kit's list of versions is one list."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml
from prefect_preflight import (
    prefect_moved_problems,
    prefect_postgres_problems,
    prefect_postgres_upgrade_problem,
    prefect_running,
    prefect_upgrade_problem,
    prefect_version_problems,
)

from tests.contract import environments

ROOT = Path(__file__).resolve().parents[2]
ROLES = ROOT / "ansible" / "roles"
VERSIONS = yaml.safe_load((ROLES / "prefect/vars/main.yml").read_text())
SUPPORTED = ["3.8.8", "3.9.1", "3.10.0"]
OFFICIAL = "prefecthq/prefect:{}-python3.13".format
OURS = "registry.example.org:5000/tools/prefect:{}-ours.1".format


def load(path: Path) -> ModuleType:
    """A Python file that is no part of a package, as a module."""
    loader = SourceFileLoader(path.stem, str(path))
    module = importlib.util.module_from_spec(importlib.util.spec_from_loader(path.stem, loader))
    loader.exec_module(module)
    return module


checks = load(ROOT / "ansible/filter_plugins/prefect_checks.py")
sys.path.insert(0, str(ROOT / "scripts"))
lock = load(ROOT / "scripts/lock")

# --- the list ----------------------------------------------------------------------------------------------------


def test_the_list_of_versions_is_one():
    listed = VERSIONS["__prefect_supported_versions"]
    assert listed == list(environments.SUPPORTED) == lock.supported(lock.VERSIONS.read_text())
    assert listed == sorted(set(listed), key=lambda version: [int(part) for part in version.split(".")])
    assert VERSIONS["__prefect_new_host_version"] in listed


@pytest.mark.parametrize(
    "directory", ["tests/contract", *(f"ansible/roles/{role}/files" for role in ("workers", "docker_pool"))]
)
def test_each_version_has_a_lock_and_no_other_has(directory):
    found = sorted(path.name for path in (ROOT / directory).glob("*.txt"))
    assert found == sorted(f"prefect-{version}.txt" for version in VERSIONS["__prefect_supported_versions"])
    for name in found:
        version = name.removeprefix("prefect-").removesuffix(".txt")
        assert f"{directory}/prefect-{version}" in lock.LOCKS
        source = (ROOT / directory / f"prefect-{version}.in").read_text()
        text = (ROOT / directory / name).read_text()
        assert f"prefect=={version}" in source.splitlines()
        assert f"\nprefect=={version} \\\n" in text
        # Docker workers need it, and process workers have no use for it.
        assert ("\nprefect-docker==" in text) == ("\nprefect-docker>=" in source) == ("workers" not in directory)


def test_the_roles_choose_the_lock_by_the_version():
    kinds = yaml.safe_load((ROLES / "workers/vars/main.yml").read_text())["__workers_kinds"]
    for kind, role in ("process", "workers"), ("docker", "docker_pool"):
        assert f"/roles/{role}/files/prefect-' ~ __prefect_known_version ~ '.txt'" in kinds[kind]["lock"]


def test_what_is_put_on_a_host_is_never_a_guess():
    """Without the look at the host (--start-at-task) the default would be that of a new one: a downgrade."""
    for name in "prefect_version", "prefect_image":
        known = VERSIONS[f"__prefect_known_{name.removeprefix('prefect_')}"]
        assert known == f"{{{{ {name} if __prefect_running_version is defined else undef(hint=__prefect_unknown) }}}}"
    for path in "stack/templates/stack.env.j2", "flows/templates/flows.env.j2", "docker_pool/tasks/images.yml":
        text = (ROLES / path).read_text()
        assert "__prefect_known_image" in text
        assert not re.search(r"(?<!_)\bprefect_image\b", text)


@pytest.mark.parametrize("playbook", ["deploy.yml", "rollback.yml", "restore.yml"])
def test_playbooks_without_a_preflight_look_first(playbook):
    """They make images of a release, or tell which version runs."""
    roles = [
        task["ansible.builtin.import_role"]
        if "ansible.builtin.import_role" in task
        else task["ansible.builtin.include_role"]
        for play in yaml.safe_load((ROOT / "ansible" / playbook).read_text())
        for task in play["tasks"]
        if {"ansible.builtin.import_role", "ansible.builtin.include_role"} & set(task)
    ]
    look = roles.index({"name": "prefect", "tasks_from": "running"})
    assert (
        roles.index({"name": "checks"} if playbook == "restore.yml" else {"name": "flows", "tasks_from": "deploy"})
        > look
    )


# --- what a host runs --------------------------------------------------------------------------------------------

NOTHING = {"image": "", "version": "", "before": "", "postgres": "", "postgres_image": "", "moved": ""}
UPGRADED = """{
  "before": "prefecthq/prefect:3.8.8-python3.13",
  "after": "prefecthq/prefect:3.9.1-python3.13",
  "at": 1.0
}"""


@pytest.mark.parametrize(
    ("image", "locked", "version"),
    [
        (OFFICIAL("3.9.1"), "3.8.8", "3.9.1"),
        (OURS("3.8.8"), "", "3.8.8"),
        (f"prefecthq/prefect:3.9.1@sha256:{'0a' * 32}", "", "3.9.1"),
        # The tag tells nothing; the workers have the server's version.
        ("registry.example.org:5000/prefect:release-7", "3.8.8", "3.8.8"),
        (f"prefecthq/prefect@sha256:{'0a' * 32}", "3.9.1", "3.9.1"),
        # Cut off before it had workers: it may become anything.
        ("prefecthq/prefect:release-7", "", ""),
    ],
)
def test_what_a_server_runs(image, locked, version):
    seen = f"debian\r\n13\r\nsystemd\r\nPREFECT_IMAGE={image}\r\n" + (f"prefect=={locked} \\\r\n" if locked else "")
    assert prefect_running(seen) == NOTHING | {"image": image, "version": version}


def test_what_a_host_without_a_server_runs():
    assert prefect_running("") == prefect_running("debian\n13\n\n") == NOTHING
    # A host of the group workers.
    assert prefect_running("prefect==3.9.1 \\\n") == NOTHING


def test_where_a_server_comes_from():
    at = f"PREFECT_IMAGE={OFFICIAL('3.9.1')}\n"
    assert prefect_running(at + UPGRADED)["before"] == "3.8.8"
    # Its image is another one by now: the record is of something else.
    assert prefect_running(f"PREFECT_IMAGE={OFFICIAL('3.10.0')}\n" + UPGRADED)["before"] == ""
    assert prefect_running(at + UPGRADED.replace("3.8.8", "release"))["before"] == ""


def test_the_look_at_a_host_finds_what_it_is_to_find(tmp_path):
    """The very command of the preflight, on files as the roles and the tools write them."""
    etc, root, state = (tmp_path / name for name in ("etc", "root", "state"))
    command = VERSIONS["__prefect_running_look"]
    for name, path in ("etc", etc), ("root", root), ("state", state):
        command = command.replace(f"{{{{ __prefect_{name} }}}}", str(path))

    def look() -> dict[str, str]:
        return prefect_running(subprocess.run(["sh", "-c", command], capture_output=True, text=True).stdout)

    assert look() == NOTHING
    for path in (etc, root / "worker", state / "backups"):
        path.mkdir(parents=True)
    template = (ROLES / "stack/templates/stack.env.j2").read_text()
    images = {"__prefect_known_image": "prefecthq/prefect:release-7", "prefect_postgres_image": "postgres:17.12-trixie"}
    for name, image in images.items():
        template = template.replace(f"{{{{ {name} }}}}", image)
    (etc / "stack.env").write_text(template)
    (root / "worker/requirements.txt").write_text((ROLES / "workers/files/prefect-3.9.1.txt").read_text())
    runs = {"image": "prefecthq/prefect:release-7", "version": "3.9.1"}
    runs |= {"postgres": "17", "postgres_image": "postgres:17.12-trixie"}
    assert look() == NOTHING | runs
    (state / "backups/upgraded.json").write_text(UPGRADED.replace(OFFICIAL("3.9.1"), "prefecthq/prefect:release-7"))
    assert look() == NOTHING | runs | {"before": "3.8.8"}
    (etc / "moved.env").write_text('MOVED_TO=203.0.113.20\nMOVED_UNITS="prefect-worker@a.service"\n')
    assert look()["moved"] == "203.0.113.20"
    (problem,) = prefect_moved_problems(look(), "203.0.113.10")
    assert problem.startswith(
        'its server has moved to "203.0.113.20", and must not serve in two places; set ansible_host'
    )
    assert "ansible-playbook move.yml -e move_from=203.0.113.10" in problem
    assert prefect_moved_problems(NOTHING, "203.0.113.10") == []


def test_which_postgres_a_server_runs():
    assert prefect_running("POSTGRES_IMAGE=registry:5000/pg:18.6@sha256:00\n")["postgres"] == "18"
    assert prefect_running("POSTGRES_IMAGE=mine\n")["postgres"] == ""


def test_a_host_keeps_its_major_version_of_postgres():
    runs = NOTHING | {"image": "i", "postgres": "17", "postgres_image": "postgres:17.12-trixie"}
    assert prefect_postgres_problems("postgres:17.13-trixie", runs) == []
    assert prefect_postgres_problems("postgres:18.6-trixie", NOTHING) == []
    assert prefect_postgres_problems("postgres:18.6-trixie", runs) == [
        'prefect_postgres_image is "postgres:18.6-trixie"; the host runs Postgres 17, whose files Postgres 18 cannot read; '
        "bring them there: ansible-playbook upgrade.yml --tags postgres -e prefect_postgres_image=postgres:18.6-trixie"
    ]
    assert prefect_postgres_problems("postgres:18.6-trixie", runs, upgrading=True) == []
    # A new server, which is told again what it is to begin with.
    assert prefect_postgres_problems("postgres:18.6-trixie", runs, restoring=True) == []
    later = runs | {"postgres": "18", "postgres_image": "postgres:18.6-trixie"}
    assert "take it out of the inventory" in prefect_postgres_problems("postgres:17.12-trixie", later)[0]


def test_what_is_no_upgrade_of_postgres():
    runs = NOTHING | {"version": "3.9.1", "postgres": "17", "postgres_image": "postgres:17.12-trixie"}

    def problem(image: str, here: dict[str, str] = runs, back: bool = False, tools: bool = True) -> str:
        return prefect_postgres_upgrade_problem(image, here, back, tools)

    assert problem("postgres:18.6-trixie") == problem("postgres:17.12-trixie") == ""
    assert problem("postgres:17.12-trixie", back=True) == ""
    assert "site.yml --tags stack" in problem("postgres:17.13-trixie")
    assert "no Prefect server yet" in problem("postgres:18.6-trixie", NOTHING)
    assert "another state of the kit" in problem("postgres:18.6-trixie", tools=False)
    later = runs | {"postgres": "18", "postgres_image": "postgres:18.6-trixie"}
    assert "-e back=true" in problem("postgres:17.12-trixie", later)


# --- what it may become ------------------------------------------------------------------------------------------


@pytest.fixture
def flows(tmp_path) -> Path:
    (tmp_path / "requirements.txt").write_text("prefect==3.8.8 \\\n    --hash=sha256:00\n")
    return tmp_path


@pytest.fixture
def said(flows):
    """`said("3.9.1", here="3.8.8")`: what is said of a version on a host that runs another one."""

    def problems(version: str, image: str = "", here: str = "", before: str = "", **more: Any) -> list[str]:
        settings = {
            "prefect_version": version,
            "prefect_image": image or OFFICIAL(version),
            "flows_directory": str(flows),
        }
        return prefect_version_problems(settings, {"image": "", "version": here, "before": before}, SUPPORTED, **more)

    return problems


NEWER = (
    'the host runs "3.8.8", and site.yml keeps that. Run instead: ansible-playbook upgrade.yml -e prefect_version=3.9.1'
)


def test_a_host_keeps_its_version(said):
    assert said("3.8.8", here="3.8.8") == said("3.9.1", here="3.9.1") == []
    # A new one gets what it is told to get.
    assert said("3.8.8") == said("3.9.1") == []


def test_images_of_the_version_that_runs(said):
    for image in OURS("3.9.1"), "prefecthq/prefect:release-7", f"prefecthq/prefect@sha256:{'0a' * 32}":
        assert said("3.9.1", image, here="3.9.1") == said("3.9.1", image) == []


def test_a_newer_version(said):
    assert said("3.9.1", here="3.8.8") == [
        f'prefect_version is "3.9.1"; {NEWER} (and take prefect_version out of the inventory)'
    ]
    assert said("3.8.8", OURS("3.9.1"), here="3.8.8") == [
        f'prefect_image is "{OURS("3.9.1")}", which is Prefect "3.9.1"; {NEWER}'
    ]
    # 10 is more than 9.
    assert "prefect_version=3.10.0" in said("3.10.0", here="3.9.1")[0]


def test_an_older_version_that_the_host_came_from(said):
    words = 'the host runs "3.9.1", and site.yml keeps that. To go back, run: ansible-playbook upgrade.yml -e back=true. To stay,'
    assert said("3.8.8", here="3.9.1", before="3.8.8") == [
        f'prefect_version is "3.8.8"; {words} take prefect_version out of the inventory'
    ]
    assert said("3.9.1", OURS("3.8.8"), here="3.9.1", before="3.8.8") == [
        f'prefect_image is "{OURS("3.8.8")}", which is Prefect "3.8.8"; {words} set prefect_image to an image of "3.9.1"'
    ]


def test_an_older_version_that_it_did_not_come_from(said):
    for before in "", "3.9.1":
        assert said("3.8.8", here="3.10.0", before=before) == [
            'prefect_version is "3.8.8"; the host runs "3.10.0", and site.yml keeps that. A database does not go back to an older '
            'version: restore a backup of "3.8.8" on a new server (prefect_restore_from). To stay, take prefect_version out '
            "of the inventory"
        ]


def test_an_upgrade_is_let_through(said):
    assert said("3.9.1", here="3.8.8", upgrading=True) == said("3.8.8", here="3.9.1", upgrading=True) == []
    # It leaves nothing to guess either.
    assert said("3.9.1", OURS("3.8.8"), here="3.8.8", upgrading=True) == [
        f'prefect_image is "{OURS("3.8.8")}"; that is not the version "3.9.1" of prefect_version'
    ]


def test_a_new_server_may_become_as_new_as_the_backup_that_it_begins_with(said):
    assert said("3.9.1", here="3.8.8", restoring=True) == []
    assert len(said("3.8.8", here="3.9.1", restoring=True)) == 1


def test_version_and_image_of_a_new_host_that_differ(said):
    assert said("3.8.8", OURS("3.9.1")) == [
        f'prefect_image is "{OURS("3.9.1")}"; that is not the version "3.8.8" of prefect_version'
    ]


def test_a_host_that_this_kit_does_not_support(said):
    words = 'this release of the kit supports "3.8.8", "3.9.1" and "3.10.0"'
    assert said("3.7.0", here="3.7.0") == [
        f'it runs Prefect "3.7.0"; {words}; upgrade it: ansible-playbook upgrade.yml -e prefect_version=3.8.8'
    ]
    assert said("3.10.1", here="3.10.1") == [
        f'it runs Prefect "3.10.1"; {words}; use the release of the kit that it was made with, or a newer one (git pull)'
    ]
    assert said("3.9.1", here="3.7.0", upgrading=True) == []


def test_flows_that_are_newer_than_the_server(said, flows):
    (flows / "requirements.txt").write_text("prefect==3.9.1\n")
    problem = (
        f'flows_directory is "{flows}"; its requirements.txt has Prefect "3.9.1", which is newer than the server\'s "3.8.8" '
        f"(prefect_version); write prefect==3.8.8 in its requirements.in, and: ./scripts/lock {flows}"
    )
    assert said("3.8.8", here="3.8.8") == said("3.8.8") == [problem]
    assert said("3.9.1", here="3.9.1") == said("3.10.0", here="3.10.0") == []


# --- what is told of it ------------------------------------------------------------------------------------------


def test_the_summary_offers_what_a_new_host_would_get():
    assert checks.prefect_upgrade_offer("3.8.8", "3.9.1") == (
        "Prefect      3.8.8; 3.9.1 is supported: ansible-playbook upgrade.yml -e prefect_version=3.9.1"
    )
    for running, newest in ("3.8.8", "3.8.8"), ("3.9.1", "3.8.8"), ("3.10.0", "3.9.1"):
        assert checks.prefect_upgrade_offer(running, newest) == ""


# --- what upgrade.yml refuses ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wanted", "here", "before", "back", "tools", "says"),
    [
        ("3.9.1", "3.8.8", "", False, True, ""),
        # A second run goes on with the workers.
        ("3.9.1", "3.9.1", "3.8.8", False, True, ""),
        ("3.9.1", "3.9.1", "3.8.8", True, True, ""),
        ("3.9.1", "", "", False, True, "it has no Prefect server yet; make it: ansible-playbook site.yml"),
        ("3.9.1", "3.8.8", "", False, False, "bring them up to date first: ansible-playbook site.yml"),
        ("3.9.1", "3.8.8", "", True, True, 'it runs Prefect "3.8.8", and there is no upgrade to take back'),
        ("3.8.8", "3.10.0", "", False, True, 'prefect_version is "3.8.8"; it runs the newer "3.10.0"'),
    ],
)
def test_what_is_no_upgrade_is_refused(wanted, here, before, back, tools, says):
    problem = prefect_upgrade_problem(wanted, {"image": "i", "version": here, "before": before}, back, tools)
    assert (says in problem) if says else problem == ""
