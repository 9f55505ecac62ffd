"""Provision a VPS from nothing by site.yml, once for each content of what is deployed, and keep it as a snapshot."""

from __future__ import annotations

import shutil
from dataclasses import asdict
from pathlib import Path

from . import inventory, snapshot
from .engine import docker
from .images import NEWEST, LabImages, content_hash
from .playbook import REPOSITORY, run_playbook
from .shell import LabError, locked, run, step, write_whole
from .snapshot import Snapshot
from .vps import Vps, volumes

#: The name that all VPSs made from a snapshot have; each is on a network of its own.
DOMAIN = "prefect.lab.test"
#: What site.yml puts on a host, and what it puts it there with.
DEPLOYED = ("ansible", "backups", "caddy", "compose", "flows", "systemd")
SECONDS_TO_PROVISION = 1800
BUILDER = "snapshot"


def deployed_content(images: LabImages) -> str:
    """16 hexadecimal digits that change with all that a provisioned VPS of the lab is made of."""
    settings = inventory.as_yaml(inventory.group_variables(DOMAIN, images))
    # RECOVERY.md names the commit.
    commit = run(["git", "-C", str(REPOSITORY), "describe", "--always", "--dirty"], check=False).stdout
    return content_hash([REPOSITORY / folder for folder in DEPLOYED], [images.vps, images.prefect, settings, commit])


def version_words(images: LabImages) -> list[str]:
    """What the first site.yml on a host needs to be told of the version of Prefect; every later one keeps it."""
    # What a new host gets by itself, nobody types.
    return [] if images.prefect == NEWEST else ["-e", f"prefect_version={images.prefect}"]


def ensure(images: LabImages) -> Snapshot:
    """The snapshot of the present content, made if it is not there: by one of several shards, while the others wait.

    Raises LabError with the end of site.yml's output when that fails.
    """
    with locked("snapshot"):
        found = Snapshot(deployed_content(images))
        if not found.exists:
            _make(found, images)
        snapshot.remove_old(found.content)
        return found


def forget(images: LabImages) -> None:
    """Remove the snapshot of the present content, so that the next use provisions from nothing again."""
    with locked("snapshot"):
        Snapshot(deployed_content(images)).remove()


def _make(wanted: Snapshot, images: LabImages) -> None:
    wanted.remove()
    vps = Vps(BUILDER)
    vps.down()
    try:
        vps.up(domain=DOMAIN)
        inventory.write(wanted.inventory, vps, images)
        words = version_words(images)
        with step(" ".join(["ansible-playbook site.yml", *words, "on a bare VPS"])):
            run = run_playbook(wanted.inventory, "site.yml", *words, timeout=SECONDS_TO_PROVISION)
        if run.returncode:
            raise LabError(f"site.yml failed on a bare VPS:\n{run.stdout[-8000:]}", "read the end of its output above")
        # An image has none of the files that Docker mounts; machine.INIT adds this to a copy's.
        vps.ssh("mkdir --parents /var/lib/prefect-lab && grep '# prefect$' /etc/hosts > /var/lib/prefect-lab/hosts")
        with step(f"shutting {BUILDER} down"):
            docker("stop", vps.container)
        wanted.keep(vps.container, volumes(vps.name), asdict(run), images.outsider)
    finally:
        vps.down()


def from_snapshot(vps: Vps, directory: Path, images: LabImages) -> Snapshot:
    """Make the VPS, which must be absent, from the snapshot, with its inventory in `directory`."""
    source = ensure(images)
    shutil.rmtree(directory, ignore_errors=True)
    shutil.copytree(source.inventory, directory)
    vps.up(domain=DOMAIN, source=source)
    inventory.write(directory, vps, images)
    _move_recovery_kit(directory, source.inventory)
    return source


def _move_recovery_kit(directory: Path, origin: Path) -> None:
    """Make the recovery kit in an inventory that was copied from `origin` what site.yml would write there."""
    kit = directory / "recovery-kit"
    for name in ("hosts.yml", "group_vars/all.yml"):
        write_whole(kit / "inventory" / name, (directory / name).read_text())
    text = (kit / "RECOVERY.md").read_text()
    write_whole(kit / "RECOVERY.md", text.replace(str(origin), str(directory)))
