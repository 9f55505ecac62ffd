"""Prove a backup: bring it back into a throwaway Postgres, and hold it against its manifest.

The live database is not touched, and the throwaway one is kept small enough for a host of 2 GB. The time it takes is
written down: it is the honest figure for how long a restore of everything would take on this host.
"""

from __future__ import annotations

import contextlib
import json
import secrets
import shutil
import subprocess
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import docker
import docker.errors
import psycopg
from cryptography.fernet import Fernet, InvalidToken

from . import block_key, manifest, repositories, space
from .bring_back import bring_back, prove
from .choose import pick
from .errors import Code, Failure
from .files import write_whole
from .lock import only_one
from .manifest import Manifest
from .postgres import OWNER, RESTORING, Postgres
from .progress import Report, duration
from .restic import Backup, Repository
from .settings import Settings
from .stack import SLOW, Stack

CONTAINER = "prefect-verify"
# The data of the repository are read back in so many verifications, a share in each.
SHARES = 7
# Verifications that are remembered, for `prefect-backup list`.
REMEMBERED = 100
# What it writes is thrown away, so nothing need be on disk; but see the sync in `_verify`, which keeps the time honest.
# Memory: shared buffers, and the index builds of two processes (RESTORE_OPTIONS), stay below the limit.
COMMAND = [
    "postgres",
    "-cfsync=off",
    "-cfull_page_writes=off",
    "-cshared_buffers=48MB",
    "-cmax_wal_size=512MB",
    "-cmax_connections=20",
    "-cautovacuum=off",
    "-cjit=off",
]


def read_verified(settings: Settings) -> dict[str, Any]:
    """What verifications have written down; empty when there is nothing."""
    return _read(Path(settings.state))


def _read(state: Path) -> dict[str, Any]:
    try:
        return json.loads((state / "verified.json").read_text())
    except (OSError, ValueError):
        return {}


def verified(state: Path) -> dict[str, str]:
    """For a list: the ids of backups that were verified, and in a word how it went and when."""
    words = {}
    for identity, one in _read(state).get("backups", {}).items():
        when = datetime.fromisoformat(one["at"]).astimezone().strftime("%Y-%m-%d %H:%M")
        words[identity] = f"yes, {when}" if one["ok"] else f"FAILED, {when}"
    return words


def next_share(known: dict[str, Any]) -> int:
    """Which share of the repository's data is read back now: from 1 to SHARES, in turn."""
    return known.get("share", 0) % SHARES + 1


def remembered(known: dict[str, Any], record: dict[str, Any]) -> dict[str, Any]:
    """What is known after a verification: the last one, the last good one, and the result for each backup."""
    backups = {**known.get("backups", {}), record["backup"]: {"at": record["at"], "ok": record["ok"]}}
    newest = dict(sorted(backups.items(), key=lambda item: item[1]["at"])[-REMEMBERED:])
    return {
        "last": record,
        "good": record if record["ok"] else known.get("good"),
        "share": record.get("share") or known.get("share", 0),
        "backups": newest,
    }


def verify(
    settings: Settings,
    report: Report,
    identity: str | None = None,
    repository: str | None = None,
    patience: float = 0.0,
) -> dict[str, Any]:
    """Verify a backup and write down how it went; gives the facts for --json. Raises Failure.

    Args:
        identity: which backup; the newest without.
        repository: where from, as repositories.find() takes it; the local one without.
        patience: seconds to wait while something else is at work.
    """
    sources = repositories.find(settings, repository)
    with only_one(Path(settings.state), "a verification", patience):
        backup = pick(repositories.backups(sources, report), identity, None)
        source = repositories.of(backup, sources)
        record: dict[str, Any] = {
            "backup": backup.id,
            "repository": source.name,
            "at": datetime.now(UTC).isoformat(timespec="seconds"),
            "ok": False,
        }
        try:
            record |= _verify(settings, report, source, backup) | {"ok": True}
        except Failure as failure:
            record |= {"error": failure.fact, "code": failure.code.name}
            raise
        finally:
            known = remembered(read_verified(settings), record)
            write_whole(Path(settings.state) / "verified.json", json.dumps(known, indent=2) + "\n")
    return {**record, "seconds": report.seconds}


def _verify(settings: Settings, report: Report, source: Repository, backup: Backup) -> dict[str, Any]:
    account = Manifest.from_json(source.read(backup, manifest.path(settings)))
    needs = [(Path(settings.verify_directory), account.dump_bytes + int(account.database_bytes * 1.1) + 600_000_000)]
    space.require(f"verify {backup.id}", needs, settings)
    share = next_share(read_verified(settings))
    with throwaway(settings, report) as postgres:
        bring_back(source, backup, account, postgres, settings, report, "a throwaway Postgres")
        started = time.monotonic()
        # A real restore ends on disk, and that belongs to its time.
        subprocess.run(["sync", "--file-system", settings.verify_directory], check=False)
        synced = time.monotonic() - started
        hint = "keep older backups (prefect-restore --list) and make a new one: prefect-backup create"
        prove(backup, account, postgres, report, hint)
        with report.step("encrypted blocks", "blocks"):
            blocks = decrypt_blocks(postgres, beside=block_key.of_backup(source, backup, account, settings))
    report.say(f"      {blocks} blocks decrypt" if blocks else "      no blocks yet")
    with report.step(f"repository: its lists, and share {share} of {SHARES} of its data read back", "check"):
        source.check(f"{share}/{SHARES}")
    restore = report.seconds["fetch"] + report.seconds["load"] + synced
    report.say(f"      a restore of everything takes about {duration(restore)} on this host")
    return {
        "restore_seconds": round(restore, 1),
        "rows": account.rows,
        "tables": len(account.tables),
        "blocks": blocks,
        "revision": account.revision,
        "database_bytes": account.database_bytes,
        "share": share,
    }


def rehearse(
    settings: Settings, report: Report, source: Repository, backup: Backup, account: Manifest, image: str
) -> float:
    """Bring a backup back into a throwaway Postgres of another image, and prove it there; gives the seconds that the data
    took. Raises Failure.
    """
    with throwaway(settings, report, image) as postgres:
        bring_back(source, backup, account, postgres, settings, report, f"a throwaway {image}")
        prove(backup, account, postgres, report, "nothing has changed")
    return report.seconds["fetch"] + report.seconds["load"]


def decrypt_blocks(postgres: Postgres, database: str = RESTORING, beside: str = "") -> int:
    """Decrypt every encrypted block with the backup's key, as Prefect does; gives how many.

    Args:
        beside: the key that is in the backup beside the database; empty where it is in there.
    """
    with postgres.connect(database) as connection:
        blocks = [row[1:] for row in connection.execute(block_key.BLOCKS)]
        row = connection.execute(block_key.ROW).fetchone()
    if not blocks:
        return 0
    key = row[0] if row else beside
    if not key:
        raise Failure(Code.MISMATCH, f"{len(blocks)} blocks came back without the key that decrypts them", "")
    return decrypt(blocks, key)


def decrypt(blocks: list[tuple[str, str]], key: str) -> int:
    """How many blocks, pairs of name and ciphertext, there are. Raises Failure (MISMATCH) if one does not decrypt."""
    fernet = Fernet(key.encode())
    for name, data in blocks:
        try:
            json.loads(fernet.decrypt(data.encode()))
        except (InvalidToken, ValueError) as error:
            raise Failure(
                Code.MISMATCH, f'the block "{name}" does not decrypt with the key in the backup', "does it in the UI?"
            ) from error
    return len(blocks)


# --- the throwaway Postgres -----------------------------------------------------------------------------------------


@contextlib.contextmanager
def throwaway(settings: Settings, report: Report, image: str = "") -> Iterator[Postgres]:
    """A Postgres of the live one's image, or of another, that nobody else reaches; it is gone afterwards, whatever happens."""
    remove(settings)
    directory = Path(settings.verify_directory)
    try:
        with report.step("throwaway Postgres", "start"):
            postgres = _start(settings, directory, image or _image(settings))
        yield postgres
    except docker.errors.DockerException as error:
        raise Failure(
            Code.NO_DATABASE, f"the throwaway Postgres could not be run: {error}", "look at: systemctl status docker"
        ) from error
    except psycopg.Error as error:
        words = " ".join(str(error).split())
        raise Failure(
            Code.MISMATCH, f'the restored database cannot be read: "{words}"', "try another backup"
        ) from error
    finally:
        remove(settings)


def container_options(settings: Settings, image: str) -> dict[str, Any]:
    """How the throwaway Postgres runs: no network, no rights beyond those its entrypoint needs, bounded memory."""
    directory = settings.verify_directory
    # What a restore could not do without a superuser's rights fails here, and not then.
    role = Path(settings.compose_file).with_name("postgres")
    roles = {str(role): {"bind": "/docker-entrypoint-initdb.d", "mode": "ro"}} if role.is_dir() else {}
    return {
        "image": image,
        "command": COMMAND,
        "name": CONTAINER,
        "detach": True,
        "network_mode": "none",
        "read_only": True,
        "security_opt": ["no-new-privileges:true"],
        "cap_drop": ["ALL"],
        # As in compose.yml: the entrypoint starts as root and gives its directories to the user postgres.
        "cap_add": ["CHOWN", "DAC_READ_SEARCH", "FOWNER", "SETGID", "SETUID"],
        "mem_limit": f"{settings.verify_memory_mb}m",
        "memswap_limit": f"{settings.verify_memory_mb}m",
        "shm_size": "128m",
        # Around the data, where the images of Postgres 18 and later would have a volume.
        "tmpfs": {"/tmp": "", "/var/lib/postgresql": ""},  # noqa: S108 - the container's own
        "environment": {
            "POSTGRES_USER": "prefect",
            "POSTGRES_DB": "prefect",
            "POSTGRES_PASSWORD_FILE": "/run/secrets/postgres_password",
            "POSTGRES_INITDB_ARGS": "--data-checksums --encoding=UTF8 --locale=C.UTF-8"
            " --locale-provider=builtin --builtin-locale=C.UTF-8",
            "PGDATA": "/var/lib/postgresql/data",
        },
        "volumes": {
            f"{directory}/data": {"bind": "/var/lib/postgresql/data", "mode": "rw"},
            f"{directory}/socket": {"bind": "/run/postgresql", "mode": "rw"},
            f"{directory}/staging": {"bind": "/staging", "mode": "rw"},
            f"{directory}/password": {"bind": "/run/secrets/postgres_password", "mode": "ro"},
            **roles,
        },
        "log_config": {"Type": "json-file", "Config": {"max-size": "1m"}},
    }


def _image(settings: Settings) -> str:
    """The image that the live Postgres runs, or would run if it did."""
    try:
        return Postgres.live(settings).image()
    except Failure:
        return Stack(settings).environment()["POSTGRES_IMAGE"]


def _start(settings: Settings, directory: Path, image: str) -> Postgres:
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    # Only root gets below `directory`; the container's root gives `data` and `socket` to its postgres.
    for name in ("data", "socket", "staging"):
        (directory / name).mkdir(mode=0o755)
    shutil.chown(directory / "staging", OWNER, OWNER)
    write_whole(directory / "password", secrets.token_hex(32) + "\n", mode=0o400)
    container = docker.from_env().containers.run(**container_options(settings, image))
    end = time.monotonic() + settings.start_seconds
    # Over TCP: while the cluster is being made, a temporary server answers on the socket only.
    while container.exec_run(["pg_isready", "--quiet", "--host=127.0.0.1", "--username=prefect"]).exit_code != 0:
        container.reload()
        late = time.monotonic() > end
        if container.status != "running" or late:
            words = " / ".join(container.logs(tail=4).decode(errors="replace").strip().splitlines())
            within = f" within {settings.start_seconds} s (stack_start_timeout)" if late else ""
            hint = "the live one is not concerned" + (f" ; {SLOW}" if late else "")
            raise Failure(Code.NO_DATABASE, f'the throwaway Postgres does not start{within}: "{words}"', hint)
        time.sleep(0.2)
    return Postgres(str(directory / "socket"), directory / "staging", CONTAINER)


def remove(settings: Settings) -> bool:
    """Remove the throwaway Postgres and all its data; gives whether there was one."""
    there = False
    with contextlib.suppress(docker.errors.DockerException):
        docker.from_env().containers.get(CONTAINER).remove(force=True, v=True)
        there = True
    for name in ("data", "socket", "staging", ".staging-restore", "password"):
        path = Path(settings.verify_directory) / name
        there = there or path.exists()
        shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)
    return there
