"""Who did what: a line of JSON for each request that changes something, and for each that was refused."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any

from .decide import Asked, Found
from .roles import Account

#: Permissions of what flow runs and workers do all the time: those lines would hide the others.
CHATTER = frozenset({"work", "poll"})
#: Fields of a body by which a person knows what it was about.
NAMES = ("name", "key", "tag")


@dataclass(frozen=True)
class Entry:
    """One thing that somebody did, or tried to do."""

    time: str
    account: str
    role: str
    method: str
    path: str
    #: Of what the body names; never more of it.
    name: str
    status: int
    refused: str
    address: str

    def line(self) -> str:
        """As it is written down."""
        return json.dumps({key: value for key, value in asdict(self).items() if value}, ensure_ascii=True)


def changes(asked: Asked, found: Found) -> bool:
    """Whether it changes something that a person did."""
    if asked.method in ("GET", "HEAD", "OPTIONS", "WS"):
        return False
    return not any(route.permission in CHATTER | {"read", "blocks", "public"} for route, _ in found)


def entry(
    name: str, account: Account | None, asked: Asked, found: Found, status: int, refused: str, scope: Mapping[str, Any]
) -> Entry:
    """What is to be written down. The query is left out: it can hold anything."""
    body = asked.body if isinstance(asked.body, dict) else {}
    named = next((str(body[key]) for key in NAMES if isinstance(body.get(key), str)), "")
    client = scope.get("client")
    return Entry(
        datetime.now(UTC).isoformat(timespec="milliseconds"),
        name,
        account.role if account else "",
        asked.method,
        asked.path[:300],
        named[:200],
        status,
        refused,
        str(client[0]) if client else "",
    )
