"""Scheduled runs that come too late to be of use, after an hour without server or workers, say.

Prefect runs them all when it can again. A deployment with the tag `skip-if-late:SECONDS` has those of its schedules'
runs cancelled instead that are later than that. What a person or a program asked for is always run.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from datetime import datetime, timedelta

TAG = re.compile(r"skip-if-late:([0-9]{1,7})")


def allowed_lateness(tags: Iterable[str]) -> timedelta | None:
    """How late a scheduled run may begin; the strictest tag counts. None: as late as may be."""
    found = (TAG.fullmatch(tag) for tag in tags)
    seconds = [int(match[1]) for match in found if match]
    return timedelta(seconds=min(seconds)) if seconds else None


def too_late(auto_scheduled: bool, due: datetime | None, tags: Iterable[str], now: datetime) -> timedelta | None:
    """How late the run is, when that is later than its tags allow; else None."""
    allowed = allowed_lateness(tags)
    if not auto_scheduled or due is None or allowed is None:
        return None
    lateness = now - due
    return lateness if lateness > allowed else None
