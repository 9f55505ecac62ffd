"""A second server of this stack, for a while: on a copy of the database, or beside the one that it is to replace."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import docker
import docker.errors
from docker.models.containers import Container
from prefect_backups.errors import Code, Failure
from prefect_backups.host import Host

QUESTIONS = Path(__file__).with_name("questions.py")
#: Containers of ours, of the kit's compose project. One that is left from a death is removed before the next.
REHEARSAL = "prefect-server-rehearsal"
NEXT = "prefect-server-next"
#: The network on which the reverse proxy finds the server, and the name by which it asks for it (compose.yml, Caddyfile).
NETWORK = "prefect_api"
ALIAS = "server"
#: In a copy the scheduler has one deployment to look at; it need not wait for its turn.
QUICK = {"PREFECT_SERVER_SERVICES_SCHEDULER_LOOP_SECONDS": "2"}


def remove(name: str, grace: int = 30) -> None:
    """Stop and remove one of these containers; one that is not there is no error."""
    try:
        container = docker.from_env().containers.get(name)
        container.stop(timeout=grace)
        container.remove(force=True, v=True)
    except docker.errors.NotFound:
        return
    except docker.errors.DockerException as error:
        raise Failure(
            Code.NOT_READY, f'the container "{name}" cannot be removed: {error}', f"docker rm --force {name}"
        ) from error


def start(host: Host, name: str, image: str, environment: dict[str, str]) -> Container:
    """Start it, as compose.yml has the server, and wait until it is ready. Raises Failure (NOT_READY) with its last words.

    It has no alias in any network: nobody but who knows its name asks it for anything.
    """
    remove(name, grace=2)
    more = [word for key, value in environment.items() for word in ("--env", f"{key}={value}")]
    host.stack.compose("run", "--detach", "--no-TTY", "--no-deps", "--name", name, *more, "server", image=image)
    try:
        host.stack.wait_for(name, Code.NOT_READY)
    except Failure as failure:
        raise Failure(
            Code.NOT_READY,
            f'a server of {image} does not start: {failure.fact}: "{host.stack.last_words(name)}"',
            f"look at: docker run --rm {image} prefect version",
        ) from failure
    return docker.from_env().containers.get(name)


@contextlib.contextmanager
def on_a_copy(host: Host, image: str, database: str) -> Iterator[Container]:
    """A server of an image on a database that nobody else uses; its network has no way out, as the live server's."""
    environment = {"PREFECT_SERVER_DATABASE_NAME": database, "PREFECT_HOME": "/tmp/prefect", **QUICK}
    try:
        yield start(host, REHEARSAL, image, environment)
    finally:
        remove(REHEARSAL, grace=2)


def ask(container: Container) -> dict[str, Any]:
    """Ask a server on a copy for what the smoke flow needs; gives what questions.py prints.

    Raises:
        Failure: NOT_READY, with what it lacks in words.
    """
    api = container.client.api
    environment = {"PREFECT_API_URL": "http://127.0.0.1:4200/api", "PREFECT_LOGGING_LEVEL": "WARNING", "HOME": "/tmp"}
    identity = api.exec_create(container.id, ["python", "-c", QUESTIONS.read_text()], environment=environment)["Id"]
    out, err = api.exec_start(identity, demux=True)
    if api.exec_inspect(identity)["ExitCode"] != 0:
        words = " / ".join((err or b"").decode(errors="replace").strip().splitlines()[-3:])
        raise Failure(Code.NOT_READY, f'it does not do what the smoke flow needs: "{words}"')
    return json.loads((out or b"").decode().strip().splitlines()[-1])


def take_requests(container: Container) -> None:
    """Let the reverse proxy find it under the server's name, beside the one that has it already."""
    network = docker.from_env().networks.get(NETWORK)
    network.disconnect(container)
    network.connect(container, aliases=[ALIAS])


def memory(name: str) -> int:
    """Bytes that a container uses."""
    usage = docker.from_env().containers.get(name).stats(stream=False)["memory_stats"]
    # Pages of files can be given up at once.
    return max(0, usage["usage"] - usage.get("stats", {}).get("inactive_file", 0))
