"""What is wrong with workers of pools that are no process pools, and with the settings of the role docker_pool, in words."""

from __future__ import annotations

import re
from typing import Any

# What Docker takes for an amount of memory; less than this starts no flow.
MEMORY = re.compile(r"([1-9][0-9]*)([kmg])")
UNITS = {"k": 1, "m": 1024, "g": 1024 * 1024}
LEAST_MEMORY_KB = 256 * 1024
#: Types whose workers hand flow runs to a cloud.
SERVERLESS = ("cloud-run-v2", "ecs", "azure-container-instance")
VOLUME = re.compile(r"/[^:]*:/[^:]+(:ro|:rw)?")


def worker_type_problems(pools: list[dict[str, Any]], workers: list[dict[str, Any]], server: bool) -> list[str]:
    """Workers whose pool's type cannot be had on this host; `server` says whether it is the Prefect server itself."""
    types = {pool["name"]: pool.get("type", "process") for pool in pools}
    problems = []
    for worker in workers:
        where = f'prefect_workers: worker "{worker["name"]}": its pool "{worker["pool"]}" is of type'
        kind = types.get(worker["pool"])
        if kind == "kubernetes":
            problems.append(
                f'{where} "kubernetes"; the workers of such a pool run in the cluster (docs/kubernetes.md), '
                "so take it out of prefect_workers"
            )
        elif kind in SERVERLESS:
            problems.append(
                f'{where} "{kind}"; the playbook makes no worker of such a pool (docs/serverless.md has how to), '
                "so take it out of prefect_workers"
            )
        elif kind == "docker" and worker.get("devices"):
            problems.append(f'{where} "docker"; devices are for workers of process pools, so take "devices" out')
        if kind == "docker" and not server:
            problems.append(
                f'{where} "docker"; such a worker needs a Docker engine, which this kit sets up on the server only '
                "(group prefect)"
            )
    return problems


def setting_problems(settings: dict[str, Any]) -> list[str]:
    """What is wrong with the settings of the role docker_pool."""
    problems = []
    memory = MEMORY.fullmatch(settings["docker_pool_memory"])
    if not memory or int(memory[1]) * UNITS[memory[2]] < LEAST_MEMORY_KB:
        problems.append(
            f'docker_pool_memory is "{settings["docker_pool_memory"]}"; it must be a size from 256m up, such as 512m or 2g'
        )
    problems += [
        f'docker_pool_volumes: "{volume}" is no pair of absolute paths, such as /srv/data:/data:ro'
        for volume in settings["docker_pool_volumes"]
        if not VOLUME.fullmatch(volume)
    ]
    if settings["docker_pool_keep_images"] < 1:
        problems.append(f'docker_pool_keep_images is "{settings["docker_pool_keep_images"]}"; it must be 1 or more')
    return problems


def prefect_docker_pool_problems(settings: dict[str, Any], server: bool = True) -> list[str]:
    """All of it, one sentence each; nothing for settings that could not be read (empty)."""
    if not settings:
        return []
    workers = worker_type_problems(settings["prefect_work_pools"], settings["prefect_workers"], server)
    return workers + setting_problems(settings)


class FilterModule:
    """Makes the filter known to Ansible."""

    def filters(self) -> dict[str, Any]:
        return {"prefect_docker_pool_problems": prefect_docker_pool_problems}
