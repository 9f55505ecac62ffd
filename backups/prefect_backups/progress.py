"""What is being done, how far it is and how long it took: live on a terminal, plain lines in a journal.

A restore must not die of a lost terminal: writing is given up quietly when nobody is there to read.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import syslog
import time
from collections.abc import Callable, Iterator
from typing import Any, TextIO

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

# By whoever imports them from here.
from .words import duration as duration
from .words import size as size

# Sets how far a step is: a fraction from 0 to 1 and a few words, such as "412 of 980 MB".
Advance = Callable[[float | None, str], None]

# Seconds between two lines of one step in a journal.
LINE_EVERY = 15.0


# For crash tests: "kill:NAME" or "stop:NAME" ends or halts the tool where the step NAME begins ("NAME:end": ends).
FAILPOINT = os.environ.get("PREFECT_BACKUPS_FAILPOINT", "")


def failpoint(name: str) -> None:
    """Die or halt here, as a power cut would have it, when the environment says so."""
    how, _, where = FAILPOINT.partition(":")
    if where == name:
        os.kill(os.getpid(), signal.SIGKILL if how == "kill" else signal.SIGSTOP)


class _Unbreakable:
    """A stream that swallows errors of writing: the terminal may be gone, the work goes on."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        with contextlib.suppress(OSError, ValueError):
            return self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        with contextlib.suppress(OSError, ValueError):
            self._stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def result(facts: object) -> None:
    """The result as JSON on stdout, should anybody still be there to read it."""
    with contextlib.suppress(OSError):
        print(json.dumps(facts))


def outlived(status: int) -> int:
    """The exit code, whatever has become of the terminal.

    Python writes what is left for stdout and stderr at its end, and makes 120 of any exit code when it cannot: a
    restore that went well would be a unit that has failed.
    """
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError):
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, stream.fileno())
            os.close(nowhere)
    return status


class Report:
    """Steps with progress on `stream` (stderr: stdout is for results, such as --json)."""

    def __init__(self, stream: TextIO, quiet: bool = False, log: str = "") -> None:
        """With `log`, what is said also goes to the system's log under that name, for who has lost the terminal."""
        self._log = bool(log)
        if log:
            syslog.openlog(log)
        # A journal, a pipe or ssh without a terminal has no width; ids must not be cut to one that is made up.
        width = None if stream.isatty() else 200
        self.console = Console(
            file=_Unbreakable(stream),  # type: ignore[arg-type]
            highlight=False,
            soft_wrap=True,
            quiet=quiet,
            width=width,
        )
        self.seconds: dict[str, float] = {}

    @classmethod
    def silent(cls) -> Report:
        """One that nobody reads."""
        return cls(open(os.devnull, "w"), quiet=True)

    def say(self, text: str, style: str = "") -> None:
        """One line, or a few."""
        for line in text.splitlines() if self._log else ():
            syslog.syslog(line)
        self.console.print(text, style=style or None, markup=False)

    @contextlib.contextmanager
    def step(self, text: str, name: str = "") -> Iterator[Advance]:
        """`with report.step("dump of the database") as advance:` shows the step while it runs and its time at the end.

        The seconds it took are kept in `self.seconds[name or text]`.
        """
        failpoint(name or text)
        started = time.monotonic()
        live = self.console.is_terminal and not self.console.quiet
        bar: Progress | None = None
        said = started

        if live:
            bar = Progress(
                SpinnerColumn(),
                TextColumn("{task.description}"),
                BarColumn(bar_width=24),
                TextColumn("{task.fields[words]}"),
                TimeElapsedColumn(),
                console=self.console,
                transient=True,
            )
            task = bar.add_task(text, total=None, words="")
            bar.start()

        def advance(fraction: float | None, words: str = "") -> None:
            nonlocal said
            if bar is not None:
                bar.update(task, total=1.0, completed=min(fraction or 0.0, 1.0), words=words)
            elif time.monotonic() - said >= LINE_EVERY:
                said = time.monotonic()
                share = f" {min(fraction, 1.0):.0%}" if fraction is not None else ""
                self.say(f"    {text} …{share} {words} ({said - started:.0f} s)")

        well = False
        try:
            yield advance
            failpoint(f"{name or text}:end")
            well = True
        finally:
            if bar is not None:
                bar.stop()
            took = time.monotonic() - started
            self.seconds[name or text] = round(took, 2)
            self.say(f"  {'ok  ' if well else 'FAILED'} {text}: {took:.1f} s", style="" if well else "bold red")
