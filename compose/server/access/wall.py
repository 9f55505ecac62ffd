"""Puts the gate before the application that `prefect server start` serves."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from . import audit, lines
from .gate import Gate
from .roles import Accounts

#: Written by the playbook; compose.yml mounts its directory.
ACCOUNTS = Path(os.environ.get("PREFECT_KIT_ACCOUNTS", "/run/prefect-access/accounts.json"))


def build(*before: Callable[[], object]) -> None:
    """Have uvicorn serve the gate. What the server asks of itself, within the process, does not pass it.

    Args:
        before: called when Prefect's application is made, and before anybody can ask it.
    """
    # Before anything of Prefect's could write there.
    written = lines.Lines(lines.apart())
    import uvicorn

    uvicorn.run = guarded(uvicorn.run, written, *before)


def guarded(serve: Callable[..., Any], written: lines.Lines, *before: Callable[[], object]) -> Callable[..., Any]:
    """`uvicorn.run`, with the gate before its application.

    Args:
        written: where the audit goes.
        before: as for `build`.
    """

    @functools.wraps(serve)
    def run(app: Any, **options: Any) -> Any:
        if isinstance(app, str):
            # A wall that is built around nothing is worse than none.
            raise TypeError(f"prefect server start gives uvicorn no application but a name: {app}")
        for do in before:
            do()
        numbers = audit.numbers()
        gate = Gate(app, Accounts(ACCOUNTS), lambda one: written.write(one.line(next(numbers))))
        return serve(app=gate, **options)

    return run
