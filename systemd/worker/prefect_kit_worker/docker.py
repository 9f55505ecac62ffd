"""Flow runs in containers: what differs from processes is that a container outlives the worker that started it."""

from __future__ import annotations

import asyncio

import docker.errors
from prefect_docker.worker import DockerWorker

from .held import HeldRun
from .worker import KitWorker


class DockerKitWorker(KitWorker, DockerWorker):
    """Flow runs in containers of the host's Docker engine."""

    async def _outlived(self, left: HeldRun) -> bool:
        # The infrastructure's id is `engine's address:container's id`.
        container = left.infrastructure.rpartition(":")[2]
        if not container:
            return False

        def runs() -> bool:
            client = self._get_client()
            try:
                return client.containers.get(container).status in {"created", "running", "paused"}
            except docker.errors.NotFound:
                return False
            finally:
                client.close()

        return await asyncio.to_thread(runs)
