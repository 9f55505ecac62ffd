"""docs/data.md names every place where something is kept: what containers mount, and what units may write."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "data.md").read_text()
#: Of systemd, what it makes below which directory.
BASES = {"State": "/var/lib", "Cache": "/var/cache", "Runtime": "/run", "Logs": "/var/log"}
#: Not places of their own: above those that are, or a person's disks for backups.
ABOVE = {"/var/lib/prefect", "/var/lib/docker/volumes", "/mnt", "/media", "/srv", "/run/prefect-worker"}


def mounted() -> Iterator[str]:
    """What the containers can write, on the host."""
    for service in yaml.safe_load((ROOT / "compose" / "compose.yml").read_text())["services"].values():
        for volume in service.get("volumes", []):
            if isinstance(volume, str):
                yield f"prefect_{volume.partition(':')[0]}"
            elif not volume.get("read_only"):
                yield re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", volume["source"])


def written() -> Iterator[str]:
    """What the units have made for them, and may write."""
    for unit in (ROOT / "systemd").glob("**/*"):
        if unit.suffix not in (".service", ".conf", ".timer", ".socket"):
            continue
        for kind, value in re.findall(r"^(\w+)Directory=(.*)$", unit.read_text(), re.MULTILINE):
            if kind in BASES:
                yield from (f"{BASES[kind]}/{name.partition('/')[0]}" for name in value.split())
        for value in re.findall(r"^ReadWritePaths=(.*)$", unit.read_text(), re.MULTILINE):
            yield from (path.lstrip("-") for path in value.split())


def made() -> Iterator[str]:
    """Directories that the roles make for what is kept."""
    for tasks in (ROOT / "ansible" / "roles").glob("*/tasks/*.yml"):
        for name in re.findall(r'path: "\{\{ __prefect_state \}\}/([a-z-]+)", state: directory', tasks.read_text()):
            yield f"/var/lib/prefect/{name}"


@pytest.mark.parametrize("place", sorted({*mounted(), *written(), *made()} - ABOVE))
def test_each_place_is_on_the_page(place: str) -> None:
    """Itself, or a directory that it is in."""
    parents = (
        {str(parent) for parent in Path(place).parents} - ABOVE - {"/", ".", "/var", "/var/lib", "/var/cache", "/run"}
    )
    assert any(re.search(rf"{re.escape(one)}(?![\w-])", PAGE) for one in {place} | parents)


def test_the_places_are_found() -> None:
    assert {"prefect_postgres", "/var/lib/prefect/caddy"} <= set(mounted())
    assert {"/var/lib/prefect-watch", "/var/backups/prefect", "/etc/prefect"} <= set(written())
    assert "/var/lib/prefect/monitoring" in set(made())
