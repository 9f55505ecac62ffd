"""Alerts that prefect-watch could not deliver yet, and retries."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

from prefect_backups.settings import Settings
from prefect_watch import outbox
from prefect_watch.outbox import Message

from .finding import Finding, Level


def findings(waiting: Sequence[Message]) -> list[Finding]:
    """Whether people can be reached."""
    if not waiting:
        return [Finding("alert delivery", Level.OK, "none waiting", "all delivered")]
    since = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(waiting[0].made))
    measured = f"{len(waiting)} waiting since {since}; the last attempt: {waiting[-1].error}"
    return [Finding("alert delivery", Level.BAD, measured, "all delivered", "prefect-watch test")]


def check(settings: Settings) -> list[Finding]:
    """All of them."""
    return findings([message for _, message in outbox.waiting(Path(settings.state))])
