"""The container of a flow run: watched to its real end, removed then, and taken up again by the next worker.

What Prefect's own docker worker (prefect-docker 0.7.4) does not do:
- It takes the exit code from what it knew of the container before the end, so that a killed one may count as a success
  (always so with `stream_output: false`), and with `auto_remove` there is nothing left to ask.
- A restart of the engine, which leaves containers running (live-restore), makes it lose sight of them for good.
- What runs when the worker ends is never looked at again: neither reported when it dies nor removed.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any
from uuid import UUID

import anyio
import docker.errors
import httpx
import requests.exceptions
import urllib3.exceptions
from docker.models.containers import Container
from prefect.exceptions import ObjectNotFound
from prefect.utilities.asyncutils import get_thread_limiter, run_sync_in_worker_thread
from prefect_docker.worker import DockerWorkerResult

from .seam import DockerSeam

# The worker's own labels, in Docker's spelling.
WORKER_LABEL = "io.prefect.worker-name"
RUN_LABEL = "io.prefect.flow-run-id"
# What a container's end counts as that nobody saw: somebody has removed it.
GONE = 137
SECONDS_BETWEEN_TRIES = 2.0

# The engine is away: it restarts, or is being updated.
ENGINE_AWAY = (requests.exceptions.RequestException, urllib3.exceptions.HTTPError, ConnectionError)


def is_away(error: BaseException) -> bool:
    """Whether the engine did not answer, as opposed to answering that something is wrong."""
    # Answers are of that family, too.
    if isinstance(error, docker.errors.APIError):
        return False
    # Prefect's own words for a client that found no engine.
    return isinstance(error, ENGINE_AWAY) or (isinstance(error, RuntimeError) and "connect to Docker" in str(error))


def patiently(do: Callable[[], Any], sleep: Callable[[float], None] = time.sleep) -> Any:
    """The result of `do`, tried again for as long as the engine is away."""
    while True:
        try:
            return do()
        except Exception as error:
            if not is_away(error):
                raise
            sleep(SECONDS_BETWEEN_TRIES)


def is_crash(code: int, state: str) -> bool:
    """Whether a run whose container has ended with `code` must be reported; `state` is its state's type on the server."""
    if state in ("COMPLETED", "FAILED", "CANCELLED", "CRASHED"):
        return False
    # A container that never started has the code 0; one whose run is suspended, too, and that run goes on later.
    return code != 0 or state in ("PENDING", "RUNNING")


class ContainerCare(DockerSeam):
    """Goes before DockerWorker in a class's bases."""

    _looked_for_containers = False

    def __init__(self, *arguments: Any, **more: Any) -> None:
        super().__init__(*arguments, **more)
        # A pool that a worker makes has Prefect's base job template, by which a deployment may ask for all of the host.
        self.never_make_the_pool()

    async def run(self, flow_run: Any, configuration: Any, task_status: Any = None) -> DockerWorkerResult:
        """As Prefect's own, but a worker that is told to stop does not wait for the container."""
        container, created = await run_sync_in_worker_thread(self.create_and_start, configuration)
        identifier = self.container_identifier(container.id)
        if task_status:
            task_status.started(identifier)

        def watched() -> int:
            patiently(lambda: self.watch_container(container, configuration, created))
            return self._end_of(container.id)

        code = await anyio.to_thread.run_sync(watched, abandon_on_cancel=True, limiter=get_thread_limiter())
        return DockerWorkerResult(status_code=code, identifier=identifier)

    def _end_of(self, container_id: str) -> int:
        """Wait until the container has ended, remove it, and say its exit code."""

        def once() -> int:
            code = GONE
            client = self.docker_client()
            try:
                container = client.containers.get(container_id)
                code = int(container.wait()["StatusCode"])
                # With its anonymous volumes.
                container.remove(v=True)
            except docker.errors.APIError as error:
                # It is gone, or (409) somebody else is removing it.
                if error.status_code not in (404, 409):
                    raise
            finally:
                client.close()
            return code

        return patiently(once)

    def _left_behind(self) -> list[Container]:
        """Containers of an earlier worker of this name, running or ended."""

        def once() -> list[Container]:
            client = self.docker_client()
            try:
                return client.containers.list(all=True, filters={"label": f"{WORKER_LABEL}={self.name}"})
            finally:
                client.close()

        return patiently(once)

    async def after_sync(self) -> None:
        await super().after_sync()
        if self.pool is None or self._looked_for_containers:
            return
        self._looked_for_containers = True
        for container in await run_sync_in_worker_thread(self._left_behind):
            self.start_beside(self._take_up, container)

    async def _take_up(self, container: Container) -> None:
        """Watch a container that an earlier worker started, and report its run when it was killed."""
        run_id = container.labels.get(RUN_LABEL, "")
        self.log.info("Taking up the container %s of the flow run %s", container.name, run_id)
        code = await anyio.to_thread.run_sync(
            self._end_of, container.id, abandon_on_cancel=True, limiter=get_thread_limiter()
        )
        try:
            flow_run = await self.client.read_flow_run(UUID(run_id))
        except (ObjectNotFound, ValueError, httpx.HTTPError, OSError):
            # The server is away, say: whoever holds the run sees to its end (settling.py).
            return
        if is_crash(code, flow_run.state.type.value if flow_run.state else ""):
            message = f"Flow run infrastructure exited with status code {code}; its first worker had ended before it."
            await self.report_crash(flow_run, message)
