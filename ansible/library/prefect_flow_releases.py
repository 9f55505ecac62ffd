#!/usr/bin/python
"""Ansible module: the releases of flows on a host, and the end of those that nobody needs."""

from __future__ import annotations

DOCUMENTATION = r"""
module: prefect_flow_releases
short_description: The releases of flows on a host
description:
  - Lists the releases below O(root), and which of them a process of this host uses.
  - With O(keep), removes the others that the kit has made (it names them by their content), and environments that no
    release uses. What a process uses stays, and so does what has been placed in the last O(young_seconds) seconds, for
    somebody may be about to deploy it.
options:
  root:
    description: Directory that has the directories releases and venvs.
    type: path
    required: true
  keep:
    description: Releases that stay; unset removes nothing.
    type: list
    elements: str
  young_seconds:
    description: How long after it was placed a release stays in any case.
    type: int
    default: 600
author:
  - the prefect self-hosting kit
"""

EXAMPLES = r"""
- name: List the releases
  prefect_flow_releases:
    root: /opt/prefect/flows
"""

RETURN = r"""
releases:
  description: Names of the releases that are there (afterwards), sorted.
  type: list
  returned: always
in_use:
  description: Names of the releases that a process uses.
  type: list
  returned: always
removed:
  description: Names of the releases and environments that were removed.
  type: list
  returned: always
"""

import errno  # noqa: E402
import os  # noqa: E402
import re  # noqa: E402
import shutil  # noqa: E402
import time  # noqa: E402
from pathlib import Path  # noqa: E402

from ansible.module_utils.basic import AnsibleModule  # noqa: E402

# What is on its way out; not a name that a release can have.
LEAVING = ".removing-"
# A hash of the content (prefect_release, and that of a lock); half-made, or half-removed.
OURS = re.compile(rf"({re.escape(LEAVING)})?[0-9a-f]{{12}}(\.new)?")


def names_in(text: bytes, folder: Path) -> set[str]:
    """Names of what lies in `folder` and is spoken of in a command line, an environment, a path or a memory map."""
    pattern = re.escape(os.fsencode(folder)) + rb"/([0-9A-Za-z][0-9A-Za-z._-]*)"
    return {os.fsdecode(name) for name in re.findall(pattern, text)}


def process_text(process: Path) -> bytes:
    """All that says where a process works, and with what: directory, program, arguments, environment, libraries."""
    parts = []
    for name in ("cwd", "root", "exe"):
        try:
            parts.append(os.fsencode((process / name).readlink()))
        except OSError:
            continue
    for name in ("cmdline", "environ", "maps"):
        try:
            parts.append((process / name).read_bytes())
        except OSError:
            continue
    return b"\n".join(parts)


def processes_text() -> bytes:
    """The same of all processes of this host but this one."""
    found = (path for path in Path("/proc").iterdir() if path.name.isdigit() and path.name != str(os.getpid()))
    return b"\n".join(process_text(path) for path in found)


def listed(folder: Path) -> dict[str, float]:
    """Names of the directories in `folder`, with the time of their last change."""
    if not folder.is_dir():
        return {}
    return {path.name: path.stat().st_mtime for path in folder.iterdir() if path.is_dir() and not path.is_symlink()}


def is_ours(name: str) -> bool:
    """Whether the kit has made a directory: it names it by its content, and nobody else does. What a person has put
    beside it is the person's.
    """
    return OURS.fullmatch(name) is not None


def may_go(there: dict[str, float], stay: set[str], now: float, young_seconds: int) -> list[str]:
    """Which of these (names with their time) may be removed: not what stays, and nothing young.

    What an interrupted run left half-made (NAME.new) or half-removed goes by the same rules, under its own name.
    """
    old = (name for name, changed in there.items() if now - changed >= young_seconds)
    return sorted(name for name in old if is_ours(name) and name not in stay)


def venv_of(release: Path) -> str:
    """Name of the environment that a release uses."""
    try:
        return (release / ".venv").readlink().name
    except OSError:
        return ""


def remove(path: Path) -> None:
    """Remove a directory; from the first moment on it is not there under its name. Another deploy may be as fast."""
    if not path.name.startswith(LEAVING):
        leaving = path.with_name(LEAVING + path.name)
        shutil.rmtree(leaving, ignore_errors=True)
        try:
            path = path.rename(leaving)
        except FileNotFoundError:
            return
        except OSError as error:
            # A directory of the image below an overlay (a host that is itself a container) has no other name.
            if error.errno != errno.EXDEV:
                raise
    shutil.rmtree(path, ignore_errors=True)


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "root": {"type": "path", "required": True},
            "keep": {"type": "list", "elements": "str"},
            "young_seconds": {"type": "int", "default": 600},
        },
        supports_check_mode=True,
    )
    releases, venvs = (Path(module.params["root"]) / name for name in ("releases", "venvs"))
    text = processes_text()
    in_use = names_in(text, releases)
    there = listed(releases)
    removed: list[str] = []
    if module.params["keep"] is not None:
        now, young = time.time(), module.params["young_seconds"]
        gone = may_go(there, in_use | set(module.params["keep"]), now, young)
        left = set(there) - set(gone)
        used = {venv_of(releases / name) for name in left} | names_in(text, venvs)
        gone_venvs = may_go(listed(venvs), used, now, young)
        if not module.check_mode:
            for name in gone:
                remove(releases / name)
            for name in gone_venvs:
                remove(venvs / name)
        removed = [*gone, *(f"venvs/{name}" for name in gone_venvs)]
        there = {name: there[name] for name in left}
    names = sorted(name for name in there if not name.startswith(LEAVING) and not name.endswith(".new"))
    module.exit_json(changed=bool(removed), releases=names, in_use=sorted(in_use & set(names)), removed=removed)


if __name__ == "__main__":
    main()
