"""How this machine lets systemd and a Docker engine run in a container: capabilities, control groups, what runs first."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

from .shell import LabError

# Capabilities by their number in the kernel (include/uapi/linux/capability.h). Its last three, PERFMON, BPF and
# CHECKPOINT_RESTORE, are left out: Debian 12's engine does not know them, and SYS_ADMIN includes what they allow.
CAPABILITIES = (
    "CHOWN DAC_OVERRIDE DAC_READ_SEARCH FOWNER FSETID KILL SETGID SETUID SETPCAP LINUX_IMMUTABLE NET_BIND_SERVICE "
    "NET_BROADCAST NET_ADMIN NET_RAW IPC_LOCK IPC_OWNER SYS_MODULE SYS_RAWIO SYS_CHROOT SYS_PTRACE SYS_PACCT SYS_ADMIN "
    "SYS_BOOT SYS_NICE SYS_RESOURCE SYS_TIME SYS_TTY_CONFIG MKNOD LEASE AUDIT_WRITE AUDIT_CONTROL SETFCAP MAC_OVERRIDE "
    "MAC_ADMIN SYSLOG WAKE_ALARM BLOCK_SUSPEND AUDIT_READ"
).split()
# The kernel's modules and clock are the machine's, not the VPS's: with these a playbook in the lab would change
# them. Without them systemd skips the units that would (ConditionCapability=).
WITHHELD = {"SYS_MODULE", "SYS_TIME"}

# What runs before systemd, as PID 1 itself: `exec` keeps the process.
# - Shared mounts, or systemd credentials (LoadCredential=) silently have no directory.
# - Plain files where Docker mounts its own (with what a snapshot's VPS had there besides, since an image has them empty), so that the host's name can be changed, and a name server with an
#   address: Docker's own (127.0.0.11) lives in packet filter rules that a firewall's reload takes away, and a
#   Docker engine inside would not hand it on to its containers.
# - A boot id of its own for each boot: the kernel's is the machine's, and a reboot would show nowhere.
# - A writable cgroup tree that is this VPS's alone: on a hybrid host the bound directory is entered and made the
#   root of a cgroup namespace of its own (or two VPSs would be each other's /system.slice); what an earlier boot
#   left in it goes. On a pure v2 host docker mounts the container's own tree, read-only.
INIT = """
mount --make-rshared /
for file in hostname hosts resolv.conf; do
    content=$(cat /etc/$file)
    umount /etc/$file
    test -s /etc/$file || { printf '%s\\n' "$content" > /etc/$file; cat /var/lib/prefect-lab/$file >> /etc/$file; } 2> /dev/null
done
printf 'nameserver %s\\n' "$LAB_DNS" > /etc/resolv.conf
cat /proc/sys/kernel/random/uuid > /run/lab-boot-id
mount --bind /run/lab-boot-id /proc/sys/kernel/random/boot_id
if [ "$LAB_CGROUPS" = hybrid ]; then
    find /sys/fs/cgroup -mindepth 1 -depth -type d -exec rmdir {} + 2>/dev/null
    echo $$ > /sys/fs/cgroup/cgroup.procs
    exec env -u LAB_CGROUPS -u LAB_DNS unshare --cgroup /sbin/init
fi
mount -o remount,rw /sys/fs/cgroup
exec env -u LAB_DNS /sbin/init
"""


@dataclass(frozen=True)
class Cgroups:
    """How this machine mounts its control groups: `layout` is unified or hybrid, `root` the v2 mount."""

    layout: str
    root: Path


def container_name(name: str) -> str:
    """Name of a VPS's container; its volumes add what they hold."""
    return f"prefect-lab-{name}"


def capabilities_in(bounding_set: int) -> list[str]:
    """Capabilities of a bounding set (CapBnd of /proc/self/status, as a number) that a VPS gets."""
    names = [name for number, name in enumerate(CAPABILITIES) if bounding_set >> number & 1]
    return [name for name in names if name not in WITHHELD]


def cgroup_layout(root: Path = Path("/sys/fs/cgroup")) -> Cgroups:
    """Find the v2 hierarchy. Raises LabError where there is none: systemd 257 refuses version 1."""
    if (root / "cgroup.controllers").exists():
        return Cgroups("unified", root)
    if (root / "unified" / "cgroup.procs").exists():
        return Cgroups("hybrid", root / "unified")
    raise LabError(
        f'"{root}" has no cgroup v2 hierarchy, and the systemd of Debian 13 needs one',
        f"mkdir -p {root}/unified && mount -t cgroup2 cgroup2 {root}/unified",
    )


def security_flags(bounding_set: int, cgroups: Cgroups, name: str) -> list[str]:
    """Flags of `docker create` that let systemd and a Docker engine run inside.

    Not --privileged: it fails where the machine's bounding set lacks a capability, and would hand over devices.
    """
    flags = ["--cap-drop=ALL"]
    flags += [f"--cap-add={capability}" for capability in capabilities_in(bounding_set)]
    flags += ["--security-opt=seccomp=unconfined", "--security-opt=apparmor=unconfined"]
    flags += ["--security-opt=systempaths=unconfined"]
    if cgroups.layout == "hybrid":
        flags += [f"--volume={cgroups.root}/{container_name(name)}:/sys/fs/cgroup:rw", "--env=LAB_CGROUPS=hybrid"]
    else:
        flags += ["--cgroupns=private"]
    return flags


def bounding_set() -> int:
    """The capabilities that this process could get (CapBnd), as a number."""
    found = re.search(r"^CapBnd:\s*([0-9a-f]+)$", Path("/proc/self/status").read_text(), re.MULTILINE)
    assert found, "the kernel tells it of every process"
    return int(found[1], 16)


def make_cgroup(directory: str) -> None:
    """On a hybrid host, the control group that is bound into a VPS: it is gone when the machine has rebooted."""
    cgroups = cgroup_layout()
    if cgroups.layout == "hybrid" and os.access(cgroups.root, os.W_OK):
        (cgroups.root / directory).mkdir(exist_ok=True)


def remove_cgroups(directory: str) -> None:
    """Remove the empty control groups that a VPS leaves on a hybrid host."""
    cgroups = cgroup_layout()
    if cgroups.layout == "hybrid":
        tree = cgroups.root / directory
        for path in sorted((path for path in tree.rglob("*") if path.is_dir()), reverse=True):
            path.rmdir()
        if tree.is_dir():
            tree.rmdir()
