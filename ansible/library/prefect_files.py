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
  - C(absent) removes a file or a link, and never a directory.
  - The SHA-256 of each file is kept on the host, so that prefect-doctor can tell which were changed by hand since.
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
        choices: [file, directory, link, absent]
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
      validate:
        description: Command that says whether a file is valid, before it has its name. C(%s) stands for its path.
        type: str
      backup:
        description: Keep the file that was there, beside the new one.
        type: bool
        default: false
  record:
    description: Where the SHA-256 of each file is kept, by its path. A file that is gone is left out, and those in C(/run).
    type: path
    default: /var/lib/prefect/placed.json
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
      - {path: /etc/sudoers.d/a, content: "a ALL=(ALL) NOPASSWD: ALL\n", mode: "0440", validate: visudo -cf %s}
      - {path: /opt/a/old, state: absent}
"""

RETURN = r"""
changed_paths:
  description: Paths of the entries that were not as they should be.
  type: list
  returned: always
"""

import hashlib  # noqa: E402
import json  # noqa: E402
import os  # noqa: E402
import tempfile  # noqa: E402
from pathlib import Path  # noqa: E402

from ansible.module_utils.basic import AnsibleModule  # noqa: E402


def problem(entry: dict, is_directory: bool) -> str | None:
    """Why an entry cannot be made, if so; `is_directory`: whether a directory (and no link to one) has its path."""
    path, state = entry["path"], entry["state"]
    if state == "file" and entry["content"] is None:
        return f'"{path}" is a file without content'
    if state == "link" and not entry["target"]:
        return f'"{path}" is a link without a target'
    if state in ("file", "directory") and not entry["mode"]:
        return f'"{path}" has no mode'
    if entry["validate"] and "%s" not in entry["validate"]:
        return f'"validate" of "{path}" does not say by %s which file'
    if state != "directory" and is_directory:
        return f'"{path}" is a directory, and shall be {state if state == "absent" else f"a {state}"}'
    return None


def _read(path: Path) -> str | None:
    """The text of a file; None where there is none, or a link."""
    return path.read_bytes().decode(errors="surrogateescape") if path.is_file() and not path.is_symlink() else None


def make_file(module: AnsibleModule, entry: dict) -> bool:
    """Write the file where its text is another; says whether it is."""
    path, text = Path(entry["path"]), entry["content"]
    if _read(path) == text:
        return False
    if not module.check_mode:
        descriptor, name = tempfile.mkstemp(prefix=".ansible-", dir=path.parent)
        temporary = Path(name)
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(text.encode(errors="surrogateescape"))
                file.flush()
                os.fsync(file.fileno())
            # Before it has its name: a secret is never readable for others, not for a moment.
            module.set_fs_attributes_if_different(_attributes(module, entry, temporary), False)
            validate(module, entry, temporary)
            if entry["backup"] and path.is_file():
                module.backup_local(str(path))
            temporary.rename(path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
    return True


def validate(module: AnsibleModule, entry: dict, temporary: Path) -> None:
    """Let the tool that will read the file say whether it is valid; ends the module where it is not."""
    if not entry["validate"]:
        return
    code, out, error = module.run_command(entry["validate"].replace("%s", str(temporary)))
    if code:
        said = (error or out).strip().replace(str(temporary), entry["path"])
        module.fail_json(
            msg=f"failed to validate {entry['path']}: rc:{code} error:{said}", rc=code, stdout=out, stderr=error
        )


def make_directory(module: AnsibleModule, entry: dict) -> bool:
    """Make the directory where there is none, its parents included; says whether there is none."""
    path = Path(entry["path"])
    if path.is_dir():
        return False
    if not module.check_mode:
        path.mkdir(int(entry["mode"], 8), parents=True)
    return True


def make_link(module: AnsibleModule, entry: dict) -> bool:
    """Lead the link to its target; says whether it led elsewhere, or was none."""
    path, target = Path(entry["path"]), entry["target"]
    if path.is_symlink() and str(path.readlink()) == target:
        return False
    if not module.check_mode:
        temporary = path.with_name(f".{path.name}.new")
        temporary.unlink(missing_ok=True)
        temporary.symlink_to(target)
        temporary.rename(path)
    return True


def remove(module: AnsibleModule, entry: dict) -> bool:
    """Remove the file or the link; says whether there is one."""
    path = Path(entry["path"])
    if not os.path.lexists(path):
        return False
    if not module.check_mode:
        path.unlink()
    return True


MAKE = {"file": make_file, "directory": make_directory, "link": make_link, "absent": remove}


def _attributes(module: AnsibleModule, entry: dict, path: Path) -> dict:
    wanted = {name: entry[name] for name in ("owner", "group", "mode")}
    return module.load_file_common_arguments({**wanted, "path": str(path)}, str(path))


def make(module: AnsibleModule, entry: dict) -> tuple[bool, dict | None]:
    """Make one entry; gives whether it was not as it should be, and what `--diff` shows of it."""
    path = Path(entry["path"])
    before = _read(path) if entry["state"] == "file" else None
    changed = MAKE[entry["state"]](module, entry)
    diff = None
    if changed:
        after = entry["content"] if entry["state"] == "file" else f"{entry['state']} {entry['target'] or ''}\n"
        diff = {"before_header": str(path), "after_header": str(path), "before": before or "", "after": after}
    # In check mode a new entry has no owner yet.
    if entry["state"] in ("file", "directory") and not (changed and module.check_mode):
        changed = module.set_fs_attributes_if_different(_attributes(module, entry, path), changed)
    return changed, diff


def recorded(known: dict, entries: list[dict]) -> dict:
    """The SHA-256 of files by path, with these entries. What is gone was removed by a task, or is placed again by the next run."""
    known = {path: value for path, value in known.items() if os.path.lexists(path)}
    for entry in entries:
        known.pop(entry["path"], None)
        # What is in /run is gone soon, by whoever uses it, or by a reboot.
        if entry["state"] == "file" and not entry["path"].startswith("/run/"):
            known[entry["path"]] = hashlib.sha256(entry["content"].encode(errors="surrogateescape")).hexdigest()
    return known


def keep(record: Path, entries: list[dict]) -> None:
    """Write down what was placed, where that is news. Root's alone: hashes of secrets are among them."""
    try:
        before = json.loads(record.read_text())
    except (OSError, ValueError):
        before = {}
    after = recorded(before if isinstance(before, dict) else {}, entries)
    if after == before:
        return
    record.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(prefix=".placed-", dir=record.parent)
    with os.fdopen(descriptor, "w") as file:
        json.dump(after, file, indent=1, sort_keys=True)
        file.write("\n")
        file.flush()
        os.fsync(file.fileno())
    Path(name).rename(record)


def main() -> None:
    options = {
        "path": {"type": "path", "required": True},
        "state": {"type": "str", "choices": ["file", "directory", "link", "absent"], "default": "file"},
        "content": {"type": "str"},
        "target": {"type": "str"},
        "owner": {"type": "str", "default": "root"},
        "group": {"type": "str", "default": "root"},
        "mode": {"type": "str"},
        "validate": {"type": "str"},
        "backup": {"type": "bool", "default": False},
    }
    module = AnsibleModule(
        argument_spec={
            "entries": {"type": "list", "elements": "dict", "required": True, "options": options},
            "record": {"type": "path", "default": "/var/lib/prefect/placed.json"},
        },
        supports_check_mode=True,
    )
    entries = module.params["entries"]
    for entry in entries:
        path = Path(entry["path"])
        if text := problem(entry, path.is_dir() and not path.is_symlink()):
            module.fail_json(msg=text)
    paths, diffs, made = [], [], []
    try:
        for entry in entries:
            changed, diff = make(module, entry)
            made.append(entry)
            if changed:
                paths.append(entry["path"])
            if diff:
                diffs.append(diff)
    finally:
        # Also where a later one is refused: those before it are in their places.
        if not module.check_mode:
            keep(Path(module.params["record"]), made)
    module.exit_json(changed=bool(paths), changed_paths=paths, diff=diffs)


if __name__ == "__main__":
    main()
