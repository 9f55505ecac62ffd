"""Filters for where flows may connect to (workers_egress), and the containers of the stack."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

# As in prefect_settings.py.
UTILS = str(Path(__file__).resolve().parents[1] / "plugin_utils")
if UTILS not in sys.path:
    sys.path.append(UTILS)

from prefect_preflight import egress  # noqa: E402


def prefect_egress_rules(networks: Iterable[str]) -> list[str]:
    """Rules of nftables that accept these networks."""
    return egress.rules(networks)


def prefect_egress_resolved(names: Iterable[str], server: str) -> list[str]:
    """Lines of dnsmasq's configuration for these names."""
    return egress.resolved(names, server)


def prefect_egress_asked(names: Iterable[str], server: str) -> list[str]:
    """The names that name servers are asked for."""
    return egress.asked(names, server)


def prefect_proxy_ports(tls: str, directory: str, sso: str) -> list[int]:
    """TCP ports of other hosts that the reverse proxy may connect to; none where it needs nobody.

    Args:
        tls: prefect_tls. An authority that answers by ACME is asked at the port of its directory.
        directory: prefect_acme_directory.
        sso: prefect_sso_proxy, or nothing.
    """
    addresses = ([directory] if tls == "acme" else []) + ([sso] if sso else [])
    found = [urlsplit(address) for address in addresses]
    return sorted({one.port or (80 if one.scheme == "http" else 443) for one in found})


class FilterModule:
    """Makes them filters of Ansible."""

    def filters(self) -> dict[str, Any]:
        return {
            "prefect_egress_asked": prefect_egress_asked,
            "prefect_egress_resolved": prefect_egress_resolved,
            "prefect_egress_rules": prefect_egress_rules,
            "prefect_proxy_ports": prefect_proxy_ports,
        }
