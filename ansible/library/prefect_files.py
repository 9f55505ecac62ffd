#!/usr/bin/python
"""Ansible module: many small files, directories and links, in one round trip."""

from __future__ import annotations

DOCUMENTATION = r"""
module: prefect_files
short_description: Many small files, directories and links in one round trip
description:
  - Does for a list what M(ansible.builtin.copy) and M(ansible.builtin.file) do for one. A loop over those costs two
    connections and two Python interpreters for each entry, also where nothing changes; measured on a provisioned server,
    that was most of the time of a run of site.yml.
  - Entries are made in their order. Each file is replaced whole (written beside, then renamed).
options:
  entries:
    description: What shall be there.
    type: list
    elements: dict
    required: true
    suboptions:
      path:
        description: Where, on the host.
        type: path
        required: true
      state:
        description: What it is.
        type: str
        choices: [file, directory, link]
        default: file
      content:
        description: Text of a file.
        type: str
      target:
        description: Where a link leads.
        type: str
      owner:
        description: Name or number of the owner.
        type: str
        default: root
      group:
        description: Name or number of the group.
        type: str
        default: root
      mode:
        description: Permissions of a file or a directory, in octal.
        type: str
author:
  - the prefect self-hosting kit
"""

EXAMPLES = r"""
- name: Install the units
  prefect_files:
    entries:
      - {path: /etc/systemd/system/a.service.d, state: directory, mode: "0755"}
      - {path: /etc/systemd/system/a.service.d/more.conf, content: "[Service]\n", mode: "0644"}
      - {path: /opt/a/current, state: link, target: releases/1}
"""

RETURN = r"""
changed_paths:
  description: Paths of the entries that were not as they should be.
  type: list
  returned: always
"""

import os  # noqa: E402
import tempfile  # noqa: E402

from ansible.module_utils.basic import AnsibleModule  # noqa: E402


def problem(entry: dict, is_directory: bool) -> str | None:
    """Why an entry cannot be made, if so; `is_directory`: whether a directory (and no link to one) has its path."""
    path, state = entry["path"], entry["state"]
    if state == "file" and entry["content"] is None:
        return f'"{path}" is a file without content'
    if state == "link" and not entry["target"]:
        return f'"{path}" is a link without a target'
    if state != "link" and not entry["mode"]:
        return f'"{path}" has no mode'
    if state != "directory" and is_directory:
        return f'"{path}" is a directory, and shall be a {state}'
    return None


def _read(path: str) -> str | None:
    """The text of a file; None where there is none, or a link."""
    if os.path.islink(path) or not os.path.isfile(path):
        return None
    with open(path, "rb") as file:
        return file.read().decode(errors="surrogateescape")


def make_file(module: AnsibleModule, entry: dict) -> bool:
    """Write the file where its text is another; says whether it is."""
    path, text = entry["path"], entry["content"]
    before = _read(path)
    if before == text:
        return False
    if not module.check_mode:
        descriptor, temporary = tempfile.mkstemp(prefix=".ansible-", dir=os.path.dirname(path))
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(text.encode(errors="surrogateescape"))
                file.flush()
                os.fsync(file.fileno())
            # Before it has its name: a secret is never readable for others, not for a moment.
            module.set_fs_attributes_if_different(_attributes(module, entry, temporary), False)
            os.rename(temporary, path)
        except BaseException:
            if os.path.exists(temporary):
                os.unlink(temporary)
            raise
    return True


def make_directory(module: AnsibleModule, entry: dict) -> bool:
    """Make the directory where there is none, its parents included; says whether there is none."""
    if os.path.isdir(entry["path"]):
        return False
    if not module.check_mode:
        os.makedirs(entry["path"], int(entry["mode"], 8))
    return True


def make_link(module: AnsibleModule, entry: dict) -> bool:
    """Lead the link to its target; says whether it led elsewhere, or was none."""
    path, target = entry["path"], entry["target"]
    if os.path.islink(path) and os.readlink(path) == target:
        return False
    if not module.check_mode:
        temporary = f"{path}.new"
        if os.path.lexists(temporary):
            os.unlink(temporary)
        os.symlink(target, temporary)
        os.rename(temporary, path)
    return True


MAKE = {"file": make_file, "directory": make_directory, "link": make_link}


def _attributes(module: AnsibleModule, entry: dict, path: str) -> dict:
    wanted = {name: entry[name] for name in ("owner", "group", "mode")}
    return module.load_file_common_arguments({**wanted, "path": path}, path)


def make(module: AnsibleModule, entry: dict) -> tuple[bool, dict | None]:
    """Make one entry; gives whether it was not as it should be, and what `--diff` shows of it."""
    path = entry["path"]
    before = _read(path) if entry["state"] == "file" else None
    changed = MAKE[entry["state"]](module, entry)
    diff = None
    if changed:
        after = entry["content"] if entry["state"] == "file" else f"{entry['state']} {entry['target'] or ''}\n"
        diff = {"before_header": path, "after_header": path, "before": before or "", "after": after}
    # In check mode a new entry has no owner yet.
    if entry["state"] != "link" and os.path.lexists(path) and not (changed and module.check_mode):
        changed = module.set_fs_attributes_if_different(_attributes(module, entry, path), changed)
    return changed, diff


def main() -> None:
    options = {
        "path": {"type": "path", "required": True},
        "state": {"type": "str", "choices": ["file", "directory", "link"], "default": "file"},
        "content": {"type": "str"},
        "target": {"type": "str"},
        "owner": {"type": "str", "default": "root"},
        "group": {"type": "str", "default": "root"},
        "mode": {"type": "str"},
    }
    module = AnsibleModule(
        argument_spec={"entries": {"type": "list", "elements": "dict", "required": True, "options": options}},
        supports_check_mode=True,
    )
    entries = module.params["entries"]
    for entry in entries:
        is_directory = os.path.isdir(entry["path"]) and not os.path.islink(entry["path"])
        if text := problem(entry, is_directory):
            module.fail_json(msg=text)
    paths, diffs = [], []
    for entry in entries:
        changed, diff = make(module, entry)
        if changed:
            paths.append(entry["path"])
        if diff:
            diffs.append(diff)
    module.exit_json(changed=bool(paths), changed_paths=paths, diff=diffs)


if __name__ == "__main__":
    main()
