#!/usr/bin/python
"""Ansible module: hold a directory equal to some files and texts, for nobody's eyes but the owner's."""

from __future__ import annotations

DOCUMENTATION = r"""
module: prefect_recovery_kit
short_description: A directory with copies of files
description:
  - Copies files and directories, writes texts, and removes what an earlier run has put there and this one would not.
    What a person has put beside stays; which files are the module's is written in C(.written) in the directory.
  - Directories get the mode 0700 and files 0600. Each file is replaced whole.
options:
  path:
    description: The directory; made when it is missing.
    type: path
    required: true
  copies:
    description: What is copied, by its name in the directory. Names in a directory that begin with a dot are left out.
    type: dict
    default: {}
  texts:
    description: What is written, by its name in the directory.
    type: dict
    default: {}
  leave_out:
    description: Names that are not copied, at any depth.
    type: list
    elements: str
    default: []
author:
  - the prefect self-hosting kit
"""

EXAMPLES = r"""
- name: Write the recovery kit
  prefect_recovery_kit:
    path: /home/ada/inventory/recovery-kit
    copies:
      inventory: /home/ada/inventory
    texts:
      RECOVERY.md: What to do.
    leave_out: [recovery-kit]
"""

RETURN = r"""
files:
  description: Names of the files that were written or removed.
  type: list
  returned: always
"""

import json  # noqa: E402
import os  # noqa: E402
import shutil  # noqa: E402
from pathlib import Path  # noqa: E402

from ansible.module_utils.basic import AnsibleModule  # noqa: E402


def wanted_files(copies: dict[str, str], texts: dict[str, str], leave_out: list[str]) -> dict[str, bytes]:
    """Content of each file that the directory shall have, by its name in it."""
    files = {name: text.encode() for name, text in texts.items()}
    for name, source in copies.items():
        root = Path(source)
        if root.is_file():
            files[name] = root.read_bytes()
        for path in root.rglob("*"):
            inside = path.relative_to(root)
            if path.is_file() and not any(part.startswith(".") or part in leave_out for part in inside.parts):
                files[f"{name}/{inside.as_posix()}"] = path.read_bytes()
    return files


RECORD = ".written"


def written_before(directory: Path, files: dict[str, bytes]) -> set[str]:
    """Names of the files that an earlier run has put there.

    Without a record, one of before there were any: then it is what lies in the folders that have copies.
    """
    try:
        return set(json.loads((directory / RECORD).read_text()))
    except (OSError, ValueError):
        folders = {name.split("/")[0] for name in files if "/" in name}
        there = (path.relative_to(directory) for path in directory.rglob("*") if not path.is_dir())
        return {name.as_posix() for name in there if name.parts[0] in folders}


def make_equal(directory: Path, files: dict[str, bytes], change: bool) -> list[str]:
    """Write what differs and remove what is ours and too much; gives the names. Without `change` nothing is done."""
    ours = {name for name in written_before(directory, files) if os.path.lexists(directory / name)}
    differing = [name for name in sorted(ours | set(files)) if not _is_right(directory / name, files.get(name))]
    if not change:
        return differing
    # Before the files: one that a killed run has written is ours in the next one.
    _write(directory / RECORD, json.dumps(sorted(ours | set(files)), indent=1).encode() + b"\n")
    for name in differing:
        path = directory / name
        if name not in files:
            path.unlink()
            continue
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        _write(path, files[name])
    _write(directory / RECORD, json.dumps(sorted(files), indent=1).encode() + b"\n")
    # The deepest first: one that held nothing but what went goes too.
    for path in sorted((path for path in directory.rglob("*") if path.is_dir()), reverse=True):
        if any(path.iterdir()):
            path.chmod(0o700)
        elif any(name.startswith(f"{path.relative_to(directory).as_posix()}/") for name in differing):
            path.rmdir()
    directory.chmod(0o700)
    return differing


def _write(path: Path, content: bytes) -> None:
    """A file for nobody else's eyes, whole or not there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.new")
    with open(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
        os.fchmod(file.fileno(), 0o600)
        file.write(content)
    temporary.replace(path)


def _is_right(path: Path, content: bytes | None) -> bool:
    if content is None or path.is_symlink() or not path.is_file():
        return False
    return path.read_bytes() == content and path.stat().st_mode & 0o777 == 0o600


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "path": {"type": "path", "required": True},
            "copies": {"type": "dict", "default": {}},
            "texts": {"type": "dict", "default": {}, "no_log": True},
            "leave_out": {"type": "list", "elements": "str", "default": []},
        },
        supports_check_mode=True,
    )
    given = module.params
    files = wanted_files(given["copies"], given["texts"], given["leave_out"])
    changed = make_equal(Path(given["path"]), files, change=not module.check_mode)
    module.exit_json(changed=bool(changed), files=changed)


if __name__ == "__main__":
    main()
