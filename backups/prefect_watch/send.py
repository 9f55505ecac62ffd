"""Send a message to people, by apprise. The addresses are secret: they are never printed, nor is what a service answers."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from pathlib import Path

from . import outbox
from .settings import Watch


def send(urls: Sequence[str], title: str, body: str) -> tuple[list[str], str]:
    """Send to each address; gives those that failed, and an error that names them by number and kind only."""
    # Importing it takes half of the time of a run, and most runs send nothing.
    import apprise

    # apprise logs addresses when it fails.
    logging.disable(logging.CRITICAL)
    failed, words = [], []
    for number, url in enumerate(urls, 1):
        target = apprise.Apprise()
        added = target.add(url)
        for service in target:
            # What is longer than a service takes (Discord 2,000 characters, Telegram 4,096) it would refuse, each time.
            if service.overflow_mode is apprise.OverflowMode.UPSTREAM:
                service.overflow_mode = apprise.OverflowMode.TRUNCATE
        if not added or not target.notify(body=body, title=title, body_format=apprise.NotifyFormat.TEXT):
            kind = url.split("://", 1)[0] if "://" in url else "not an address"
            failed.append(url)
            words.append(f"number {number} ({kind})")
    return failed, f"{len(failed)} of {len(urls)} addresses failed: {', '.join(words)}" if failed else ""


def tell(watch: Watch, state: Path, title: str, body: str, kept: Callable[[], None] = lambda: None) -> str:
    """Tell people; gives what went wrong, or nothing. What could not be delivered is kept, and tried again (outbox.py).

    Args:
        state: directory of the tools' state.
        kept: called as soon as the message can no longer be lost.
    """
    if not watch.notify_urls:
        kept()
        return ""
    return outbox.deliver(state, watch.notify_urls, title, body, send, kept)
