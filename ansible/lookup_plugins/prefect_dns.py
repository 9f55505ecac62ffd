"""Ansible lookup: the addresses of names by this machine's name servers, which are named, within a time limit."""

from __future__ import annotations

DOCUMENTATION = r"""
name: prefect_dns
short_description: Ask the control machine's name servers for the addresses of names
description:
  - Asks for IPv4 and IPv6 addresses of all names at the same time. The hosts file does not count; what counts is what an
    ACME authority will see. community.general.dig does not tell whom it asked, and takes its time for each question.
options:
  _terms:
    description: Names; an address is its own answer.
    required: true
author:
  - the prefect self-hosting kit
"""

RETURN = r"""
_list:
  description: One mapping with C(servers) (asked), C(addresses) by name, and C(silent), the names that nobody answered for.
  type: list
"""

import ipaddress  # noqa: E402
from concurrent.futures import ThreadPoolExecutor  # noqa: E402
from typing import Any  # noqa: E402

import dns.exception  # noqa: E402
import dns.resolver  # noqa: E402
from ansible.plugins.lookup import LookupBase  # noqa: E402

SECONDS = 8


def _is_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


def resolve(names: list[str], resolver: dns.resolver.Resolver, seconds: float = SECONDS) -> dict[str, Any]:
    """What the resolver's servers say of the names, within so many seconds in all."""

    def ask(question: tuple[str, str]) -> list[str] | None:
        name, kind = question
        try:
            return [str(answer) for answer in resolver.resolve(name, kind, lifetime=seconds, search=False)]
        except (dns.resolver.NXDOMAIN, dns.resolver.NoAnswer, dns.resolver.NoRootSOA, ValueError):
            return []
        except dns.exception.DNSException:
            # Nobody answered, or nobody with more than an error.
            return None

    asked = [name for name in dict.fromkeys(names) if not _is_address(name)]
    questions = [(name, kind) for name in asked for kind in ("A", "AAAA")]
    with ThreadPoolExecutor(max_workers=len(questions) or 1) as pool:
        answers = dict(zip(questions, pool.map(ask, questions), strict=True))
    addresses = {name: [name] for name in names if name not in asked}
    silent = []
    for name in asked:
        found = [answers[name, kind] for kind in ("A", "AAAA")]
        addresses[name] = [address for each in found for address in each or []]
        if None in found and not addresses[name]:
            silent.append(name)
    return {"servers": [str(server) for server in resolver.nameservers], "addresses": addresses, "silent": silent}


class LookupModule(LookupBase):
    """Found by Ansible."""

    def run(self, terms: list[str], variables: Any = None, **options: Any) -> list[dict[str, Any]]:
        try:
            resolver = dns.resolver.Resolver()
        except dns.exception.DNSException:
            # No /etc/resolv.conf, or none in it.
            return [{"servers": [], "addresses": {name: [] for name in terms}, "silent": list(terms)}]
        return [resolve([str(term) for term in terms], resolver)]
