"""The key that encrypts the secrets in Prefect's blocks: a file of this host, so that a dump alone does not hold it.

Prefect keeps one in the table `configuration`, unless its environment has one (serve.py). So dumps of before have theirs in that
row; those since need the file that is beside them in the backup. Whatever becomes the live database here is encrypted with this
host's key, and has no row: another key's blocks are encrypted anew.
"""

from __future__ import annotations

import contextlib
import hashlib
from pathlib import Path
from typing import Any

import psycopg
from cryptography.fernet import Fernet, InvalidToken

from .errors import Code, Failure
from .manifest import Manifest
from .restic import Backup, Repository
from .settings import Settings

CHANGE = "prefect-backup encryption-key"
ROW = "SELECT value ->> 'fernet_key' FROM configuration WHERE key = 'ENCRYPTION_KEY'"
NO_ROW = "DELETE FROM configuration WHERE key = 'ENCRYPTION_KEY'"
# Prefect stores an encrypted block as a JSON string, and any other as an object.
BLOCKS = "SELECT id, name, data #>> '{}' FROM block_document WHERE jsonb_typeof(data) = 'string'"
STORE = "UPDATE block_document SET data = to_jsonb(%s::text) WHERE id = %s"


def here(settings: Settings) -> str:
    """This host's key; empty where its server still takes the one in the database. Raises Failure (SETTINGS)."""
    path = Path(settings.encryption_key)
    try:
        return path.read_text().strip()
    except FileNotFoundError:
        return ""
    except OSError as error:
        raise Failure(
            Code.SETTINGS, f"{path} cannot be read: {error.strerror}", "run: ansible-playbook site.yml --tags stack"
        ) from error


def next_path(settings: Settings) -> Path:
    """The file of another key, while the blocks are being encrypted with it (new_block_key.py)."""
    return Path(settings.encryption_key + ".next")


def refuse_unfinished(settings: Settings, what: str) -> None:
    """Raise Failure (NOT_READY) while a change of the key has not ended: which one the blocks have is not known."""
    if next_path(settings).exists():
        raise Failure(
            Code.NOT_READY, f"Refusing to {what}: a change of the key of the blocks has not ended", f"end it: {CHANGE}"
        )


def fingerprint(key: str) -> str:
    """Sixteen hexadecimal digits that tell keys apart, and nothing of the key; empty for none."""
    return hashlib.sha256(key.encode()).hexdigest()[:16] if key else ""


def of_backup(source: Repository, backup: Backup, account: Manifest, settings: Settings) -> str:
    """The key of a backup's blocks; empty where it is in the dump itself. Changes nothing.

    Raises:
        Failure: INCOMPATIBLE where neither this host nor the backup has it, or this host has none.
    """
    if not account.encryption_key:
        return ""
    mine = here(settings)
    if not mine:
        raise Failure(
            Code.INCOMPATIBLE,
            f"Refusing to restore {backup.id}: the key of its blocks is not in its database, and the server of this host looks there",
            "have a key in a file, as a newer kit does: ansible-playbook site.yml --tags stack",
        )
    if fingerprint(mine) == account.encryption_key:
        return mine
    try:
        key = source.read(backup, settings.encryption_key).decode().strip()
    except Failure as failure:
        raise _gone(backup, settings) from failure
    if fingerprint(key) != account.encryption_key:
        raise _gone(backup, settings)
    return key


def _gone(backup: Backup, settings: Settings) -> Failure:
    return Failure(
        Code.INCOMPATIBLE,
        f"Refusing to restore {backup.id}: neither this host nor the backup has the key that its blocks are encrypted with",
        f"put that key into {settings.encryption_key} (root knows it on the host that made the backup); or another backup:"
        " prefect-restore --list",
    )


def settle(connection: psycopg.Connection[Any], mine: str, theirs: str = "") -> int:
    """Have a database's blocks encrypted with this host's key, and no key in it; gives how many were encrypted anew.

    A block that does not decrypt with its own key stays as it is: it was lost before. Raises psycopg.Error.

    Args:
        connection: not in autocommit: all of it is one transaction, which is committed.
        mine: this host's key; empty: nothing is changed.
        theirs: the key of the blocks, where it is not in the database.
    """
    if not mine:
        return 0
    row = connection.execute(ROW).fetchone()
    key = (row[0] if row else theirs) or mine
    changed = anew(connection.execute(BLOCKS).fetchall(), key, mine) if key != mine else []
    for identity, data in changed:
        connection.execute(STORE, [data, identity])
    connection.execute(NO_ROW)
    connection.commit()
    return len(changed)


def anew(blocks: list[tuple[Any, str, str]], old: str, new: str) -> list[tuple[Any, str]]:
    """Id and new ciphertext of those blocks, given by id, name and ciphertext, that decrypt with the old key."""
    before, after = Fernet(old.encode()), Fernet(new.encode())
    changed = []
    for identity, _, data in blocks:
        with contextlib.suppress(InvalidToken):
            changed.append((identity, after.encrypt(before.decrypt(data.encode())).decode()))
    return changed
