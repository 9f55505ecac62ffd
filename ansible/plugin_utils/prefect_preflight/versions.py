"""Images and versions of what is deployed."""

from __future__ import annotations

import re
from typing import Any

from .words import given, is_file, listed, quoted

# A pinned image: a tag that is not "latest", or a digest.
IMAGE = re.compile(r"[a-z0-9./:_-]+(:(?!latest$)[A-Za-z0-9._-]+|@sha256:[0-9a-f]{64})")
# The major versions of Postgres that the kit supports, the oldest first: the database's files are of one of them.
POSTGRES_MAJORS = ("17", "18")


def image_version(image: str) -> str:
    """The version that an image's tag begins with, also beside a digest; empty: of such a tag nothing can be said."""
    found = re.match(r"[0-9]+\.[0-9]+\.[0-9]+", _tag(image))
    return found[0] if found else ""


def order(version: str) -> list[int]:
    """What versions are sorted by."""
    return [int(part) for part in re.findall(r"[0-9]+", version)]


def version_listed(supported: list[str]) -> str:
    """The versions that the kit supports, as a part of a sentence."""
    return f"this release of the kit supports {listed(map(quoted, supported))}"


def _tag(image: str) -> str:
    """An image's tag, also beside a digest; empty where it has none."""
    tagged = re.search(r":([^:/]+)$", image.partition("@")[0])
    return tagged[1] if tagged else ""


def image_problems(settings: dict[str, Any], name: str) -> list[str]:
    """What is wrong with one of the images."""
    image = settings[name]
    pinned = IMAGE.fullmatch(image)
    if not pinned:
        return [f"{given(name, image)}; it must be pinned by a tag other than latest, or by a digest"]
    tag = _tag(image)
    if name == "prefect_postgres_image" and not tag:
        return [
            f"{given(name, image)}; beside its digest it must have a tag, which tells its major version, such as "
            f"postgres:{POSTGRES_MAJORS[0]}@sha256:…"
        ]
    if name == "prefect_postgres_image" and (major := postgres_major(image)) and major not in POSTGRES_MAJORS:
        return [f"{given(name, image)}; it must be of Postgres {' or '.join(POSTGRES_MAJORS)}"]
    return []


def postgres_major(image: str) -> str:
    """The major version of Postgres that an image's tag begins with; empty where it tells none."""
    found = re.match(r"[0-9]+", _tag(image))
    return found[0] if found else ""


def version_problems(settings: dict[str, Any], supported: list[str]) -> list[str]:
    """A version that this release of the kit is not made for."""
    version = settings["prefect_version"]
    return [] if version in supported else [f"{given('prefect_version', version)}; {version_listed(supported)}"]


def server_image_problems(settings: dict[str, Any], supported: list[str]) -> list[str]:
    """An image of Prefect that this release of the kit is not made for.

    Whether it is of the version that the host runs is asked when the host has told it (running.py).
    """
    image, version = settings["prefect_image"], image_version(settings["prefect_image"])
    # What prefect_version says too has been told.
    if not version or version in supported or version == settings["prefect_version"]:
        return []
    return [f"{given('prefect_image', image)}, which is Prefect {quoted(version)}; {version_listed(supported)}"]


def archive_problems(settings: dict[str, Any]) -> list[str]:
    """An archive of the images that is not there; what it holds is looked at where it is needed (server.yml)."""
    archive = settings["prefect_images_archive"]
    if not archive or is_file(archive):
        return []
    return [
        f"prefect_images_archive is {quoted(archive)}; it must be empty, or the absolute path of a file on the control machine"
    ]
