"""What move.yml reads of the two hosts, and what keeps it from moving a server."""

from __future__ import annotations

import ipaddress
import re
import sys
from pathlib import Path
from typing import Any

# Ansible takes each file of filter_plugins for a plugin, and has no place for what they share outside a collection.
UTILS = str(Path(__file__).resolve().parents[1] / "plugin_utils")
if UTILS not in sys.path:
    sys.path.append(UTILS)

from prefect_preflight import prefect_running  # noqa: E402

LINE = re.compile(r"^([A-Z_]+)=(.*)$", re.MULTILINE)
KEYS = ("MACHINE", "TOOLS", "ROOT_LOGIN", "BYTES", "FREE")
# Room on the new host: the backups and the data of before, a dump on its way, and as much again for what is written later.
ROOM = 2.5


def prefect_move_seen(said: str) -> dict[str, Any]:
    """What a look at a host has found: `MACHINE`, `TOOLS`, `ROOT_LOGIN`, `BYTES` and `FREE` (empty where it was not said),
    `host_keys` (the public host keys of sshd), `moved` (the lines of moved.env), and `running` (`prefect_running`).
    """
    found = LINE.findall(said)
    first = {name: value.strip() for name, value in reversed(found)}
    return {
        **{name: first.get(name, "") for name in KEYS},
        "host_keys": [value.strip() for name, value in found if name == "HOST_KEY"],
        "moved": {name: value.strip('"') for name, value in first.items() if name.startswith("MOVED_")},
        "running": prefect_running(said),
    }


def prefect_move_problems(old: dict[str, Any], new: dict[str, Any], asked: dict[str, Any]) -> list[str]:
    """What keeps a server from being moved, or from being taken back, one sentence each; empty when all is well.

    Args:
        old: what the look at the server of before has found (`prefect_move_seen`).
        new: the same of the new host.
        asked: `from` and `to`, the addresses; `tools`, the name of this kit's release of the tools; `back` and
            `lose_newer`, as move.yml was given them; `unreachable`, what ssh said where it does not reach the server of before.
    """
    where, moved = f'"{asked["from"]}" (move_from)', old["moved"]
    if old["MACHINE"] and old["MACHINE"] == new["MACHINE"]:
        return [
            f"{where} is the very host that hosts.yml names as the server ({asked['to']}); set ansible_host to the address of "
            "the new host there, and move_from to that of the host that the server is on now"
        ]
    if asked["unreachable"]:
        return [
            f"{where} is not reached as the new host is (user, port, key): {asked['unreachable'].strip()}; where it needs others, give "
            "it a name in hosts.yml, in no group, with its ansible_host and the like, and that name as move_from"
        ]
    if not old["running"]["image"]:
        return [f"{where} has no Prefect server of this kit"]
    if asked["back"]:
        return _back_problems(moved, where, asked)
    problems = []
    if moved.get("MOVED_TO", asked["to"]) != asked["to"]:
        problems.append(
            f'a move of {where} to "{moved["MOVED_TO"]}" has begun, and hosts.yml names "{asked["to"]}"; set ansible_host to that '
            "address, or take that move back first, with -e back=true"
        )
    if old["TOOLS"] != asked["tools"]:
        problems.append(
            f"{where} was provisioned by another state of the kit; bring it up to date first: ansible-playbook site.yml "
            f"--limit prefect -e ansible_host={asked['from']}"
        )
    if old["ROOT_LOGIN"] == "no":
        problems.append(
            f"sshd of {where} lets nobody log in as root (PermitRootLogin no), and its backups are root's; set PermitRootLogin "
            "prohibit-password there for the time of the move"
        )
    needed = int(int(old["BYTES"] or 0) * ROOM)
    if not moved.get("MOVED_BACKUP") and new["FREE"] and int(new["FREE"]) < needed:
        problems.append(
            f"it has {int(new['FREE']) / 1e9:.1f} GB free below /var/lib, and the data and backups of {where} need "
            f"{needed / 1e9:.1f} GB"
        )
    return problems


def _back_problems(moved: dict[str, str], where: str, asked: dict[str, Any]) -> list[str]:
    if not moved.get("MOVED_TO"):
        return [f"there is no move of {where} to take back: it serves"]
    if moved.get("MOVED_DONE") and not asked["lose_newer"]:
        return [
            f"the server has served at its new address ({asked['to']}) since: what was written there would not be on {where}; to go "
            "back all the same: -e back=true -e lose_newer=true (it stays in the database and in the backups of the new host)"
        ]
    return []


def prefect_move_repository(keys: list[str], name: str, address: str, port: int, backups: str) -> dict[str, str]:
    """The repository of the server of before, as an entry of backups_offsite.

    Args:
        keys: the public host keys of its sshd, by which it is known.
        name: the name of the repository.
        address: its address, or name.
        port: the port of its sshd.
        backups: the directory of its backups.
    """
    try:
        host = f"[{address}]" if ipaddress.ip_address(address).version == 6 else address
    except ValueError:
        host = address
    known_as = address if port == 22 else f"[{address}]:{port}"
    return {
        "name": name,
        "repository": f"sftp://root@{host}:{port}/{backups}/repository",
        "known_hosts": "\n".join(f"{known_as} {' '.join(key.split()[:2])}" for key in keys),
    }


class FilterModule:
    """Makes the filters known to Ansible."""

    def filters(self) -> dict[str, Any]:
        return {
            "prefect_move_problems": prefect_move_problems,
            "prefect_move_repository": prefect_move_repository,
            "prefect_move_seen": prefect_move_seen,
        }
