"""The upkeep of repositories: they are made, thinned out, and copied off-site."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from . import new_password, repositories
from .errors import Code, Failure
from .last import read_last, remember
from .lock import PLAYBOOK, only_one
from .progress import Report
from .restic import Repository
from .settings import Settings

# Hours between two runs of `restic prune`, which reads all lists; taking backups off the list costs nothing.
PRUNE_EVERY = 24.0


def tidy(settings: Settings, repository: Repository, report: Report, thorough: bool = False) -> int:
    """Take old backups off a repository's list and, once a day or when asked to, free their data.

    Gives how many backups were taken off. Where a copy is still being read, it is put off to the next time.
    """
    if not repository.prunes:
        return 0
    pruned: dict[str, float] = read_last(settings).get("pruned", {})
    due = thorough or time.time() - pruned.get(repository.name, 0) > PRUNE_EVERY * 3600
    where = "" if repository.is_local else f" in {repository.name}"
    try:
        with report.step(f"old backups forgotten{where}", f"forget{where}"):
            forgotten = repository.forget(settings.keep)
        if due:
            with report.step(f"what no backup needs freed{where}", f"prune{where}"):
                repository.prune()
            remember(settings, pruned={repository.name: time.time()})
        return forgotten
    except Failure as failure:
        if failure.code is not Code.BUSY or thorough:
            raise
        report.say(f"      put off: {failure.fact}")
        return 0


def copy_offsite(settings: Settings, report: Report) -> dict[str, Any]:
    """Copy to each off-site repository what it does not have; gives how each went.

    Raises Failure (OFFSITE) after all were tried.
    """
    repositories = Repository.offsite(settings)
    if not repositories:
        return {}
    failures: dict[str, Failure] = {}
    try:
        with only_one(Path(settings.state) / "offsite", "a copy off-site", patience=60):
            for repository in repositories:
                failure = _copy_and_remember(settings, repository, report)
                if failure is not None:
                    failures[repository.name] = failure
    except Failure as failure:
        # It copies this backup too, or the next one will; `check` sees to it that it does not take for ever.
        report.say(f"      not copied now: {failure.fact}")
    if failures:
        facts = "; ".join(failure.fact for failure in failures.values())
        raise Failure(
            Code.OFFSITE,
            f"{len(failures)} of {len(repositories)} copies off-site failed: {facts}",
            next(iter(failures.values())).hint + "; the next backup copies what is missing",
        )
    return read_last(settings).get("offsite", {})


def _copy_and_remember(settings: Settings, repository: Repository, report: Report) -> Failure | None:
    """Copy to one off-site repository, and write down how that went; gives the failure, if it is one."""
    failed = None
    try:
        state = _copy(settings, repository, report)
    except Failure as failure:
        failed = failure
        report.say(f"      {failure.fact}", style="red")
        state = {"error": failure.fact}
    remember(settings, offsite={repository.name: {"error": None, **state}})
    return failed


def _copy(settings: Settings, repository: Repository, report: Report) -> dict[str, Any]:
    """One off-site repository; gives what is there then."""
    with report.step(f"copy to {repository.name}", f"copy to {repository.name}") as advance:
        repository.open()
        copied = repository.copy_from(Repository.local(settings), advance)
    tidy(settings, repository, report)
    there = [backup.id for backup in repository.backups()]
    return {"copied": copied, "at": time.time(), "ids": there}


def fetch(settings: Settings, name: str, report: Report) -> dict[str, Any]:
    """Copy to the repository on this host what another one has, as on a new server; gives how many backups came.

    Args:
        name: of an off-site repository, or "off-site" for all of them.

    Raises Failure.
    """
    local, fetched = Repository.local(settings), {}
    with only_one(Path(settings.state), "a copy of backups to this host", PLAYBOOK):
        for source in repositories.find(settings, name):
            if source.is_local:
                raise Failure(Code.NOT_FOUND, f'"{name}" is the repository on this host itself', "see backups_offsite")
            with report.step(f"backups out of {source.name}", f"fetch {source.name}") as advance:
                source.open()
                fetched[source.name] = local.copy_from(source, advance)
    return {"fetched": fetched, "changed": any(fetched.values())}


def prune(settings: Settings, report: Report) -> dict[str, Any]:
    """Retention, and all that no backup needs freed, in the local repository and those off-site. Raises Failure."""
    result = {}
    with only_one(Path(settings.state), "a prune"):
        for repository in [Repository.local(settings), *Repository.offsite(settings)]:
            repository.open()
            forgotten = tidy(settings, repository, report, thorough=True)
            result[repository.name] = {"forgotten": forgotten, "bytes": repository.size()}
    return result


def init(settings: Settings, report: Report) -> dict[str, Any]:
    """Make the repositories that are not there yet, all cutting data in the same places. Raises Failure.

    On a new host the off-site one is there already, and the local one follows it.
    """
    local, offsite = Repository.local(settings), Repository.offsite(settings)
    failures, there, made = [], [], []
    for repository in offsite:
        try:
            repository.open()
            there.append(repository)
        except Failure as failure:
            if failure.code is not Code.NO_REPOSITORY:
                failures.append(failure)
    with only_one(Path(settings.state), "the making of the repositories", PLAYBOOK):
        if local.init(there[0] if there else None):
            made.append(local.name)
        missing = [one for one in offsite if one not in there]
        for repository in missing:
            try:
                if repository.init(local):
                    made.append(repository.name)
            except Failure as failure:
                failures.append(failure)
        removed = [] if failures else new_password.finish(settings, report)
    for name in made:
        report.say(f"made the repository {name}")
    if failures:
        raise failures[0]
    return {"changed": bool(made or removed), "made": made}
