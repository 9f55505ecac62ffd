#!/usr/bin/python
"""Ansible module: what a role wants to know of a host's files, in one round trip."""

from __future__ import annotations

DOCUMENTATION = r"""
module: prefect_look
short_description: Look at many files in one round trip
description:
  - Does for lists what M(ansible.builtin.stat), M(ansible.builtin.slurp) and M(ansible.builtin.find) do for one path, and
    changes nothing.
  - A file that is absent, or that is none, is no error.
options:
  exist:
    description: Paths whose presence is asked for. What a link leads to counts.
    type: list
    elements: path
    default: []
  links:
    description: Paths whose target is asked for, where they are links.
    type: list
    elements: path
    default: []
  owners:
    description: Paths whose owner is asked for. A link counts as itself.
    type: list
    elements: path
    default: []
  shared:
    description: Directories of which is asked whether they are shared by an access control list, as M(prefect_owner) makes it.
    type: list
    elements: path
    default: []
  read:
    description: Text files to read; shell patterns with C(*) stand for the files that match them.
    type: list
    elements: path
    default: []
  leave_out:
    description: Patterns of names that are not read, though a pattern of C(read) matches them.
    type: list
    elements: str
    default: []
author:
  - the prefect self-hosting kit
"""

EXAMPLES = r"""
- name: Look what is there
  prefect_look:
    exist: [/opt/a/releases/1]
    links: [/opt/a/current]
    read: [/etc/a/*.env]
    leave_out: ["*.secret.env"]
"""

RETURN = r"""
exists:
  description: For each path of C(exist) whether it is there.
  type: dict
  returned: always
links:
  description: For each path of C(links) its target, as it stands in the link; empty where it is none.
  type: dict
  returned: always
owners:
  description: For each path of C(owners) the name of its owner, or the number of one without a name; empty where it is absent.
  type: dict
  returned: always
shared:
  description: For each path of C(shared) whether what is made there gets an access control list.
  type: dict
  returned: always
text:
  description: The text of each file of C(read) that is there, by its path.
  type: dict
  returned: always
"""

import fnmatch  # noqa: E402
import glob  # noqa: E402
import os  # noqa: E402
import pwd  # noqa: E402
from pathlib import Path  # noqa: E402

from ansible.module_utils.basic import AnsibleModule  # noqa: E402


def files(patterns: list[str], leave_out: list[str]) -> list[str]:
    """The files that match, each once, in the order of their paths."""
    # Not by Path.glob, which takes hidden files, too.
    found = {path for pattern in patterns for path in glob.glob(pattern) if Path(path).is_file()}  # noqa: PTH207
    return sorted(path for path in found if not any(fnmatch.fnmatch(Path(path).name, one) for one in leave_out))


def owner(path: Path) -> str:
    """Name or number of the owner; empty where there is nothing."""
    try:
        number = path.lstat().st_uid
    except OSError:
        return ""
    try:
        return pwd.getpwuid(number).pw_name
    except KeyError:
        return str(number)


def is_shared(path: str) -> bool:
    """Whether a directory has a default access control list."""
    try:
        return bool(os.getxattr(path, "system.posix_acl_default", follow_symlinks=False))
    except OSError:
        return False


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "exist": {"type": "list", "elements": "path", "default": []},
            "links": {"type": "list", "elements": "path", "default": []},
            "owners": {"type": "list", "elements": "path", "default": []},
            "shared": {"type": "list", "elements": "path", "default": []},
            "read": {"type": "list", "elements": "path", "default": []},
            "leave_out": {"type": "list", "elements": "str", "default": []},
        },
        supports_check_mode=True,
    )
    given = module.params
    try:
        text = {
            path: Path(path).read_text(errors="surrogateescape") for path in files(given["read"], given["leave_out"])
        }
    except OSError as error:
        module.fail_json(msg=f'"{error.filename}" cannot be read: {error.strerror}')
    module.exit_json(
        changed=False,
        exists={path: Path(path).exists() for path in given["exist"]},
        links={path: str(Path(path).readlink()) if Path(path).is_symlink() else "" for path in given["links"]},
        owners={path: owner(Path(path)) for path in given["owners"]},
        shared={path: is_shared(path) for path in given["shared"]},
        text=text,
    )


if __name__ == "__main__":
    main()
