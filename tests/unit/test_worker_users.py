"""The system users of workers: their names, what a host has of them, and refusals in words."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from .test_settings import load

ROOT = Path(__file__).resolve().parents[2]
users = load("prefect_users")
LONG = "a" * 31
HOST = """\
installed sudo
user-996 dd-agent
prefect_general-1:x:998:998:Prefect worker general-1:/var/lib/prefect-worker/general-1:/usr/sbin/nologin
prefect:x:995:995:Prefect workers and their flow runs:/var/lib/prefect-worker:/usr/sbin/nologin
prefect_general-1:x:998:
prefect_pool_general:x:997:me
worker /etc/prefect/workers/general-1.env
worker /etc/prefect/workers/general-1.secret.env
worker /etc/prefect/workers/Mine.env
worker /etc/prefect/docker-workers/mine.env
"""


@pytest.mark.parametrize(
    ("worker", "pattern"),
    [
        ("general-1", "prefect_general-1"),
        ("a" * 24, "prefect_" + "a" * 24),
        ("a" * 25, "prefect_" + "a" * 15 + "_[0-9a-f]{8}"),
        ("GPU box@1", "prefect_gpu-box-1_[0-9a-f]{8}"),
    ],
)
def test_a_worker_has_the_user_of_its_name(worker: str, pattern: str) -> None:
    assert re.fullmatch(pattern, users.prefect_worker_user(worker))


def test_no_two_workers_or_pools_share_a_name_and_all_are_valid() -> None:
    names = [
        "server",
        "caddy",
        "docker",
        "pool",
        "pool-general",
        "general",
        "x",
        LONG,
        LONG[:-1],
        LONG[:-1] + "b",
        "A",
        "a",
    ]
    made = [users.prefect_worker_user(name) for name in names] + [users.prefect_pool_group(name) for name in names]
    assert len(set(made)) == len(made)
    # What useradd of Debian takes.
    assert all(re.fullmatch(r"[a-z_][a-z0-9_-]{0,31}", name) for name in made)
    assert not {"prefect-server", "prefect-caddy", "prefect-docker"} & set(made)


def test_the_unit_has_the_same_name_by_itself() -> None:
    for unit in ("prefect-worker@.service", "prefect-docker-worker@.service"):
        text = (ROOT / "systemd" / unit).read_text()
        assert f"\nUser={users.USER}%i\nGroup={users.USER}%i\n" in text


def test_what_a_host_has_is_read() -> None:
    found = users.prefect_system_users(HOST)
    assert found["users"]["prefect_general-1"] == {"uid": 998, "comment": "Prefect worker general-1"}
    assert found["groups"] == {"prefect_general-1": 998, "prefect_pool_general": 997}
    assert found["workers"] == ["Mine", "general-1", "mine"]
    assert users.prefect_system_users("") == {"users": {}, "groups": {}, "workers": []}


def test_a_persons_worker_has_a_user_too_where_its_unit_names_one() -> None:
    found = users.prefect_system_users(HOST)
    wanted = users.prefect_user_names([{"name": "general-1"}, {"name": LONG}], found, [])
    assert wanted == {"prefect_general-1": "general-1", "prefect_mine": "mine", users.prefect_worker_user(LONG): LONG}
    assert list(users.prefect_user_names([], found, ["general-1"])) == ["prefect_mine"]


def test_a_user_of_somebody_elses_is_refused() -> None:
    found = users.prefect_system_users(HOST.replace("Prefect worker general-1", "Backups, of ours"))
    assert users.prefect_user_problems([{"name": "general-1"}], found) == [
        'prefect_workers: the worker "general-1" runs as the user "prefect_general-1", and the host has one that the playbook has '
        'not made (its comment is "Backups, of ours"); rename the worker, or that user'
    ]
    assert users.prefect_user_problems([{"name": "general-1"}], users.prefect_system_users(HOST)) == []


def test_the_numbers_are_those_of_all_workers() -> None:
    made = [{"name": "prefect_mine", "uid": 994}, {"name": "prefect_other"}]
    found = users.prefect_system_users(HOST)
    numbers = users.prefect_user_numbers(["prefect_general-1", "prefect_mine", "prefect_other"], found, made)
    assert numbers == {"prefect_general-1": 998, "prefect": 995, "prefect_mine": 994}
    assert users.prefect_cloud_numbers(["dd-agent"], numbers) == []
    assert users.prefect_cloud_numbers(["prefect_mine"], numbers) == [994]
    assert users.prefect_cloud_numbers(["prefect"], numbers) == [994, 995, 998]


def test_state_of_before_changes_hands_and_what_is_missing_does_not() -> None:
    kind = {"state": "/s", "workers": [{"name": "general-1"}, {"name": "new"}, {"name": "done"}]}
    owners = {"/s/general-1": "prefect", "/s/new": "", "/s/done": "prefect_done"}
    assert users.prefect_states_of_others(kind, owners) == {
        "general-1": {"path": "/s/general-1", "owner": "prefect_general-1", "mode": "0700"}
    }


def test_results_are_shared_once() -> None:
    missing = {"owners": {"/r": "prefect"}, "shared": {"/r/general": False}}
    share = {"path": "/r/general", "shared": "prefect_pool_general", "make": True}
    assert users.prefect_results_to_share(["general"], "/r", missing) == [share]
    done = {"owners": {"/r": "root"}, "shared": {"/r/general": True, "/r/new": False}}
    assert users.prefect_results_to_share(["general"], "/r", done) == []
    assert users.prefect_results_to_share(["general", "new"], "/r", done) == [
        {"path": "/r/new", "shared": "prefect_pool_new", "make": True}
    ]
