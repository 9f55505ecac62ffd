"""Another key of the blocks: dying anywhere, the next try ends with all blocks readable by the key that the server has."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psycopg
import pytest
from cryptography.fernet import Fernet, InvalidToken
from prefect_backups import backup, block_key, cli_backup, new_block_key, restore_unit, units
from prefect_backups import restore as restores
from prefect_backups.errors import Code, Failure
from prefect_backups.progress import Report
from prefect_backups.settings import Endpoint, Settings

from .test_block_key import LOST, MINE, Played, encrypted

POINTS = ["new key", "encrypted", "key in place"]


class Died(BaseException):
    """As a kill: what is not done in a `finally` is not done."""


class Database(Played):
    """With a table of blocks, or none; what is not committed is lost."""

    def __init__(self, *blocks: str, table: bool = True) -> None:
        super().__init__("", *blocks)
        self.table, self.draft = table, dict(self.blocks)
        self.broken = False

    def execute(self, text: str, given: Any = None) -> Any:
        if "to_regclass" in text:
            return SimpleNamespace(fetchone=lambda: ["block_document" if self.table else None])
        if self.broken:
            raise psycopg.OperationalError("no space left on device")
        return super().execute(text, given)

    def commit(self) -> None:
        self.draft = dict(self.blocks)

    def roll_back(self) -> None:
        self.blocks = dict(self.draft)


class World:
    """A host: its databases, its key, whether its server runs, and what was done in which order."""

    def __init__(self, directory: Path) -> None:
        self.settings = Settings(
            "1",
            Endpoint("https://x", "backups", "/p", "/c"),
            encryption_key=str(directory / "encryption_key"),
            state=str(directory / "state"),
        )
        self.state = Path(self.settings.state)
        self.state.mkdir()
        self.key = Path(self.settings.encryption_key)
        self.key.write_text(f"{MINE}\n")
        self.key.chmod(0o400)
        self.live, self.previous = Database(encrypted(MINE), encrypted(LOST)), Database(encrypted(MINE))
        self.named = {"prefect": self.live, "prefect_previous": self.previous, "postgres": Database(table=False)}
        self.done: list[str] = []
        self.report = Report(open(os.devnull, "w"))  # noqa: SIM115
        self.stack = SimpleNamespace(
            stop_server=lambda: self.done.append("stop"), start_server=lambda: self.done.append("start")
        )
        self.postgres = SimpleNamespace(databases=lambda: set(self.named), connect=self.connect)

    def start_postgres(self) -> None:
        pass

    @contextmanager
    def connect(self, database: str, autocommit: bool = True) -> Iterator[Database]:
        assert not autocommit
        try:
            yield self.named[database]
        finally:
            self.named[database].roll_back()

    @property
    def left(self) -> list[str]:
        """What lies beside the key."""
        return sorted(path.name for path in self.key.parent.iterdir() if path.name not in ("encryption_key", "state"))

    def readable(self, database: Database) -> list[bool]:
        """Which of its blocks the key that the server has decrypts."""
        key = Fernet(self.key.read_text().strip().encode())

        def one(data: str) -> bool:
            try:
                return key.decrypt(data.encode()) == b'{"a": 1}'
            except InvalidToken:
                return False

        return [one(data) for data in database.blocks.values()]


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    made = World(tmp_path)
    monkeypatch.setattr(new_block_key.Host, "here", lambda settings, report: made)

    def back_up(settings: Settings, kind: str, report: Report) -> dict[str, Any]:
        block_key.refuse_unfinished(settings, "back up")
        made.done.append(f"{kind} backup by {block_key.fingerprint(block_key.here(settings))}")
        return {"id": "20261127T000000Z"}

    monkeypatch.setattr(backup, "create_unlocked", back_up)
    return made


def change(world: World) -> dict[str, Any]:
    return new_block_key.change(world.settings, world.report)


def test_all_blocks_have_the_new_key(world: World) -> None:
    facts = change(world)
    assert world.done == [f"safety backup by {block_key.fingerprint(MINE)}", "stop", "start"]
    assert block_key.here(world.settings) != MINE
    # What nobody could read before nobody can read now; what an undo would serve can be.
    assert world.readable(world.live) == [True, False]
    assert world.readable(world.previous) == [True]
    assert world.key.stat().st_mode & 0o777 == 0o400
    assert world.left == []
    assert facts["blocks"] == 1 and facts["backup"] == "20261127T000000Z"
    assert facts["fingerprint"] == block_key.fingerprint(block_key.here(world.settings))
    assert block_key.here(world.settings) not in str(facts)


@pytest.mark.parametrize("point", POINTS)
@pytest.mark.parametrize("again", ["change", "resume"])
def test_who_dies_leaves_what_the_next_one_ends(
    world: World, monkeypatch: pytest.MonkeyPatch, point: str, again: str
) -> None:
    def die(name: str) -> None:
        if name == point:
            raise Died

    monkeypatch.setattr(new_block_key, "failpoint", die)
    with pytest.raises(Died):
        change(world)
    monkeypatch.setattr(new_block_key, "failpoint", lambda _: None)
    begun = block_key.next_path(world.settings).exists()
    assert begun is (point != "new key")
    if begun:
        with pytest.raises(Failure, match=r"Refusing to back up: a change of the key of the blocks has not ended"):
            backup.create_unlocked(world.settings, "manual", world.report)
        wanted = block_key.next_path(world.settings).read_text().strip()
    # The server was started by the key of before meanwhile, and somebody has saved a block.
    if point == "encrypted":
        world.live.blocks[7] = world.live.draft[7] = encrypted(MINE)
    if again == "resume":
        monkeypatch.setattr(restores.resume, "resume", lambda _: None)
        done = restores.Restore(world, planner=object()).resume()  # type: ignore[arg-type]
        assert (done or {}).get("resumed") == ("finished" if begun else None)
    else:
        change(world)
    if begun:
        assert block_key.here(world.settings) == wanted
        assert world.readable(world.live) == [True, False, True][: len(world.live.blocks)]
        assert world.readable(world.previous) == [True]
        # One backup, by the key that its blocks had.
        assert sum("backup" in one for one in world.done) == 1
    assert world.left == []


def test_what_has_been_finished_meanwhile_is_not_begun_once_more(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run of site.yml that has seen it unfinished, while systemd was at it."""
    assert new_block_key.change(world.settings, world.report, only_finish=True)["changed"] is False
    assert world.done == [] and block_key.here(world.settings) == MINE
    block_key.next_path(world.settings).write_text(f"{LOST}\n")
    assert new_block_key.change(world.settings, world.report, only_finish=True)["changed"] is True
    assert block_key.here(world.settings) == LOST and world.left == []


@pytest.mark.parametrize("words", [["--json"], ["--json", "--finish"]])
def test_a_person_s_terminal_may_go(world: World, monkeypatch: pytest.MonkeyPatch, words: list[str]) -> None:
    """The work is done in a unit, whose death has systemd finish it; only the unit itself changes anything."""
    begun: list[Any] = []
    monkeypatch.setattr(cli_backup.os, "geteuid", lambda: 0)
    monkeypatch.setattr(cli_backup.settings, "load", lambda: world.settings)
    monkeypatch.setattr(restore_unit, "in_unit", lambda *given: begun.append(given) or 7)
    asked = cli_backup.parser().parse_args(["encryption-key", *words])
    assert cli_backup.run(asked, world.report) == 7 and world.done == []
    ((given, _, unit, _),) = begun
    assert given == ["encryption-key", *words] and re.fullmatch(r"prefect-encryption-key-\d+\.service", unit)
    monkeypatch.setattr(cli_backup.subprocess, "run", lambda command, **_: begun.append(command))
    done = cli_backup.run(cli_backup.parser().parse_args(["--in-unit", *given]), world.report)
    assert isinstance(done, dict) and done["changed"] is ("--finish" not in words)
    # One that was killed before is no failed unit any more.
    assert begun[-1] == ["systemctl", "reset-failed", "prefect-encryption-key-*.service", "prefect-restore.service"]


def test_a_database_that_refuses_leaves_the_server_with_the_key_of_before(world: World) -> None:
    world.live.broken = True
    with pytest.raises(Failure, match='blocks of the database "prefect" could not be encrypted anew') as failure:
        change(world)
    assert failure.value.hint == "they are as they were; try it again: prefect-backup encryption-key"
    assert world.done[-2:] == ["stop", "start"]
    assert block_key.here(world.settings) == MINE and world.readable(world.live) == [True, False]
    world.live.broken = False
    change(world)
    assert world.readable(world.live) == [True, False] and world.left == []


def test_a_broken_database_of_before_is_no_obstacle(world: World) -> None:
    world.previous.broken = True
    change(world)
    assert world.readable(world.live) == [True, False] and world.left == []


@pytest.mark.parametrize(
    ("make", "fact"),
    [
        ("restore.json", "a restore has not ended"),
        ("upgrade.json", "an upgrade has not ended"),
        ("postgres-upgrade.json", "an upgrade has not ended"),
        ("postgres-upgraded.json", "has blocks of the key in use"),
        ("", "the server of this host takes it out of its database"),
    ],
)
def test_it_is_refused_before_anything_is_changed(world: World, make: str, fact: str) -> None:
    if make:
        (world.state / make).write_text(f'{{"aside": "{world.state}"}}')
    else:
        world.key.unlink()
    with pytest.raises(Failure, match=f"Refusing to change the key of the blocks: .*{fact}") as failure:
        change(world)
    assert failure.value.code in (Code.NOT_READY, Code.SETTINGS)
    assert (world.done, world.left) == ([], [])


def test_a_cluster_of_before_that_is_gone_is_no_obstacle(world: World) -> None:
    (world.state / "postgres-upgraded.json").write_text('{"aside": "/nowhere/at/all"}')
    change(world)
    assert world.left == []


def test_people_are_told_of_one_that_has_not_ended(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(units, "_said", lambda *_: "")
    monkeypatch.setattr(
        units, "Stack", lambda _: SimpleNamespace(down_workers=list, passing_workers=list, enabled_workers=list)
    )
    assert units.look(world.settings).unfinished == ""
    block_key.next_path(world.settings).touch()
    assert units.look(world.settings).unfinished == "a change of the key of the blocks"


def test_systemd_ends_it_at_boot() -> None:
    unit = (Path(__file__).resolve().parents[2] / "systemd/prefect-restore.service").read_text()
    file = block_key.next_path(Settings("1", Endpoint("https://x", "backups", "/p", "/c")))
    assert f"ConditionPathExists=|{file}\n" in unit
