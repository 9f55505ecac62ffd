"""Drain and resume by hand: `prefect-worker-drain` and `prefect-worker-resume`.

A drained worker stays up, so that it reports its flow runs; it only takes no new ones. Pausing the pool or a queue is
Prefect's own means and stops every host's workers; this one stops one worker.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path

from .held import HeldRun, HeldRuns

CONFIGURATION = Path("/etc/prefect/workers")
STATE = Path("/var/lib/prefect-worker")


def workers(configuration: Path = CONFIGURATION) -> list[str]:
    """The workers of this host, by their configuration."""
    return sorted(path.name.removesuffix(".env") for path in configuration.glob("*.env") if ".secret." not in path.name)


def _named(names: list[str], every: bool) -> list[str]:
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
    return here if every else names


def _fail(fact: str, hint: str) -> None:
    print(f"error: {fact}\nHINT: {hint}", file=sys.stderr)
    raise SystemExit(2)


def _mark(name: str) -> Path:
    return STATE / name / "drain"


def _under_way(name: str) -> list[HeldRun]:
    return HeldRuns(STATE / name / "held.json").left_behind()


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
    for name in names:
        _mark(name).parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        _mark(name).touch(mode=0o644)
    # A fetch may be under way at this very moment; what it takes stands in the file a little later.
    time.sleep(1)
    started, said = time.monotonic(), ""
    while True:
        runs = [f"{run.name} (since {run.since})" for name in names for run in _under_way(name)]
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
    for name in names:
        _mark(name).unlink(missing_ok=True)
    print(f"taking flow runs again: {', '.join(names)}")
    return 0
