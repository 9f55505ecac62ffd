"""Backups, verifications and copies off-site: what `prefect-backup check` asks, each as a line of its own."""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import UTC, datetime

from prefect_backups.check import overdue
from prefect_backups.progress import duration
from prefect_backups.settings import Settings

from .finding import Finding, Level

COMMAND = re.compile(r"^(prefect-|systemctl |journalctl )")


def findings(problems: Sequence[str], newest: datetime | None, now: datetime) -> list[Finding]:
    """From the sentences of that check.

    Args:
        problems: most end with a colon and the command that mends it.
        newest: when the newest backup was made.
    """
    if problems:
        made = []
        for problem in problems:
            fact, _, mend = problem.rpartition(": ")
            if not COMMAND.match(mend):
                fact, mend = problem, "prefect-backup check --offsite"
            made.append(Finding(_concerns(problem), Level.BAD, fact, "none overdue", mend))
        return made
    age = f"the newest is {duration((now - newest).total_seconds())} old" if newest else "none"
    return [Finding("backups", Level.OK, age, "none overdue, none failed")]


def _concerns(problem: str) -> str:
    """The name of the check that a sentence of `prefect-backup check` belongs to."""
    copy = re.search(r"(?:newest copy|no copy) in ([^ ,;]+)", problem)
    if copy:
        return f"copies in {copy[1]}"
    return "backup verification" if "verif" in problem else "backups"


def check(settings: Settings) -> list[Finding]:
    """All of them. Raises Failure."""
    problems, newest = overdue(settings)
    return findings(problems, newest, datetime.now(UTC))
