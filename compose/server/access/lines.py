"""Where the lines of the audit go: to a pipe of Docker's, for whose sake nobody waits."""

from __future__ import annotations

import asyncio
import contextlib
import os
import select
import sys
from collections import deque

#: Lines that wait for a pipe that is full, and seconds after which it is tried again.
KEPT, AGAIN = 1000, 1.0


def apart() -> int:
    """A descriptor of stdout for these lines alone: whatever else this process writes there goes to stderr from now on.

    So a log message that looks like such a line is none, with or without a newline in it: Docker tells the two apart.
    """
    # Not inherited by anything that this process starts.
    own = os.dup(1)
    sys.stdout.flush()
    os.dup2(2, 1)
    return own


class Lines:
    """Writes lines, each by one call and whole.

    A pipe is full when Docker or the journal stand still. The server goes on: it would be a poor exchange to hold up every flow
    run for a line. Lines wait in memory; those that find no room there are lost, and their numbers show it.
    """

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._waiting: deque[str] = deque()
        self._timer: asyncio.TimerHandle | None = None

    def write(self, line: str) -> None:
        """Now, or as soon as it is possible."""
        if len(self._waiting) < KEPT:
            self._waiting.append(line)
        self.flush()

    def flush(self) -> None:
        """Write what the pipe takes without a wait."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        while self._waiting and self._takes():
            try:
                os.write(self._descriptor, self._waiting[0].encode("ascii") + b"\n")
            except OSError as error:
                print(f"audit: {len(self._waiting)} lines are not written: {error}", file=sys.stderr, flush=True)
                break
            self._waiting.popleft()
        if self._waiting:
            # Without a loop nothing serves any more.
            with contextlib.suppress(RuntimeError):
                self._timer = asyncio.get_running_loop().call_later(AGAIN, self.flush)

    def _takes(self) -> bool:
        """Whether a line of at most audit.LONGEST bytes is taken at once: a pipe that says so has a page to spare."""
        poll = select.poll()
        poll.register(self._descriptor, select.POLLOUT)
        return bool(poll.poll(0))
