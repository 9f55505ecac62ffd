"""The containers of the stack: whether they run, are healthy, are restarted, and are what the stack's env-file names."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import docker
import docker.errors
from prefect_backups.settings import Settings
from prefect_backups.stack import Stack

from .finding import Finding, Level, graded

#: Each container, and the variable of the env-file that names its image.
CONTAINERS = {
    "prefect-postgres": "POSTGRES_IMAGE",
    "prefect-server": "PREFECT_IMAGE",
    "prefect-caddy": "CADDY_IMAGE",
}
#: Restarts since a container was made: Docker's own, after a crash. Some may be of a full disk that is long mended.
RESTARTS_WARNING, RESTARTS_BAD = 1, 10


@dataclass(frozen=True)
class Container:
    """What Docker says of one."""

    status: str
    health: str = ""
    restarts: int = 0
    killed_for_memory: bool = False
    image: str = ""


def look(settings: Settings) -> tuple[dict[str, Container | None], dict[str, str]]:
    """The containers by name, and the stack's env-file. Raises DockerException, Failure."""
    engine = docker.from_env()
    found: dict[str, Container | None] = {}
    for name in CONTAINERS:
        try:
            attributes = engine.containers.get(name).attrs
        except docker.errors.NotFound:
            found[name] = None
            continue
        state = attributes["State"]
        found[name] = Container(
            state["Status"],
            (state.get("Health") or {}).get("Status", ""),
            attributes.get("RestartCount", 0),
            bool(state.get("OOMKilled")),
            attributes["Config"]["Image"],
        )
    return found, Stack(settings).environment()


def running(name: str, one: Container | None) -> Finding:
    """Whether it runs and is healthy."""
    if one is None:
        return Finding(name, Level.BAD, "does not exist", "running, healthy", "systemctl restart prefect-stack")
    well = one.status == "running" and one.health in ("healthy", "")
    # A start is no failure: its watchdog ends one that hangs.
    level = Level.OK if well else Level.WARNING if one.health == "starting" else Level.BAD
    words = one.status + (f", {one.health}" if one.health else "")
    mend = "" if well else f"docker logs --tail 50 {name}; systemctl restart prefect-stack"
    return Finding(name, level, words, "running, healthy", mend)


def restarted(name: str, one: Container) -> Finding:
    """Whether Docker has had to restart it, and whether that was for its memory."""
    if one.killed_for_memory:
        return Finding(
            f"{name} restarts",
            Level.BAD,
            f"{one.restarts}, killed: out of memory",
            "0",
            f"docker inspect {name}; free -m",
        )
    level = graded(one.restarts, RESTARTS_WARNING, RESTARTS_BAD)
    return Finding(f"{name} restarts", level, str(one.restarts), "0", f"docker logs {name}" if level else "")


def as_deployed(name: str, one: Container, environment: Mapping[str, str]) -> Finding:
    """Whether its image is the one that the playbook has written down."""
    wanted = environment.get(CONTAINERS[name], "")
    same = not wanted or one.image == wanted
    mend = "" if same else "systemctl reload prefect-stack"
    return Finding(f"{name} image", Level.OK if same else Level.WARNING, one.image, wanted, mend)


def check(settings: Settings) -> list[Finding]:
    """All of them."""
    found, environment = look(settings)
    findings = [running(name, one) for name, one in found.items()]
    for name, one in found.items():
        if one is not None:
            findings += [restarted(name, one), as_deployed(name, one, environment)]
    return findings
