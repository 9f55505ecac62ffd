"""What `https://DOMAIN/status` answers: a small file, written each time that the doctor's checks have run.

The reverse proxy serves it without a program: 200 while its first line is `ok` and a time not long ago, 503 otherwise
(caddy/Caddyfile), so that it is bad when the checks no longer run.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path

from prefect_backups.files import write_whole
from prefect_doctor.finding import Finding, Level, one_line, worst_first

#: On the host; the proxy's container has that directory as /run/prefect-monitoring.
PATH = Path("/var/lib/prefect/monitoring/status.txt")
#: The checks that decide between 200 and 503, by what they are about. A disk that fills, or a certificate that expires soon, is
#: alerted in time; an outside monitor asks whether Prefect works now.
COUNTED = {
    "database": re.compile(r"database|connections|checksum failures|prefect-postgres|containers"),
    "schema": re.compile(r"schema|indexes"),
    "write": re.compile(r"API|API write|public endpoint|prefect-server"),
    "workers": re.compile(r"work|workers?|workers? .+|work pool .+"),
    "backups": re.compile(
        r"backups|copies in .+|backup verification|prefect-backup(-verify)?\.service|unfinished restore"
    ),
}
#: A warning is no failure; a check that could not run may hide one.
FAILING = (Level.BAD, Level.UNKNOWN)
#: Most lines after the first, and characters of one: a monitor shows little.
LINES, LENGTH = 10, 200


def counts(check: str) -> bool:
    """Whether a check of this name decides between 200 and 503."""
    return any(group.fullmatch(check) for group in COUNTED.values())


def plain(text: str) -> str:
    """One short line, in which no reader finds a placeholder, a template or markup."""
    return one_line(text).translate(str.maketrans("{}<>", "()()"))[:LENGTH].rstrip()


def status_text(findings: Iterable[Finding], moment: datetime) -> str:
    """The text of the file: `ok` or `bad` and the time, then a line for each thing that fails, those that count first.

    Args:
        findings: of all checks; that there are none at all is no good news.
        moment: when they were made, with its time zone.
    """
    found = list(findings)
    failing = sorted((one for one in worst_first(found) if one.level in FAILING), key=lambda one: not counts(one.check))
    well = bool(found) and not any(counts(one.check) for one in failing)
    lines = [f"{'ok' if well else 'bad'} {moment.astimezone(UTC):%Y-%m-%dT%H:%M:%SZ}"]
    lines += [plain(f"{one.level.name} {one.check}: {one.measured}") for one in failing[:LINES]]
    if len(failing) > LINES:
        lines.append(f"and {len(failing) - LINES} more: prefect-doctor")
    return "\n".join(lines) + "\n"


def write(path: Path, findings: Iterable[Finding], now: datetime) -> None:
    """Write the file for the proxy, which is no member of root's group: what keeps others out is its directory.

    Raises OSError.
    """
    write_whole(path, status_text(findings, now), mode=0o644)
