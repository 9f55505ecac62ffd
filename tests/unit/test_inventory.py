"""What is decided about all hosts of an inventory together: default workers, accounts, and refusals by their exact text."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ANSIBLE = Path(__file__).resolve().parents[2] / "ansible"
POOLS = [{"name": "images", "type": "docker"}, {"name": "general"}]
SETTINGS = ["prefect_domain", "prefect_work_pools", "prefect_workers"]


def load(path: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(Path(path).stem, ANSIBLE / path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


inventory = load("filter_plugins/prefect_inventory.py")
host = load("filter_plugins/prefect_host.py")


def worker(name: str, pool: str = "general") -> dict[str, Any]:
    return {"name": name, "pool": pool, "limit": 4}


@pytest.mark.parametrize(
    ("name", "worker_name"),
    [
        ("wha", "wha-1"),
        ("GPU_box.example.org", "gpu-box-1"),
        ("10.0.0.7", "host-10-0-0-7-1"),
        ("fd00::7", "fd00-7-1"),
        ("2001:db8::7", "host-2001-db8-7-1"),
        ("a" * 40, "a" * 29 + "-1"),
    ],
)
def test_a_host_without_workers_of_its_own_has_one_by_its_name(name, worker_name):
    assert inventory.prefect_default_workers(name, ["workers"], POOLS) == [worker(worker_name)]


def test_the_servers_default_is_its_own():
    assert inventory.prefect_default_workers("anything", ["prefect"], POOLS) == [worker("general-1")]


@pytest.mark.parametrize("pools", [[], "general", [{"type": "process"}], None])
def test_pools_that_are_wrong_are_the_business_of_others(pools):
    assert inventory.prefect_default_workers("wha", ["workers"], pools) == [worker("wha-1")]


def hosts(**more: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Variables of a server and of two other hosts, of which one names its workers."""
    found = {
        "server": {"group_names": ["prefect"], "prefect_domain": "p.example.org"},
        "one": {"group_names": ["workers"], "prefect_domain": "p.example.org"},
        "two": {"group_names": ["workers"], "prefect_domain": "p.example.org", "prefect_workers": [worker("big")]},
    }
    return {name: {**found[name], **more.get(name, {})} for name in found}


def problems(variables: dict[str, Any], **more: Any) -> list[str]:
    seen = {"servers": ["server"], "others": ["one", "two"], "running": list(variables), "pools": POOLS}
    return inventory.prefect_inventory_problems({**seen, "settings": SETTINGS, **more}, variables)


def test_workers_of_other_hosts_are_known_by_host():
    secret = {**worker("big"), "queues": ["low"], "secrets": {"TOKEN": "unsaid"}}
    assert inventory.prefect_workers_of(["one", "two"], hosts(two={"prefect_workers": [secret]}), POOLS) == {
        "one": [{"name": "one-1", "pool": "general"}],
        "two": [{"name": "big", "pool": "general", "queues": ["low"]}],
    }


def test_hosts_that_go_together_have_no_problem():
    assert problems(hosts()) == []


def test_without_other_hosts_nothing_is_asked():
    assert problems(hosts(), servers=["server", "another"], others=[]) == []


def test_a_host_that_watches_the_server_is_one_of_the_workers():
    there = hosts()
    for host in there.values():
        host["watch_from"] = "one"
    assert problems(there) == []
    # Known to the server alone, no host would watch it; known to the host alone, the server would not let it look.
    del there["one"]["watch_from"]
    assert problems(there) == [
        'watch_from is not the same on "server" and on "one"; set it once for all hosts, in group_vars/all.yml'
    ]
    there["server"]["watch_from"] = "three"
    assert problems(there) == [
        'watch_from is "three"; it must be a host of the group "workers", which has "one" and "two"'
    ]
    alone = {"servers": ["server"], "others": [], "running": ["server"], "pools": POOLS, "settings": SETTINGS}
    assert inventory.prefect_inventory_problems(alone, there) == [
        'watch_from is "three"; it must be a host of the group "workers", which has none'
    ]


def test_a_host_in_both_groups():
    assert problems(hosts(), servers=["server", "one"]) == [
        '"one" is in both groups, "prefect" and "workers"; the server runs workers of its own (prefect_workers), so take it '
        'out of the group "workers" in hosts.yml'
    ]


def test_two_servers():
    assert problems(hosts(), servers=["server", "spare"]) == [
        'the group "workers" needs one server to belong to; the group "prefect" has "server" and "spare"'
    ]


def test_a_limit_without_the_server():
    assert problems(hosts(), running=["one"]) == [
        '--limit leaves out the server "server", which lets the workers of "one" in and knows their release; '
        "take it in as well: --limit 'server,one'"
    ]
    assert problems(hosts(), running=["server"]) == []


def test_a_new_address_for_all_hosts_at_once():
    moved = {name: {"ansible_host": "192.0.2.9"} for name in ("server", "one", "two")}
    assert problems(hosts(**moved)) == [
        '"server", "one" and "two" have the same address, "192.0.2.9" (ansible_host); give each its own, or, with '
        "-e ansible_host=192.0.2.9, name the one that is meant: --limit server"
    ]
    assert problems(hosts(**moved), running=["server"]) == []


def test_two_workers_of_one_name():
    clash = 'prefect_workers: "{}" and "{}" have a worker "{}" each, and its name is its account; set prefect_workers for each host by itself (the server\'s in group_vars/prefect.yml: what stands in group_vars/all.yml is every host\'s)'
    assert problems(hosts(one={"prefect_workers": [worker("big")]})) == [clash.format("one", "two", "big")]
    assert problems(hosts(two={"prefect_workers": [worker("general-1")]})) == [
        clash.format("server", "two", "general-1")
    ]


def test_a_setting_of_the_whole_that_differs():
    assert problems(hosts(two={"prefect_domain": "q.example.org"})) == [
        'prefect_domain is not the same on "server" and on "two"; set it once for all hosts, in group_vars/all.yml'
    ]


# --- hosts that only run workers, looked at ------------------------------------------------------------------------

SEEN = {
    "memory_mb": 2000,
    "least_memory_mb": 1700,
    "free_gb": 20,
    "least_free_gb": 8,
    "installed": False,
    "others": ["disabled nftables.service"],
    "keys": "ssh-ed25519 AAAA",
    "admin_keys": [],
    "login": "root@one",
    "server": "p.example.org",
    "resolved": True,
    "reached": True,
}


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"memory_mb": 900}, "it has 900 MiB of memory; 1700 MiB are needed (preflight_min_memory_mb)"),
        (
            {"resolved": False, "reached": False},
            'it finds no address for "p.example.org" (prefect_domain); set its DNS record, or set workers_server_address '
            "to an address by which it reaches the server",
        ),
        (
            {"reached": False},
            'nothing answers it at port 443 of "p.example.org", where the server\'s public endpoint is; let it through, or set '
            "workers_server_address to an address by which it reaches the server",
        ),
    ],
)
def test_a_host_that_cannot_carry_workers(change, problem):
    assert host.prefect_worker_host_problems({**SEEN, **change}) == [problem]


def test_a_host_that_can():
    assert host.prefect_worker_host_problems(SEEN) == []
