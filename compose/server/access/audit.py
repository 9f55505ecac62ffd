"""Who did what: a line of JSON for each request that changes something, and for each that was refused."""

from __future__ import annotations

import itertools
import json
import secrets
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any

from .decide import Asked, Found, state_type
from .naming import Target
from .roles import Account
from .routes import Route

#: By which a line is known, and told from lines of a later kind: the first key of each.
FIRST = '{"audit": 1, '
#: Bytes of a line: a pipe takes so many at once or not at all (PIPE_BUF), so no two lines are ever mixed.
LONGEST = 4096
#: Of what a client can make as long as it likes, so much: a character takes 12 bytes at most.
PATH, NAME, WHY = 1300, 900, 700

#: Permissions that change nothing, but for what a worker takes.
READS = frozenset({"read", "blocks", "public", "poll"})
#: What a flow reports that runs on a person's own machine: those lines would hide the others.
REPORTS = (
    "/api/artifacts/",
    "/api/concurrency_limits/",
    "/api/events",
    "/api/flows/",
    "/api/logs/",
    "/api/task_runs/",
    "/api/v2/concurrency_limits/",
)
#: Account and variable by which the kit's own check writes something each minute (backups/prefect_doctor/way_in.py).
PROBE = ("backups", Target("variable", "prefect_kit_doctor"))
#: Refusals of one account that are noted within a minute: whoever repeats one for ever shall not fill the disk.
REFUSALS, MINUTE = 60, 60.0
ENOUGH = " Further refusals of this account are not noted for a minute."


@dataclass(frozen=True)
class Number:
    """By which it is seen that a line is missing."""

    #: Of the server's process.
    start: str
    #: From 1 up.
    number: int


def numbers() -> Iterator[Number]:
    """Those of this process."""
    start = secrets.token_hex(4)
    return (Number(start, number) for number in itertools.count(1))


@dataclass(frozen=True)
class Entry:
    """One thing that somebody did, or tried to do."""

    time: str
    account: str
    role: str
    method: str
    #: Without its query, which can hold anything.
    path: str
    #: What it was about, as Prefect calls it, and its name: deployment, FLOW/NAME.
    kind: str
    name: str
    #: The type of the state that a flow run was to get.
    state: str
    #: 0: the request ended without an answer, so nobody was told whether it was done.
    status: int
    refused: str
    address: str

    def line(self, number: Number) -> str:
        """As it is written down: ASCII, and no longer than LONGEST."""
        found = {**asdict(self), **asdict(number)}
        for key, room in (("path", PATH), ("name", NAME), ("refused", WHY), ("account", 300), ("method", 40)):
            found[key] = _short(found[key], room)
        return FIRST + json.dumps({key: value for key, value in found.items() if value != ""})[1:]


def _short(text: str, room: int) -> str:
    """As much of a text as takes `room` bytes of JSON."""
    text = text[:room]
    while len(json.dumps(text)) - 2 > room:
        text = text[: -max(1, len(text) // 10)]
    return text


def changes(account: Account, asked: Asked, found: Found) -> bool:
    """Whether it changes something that a person, or a program of its own accord, has done."""
    if asked.method in ("GET", "HEAD", "OPTIONS", "WS"):
        return False
    return not found or not all(_is_chatter(account, asked, route) for route, _ in found)


def _is_chatter(account: Account, asked: Asked, route: Route) -> bool:
    """What flow runs and workers do all the time, and what only looks like a change."""
    if route.permission in READS:
        return True
    if account.role == "worker":
        # To cancel is a decision; all other states say how far a flow run is.
        return route.permission == "work" or (route.permission == "state" and state_type(asked) != "CANCELLING")
    return route.permission == "work" and route.template.startswith(REPORTS)


def _state(asked: Asked) -> str:
    """What state a flow run is to get; whatever else a client writes there is none."""
    found = state_type(asked)
    return found if found.isalpha() and found.isascii() and len(found) <= 20 else ""


def names_are_in_the_body(asked: Asked) -> bool:
    """Whether what a request is about may be told by its body: of what is made, and of a state."""
    return asked.method in ("POST", "PUT")


class Refusals:
    """Which refusals are noted."""

    def __init__(self) -> None:
        self._windows: dict[str, tuple[float, int]] = {}

    def words(self, account: str, why: str, now: float) -> str:
        """What is noted of a refusal; empty: it is left out.

        Args:
            now: seconds of any clock.
        """
        began, count = self._windows.get(account, (now, 0))
        if now - began >= MINUTE:
            began, count = now, 0
        self._windows[account] = (began, count + 1)
        if count + 1 > REFUSALS:
            return ""
        return why + ENOUGH if count + 1 == REFUSALS else why


def address(scope: Mapping[str, Any]) -> str:
    """Whose request it is: Caddy, the only sender, says so in a header that it overwrites."""
    header = dict(scope["headers"]).get(b"x-forwarded-for", b"").decode("latin-1")
    client = scope.get("client")
    return header.rpartition(",")[2].strip()[:64] or (str(client[0]) if client else "")


def entry(
    name: str,
    account: Account | None,
    asked: Asked,
    target: Target,
    status: int,
    refused: str,
    scope: Mapping[str, Any],
) -> Entry:
    """What is to be written down."""
    return Entry(
        time=datetime.now(UTC).isoformat(timespec="milliseconds"),
        account=name,
        role=account.role if account else "",
        method=asked.method,
        path=asked.path,
        kind=target.kind,
        name=target.name,
        state=_state(asked),
        status=status,
        refused=refused,
        address=address(scope),
    )
