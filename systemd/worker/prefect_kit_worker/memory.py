"""The memory of flow runs, and an end for the one that would eat all of it.

systemd's MemoryMax is the fence: beyond it the kernel kills somebody in the worker's group, mostly the largest. This
guard acts a little earlier, chooses the largest flow run, and says why in that run's logs; it also works where the
kernel has no memory controller.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

#: Of the limit; the rest is for the worker itself, and for what grows between two looks.
SHARE = 0.9
UNITS = {"": 1, "K": 1024, "M": 1024**2, "G": 1024**3, "T": 1024**4}


def limit_in_bytes(text: str, total: Callable[[], int]) -> int | None:
    """A limit as systemd writes it (`1500M`, `2G`, `60%`), in bytes; None for none (empty or `infinity`).

    Raises ValueError for anything else. `total` gives the host's memory in bytes, of which a percentage is taken.
    """
    if text in {"", "infinity"}:
        return None
    if match := re.fullmatch(r"([0-9]{1,3})%", text):
        return total() * int(match[1]) // 100
    if match := re.fullmatch(r"([0-9]+)([KMGT]?)", text):
        return int(match[1]) * UNITS[match[2]]
    raise ValueError(f'"{text}" is no limit of memory; allowed are bytes, a number with K, M, G or T, and a percentage')


def total_memory(proc: Path = Path("/proc")) -> int:
    """The host's memory in bytes."""
    match = re.search(r"^MemTotal:\s+(\d+) kB", (proc / "meminfo").read_text(), re.MULTILINE)
    return int(match[1]) * 1024 if match else 0


def _parents(proc: Path) -> dict[int, int]:
    """Every visible process with its parent."""
    parents: dict[int, int] = {}
    for entry in proc.iterdir():
        if entry.name.isdigit():
            try:
                # The name in parentheses may hold anything, spaces and parentheses too.
                parents[int(entry.name)] = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            except (OSError, ValueError, IndexError):
                continue
    return parents


def family(pid: int, proc: Path = Path("/proc")) -> list[int]:
    """A process and all its descendants."""
    parents = _parents(proc)
    found = [pid]
    for one in found:
        found += [child for child, parent in parents.items() if parent == one and child not in found]
    return found


def used(pids: list[int], proc: Path = Path("/proc")) -> int:
    """What the processes hold together, in bytes: shared pages are counted once (PSS), swapped ones too."""
    total = 0
    for pid in pids:
        try:
            text = (proc / str(pid) / "smaps_rollup").read_text()
        except OSError:
            continue
        total += sum(
            int(kilobytes) * 1024 for kilobytes in re.findall(r"^(?:Pss|SwapPss):\s+(\d+) kB", text, re.MULTILINE)
        )
    return total


def victim(sizes: dict[str, int], own: int, limit: int) -> str | None:
    """Which flow run has to go: the largest, when all together are beyond the limit's share; None while they are not."""
    if not sizes or own + sum(sizes.values()) <= limit * SHARE:
        return None
    return max(sizes, key=lambda run: sizes[run])


def megabytes(size: int) -> str:
    """For people: 1234 MB."""
    return f"{size / 1e6:.0f} MB"
