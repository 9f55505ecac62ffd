"""Drain and resume by hand: `prefect-worker-drain` and `prefect-worker-resume`.

A drained worker stays up, so that it reports its flow runs; it only takes no new ones. Pausing the pool or a queue is
Prefect's own means and stops every host's workers; this one stops one worker.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import sys
import time
from pathlib import Path

from .held import HeldRun, HeldRuns

#: Where the workers of each kind are configured, and where they keep what they hold.
KINDS = {
    Path("/etc/prefect/workers"): Path("/var/lib/prefect-worker"),
    Path("/etc/prefect/docker-workers"): Path("/var/lib/prefect-docker-worker"),
}


def workers(kinds: dict[Path, Path] = KINDS) -> dict[str, Path]:
    """The workers of this host, by their configuration, each with the directory of its state."""
    return {
        path.name.removesuffix(".env"): state / path.name.removesuffix(".env")
        for configuration, state in kinds.items()
        for path in sorted(configuration.glob("*.env"))
        if ".secret." not in path.name
    }


def _named(names: list[str], every: bool) -> dict[str, Path]:
    if os.geteuid() != 0:
        _fail("this needs root", "sudo " + " ".join([Path(sys.argv[0]).name, *sys.argv[1:]]))
    here = workers()
    unknown = [name for name in names if name not in here]
    if unknown:
        _fail(
            f'there is no worker "{unknown[0]}" on this host; there is {", ".join(here) or "none"}',
            "ls /etc/prefect/workers",
        )
    if not names and not every:
        _fail(f"name a worker; there is {', '.join(here) or 'none'}", "or say --all")
    return here if every else {name: here[name] for name in names}


def _fail(fact: str, hint: str) -> None:
    print(f"error: {fact}\nHINT: {hint}", file=sys.stderr)
    raise SystemExit(2)


def _under_way(state: Path) -> list[HeldRun]:
    return HeldRuns.read(state / "held.json")


def _printable(text: str) -> str:
    """For a terminal: the file is one that flow runs can write."""
    return "".join(character if character.isprintable() else "?" for character in text)


def drain(words: list[str] | None = None) -> int:
    """Mark the workers as drained and wait until they hold no flow run; gives the exit code."""
    parser = argparse.ArgumentParser(
        prog="prefect-worker-drain", description="Take no new flow runs, wait for those under way."
    )
    parser.add_argument("names", nargs="*", metavar="NAME")
    parser.add_argument("--all", action="store_true", dest="every", help="every worker of this host")
    parser.add_argument("--seconds", type=float, default=3600, help="how long to wait for flow runs (default: 3600)")
    options = parser.parse_args(words)
    names = _named(options.names, options.every)
    for state in names.values():
        state.mkdir(mode=0o700, parents=True, exist_ok=True)
        # Flows may write there: whatever one of them has left under that name is a mark, too, and is not opened.
        with contextlib.suppress(FileExistsError):
            os.close(os.open(state / "drain", os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644))
    # A fetch may be under way at this very moment; what it takes stands in the file a little later.
    time.sleep(1)
    started, said = time.monotonic(), ""
    while True:
        runs = [_printable(f"{run.name} (since {run.since})") for state in names.values() for run in _under_way(state)]
        if not runs:
            print(f"drained: {', '.join(names)}. No new flow runs until: prefect-worker-resume {' '.join(names)}")
            return 0
        if (now := ", ".join(runs)) != said:
            print(f"{time.monotonic() - started:5.0f} s  waiting for {len(runs)}: {now}", flush=True)
            said = now
        if time.monotonic() - started > options.seconds:
            print(f"error: still under way after {options.seconds:.0f} s: {now}", file=sys.stderr)
            print("HINT: wait longer with --seconds, or end them: systemctl stop prefect-worker@NAME", file=sys.stderr)
            return 1
        time.sleep(0.5)


def resume(words: list[str] | None = None) -> int:
    """Take the marks away; gives the exit code."""
    parser = argparse.ArgumentParser(
        prog="prefect-worker-resume", description="Take flow runs again after prefect-worker-drain."
    )
    parser.add_argument("names", nargs="*", metavar="NAME")
    parser.add_argument("--all", action="store_true", dest="every", help="every worker of this host")
    options = parser.parse_args(words)
    names = _named(options.names, options.every)
    for state in names.values():
        try:
            (state / "drain").unlink(missing_ok=True)
        except IsADirectoryError:
            # A flow has made that; it does not follow links either.
            shutil.rmtree(state / "drain")
    print(f"taking flow runs again: {', '.join(names)}")
    return 0
