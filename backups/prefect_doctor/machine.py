"""The machine: disks, memory, the clock, failed units, a pending reboot. Standard library only."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from prefect_backups.settings import Settings
from prefect_backups.unit_names import UNITS
from prefect_backups.words import duration, size

from .asked import said
from .finding import Finding, Level, graded, playbook

#: Of a disk: the share that is used, and the bytes that are left, whichever comes first. Backups keep off what their reserve_mb says.
DISK_WARNING, DISK_BAD = 0.85, 0.95
LEFT_WARNING, LEFT_BAD = 3_000_000_000, 1_000_000_000
#: Share of the memory that is in use, without what the kernel can give up.
MEMORY_WARNING, MEMORY_BAD = 0.9, 0.97
#: Share of the last five minutes in which all processes waited for memory (PSI, "full").
PRESSURE_WARNING, PRESSURE_BAD = 0.05, 0.25
#: Swap that is in use holds what nobody has needed for long. It hurts where processes wait for what is in it: this share of the
#: swap, while some process has waited for this share of the last five minutes (PSI, "some").
SWAP_WARNING, SWAP_PRESSURE = 0.5, 0.1
#: Days that a reboot may wait for.
REBOOT_DAYS = 7
#: Failed units that units.py tells of in more words.
OTHERWISE_CHECKED = (*UNITS, "prefect-worker@", "prefect-docker-worker@")


@dataclass(frozen=True)
class Disk:
    """One file system."""

    path: str
    #: Bytes.
    total: int
    free: int
    inodes: int
    inodes_free: int


@dataclass(frozen=True)
class Machine:
    """What was found."""

    disks: list[Disk]
    #: Bytes.
    memory: int
    memory_available: int
    #: Share of the last five minutes in which all processes waited for it; None where the kernel does not tell.
    pressure: float | None
    #: Processes that the kernel has killed for memory since boot.
    killed: int
    clock_synchronised: bool
    failed: list[str] = field(default_factory=list)
    #: Seconds for which a reboot has been waiting; None: none does.
    reboot: float | None = None
    #: Bytes of swap, and those that are free.
    swap: int = 0
    swap_free: int = 0
    #: Share of the last five minutes in which some process waited for memory.
    some_pressure: float | None = None


def disks(paths: Sequence[str]) -> list[Disk]:
    """The file systems of some paths, each once."""
    found: dict[int, Disk] = {}
    for path in paths:
        if not Path(path).exists():
            continue
        at = os.statvfs(path)
        device = Path(path).stat().st_dev
        blocks, free = at.f_blocks * at.f_frsize, at.f_bavail * at.f_frsize
        found.setdefault(device, Disk(path, blocks, free, at.f_files, at.f_favail))
    return list(found.values())


def pressure_of(text: str, kind: str = "full") -> float | None:
    """The share of the last five minutes from /proc/pressure/memory; None where it is not there.

    Args:
        kind: `full`, all processes waited, or `some`, at least one.
    """
    for line in text.splitlines():
        first, *pairs = line.split()
        if first == kind:
            return float(dict(pair.split("=") for pair in pairs)["avg300"]) / 100
    return None


def _age(path: str) -> float | None:
    try:
        return time.time() - Path(path).stat().st_mtime
    except OSError:
        return None


def _text(path: str) -> str:
    try:
        return Path(path).read_text()
    except OSError:
        return ""


def look(settings: Settings | None) -> Machine:
    """Raises OSError where /proc is not as it should be.

    Args:
        settings: of the tools; None on a host that has none.
    """
    lines = dict(line.split(":", 1) for line in _text("/proc/meminfo").splitlines())
    memory = {
        name: int(lines[name].split()[0]) * 1024 for name in ("MemTotal", "MemAvailable", "SwapTotal", "SwapFree")
    }
    counts = dict(line.split() for line in _text("/proc/vmstat").splitlines())
    pressure = _text("/proc/pressure/memory")
    failed = said("systemctl", "list-units", "--failed", "--plain", "--no-legend", "--no-pager")
    ours = [settings.repository, settings.staging] if settings else ["/var/lib/prefect-worker"]
    return Machine(
        disks=disks(["/", "/var/lib/docker", *ours, "/tmp"]),  # noqa: S108
        memory=memory["MemTotal"],
        memory_available=memory["MemAvailable"],
        pressure=pressure_of(pressure),
        killed=int(counts.get("oom_kill", 0)),
        clock_synchronised=said("timedatectl", "show", "--property=NTPSynchronized", "--value").strip() == "yes",
        failed=[line.split()[0] for line in failed.splitlines() if line.strip()],
        reboot=_age("/run/reboot-required"),
        swap=memory["SwapTotal"],
        swap_free=memory["SwapFree"],
        some_pressure=pressure_of(pressure, "some"),
    )


def disk(one: Disk) -> Finding:
    """Room on a disk, and inodes: a disk of many small files is full without them."""
    used = 1 - one.free / max(one.total, 1)
    inodes = 1 - one.inodes_free / one.inodes if one.inodes else 0.0
    level = max(
        graded(max(used, inodes), DISK_WARNING, DISK_BAD),
        # The last gigabytes of a large disk are as many as those of a small one.
        Level.BAD if one.free < LEFT_BAD else Level.WARNING if one.free < LEFT_WARNING else Level.OK,
    )
    words = f"{used:.0%} used, {size(one.free)} free" + (
        f", {inodes:.0%} of its inodes" if inodes > DISK_WARNING else ""
    )
    limit = f"less than {DISK_WARNING:.0%}, {size(LEFT_WARNING)} free"
    mend = f"du -xhd2 {one.path} | sort -h | tail; docker system prune; prefect-backup prune" if level else ""
    return Finding(f"disk {one.path}", level, words, limit, mend)


def memory(found: Machine) -> Finding:
    """Memory in use, and how long everything has waited for it."""
    used = 1 - found.memory_available / max(found.memory, 1)
    level = graded(used, MEMORY_WARNING, MEMORY_BAD)
    words = f"{used:.0%} of {size(found.memory)} in use"
    if found.pressure is not None:
        level = max(level, graded(found.pressure, PRESSURE_WARNING, PRESSURE_BAD))
        words += f"; all processes waited for memory {found.pressure:.0%} of 5 min"
    mend = "systemd-cgtop --order=memory; set memory_max in prefect_workers, or get more memory" if level else ""
    return Finding(
        "memory", level, words, f"less than {MEMORY_WARNING:.0%} in use, {PRESSURE_WARNING:.0%} waiting", mend
    )


def swap(found: Machine) -> list[Finding]:
    """Swap in use together with processes that wait for memory; none where there is no swap."""
    if not found.swap:
        return []
    used, waited = 1 - found.swap_free / found.swap, found.some_pressure or 0.0
    level = Level.WARNING if used >= SWAP_WARNING and waited >= SWAP_PRESSURE else Level.OK
    words = f"{used:.0%} of {size(found.swap)} in use; some process waited for memory {waited:.0%} of 5 min"
    limit = f"less than {SWAP_WARNING:.0%} in use, or {SWAP_PRESSURE:.0%} waiting"
    mend = "systemd-cgtop --order=memory; vmstat 5; set memory_max in prefect_workers" if level else ""
    return [Finding("swap", level, words, limit, mend)]


def killed(found: Machine) -> Finding:
    """Processes that the kernel had to kill. It keeps no time of them: they count until a reboot."""
    level = Level.WARNING if found.killed else Level.OK
    mend = (
        "journalctl --dmesg --grep 'Killed process|oom-kill'; set limit and memory_max in prefect_workers"
        if level
        else ""
    )
    return Finding("out-of-memory kills", level, f"{found.killed} since boot", "0", mend)


def clock(found: Machine) -> Finding:
    """A clock that runs away makes schedules late, certificates invalid and heartbeats old."""
    level = Level.OK if found.clock_synchronised else Level.WARNING
    words = "synchronised" if found.clock_synchronised else "not synchronised"
    return Finding("clock", level, words, "synchronised", "timedatectl timesync-status" if level else "")


def units(found: Machine) -> Finding:
    """What systemd could not start, ours or not, but for what has a check of its own (units.py)."""
    failed = [name for name in found.failed if not name.startswith(OTHERWISE_CHECKED)]
    ours = [name for name in failed if name.startswith("prefect-")]
    level = Level.BAD if ours else Level.WARNING if failed else Level.OK
    mend = f"systemctl status {failed[0]}; when that is solved: systemctl reset-failed {failed[0]}" if failed else ""
    return Finding("failed units", level, ", ".join(failed) or "none", "none", mend)


def reboot(found: Machine) -> Finding:
    """An update of the kernel, or of a library, that is in effect after a reboot only."""
    if found.reboot is None:
        return Finding("reboot", Level.OK, "none pending", f"within {REBOOT_DAYS} days")
    level = graded(found.reboot / 86400, REBOOT_DAYS, 4 * REBOOT_DAYS)
    mend = playbook("upgrade.yml --tags host") if level else ""
    return Finding("reboot", level, f"pending for {duration(found.reboot)}", f"within {REBOOT_DAYS} days", mend)


def findings(found: Machine) -> Sequence[Finding]:
    """All of them."""
    return [
        *(disk(one) for one in found.disks),
        memory(found),
        *swap(found),
        killed(found),
        clock(found),
        units(found),
        reboot(found),
    ]
