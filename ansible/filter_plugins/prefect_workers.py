"""What workers are given, and what is wrong with it: pure decisions."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path
from typing import Any

NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
MEMORY = re.compile(r"([1-9][0-9]*[KMGT])|([1-9][0-9]?|100)%")
#: A device node; neither `..` nor anything that systemd would take as special.
DEVICE = re.compile(r"/dev/[A-Za-z0-9][A-Za-z0-9_.-]*(/[A-Za-z0-9][A-Za-z0-9_.-]*)*")
#: The first line of a worker's .env file: the playbook's record of having made this very worker.
MADE = "# By the playbook: what {unit}@{name}.service is started with."
#: What the playbook itself tells a worker, and what would hurt it: PREFECT_CLIENT_METRICS_ENABLED ends every flow run
#: with "Address already in use" (prefect-facts.md).
OWN = re.compile(
    r"WORKER_.*|PREFECT_(API_URL|API_SSL_CERT_FILE|CLIENT_CUSTOM_HEADERS|WORKER_WEBSERVER_.*|CLIENT_METRICS_ENABLED|HOME|PROFILES_PATH|LOGGING_SETTINGS_PATH)|HOME"
)


def prefect_environment_value(value: Any) -> str:
    """A value for a file that systemd reads (EnvironmentFile=), in double quotes, with nothing in it taken as special."""
    text = str(value).lower() if isinstance(value, bool) else str(value)
    for special in '\\"`$':
        text = text.replace(special, f"\\{special}")
    return f'"{text}"'


def prefect_worker_limit_problems(workers: Any) -> list[str]:
    """What is wrong with the environment, the secrets and the limits of workers, as lines for a person.

    Values of another type than they should have are told by prefect_preflight, and left alone here.
    """
    problems = []
    for worker in workers if isinstance(workers, list) else []:
        if not isinstance(worker, dict) or not all(
            isinstance(worker.get(kind) or {}, dict) for kind in ("environment", "secrets")
        ):
            continue
        where = f'prefect_workers: worker "{worker.get("name")}"'
        for kind in "environment", "secrets":
            for key in worker.get(kind) or {}:
                if not NAME.fullmatch(str(key)):
                    problems.append(f'{where}: the {kind} has the name "{key}"; allowed are letters, digits and _')
                elif OWN.fullmatch(str(key)):
                    problems.append(f'{where}: the {kind} has "{key}", which the playbook sets itself')
        for key in set(worker.get("environment") or {}) & set(worker.get("secrets") or {}):
            problems.append(f'{where}: "{key}" is in environment and in secrets; one of them has to go')
        memory = worker.get("memory_max")
        if memory is not None and not MEMORY.fullmatch(str(memory)):
            problems.append(f'{where}: its memory_max is "{memory}"; allowed are 1500M, 2G and the like, or 1% to 100%')
        weight = worker.get("cpu_weight")
        if isinstance(weight, int) and not 1 <= weight <= 10000:
            problems.append(f'{where}: its cpu_weight is "{weight}"; allowed are 1 to 10000 (100 is normal)')
        devices = worker.get("devices")
        for device in devices if isinstance(devices, list) else []:
            if not DEVICE.fullmatch(str(device)):
                problems.append(f'{where}: its devices have "{device}"; allowed are paths such as /dev/nvidia0')
    return problems


def prefect_device_problems(stats: list[dict[str, Any]]) -> list[str]:
    """What is wrong with the devices of a host's workers, by what Ansible's stat says of each, as lines for a person."""
    problems = []
    for result in stats:
        worker, path = result["item"]
        where = f'prefect_workers: worker "{worker["name"]}": its device "{path}"'
        found = result.get("stat") or {}
        if not found.get("exists"):
            problems.append(f"{where} is not on the host; install its driver, or take it out of devices")
        elif found.get("isdir"):
            problems.append(f"{where} is a directory; name the devices in it that the worker needs")
        elif not (found.get("ischr") or found.get("isblk")):
            problems.append(f"{where} is no device")
    return problems


def prefect_device_groups(stats: list[dict[str, Any]], devices: list[str]) -> list[str]:
    """The groups that a worker's user has to be in to use its devices: those of devices that not everybody may use."""
    found = set()
    for result in stats:
        stat = result.get("stat") or {}
        if result["item"][1] in devices and stat.get("exists") and not (stat.get("roth") and stat.get("woth")):
            group = stat.get("gr_name") or str(stat.get("gid"))
            # What root keeps for itself is not given away.
            if group != "root" and stat.get("rgrp"):
                found.add(group)
    return sorted(found)


def prefect_made_workers(files: dict[str, str], unit: str) -> list[str]:
    """The names of those workers that the playbook has made, by the first line of their files (their texts by their paths).

    A person's own worker, and a copy that a person has made of one of these under another name, is not among them.
    """
    named = {Path(path).name.removesuffix(".env"): text for path, text in files.items()}
    return sorted(name for name, text in named.items() if text.startswith(MADE.format(unit=unit, name=name)))


def prefect_workers_found(files: dict[str, str], kind: dict[str, Any]) -> dict[str, Any]:
    """What a host has of a kind of workers that the inventory does not have: `extra` were made by the playbook.

    `strangers`: whether a person has made others. `files` are texts of files of any kind, by their paths.
    """
    own = {path: text for path, text in files.items() if path.startswith(kind["etc"] + "/")}
    wanted = {worker["name"] for worker in kind["workers"]}
    made = set(prefect_made_workers(own, kind["unit"]))
    names = {Path(path).name.removesuffix(".env") for path in own}
    return {"extra": sorted(made - wanted), "strangers": bool(names - made - wanted)}


def prefect_worker_services(
    workers: list[dict[str, Any]], directory: str, unit: str, also: str
) -> list[dict[str, Any]]:
    """What each worker runs with, as the module prefect_applied takes it; `also`: its environment and its program.

    Not its limits (50-limits.conf): they are put into effect without a restart.
    """
    units = "/etc/systemd/system"
    return [
        {
            "name": name,
            "stamp": f"{directory}/{name}.applied",
            "files": [
                f"{directory}/{name}.env",
                f"{directory}/{name}.secret.env",
                f"{units}/{unit}@.service",
                f"{units}/{unit}@{name}.service.d/40-user.conf",
                f"{units}/{unit}@{name}.service.d/60-devices.conf",
                f"{units}/{unit}@.service.d/egress.conf",
            ],
            "also": also,
        }
        for name in (worker["name"] for worker in workers)
    ]


def prefect_newest_authority(text: str) -> str:
    """Twelve hexadecimal digits of the SHA-256 of the last certificate in a PEM file; empty where there is none."""
    found = re.findall(r"-----BEGIN CERTIFICATE-----.*?-----END CERTIFICATE-----", text, re.DOTALL)
    return hashlib.sha256(found[-1].encode()).hexdigest()[:12] if found else ""


def prefect_content_name(paths: list[str]) -> str:
    """Twelve hexadecimal digits of the SHA-256 of the names and contents of files, in any order."""
    digest = hashlib.sha256()
    for path in sorted(map(Path, paths)):
        content = path.read_bytes()
        digest.update(f"{path.name}:{len(content)}:".encode() + content)
    return digest.hexdigest()[:12]


class FilterModule:
    """Found by Ansible."""

    def filters(self) -> dict[str, Any]:
        return {
            "prefect_content_name": prefect_content_name,
            "prefect_device_groups": prefect_device_groups,
            "prefect_device_problems": prefect_device_problems,
            "prefect_environment_value": prefect_environment_value,
            "prefect_newest_authority": prefect_newest_authority,
            "prefect_worker_limit_problems": prefect_worker_limit_problems,
            "prefect_worker_services": prefect_worker_services,
            "prefect_workers_found": prefect_workers_found,
        }
