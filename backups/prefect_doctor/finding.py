"""What a check has found: what it measured, what is allowed, and what to do."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from enum import IntEnum


class Level(IntEnum):
    """How bad it is; also the exit code, after the Nagios plugin guidelines."""

    OK = 0
    #: Nothing fails yet.
    WARNING = 1
    #: Something fails, or is lost soon.
    BAD = 2
    #: The check could not run; the reason may be as bad as any.
    UNKNOWN = 3


@dataclass(frozen=True)
class Finding:
    """One line of the table."""

    check: str
    level: Level
    measured: str
    allowed: str = ""
    mend: str = ""
    #: For alerts: more context, such as the last lines of a log.
    detail: str = ""
    #: In transition, such as a unit that is starting: prefect-watch keeps the state that it knew before.
    pending: bool = False


#: Most characters of a check's name, and of what is said of it.
NAME, WORDS = 200, 1000


def one_line(text: str) -> str:
    """A text on one line, without what a terminal would obey."""
    return " ".join("".join(mark if mark.isprintable() else " " for mark in text).split())


def readable(one: Finding) -> Finding:
    """As a person can read it, whatever names are in it: in Prefect they may have any characters, and be of any length."""
    measured, allowed, mend = (one_line(words)[:WORDS] for words in (one.measured, one.allowed, one.mend))
    return replace(one, check=one_line(one.check)[:NAME], measured=measured, allowed=allowed, mend=mend)


def playbook(arguments: str) -> str:
    """The command that runs a playbook, for a finding's `mend`.

    Args:
        arguments: the playbook and what follows it, such as `site.yml --tags workers`.
    """
    return f"on the control machine: ansible-playbook -i inventory/mine {arguments}"


def cli(arguments: str) -> str:
    """The command of Prefect's own CLI, which hosts do not have, for a finding's `mend`.

    Args:
        arguments: what follows `prefect`, such as `work-pool ls`.
    """
    return f"from your laptop (docs/access.md): prefect {arguments}"


def worst_first(findings: Iterable[Finding]) -> list[Finding]:
    """In the order in which a person has to read them; equal ones stay as they are."""
    order = (Level.BAD, Level.UNKNOWN, Level.WARNING, Level.OK)
    return sorted(findings, key=lambda one: order.index(one.level))


def worst(findings: Iterable[Finding]) -> Level:
    """The level of the worst; OK where there is none."""
    return next((one.level for one in worst_first(findings)), Level.OK)


def graded(value: float, warning: float, bad: float) -> Level:
    """The level of a figure of which more is worse, from its two limits on."""
    return Level.BAD if value >= bad else Level.WARNING if value >= warning else Level.OK
