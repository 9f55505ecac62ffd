"""What systemd is told, by its own protocol (sd_notify(3)): one datagram of KEY=VALUE lines to a socket.

The socket's name is taken out of the environment: flow runs inherit that, and must not speak for the worker.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Iterable


def status(names: Iterable[str], taking: bool, seconds: float | None = None) -> str:
    """One line for `systemctl status`: the flow runs in hand, and `seconds` that they still have when it is stopping."""
    runs = ", ".join(names) or "none"
    if seconds is not None:
        return f"Stopping; up to {seconds:.0f} s more for flow runs: {runs}"
    return f"{'Taking flow runs' if taking else 'Taking no new flow runs'}; under way: {runs}"


class Systemd:
    """The way to tell systemd; silent where there is none (a worker started by hand)."""

    def __init__(self) -> None:
        address = os.environ.pop("NOTIFY_SOCKET", "")
        # An abstract socket's name begins with a zero byte, which the environment cannot hold.
        self._address = f"\0{address[1:]}" if address.startswith("@") else address
        #: Seconds within which WATCHDOG=1 is awaited; None: no watchdog.
        self.watchdog_seconds = int(os.environ.pop("WATCHDOG_USEC", "0")) / 1e6 or None
        os.environ.pop("WATCHDOG_PID", None)

    def tell(self, **fields: str | int) -> None:
        """Send `KEY=value` for each field; a systemd that does not listen is no error of ours."""
        if not self._address:
            return
        message = "\n".join(f"{key}={value}" for key, value in fields.items())
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as channel:
            try:
                channel.sendto(message.encode(), self._address)
            except OSError:
                return
