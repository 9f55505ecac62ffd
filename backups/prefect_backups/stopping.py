"""Ctrl-C and `systemctl stop` during a restore: taken back while that is possible, put off during the short stop."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager

from .progress import Report


class Interrupted(Exception):
    """A person said stop, while stopping was still possible."""


class Stop:
    """Whether a person may still say stop."""

    def __init__(self) -> None:
        self.possible = True

    def put_off(self) -> None:
        """From here on: what follows takes seconds and must be whole."""
        self.possible = False


@contextmanager
def stoppable(report: Report) -> Iterator[Stop]:
    """Signals raise Interrupted in the block, once, until they are put off."""
    stop = Stop()

    def handle(number: int, frame: object) -> None:
        if stop.possible:
            stop.put_off()
            raise Interrupted(signal.Signals(number).name)
        report.say("      The short stop is under way and ends by itself in seconds; not stopping now.")

    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    # The terminal may go; the work does not.
    before[signal.SIGHUP] = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
