"""Commands of the host."""

from __future__ import annotations

import os
import subprocess

from .errors import Code, Failure


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
        words = " / ".join((done.stderr or done.stdout).strip().splitlines()[-4:])
        raise Failure(code, f'"{" ".join(arguments[:6])} …" ended with {done.returncode}: "{words}"', hint)
    return done.stdout
