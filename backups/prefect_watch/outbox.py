"""Messages that could not be delivered: kept, retried, and reported by prefect-doctor.

One file a message, in the tools' state, which only root reads: addresses are not in it, only which of them have it.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from prefect_backups.files import write_whole

# Seconds between two tries of the same message: doubled each time, up to the last one.
FIRST, LAST = 60.0, 3600.0
# Older ones are dropped, and so are the oldest where there are more: a crash of last month helps nobody.
KEPT_DAYS = 7
KEPT = 200
# Seconds after which no further one is tried in this look: an address that does not answer costs eight each time, and many wait.
PATIENCE = 20.0


@dataclass
class Message:
    """One message, and how far it got. Moments in seconds since 1970."""

    title: str
    body: str
    made: float
    tries: int = 0
    tried: float = 0.0
    # Fingerprints of the addresses that have it.
    told: list[str] = field(default_factory=list)
    error: str = ""

    def due(self, now: float) -> bool:
        """Whether it is time to try again; a clock that was wrong holds nothing up."""
        return not 0 <= now - self.tried < min(LAST, FIRST * 2 ** max(self.tries - 1, 0))


def fingerprint(url: str) -> str:
    return hashlib.sha256(url.encode()).hexdigest()[:16]


def directory(state: Path) -> Path:
    return state / "outbox"


def waiting(state: Path) -> list[tuple[Path, Message]]:
    """The messages that wait, oldest first; what is no message is left alone."""
    found = []
    for path in sorted(directory(state).glob("*.json")):
        try:
            found.append((path, Message(**json.loads(path.read_text()))))
        except (OSError, ValueError, TypeError):
            continue
    return found


# Sends title and body to some addresses; gives those that failed, and an error without secrets.
Sender = Callable[[Sequence[str], str, str], tuple[list[str], str]]


def deliver(
    state: Path, urls: Sequence[str], title: str, body: str, send: Sender, kept: Callable[[], None] = lambda: None
) -> str:
    """Send a message now, and keep it where an address does not take it; gives what went wrong, or nothing.

    Args:
        kept: called between the two: whatever happens from then on, the message is not lost.
    """
    now = time.time()
    message, path = Message(title, body, made=now), directory(state) / f"{time.time_ns()}.json"
    # A full disk must not keep the alert about it from being sent.
    with contextlib.suppress(OSError):
        directory(state).mkdir(mode=0o700, parents=True, exist_ok=True)
        _write(path, message)
        for old, _ in waiting(state)[:-KEPT]:
            old.unlink(missing_ok=True)
    kept()
    _try(message, urls, send, now)
    with contextlib.suppress(OSError):
        _write(path, message) if message.error else path.unlink(missing_ok=True)
    return message.error


def _write(path: Path, message: Message) -> None:
    write_whole(path, json.dumps(asdict(message)) + "\n")


def again(state: Path, urls: Sequence[str], send: Sender) -> tuple[int, int]:
    """Try what waits and is due; gives how many were delivered, and how many still wait."""
    now, end = time.time(), time.monotonic() + PATIENCE
    delivered = 0
    for path, message in waiting(state):
        # On a full disk it stays as it is: of what cannot be written down, people would be told each minute.
        with contextlib.suppress(OSError):
            if now - message.made > KEPT_DAYS * 86400:
                path.unlink(missing_ok=True)
            elif message.due(now) and time.monotonic() < end:
                _write(path, message)
                _try(message, urls, send, now)
                delivered += not message.error
                _write(path, message) if message.error else path.unlink(missing_ok=True)
    return delivered, len(waiting(state))


def _try(message: Message, urls: Sequence[str], send: Sender, now: float) -> None:
    missing = [url for url in urls if fingerprint(url) not in message.told]
    failed, message.error = send(missing, message.title, message.body)
    message.tries, message.tried = message.tries + 1, now
    message.told += [fingerprint(url) for url in missing if url not in failed]
