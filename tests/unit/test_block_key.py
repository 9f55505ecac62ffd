"""The key of the blocks: which a backup needs, and what becomes the live database."""

from __future__ import annotations

import base64
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from cryptography.fernet import Fernet
from prefect_backups import block_key
from prefect_backups.errors import Code, Failure
from prefect_backups.settings import Endpoint, Settings

# Not by chance: they are in the names of the tests.
MINE, THEIRS, LOST = (base64.urlsafe_b64encode(bytes([number]) * 32).decode() for number in range(3))
BACKUP: Any = SimpleNamespace(id="20261127T000000Z")


def encrypted(key: str, text: bytes = b'{"a": 1}') -> str:
    return Fernet(key.encode()).encrypt(text).decode()


class Played:
    """A database with a key in it, or none, and blocks."""

    def __init__(self, row: str, *blocks: str) -> None:
        self.row, self.blocks = row, dict(enumerate(blocks))
        self.committed = False

    def execute(self, text: str, given: Any = None) -> Any:
        if text == block_key.STORE:
            self.blocks[given[1]] = given[0]
        elif text == block_key.NO_ROW:
            self.row = ""
        rows = {
            block_key.ROW: [(self.row,)] if self.row else [],
            block_key.BLOCKS: [(number, f"block {number}", data) for number, data in self.blocks.items()],
        }.get(text, [])
        return SimpleNamespace(fetchone=lambda: rows[0] if rows else None, fetchall=lambda: rows)

    def commit(self) -> None:
        self.committed = True


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    path = tmp_path / "encryption_key"
    path.write_text(f"{MINE}\n")
    return Settings("1", Endpoint("https://x", "backups", "/p", "/c"), encryption_key=str(path))


@pytest.mark.parametrize(
    ("row", "theirs", "key"),
    [(THEIRS, "", THEIRS), ("", THEIRS, THEIRS), ("", MINE, MINE), (MINE, "", MINE), (THEIRS, MINE, THEIRS)],
)
def test_blocks_of_any_key_become_this_hosts(row: str, theirs: str, key: str) -> None:
    database: Any = Played(row, encrypted(key), encrypted(LOST))
    before = dict(database.blocks)
    assert block_key.settle(database, MINE, theirs) == (key != MINE)
    assert Fernet(MINE.encode()).decrypt(database.blocks[0]) == b'{"a": 1}'
    # What nobody could read stays.
    assert database.blocks[1] == before[1]
    assert database.committed and database.row == ""


def test_a_host_without_a_key_of_its_own_leaves_all_as_it_is(settings: Settings) -> None:
    Path(settings.encryption_key).unlink()
    database: Any = Played(THEIRS, encrypted(THEIRS))
    assert block_key.settle(database, block_key.here(settings)) == 0
    assert (database.row, database.committed) == (THEIRS, False)


def of_backup(settings: Settings, needs: str, beside: str | None) -> str:
    def read(backup: Any, path: str) -> bytes:
        assert path == settings.encryption_key
        if beside is None:
            raise Failure(Code.DAMAGED, "no such file")
        return f"{beside}\n".encode()

    source: Any = SimpleNamespace(read=read)
    account: Any = SimpleNamespace(encryption_key=block_key.fingerprint(needs))
    return block_key.of_backup(source, BACKUP, account, settings)


@pytest.mark.parametrize(
    ("needs", "beside", "key"), [("", None, ""), (MINE, None, MINE), (THEIRS, THEIRS, THEIRS), (MINE, THEIRS, MINE)]
)
def test_a_backup_finds_its_key(settings: Settings, needs: str, beside: str | None, key: str) -> None:
    assert of_backup(settings, needs, beside) == key


@pytest.mark.parametrize("beside", [None, LOST])
def test_a_backup_whose_key_is_gone_is_refused(settings: Settings, beside: str | None) -> None:
    with pytest.raises(Failure, match="neither this host nor the backup has the key") as failure:
        of_backup(settings, THEIRS, beside)
    assert failure.value.code is Code.INCOMPATIBLE


def test_a_host_of_a_kit_of_before_cannot_take_a_backup_without_its_key(settings: Settings) -> None:
    Path(settings.encryption_key).unlink()
    with pytest.raises(Failure, match="the server of this host looks there"):
        of_backup(settings, THEIRS, THEIRS)


def test_a_fingerprint_tells_keys_apart() -> None:
    assert len({block_key.fingerprint(key) for key in (MINE, THEIRS, LOST, "")}) == 4
    assert block_key.fingerprint("") == "" and MINE not in block_key.fingerprint(MINE)
