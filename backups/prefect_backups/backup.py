"""Make a backup: dump, manifest, repository, retention, copies off-site.

The dump is pg_dump's directory format, uncompressed, one file per table:

- it is restored by several processes at once, which a plain SQL dump and a compressed stream cannot be;
- restic finds what has not changed only in data that is not compressed: a changed row changes all that a compressor
  writes after it. Rows come out in the order in which they lie in the table, and tables that grow mostly grow at
  their end, so an hourly backup adds little more than what is new. restic compresses what it stores.

It is not encrypted by itself, and it holds all that is needed to read what Prefect encrypts: Prefect keeps the key of
its blocks and variables in the database (table `configuration`). What protects a backup is restic's encryption, whose
password is in no backup; the dump on its way lies where only root and Postgres get to, and is removed at the end.

Whatever fails, or kills this process: earlier backups stay whole (restic never changes what it has stored), and what
was half-made is removed, by `undone` here or by `clean`, which systemd calls after the process.
"""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psycopg
from prefect_audit import keep as audit

from . import block_key, manifest, previous, space, verify
from .errors import Code, Failure
from .files import write_whole
from .last import read_last, remember
from .lock import only_one
from .manifest import Manifest, Table
from .postgres import LIVE, Postgres
from .progress import Advance, Report, size
from .restic import FULL, ID_FORMAT, SCHEDULED, Backup, Repository
from .settings import Settings
from .stack import Stack
from .upkeep import copy_offsite, tidy

KINDS = (SCHEDULED, "manual", "safety", "before-migration", "before-upgrade")
STAGING = "backup"


@dataclass(frozen=True)
class Facts:
    """What the checks before a backup found out."""

    prefect: str
    postgres: str
    revision: str
    database_bytes: int
    # Estimate of the dump.
    dump_bytes: int


# --- the whole ----------------------------------------------------------------------------------------------------


def create(settings: Settings, kind: str, report: Report, patience: float = 0.0) -> dict[str, Any]:
    """Back up, and copy off-site; gives the facts for --json. Raises Failure.

    Args:
        kind: one of KINDS.
        patience: seconds to wait while something else is at work.
    """
    failures: list[Failure] = []
    with only_one(Path(settings.state), "a backup", patience):
        made = create_unlocked(settings, kind, report)
        # From here on there is a backup, and whatever fails must not keep it from being copied off-site.
        with _collected(failures):
            made["forgotten"] = tidy(settings, Repository.local(settings), report)
        with _collected(failures):
            if kind == SCHEDULED and previous.expire(settings, Postgres.live(settings)):
                report.say("      the database of before the last restore is dropped: its time is over")
    # Without the lock: a copy may take hours, and a restore must not wait for it. restic has locks of its own.
    with _collected(failures):
        made["offsite"] = copy_offsite(settings, report)
    if failures:
        facts = "; ".join(failure.fact for failure in failures)
        raise Failure(failures[0].code, f"the backup {made['id']} is made, but {facts}", failures[0].hint)
    return {**made, "seconds": report.seconds}


@contextlib.contextmanager
def _collected(failures: list[Failure]) -> Iterator[None]:
    try:
        yield
    except Failure as failure:
        failures.append(failure)


def create_unlocked(settings: Settings, kind: str, report: Report) -> dict[str, Any]:
    """The same for who holds the lock, such as a restore: only the backup itself. Raises Failure."""
    started = time.monotonic()
    # It would name the wrong one.
    block_key.refuse_unfinished(settings, "back up")
    postgres, local = Postgres.live(settings), Repository.local(settings)
    with report.step("checks that change nothing", "checks"):
        facts = _check(settings, postgres, local)
    with undone(settings, postgres, local):
        made, account = _make(settings, kind, report, facts)
        result = {
            "id": made.id,
            "kind": kind,
            "snapshot": made.snapshot,
            "rows": account.rows,
            "database_bytes": account.database_bytes,
            "dump_bytes": account.dump_bytes,
            "added_bytes": made.added,
            "prefect": account.prefect,
            "postgres": account.postgres,
            "revision": account.revision,
        }
    remember(settings, **result, seconds=round(time.monotonic() - started, 2))
    report.say(f"      {made.id}: {size(made.size)} in it, {size(made.added)} added to the repository")
    return result


def _check(settings: Settings, postgres: Postgres, local: Repository) -> Facts:
    """What changes nothing and fails early. Raises Failure."""
    query = (
        "SELECT coalesce(sum(pg_table_size(oid)), 0)::bigint, pg_database_size(current_database())"
        " FROM pg_class WHERE relnamespace = 'public'::regnamespace AND relkind = 'r'"
    )
    # Tables that a person has made as the superuser are counted, too.
    postgres.hand_over()
    revision = postgres.revision()
    if revision is None:
        raise Failure(
            Code.NO_DATABASE,
            f'the database "{LIVE}" is empty: there is nothing to back up',
            "make its tables: ansible-playbook site.yml --tags stack; or restore: prefect-restore --latest",
        )
    with postgres.connect() as connection:
        tables, database = connection.execute(query).fetchone() or (0, 0)
    earlier = local.backups()
    dump = space.dump_bytes(tables, database, _last_manifest(settings))
    needs = [(postgres.staging, dump), (Path(local.url), space.added_bytes(dump, earlier))]
    space.require("back up", needs, settings)
    return Facts(Stack(settings).prefect_version(), postgres.version(), revision, database, dump)


def _last_manifest(settings: Settings) -> Manifest | None:
    """As much of the last manifest as an estimate needs, from the state of this host."""
    last = read_last(settings)
    try:
        return Manifest("", "", "", "", "", "", "", {}, last["database_bytes"], last["dump_bytes"], 0.0)
    except KeyError:
        return None


def _make(settings: Settings, kind: str, report: Report, facts: Facts) -> tuple[Backup, Manifest]:
    """Dump, manifest and repository."""
    postgres, local = Postgres.live(settings), Repository.local(settings)
    # A restore of this kit has its own process in the container only under the lock, which we hold.
    directory = postgres.make_staging(STAGING)
    _collect_audit(settings, report)
    files = [path for path in settings.files if Path(path).exists()]
    for path in sorted(set(settings.files) - set(files)):
        report.say(f"      {path} is not there and not in the backup", style="yellow")
    with report.step("dump of the database, and its rows counted", "dump") as advance:
        now = datetime.now(UTC)
        started = time.monotonic()
        tables = dump(settings, postgres, facts.dump_bytes, advance)
        account = Manifest(
            id=now.strftime(ID_FORMAT),
            created=now.isoformat(timespec="seconds"),
            kind=kind,
            kit=settings.kit,
            prefect=facts.prefect,
            postgres=facts.postgres,
            revision=facts.revision,
            tables=tables,
            database_bytes=facts.database_bytes,
            dump_bytes=weigh(directory),
            dump_seconds=round(time.monotonic() - started, 2),
            files=files,
            host=socket.gethostname(),
            encryption_key=block_key.fingerprint(block_key.here(settings)),
        )
        write_whole(Path(manifest.path(settings)), account.to_json())
    with report.step("into the repository", "store") as advance:
        made = local.backup([str(directory), *files], settings.exclude, tags_of(account), advance)
    return made, account


def tags_of(account: Manifest) -> dict[str, str]:
    """What a repository's list tells of a backup."""
    return {name: getattr(account, name) for name in ("id", "kind", "prefect", "postgres", "revision", "kit")}


def _collect_audit(settings: Settings, report: Report) -> None:
    """Have what was done until now in the backup. Without that it is still one."""
    try:
        audit.collect(Path(settings.audit), settings.audit_keep_days, datetime.now(UTC))
    except Failure as failure:
        report.say(f"      the newest lines of the audit are not in the backup: {failure.fact}", style="yellow")


def weigh(directory: Path) -> int:
    """Bytes of the files in a directory that may be changing."""
    total = 0
    for path in directory.rglob("*"):
        with contextlib.suppress(FileNotFoundError):
            total += path.stat().st_size
    return total


def dump(settings: Settings, postgres: Postgres, expected: int, advance: Advance) -> dict[str, Table]:
    """pg_dump of the database LIVE, and the counting of its rows at the same time and in the same snapshot."""
    made = postgres.staging / STAGING / "dump"
    with postgres.connect(autocommit=False) as connection, ThreadPoolExecutor(1) as pool:
        connection.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
        connection.read_only = True
        snapshot = connection.execute("SELECT pg_export_snapshot()").fetchone()[0]
        counting: Future[dict[str, Table]] = pool.submit(manifest.take, connection)

        def watch() -> None:
            done = weigh(made)
            advance(done / max(expected, 1), size(done))
            if counting.done():
                # Rows that cannot be read make the dump worthless: do not wait for its end.
                counting.result()

        try:
            postgres.dump(f"{STAGING}/dump", snapshot, settings.jobs, watch)
            return counting.result()
        except Failure as failure:
            if FULL.search(failure.fact):
                raise Failure(Code.NO_ROOM, failure.fact, space.HINT) from failure
            if not postgres.answers():
                fact = f"Postgres went away during the dump: {failure.fact}"
                raise Failure(Code.NO_DATABASE, fact, failure.hint) from failure
            raise
        except psycopg.Error as error:
            words = " ".join(str(error).split())
            raise Failure(
                Code.DUMP, f'the rows could not be counted: "{words}"', f"docker logs --tail 20 {postgres.container}"
            ) from error
        finally:
            # Again and again: between two of its queries there is nothing to cancel.
            while not counting.done():
                with contextlib.suppress(psycopg.Error):
                    connection.cancel_safe(timeout=5)
                time.sleep(0.1)


# --- what is left when it fails -------------------------------------------------------------------------------------


@contextlib.contextmanager
def undone(settings: Settings, postgres: Postgres, local: Repository) -> Iterator[None]:
    """Leave nothing of the making behind; of one that failed, nothing in the container and the repository either."""
    try:
        yield
    except BaseException:
        _sweep(postgres, local)
        raise
    finally:
        postgres.remove_staging(STAGING)


def _sweep(postgres: Postgres, local: Repository) -> None:
    """End pg_dump, and free what restic has put away for a backup that is none; none of it may hide the failure."""
    with contextlib.suppress(Failure, psycopg.Error):
        postgres.end_orphans()
    postgres.remove_staging(STAGING)
    local.unlock()
    with contextlib.suppress(OSError):
        local.remove_half_written()
    with contextlib.suppress(Failure):
        local.prune(thorough=False)


def clean(settings: Settings, report: Report) -> dict[str, Any]:
    """Remove what a killed backup or verification has left; systemd calls it after each, however that ended."""
    removed: list[str] = []
    try:
        with only_one(Path(settings.state), "a clean-up"):
            postgres = Postgres.live(settings)
            if postgres.is_ours(STAGING):
                _sweep(postgres, Repository.local(settings))
                removed.append("a backup")
            if verify.remove(settings):
                removed.append("a verification")
    except Failure as failure:
        if failure.code is not Code.BUSY:
            raise
        report.say(f"nothing cleaned: {failure.fact}")
    if removed:
        report.say(f"removed what was left of {' and '.join(removed)}")
    return {"removed": removed}
