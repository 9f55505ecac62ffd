"""The version of Prefect that a host runs: site.yml keeps it, and upgrade.yml alone changes it."""

from __future__ import annotations

import re
from typing import Any

from .versions import image_version, order, postgres_major, version_listed
from .words import given, quoted
from .work import newer_flows_problems

#: What the look at a host gives (roles/prefect/vars/main.yml): the stack's images, the version in the workers' lock, and
#: the images before and after the last upgrade, and where the server has moved.
POSTGRES = re.compile(r"^POSTGRES_IMAGE=[\"']?([^\s\"']+)", re.MULTILINE)
IMAGE = re.compile(r"^PREFECT_IMAGE=[\"']?([^\s\"']+)", re.MULTILINE)
LOCKED = re.compile(r"^prefect==([0-9][0-9a-z.]*)", re.MULTILINE)
MOVED = re.compile(r"^MOVED_TO=(\S+)", re.MULTILINE)
UPGRADED = {name: re.compile(rf'"{name}": "([^"]+)"') for name in ("before", "after")}


def prefect_running(seen: str) -> dict[str, str]:
    """What runs on a server: its `image`, the `version` in it, the version `before` the last upgrade, the major version of
    `postgres` and its `postgres_image`, and the address that it has `moved` to; empty where there is none.

    Args:
        seen: the lines of the look at the host, among others. An image whose tag tells no version holds the one in the
            lock of the host's workers: they are never apart.
    """
    image, locked, before, after = (
        found[1] if (found := pattern.search(seen)) else "" for pattern in (IMAGE, LOCKED, *UPGRADED.values())
    )
    # A record of an upgrade that somebody has gone back from says nothing.
    came_from = image_version(before) if after and after == image else ""
    postgres, moved = (found[1] if (found := pattern.search(seen)) else "" for pattern in (POSTGRES, MOVED))
    return {
        "image": image,
        "version": image and (image_version(image) or locked),
        "before": came_from,
        "postgres": postgres_major(postgres),
        "postgres_image": postgres,
        "moved": moved,
    }


def prefect_moved_problems(running: dict[str, str], host: str) -> list[str]:
    """Why nothing is to be changed on a host whose server has moved away (move.yml); empty for any other.

    Args:
        running: what runs on the server (`prefect_running`).
        host: its address.
    """
    if not running["moved"]:
        return []
    return [
        f"its server has moved to {quoted(running['moved'])}, and must not serve in two places; set ansible_host to that address "
        f"in hosts.yml (a move that did not end: ansible-playbook move.yml -e move_from={host}, with the same; to take it back, "
        "with -e back=true)"
    ]


def prefect_version_problems(
    settings: dict[str, Any],
    running: dict[str, str],
    supported: list[str],
    upgrading: bool = False,
    restoring: bool = False,
) -> list[str]:
    """What keeps a host from having the version that the settings name, one sentence each; empty when all is well.

    Args:
        settings: `prefect_version`, `prefect_image` and `flows_directory`, which have no other problem.
        running: what runs on the server (`prefect_running`).
        supported: the versions that the kit supports, the newest last.
        upgrading: whether upgrade.yml asks, whose work it is to change the version.
        restoring: whether the server is about to begin with a backup, so that it may become as new as that one.
    """
    problems = [] if upgrading or not running["version"] else _kept_problems(settings, running, supported, restoring)
    kept = {**running, "version": ""} if upgrading else running
    # What depends on a version that the host is not going to have cannot be judged.
    return problems or _image_problems(settings, kept) + newer_flows_problems(settings)


def prefect_postgres_problems(
    image: str, running: dict[str, str], upgrading: bool = False, restoring: bool = False
) -> list[str]:
    """What keeps a host from having an image of Postgres; empty when all is well.

    Args:
        image: `prefect_postgres_image`, which has no other problem.
        running: what runs on the server (`prefect_running`).
        upgrading: whether upgrade.yml --tags postgres asks, whose work it is to change the major version.
        restoring: whether the server is about to begin with a backup, which may be of a newer one than the empty cluster is.
    """
    wanted, here = postgres_major(image), running["postgres"]
    if upgrading or not here or not wanted or wanted == here or (restoring and int(wanted) > int(here)):
        return []
    fact = f"{given('prefect_postgres_image', image)}; the host runs Postgres {here}, whose files Postgres {wanted} cannot read"
    if int(wanted) < int(here):
        return [
            f"{fact}; take it out of the inventory, or back to the data of before: "
            "ansible-playbook upgrade.yml --tags postgres -e back=true"
        ]
    return [f"{fact}; bring them there: ansible-playbook upgrade.yml --tags postgres -e prefect_postgres_image={image}"]


def _unready(running: dict[str, str], tools: bool) -> str:
    """Why nothing can be upgraded on a host, in a sentence; empty when something can."""
    if not running["version"]:
        return "it has no Prefect server yet; make it: ansible-playbook site.yml"
    if not tools:
        return "its tools are of another state of the kit; bring them up to date first: ansible-playbook site.yml"
    return ""


def prefect_postgres_upgrade_problem(image: str, running: dict[str, str], back: bool, tools: bool) -> str:
    """Why upgrade.yml --tags postgres cannot do what it is asked for, in a sentence; empty when it can.

    Args:
        image: `prefect_postgres_image`, which the kit supports.
        running: what runs on the server (`prefect_running`).
        back: whether the way back is asked for.
        tools: whether the host has the tools of this state of the kit.
    """
    wanted, here = postgres_major(image), running["postgres"]
    if unready := _unready(running, tools):
        return unready
    if not back and wanted and here and wanted == here and image != running["postgres_image"]:
        return (
            f"{given('prefect_postgres_image', image)}; it runs {running['postgres_image']}, and another image of the same major "
            "version is put there by: ansible-playbook site.yml --tags stack"
        )
    if not back and wanted and here and int(wanted) < int(here):
        return (
            f"{given('prefect_postgres_image', image)}; it runs the newer Postgres {here}; back to the data of before: "
            "ansible-playbook upgrade.yml --tags postgres -e back=true"
        )
    return ""


def prefect_upgrade_problem(wanted: str, running: dict[str, str], back: bool, tools: bool) -> str:
    """Why upgrade.yml cannot do what it is asked for, in a sentence; empty when it can.

    Args:
        wanted: `prefect_version`, which the kit supports.
        running: what runs on the server (`prefect_running`).
        back: whether the way back is asked for.
        tools: whether the host has the tools of this state of the kit.
    """
    here = running["version"]
    if unready := _unready(running, tools):
        return unready
    if back and not running["before"]:
        return (
            f"it runs Prefect {quoted(here)}, and there is no upgrade to take back; an older version otherwise by a backup "
            "of it: prefect-restore --list"
        )
    if not back and order(wanted) < order(here):
        return (
            f"{given('prefect_version', wanted)}; it runs the newer {quoted(here)}; the way back of the last upgrade is: "
            "ansible-playbook upgrade.yml -e back=true"
        )
    return ""


def _kept_problems(
    settings: dict[str, Any], running: dict[str, str], supported: list[str], restoring: bool
) -> list[str]:
    """Why a host cannot keep the version that it runs, or is to have another one."""
    wanted, here = settings["prefect_version"], running["version"]
    if here not in supported:
        fact = f"it runs Prefect {quoted(here)}; {version_listed(supported)}"
        newer = [version for version in supported if order(version) > order(here)]
        if newer:
            return [f"{fact}; upgrade it: ansible-playbook upgrade.yml -e prefect_version={newer[0]}"]
        return [f"{fact}; use the release of the kit that it was made with, or a newer one (git pull)"]
    if wanted == here or (restoring and order(wanted) > order(here)):
        return []
    keep = "take prefect_version out of the inventory"
    return [
        f"{given('prefect_version', wanted)}; the host runs {quoted(here)}, and site.yml keeps that. "
        + _instead(wanted, running, keep, f" (and {keep})")
    ]


def _image_problems(settings: dict[str, Any], running: dict[str, str]) -> list[str]:
    """An image of another version than prefect_version is of, which may be that which runs."""
    image, wanted, here = image_version(settings["prefect_image"]), settings["prefect_version"], running["version"]
    if image in ("", wanted):
        return []
    fact = given("prefect_image", settings["prefect_image"])
    if wanted != here:
        return [f"{fact}; that is not the version {quoted(wanted)} of prefect_version"]
    keep = f"set prefect_image to an image of {quoted(here)}"
    return [
        f"{fact}, which is Prefect {quoted(image)}; the host runs {quoted(here)}, and site.yml keeps that. "
        + _instead(image, running, keep)
    ]


def _instead(wanted: str, running: dict[str, str], keep: str, after: str = "") -> str:
    """What to type for another version than that which runs.

    Args:
        wanted: the version.
        running: what runs on the server.
        keep: how to stay at that.
        after: what has to be done beside an upgrade.
    """
    if order(wanted) > order(running["version"]):
        return f"Run instead: ansible-playbook upgrade.yml -e prefect_version={wanted}{after}"
    if wanted == running["before"]:
        return f"To go back, run: ansible-playbook upgrade.yml -e back=true. To stay, {keep}"
    return (
        f"A database does not go back to an older version: restore a backup of {quoted(wanted)} on a new server "
        f"(prefect_restore_from). To stay, {keep}"
    )
