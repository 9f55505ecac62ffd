"""What the server's domain resolves to, as others see it: by the name servers, not by this host's own /etc/hosts."""

from __future__ import annotations

import hashlib
import ipaddress
import json
import socket
import ssl
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

import dns.exception
import dns.resolver

from .asked import said
from .finding import Finding, Level

#: Seconds for the name servers, and for a connection to an address.
PATIENCE = 2.5
#: Where systemd-resolved writes the name servers that it asks: it answers from /etc/hosts itself.
BEHIND_RESOLVED = Path("/run/systemd/resolve/resolv.conf")
RESOLV_CONF = Path("/etc/resolv.conf")


@dataclass(frozen=True)
class Domain:
    """What was found."""

    name: str
    #: Name servers that were asked.
    servers: list[str] = field(default_factory=list)
    #: What they say; None: none of them has answered.
    answers: list[str] | None = None
    #: Addresses of this host.
    own: list[str] = field(default_factory=list)
    #: Of the answers that are no address of this host: those at which its own certificate is served all the same.
    forwarded: list[str] = field(default_factory=list)


def name_of(url: str) -> str:
    """The domain of an address; empty where it is a bare IP address, of which no name server is asked."""
    name = urlsplit(url).hostname or ""
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return name
    return ""


def resolved(name: str, resolver: dns.resolver.Resolver) -> list[str] | None:
    """The addresses of a name; empty: there is none; None: nobody has answered."""
    found: list[str] = []
    silent = False
    for kind in ("A", "AAAA"):
        try:
            found += [str(answer) for answer in resolver.resolve(name, kind, lifetime=PATIENCE, search=False)]
        except (dns.resolver.NXDOMAIN, dns.resolver.NoAnswer):
            continue
        except dns.exception.DNSException:
            silent = True
            break
    return None if silent and not found else found


def own_addresses(shown: str) -> list[str]:
    """The addresses that others can reach, of `ip --json address`."""
    try:
        links = json.loads(shown or "[]")
    except ValueError:
        return []
    # Docker's own are reached by its containers only.
    real = [link for link in links if not link.get("ifname", "").startswith(("docker", "br-", "prefect-", "veth"))]
    every = [address for link in real for address in link.get("addr_info", [])]
    return [address["local"] for address in every if address.get("scope") == "global"]


def _certificate(address: str, name: str, port: int) -> str:
    """SHA-256 of what is served at an address for a name; empty where nothing is."""
    context = ssl.create_default_context()
    # It is compared, and not trusted.
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    try:
        with (
            socket.create_connection((address, port), timeout=PATIENCE) as plain,
            context.wrap_socket(plain, server_hostname=name) as secured,
        ):
            return hashlib.sha256(secured.getpeercert(binary_form=True) or b"").hexdigest()
    except OSError:
        return ""


def look(url: str) -> Domain | None:
    """None for an address without a name. Raises nothing of the network's."""
    name, port = name_of(url), urlsplit(url).port or 443
    if not name:
        return None
    own = own_addresses(said("ip", "--json", "address"))
    try:
        path = BEHIND_RESOLVED if BEHIND_RESOLVED.exists() else RESOLV_CONF
        resolver = dns.resolver.Resolver(str(path))
    except dns.exception.DNSException:
        # There is no such file, or no server in it.
        return Domain(name, [], None, own)
    answers = resolved(name, resolver)
    elsewhere = [answer for answer in answers or [] if answer not in own]
    here = _certificate("127.0.0.1", name, port) if elsewhere else ""
    forwarded = [answer for answer in elsewhere if here and _certificate(answer, name, port) == here]
    return Domain(name, [str(server) for server in resolver.nameservers], answers, own, forwarded)


def leads_here(found: Domain) -> Finding:
    """Whether the name leads to this host: directly, or through a NAT or a floating address that shows its certificate."""
    servers = ", ".join(found.servers) or "none"
    limit = f"this host ({', '.join(found.own) or 'none'})"
    asked = f"name servers asked: {servers}"
    look = f"on another machine: dig +short {found.name}"
    if found.answers is None:
        words = f"no name server answers for {found.name} ({asked})"
        return Finding("DNS", Level.BAD, words, limit, "cat /etc/resolv.conf; ping one of the name servers in it")
    if not found.answers:
        words = f"{found.name} has no address ({asked})"
        return Finding("DNS", Level.BAD, words, limit, f"create its A record at your DNS provider; {look}")
    words = f"{found.name} resolves to {', '.join(found.answers)} ({asked})"
    elsewhere = [answer for answer in found.answers if answer not in found.own and answer not in found.forwarded]
    if elsewhere:
        words += (
            f"; {', '.join(elsewhere)} is not an address of this host, and does not serve its certificate."
            " Behind NAT or with a floating IP this can be right"
        )
        mend = f"correct its A or AAAA record at your DNS provider; {look}"
        return Finding("DNS", Level.WARNING, words, limit, mend)
    if found.forwarded:
        words += f"; {', '.join(found.forwarded)} is forwarded to this host"
    return Finding("DNS", Level.OK, words, limit)


def findings(found: Domain | None) -> Sequence[Finding]:
    """All of them."""
    return [leads_here(found)] if found else []
