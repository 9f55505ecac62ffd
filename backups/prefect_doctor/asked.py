"""Programs of the host that checks run. Standard library only."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping

#: Seconds that one may take, since a person waits for the result.
PATIENCE = 4


def said(*command: str, environment: Mapping[str, str] | None = None) -> str:
    """What a program writes to stdout; empty where it is not there, or takes too long."""
    more = None if environment is None else {"PATH": os.environ.get("PATH", os.defpath), **environment}
    try:
        # A line of the journal has what its program wrote, in any encoding.
        done = subprocess.run(
            command, capture_output=True, text=True, errors="replace", check=False, timeout=PATIENCE, env=more
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout
