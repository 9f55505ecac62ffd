"""Which repositories a name means, the same for every verb: --from of a restore, --repository of list and verify."""

from __future__ import annotations

from collections.abc import Iterable

from . import choose
from .errors import Code, Failure
from .progress import Report
from .restic import LOCAL, Backup, Repository
from .settings import Settings

ALL = "all"
OFFSITE = ("off-site", "offsite")


def find(settings: Settings, name: str | None) -> list[Repository]:
    """The local repository (None or "local"), all off-site ones ("off-site"), each there is ("all"), or the one of a name.

    Raises Failure (NOT_FOUND) where there is none of that name.
    """
    local, offsite = Repository.local(settings), Repository.offsite(settings)
    if name in (None, LOCAL):
        return [local]
    if name == ALL:
        return [local, *offsite]
    chosen = offsite if name in OFFSITE else [one for one in offsite if one.name == name]
    if not chosen:
        known = ", ".join([LOCAL, *(one.name for one in offsite)])
        raise Failure(Code.NOT_FOUND, f'there is no repository "{name}"; there are: {known}', "see backups_offsite")
    return chosen


def of(backup: Backup, repositories: Iterable[Repository]) -> Repository:
    """The one that a backup of `backups()` is in."""
    return next(one for one in repositories if one.name == backup.repository)


def backups(repositories: Iterable[Repository], report: Report) -> list[Backup]:
    """The backups of repositories, newest first, each once. One that does not open is no obstacle where another one does.

    Raises Failure where none opens.
    """
    lists: list[list[Backup]] = []
    failures: list[Failure] = []
    for repository in repositories:
        try:
            if not repository.is_local:
                repository.open()
            lists.append(repository.backups())
        except Failure as failure:
            failures.append(failure)
    if not lists and failures:
        raise failures[0]
    for one in failures:
        report.say(f"not in the list: {one.fact}", style="yellow")
    return choose.merge(lists)
