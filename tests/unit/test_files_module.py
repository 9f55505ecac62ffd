"""The Ansible module that makes many small files: run as Ansible runs it, on a directory of this machine."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from prefect_backups import placed

MODULE = Path(__file__).resolve().parents[2] / "ansible/library/prefect_files.py"


@pytest.fixture
def run(tmp_path: Path) -> Callable[..., dict[str, Any]]:
    """`run(entry, …, check=False)`: paths are below a temporary directory, owned by whoever runs the tests."""

    def make(*entries: dict[str, Any], check: bool = False) -> dict[str, Any]:
        ours = {"owner": str(os.getuid()), "group": str(os.getgid())}
        given = [{**ours, **entry, "path": str(tmp_path / entry["path"])} for entry in entries]
        record = str(tmp_path.with_name(f"{tmp_path.name}.placed") / "placed.json")
        arguments = {"entries": given, "record": record, "_ansible_check_mode": check, "_ansible_diff": True}
        done = subprocess.run(
            [sys.executable, str(MODULE)],
            input=json.dumps({"ANSIBLE_MODULE_ARGS": arguments}),
            capture_output=True,
            text=True,
        )
        return json.loads(done.stdout)

    return make


FILE = {"path": "a/file", "content": "one\n", "mode": "0640"}
DIRECTORY = {"path": "a", "state": "directory", "mode": "0750"}
LINK = {"path": "link", "state": "link", "target": "a/file"}


def test_it_makes_what_is_missing_and_then_nothing(run, tmp_path):
    said = run(DIRECTORY, FILE, LINK)
    assert said["changed_paths"] == [str(tmp_path / name) for name in ("a", "a/file", "link")]
    assert (tmp_path / "link").read_text() == "one\n"
    assert [(tmp_path / name).stat().st_mode & 0o777 for name in ("a", "a/file")] == [0o750, 0o640]
    again = run(DIRECTORY, FILE, LINK)
    assert (again["changed"], again["changed_paths"], again["diff"]) == (False, [], [])


def test_check_mode_tells_the_truth_and_changes_nothing(run, tmp_path):
    said = run(DIRECTORY, FILE, LINK, check=True)
    assert len(said["changed_paths"]) == 3 and not list(tmp_path.iterdir())
    run(DIRECTORY, FILE, LINK)
    said = run(DIRECTORY, {**FILE, "content": "two\n"}, LINK, check=True)
    assert said["changed_paths"] == [str(tmp_path / "a/file")]
    [diff] = said["diff"]
    assert (diff["before"], diff["after"]) == ("one\n", "two\n")
    assert (tmp_path / "a/file").read_text() == "one\n"


def test_a_mode_alone_is_a_change(run, tmp_path):
    run(DIRECTORY, FILE)
    said = run(DIRECTORY, {**FILE, "mode": "0600"})
    assert said["changed_paths"] == [str(tmp_path / "a/file")]
    assert (tmp_path / "a/file").stat().st_mode & 0o777 == 0o600


def test_a_link_in_the_place_of_a_file_is_replaced_and_not_followed(run, tmp_path):
    (tmp_path / "elsewhere").write_text("somebody's\n")
    (tmp_path / "a").mkdir()
    (tmp_path / "a/file").symlink_to(tmp_path / "elsewhere")
    assert run(FILE)["changed"]
    assert not (tmp_path / "a/file").is_symlink() and (tmp_path / "elsewhere").read_text() == "somebody's\n"
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == ["file"]


def test_a_link_that_leads_elsewhere_is_led_to_its_target(run, tmp_path):
    (tmp_path / "link").symlink_to("old")
    assert run(LINK)["changed"]
    assert (tmp_path / "link").readlink() == Path("a/file")


@pytest.mark.parametrize(
    ("entry", "text"),
    [
        ({"path": "x", "mode": "0644"}, "is a file without content"),
        ({"path": "x", "state": "link"}, "is a link without a target"),
        ({"path": "x", "content": ""}, "has no mode"),
        ({"path": ".", "content": "", "mode": "0644"}, "is a directory, and shall be a file"),
    ],
)
def test_what_cannot_be_made_is_refused_before_anything_is(run, tmp_path, entry, text):
    said = run(DIRECTORY, entry)
    assert said["failed"] and text in said["msg"]
    assert not (tmp_path / "a").exists()


def test_a_file_has_its_name_only_when_its_tool_finds_it_valid(run, tmp_path):
    valid = {"path": "file", "content": "good\n", "mode": "0640", "validate": "grep --quiet good %s"}
    assert run(valid)["changed"]
    said = run({**valid, "content": "bad\n", "validate": "grep good %s /none"})
    assert said["failed"] and "stderr" in said
    assert said["msg"].startswith(f"failed to validate {tmp_path / 'file'}: rc:2 error:grep: /none: No such file")
    assert (tmp_path / "file").read_text() == "good\n"
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    # What is there is not asked about, nor what would be there.
    assert not run({**valid, "validate": "false %s"})["changed"]
    assert run({**valid, "content": "bad\n", "validate": "false %s"}, check=True)["changed"]


def test_a_command_that_would_validate_nothing_is_refused(run, tmp_path):
    said = run({"path": "file", "content": "good\n", "mode": "0640", "validate": "true"})
    assert said["msg"] == f'"validate" of "{tmp_path / "file"}" does not say by %s which file'


def test_the_file_that_was_there_is_kept_where_that_is_asked_for(run, tmp_path):
    entry = {"path": "file", "content": "ours\n", "mode": "0640", "backup": True}
    run(entry)
    assert len([*tmp_path.iterdir()]) == 1
    run({**entry, "content": "new\n"})
    [kept] = [path for path in tmp_path.iterdir() if path.name != "file"]
    assert (kept.read_text(), kept.name.endswith("~")) == ("ours\n", True)
    run({**entry, "content": "new\n"})
    assert len([*tmp_path.iterdir()]) == 2


def test_what_shall_be_absent_is_removed_but_for_a_directory(run, tmp_path):
    (tmp_path / "file").write_text("")
    (tmp_path / "link").symlink_to("nowhere")
    gone = [{"path": "file", "state": "absent"}, {"path": "link", "state": "absent"}]
    assert run(*gone, check=True)["changed"] and len([*tmp_path.iterdir()]) == 2
    assert run(*gone)["changed_paths"] == [str(tmp_path / "file"), str(tmp_path / "link")]
    assert not [*tmp_path.iterdir()] and not run(*gone)["changed"]
    (tmp_path / "a").mkdir()
    said = run({"path": "a", "state": "absent"})
    assert said["msg"] == f'"{tmp_path / "a"}" is a directory, and shall be absent'


def test_what_was_placed_is_recorded_until_it_is_removed(run, tmp_path):
    """For prefect-doctor: which files were changed by hand since (prefect_backups/placed.py reads it)."""
    record = tmp_path.with_name(f"{tmp_path.name}.placed") / "placed.json"
    run(DIRECTORY, FILE, check=True)
    assert not record.exists()
    run(DIRECTORY, FILE, LINK, {"path": "b", "content": "b\n", "mode": "0600"})
    assert [Path(path).name for path in placed.read(record)] == ["file", "b"]
    assert placed.changed(placed.read(record)) == []
    assert record.stat().st_mode & 0o777 == 0o600
    (tmp_path / "a/file").write_text("by hand\n")
    (tmp_path / "b").unlink()
    assert placed.changed(placed.read(record)) == [str(tmp_path / "a/file"), str(tmp_path / "b")]
    # A run that places something else makes nothing well that it does not place; what is gone was removed by a task.
    run(
        {"path": "c", "content": "c\n", "mode": "0600"},
        {"path": "d", "content": "d", "mode": "0600", "validate": "false %s"},
    )
    assert [Path(path).name for path in placed.changed(placed.read(record))] == ["file"]
    assert str(tmp_path / "c") in placed.read(record) and str(tmp_path / "d") not in placed.read(record)
    # A tool of the kit's that changes one says so; of a file of somebody else's nothing is kept.
    placed.note(tmp_path / "a/file", record)
    placed.note(tmp_path / "e", record)
    assert placed.changed(placed.read(record)) == [] and len(placed.read(record)) == 2
    run({"path": "c", "state": "absent"})
    assert len(placed.read(record)) == 1


def test_what_is_gone_soon_is_not_recorded():
    spec = importlib.util.spec_from_file_location(MODULE.stem, MODULE)
    files = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(files)
    entries = [{"path": path, "state": "file", "content": "x"} for path in ("/run/prefect-deploy-once.env", "/etc/a")]
    assert list(files.recorded({"/run/of-before": "0"}, entries)) == ["/etc/a"]
