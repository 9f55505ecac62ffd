"""The packets of a capture, as tcpdump writes it for all interfaces: a stream in pcap format, of Linux' cooked packets."""

from __future__ import annotations

import ipaddress
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO

#: Of microseconds, and of nanoseconds; in the byte order of this machine, as tcpdump writes here.
MAGIC = (0xA1B2C3D4, 0xA1B23C4D)
#: Link type of `tcpdump --interface=any --linktype=LINUX_SLL2`, and the length of its header.
COOKED, HEADER = 276, 20
#: Packet type of what this host sends.
OUTGOING = 4
IPV4, IPV6 = 0x0800, 0x86DD
TCP, UDP, ICMP, ICMP6 = 6, 17, 1, 58
#: Headers of IPv6 between it and what it carries; the fragment's has a length of its own.
EXTENSIONS, FRAGMENT = {0, 43, 60}, 44
PROTOCOLS = {TCP: "tcp", UDP: "udp", ICMP: "icmp", ICMP6: "icmp"}


@dataclass(frozen=True)
class Packet:
    """One packet of IP."""

    #: Number of the interface.
    interface: int
    outgoing: bool
    #: tcp, udp, icmp, or the number of another.
    protocol: str
    source: str
    destination: str
    #: Ports of TCP and UDP; of ICMP the type, in the place of the destination's. 0 where there is none.
    source_port: int = 0
    port: int = 0
    #: Of TCP: it opens a connection.
    opens: bool = False
    payload: bytes = b""


def records(stream: IO[bytes]) -> Iterator[bytes]:
    """The packets of a capture, until it ends. Raises ValueError where it is none, or of another kind of link."""
    head = stream.read(24)
    if not head:
        return
    if len(head) < 24 or struct.unpack("=I", head[:4])[0] not in MAGIC:
        raise ValueError("tcpdump's output is no capture")
    if struct.unpack("=I", head[20:])[0] & 0xFFFF != COOKED:
        raise ValueError("tcpdump's capture is not of the link type LINUX_SLL2")
    while len(record := stream.read(16)) == 16:
        length = struct.unpack("=I", record[8:12])[0]
        data = stream.read(length)
        if len(data) < length:
            return
        yield data


def packet(data: bytes) -> Packet | None:
    """What a record of the capture holds; None where that is not IP, or is cut off before its addresses."""
    if len(data) < HEADER:
        return None
    kind, interface = struct.unpack(">H", data[:2])[0], struct.unpack(">I", data[4:8])[0]
    outgoing, body = data[10] == OUTGOING, data[HEADER:]
    if kind == IPV4 and len(body) >= 20:
        fragment = struct.unpack(">H", body[6:8])[0] & 0x1FFF
        source, destination = (str(ipaddress.IPv4Address(body[at : at + 4])) for at in (12, 16))
        inner, protocol = body[(body[0] & 15) * 4 :], body[9]
    elif kind == IPV6 and len(body) >= 40:
        source, destination = (str(ipaddress.IPv6Address(body[at : at + 16])) for at in (8, 24))
        protocol, fragment, inner = _inner(body[6], body[40:])
    else:
        return None
    ports = _Ports() if fragment else _transport(protocol, inner)
    # (Of a later fragment the ports are in the first.)
    return Packet(
        interface,
        outgoing,
        PROTOCOLS.get(protocol, str(protocol)),
        source,
        destination,
        ports.source,
        ports.destination,
        ports.opens,
        ports.payload,
    )


@dataclass(frozen=True)
class _Ports:
    """What follows the addresses."""

    source: int = 0
    destination: int = 0
    opens: bool = False
    payload: bytes = b""


def _inner(following: int, body: bytes) -> tuple[int, int, bytes]:
    """Of IPv6: the protocol that it carries, the offset of a fragment, and what follows its headers."""
    offset = 0
    while len(body) >= 8 and (following in EXTENSIONS or following == FRAGMENT):
        if following == FRAGMENT:
            offset = struct.unpack(">H", body[2:4])[0] >> 3
            following, body = body[0], body[8:]
        else:
            following, body = body[0], body[(body[1] + 1) * 8 :]
    return following, offset, body


def _transport(protocol: int, body: bytes) -> _Ports:
    """Ports and what is carried."""
    if protocol == TCP and len(body) >= 14:
        source, port = struct.unpack(">HH", body[:4])
        # SYN without ACK.
        return _Ports(source, port, body[13] & 0x12 == 2, body[(body[12] >> 4) * 4 :])
    if protocol == UDP and len(body) >= 8:
        source, port = struct.unpack(">HH", body[:4])
        return _Ports(source, port, payload=body[8:])
    if protocol in (ICMP, ICMP6) and body:
        return _Ports(destination=body[0])
    return _Ports()
