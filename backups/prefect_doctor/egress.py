"""What flow runs and containers of the stack tried to send, and the firewall has refused. Standard library only."""

from __future__ import annotations

import json
import pwd
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .asked import said
from .finding import Finding, Level, playbook

#: There while workers_egress of the host is listed or none.
RULES = Path("/etc/nftables.d/prefect-egress.nft")
#: There on a host that runs the stack.
STACK = Path("/opt/prefect/compose/compose.yml")
UNITS = ("prefect-egress.service", "prefect-egress-names.service")
#: Seconds that the firewall remembers, and the most lines of the resolver's log that are read.
HOUR, LINES = 3600, 2000
#: dnsmasq's words with log-queries=extra: who has asked, and what.
NAME = re.compile(r" (?P<who>[0-9A-Fa-f.:]+)/\d+ config (?P<name>\S+) is (?:NXDOMAIN|REFUSED)")
#: Who sends through each bridge of the stack.
OF_BRIDGE = {
    "prefect-db": "the database",
    "prefect-api": "the server",
    "prefect-edge": "the reverse proxy",
}
CONTAINERS = "flow containers"
#: Most that is named.
MOST = 5


@dataclass(frozen=True)
class Refused:
    """Somebody and where to."""

    who: str
    where: str


@dataclass
class Egress:
    """What was seen on this host."""

    #: Whether workers_egress holds flow runs of this host.
    held: bool = False
    #: Units that should run and do not.
    down: Sequence[str] = ()
    flows: Counter[Refused] = field(default_factory=Counter)
    names: Counter[str] = field(default_factory=Counter)
    #: None on a host without the stack.
    stack: Counter[Refused] | None = None


def user_name(number: int) -> str:
    """The name of a user, or the number where there is none any more."""
    try:
        return pwd.getpwuid(number).pw_name
    except KeyError:
        return f"user {number}"


def place(protocol: str, address: str, port: int) -> str:
    """Where somebody wanted to, as workers_egress_networks would have it, and the protocol."""
    return f"{f'[{address}]' if ':' in address else address}:{port}/{protocol}"


def _elements(text: str) -> Iterator[tuple[list[Any], int]]:
    """The elements of a table's sets of refusals: parts of the key, packets. Raises OSError where it is not JSON."""
    try:
        objects = json.loads(text)["nftables"]
    except (ValueError, KeyError, TypeError):
        # Without the right to ask, nft says nothing; that is not the same as that nothing was refused.
        raise OSError("nft does not list the firewall's tables") from None
    for one in (entry["set"] for entry in objects if "set" in entry):
        if one["name"].startswith("refused"):
            for element in one.get("elem", []):
                found = element["elem"]
                yield found["val"]["concat"], found.get("counter", {}).get("packets", 1)


def of_flows(text: str) -> Counter[Refused]:
    """What process workers and flow containers sent, from `nft --json list table inet prefect-egress`. Raises OSError where that has said nothing."""
    found: Counter[Refused] = Counter()
    for key, packets in _elements(text):
        *who, protocol, address, port = key
        found[Refused(user_name(who[0]) if who else CONTAINERS, place(protocol, address, port))] += packets
    return found


def of_stack(text: str) -> Counter[Refused]:
    """What containers of the stack sent, from `nft --json list table inet prefect`. Raises OSError likewise."""
    found: Counter[Refused] = Counter()
    for (bridge, protocol, address, port), packets in _elements(text):
        found[Refused(OF_BRIDGE.get(bridge, bridge), place(protocol, address, port))] += packets
    return found


def of_names(lines: Iterable[str]) -> Counter[str]:
    """How often each name was refused, from the resolver's log."""
    return Counter(found["name"] for line in lines if (found := NAME.search(line)))


def look() -> Egress:
    """Ask the firewall, systemd and the journal. Raises OSError where the firewall does not answer."""
    seen = Egress(held=RULES.exists())
    if seen.held:
        states = said("systemctl", "is-active", *UNITS).split()
        seen.down = [unit for unit, state in zip(UNITS, states, strict=False) if state in ("inactive", "failed")]
        seen.flows = (
            Counter() if seen.down else of_flows(said("nft", "--json", "list", "table", "inet", "prefect-egress"))
        )
        unit = "_SYSTEMD_UNIT=prefect-egress-names.service"
        log = said("journalctl", "--quiet", "--no-pager", "--output=cat", f"--since=-{HOUR}s", f"--lines={LINES}", unit)
        seen.names = of_names(f" {line}" for line in log.splitlines())
    if STACK.exists():
        seen.stack = of_stack(said("nft", "--json", "list", "table", "inet", "prefect"))
    return seen


def times(count: int, of: str) -> str:
    """A number of something."""
    return f"{count} {of}{'s' * (count != 1)}"


def _listed(found: Counter[Refused]) -> str:
    words = [f"{one.who} to {one.where} ({times(count, 'packet')})" for one, count in found.most_common(MOST)]
    more = len(found) - MOST
    return ", ".join(words) + (f" and {more} more" if more > 0 else "")


def flows(seen: Egress) -> Finding:
    """Whether flow runs are held, and what they tried."""
    check = "egress of flows"
    if not seen.held:
        return Finding(check, Level.OK, "open: flow runs may connect to anywhere", "as workers_egress says")
    limit = "nothing refused in 1 h"
    if seen.down:
        down = ", ".join(seen.down)
        return Finding(
            check,
            Level.BAD,
            f"{down} does not run",
            "the firewall's part and its resolver run",
            f"systemctl start {' '.join(seen.down)}",
        )
    if not seen.flows and not seen.names:
        return Finding(check, Level.OK, "held; nothing refused", limit)
    parts = [f"refused: {_listed(seen.flows)}"] if seen.flows else []
    if seen.names:
        names = ", ".join(f"{name} ({times(count, 'time')})" for name, count in seen.names.most_common(MOST))
        more = len(seen.names) - MOST
        parts.append(f"names that are not listed: {names}" + (f" and {more} more" if more > 0 else ""))
    mend = (
        "what flows need goes into workers_egress_names or workers_egress_networks, then "
        f"{playbook('site.yml --tags workers')}; else find the flow: journalctl -k --grep 'prefect-egress refused'"
    )
    return Finding(check, Level.WARNING, "; ".join(parts), limit, mend)


def stack(found: Counter[Refused]) -> Finding:
    """Whether a container of the stack tried to send something."""
    check, limit = "egress of the stack", "nothing refused in 1 h"
    if not found:
        return Finding(check, Level.OK, "nothing refused", limit)
    mend = "journalctl -k --grep 'prefect-stack refused'; what the stack needs is in docs/security.md"
    return Finding(check, Level.WARNING, f"refused: {_listed(found)}", limit, mend)


def findings(seen: Egress) -> Sequence[Finding]:
    """All of them."""
    return [flows(seen), *([] if seen.stack is None else [stack(seen.stack)])]
