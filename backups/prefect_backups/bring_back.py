"""A backup out of its repository into a new database, and the proof that it is what it was: for restores and proofs."""

from __future__ import annotations

import shutil

from . import manifest
from .errors import Code, Failure
from .manifest import Manifest
from .postgres import OWNER, RESTORING, Postgres
from .progress import Report, size
from .restic import Backup, Repository
from .settings import Settings


def bring_back(
    source: Repository,
    backup: Backup,
    account: Manifest,
    postgres: Postgres,
    settings: Settings,
    report: Report,
    where: str,
) -> None:
    """Make the database RESTORING of a backup; what is there of that name goes first.

    Args:
        where: in words for the person who waits, such as "a new database, the old one serving".

    Raises:
        Failure: DAMAGED, RESTORE or NO_ROOM; then the database may be there, half-made.
    """
    postgres.end_orphans()
    postgres.drop(RESTORING)
    into = postgres.make_staging("restore")
    with report.step(f"backup {backup.id} out of the repository {source.name}", "fetch") as advance:
        source.restore(backup, manifest.dump_path(settings), into, advance)
        for path in (into, *into.rglob("*")):
            shutil.chown(path, OWNER, OWNER)
    total = max(account.database_bytes, 1)
    with report.step(f"restore into {where}", "load") as advance:
        postgres.create(RESTORING)

        def watch() -> None:
            done = postgres.size(RESTORING)
            advance(done / total, f"{size(done)} of {size(total)}")

        postgres.load("restore", RESTORING, settings.jobs, watch)
    postgres.remove_staging("restore")


def prove(backup: Backup, account: Manifest, postgres: Postgres, report: Report, hint: str) -> None:
    """Hold rows, checksums and migration of RESTORING against the manifest. Raises Failure (MISMATCH) with `hint`."""
    with report.step("rows and checksums against the manifest", "compare"):
        with postgres.connect(RESTORING, autocommit=False) as connection:
            differences = manifest.compare(account.tables, manifest.take(connection, account.tables))
        revision = postgres.revision(RESTORING)
        if revision != account.revision:
            differences.append(f'the migration is "{revision}", the manifest says "{account.revision}"')
        if differences:
            raise Failure(
                Code.MISMATCH,
                f"the backup {backup.id} came back different from its manifest: {'; '.join(differences[:5])}",
                hint,
            )
