"""Flow runs in containers: what differs from processes is that a container outlives the worker that started it."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import docker.errors
from prefect_docker.worker import DockerWorker

from .containers import RUN_LABEL, ContainerCare, patiently
from .held import HeldRun
from .worker import KitWorker

if TYPE_CHECKING:
    from prefect.client.schemas.objects import FlowRun

#: JSON: what each container has by the worker's own configuration, by field of DockerWorkerJobConfiguration. The work pool's
#: template says the same, but whoever may change that at the API is not the one who decides over the host.
FIXED = "WORKER_CONTAINERS"


def fix(configuration: Any, fixed: Mapping[str, Any]) -> list[str]:
    """Set what is fixed. Gives the names of the fields that said something else, whatever template or deployment they are of."""
    changed = []
    for name, value in fixed.items():
        if getattr(configuration, name) != value:
            changed.append(name)
            setattr(configuration, name, value)
    return changed


class DockerKitWorker(KitWorker, ContainerCare, DockerWorker):
    """Flow runs in containers of the host's Docker engine."""

    #: Told to stop, it leaves its containers running: the next worker takes them up.
    waits_for_runs = False

    async def run(self, flow_run: FlowRun, configuration: Any, task_status: Any = None) -> Any:
        # A process inherits the environment of its worker; a container is given what the inventory says.
        for name in os.environ.get("WORKER_PASSES", "").split():
            configuration.env.setdefault(name, os.environ.get(name))
        if FIXED not in os.environ:
            raise RuntimeError(f"{FIXED} is not set: what a container may have of the host is not known; run site.yml")
        if changed := fix(configuration, json.loads(os.environ[FIXED])):
            self.get_flow_run_logger(flow_run).warning(
                "The work pool's template says something else of %s than this worker's host: what the host says holds.",
                ", ".join(changed),
            )
        return await super().run(flow_run, configuration, task_status)

    async def has_outlived(self, left: HeldRun) -> bool:
        def runs() -> bool:
            client = self.docker_client()
            try:
                if not left.infrastructure:
                    # The worker was killed before it could note which one it had started.
                    found = client.containers.list(filters={"label": f"{RUN_LABEL}={left.id}"})
                    if not found:
                        return False
                    left.infrastructure = self.container_identifier(found[0].id)
                # `engine's address:container's id`
                container = client.containers.get(left.infrastructure.rpartition(":")[2])
                return container.status in {"created", "running", "paused", "restarting"}
            except docker.errors.NotFound:
                return False
            finally:
                client.close()

        return await asyncio.to_thread(patiently, runs)
