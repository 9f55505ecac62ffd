"""Why this host may send something where: by its own configuration. Pure decisions; configured.py reads the configuration."""

from __future__ import annotations

import fnmatch
import ipaddress
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from .seen import Destination, Seen, Sent

Network = ipaddress.IPv4Network | ipaddress.IPv6Network

RESOLVER = "name server of the host"
LINK = "stays on the link: neighbours, leases, multicast"
METADATA = "the cloud's metadata service, name server and clock"
#: Of which clouds: roles/host/templates/firewall.nft.j2 has them, too, and what is on the link besides.
METADATA_NETWORKS = tuple(
    map(
        ipaddress.ip_network,
        (
            "169.254.169.0/24", "100.100.100.200/32", "168.63.129.16/32", "192.0.0.192/32",
            "fd00:ec2::/32", "fd20:ce::254/128", "fd00:a9fe:a9fe::1/128", "fd00:c1::a9fe:a9fe/128", "fd00:42::42/128",
        ),
    )
)  # fmt: skip
DNS_PORTS = (53, 853)


@dataclass(frozen=True)
class Reason:
    """One, and for what: names (`*.example.org` is all below), addresses and networks."""

    words: str
    names: tuple[str, ...] = ()
    networks: tuple[Network, ...] = ()


@dataclass
class Configured:
    """What the host is configured for."""

    reasons: list[Reason] = field(default_factory=list)
    resolvers: frozenset[str] = frozenset()
    #: What resolvers append to names that have few dots.
    search: tuple[str, ...] = ()
    #: Addresses that configured names lead to, as the host's own name server says: for connections whose names were asked for before.
    addresses: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Line:
    """Something that was sent, or a name that was asked for, and its reason; without one it is unexplained."""

    what: str
    names: tuple[str, ...]
    packets: int
    reason: str

    @property
    def explained(self) -> bool:
        return bool(self.reason)


def of_name(name: str, known: Configured) -> str:
    """The reason for asking for a name, or for connecting to it; empty where there is none."""
    plain = name.rstrip(".").lower()
    # Services are asked for by names such as _http._tcp.deb.example.org.
    while plain.startswith("_") and "." in plain:
        plain = plain.partition(".")[2]
    tried = [plain, *(plain.removesuffix(f".{domain}") for domain in known.search)]
    for reason in known.reasons:
        for pattern in reason.names:
            if any(fnmatch.fnmatchcase(one, pattern) for one in tried):
                return reason.words
    return ""


def of_address(address: str, known: Configured) -> str:
    """The reason for connecting to an address that no name in TLS or of the name server tells more of; empty where there is none."""
    one = ipaddress.ip_address(address)
    for reason in known.reasons:
        if any(one in network for network in reason.networks if network.version == one.version):
            return reason.words
    return known.addresses.get(address, "")


def of_destination(where: Destination, sent: Sent, names: Iterable[str], known: Configured) -> str:
    """The reason for what was sent there; empty where there is none.

    Args:
        names: those that have led there.
    """
    one = ipaddress.ip_address(where.address)
    if any(one in network for network in METADATA_NETWORKS if network.version == one.version):
        return METADATA
    if one.is_multicast or one.is_link_local or where.address == "255.255.255.255" or where.port in (67, 547):
        return LINK
    if where.port in DNS_PORTS and where.address in known.resolvers:
        return RESOLVER
    if sent.server_names:
        # An address of a CDN is that of many names: what was meant is what was asked for.
        found = [of_name(name, known) for name in sorted(sent.server_names)]
        return found[0] if all(found) else ""
    for name in sorted(names):
        if reason := of_name(name, known):
            return reason
    return of_address(where.address, known)


def lines(seen: Seen, known: Configured) -> list[Line]:
    """All that was sent and asked for, what is unexplained first."""
    made = []
    for where, sent in sorted(seen.destinations.items()):
        names = seen.names.get(where.address, set())
        reason = of_destination(where, sent, names, known)
        made.append(Line(str(where), tuple(sorted({*names, *sent.server_names})), sent.packets, reason))
    made += [Line(f"name {name}", (), times, of_name(name, known)) for name, times in sorted(seen.asked.items())]
    if seen.left_out:
        made.append(Line("more than is kept", (), seen.left_out, ""))
    return sorted(made, key=lambda line: line.explained)
