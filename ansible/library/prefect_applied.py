#!/usr/bin/python
"""Ansible module: which services do not run with what is on the disk now, by a stamp of what they were last started with."""

from __future__ import annotations

DOCUMENTATION = r"""
module: prefect_applied
short_description: Find services that were last started with something else
description:
  - A service is restarted because its files differ from those that it was last started with, and not because this run has
    written them. A run that was cut off between the two would leave it with the old ones, and the next would see nothing to do.
  - The stamp is a file that holds the hash of what the service was started with. The playbook writes it after the restart.
  - Changes nothing.
options:
  services:
    description: The services.
    type: list
    elements: dict
    required: true
    suboptions:
      name:
        description: What the result calls it.
        type: str
        required: true
      stamp:
        description: Path of its stamp.
        type: path
        required: true
      files:
        description: What it runs with, as paths and shell patterns. Links are left out.
        type: list
        elements: path
        required: true
      also:
        description: What else it runs with, such as the name of a release.
        type: str
        default: ""
author:
  - the prefect self-hosting kit
"""

EXAMPLES = r"""
- name: Look which workers do not run with what is there now
  prefect_applied:
    services:
      - {name: main, stamp: /etc/a/main.applied, files: [/etc/a/main.env, "/etc/a/main.d/*.conf"], also: "release 7"}
"""

RETURN = r"""
wanted:
  description: What each stamp has to hold, by the service's name.
  type: dict
  returned: always
stale:
  description: Names of the services whose stamp holds something else, or is not there.
  type: list
  returned: always
"""

import glob  # noqa: E402
import hashlib  # noqa: E402
from pathlib import Path  # noqa: E402

from ansible.module_utils.basic import AnsibleModule  # noqa: E402


def content_hash(patterns: list[str], also: str) -> str:
    """SHA-256 of the hashes of all files that match, and of `also`; where a file lies, and what it is called, is no matter."""
    # Not by Path.glob, which takes hidden files, too.
    paths = {Path(path) for pattern in patterns for path in glob.glob(pattern)}  # noqa: PTH207
    hashes = sorted(
        hashlib.sha256(path.read_bytes()).hexdigest() for path in paths if path.is_file() and not path.is_symlink()
    )
    return hashlib.sha256(("".join(hashes) + also).encode()).hexdigest()


def main() -> None:
    service = {
        "name": {"type": "str", "required": True},
        "stamp": {"type": "path", "required": True},
        "files": {"type": "list", "elements": "path", "required": True},
        "also": {"type": "str", "default": ""},
    }
    module = AnsibleModule(
        argument_spec={"services": {"type": "list", "elements": "dict", "required": True, "options": service}},
        supports_check_mode=True,
    )
    wanted, stale = {}, []
    for one in module.params["services"]:
        wanted[one["name"]] = content_hash(one["files"], one["also"])
        stamp = Path(one["stamp"])
        if not stamp.is_file() or stamp.read_text(errors="replace").strip() != wanted[one["name"]]:
            stale.append(one["name"])
    module.exit_json(changed=False, wanted=wanted, stale=stale)


if __name__ == "__main__":
    main()
