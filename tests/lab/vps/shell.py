"""Run commands, say what goes on, and keep files of the lab's cache directory whole."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shlex
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

SECONDS_BETWEEN_SIGNS_OF_LIFE = 10


class LabError(Exception):
    """What went wrong, as a fact with its values quoted, and a hint with a command that helps."""

    def __init__(self, fact: str, hint: str) -> None:
        super().__init__(fact)
        self.fact = fact
        self.hint = hint

    def __str__(self) -> str:
        return f"ERROR: {self.fact}\nHINT: {self.hint}"


def cache_directory() -> Path:
    """Where the lab keeps keys, image archives and logs between runs; made if it is not there."""
    path = Path(os.environ.get("PREFECT_LAB_CACHE") or Path.home() / ".cache" / "prefect-kit" / "lab")
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    return path


def say(text: str) -> None:
    """One progress line on stderr."""
    print(f"[lab] {text}", file=sys.stderr, flush=True)


@contextlib.contextmanager
def step(text: str) -> Iterator[None]:
    """Say what begins, every ten seconds that it still goes on, and how many seconds it took when it is done."""
    say(f"{text} …")
    started = time.monotonic()
    over = threading.Event()

    def go_on_saying() -> None:
        while not over.wait(SECONDS_BETWEEN_SIGNS_OF_LIFE):
            say(f"{text} … {time.monotonic() - started:.0f} s")

    threading.Thread(target=go_on_saying, daemon=True).start()
    try:
        yield
    finally:
        over.set()
    say(f"{text}: {time.monotonic() - started:.1f} s")


def run(
    command: Sequence[str],
    *,
    text: str | None = None,
    check: bool = True,
    timeout: float | None = None,
    environment: Mapping[str, str] | None = None,
) -> subprocess.CompletedProcess[str]:
    """Run a command to its end with its output captured.

    `text` goes to its standard input, `environment` is added to ours, `timeout` is in seconds.
    Raises LabError when it fails (unless `check` is false), cannot be started, or takes too long.
    """
    shown = shlex.join(command)
    if len(shown) > 300:
        shown = shown[:300] + " …"
    try:
        done = subprocess.run(
            command,
            input=text,
            stdin=subprocess.DEVNULL if text is None else None,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=timeout,
            env={**os.environ, **(environment or {})},
        )
    except FileNotFoundError as error:
        raise LabError(f'command "{command[0]}" was not found', f"install it, then run again: {shown}") from error
    except subprocess.TimeoutExpired as error:
        raise LabError(f'"{shown}" did not end within {timeout:.0f} s', "look at what it waits for") from error
    if check and done.returncode:
        tail = "\n".join((done.stderr.strip() or done.stdout.strip()).splitlines()[-15:])
        raise LabError(f'"{shown}" ended with exit code {done.returncode}:\n{tail}', f"run it by hand: {shown}")
    return done


def write_whole(path: Path, content: str, mode: int = 0o600) -> None:
    """Write a file so that it is either as it was or complete, never half-made."""
    temporary = path.with_name(path.name + f".{os.getpid()}.tmp")
    with open(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode), "w") as stream:
        stream.write(content)
        stream.flush()
        os.fsync(stream.fileno())
    temporary.rename(path)


@contextlib.contextmanager
def locked(name: str) -> Iterator[None]:
    """Hold the lab's lock of this name: two runs at once must not start an engine or build images twice."""
    with open(cache_directory() / f"{name}.lock", "w") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say(f'waiting for another run of the lab that holds "{name}"')
            fcntl.flock(stream, fcntl.LOCK_EX)
        yield


def apt_install(packages: Sequence[str], why: str) -> None:
    """Install Debian packages on this machine. Raises LabError where that is not possible."""
    wanted = " ".join(packages)
    if not Path("/usr/bin/apt-get").exists():
        raise LabError(f'{why} needs "{wanted}", and this machine has no apt-get', "install it by hand and run again")
    if os.geteuid() != 0:
        raise LabError(
            f'{why} needs "{wanted}", and only root may install it',
            f"sudo apt-get install --no-install-recommends {wanted}",
        )
    with step(f"apt-get install {wanted}"):
        apt = ["apt-get", "-qq", "-o", "DPkg::Lock::Timeout=300"]
        quiet = {"DEBIAN_FRONTEND": "noninteractive"}
        run([*apt, "update"], environment=quiet)
        run([*apt, "install", "--yes", "--no-install-recommends", *packages], environment=quiet)
