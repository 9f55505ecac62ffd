"""Whether the audit is kept: lines that nobody collects go when the journal is rotated."""

from __future__ import annotations

from pathlib import Path

from prefect_audit.keep import COLLECTED
from prefect_backups.words import duration

from .finding import Finding, Level

#: Seconds without a collection; the timer has one each minute.
LATE = 900.0


def check(directory: Path, now: float) -> Finding:
    """When lines were collected last.

    Args:
        directory: of the audit.
        now: seconds since 1970.
    """
    limit = f"collected within {duration(LATE)}"
    try:
        age = now - (directory / COLLECTED).stat().st_mtime
        words = f"collected {duration(max(0.0, age))} ago"
    except OSError:
        age, words = LATE, "never collected"
    if age < LATE:
        return Finding("audit", Level.OK, words, limit)
    mend = "journalctl -u prefect-audit -n 30; systemctl status prefect-audit.timer"
    return Finding("audit", Level.WARNING, words, limit, mend)
