"""Images and versions of what is deployed."""

from __future__ import annotations

import re
from typing import Any

from .words import given, is_file, quoted

# A pinned image: a tag that is not "latest", or a digest.
IMAGE = re.compile(r"[a-z0-9./:_-]+(:(?!latest$)[A-Za-z0-9._-]+|@sha256:[0-9a-f]{64})")
# The database's files are of this major version of Postgres.
POSTGRES_MAJOR = "17"


def image_problems(settings: dict[str, Any], name: str) -> list[str]:
    """What is wrong with one of the images; a server of another version than the workers is refused (drift)."""
    image = settings[name]
    pinned = IMAGE.fullmatch(image)
    if not pinned:
        return [f"{given(name, image)}; it must be pinned by a tag other than latest, or by a digest"]
    # Also beside a digest.
    tagged = re.search(r":([^:/]+)$", image.partition("@")[0])
    tag = tagged[1] if tagged else ""
    # Of a tag that begins with no version nothing can be said.
    found = re.match(r"[0-9]+\.[0-9]+\.[0-9]+", tag)
    if name == "prefect_image" and found and found[0] != settings["prefect_version"]:
        return [
            f"{given(name, image)}; that is not the version {quoted(settings['prefect_version'])} of prefect_version"
        ]
    if name == "prefect_postgres_image" and not tag:
        return [
            f"{given(name, image)}; beside its digest it must have a tag, which tells its major version, such as "
            f"postgres:{POSTGRES_MAJOR}@sha256:…"
        ]
    major = re.match(r"[0-9]+", tag)
    if name == "prefect_postgres_image" and major and major[0] != POSTGRES_MAJOR:
        return [
            f"{given(name, image)}; it must be of Postgres {POSTGRES_MAJOR}, as another major version cannot read the database's "
            "files"
        ]
    return []


def version_problems(settings: dict[str, Any], locked_version: str) -> list[str]:
    """A version that this release of the kit is not made for."""
    version = settings["prefect_version"]
    if version == locked_version:
        return []
    return [
        f"{given('prefect_version', version)}; this release of the kit locks its workers to {quoted(locked_version)}, "
        "and server and workers of different versions break each other"
    ]


def archive_problems(settings: dict[str, Any]) -> list[str]:
    """An archive of the images that is not there; what it holds is looked at where it is needed (server.yml)."""
    archive = settings["prefect_images_archive"]
    if not archive or is_file(archive):
        return []
    return [
        f"prefect_images_archive is {quoted(archive)}; it must be empty, or the absolute path of a file on the control machine"
    ]
