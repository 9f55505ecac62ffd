#!/usr/bin/python
"""Ansible module: directories that change hands with all that is in them, though somebody else could write there."""

from __future__ import annotations

DOCUMENTATION = r"""
module: prefect_owner
short_description: Give directories, with all that is in them, to another user or to a group
description:
  - Does what C(file) does with C(recurse), in one round trip, for directories whose former owner is not trusted.
  - No link is followed, no other file system is entered. A file that has a hard link outside of the directory becomes a copy of
    its own, or who holds that link would go on reading and writing what is another user's now.
  - The directory itself comes last. A run that was cut off is done again, and one that has nothing to do looks at nothing else.
options:
  trees:
    description: The directories. One that is absent is left so, unless C(make) is set.
    type: list
    elements: dict
    required: true
    suboptions:
      path:
        description: The directory. The ones above it have to be root's.
        type: path
        required: true
      owner:
        description: Name of the new owner, and of the group of the same name.
        type: str
        default: root
      mode:
        description: Permissions of the directory itself, in octal; not given, it stays as it is.
        type: str
      shared:
        description: Group whose members read and write everything in it, whoever has made it (by ACLs). The directory has the mode 0770, and is that group's.
        type: str
      former:
        description: Only what belongs to this user changes hands, and the directory itself stays as it is.
        type: str
      make:
        description: Make the directory where there is none.
        type: bool
        default: false
author:
  - the prefect self-hosting kit
"""

EXAMPLES = r"""
- name: Give the worker its state
  prefect_owner:
    trees:
      - {path: /var/lib/a/main, owner: a_main, mode: "0700"}
      - {path: /var/lib/a-results/general, shared: a_pool_general, make: true}
"""

RETURN = r"""
changed_paths:
  description: The directories that were not as they should be.
  type: list
  returned: always
"""

import contextlib  # noqa: E402
import errno  # noqa: E402
import grp  # noqa: E402
import os  # noqa: E402
import pwd  # noqa: E402
import shutil  # noqa: E402
import stat  # noqa: E402
import struct  # noqa: E402
from collections import Counter  # noqa: E402
from dataclasses import dataclass  # noqa: E402
from pathlib import Path  # noqa: E402

from ansible.module_utils.basic import AnsibleModule  # noqa: E402

ACCESS, DEFAULT = "system.posix_acl_access", "system.posix_acl_default"
DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
COPY = ".prefect-owner-copy"


def acl(group: int, permissions: int) -> bytes:
    """The list that gives owner and this group the permissions (7 or 6) and nobody else any, as the kernel keeps it."""
    nobody = 0xFFFFFFFF
    # Tags in the kernel's order: owner, owning group, named group, mask, others.
    entries = [
        (1, permissions, nobody),
        (4, 0, nobody),
        (8, permissions, group),
        (16, permissions, nobody),
        (32, 0, nobody),
    ]
    return struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *entry) for entry in entries)


@dataclass
class Tree:
    """What one directory shall be; `mode`, `shared` and `former` are None where nothing is said of them."""

    path: str
    uid: int
    gid: int
    mode: int | None
    shared: int | None
    former: int | None

    def lists(self, directory: bool) -> dict:
        """The ACLs of a directory, or of a file, in it."""
        if self.shared is None:
            return {}
        whole = acl(self.shared, 7 if directory else 6)
        return {ACCESS: whole, DEFAULT: whole} if directory else {ACCESS: whole}

    def is_as_it_should_be(self, descriptor: int) -> bool:
        """Whether the directory itself says that all of it is."""
        found = os.fstat(descriptor)
        return (
            self.former is None
            and (found.st_uid, found.st_gid) == (self.uid, self.gid)
            and self.mode in (None, stat.S_IMODE(found.st_mode))
            and all(_attribute(descriptor, name) == value for name, value in self.lists(directory=True).items())
        )


def _attribute(descriptor: int, name: str) -> bytes | None:
    try:
        return os.getxattr(descriptor, name)
    except OSError:
        return None


class Hands:
    """One directory on its way to its new owner."""

    def __init__(self, tree: Tree, look_only: bool) -> None:
        self.tree = tree
        self.look_only = look_only
        self.changed = False
        self.links: Counter = Counter()

    def take(self) -> bool:
        """Hand it over, should that be needed; says whether it was."""
        descriptor = os.open(self.tree.path, DIRECTORY)
        try:
            if self.tree.is_as_it_should_be(descriptor):
                return False
            device = os.fstat(descriptor).st_dev
            self._count(descriptor, device)
            self._hand_over(descriptor, device)
            if self.tree.former is None:
                self._directory(descriptor)
                if self.tree.mode is not None and not self.look_only:
                    os.fchmod(descriptor, self.tree.mode)
                self.changed = True
        finally:
            os.close(descriptor)
        return self.changed

    def _count(self, directory: int, device: int) -> None:
        """How often each file with several names is met in here."""
        for name, found in _entries(directory):
            if stat.S_ISDIR(found.st_mode):
                with _Opened(name, DIRECTORY, directory, device) as inner:
                    if inner is not None:
                        self._count(inner, device)
            elif found.st_nlink > 1:
                self.links[found.st_ino] += 1

    def _hand_over(self, directory: int, device: int) -> None:
        for name, found in _entries(directory):
            if stat.S_ISDIR(found.st_mode):
                with _Opened(name, DIRECTORY, directory, device) as inner:
                    if inner is not None:
                        self._hand_over(inner, device)
                        if self._concerns(found):
                            self._directory(inner)
            elif self._concerns(found):
                self.changed = True
                if not self.look_only:
                    self._file(name, found, directory)

    def _concerns(self, found: os.stat_result) -> bool:
        return self.tree.former in (None, found.st_uid)

    def _directory(self, descriptor: int) -> None:
        self.changed = True
        if not self.look_only:
            os.fchown(descriptor, self.tree.uid, self.tree.gid)
            for name, value in self.tree.lists(directory=True).items():
                os.setxattr(descriptor, name, value)

    def _file(self, name: str, found: os.stat_result, directory: int) -> None:
        if stat.S_ISREG(found.st_mode) and found.st_nlink > self.links[found.st_ino]:
            self._copy(name, directory)
        os.chown(name, self.tree.uid, self.tree.gid, dir_fd=directory, follow_symlinks=False)
        if stat.S_ISREG(found.st_mode) and self.tree.shared is not None:
            descriptor = os.open(name, FILE, dir_fd=directory)
            try:
                for attribute, value in self.tree.lists(directory=False).items():
                    os.setxattr(descriptor, attribute, value)
            finally:
                os.close(descriptor)

    def _copy(self, name: str, directory: int) -> None:
        """Put a copy in the place of a file that somebody has by another name, too."""
        with open(os.open(name, FILE, dir_fd=directory), "rb") as source:
            found = os.fstat(source.fileno())
            with contextlib.suppress(FileNotFoundError):
                os.unlink(COPY, dir_fd=directory)
            new = os.open(COPY, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600, dir_fd=directory)
            with open(new, "wb") as copy:
                shutil.copyfileobj(source, copy, 1 << 20)
                os.fchmod(copy.fileno(), stat.S_IMODE(found.st_mode) & 0o777)
                os.utime(copy.fileno(), ns=(found.st_atime_ns, found.st_mtime_ns))
                copy.flush()
                os.fsync(copy.fileno())
        os.rename(COPY, name, src_dir_fd=directory, dst_dir_fd=directory)


class _Opened:
    """A file of a directory, opened without following a link; None where it is on another file system, or gone."""

    def __init__(self, name: str, flags: int, directory: int, device: int) -> None:
        self.descriptor: int | None = None
        try:
            self.descriptor = os.open(name, flags, dir_fd=directory)
        except (FileNotFoundError, NotADirectoryError):
            return
        if os.fstat(self.descriptor).st_dev != device:
            os.close(self.descriptor)
            self.descriptor = None

    def __enter__(self) -> int | None:
        return self.descriptor

    def __exit__(self, *_: object) -> None:
        if self.descriptor is not None:
            os.close(self.descriptor)


def _entries(directory: int) -> list:
    """Names and what lstat says of them, as they are at this moment."""
    found = []
    for name in sorted(os.listdir(directory)):
        try:
            found.append((name, os.stat(name, dir_fd=directory, follow_symlinks=False)))
        except FileNotFoundError:
            continue
    return found


def _tree(given: dict) -> Tree:
    """Raises KeyError where the host does not have a user or a group."""
    return Tree(
        path=given["path"],
        uid=pwd.getpwnam(given["owner"]).pw_uid,
        gid=grp.getgrnam(given["shared"] or given["owner"]).gr_gid,
        mode=int(given["mode"], 8) if given["mode"] else None,
        shared=grp.getgrnam(given["shared"]).gr_gid if given["shared"] else None,
        former=pwd.getpwnam(given["former"]).pw_uid if given["former"] else None,
    )


def _is_known(user: str) -> bool:
    return any(entry.pw_name == user for entry in pwd.getpwall())


def hand_over(given: dict, look_only: bool) -> bool:
    """Hand one directory over; says whether it was not as it should be. Raises OSError, and KeyError for unknown names."""
    path, made = Path(given["path"]), False
    if not path.is_dir() or path.is_symlink():
        if not given["make"]:
            return False
        if not look_only:
            path.mkdir(mode=0o700)
        made = True
    if given["former"] and not _is_known(given["former"]):
        # Nothing is a user's that there is not.
        return False
    try:
        tree = _tree(given)
    except KeyError:
        # In check mode nobody has made them.
        if look_only:
            return True
        raise
    if made and look_only:
        return True
    return Hands(tree, look_only).take() or made


def main() -> None:
    options = {
        "path": {"type": "path", "required": True},
        "owner": {"type": "str", "default": "root"},
        "mode": {"type": "str"},
        "shared": {"type": "str"},
        "former": {"type": "str"},
        "make": {"type": "bool", "default": False},
    }
    module = AnsibleModule(
        argument_spec={"trees": {"type": "list", "elements": "dict", "required": True, "options": options}},
        supports_check_mode=True,
    )
    changed = []
    for given in module.params["trees"]:
        try:
            if hand_over(given, module.check_mode):
                changed.append(given["path"])
        except KeyError as error:
            module.fail_json(msg=f'"{given["path"]}" cannot change hands: {error.args[0]}')
        except OSError as error:
            if error.errno == errno.EOPNOTSUPP:
                module.fail_json(
                    msg=f'"{given["path"]}" cannot be shared by a group: its file system keeps no access control lists. With ZFS run '
                    "zfs set acltype=posixacl DATASET; else put a directory of another file system there."
                )
            module.fail_json(msg=f'"{given["path"]}" cannot change hands: {error}')
    module.exit_json(changed=bool(changed), changed_paths=changed)


if __name__ == "__main__":
    main()
