"""The table of routes: which permission each needs."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

#: Beside this program.
TABLE = Path(__file__).with_name("routes.txt")
#: Of a route that is not in the table: only an administrator may.
UNKNOWN = "admin"
#: Permissions, and what whoever has one may do.
PERMISSIONS = {
    "public": "read what says nothing of anybody's work: versions, health, the UI's own files",
    "read": "read flow runs, deployments, logs, variables and settings",
    # Their secrets only for whom decide.py lets have them.
    "blocks": "read blocks",
    "run": "run deployments",
    "state": "cancel, pause, resume or retry flow runs",
    "operate": "edit schedules, pause deployments, or answer flow runs that wait for input",
    "define": "create, change or delete flows and deployments",
    "variables": "create, change or delete variables",
    # States, logs, events, task runs, artifacts, slots.
    "work": "report what flow runs do",
    "poll": "poll work pools",
    "admin": "do this",
    "nobody": "do this, and neither may anybody else",
}


@dataclass(frozen=True)
class Route:
    """A route of Prefect's API."""

    #: GET, POST, …; WS for a websocket.
    method: str
    #: With names in braces, each for a part between slashes; {path} for all that follows.
    template: str
    permission: str
    why: str = ""

    @property
    def pattern(self) -> re.Pattern[str]:
        """Matches whole paths, and gives the parts by their names."""
        parts = re.split(r"\{(\w+)\}", self.template)
        words = [re.escape(part) if number % 2 == 0 else _part(part) for number, part in enumerate(parts)]
        return re.compile("".join(words))


def _part(name: str) -> str:
    return f"(?P<{name}>.*)" if name == "path" else f"(?P<{name}>[^/]+)"


def parsed(text: str) -> list[Route]:
    """The routes of a table. Raises ValueError, with the line, where it is not one."""
    found = []
    for number, line in enumerate(text.splitlines(), 1):
        words, _, why = line.partition("#")
        if not words.strip():
            continue
        try:
            method, template, permission = words.split()
        except ValueError:
            raise ValueError(f"line {number} is not METHOD PATH PERMISSION: {line}") from None
        if permission not in PERMISSIONS:
            raise ValueError(f"line {number} has no permission that there is: {permission}")
        found.append(Route(method, template, permission, why.strip()))
    return found


class Table:
    """Finds the route of a request."""

    def __init__(self, routes: Iterable[Route]) -> None:
        self._routes = [(route, route.pattern) for route in routes]

    def find(self, method: str, path: str) -> list[tuple[Route, dict[str, str]]]:
        """The routes that a request may be of, with the parts of its path.

        More than one where a name can stand for a word of another route; whoever asks needs the permissions of all.

        Args:
            path: as Prefect's own router sees it, decoded.
        """
        method = "GET" if method == "HEAD" else method
        found = [
            (route, match.groupdict())
            for route, pattern in self._routes
            if route.method == method and (match := pattern.fullmatch(path))
        ]
        literal = [(route, parts) for route, parts in found if not parts]
        return literal or found


@lru_cache(maxsize=1)
def table() -> Table:
    """That of this release."""
    return Table(parsed(TABLE.read_text()))


def permissions(found: Iterable[tuple[Route, dict[str, str]]], method: str, path: str) -> frozenset[str]:
    """What a request needs, all of it.

    Args:
        found: its routes; none where there is no such route.
    """
    needed = frozenset(route.permission for route, _ in found)
    if needed:
        return needed
    # The UI: a page for each address, and its files.
    if method in ("GET", "HEAD") and path != "/api" and not path.startswith("/api/"):
        return frozenset({"public"})
    return frozenset({UNKNOWN})
