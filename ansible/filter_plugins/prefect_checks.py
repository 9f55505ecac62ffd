"""What the checks at the end of site.yml need to decide."""

from __future__ import annotations

import re
from typing import Any


def prefect_smoke_place(
    workers: list[dict[str, Any]], pools: list[dict[str, Any]], preferred: str = ""
) -> dict[str, str]:
    """Where the smoke flow runs: `pool` and `queue`; empty where no worker could run it.

    Args:
        workers: the workers that are part of this run, the server's first.
        pools: the work pools of the inventory. Only process workers have the kit's smoke flow beside them.
        preferred: the work pool of the deployments, which is taken when it has such a worker.
    """
    process = {pool["name"] for pool in pools if pool.get("type", "process") == "process"}
    able = [worker for worker in workers if worker["pool"] in process]
    if not able:
        return {}
    pool = preferred if preferred in {worker["pool"] for worker in able} else able[0]["pool"]
    # A worker without queues takes runs from every queue of its pool.
    queues = [queue for worker in able if worker["pool"] == pool for queue in worker.get("queues") or ["default"]]
    return {"pool": pool, "queue": "default" if "default" in queues else queues[0]}


def prefect_upgrade_offer(running: str, newest: str) -> str:
    """The line of the summary on an upgrade; empty where the server runs what a new one would get, or a newer one."""
    here, there = ([int(part) for part in re.findall(r"[0-9]+", version)] for version in (running, newest))
    if there <= here:
        return ""
    return f"Prefect      {running}; {newest} is supported: ansible-playbook upgrade.yml -e prefect_version={newest}"


class FilterModule:
    """Makes the filters known to Ansible."""

    def filters(self) -> dict[str, Any]:
        return {"prefect_smoke_place": prefect_smoke_place, "prefect_upgrade_offer": prefect_upgrade_offer}
