"""The system users of workers and the groups of their work pools: their names, and what a host has of them. Pure decisions."""

from __future__ import annotations

import hashlib
import re
from typing import Any

#: Longest name of a user or group (useradd).
LONGEST = 32
#: No name of a worker or a pool has an underscore, and no other user of the kit's has one: neither clashes with a name made here.
USER = "prefect_"
GROUP = "prefect_pool_"
#: The comment of such a user in /etc/passwd: the playbook's record of having made it.
COMMENT = "Prefect worker {name}"
#: The users of all workers of a host, until release 0.4.
FORMER = ("prefect", "prefect-docker")
NAME = re.compile(r"[a-z][a-z0-9-]*")


def _fitted(prefix: str, name: str) -> str:
    """The prefix and the name; of one that is too long, or holds what user names may not, the beginning and its hash."""
    if NAME.fullmatch(name) and len(prefix + name) <= LONGEST:
        return prefix + name
    digest = hashlib.sha256(name.encode()).hexdigest()[:8]
    room = LONGEST - len(prefix) - len(digest) - 1
    return f"{prefix}{re.sub(r'[^a-z0-9-]+', '-', name.lower())[:room]}_{digest}"


def prefect_worker_user(worker: str) -> str:
    """The system user, and group, of the worker of this name: no two workers have the same."""
    return _fitted(USER, worker)


def prefect_pool_group(pool: str) -> str:
    """The group by which the workers of this work pool share its results: no worker has it as its own."""
    return _fitted(GROUP, pool)


def prefect_system_users(text: str) -> dict[str, Any]:
    """What a host has, by what the preflight has printed of it (host.yml).

    Returns:
        `users`: by name its `uid` and `comment`; `groups`: by name the gid; `workers`: names of workers, a person's own among them.
    """
    users, groups, workers = {}, {}, set()
    for line in text.splitlines():
        fields = line.split(":")
        if line.startswith("worker ") and not line.endswith(".secret.env"):
            workers.add(line.rpartition("/")[2].removesuffix(".env"))
        elif line.startswith("prefect") and len(fields) == 7:
            users[fields[0]] = {"uid": int(fields[2]), "comment": fields[4]}
        elif line.startswith("prefect") and len(fields) == 4:
            groups[fields[0]] = int(fields[2])
    return {"users": users, "groups": groups, "workers": sorted(workers)}


def prefect_user_names(workers: list[dict[str, Any]], found: dict[str, Any], gone: list[str]) -> dict[str, str]:
    """The users that a host has to have, each with its worker.

    Args:
        workers: those of the inventory.
        found: what the host has (`prefect_system_users`). A worker that a person has made uses the kit's unit, which takes
            its user from its name; a name that makes no user needs a drop-in of that person's.
        gone: names of workers that this run has removed.
    """
    own = [name for name in found["workers"] if name not in gone and prefect_worker_user(name) == USER + name]
    return {prefect_worker_user(name): name for name in [*own, *(worker["name"] for worker in workers)]}


def prefect_user_problems(workers: list[dict[str, Any]], found: dict[str, Any]) -> list[str]:
    """Users of the host's own that have the name of a worker's, and workers that would share one: one sentence each."""
    problems: list[str] = []
    names: dict[str, str] = {}
    for name in (worker["name"] for worker in workers):
        user = prefect_worker_user(name)
        if names.setdefault(user, name) != name:
            problems.append(
                f'prefect_workers: the workers "{names[user]}" and "{name}" would both run as "{user}"; rename one'
            )
        there = found["users"].get(user)
        if there and there["comment"] != COMMENT.format(name=name):
            problems.append(
                f'prefect_workers: the worker "{name}" runs as the user "{user}", and the host has one that the playbook has not '
                f'made (its comment is "{there["comment"]}"); rename the worker, or that user'
            )
    return problems


def prefect_user_numbers(users: list[str], found: dict[str, Any], made: list[dict[str, Any]]) -> dict[str, int]:
    """The uids of these users, by name; `made`: what Ansible's module user has said of those that it has just made.

    With those of the users that all workers had before, should the host have them: until they are restarted they run as those.
    """
    known = {name: there["uid"] for name, there in found["users"].items() if name in {*users, *FORMER}}
    return known | {result["name"]: result["uid"] for result in made if "uid" in result}


def prefect_cloud_numbers(names: list[str], numbers: dict[str, int]) -> list[int]:
    """The uids of the workers' users that the setting host_cloud_metadata_users names; `prefect` stands for all of them."""
    return sorted(uid for user, uid in numbers.items() if "prefect" in names or user in names)


def prefect_states_of_others(kind: dict[str, Any], owners: dict[str, str]) -> dict[str, dict[str, str]]:
    """The state of workers that is not their own user's, by worker, as the module prefect_owner takes it.

    Args:
        kind: of workers, of which `state` and `workers` count.
        owners: names of the owners of directories by their paths, empty where there is none: systemd makes those that are missing.
    """
    found = {}
    for name in (worker["name"] for worker in kind["workers"]):
        path, user = f"{kind['state']}/{name}", prefect_worker_user(name)
        if owners.get(path, "") not in ("", user):
            found[name] = {"path": path, "owner": user, "mode": "0700"}
    return found


def prefect_results_to_share(pools: list[str], directory: str, looked: dict[str, Any]) -> list[dict[str, Any]]:
    """The directories of work pools' results that are missing, or that the pools' workers do not share yet.

    Args:
        directory: the one that they are in; root's, but on a host of release 0.4.
        looked: what the module prefect_look says of its owner, and of them.
    """
    paths = {f"{directory}/{pool}": prefect_pool_group(pool) for pool in pools}
    return [
        {"path": path, "shared": group, "make": True}
        for path, group in paths.items()
        if looked["owners"].get(directory) != "root" or not looked["shared"].get(path)
    ]


class FilterModule:
    """Found by Ansible."""

    def filters(self) -> dict[str, Any]:
        return {
            "prefect_cloud_numbers": prefect_cloud_numbers,
            "prefect_pool_group": prefect_pool_group,
            "prefect_results_to_share": prefect_results_to_share,
            "prefect_states_of_others": prefect_states_of_others,
            "prefect_system_users": prefect_system_users,
            "prefect_user_names": prefect_user_names,
            "prefect_user_numbers": prefect_user_numbers,
            "prefect_user_problems": prefect_user_problems,
            "prefect_worker_user": prefect_worker_user,
        }
