"""The body of a request, looked at before it is passed on."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass
from typing import Any

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]


@dataclass(frozen=True)
class Body:
    """What there was to see."""

    #: None: it is not JSON, or was not looked at whole.
    json: Any
    #: False: it is larger than what is looked at, or nested too deeply.
    whole: bool
    #: Gives all of it once more, as it came.
    receive: Receive


async def read(receive: Receive, most: int) -> Body:
    """Look at a body of at most `most` bytes."""
    messages: list[Message] = []
    size, more = 0, True
    while more and size <= most:
        messages.append(await receive())
        size += len(messages[-1].get("body", b""))
        more = messages[-1].get("more_body", False)
    whole = not more and size <= most
    text = b"".join(one.get("body", b"") for one in messages) if whole else b""

    async def again() -> Message:
        return messages.pop(0) if messages else await receive()

    try:
        return Body(json.loads(text) if text else None, whole, again)
    except ValueError:
        return Body(None, whole, again)
    except RecursionError:
        return Body(None, False, again)
