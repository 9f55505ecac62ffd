"""Decisions about all hosts of an inventory together: the server, and the hosts of the group `workers`."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

# The worker that a host has when the inventory names none.
SERVERS_WORKER = "general-1"
DEFAULT_POOL = "general"
DEFAULT_LIMIT = 4
# A worker's name has at most 31 characters, and "-1" is put behind the host's.
LONGEST_HOST = 29
# What other hosts are told of a worker.
TOLD = ("name", "pool", "queues", "blocks", "deployments", "write_variables")
# What each host has of its own; every other setting of the whole is the same on all hosts.
OF_THE_HOST = {"prefect_workers"}


def _listed(words: Iterable[str]) -> str:
    """`"a", "b" and "c"`."""
    *first, last = [f'"{word}"' for word in words]
    return f"{', '.join(first)} and {last}" if first else last


def _named(entries: Any) -> list[dict[str, Any]]:
    """Those entries of a list that have a name: what else is wrong with them is said elsewhere."""
    found = entries if isinstance(entries, list) else []
    return [entry for entry in found if isinstance(entry, Mapping) and isinstance(entry.get("name"), str)]


def prefect_default_workers(host: str, groups: list[str], pools: Any) -> list[dict[str, Any]]:
    """The workers of a host that names none: one, called after the host unless that is the server.

    Args:
        host: its name in the inventory, which may be a DNS name or an address.
        groups: the groups that it is in.
        pools: the work pools of the inventory.
    """
    if "workers" not in groups:
        return [{"name": SERVERS_WORKER, "pool": DEFAULT_POOL, "limit": DEFAULT_LIMIT}]
    name = host if re.fullmatch(r"[0-9.:a-fA-F]*[.:][0-9.:a-fA-F]*", host) else host.partition(".")[0]
    name = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
    name = name if name[:1].isalpha() else f"host-{name}"
    process = [pool["name"] for pool in _named(pools) if pool.get("type", "process") == "process"]
    return [{"name": f"{name[:LONGEST_HOST]}-1", "pool": (process or [DEFAULT_POOL])[0], "limit": DEFAULT_LIMIT}]


def prefect_workers_of(hosts: list[str], hostvars: Mapping[str, Any], pools: Any) -> dict[str, list[dict[str, Any]]]:
    """The workers of each of these hosts, by the host's name: where they belong, and none of their secrets."""
    found = {
        host: _named(hostvars[host]["prefect_workers"])
        if "prefect_workers" in hostvars[host]
        else prefect_default_workers(host, hostvars[host]["group_names"], pools)
        for host in hosts
    }
    return {
        host: [{key: worker[key] for key in TOLD if key in worker} for worker in workers]
        for host, workers in found.items()
    }


def prefect_inventory_problems(inventory: dict[str, Any], hostvars: Mapping[str, Any]) -> list[str]:
    """What is wrong with the hosts of an inventory together, one sentence each; empty when all is well.

    Args:
        inventory: `servers`, the hosts of the group prefect; `others`, those of the group workers; `running`, the hosts
            of this run; `pools`, the work pools; `settings`, the names of the settings that concern the whole.
        hostvars: the variables of each host.
    """
    servers, others = inventory["servers"], inventory["others"]
    watcher = next(
        (hostvars[host]["watch_from"] for host in servers if host in hostvars and hostvars[host].get("watch_from")), ""
    )
    if watcher and watcher not in others:
        there = f"has {_listed(others)}" if others else "has none"
        return [f'watch_from is "{watcher}"; it must be a host of the group "workers", which {there}']
    if not others:
        return []
    both = [host for host in others if host in servers]
    if both:
        return [
            f'{_listed(both)} is in both groups, "prefect" and "workers"; the server runs workers of its own '
            '(prefect_workers), so take it out of the group "workers" in hosts.yml'
        ]
    if len(servers) > 1:
        return [f'the group "workers" needs one server to belong to; the group "prefect" has {_listed(servers)}']
    server = servers[0]
    problems = _address_problems([host for host in [server, *others] if host in inventory["running"]], hostvars)
    if server not in inventory["running"]:
        limit = ",".join([server, *(host for host in others if host in inventory["running"])])
        problems.append(
            f"--limit leaves out the server {_listed(servers)}, which lets the workers of {_listed(inventory['running'])} in "
            f"and knows their release; take it in as well: --limit '{limit}'"
        )
    for host in others:
        differing = [
            name
            # The server gives the account that the other host looks with.
            for name in (*inventory["settings"], "watch_from")
            if name not in OF_THE_HOST and hostvars[host].get(name) != hostvars[server].get(name)
        ]
        problems += [
            f'{name} is not the same on "{server}" and on "{host}"; set it once for all hosts, in group_vars/all.yml'
            for name in differing
        ]
    return problems + _name_problems(prefect_workers_of([server, *others], hostvars, inventory["pools"]))


def _address_problems(hosts: list[str], hostvars: Mapping[str, Any]) -> list[str]:
    """Hosts that are one and the same: one of them would undo what makes the other."""
    by_address: dict[tuple[str, str], list[str]] = {}
    for host in hosts:
        address = hostvars[host].get("ansible_host", host), str(hostvars[host].get("ansible_port", 22))
        by_address.setdefault(address, []).append(host)
    return [
        f'{_listed(same)} have the same address, "{address}" (ansible_host); give each its own, or, with '
        f"-e ansible_host={address}, name the one that is meant: --limit {same[0]}"
        for (address, _), same in by_address.items()
        if len(same) > 1
    ]


def _name_problems(workers: dict[str, list[dict[str, Any]]]) -> list[str]:
    """Names of workers that two hosts have."""
    hosts: dict[str, list[str]] = {}
    for host, entries in workers.items():
        for name in dict.fromkeys(worker["name"] for worker in entries):
            hosts.setdefault(name, []).append(host)
    return [
        f'prefect_workers: {_listed(on)} have a worker "{name}" each, and its name is its account; set prefect_workers for '
        "each host by itself (the server's in group_vars/prefect.yml: what stands in group_vars/all.yml is every host's)"
        for name, on in hosts.items()
        if len(on) > 1
    ]


class FilterModule:
    """Makes the filters known to Ansible."""

    def filters(self) -> dict[str, Any]:
        return {
            "prefect_default_workers": prefect_default_workers,
            "prefect_inventory_problems": prefect_inventory_problems,
            "prefect_workers_of": prefect_workers_of,
        }
