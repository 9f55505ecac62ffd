"""Hosts that automations tried to reach, and that the inventory does not allow."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

from .asked import said
from .finding import Finding, Level, playbook

#: There where automations_allowed_hosts names some.
ALLOWED = Path("/etc/prefect-automations/allowed")
#: Seconds of the journal, and the most lines that are read.
DAY, LINES = 86400, 2000
#: tinyproxy's words (reqs.c of 1.11).
REFUSED = re.compile(r"Proxying refused on filtered (?:domain|url) \"([^\"]+)\"")


def refused(lines: Iterable[str]) -> Counter[str]:
    """How often each host was refused."""
    return Counter(found[1] for line in lines if (found := REFUSED.search(line)))


def look() -> Counter[str] | None:
    """Asks the journal; None where nothing may leave anyway."""
    if not ALLOWED.exists():
        return None
    unit = "_SYSTEMD_UNIT=prefect-automations.service"
    text = said("journalctl", "--quiet", "--no-pager", "--output=cat", f"--since=-{DAY}s", f"--lines={LINES}", unit)
    return refused(text.splitlines())


def findings(found: Counter[str] | None) -> Sequence[Finding]:
    """Whether a notification was refused: then nobody has got it."""
    if found is None:
        return []
    limit = "no host refused in 24 h"
    if not found:
        return [Finding("automations", Level.OK, "no host refused", limit)]
    hosts = ", ".join(f"{host} ({count} times)" for host, count in found.most_common(5))
    mend = (
        f"add it to automations_allowed_hosts, then {playbook('site.yml --tags automations')};"
        " or correct the address in the automation's block (UI: Blocks)"
    )
    return [Finding("automations", Level.WARNING, f"refused: {hosts}", limit, mend)]
