"""Which Prefect and which Postgres an image holds: by its tag, or else by asking the image itself."""

from __future__ import annotations

import re

import docker
import docker.errors

from .errors import Code, Failure


def prefect_version(image: str) -> str:
    """The version of Prefect in an image."""
    found = re.search(r":(\d+\.\d+\.\d+[a-z0-9]*)", image)
    if found:
        return found[1]
    said = docker.from_env().containers.run(
        image, ["python", "-c", "import prefect; print(prefect.__version__)"], network_mode="none", remove=True
    )
    return said.decode().strip().splitlines()[-1]


def local_version(image: str) -> str:
    """The version of Prefect in an image that has to be on this host. Raises Failure (INCOMPATIBLE) where it is not."""
    try:
        docker.from_env().images.get(image)
    except docker.errors.DockerException as error:
        raise Failure(
            Code.INCOMPATIBLE, f'the image "{image}" is not on this host: {error}', f"docker pull {image}"
        ) from error
    return prefect_version(image)


def major_of(image: str) -> int | None:
    """The major version that the tag of an image of Postgres begins with, also beside a digest; None where it has none."""
    found = re.search(r":(\d+)(?:[.-][^:/]*)?$", image.partition("@")[0])
    return int(found[1]) if found else None


def postgres_major(image: str) -> int:
    """The major version of Postgres in an image. Raises Failure (INCOMPATIBLE) where neither tag nor image tells."""
    if (major := major_of(image)) is not None:
        return major
    try:
        engine = docker.from_env()
        # By its id: what is not here is not fetched.
        here = engine.images.get(image).id
        said = engine.containers.run(
            here, ["--version"], entrypoint="postgres", network_mode="none", remove=True
        ).decode()
    except docker.errors.DockerException as error:
        said = str(error)
    if found := re.search(r"\(PostgreSQL\) (\d+)", said):
        return int(found[1])
    raise Failure(
        Code.INCOMPATIBLE,
        f'Refusing to restore: which Postgres "{image}" is, neither its tag nor the image itself tells:'
        f' "{" ".join(said.split())}"',
        "name it with its version in the inventory, such as prefect_postgres_image: postgres:17@sha256:…; then run:"
        " site.yml --tags stack",
    )
