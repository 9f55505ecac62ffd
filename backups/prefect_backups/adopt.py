"""A dump of another Prefect server's Postgres becomes a backup of ours, with its history; `prefect-restore --id` brings it in.

The dump is restored into a throwaway Postgres, which reaches nothing and nobody; of it only what Prefect's schema is made of
(tables, indexes and the like: no function, trigger or right of somebody else's). There it is looked at: a migration that this
host's Prefect knows, blocks that decrypt, rows counted. What goes into the repository is a dump of that, made as every backup
of ours is, so that a restore treats it like any other: its manifest, its migrations, its undo.
"""

from __future__ import annotations

import re
import shutil
import socket
import time
from collections.abc import Iterable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import docker
import docker.errors
from cryptography.fernet import Fernet
from psycopg.types.json import Json

from . import backup, manifest, schema, space, verify
from .errors import Code, Failure
from .files import write_whole
from .lock import only_one
from .manifest import Manifest
from .postgres import INSIDE, LIVE, OWNER, RESTORE_OPTIONS, Postgres
from .progress import Report, size
from .restic import ADOPTED, ID_FORMAT, Backup, Repository
from .settings import Settings
from .stack import Stack
from .upkeep import copy_offsite, tidy

#: What is restored of a dump: all that the migrations of Prefect make, and rows.
TYPES = (
    "TABLE",
    "TABLE DATA",
    "TYPE",
    "SEQUENCE",
    "SEQUENCE OWNED BY",
    "SEQUENCE SET",
    "DEFAULT",
    "CONSTRAINT",
    "FK CONSTRAINT",
    "INDEX",
)
EXTENSION = "pg_trgm"
#: A line of `pg_restore --list`: NUMBER; OID OID TYPE SCHEMA NAME OWNER.
LINE = re.compile(rf"\d+; \d+ \d+ (?P<type>{'|'.join(sorted(TYPES, key=len, reverse=True))}) public (?P<name>\S+)")
TRGM = re.compile(rf"\d+; \d+ \d+ EXTENSION - {EXTENSION}\b")
VERSION = re.compile(r"^;\s+Dumped from database version: (\d+)", re.MULTILINE)
#: Files of a dump in directory format.
FILES = re.compile(r"toc\.dat|\d+\.dat(\.(gz|lz4|zst))?")
#: What a dump, which is mostly compressed, becomes as a database; for the question whether there is room.
GROWS = 8
#: Migrations that an image knows, each with the one before it.
KNOWN = """
import importlib.util, pathlib, re
root = pathlib.Path(importlib.util.find_spec("prefect").submodule_search_locations[0])
for path in (root / "server/database/_migrations/versions/postgresql").glob("*.py"):
    text = path.read_text()
    one = re.search(r'^revision *= *["\\'](\\w+)', text, re.M)
    before = re.search(r'^down_revision *= *["\\'](\\w+)', text, re.M)
    if one:
        print(one[1], before[1] if before else "-")
"""
TABLE_BYTES = (
    "SELECT coalesce(sum(pg_table_size(oid)), 0)::bigint FROM pg_class"
    " WHERE relnamespace = 'public'::regnamespace AND relkind = 'r'"
)
#: Whose the database is that the dump goes into, so that all in it is.
OWNED_BY = "SELECT pg_get_userbyid(datdba) FROM pg_database WHERE datname = current_database()"
HOW = "pg_dump --format=custom, as in docs/migrate.md"


@dataclass(frozen=True)
class Content:
    """What `pg_restore --list` says of a dump."""

    # Major version of the Postgres that it is of; None where it does not say.
    postgres: int | None
    # Lines to restore, and tables with rows among them.
    lines: list[str]
    tables: set[str]
    # How many other objects it has.
    left: int


def adopt(
    settings: Settings, dump: Path, report: Report, key_file: Path | None = None, patience: float = 0.0
) -> dict[str, Any]:
    """Make a backup of a dump, and copy it off-site; gives the facts for --json. Raises Failure.

    Args:
        dump: a file of pg_dump's custom format, or a directory of its directory format.
        key_file: holds the source's PREFECT_SERVER_ENCRYPTION_KEY, where it had one.
        patience: seconds to wait while something else is at work.
    """
    key = read_key(key_file) if key_file else ""
    weight = weigh(dump)
    with only_one(Path(settings.state), "an adoption", patience):
        local = Repository.local(settings)
        with report.step("checks that change nothing", "checks"):
            local.open()
            known = migrations(Stack(settings).environment()["PREFECT_IMAGE"])
            space.require(f'adopt "{dump}"', [(Path(settings.verify_directory), weight * (GROWS + 1))], settings)
        live = Postgres.live(settings)
        with backup.undone(settings, live, local), verify.throwaway(settings, report) as postgres:
            account = _load(settings, report, postgres, dump, known, key)
            made, account = _store(settings, report, postgres, live, local, account)
        report.say(f"      {made.id}: {size(made.size)} in it, {size(made.added)} added to the repository")
        tidy(settings, local, report)
    copy_offsite(settings, report)
    report.say(f"to bring it in, with the source stopped: prefect-restore --id {made.id}")
    return {
        "id": made.id,
        "kind": ADOPTED,
        "rows": account.rows,
        "flow_runs": account.tables["flow_run"].rows,
        "prefect": account.prefect,
        "revision": account.revision,
        "restore": f"prefect-restore --id {made.id}",
        "seconds": report.seconds,
    }


# --- the dump --------------------------------------------------------------------------------------------------------


def weigh(dump: Path) -> int:
    """Bytes of a dump. Raises Failure (INCOMPATIBLE) for what is none that pg_restore reads by several processes."""
    try:
        if dump.is_dir():
            if not (dump / "toc.dat").is_file():
                raise _refused(dump, "a directory without toc.dat, so no dump in pg_dump's directory format")
            return sum(path.stat().st_size for path in _files(dump))
        with dump.open("rb") as file:
            head = file.read(512)
        if head.startswith(b"PGDMP"):
            return dump.stat().st_size
    except OSError as error:
        raise Failure(Code.NOT_FOUND, f'"{dump}" cannot be read: {error.strerror}', HOW) from error
    if head.startswith(b"toc.dat\0"):
        raise _refused(dump, "a dump in pg_dump's tar format")
    if head.startswith(b"\x1f\x8b"):
        raise _refused(dump, "compressed by gzip")
    if head.startswith(b"SQLite format 3"):
        raise Failure(
            Code.INCOMPATIBLE,
            f'Refusing to adopt "{dump}": it is a database of SQLite, and there is no way from it to Postgres',
            "definitions come over by: ./scripts/migrate (docs/migrate.md)",
        )
    if b"PostgreSQL database dump" in head:
        raise _refused(dump, "a dump as plain SQL, which is a program rather than data")
    raise _refused(dump, "no dump of pg_dump")


def _refused(dump: Path, what: str) -> Failure:
    return Failure(Code.INCOMPATIBLE, f'Refusing to adopt "{dump}": it is {what}', f"dump again: {HOW}")


def _files(dump: Path) -> Iterable[Path]:
    """The files of a dump in directory format; whatever else lies there is not taken along."""
    return [path for path in sorted(dump.iterdir()) if FILES.fullmatch(path.name) and path.is_file()]


def read_key(path: Path) -> str:
    """A key for blocks out of a file. Raises Failure (SETTINGS) for what is none; it is never quoted."""
    try:
        key = path.read_text().strip()
        Fernet(key.encode())
    except OSError as error:
        raise Failure(
            Code.SETTINGS, f'the key file "{path}" cannot be read: {error.strerror}', f"look at: ls -l {path}"
        ) from error
    except ValueError as error:
        raise Failure(
            Code.SETTINGS,
            f'"{path}" holds no key: it has to be 32 bytes in URL-safe base64',
            "PREFECT_SERVER_ENCRYPTION_KEY of the source's server, and nothing else",
        ) from error
    return key


def content(listed: str) -> Content:
    """What a dump holds, by `pg_restore --list`."""
    lines, tables, left = [], set(), 0
    for line in listed.splitlines():
        if not line or line.startswith(";"):
            continue
        found = LINE.match(line)
        if found or TRGM.match(line):
            lines.append(line)
        elif " EXTENSION - " not in line and " COMMENT " not in line and " SCHEMA - " not in line:
            left += 1
        if found and found["type"] == "TABLE DATA":
            tables.add(found["name"])
    version = VERSION.search(listed)
    return Content(int(version[1]) if version else None, lines, tables, left)


def check_content(dump: Path, found: Content, major: int) -> None:
    """Raises Failure (INCOMPATIBLE) for a dump of no Prefect, or of a newer Postgres than this host's."""
    # These are in every schema of Prefect's that this host could migrate; others came later.
    needed = {"alembic_version", "flow", "flow_run", "deployment", "block_document", "configuration"}
    if lacks := sorted(needed - found.tables):
        raise Failure(
            Code.INCOMPATIBLE,
            f'Refusing to adopt "{dump}": it has no rows of the table {", ".join(lacks)},'
            " so it is no whole dump of a Prefect server's database",
            f"dump the database of Prefect (by default prefect) whole: {HOW}",
        )
    if found.postgres is not None and found.postgres > major:
        raise Failure(
            Code.INCOMPATIBLE,
            f'Refusing to adopt "{dump}": it is of Postgres {found.postgres}, and this host runs {major}',
            f"upgrade first: ansible-playbook upgrade.yml --tags postgres -e prefect_postgres_image=postgres:{found.postgres}…",
        )


# --- what its migrations say -----------------------------------------------------------------------------------------


def migrations(image: str) -> dict[str, str]:
    """The migrations that an image of Prefect knows, each with the one before it ("-": none). Raises Failure."""
    try:
        said = docker.from_env().containers.run(
            image, ["-c", KNOWN], entrypoint=["python"], network_mode="none", remove=True
        )
    except docker.errors.DockerException as error:
        raise Failure(
            Code.INCOMPATIBLE, f'the image "{image}" does not say its migrations: {error}', "docker image ls"
        ) from error
    return dict(line.split() for line in said.decode().splitlines() if len(line.split()) == 2)


def version_of(revision: str, known: dict[str, str], here: str) -> str:
    """Which Prefect a database is of: "3.9.1", or "<3.9.1" for any before it. Raises Failure (INCOMPATIBLE) for a newer one.

    Args:
        revision: the migration that the database is at.
        known: those of this host's Prefect.
        here: its version.
    """
    if revision not in known:
        raise Failure(
            Code.INCOMPATIBLE,
            f'the dump is at the migration "{revision}", which Prefect {here} of this host does not know:'
            " it is of a newer Prefect",
            "upgrade first: ansible-playbook upgrade.yml -e prefect_version=…",
        )
    return f"<{here}" if revision in known.values() else here


# --- the way into the repository -------------------------------------------------------------------------------------


def _load(
    settings: Settings, report: Report, postgres: Postgres, dump: Path, known: dict[str, str], key: str
) -> Manifest:
    """The dump in the throwaway Postgres, looked at; gives the manifest that its backup is to have, but for the dump's size."""
    directory = postgres.make_staging("adopt")
    with report.step("dump copied", "copy"):
        _copy(dump, directory / "dump")
        found = content(_listed(postgres, directory))
        check_content(dump, found, Stack(settings).postgres_major())
        (directory / "wanted").write_text("\n".join(found.lines) + "\n")
        shutil.chown(directory / "wanted", OWNER, OWNER)
    if found.left:
        report.say(f"      {found.left} objects that are not of Prefect's schema are left out", style="yellow")
    _restore(settings, report, postgres)
    here = Stack(settings).prefect_version()
    revision = postgres.revision()
    if revision is None:
        raise _refused(dump, "without a migration in its table alembic_version")
    version = version_of(revision, known, here)
    if version == here and (lost := schema.lacks(postgres.tables())):
        raise _refused(dump, f"without the table {', '.join(lost)}")
    with report.step("encrypted blocks", "blocks"):
        blocks = _blocks(postgres, key)
    report.say(f"      of Prefect {version}; {blocks} blocks decrypt")
    now = datetime.now(UTC)
    return Manifest(
        id=now.strftime(ID_FORMAT),
        created=now.isoformat(timespec="seconds"),
        kind=ADOPTED,
        kit=settings.kit,
        prefect=version,
        postgres=postgres.version(),
        revision=revision,
        tables={},
        database_bytes=postgres.size(),
        dump_bytes=0,
        dump_seconds=0.0,
        host=socket.gethostname(),
    )


def _listed(postgres: Postgres, directory: Path) -> str:
    """What `pg_restore --list` says. Raises Failure (INCOMPATIBLE) for a dump that this host's cannot read."""
    try:
        postgres.run(["pg_restore", "--list", f"--file={INSIDE}/adopt/list", f"{INSIDE}/adopt/dump"], Code.INCOMPATIBLE)
    except Failure as failure:
        hint = f"dump again, with the pg_dump of Postgres {postgres.version()} or an older one: {HOW}"
        raise Failure(failure.code, f"the dump cannot be read: {failure.fact}", hint) from failure
    return (directory / "list").read_text(errors="replace")


def _restore(settings: Settings, report: Report, postgres: Postgres) -> None:
    """What is wanted of the dump into the throwaway's own database. Raises Failure (RESTORE)."""
    with postgres.connect() as connection:
        owner = connection.execute(OWNED_BY).fetchone()[0]
    command = ["pg_restore", f"--dbname={LIVE}", f"--jobs={settings.jobs}", f"--role={owner}", "--exit-on-error"]
    command += ["--no-owner", "--no-privileges", "--no-comments", f"--use-list={INSIDE}/adopt/wanted"]
    with report.step("restore into a throwaway Postgres", "load") as advance:
        postgres.run(
            [*command, f"{INSIDE}/adopt/dump"],
            Code.RESTORE,
            options=RESTORE_OPTIONS,
            watch=lambda: advance(None, size(postgres.size())),
        )
    postgres.remove_staging("adopt")


def _copy(dump: Path, target: Path) -> None:
    """To where the throwaway Postgres can read it."""
    if dump.is_dir():
        target.mkdir(mode=0o700)
        for path in _files(dump):
            shutil.copyfile(path, target / path.name)
    else:
        shutil.copyfile(dump, target)
    for path in (target, *target.glob("*")):
        path.chmod(0o700 if path.is_dir() else 0o600)
        shutil.chown(path, OWNER, OWNER)


def _blocks(postgres: Postgres, key: str) -> int:
    """Blocks that decrypt, after the key was put where our servers look for it. Raises Failure (MISMATCH)."""
    if key:
        with postgres.connect() as connection:
            connection.execute("DELETE FROM configuration WHERE key = 'ENCRYPTION_KEY'")
            connection.execute(
                "INSERT INTO configuration (key, value) VALUES ('ENCRYPTION_KEY', %s)", [Json({"fernet_key": key})]
            )
    try:
        return verify.decrypt_blocks(postgres, LIVE)
    except Failure as failure:
        raise Failure(
            failure.code,
            f"{failure.fact}: the source's server may have had a key of its own (PREFECT_SERVER_ENCRYPTION_KEY)",
            "put that into a file that only root reads: prefect-backup adopt --key-file FILE DUMP"
            if not key
            else "is it the key of that server?",
        ) from failure


def _store(
    settings: Settings, report: Report, postgres: Postgres, live: Postgres, local: Repository, account: Manifest
) -> tuple[Backup, Manifest]:
    """A dump of the throwaway database, made as all of ours are, into the repository."""
    with postgres.connect() as connection:
        tables = connection.execute(TABLE_BYTES).fetchone()[0]
    expected = space.dump_bytes(tables, account.database_bytes, None)
    needs = [(Path(settings.verify_directory), expected), (live.staging, expected)]
    needs.append((Path(local.url), space.added_bytes(expected, [])))
    space.require("adopt the dump", needs, settings)
    started = time.monotonic()
    made = postgres.make_staging(backup.STAGING)
    with report.step("dump of the database, and its rows counted", "dump") as advance:
        counted = backup.dump(settings, postgres, expected, advance)
    directory = live.make_staging(backup.STAGING)
    shutil.move(made / "dump", directory / "dump")
    seconds = round(time.monotonic() - started, 2)
    account = replace(account, tables=counted, dump_bytes=backup.weigh(directory), dump_seconds=seconds)
    write_whole(Path(manifest.path(settings)), account.to_json())
    with report.step("into the repository", "store") as advance:
        return local.backup([str(directory)], settings.exclude, backup.tags_of(account), advance), account
