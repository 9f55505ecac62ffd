"""What keeps a host from carrying Prefect, in words: pure decisions about what the preflight has seen there."""

from __future__ import annotations

import re
from typing import Any

SYSTEMS = {("debian", "13")}
ARCHITECTURES = ("x86_64", "aarch64")
# One line of `ss --listening --processes`: the local port, and the first process that has the socket.
LISTENER = re.compile(r"^\S+\s+\S+\s+\S*:(?P<port>[0-9]+)\s+\S+(\s+users:\(\(\"(?P<name>[^\"]*)\",pid=(?P<pid>[0-9]+))?")
PUBLIC_KEY_LINE = re.compile(r"^(ssh|ecdsa|sk)-\S+ ", re.MULTILINE)


def prefect_system_problems(seen: str) -> list[str]:
    """What is wrong with the system itself, one sentence each.

    Args:
        seen: five lines, each of which may be empty: id, version and full name of /etc/os-release, the machine's
            architecture, the path of python3; a sixth is "systemd" where that is the first process.
    """
    identity, version, name, architecture, python, init = (line.strip() for line in [*seen.splitlines(), *[""] * 6][:6])
    problems = []
    if (identity, version) not in SYSTEMS:
        problems.append(f'its system is "{name or identity or "unknown"}"; supported is Debian 13 (trixie)')
    if architecture not in ARCHITECTURES:
        problems.append(f'its architecture is "{architecture}"; supported are {" and ".join(ARCHITECTURES)}')
    if not init:
        problems.append("its first process is not systemd, which runs all that this playbook installs")
    if not python:
        problems.append("it has no python3, which Ansible needs; run there: apt-get install --yes python3")
    return problems


def port_problems(listeners: str, ours: bool) -> list[str]:
    """Ports of the door that another process has; `ours` says that the kit's own Caddy has them."""
    if ours:
        return []
    taken: dict[str, str] = {}
    for line in listeners.splitlines():
        found = LISTENER.match(line)
        if found:
            who = f'"{found["name"]}" (process {found["pid"]})' if found["pid"] else "an unknown process"
            taken.setdefault(found["port"], f"port {found['port']} is taken by {who}")
            if found["pid"]:
                taken[found["port"]] += f"; free it: systemctl status {found['pid']} names its unit, then disable that"
    return [
        fact.split(";")[0] + "; the door needs it" + (";" + fact.split(";", 1)[1] if ";" in fact else "")
        for _, fact in sorted(taken.items())
    ]
