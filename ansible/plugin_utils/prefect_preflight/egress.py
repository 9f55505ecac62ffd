"""Where flows may connect to (workers_egress): what the settings name, as rules of nftables and lines of dnsmasq. Pure decisions."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from .words import quoted

#: Tables, sets and ports that systemd/prefect-egress-names.conf names, too.
TABLE = "prefect-egress"
NAMES, SERVER = "names", "server"
# Not longer than DNS allows, two labels at least: a single one would be all of a top-level domain's names with a wildcard.
NAME = re.compile(r"(\*\.)?([a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9])?\.)+[a-z]([a-z0-9-]{0,61}[a-z0-9])?")
NETWORK = re.compile(
    r"(\[(?P<six>[0-9A-Fa-f:.]+(/[0-9]{1,3})?)\]|(?P<four>[0-9.]+(/[0-9]{1,2})?)):(?P<port>[0-9]{1,5})"
)


@dataclass(frozen=True)
class Network:
    """An address or a network that flows may connect to, at one port or, with None, at all."""

    network: ipaddress.IPv4Network | ipaddress.IPv6Network
    port: int | None = None


def network_of(text: str) -> Network:
    """What an entry of workers_egress_networks means: `10.0.0.0/8`, `203.0.113.7:5432`, `2001:db8::/32`, `[2001:db8::7]:443`.

    Raises ValueError for anything else.
    """
    found = NETWORK.fullmatch(text)
    if not found:
        return Network(ipaddress.ip_network(text))
    port = int(found["port"])
    if not 1 <= port <= 65535:
        raise ValueError(f"{port} is no port")
    network = ipaddress.ip_network(found["six"] or found["four"])
    if bool(found["six"]) != (network.version == 6):
        raise ValueError(f"{network} does not belong into brackets")
    return Network(network, port)


def is_name(text: str) -> bool:
    """Whether an entry of workers_egress_names is one: a host's name, or `*.` and the domain of all names below."""
    return len(text) <= 253 and bool(NAME.fullmatch(text))


def rules(networks: Iterable[str]) -> list[str]:
    """What lets flows connect to these, a line of nftables each. Raises ValueError for an entry that is none."""
    made = []
    for one in map(network_of, dict.fromkeys(networks)):
        where = f"{'ip' if one.network.version == 4 else 'ip6'} daddr {one.network}"
        made.append(
            f"{where} accept" if one.port is None else f"{where} meta l4proto {{ tcp, udp }} th dport {one.port} accept"
        )
    return made


def _below(name: str) -> str:
    return f"*.{name}"


def resolved(names: Iterable[str], server: str) -> list[str]:
    """Lines for dnsmasq: the addresses that it answers go into the sets of the firewall, and names below exact ones are answered by nobody.

    Args:
        names: those of workers_egress_names.
        server: the name of the Prefect server; empty where it has none.
    """
    listed = list(dict.fromkeys(names))
    lines = []
    for name in listed:
        lines.append(f"nftset=/{name.removeprefix('*.')}/{_sets(NAMES)}")
    if server and server not in listed:
        lines.append(f"nftset=/{server}/{_sets(SERVER)}")
    for name in [*listed, *([server] if server else [])]:
        # A name that stands here is more specific than these, and is asked for all the same.
        if not name.startswith("*.") and _below(name) not in listed:
            lines.append(f"local=/{_below(name)}/")
    return list(dict.fromkeys(lines))


def _sets(name: str) -> str:
    return ",".join(f"{family}#inet#{TABLE}#{name}{family}" for family in (4, 6))


def asked(names: Iterable[str], server: str) -> list[str]:
    """The names that dnsmasq asks the host's name servers for; of all others it says by itself that there are none."""
    return list(dict.fromkeys([*names, *([server] if server else [])]))


def egress_problems(settings: dict[str, Any]) -> list[str]:
    """Names and networks that are none, or that would hold nothing."""
    chosen, names, networks = (settings[f"workers_egress{part}"] for part in ("", "_names", "_networks"))
    problems = [
        f"{setting} is not empty, and workers_egress is {quoted(chosen)}, which {what}; set workers_egress: listed, or take the list out"
        for setting, entries in (("workers_egress_names", names), ("workers_egress_networks", networks))
        for what in [{"open": "lets flows connect to anywhere", "none": "lets them connect to nothing"}.get(chosen)]
        if entries and what
    ]
    problems += [
        f"workers_egress_names: {quoted(name)} is not allowed; allowed is a host's name in lower case, such as api.example.org,"
        " or *.example.org for all names below that one"
        for name in names
        if not is_name(name)
    ]
    for text in networks:
        try:
            network_of(text)
        except ValueError:
            problems.append(
                f"workers_egress_networks: {quoted(text)} is not allowed; allowed is an address or a network, such as 10.0.0.0/8"
                " or 2001:db8::/32, or with a port 203.0.113.7:5432 or [2001:db8::7]:5432"
            )
    return problems
