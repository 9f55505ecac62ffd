"""A second server of this stack, for a while: on a copy of the database, or beside the one that it is to replace."""

from __future__ import annotations

import contextlib
import json
import subprocess
import time
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
#: Rules of nft in the network of a server's container. Its own watchdog, on loopback, goes on asking.
REFUSE = """
table inet prefect_upgrade {
  chain input {
    type filter hook input priority filter;
    iif lo accept
    tcp dport 4200 tcp flags & (syn | ack) == syn reject with tcp reset
  }
}
"""
#: Seconds until requests on connections that stood then have arrived.
SECONDS_FOR_THE_LAST = 1.0
#: Bytes of memory of a server of Prefect's (195 to 235 MB at rest, 3.8.8; measured with 8 clients: 300).
ABOUT = 300 * 2**20
#: In a copy the scheduler has one deployment to look at; it need not wait for its turn.
QUICK = {"PREFECT_SERVER_SERVICES_SCHEDULER_LOOP_SECONDS": "2"}


def remove(name: str, grace: int = 30) -> None:
    """Stop and remove one of these containers; one that is not there is no error.

    Args:
        name: of the container.
        grace: seconds that it has for what it is doing.
    """
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


def is_well(name: str, image: str) -> bool:
    """Whether a container runs an image, and is healthy."""
    try:
        container = docker.from_env().containers.get(name)
    except docker.errors.NotFound:
        return False
    return container.attrs["Config"]["Image"] == image and container.health == "healthy"


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
    # Automations of a copy tell nobody.
    nowhere = {"HTTPS_PROXY": "", "HTTP_PROXY": ""}
    environment = {"PREFECT_SERVER_DATABASE_NAME": database, "PREFECT_HOME": "/tmp/prefect", **QUICK, **nowhere}  # noqa: S108
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
    environment = {"PREFECT_API_URL": "http://127.0.0.1:4200/api", "PREFECT_LOGGING_LEVEL": "INFO"}
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


def refuse_connections(name: str) -> None:
    """Have a server take no new connections, while it answers what it has: the reverse proxy turns to the other one.

    A server that is told to stop closes the connections on which no request has arrived yet, and the proxy, which cannot
    know that, must not repeat a POST. So new ones are refused first, in the container's own network, which goes with it;
    a refused connection is repeated whatever it was for. Where that is not possible, one request in hundreds may fail.
    """
    pid = docker.from_env().containers.get(name).attrs["State"]["Pid"]
    command = ["nsenter", f"--net=/proc/{pid}/ns/net", "nft", "-f", "-"]
    with contextlib.suppress(OSError):
        subprocess.run(command, input=REFUSE, capture_output=True, text=True, check=False)
        time.sleep(SECONDS_FOR_THE_LAST)


def memory(name: str) -> int:
    """Bytes that a container uses; about what a server does, where the engine does not know."""
    usage = docker.from_env().containers.get(name).stats(stream=False)["memory_stats"]
    if "usage" not in usage:
        return ABOUT
    # Pages of files can be given up at once.
    return max(0, usage["usage"] - usage.get("stats", {}).get("inactive_file", 0))
