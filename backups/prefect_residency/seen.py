"""Where a host has sent something while it was watched: destinations with their names, in bounded memory."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection
from dataclasses import dataclass, field

from . import contents
from .packets import Packet

#: Most that is kept of each kind. What comes after is counted, and has no reason.
DESTINATIONS, NAMES, ADDRESSES, FLOWS, NAMES_EACH = 2000, 2000, 4000, 4096, 20
#: Types of ICMP that ask; all others answer.
ECHO = (8, 128)
DNS = 53


@dataclass(frozen=True, order=True)
class Destination:
    """Where something was sent."""

    protocol: str
    address: str
    port: int = 0

    def __str__(self) -> str:
        address = f"[{self.address}]" if ":" in self.address else self.address
        return f"{address}:{self.port}/{self.protocol}" if self.port else f"{self.address}/{self.protocol}"


@dataclass
class Sent:
    """How much, and by which names in TLS."""

    packets: int = 0
    server_names: set[str] = field(default_factory=set)


class Seen:
    """All of it, packet by packet.

    Args:
        outward: numbers of the interfaces that lead out of the host.
    """

    def __init__(self, outward: Collection[int]) -> None:
        self._outward = frozenset(outward)
        self.destinations: dict[Destination, Sent] = {}
        #: How often each name was asked for.
        self.asked: dict[str, int] = {}
        #: The names that have led to an address.
        self.names: OrderedDict[str, set[str]] = OrderedDict()
        #: What was sent or asked for and is not kept.
        self.left_out = 0
        # Flows of UDP by both ends, as this host sends them: True where it has begun. The oldest goes first.
        self._flows: OrderedDict[tuple[str, int, str, int], bool] = OrderedDict()

    def take(self, packet: Packet) -> None:
        """Look at a packet."""
        if packet.interface not in self._outward:
            return
        if packet.outgoing:
            self._sent(packet)
        elif packet.protocol == "udp":
            self._received(packet)

    def _sent(self, packet: Packet) -> None:
        where = Destination(packet.protocol, packet.destination, packet.port)
        if packet.protocol == "tcp":
            name = contents.server_name(packet.payload)
            if packet.opens or name:
                self._note(where, name)
            if packet.port == DNS and (asked := contents.question(packet.payload[2:])):
                self._ask(asked)
        elif packet.protocol == "udp":
            if self._begun(packet.source, packet.source_port, packet.destination, packet.port, True):
                self._note(where)
                if packet.port == DNS and (asked := contents.question(packet.payload)):
                    self._ask(asked)
        elif packet.protocol == "icmp":
            if packet.port in ECHO:
                self._note(Destination("icmp", packet.destination))
        else:
            self._note(Destination(packet.protocol, packet.destination))

    def _received(self, packet: Packet) -> None:
        self._begun(packet.destination, packet.port, packet.source, packet.source_port, False)
        if packet.source_port == DNS:
            name, addresses = contents.answer(packet.payload)
            for address in addresses:
                self._lead(address, name)

    def _begun(self, here: str, port: int, there: str, there_port: int, by_us: bool) -> bool:
        """Whether this host has begun a flow, of which a packet was just seen; `by_us`: it sent this one."""
        key = (here, port, there, there_port)
        begun = self._flows.setdefault(key, by_us)
        self._flows.move_to_end(key)
        while len(self._flows) > FLOWS:
            self._flows.popitem(last=False)
        return begun

    def _note(self, where: Destination, server_name: str = "") -> None:
        if where not in self.destinations and len(self.destinations) >= DESTINATIONS:
            self.left_out += 1
            return
        sent = self.destinations.setdefault(where, Sent())
        sent.packets += 1
        if server_name and server_name not in sent.server_names:
            if len(sent.server_names) < NAMES_EACH:
                sent.server_names.add(server_name)
            else:
                self.left_out += 1

    def _ask(self, name: str) -> None:
        if name not in self.asked and len(self.asked) >= NAMES:
            self.left_out += 1
            return
        self.asked[name] = self.asked.get(name, 0) + 1

    def _lead(self, address: str, name: str) -> None:
        names = self.names.setdefault(address, set())
        if len(names) < NAMES_EACH:
            names.add(name)
        self.names.move_to_end(address)
        while len(self.names) > ADDRESSES:
            self.names.popitem(last=False)
