"""The names in what is sent: of questions to name servers and their answers, and that which TLS asks for in plain text (SNI)."""

from __future__ import annotations

import ipaddress
import struct

HANDSHAKE, CLIENT_HELLO, SERVER_NAME = 0x16, 1, 0
A, AAAA = 1, 28
#: Most answers of one message that are read, and most links in one compressed name.
MOST_ANSWERS, MOST_LINKS = 64, 32


def _name(message: bytes, at: int) -> tuple[str, int]:
    """A name in a message of DNS, and where it ends. Raises IndexError, ValueError where it is none."""
    labels: list[str] = []
    end = -1
    for _ in range(MOST_LINKS + 128):
        length = message[at]
        if length >= 0xC0:
            end = at + 2 if end < 0 else end
            at = (length & 0x3F) << 8 | message[at + 1]
            continue
        at += 1
        if not length:
            return ".".join(labels).lower() or ".", at if end < 0 else end
        if length > 63 or at + length > len(message):
            raise ValueError("no label")
        # A name may hold any bytes; what a terminal would obey does not get that far.
        labels.append(
            "".join(mark if "!" <= mark <= "~" else "?" for mark in message[at : at + length].decode("latin-1"))
        )
        at += length
    raise ValueError("a name without an end")


def question(message: bytes) -> str:
    """The name that a message to a name server asks for; empty where it asks for none."""
    try:
        if len(message) < 13 or message[2] & 0x80 or not struct.unpack(">H", message[4:6])[0]:
            return ""
        return _name(message, 12)[0]
    except (IndexError, ValueError):
        return ""


def answer(message: bytes) -> tuple[str, list[str]]:
    """The name that a name server answers, and the addresses that it leads to; empty where it is no such answer."""
    found: list[str] = []
    try:
        if len(message) < 13 or not message[2] & 0x80:
            return "", []
        questions, answers = struct.unpack(">HH", message[4:8])
        if questions != 1:
            return "", []
        name, at = _name(message, 12)
        at += 4
        for _ in range(min(answers, MOST_ANSWERS)):
            at = _name(message, at)[1]
            kind, length = (
                struct.unpack(">H", message[at : at + 2])[0],
                struct.unpack(">H", message[at + 8 : at + 10])[0],
            )
            data = message[at + 10 : at + 10 + length]
            if (kind, len(data)) in ((A, 4), (AAAA, 16)):
                found.append(str(ipaddress.ip_address(data)))
            at += 10 + length
    except (IndexError, ValueError, struct.error):
        # What was read until it was cut off is true all the same.
        pass
    else:
        return name, found
    return (name, found) if found else ("", [])


def server_name(payload: bytes) -> str:
    """The name in the first message of a TLS connection; empty where there is none, or where the capture ends before it."""
    try:
        if payload[0] != HANDSHAKE or payload[5] != CLIENT_HELLO:
            return ""
        # Record 5, message 4, version 2, random 32; then three lists that begin with their length.
        at = 43
        at += 1 + payload[at]
        at += 2 + struct.unpack(">H", payload[at : at + 2])[0]
        at += 1 + payload[at]
        at += 2
        while True:
            kind, length = struct.unpack(">HH", payload[at : at + 4])
            at += 4
            if kind == SERVER_NAME:
                size = struct.unpack(">H", payload[at + 3 : at + 5])[0]
                name = payload[at + 5 : at + 5 + size]
                return (
                    name.decode("ascii").lower()
                    if size == len(name) and name.isascii() and name.decode().isprintable()
                    else ""
                )
            at += length
    except (IndexError, struct.error, UnicodeDecodeError):
        return ""
