"""Drift: what is on this host, and what runs, against what the playbook has deployed last. Standard library only."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from prefect_backups import placed

from .asked import said
from .finding import Finding, Level, playbook

SITE = f"{playbook('site.yml --check --diff')} shows the difference; without --check --diff it undoes it"
#: Units that systemd is asked about: the kit's, and those that it adds drop-ins to.
UNITS = ("prefect-*", "docker.service", "ssh.service")
#: Most names in one finding; a lost file system would name all.
NAMED = 5


@dataclass(frozen=True)
class Drift:
    """What was found."""

    #: How many files the playbook has written, and the paths of those that differ now, or are gone.
    placed: int = 0
    changed: list[str] = field(default_factory=list)
    #: Units whose files changed since systemd loaded them.
    unread: list[str] = field(default_factory=list)
    #: Services of the compose project whose container was made with another configuration; None where none are here.
    stale: list[str] | None = None


def unread(shown: str) -> list[str]:
    """Units of `systemctl show --property=Id,NeedDaemonReload` that systemd has to read again."""
    units = [dict(line.split("=", 1) for line in block.splitlines() if "=" in line) for block in shown.split("\n\n")]
    return sorted({unit.get("Id", "?") for unit in units if unit.get("NeedDaemonReload") == "yes"})


def hashes(text: str) -> dict[str, str]:
    """Service and hash of its configuration, of lines of two words."""
    return {words[0]: words[1] for line in text.splitlines() if len(words := line.split()) == 2}


def stale(made: Mapping[str, str], wanted: Mapping[str, str]) -> list[str]:
    """Services whose container was made with another configuration than compose would take now.

    Args:
        made: the hash of each container, by its service.
        wanted: likewise those that compose computes; empty where it could not.
    """
    return sorted(service for service, value in made.items() if wanted.get(service, value) != value)


def compose(file: str, environment: str) -> list[str]:
    """Services of this host's project that `docker compose up` would make again. Takes 0.12 s of a processor."""
    label = "com.docker.compose."
    words = f'{{{{.Label "{label}service"}}}} {{{{.Label "{label}config-hash"}}}}'
    made = said("docker", "ps", "--filter", f"label={label}project=prefect", "--format", words)
    # Nothing of whoever runs this: the environment goes before the env-file.
    wanted = said("docker", "compose", "--env-file", environment, "-f", file, "config", "--hash=*", environment={})
    return stale(hashes(made), hashes(wanted))


def look(file: str = "", environment: str = "") -> Drift:
    """The whole.

    Args:
        file: path of compose.yml; empty on a host without a stack.
        environment: path of its env-file.
    """
    known = placed.read()
    shown = said("systemctl", "show", "--property=Id,NeedDaemonReload", *UNITS)
    return Drift(len(known), placed.changed(known), unread(shown), compose(file, environment) if file else None)


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return ", ".join(names[:NAMED]) + more


def files(found: Drift) -> Finding:
    """Files that somebody has changed by hand."""
    limit = "as site.yml wrote them"
    if not found.placed:
        return Finding("deployed files", Level.WARNING, "site.yml has kept no list of them", limit, SITE)
    if found.changed:
        return Finding("deployed files", Level.WARNING, f"changed by hand or gone: {_some(found.changed)}", limit, SITE)
    return Finding("deployed files", Level.OK, f"all {found.placed} unchanged", limit)


def units(found: Drift) -> Finding:
    """Units whose files were changed without a daemon-reload."""
    limit = "loaded by systemd"
    if found.unread:
        mend = f"systemctl daemon-reload; systemctl restart {' '.join(found.unread[:NAMED])}"
        return Finding("unit files", Level.WARNING, f"changed, not reloaded: {_some(found.unread)}", limit, mend)
    return Finding("unit files", Level.OK, "all loaded", limit)


def containers(found: Drift) -> list[Finding]:
    """Containers that the next start of the stack would recreate."""
    if found.stale is None:
        return []
    limit = "that of compose.yml and stack.env"
    if found.stale:
        words = f"outdated: {_some(found.stale)}"
        return [Finding("container configuration", Level.WARNING, words, limit, "systemctl reload prefect-stack")]
    return [Finding("container configuration", Level.OK, "up to date", limit)]


def findings(found: Drift) -> Sequence[Finding]:
    """All of them."""
    return [files(found), units(found), *containers(found)]
