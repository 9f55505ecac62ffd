"""Another password for the repositories: all of them take it before the old one goes, so a kill at any moment locks nobody out.

    1. each repository gets a further key, opened by the new password (PASSWORD.next)
    2. the new password becomes the one that is used; the old one stays beside it (PASSWORD.before)
    3. each repository loses the key that the old one opens

A run that comes later goes on where the one before has ended. What restic encrypts with is the same as before (a key file
holds it, encrypted by the password): whoever had the old password *and* a copy of the repository's files can read that copy.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

from .errors import Code, Failure
from .files import remove, sync_directory, write_whole
from .lock import PLAYBOOK, only_one
from .progress import Report
from .restic import Repository
from .settings import Settings


def change(settings: Settings, password: str, report: Report) -> dict[str, Any]:
    """Give all repositories this password, and take the old one away. Raises Failure, before anything is changed if one is away."""
    _refuse(password)
    used = Path(settings.password_file)
    after, before = _beside(settings)
    with only_one(Path(settings.state), "the change of the repositories' password", PLAYBOOK):
        removed = finish(settings, report, password)
        if not used.exists() or _read(used) == password:
            return {"changed": bool(removed), "removed": removed}
        there = _there(settings)
        write_whole(after, password + "\n", 0o400)
        for repository in there:
            if not _opens(repository, settings, after):
                with report.step(f"{repository.name} takes the new password", f"key of {repository.name}"):
                    repository.run("key", "add", f"--new-password-file={after}", what="take another password")
        write_whole(before, _read(used) + "\n", 0o400)
        after.replace(used)
        sync_directory(used.parent)
        return {"changed": True, "removed": finish(settings, report)}


def finish(settings: Settings, report: Report, wanted: str = "") -> list[str]:
    """End what an interrupted change has left: keys of the password of before, and of one that never came into use.

    Gives the names of the repositories that lost a key. Raises Failure.

    Args:
        wanted: the password that the next change is to: what was begun for it stays.
    """
    used = Path(settings.password_file)
    removed: list[str] = []
    for left in _beside(settings):
        if not left.exists() or (wanted and _read(left) == wanted):
            continue
        # One of before that is still in use was written a moment too late to matter.
        if _read(left) != _read(used):
            removed += _remove_keys(_there(settings), settings, left, report)
        remove(left)
    return removed


def _refuse(password: str) -> None:
    if not password or password != password.strip() or len(password.splitlines()) != 1:
        raise Failure(
            Code.SETTINGS,
            "the new password must be one line on stdin, with no blanks around it",
            "prefect-backup password < FILE; with Ansible: docs/operations.md",
        )


def _beside(settings: Settings) -> tuple[Path, Path]:
    """Files of the password that is next, and of the one before."""
    return Path(settings.password_file + ".next"), Path(settings.password_file + ".before")


def _read(path: Path) -> str:
    return path.read_text().rstrip("\n")


def _there(settings: Settings) -> list[Repository]:
    """The repositories that there are, each of which opens with the password in use. Raises Failure."""
    there = []
    for repository in (Repository.local(settings), *Repository.offsite(settings)):
        try:
            repository.open()
        except Failure as failure:
            if failure.code is Code.NO_REPOSITORY:
                continue
            raise
        there.append(repository)
    return there


def _with(repository: Repository, settings: Settings, password_file: Path) -> Repository:
    """The same repository, opened by another password."""
    other = dataclasses.replace(settings, password_file=str(password_file))
    return Repository(
        repository.name, repository.url, other, repository.environment, repository.options, repository.prunes
    )


def _opens(repository: Repository, settings: Settings, password_file: Path) -> bool:
    """Whether a repository opens with the password in a file. Raises Failure for another reason than the password."""
    try:
        _with(repository, settings, password_file).open()
    except Failure as failure:
        if failure.code is Code.WRONG_KEY:
            return False
        raise
    return True


def _remove_keys(there: list[Repository], settings: Settings, password_file: Path, report: Report) -> list[str]:
    """Take from each repository the key that the password in a file opens; gives the names of those that had it."""
    removed = []
    for repository in there:
        if not _opens(repository, settings, password_file):
            continue
        keys = json.loads(_with(repository, settings, password_file).run("key", "list", "--json", what="list its keys"))
        identity = next(key["id"] for key in keys if key["current"])
        if not repository.prunes:
            report.say(
                f"      {repository.name} only takes: until its owner removes the key {identity}, the old password opens it",
                style="yellow",
            )
            continue
        with report.step(f"{repository.name} forgets the old password", f"old key of {repository.name}"):
            repository.run("key", "remove", identity, what="forget the old password")
        removed.append(repository.name)
    return removed
