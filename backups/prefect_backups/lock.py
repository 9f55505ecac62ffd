"""One backup, verification, clean-up or restore at a time on a host."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path

from .errors import Code, Failure
from .progress import duration

# How long somebody waits by default, in seconds: an hourly backup gives way to a verification that takes minutes.
PATIENCE = 0.0
# At least so long: who only asks whether it is held (held), as prefect-watch does each minute, holds it for a moment.
ASKED = 0.3
# And what a playbook does, for which a person waits: the hourly backup must not fail it.
PLAYBOOK = 900.0


@contextlib.contextmanager
def only_one(state: Path, what: str, patience: float = PATIENCE) -> Iterator[None]:
    """Hold the lock of this host while the block runs; the kernel lets go of it when the process dies.

    Args:
        state: directory of the tools' state.
        what: what the holder does, for the others' error text, such as "a backup".
        patience: seconds to wait for another holder.

    Raises:
        Failure: BUSY, naming who is at work and since when.
    """
    state.mkdir(mode=0o700, parents=True, exist_ok=True)
    end = time.monotonic() + max(patience, ASKED)
    with open(state / "lock", "a+") as file:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError as error:
                if time.monotonic() > end:
                    file.seek(0)
                    raise _busy(file.read()) from error
                time.sleep(0.2)
        # On a full disk others are not told who it is, and that is all.
        with contextlib.suppress(OSError):
            file.truncate(0)
            json.dump({"what": what, "pid": os.getpid(), "since": time.time()}, file)
            file.flush()
        try:
            yield
        finally:
            # Children inherit no lock (Python opens without inheritance), so this is its end.
            file.truncate(0)


@contextlib.contextmanager
def briefly(directory: Path) -> Iterator[None]:
    """Hold a directory for a moment, against others that read a file in it, change it and write it back; waits for them."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def held(state: Path) -> tuple[str, float] | None:
    """What the holder of the lock does, as it has said, and since when (seconds since 1970); None when nobody holds it."""
    try:
        with open(state / "lock", "a+") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return None
            except BlockingIOError:
                file.seek(0)
                said = json.loads(file.read())
                return said["what"], float(said["since"])
    except FileNotFoundError:
        return None
    except (ValueError, KeyError):
        return "another backup, verification or restore", 0.0


def holder(state: Path) -> str | None:
    """What the holder of the lock does, as it has said; None when nobody holds it."""
    found = held(state)
    return found[0] if found else None


def _busy(text: str) -> Failure:
    try:
        holder = json.loads(text)
        long = duration(max(0.0, time.time() - holder["since"]))
        who = f"{holder['what']} (process {holder['pid']}) has been at work for {long}"
    except (ValueError, KeyError):
        who = "another backup, verification or restore is at work"
    return Failure(
        Code.BUSY, f"Refusing to start: {who}", "wait until it has ended; see: systemctl list-units 'prefect-*'"
    )
