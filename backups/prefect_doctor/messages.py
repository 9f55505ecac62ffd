"""Alerts, and events for Datadog, that prefect-watch could not deliver yet, and retries."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

from prefect_backups.settings import Settings
from prefect_watch import datadog_queue, outbox
from prefect_watch.datadog_queue import Position
from prefect_watch.outbox import Message

from .finding import Finding, Level

#: Seconds for which Datadog may be away: what waits is sent then.
EVENTS_PATIENCE = 600.0


def findings(waiting: Sequence[Message]) -> list[Finding]:
    """Whether people can be reached."""
    if not waiting:
        return [Finding("alert delivery", Level.OK, "none waiting", "all delivered")]
    since = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(waiting[0].made))
    measured = f"{len(waiting)} waiting since {since}; the last attempt: {waiting[-1].error}"
    return [Finding("alert delivery", Level.BAD, measured, "all delivered", "prefect-watch test")]


def events(position: Position, now: float) -> list[Finding]:
    """Whether Datadog takes events; nothing of it while it does, or none are wanted. What waits is lost after 18 hours."""
    if not position.error or now - position.error_since < EVENTS_PATIENCE:
        return []
    since = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(position.error_since))
    return [
        Finding("events for Datadog", Level.WARNING, f"since {since}: {position.error}", "taken", "prefect-watch test")
    ]


def check(settings: Settings) -> list[Finding]:
    """All of them."""
    state = Path(settings.state)
    position = datadog_queue.load(datadog_queue.places(state))
    return findings([message for _, message in outbox.waiting(state)]) + events(position, time.time())
