"""Programs of the host that checks run. Standard library only."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping

#: Seconds that one may take, on a machine that has much else to do.
PATIENCE = 20


def said(*command: str, environment: Mapping[str, str] | None = None) -> str:
    """What a program writes to stdout; empty where it is not there.

    Raises:
        TimeoutError: it takes longer than PATIENCE. What it would have said is not known, and may be bad.
    """
    more = None if environment is None else {"PATH": os.environ.get("PATH", os.defpath), **environment}
    try:
        # A line of the journal has what its program wrote, in any encoding.
        done = subprocess.run(
            command, capture_output=True, text=True, errors="replace", check=False, timeout=PATIENCE, env=more
        )
    except subprocess.TimeoutExpired:
        raise TimeoutError(f"{command[0]} gave no answer within {PATIENCE} s") from None
    except OSError:
        return ""
    return done.stdout
