"""Provision a VPS from nothing by site.yml, once for each content of what is deployed, and keep it as a snapshot.

That with the earlier Prefect is made by the last release of the kit first, as the servers of its users are.
"""

from __future__ import annotations

import shutil
from dataclasses import asdict
from pathlib import Path

from . import inventory, snapshot
from .engine import docker
from .images import EARLIER, NEWEST, LabImages, content_hash
from .playbook import REPOSITORY, run_playbook
from .shell import LabError, cache_directory, locked, run, say, step, write_whole
from .snapshot import Snapshot
from .vps import Vps, volumes

#: The name that all VPSs made from a snapshot have; each is on a network of its own.
DOMAIN = "prefect.lab.test"
#: What site.yml puts on a host, and what it puts it there with.
DEPLOYED = ("ansible", "backups", "caddy", "compose", "flows", "systemd")
SECONDS_TO_PROVISION = 1800
#: The last released state of the kit, 0.4: hosts with the earlier Prefect are made by it, and come from there to this one.
RELEASED = "036d14b01d41a4d440162018986c143e3ceebd38"


#: An image has no access control lists either: those of cached results are kept in a file, and given back to a copy.
ACLS = """
import json, os
KEPT = "/var/lib/prefect-lab/acls"
NAMES = ("system.posix_acl_access", "system.posix_acl_default")
def read():
    found = []
    for folder, folders, files in os.walk("/var/lib/prefect-results"):
        for path in [folder] + [os.path.join(folder, name) for name in files]:
            for name in NAMES:
                try:
                    found.append([path, name, os.getxattr(path, name, follow_symlinks=False).hex()])
                except OSError:
                    pass
    return found
def write(found):
    for path, name, value in found:
        if os.path.exists(path):
            os.setxattr(path, name, bytes.fromhex(value), follow_symlinks=False)
"""


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


#: What it knows less of than the present kit: roles.
RELEASED_SETTINGS = {"prefect_users": [{"name": "admin"}], "prefect_workers_blocks": None}


def released_kit() -> Path | None:
    """A copy of the last released state of the kit; None in a clone without that commit. Raises LabError."""
    if run(["git", "-C", str(REPOSITORY), "cat-file", "-e", f"{RELEASED}^{{commit}}"], check=False).returncode:
        say(f"this clone does not have the commit {RELEASED}: the VPS begins with the present kit")
        return None
    there = cache_directory() / f"kit-{RELEASED[:12]}"
    if not there.is_dir():
        half_made = there.with_suffix(".new")
        shutil.rmtree(half_made, ignore_errors=True)
        half_made.mkdir(parents=True)
        packed = half_made / "kit.tar"
        run(["git", "-C", str(REPOSITORY), "archive", f"--output={packed}", RELEASED])
        run(["tar", "--extract", f"--file={packed}", f"--directory={half_made}"])
        packed.unlink()
        half_made.rename(there)
    return there


def ensure(images: LabImages) -> Snapshot:
    """The snapshot of the present content, made if it is not there: by one of several shards, while the others wait.

    Raises LabError with the end of site.yml's output when that fails.
    """
    # By version, since two shards make theirs at the same time.
    with locked(f"snapshot-{images.prefect}"):
        found = Snapshot(deployed_content(images))
        if not found.exists:
            _make(found, images)
        snapshot.remove_old(found.content)
        return found


def forget(images: LabImages) -> None:
    """Remove the snapshot of the present content, so that the next use provisions from nothing again."""
    with locked(f"snapshot-{images.prefect}"):
        Snapshot(deployed_content(images)).remove()


def _make(wanted: Snapshot, images: LabImages) -> None:
    wanted.remove()
    # Not "snapshot-…": its volumes would have the names of those that are kept.
    vps = Vps(f"builder-{wanted.content}")
    vps.down()
    try:
        vps.up(domain=DOMAIN)
        kit = released_kit() if images.prefect == EARLIER else None
        if kit is not None:
            inventory.write(wanted.inventory, vps, images, RELEASED_SETTINGS)
            with step(f"ansible-playbook site.yml of {RELEASED[:7]} on a bare VPS"):
                before = run_playbook(
                    wanted.inventory, "site.yml", timeout=SECONDS_TO_PROVISION, ansible=kit / "ansible"
                )
            if before.returncode:
                raise LabError(f"site.yml of {RELEASED[:7]} failed:\n{before.stdout[-8000:]}", "read its output above")
        inventory.write(wanted.inventory, vps, images)
        # A host keeps what it runs.
        words = [] if kit else version_words(images)
        with step(" ".join(["ansible-playbook site.yml", *words, *(["on that"] if kit else ["on a bare VPS"])])):
            run = run_playbook(wanted.inventory, "site.yml", *words, timeout=SECONDS_TO_PROVISION)
        if run.returncode:
            raise LabError(f"site.yml failed on a bare VPS:\n{run.stdout[-8000:]}", "read the end of its output above")
        # An image has none of the files that Docker mounts; machine.INIT adds this to a copy's.
        vps.ssh("mkdir --parents /var/lib/prefect-lab && grep '# prefect$' /etc/hosts > /var/lib/prefect-lab/hosts")
        vps.ssh("python3 -", text=ACLS + "json.dump(read(), open(KEPT, 'w'))")
        with step(f"shutting {vps.name} down"):
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
    vps.ssh("python3 -", text=ACLS + "write(json.load(open(KEPT)))")
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
