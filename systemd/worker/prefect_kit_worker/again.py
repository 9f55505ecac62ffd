"""A new run for a crashed one, where its deployment asks for it with the tag `rerun:N`, at most N times.

Every worker of the pool may try it at the same time: the idempotency key lets the server make one run of it, and says
which attempt it is, so that there is an end.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

TAG = re.compile(r"rerun:([1-9][0-9]?)")
KEY = re.compile(r"rerun/(?P<first>[0-9a-f-]{36})/(?P<attempt>[0-9]+)")
NAME = re.compile(r"-rerun-[0-9]+$")


@dataclass(frozen=True)
class Again:
    """How the new run is called, and which attempt it is of how many."""

    name: str
    idempotency_key: str
    attempt: int
    attempts: int


def wanted(tags: Iterable[str]) -> int:
    """How many new runs the tags ask for; the largest of them counts. 0: none."""
    found = (TAG.fullmatch(tag) for tag in tags)
    return max((int(match[1]) for match in found if match), default=0)


def next_attempt(run_id: str, name: str, tags: Iterable[str], idempotency_key: str | None) -> Again | None:
    """The run that follows a crashed one; None when none is asked for, or when there have been as many as asked."""
    attempts = wanted(tags)
    before = KEY.fullmatch(idempotency_key or "")
    first, attempt = (before["first"], int(before["attempt"]) + 1) if before else (run_id, 1)
    if attempt > attempts:
        return None
    return Again(f"{NAME.sub('', name)}-rerun-{attempt}", f"rerun/{first}/{attempt}", attempt, attempts)
