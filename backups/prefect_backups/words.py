"""Figures in words, for a person. Standard library only: what looks at a host without the tools uses it, too."""

from __future__ import annotations


def size(count: float) -> str:
    """Bytes in words: 0.4 MB, 731 MB, 12.3 GB (decimal units, as disks are sold)."""
    if count >= 1e9:
        return f"{count / 1e9:.1f} GB"
    return f"{count / 1e6:.0f} MB" if count >= 1e7 else f"{count / 1e6:.1f} MB"


def duration(seconds: float) -> str:
    """A time in words: 42 s, 12 minutes, 3 hours, 5 days."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    for unit, length in (("minutes", 60), ("hours", 3600)):
        if seconds < 2 * {"minutes": 3600, "hours": 86400}[unit]:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds / 86400:.0f} days"
