"""What roles and playbooks include is there: Ansible itself looks only when it comes to it, which may be the bad night."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

ANSIBLE = Path(__file__).resolve().parents[2] / "ansible"
FILES = sorted([*ANSIBLE.glob("*.yml"), *ANSIBLE.glob("roles/*/tasks/*.yml"), *ANSIBLE.glob("roles/*/handlers/*.yml")])


def tasks_of(node: Any) -> Iterator[dict[str, Any]]:
    """Every task of a file, those of plays and blocks included."""
    for task in node if isinstance(node, list) else []:
        yield task
        for inner in ("block", "rescue", "always", "tasks", "pre_tasks", "post_tasks", "handlers"):
            yield from tasks_of(task.get(inner))


def included(file: Path) -> Iterator[Path]:
    """The files that a file includes or imports."""
    for task in tasks_of(yaml.safe_load(file.read_text())):
        for how in ("include", "import"):
            if name := task.get(f"ansible.builtin.{how}_tasks"):
                yield file.parent / name
            role = task.get(f"ansible.builtin.{how}_role")
            # One of them does nothing by itself: it is there for its settings.
            if role and (role["name"] != "prefect" or "tasks_from" in role):
                yield ANSIBLE / "roles" / role["name"] / "tasks" / f"{role.get('tasks_from', 'main')}.yml"


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(ANSIBLE)))
def test_what_is_included_is_there(file):
    assert [path for path in included(file) if not path.is_file()] == []


def test_no_task_file_is_left_that_nothing_includes():
    used = {path.resolve() for file in FILES for path in included(file)}
    tasks = {file.resolve() for file in FILES if file.parent.name == "tasks"}
    # Each role's main.yml is there for whoever names the role, as its meta/main.yml does of others.
    assert {file for file in tasks - used if file.name != "main.yml"} == set()


@pytest.mark.parametrize("playbook", ["site.yml", "upgrade.yml", "move.yml"])
def test_a_play_with_the_preflight_knows_the_settings_that_it_looks_at(playbook):
    wanted = set(yaml.safe_load((ANSIBLE / "roles/preflight/vars/main.yml").read_text())["__preflight_roles"])
    # Each of the others depends on it.
    wanted.discard("prefect")
    plays = yaml.safe_load((ANSIBLE / playbook).read_text())
    known = [
        {
            task["ansible.builtin.import_role"]["name"]
            for task in tasks_of([play])
            if "ansible.builtin.import_role" in task
        }
        for play in plays
    ]
    (roles,) = [roles for roles in known if "preflight" in roles]
    assert roles >= wanted
