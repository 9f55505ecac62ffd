"""Directories in staging, which the database's container sees, too: made for its user, and told from a person's."""

from __future__ import annotations

import shutil
import time
from pathlib import Path

from .files import write_whole

# uid and gid of postgres in the official image.
OWNER = 999


def make(staging: Path, name: str) -> Path:
    """A new, empty directory in staging that the container's postgres may write to.

    What is there of that name, and was put there by a person (restic restores to that very place), is kept beside.
    """
    path = staging / name
    if is_ours(staging, name):
        shutil.rmtree(path, ignore_errors=True)
    elif path.exists() and any(path.iterdir()):
        path.rename(path.with_name(time.strftime(f"{name}.kept-%Y%m%dT%H%M%SZ", time.gmtime())))
    path.mkdir(mode=0o700, exist_ok=True)
    shutil.chown(path, OWNER, OWNER)
    write_whole(_record(staging, name), f"{path.stat().st_ino}\n")
    return path


def remove(staging: Path, name: str) -> bool:
    """Remove a directory of `make`, into which a process that is ending may still be writing; whether it was there."""
    path, ours = staging / name, is_ours(staging, name)
    for _ in range(20):
        if not ours or not path.exists():
            break
        shutil.rmtree(path, ignore_errors=True)
        if path.exists():
            time.sleep(0.2)
    _record(staging, name).unlink(missing_ok=True)
    return ours


def is_ours(staging: Path, name: str) -> bool:
    """Whether there is a directory of that name in staging, and it was made by `make`."""
    try:
        return (staging / name).stat().st_ino == int(_record(staging, name).read_text())
    except (OSError, ValueError):
        return False


def _record(staging: Path, name: str) -> Path:
    """Which directory of that name is ours: its inode. Beside staging, where Postgres does not get to."""
    return staging.with_name(f".{staging.name}-{name}")
