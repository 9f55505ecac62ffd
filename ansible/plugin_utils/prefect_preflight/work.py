"""Work pools, their workers, and the flows that they run."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

from .versions import order
from .words import bad_names, duplicates, given, listed, quoted

LOCKED_PREFECT = re.compile(r"^prefect==([0-9.]+)", re.MULTILINE)


def pool_problems(settings: dict[str, Any]) -> list[str]:
    """What is wrong with work pools and their queues."""
    pools = settings["prefect_work_pools"]
    problems = bad_names("prefect_work_pools", [pool["name"] for pool in pools])
    if not pools:
        problems.append("prefect_work_pools is empty; without a work pool no flow runs")
    for pool in pools:
        where = f"prefect_work_pools: pool {quoted(pool['name'])}"
        if pool["name"].startswith("prefect"):
            problems.append(f'{where}: Prefect keeps names that begin with "prefect" for itself')
        queues = pool.get("queues", [])
        problems += bad_names(f"{where}, queues", [queue["name"] for queue in queues])
        problems += [
            f"{where}: two queues have the priority {quoted(priority)}; Prefect keeps one queue at each"
            for priority in duplicates(queue["priority"] for queue in queues)
        ]
        numbers = [("concurrency_limit", pool.get("concurrency_limit"), 0)]
        for queue in queues:
            of = f"of queue {quoted(queue['name'])}"
            numbers.append((f"priority {of}", queue["priority"], 1))
            numbers.append((f"concurrency_limit {of}", queue.get("concurrency_limit"), 0))
        problems += [
            f"{where}: {what} is {quoted(number)}; it must be {least} or more"
            for what, number, least in numbers
            if number is not None and number < least
        ]
    return problems


def worker_problems(settings: dict[str, Any]) -> list[str]:
    """What is wrong with workers, and with what they say of pools and queues."""
    pools = {pool["name"]: pool for pool in settings["prefect_work_pools"]}
    workers = settings["prefect_workers"]
    problems = bad_names("prefect_workers", [worker["name"] for worker in workers])
    for worker in workers:
        where = f"prefect_workers: worker {quoted(worker['name'])}"
        pool = pools.get(worker["pool"])
        if pool is None:
            problems.append(
                f"{where}: its pool is {quoted(worker['pool'])}; "
                f"prefect_work_pools has {listed(map(quoted, pools)) if pools else 'none'}"
            )
        else:
            # Prefect makes the queue "default" with every pool.
            queues = dict.fromkeys(["default", *(queue["name"] for queue in pool.get("queues", []))])
            problems += [
                f"{where}: its queue is {quoted(queue)}; the pool {quoted(worker['pool'])} has {listed(map(quoted, queues))}"
                for queue in worker.get("queues", [])
                if queue not in queues
            ]
        if worker.get("limit", 1) < 1:
            problems.append(f"{where}: its limit is {quoted(worker['limit'])}; it must be 1 or more")
    ports = [worker.get("health_port", 8080 + index) for index, worker in enumerate(workers)]
    problems += [
        f"prefect_workers: two workers have the health_port {quoted(port)}; each needs its own "
        "(8080 and up by position when unset)"
        for port in duplicates(ports)
    ]
    problems += [
        f"prefect_workers: health_port is {quoted(port)}; allowed are 1024 to 65535"
        for port in ports
        if not 1024 <= port <= 65535
    ]
    return problems


def flow_problems(settings: dict[str, Any]) -> list[str]:
    """What is wrong with the release of the flows, as far as it can be said before it is built."""
    problems = []
    directory = Path(os.path.normpath(settings["flows_directory"]))
    for name in ("prefect.yaml", "requirements.txt"):
        if not directory.is_absolute() or not (directory / name).is_file():
            problems.append(
                f"{given('flows_directory', settings['flows_directory'] and directory)}; it must be the absolute path of a "
                f'directory on the control machine with the file "{name}" in it'
            )
    if not problems and not _locked_prefect(directory):
        problems.append(
            f'flows_directory is {quoted(directory)}; its requirements.txt has no line "prefect==…", '
            "and without Prefect no flow starts"
        )
    return problems


def newer_flows_problems(settings: dict[str, Any]) -> list[str]:
    """A release whose Prefect is newer than the server's: a client may be older, and not newer."""
    directory = Path(os.path.normpath(settings["flows_directory"]))
    locked, server = _locked_prefect(directory), settings["prefect_version"]
    if order(locked) <= order(server):
        return []
    return [
        f"flows_directory is {quoted(directory)}; its requirements.txt has Prefect {quoted(locked)}, which is "
        f"newer than the server's {quoted(server)} (prefect_version); write prefect=={server} in its requirements.in, and: "
        f"./scripts/lock {directory}"
    ]


def flows_pool_problems(settings: dict[str, Any]) -> list[str]:
    """A pool for deployments that there is not."""
    pools, pool = [pool["name"] for pool in settings["prefect_work_pools"]], settings["flows_pool"]
    if not pools or pool in pools:
        return []
    return [f"{given('flows_pool', pool)}; prefect_work_pools has {listed(map(quoted, pools))}"]


def _locked_prefect(directory: Path) -> str:
    """The version of Prefect in the lock of a directory; empty where it names none."""
    found = LOCKED_PREFECT.search((directory / "requirements.txt").read_text())
    return found[1] if found else ""
