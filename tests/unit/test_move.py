"""move.yml's decisions: what it reads of the two hosts, and what keeps it from moving a server."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

import pytest

PLUGINS = Path(__file__).resolve().parents[2] / "ansible/filter_plugins"
sys.path.append(str(PLUGINS))

from prefect_move import prefect_move_problems, prefect_move_repository, prefect_move_seen  # noqa: E402

# By its path: the package of the tools on the host has the same name.
SPEC = importlib.util.spec_from_file_location("filters_of_backups", PLUGINS / "prefect_backups.py")
backups = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(backups)

OLD = """MACHINE=aaaa
TOOLS=0123456789ab
ROOT_LOGIN=without-password
BYTES=4000000000
HOST_KEY=ssh-ed25519 AAAAC3 root@old
HOST_KEY=ssh-rsa AAAAB3 root@old
PREFECT_IMAGE=prefecthq/prefect:3.9.1-python3.13
POSTGRES_IMAGE=postgres:17.12-trixie
prefect==3.9.1 \\
"""
NEW = "MACHINE=bbbb\nFREE=20000000000\n"
ASKED: dict[str, Any] = {
    "from": "203.0.113.10",
    "to": "203.0.113.20",
    "tools": "0123456789ab",
    "back": False,
    "lose_newer": False,
    "unreachable": "",
}
MOVED = 'MOVED_TO=203.0.113.20\nMOVED_UNITS="prefect-worker@a.service prefect-worker@b.service"\n'


def problems(old: str = OLD, new: str = NEW, **asked: Any) -> list[str]:
    return prefect_move_problems(prefect_move_seen(old), prefect_move_seen(new), ASKED | asked)


def test_what_a_look_has_found():
    seen = prefect_move_seen(OLD + MOVED)
    assert seen["MACHINE"] == "aaaa"
    assert seen["FREE"] == ""
    assert seen["host_keys"] == ["ssh-ed25519 AAAAC3 root@old", "ssh-rsa AAAAB3 root@old"]
    assert seen["moved"] == {
        "MOVED_TO": "203.0.113.20",
        "MOVED_UNITS": "prefect-worker@a.service prefect-worker@b.service",
    }
    assert seen["running"]["version"] == "3.9.1"


def test_a_host_that_does_not_know_the_kit():
    assert problems("MACHINE=cccc\nTOOLS=\n") == ['"203.0.113.10" (move_from) has no Prefect server of this kit']


def test_a_host_that_ssh_does_not_reach():
    (found,) = problems("", unreachable="Failed to connect to the host via ssh: Permission denied (publickey).\n")
    assert "(user, port, key): Failed to connect to the host via ssh: Permission denied (publickey).;" in found
    assert "in no group" in found


def test_nothing_is_wrong():
    assert problems() == []
    # One that was cut off, before and after its last backup: the room is taken already.
    assert problems(OLD + MOVED) == []
    assert problems(OLD + MOVED + "MOVED_BACKUP=20261127T001500Z\n", NEW.replace("20000000000", "5")) == []
    # A host that does not say how root may log in.
    assert problems(OLD.replace("without-password", "")) == []


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        (OLD, NEW.replace("bbbb", "aaaa"), "is the very host that hosts.yml names as the server (203.0.113.20)"),
        (OLD.replace("0123456789ab", "ba9876543210"), NEW, "was provisioned by another state of the kit"),
        (OLD.replace("without-password", "no"), NEW, "lets nobody log in as root (PermitRootLogin no)"),
        (OLD, NEW.replace("20000000000", "9000000000"), "it has 9.0 GB free below /var/lib, and"),
        (
            OLD + MOVED.replace("20\n", "21\n", 1),
            NEW,
            'to "203.0.113.21" has begun, and hosts.yml names "203.0.113.20"',
        ),
    ],
)
def test_each_problem_alone(old, new, said):
    (found,) = problems(old, new)
    assert said in found


def test_the_way_back():
    assert problems(back=True) == ['there is no move of "203.0.113.10" (move_from) to take back: it serves']
    # One that did not end, with whatever is wrong besides.
    assert problems(OLD.replace("0123456789ab", "x") + MOVED, back=True) == []
    done = OLD + MOVED + "MOVED_DONE=yes\n"
    (found,) = problems(done, back=True)
    assert "-e back=true -e lose_newer=true" in found
    assert problems(done, back=True, lose_newer=True) == []


@pytest.mark.parametrize(
    ("address", "port", "repository", "known_as"),
    [
        ("203.0.113.10", 22, "sftp://root@203.0.113.10:22//var/backups/prefect/repository", "203.0.113.10"),
        (
            "old.example.org",
            2222,
            "sftp://root@old.example.org:2222//var/backups/prefect/repository",
            "[old.example.org]:2222",
        ),
        ("2001:db8::1", 22, "sftp://root@[2001:db8::1]:22//var/backups/prefect/repository", "2001:db8::1"),
    ],
)
def test_the_repository_of_before_is_one_that_the_backups_take(address, port, repository, known_as):
    entry = prefect_move_repository(
        ["ssh-ed25519 AAAAC3 root@old"], "server-before", address, port, "/var/backups/prefect"
    )
    assert entry["repository"] == repository
    assert entry["known_hosts"] == f"{known_as} ssh-ed25519 AAAAC3"
    assert backups.offsite_problems(entry) == []
