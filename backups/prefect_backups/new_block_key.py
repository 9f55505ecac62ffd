"""Another key for the secrets in blocks: all of them are encrypted anew in one transaction, while the server is stopped for seconds.

    1. a backup, by the key of before
    2. the new key is written beside the one in use (KEY.next): from here on the change is finished, and not taken back
    3. the server stops; the live database's blocks are encrypted with the new key in one transaction, and then those of the
       databases that a restore has left (`--undo` would serve them)
    4. the new key takes the place of the one before by a rename, the server starts, KEY.next goes

Whoever dies in between leaves KEY.next, and the same steps from the third on finish it, wherever it was: a block that no longer
decrypts with the key of before is left as it is. `prefect-restore.service` does so at boot and when the unit that this runs in
dies; so does each later change. Backups of before hold the key that they need (block_key.of_backup).
"""

from __future__ import annotations

import contextlib
import json
import os
from pathlib import Path
from typing import Any

import psycopg
from cryptography.fernet import Fernet

from . import backup, block_key
from .errors import Code, Failure
from .files import remove, sync_directory, write_whole
from .host import Host
from .journal import Journal
from .lock import PLAYBOOK, only_one
from .postgres import LIVE, OURS
from .progress import Report, failpoint
from .settings import Settings

#: The journals of upgrades that are under way (prefect_upgrades/record.py).
UPGRADES = ("upgrade.json", "postgres-upgrade.json")
#: What the last upgrade of Postgres has left.
KEPT_CLUSTER = "postgres-upgraded.json"


def change(settings: Settings, report: Report, only_finish: bool = False) -> dict[str, Any]:
    """Encrypt the blocks with a new key, or finish the change that has begun. Raises Failure, before anything is changed if it can.

    Args:
        only_finish: do nothing where none has begun, or where somebody else has finished it meanwhile.
    """
    host = Host.here(settings, report)
    with only_one(host.state, "a change of the key of the blocks", PLAYBOOK):
        made = ""
        if not block_key.next_path(settings).exists():
            if only_finish:
                return {"changed": False, "seconds": report.seconds}
            _refuse(host)
            made = backup.create_unlocked(settings, "safety", report)["id"]
            failpoint("new key")
            _write_next(settings)
        return {"changed": True, "backup": made, **finish(host), "seconds": report.seconds}


def finish(host: Host) -> dict[str, Any]:
    """End a change that has begun, for who holds the lock; gives how many blocks were encrypted anew. Raises Failure."""
    settings, report, after = host.settings, host.report, block_key.next_path(host.settings)
    old, new = block_key.here(settings), after.read_text().strip()
    host.start_postgres()
    with report.step("server stopped", "stop server"):
        host.stack.stop_server()
    try:
        with report.step("blocks encrypted with the new key", "encrypt"):
            count = _encrypt(host, LIVE, old, new)
            failpoint("encrypted")
            for database in sorted(host.postgres.databases() & {*OURS}):
                # One that is broken stays as it is.
                with contextlib.suppress(Failure, psycopg.Error):
                    _encrypt(host, database, old, new)
        _use(settings)
        failpoint("key in place")
    finally:
        # Also where that has failed: then the live database has the key of before, and KEY.next stays for the next time.
        with report.step("server started and ready", "start server"):
            host.stack.start_server()
    remove(after)
    return {"blocks": count, "fingerprint": block_key.fingerprint(new)}


def _refuse(host: Host) -> None:
    """Raise Failure where a change would not be one, or would be in the way of something that has not ended."""
    settings = host.settings
    if not block_key.here(settings):
        raise Failure(
            Code.SETTINGS,
            "Refusing to change the key of the blocks: the server of this host takes it out of its database",
            "have it in a file first: ansible-playbook site.yml --tags stack",
        )
    if Journal.path(host.state).exists():
        raise Failure(
            Code.NOT_READY,
            "Refusing to change the key of the blocks: a restore has not ended",
            "prefect-restore --resume",
        )
    for name in UPGRADES:
        if (host.state / name).exists():
            raise Failure(
                Code.NOT_READY,
                "Refusing to change the key of the blocks: an upgrade has not ended",
                "prefect-upgrade --resume",
            )
    if (host.state / KEPT_CLUSTER).exists() and (aside := _kept(host)):
        raise Failure(
            Code.NOT_READY,
            f"Refusing to change the key of the blocks: the cluster of before an upgrade of Postgres, {aside}, has blocks of the key"
            " in use, and a way back to it would find another",
            "when nobody needs that way any more: prefect-upgrade --drop-previous-postgres",
        )


def _kept(host: Host) -> str:
    """The directory of the cluster that an upgrade of Postgres has set aside; empty where it is gone."""
    try:
        aside = str(json.loads((host.state / KEPT_CLUSTER).read_text())["aside"])
    except (OSError, ValueError, KeyError, TypeError):
        return ""
    return aside if Path(aside).is_dir() else ""


def _write_next(settings: Settings) -> None:
    """A new key beside the one in use, with its owner. It is no change before it has its name."""
    used, after = Path(settings.encryption_key), block_key.next_path(settings)
    draft = after.with_name(f".{after.name}.draft")
    write_whole(draft, Fernet.generate_key().decode() + "\n", 0o400)
    owner = used.stat()
    os.chown(draft, owner.st_uid, owner.st_gid)
    draft.replace(after)
    sync_directory(after.parent)


def _use(settings: Settings) -> None:
    """Have the new key in the place of the one before, by a rename; KEY.next stays until the server serves with it."""
    used, after = Path(settings.encryption_key), block_key.next_path(settings)
    if used.exists() and used.samefile(after):
        return
    link = used.with_name(f".{used.name}.new")
    link.unlink(missing_ok=True)
    os.link(after, link)
    link.replace(used)
    sync_directory(used.parent)


def _encrypt(host: Host, database: str, old: str, new: str) -> int:
    """Have the blocks of a database that decrypt with the old key encrypted with the new one: all of them or none. Raises Failure."""
    try:
        with host.postgres.connect(database, autocommit=False) as connection:
            if connection.execute("SELECT to_regclass('public.block_document')").fetchone()[0] is None:
                return 0
            changed = block_key.anew(connection.execute(block_key.BLOCKS).fetchall(), old, new) if old != new else []
            for identity, data in changed:
                connection.execute(block_key.STORE, [data, identity])
            connection.commit()
            return len(changed)
    except psycopg.Error as error:
        raise Failure(
            Code.NO_DATABASE,
            f'the blocks of the database "{database}" could not be encrypted anew: {" ".join(str(error).split())}',
            f"they are as they were; try it again: {block_key.CHANGE}",
        ) from error
