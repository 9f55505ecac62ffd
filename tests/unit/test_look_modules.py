"""The Ansible modules that look at a host's files, run as Ansible runs them: prefect_look and prefect_applied."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

LIBRARY = Path(__file__).resolve().parents[2] / "ansible/library"


def run(module: str, **arguments: Any) -> dict[str, Any]:
    """What a module gives back."""
    done = subprocess.run(
        [sys.executable, str(LIBRARY / f"{module}.py")],
        input=json.dumps({"ANSIBLE_MODULE_ARGS": arguments}),
        capture_output=True,
        text=True,
        check=False,
    )
    return json.loads(done.stdout)


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """Two files of settings, one of secrets, and two links, one of which leads nowhere."""
    (tmp_path / "a.env").write_text("A=1\n")
    (tmp_path / "b.env").write_text("B=2\n")
    (tmp_path / "b.secret.env").write_text("PASSWORD=x\n")
    (tmp_path / "current").symlink_to("a.env")
    (tmp_path / "dangling").symlink_to("gone")
    return tmp_path


def test_what_is_there_and_what_is_not(place):
    asked = [str(place), str(place / "a.env"), str(place / "current"), str(place / "dangling"), str(place / "gone")]
    found = run("prefect_look", exist=asked)
    assert list(found["exists"].items()) == list(zip(asked, [True, True, True, False, False], strict=True))
    assert found["changed"] is False


def test_where_links_lead(place):
    asked = [str(place / "current"), str(place / "dangling"), str(place / "a.env"), str(place / "gone")]
    assert list(run("prefect_look", links=asked)["links"].values()) == ["a.env", "gone", "", ""]


def test_whose_files_are(place):
    asked = [str(place), str(place / "dangling"), str(place / "gone")]
    assert list(run("prefect_look", owners=asked)["owners"].values()) == [place.owner(), place.owner(), ""]


def test_files_are_read_but_for_those_that_are_left_out(place):
    found = run(
        "prefect_look",
        read=[str(place / "*.env"), str(place / "a.env"), str(place / "gone")],
        leave_out=["*.secret.env"],
    )
    assert found["text"] == {str(place / "a.env"): "A=1\n", str(place / "b.env"): "B=2\n"}
    assert run("prefect_look", read=[str(place / "no-such-directory/*.env")])["text"] == {}


def test_a_file_that_is_no_text_is_no_error(place):
    (place / "c.env").write_bytes(b"\xff\xfe")
    assert len(run("prefect_look", read=[str(place / "c.env")])["text"][str(place / "c.env")]) == 2


def applied(place: Path, also: str = "") -> dict[str, Any]:
    one = {
        "name": "a",
        "stamp": str(place / "a.applied"),
        "files": [str(place / "a.env"), str(place / "*.conf")],
        "also": also,
    }
    return run("prefect_applied", services=[one])


def test_a_service_is_stale_until_its_stamp_is_written_and_when_anything_changes(place):
    first = applied(place)
    assert first["stale"] == ["a"] and first["changed"] is False
    # The very hash that the playbook made before this module was: hosts from then need no restart.
    content = hashlib.sha256(b"A=1\n").hexdigest()
    assert first["wanted"]["a"] == hashlib.sha256(content.encode()).hexdigest()

    (place / "a.applied").write_text(first["wanted"]["a"] + "\n")
    assert applied(place)["stale"] == []
    assert applied(place, also="release 2")["stale"] == ["a"]

    (place / "more.conf").write_text("[Service]\n")
    assert applied(place)["stale"] == ["a"]
    (place / "more.conf").unlink()
    assert applied(place)["stale"] == []

    (place / "a.env").write_text("A=3\n")
    assert applied(place)["stale"] == ["a"]


def test_links_and_directories_are_no_part_of_it(place):
    (place / "a.applied").write_text(applied(place)["wanted"]["a"])
    (place / "link.conf").symlink_to("b.env")
    (place / "d.conf").mkdir()
    assert applied(place)["stale"] == []


def test_each_service_is_told_apart(place):
    services = [
        {"name": name, "stamp": str(place / f"{name}.applied"), "files": [str(place / f"{name}.env")]} for name in "ab"
    ]
    done = run("prefect_applied", services=services)
    (place / "b.applied").write_text(done["wanted"]["b"] + "\n")
    assert run("prefect_applied", services=services)["stale"] == ["a"]


def test_no_service_is_no_error():
    done = run("prefect_applied", services=[])
    assert (done["wanted"], done["stale"]) == ({}, [])
