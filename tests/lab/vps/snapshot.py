"""Snapshots of provisioned VPSs: the container as an image, its volumes, its inventory, and what site.yml said.

A snapshot is named by the content of all that was deployed. Its record is written last, so a snapshot without one is
half made, and is made again.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .engine import docker
from .shell import cache_directory, step, write_whole

LABEL = "prefect-lab.snapshot"
#: How many are kept: the one in use, and the one before it for going back and forth between two branches.
KEPT = 2


@dataclass(frozen=True)
class Snapshot:
    """A provisioned VPS at rest, by the content that it was made from."""

    content: str

    @property
    def image(self) -> str:
        """The container's file system."""
        return f"prefect-lab/snapshot:{self.content}"

    @property
    def directory(self) -> Path:
        """Where its inventory and its record are."""
        return cache_directory() / "snapshots" / self.content

    @property
    def inventory(self) -> Path:
        """The inventory that it was provisioned with, with the secrets that were generated then."""
        return self.directory / "inventory"

    @property
    def exists(self) -> bool:
        return self._record.exists()

    @property
    def run(self) -> dict[str, Any]:
        """The run of site.yml that provisioned it, as the fields of a PlaybookRun."""
        return json.loads(self._record.read_text())

    @property
    def _record(self) -> Path:
        return self.directory / "first-run.json"

    def volume(self, path: str) -> str:
        """Name of its copy of the volume that a VPS has at this path."""
        return f"prefect-lab-snapshot-{self.content}-{Path(path).name}"

    def keep(self, container: str, volumes: dict[str, str], run: dict[str, Any], tools: str) -> None:
        """Keep a stopped container and its volumes (by their path) under this name; `tools` is an image that has cp."""
        with step(f"keeping a snapshot of {container}"):
            docker("commit", f"--change=LABEL {LABEL}={self.content}", container, self.image)
            for volume, path in volumes.items():
                docker("volume", "rm", "--force", self.volume(path))
                docker("volume", "create", f"--label={LABEL}={self.content}", self.volume(path))
                copy_volume(volume, self.volume(path), tools)
            write_whole(self._record, json.dumps(run))

    def remove(self) -> None:
        """Remove it, its record first. Nothing happens when it is not there."""
        self._record.unlink(missing_ok=True)
        shutil.rmtree(self.directory, ignore_errors=True)
        for volume in docker("volume", "ls", "--quiet", f"--filter=label={LABEL}={self.content}").stdout.split():
            docker("volume", "rm", "--force", volume)
        # A VPS that was made from it keeps it until it goes itself.
        docker("image", "rm", self.image, check=False)


def copy_volume(source: str, target: str, tools: str) -> None:
    """Copy all of a volume into another, with the device files and extended attributes of overlay file systems."""
    docker(
        "run", "--rm", "--label=prefect-lab", "--network=none", "--cap-add=SYS_ADMIN", "--cap-add=MKNOD",
        f"--volume={source}:/from:ro", f"--volume={target}:/to", tools, "cp", "--archive", "/from/.", "/to/",
    )  # fmt: skip


def all_snapshots() -> list[Snapshot]:
    """Every snapshot of this machine, half made ones included, the newest first."""
    found = cache_directory() / "snapshots"
    paths = sorted(found.iterdir(), key=lambda path: -path.stat().st_mtime) if found.is_dir() else []
    return [Snapshot(path.name) for path in paths]


def remove_old(current: str) -> None:
    """Remove all but the one in use and the newest others."""
    others = [one for one in all_snapshots() if one.content != current]
    for one in others[KEPT - 1 :]:
        with step(f"removing the snapshot {one.content}: its content has been replaced"):
            one.remove()


def remove_all() -> None:
    """Remove every snapshot."""
    for one in all_snapshots():
        one.remove()
