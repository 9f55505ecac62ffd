"""Commands of the host."""

from __future__ import annotations

import os
import re
import subprocess

from .errors import Code, Failure

TRACEBACK = "Traceback (most recent call last)"
ERROR = re.compile(r"[A-Za-z_][\w.]*(Error|Exception|Exit|Interrupt): ")


def run_command(
    arguments: list[str], code: Code, hint: str, seconds: float = 600, environment: dict[str, str] | None = None
) -> str:
    """Run a command of the host; gives its stdout. Raises Failure with its last words.

    Args:
        arguments: the command line; never a secret.
        code: exit code of the Failure.
        hint: of the Failure.
        seconds: that it may take.
        environment: variables beside ours.
    """
    more = None if environment is None else os.environ | environment
    try:
        done = subprocess.run(arguments, capture_output=True, text=True, timeout=seconds, check=False, env=more)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise Failure(code, f'"{" ".join(arguments)}" failed: {error}', hint) from error
    if done.returncode:
        words = why(done.stderr or done.stdout)
        raise Failure(code, f'"{" ".join(arguments[:6])} …" ended with {done.returncode}: "{words}"', hint)
    return done.stdout


def why(text: str) -> str:
    """Why a program has failed, of what it said: a Python program's last error, else its last four lines."""
    lines = text.strip().splitlines()
    # What follows it is the statement and an address (SQLAlchemy), or that there was an exception (Prefect).
    errors = [line.strip() for line in lines if ERROR.match(line)] if TRACEBACK in text else []
    return errors[-1] if errors else " / ".join(lines[-4:])
