"""How the Authorization header of an account begins: what the reverse proxy lets through to the computing of a hash."""

from __future__ import annotations

import base64
import re
from typing import Any

ALPHABET = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"


def basic_prefix(name: str) -> str:
    """A regular expression for the base64 of `NAME:` and whatever follows, and of nothing else.

    Base64 carries six bits a character. Those of the name that do not fill one leave a class of characters: without
    it, names that differ in their last character would pass too.
    """
    octets = f"{name}:".encode()
    whole, left = divmod(len(octets) * 8, 6)
    encoded = base64.b64encode(octets + b"\0\0\0").decode()
    prefix = re.escape(encoded[:whole])
    if not left:
        return prefix
    first = ALPHABET.index(encoded[whole])
    return f"{prefix}[{re.escape(ALPHABET[first : first + 2 ** (6 - left)])}]"


def prefect_known_names(names: list[str]) -> str:
    """The regular expression that a whole Authorization header of one of the accounts matches.

    Two such headers do not match: Caddy puts a comma between them.
    """
    return f"^(?i:basic) (?:{'|'.join(basic_prefix(name) for name in names)})[A-Za-z0-9+/=]*$"


class FilterModule:
    """Makes the filter known to Ansible."""

    def filters(self) -> dict[str, Any]:
        return {"prefect_known_names": prefect_known_names}
