"""Write an Ansible inventory for a VPS of the lab, in the shape that a person's own inventory has."""

from __future__ import annotations

import json
import shlex
import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .images import LabImages, extra_ca_certificates
from .shell import write_whole
from .vps import Vps


def host_variables(vps: Vps) -> dict[str, Any]:
    """How Ansible reaches the VPS: as root with the lab's key, accepting that VPS's own host key only."""
    strict = ["-o", f"UserKnownHostsFile={vps.known_hosts}", "-o", "StrictHostKeyChecking=yes"]
    strict += ["-o", "IdentitiesOnly=yes", "-F", "/dev/null"]
    return {
        "ansible_host": vps.address,
        "ansible_user": "root",
        "ansible_ssh_private_key_file": str(vps.key),
        "ansible_ssh_common_args": shlex.join(strict),
    }


def group_variables(domain: str, images: LabImages, more: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The settings of a lab install; `more` is added and wins, and takes away what it has as None."""
    variables: dict[str, Any] = {
        "prefect_domain": domain,
        "prefect_email": "admin@lab.test",
        "prefect_tls": "internal",
        # One of each role (tests/lab/test_access.py).
        "prefect_users": [
            {"name": "admin"},
            {"name": "ada", "role": "deployer"},
            {"name": "bob", "role": "operator"},
            {"name": "eve", "role": "viewer"},
            {"name": "shop", "kind": "service", "role": "trigger", "deployments": ["hello/hello"]},
        ],
        "prefect_workers_blocks": ["secret/lab-flows", "secret/nowhere"],
        # The tests log in with wrong passwords, from one address, many times in ten minutes.
        "host_guessing_limit": 1000,
        # The least that is allowed: tests wait for it.
        "workers_crash_seconds": 90,
        "host_extra_ca_certificates": [str(path) for path in extra_ca_certificates()],
    }
    if images.archive:
        variables["prefect_images_archive"] = str(images.archive)
    return {name: value for name, value in {**variables, **(more or {})}.items() if value is not None}


def as_yaml(variables: Mapping[str, Any]) -> str:
    """A YAML mapping with a variable on each line; the values are JSON, which is YAML."""
    return "".join(f"{name}: {json.dumps(value)}\n" for name, value in variables.items())


def hosts_file(vps: Vps, workers: Mapping[Vps, Mapping[str, Any]] | None = None) -> str:
    """The inventory's hosts.yml: the server, and the hosts that only run workers with what is set for each of them."""

    def group(name: str, hosts: Mapping[Vps, Mapping[str, Any]]) -> str:
        entries = "".join(
            f"    {host.name}:\n" + textwrap.indent(as_yaml({**host_variables(host), **own}), " " * 6)
            for host, own in hosts.items()
        )
        return f"{name}:\n  hosts:\n{entries}"

    return "---\n" + group("prefect", {vps: {}}) + (group("workers", workers) if workers else "")


def write(
    directory: Path,
    vps: Vps,
    images: LabImages,
    more: Mapping[str, Any] | None = None,
    workers: Mapping[Vps, Mapping[str, Any]] | None = None,
) -> Path:
    """Write hosts.yml and group_vars/all.yml for a VPS that is up; other files there stay as they are.

    The domain is the VPS's, or its address where it has none. `workers` are further VPSs that only run workers, each with
    its own variables. Gives the directory.
    """
    (directory / "group_vars").mkdir(parents=True, exist_ok=True)
    directory.chmod(0o700)
    write_whole(directory / "hosts.yml", hosts_file(vps, workers))
    variables_of_all = group_variables(vps.domain or vps.address, images, more)
    write_whole(directory / "group_vars" / "all.yml", "---\n" + as_yaml(variables_of_all))
    return directory
