"""compose.yml as the tests read it: no `docker compose` is needed on the machine that runs the unit tests."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
COMPOSE = REPOSITORY / "compose" / "compose.yml"
# ${NAME}, ${NAME:-default} and ${NAME:?message}; compose.yml uses no other form.
VARIABLE = re.compile(r"\$\{([A-Z_]+)(?::([-?])([^}]*))?\}")


def interpolate(text: str, given: Mapping[str, str]) -> str:
    """What compose makes of the variables in `text`.

    Raises:
        KeyError: for a variable that is not given and has no default.
    """

    def value(found: re.Match[str]) -> str:
        name, operator, word = found.groups()
        return given[name] if name in given or operator != "-" else word

    return VARIABLE.sub(value, text)
