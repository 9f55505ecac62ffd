"""prefect-upgrade: its decisions, its records, and what it does when a step fails or it was cut off."""

from __future__ import annotations

import contextlib
import json
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from prefect_backups.errors import Code, Failure
from prefect_backups.progress import Report
from prefect_upgrades import decide, migrations, rehearse, replace, side, upgrade
from prefect_upgrades.decide import Action, Way
from prefect_upgrades.record import PHASES, Journal, Rehearsal, Upgraded
from prefect_upgrades.upgrade import Upgrade

OLD, NEW = "prefecthq/prefect:3.8.8-python3.13", "prefecthq/prefect:3.9.1-python3.13"
BEFORE, AFTER = "d4a7e1c93f52", "91e2b8f3d6a4"


# --- decisions -----------------------------------------------------------------------------------------------------


def test_what_becomes_of_an_upgrade_that_was_cut_off() -> None:
    assert {phase: decide.unfinished(phase) for phase in PHASES} == {
        "migrating": Action.TAKE_BACK,
        "replacing": Action.FINISH,
        "proving": Action.FINISH,
    }


def test_the_way_back_that_loses_least() -> None:
    assert decide.way_back(True) is Way.IMAGE
    assert decide.way_back(False) is Way.DOWNGRADE


@pytest.mark.parametrize(("available", "used", "fits"), [(700, 400, True), (600, 400, False), (500, 400, False)])
def test_a_second_server_needs_memory(available: int, used: int, fits: bool) -> None:
    assert decide.room_for_a_second_server(available * 2**20, used * 2**20) is fits


@pytest.mark.parametrize(
    ("counts", "phase", "expected"),
    [
        ((0, 0, 0, 0, 0, 0), "initializing", (None, "ix of log: initializing")),
        ((50, 200, 0, 0, 0, 0), "building index: scanning table", (0.25, "ix of log: building index: scanning table")),
        ((200, 200, 3, 4, 0, 0), "building index: loading", (0.75, "ix of log: building index: loading")),
        (
            (None, None, None, None, 1, 3),
            "waiting for writers before build",
            (None, "ix of log: waiting for writers before build (1 of 3 transactions have ended)"),
        ),
    ],
)
def test_how_far_the_build_of_an_index_is(counts: Any, phase: str, expected: Any) -> None:
    assert migrations.progress(("log", "ix", phase, *counts)) == expected


def test_migrations_wait_for_those_of_somebody_who_was_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[str] = []
    others = [True, True, False]
    monkeypatch.setattr(migrations, "_others", lambda *_: done.append("look") or others.pop(0))
    monkeypatch.setattr(migrations.time, "sleep", lambda _: None)
    stack = SimpleNamespace(migrate=lambda *given: done.append(given[0]))
    migrations.migrate(SimpleNamespace(report=Report.silent(), stack=stack), "prefect", NEW, "migrations")  # type: ignore[arg-type]
    assert done == ["look", "look", "look", "prefect"]


# --- records -------------------------------------------------------------------------------------------------------


def test_a_journal_is_read_as_it_was_written_and_a_wrong_one_is_refused(tmp_path: Path) -> None:
    assert Journal.load(tmp_path) is None
    journal = Journal(OLD, NEW, "migrating", "b", BEFORE, old_serves=True)
    journal.enter(tmp_path, "replacing")
    assert Journal.load(tmp_path) == journal
    path = Journal.path(tmp_path)
    assert path.stat().st_mode & 0o777 == 0o600
    path.write_text(json.dumps({**json.loads(path.read_text()), "phase": "later"}))
    with pytest.raises(Failure, match='phase is "later", but must be one of migrating, replacing, proving') as refused:
        Journal.load(tmp_path)
    assert refused.value.hint == f"look at it, then remove it: rm {path}"
    path.write_text("{")
    with pytest.raises(Failure, match=r"upgrade\.json cannot be read"):
        Journal.load(tmp_path)
    journal.forget(tmp_path)
    assert Journal.load(tmp_path) is None


def test_the_image_is_named_where_it_stands_and_the_schema_with_it(tmp_path: Path) -> None:
    env = tmp_path / "stack.env"
    host: Any = SimpleNamespace(
        settings=SimpleNamespace(compose_environment=str(env)),
        stack=SimpleNamespace(environment=lambda: {"PREFECT_STATE": str(tmp_path)}),
    )
    env.write_text(f"# By the playbook\nPREFECT_IMAGE={OLD}\nCADDY_IMAGE=caddy\n")
    env.chmod(0o644)
    replace.set_image(host, NEW)
    assert env.read_text() == f"# By the playbook\nPREFECT_IMAGE={NEW}\nCADDY_IMAGE=caddy\n"
    assert env.stat().st_mode & 0o777 == 0o644
    assert (tmp_path / "migrated").read_text() == f"{NEW}\n"
    env.write_text("CADDY_IMAGE=caddy\n")
    with pytest.raises(Failure, match="names no PREFECT_IMAGE"):
        replace.set_image(host, NEW)


def test_deployments_that_are_read_otherwise_are_named():
    same = {"name": "hello/hello", "schedules": "0a", "tags": "0b"}
    other = {"name": "etl/nightly", "schedules": "0a", "tags": "0b"}
    before = {"1": same, "2": other, "3": {"name": "gone/gone"}}
    # A field that only the new one knows is no difference; one that it knows no longer is.
    after = {"1": same | {"new": "0c"}, "2": {"name": "etl/nightly", "schedules": "ff"}, "4": {"name": "new/new"}}
    assert decide.read_otherwise(before, after) == ["etl/nightly: schedules, tags", "gone/gone: not there"]
    assert decide.read_otherwise(before, before) == []


# --- the order of things, over a host that is played ------------------------------------------------------------------


class Played:
    """A host: which image its server runs, at which revision its database is, and what was done, in order."""

    def __init__(self, state: Path, old_serves: bool = True) -> None:
        self.state = state
        self.image, self.revision_now, self.serving = OLD, BEFORE, True
        self.done: list[str] = []
        # Names of what fails, once each.
        self.fails: list[str] = []
        self.settings: Any = SimpleNamespace(endpoint=None)
        self.report = Report.silent()
        self.stack = self
        self.postgres = self
        Rehearsal(OLD, NEW, time.time(), "b0", BEFORE, AFTER, old_serves, "" if old_serves else "500").save(state)

    def step(self, name: str) -> None:
        self.done.append(name)
        if name in self.fails:
            self.fails.remove(name)
            raise Failure(Code.NOT_READY, f"{name} failed")

    def environment(self) -> dict[str, str]:
        return {"PREFECT_IMAGE": self.image}

    def serves(self) -> bool:
        return self.serving

    def start_postgres(self) -> None:
        """It runs."""

    def stop_server(self) -> None:
        self.step("stop")
        self.serving = False

    def start_server(self) -> None:
        self.step("start")
        self.serving = True

    def migrate(self, database: str, image: str, command: Any = (), seconds: float = 0) -> None:
        self.step("downgrade" if command else "migrate")
        # Only the newer image knows both.
        assert image == NEW
        self.revision_now = command[-1] if command else AFTER

    def revision(self) -> str:
        return self.revision_now

    def connect(self) -> Any:
        return contextlib.nullcontext(SimpleNamespace(execute=lambda query: []))


@pytest.fixture
def played(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """`played(old_serves)` makes a host and what upgrades it."""

    def make(old_serves: bool = True) -> tuple[Played, Upgrade]:
        host = Played(tmp_path, old_serves)

        def replaced(_: Any, image: str) -> None:
            host.step(f"replace by {image.split(':')[1].split('-')[0]}")
            host.image, host.serving = image, True

        def smoke(*_: Any) -> dict[str, str]:
            host.step("smoke")
            return {"smoke": "well"}

        monkeypatch.setattr(migrations, "_others", lambda *_: False)
        monkeypatch.setattr(upgrade, "replace", replaced)
        monkeypatch.setattr(upgrade.smoke, "prove", smoke)
        monkeypatch.setattr(upgrade.backup, "create", lambda *_, **__: {"id": "b1"})
        monkeypatch.setattr(upgrade.restores, "read", lambda _: None)
        monkeypatch.setattr(side, "remove", lambda *_, **__: None)
        return host, Upgrade(host)  # type: ignore[arg-type]

    return make


def test_an_upgrade_and_the_way_back_by_the_image_alone(played: Any, tmp_path: Path) -> None:
    host, upgrading = played()
    done = upgrading.run(NEW)
    assert (done["from"], done["to"], done["backup"]) == (OLD, NEW, "b1")
    assert host.done == ["smoke", "migrate", "replace by 3.9.1", "smoke"]
    assert Journal.load(tmp_path) is None
    host.done.clear()
    upgrading.back()
    assert host.done == ["replace by 3.8.8", "smoke"]
    assert (host.image, host.revision_now) == (OLD, AFTER)
    assert (Journal.load(tmp_path), Upgraded.load(tmp_path)) == (None, None)
    with pytest.raises(Failure, match="there is no upgrade to take back"):
        upgrading.back()


def test_where_the_old_server_does_not_serve_the_new_schema_it_stops_and_the_way_back_is_a_downgrade(
    played: Any,
) -> None:
    host, upgrading = played(old_serves=False)
    upgrading.run(NEW)
    assert host.done == ["smoke", "stop", "migrate", "replace by 3.9.1", "smoke"]
    host.done.clear()
    upgrading.back()
    assert host.done == ["stop", "downgrade", "replace by 3.8.8", "smoke"]
    assert (host.image, host.revision_now) == (OLD, BEFORE)


def test_the_way_back_by_the_backup_of_before(played: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    host, upgrading = played(old_serves=False)
    upgrading.run(NEW)
    monkeypatch.setattr(
        host, "connect", lambda: contextlib.nullcontext(
            SimpleNamespace(execute=lambda *_: SimpleNamespace(fetchone=lambda: (7,)))
        )
    )  # fmt: skip
    with pytest.raises(Failure, match="7 flow runs were made since the upgrade") as refused:
        upgrading.back_by_backup(lose_newer=False)
    assert refused.value.hint.endswith("prefect-upgrade --back --from-backup --lose-newer")
    command = upgrading.back_by_backup(lose_newer=True)
    assert command[1:] == ["--id", "b1", "--image", OLD, "--yes"]
    upgrading.forget_last()
    with pytest.raises(Failure, match="there is no upgrade to take back"):
        upgrading.back_by_backup(lose_newer=True)


def test_a_downgrade_that_fails_names_the_other_way(played: Any) -> None:
    host, upgrading = played(old_serves=False)
    upgrading.run(NEW)
    host.fails = ["downgrade"]
    with pytest.raises(Failure, match=f"It was taken back: {NEW} serves") as failed:
        upgrading.back()
    assert "-e back=true -e from_backup=true" in failed.value.hint


@pytest.mark.parametrize("old_serves", [True, False])
@pytest.mark.parametrize("step", ["migrate", "replace by 3.9.1", "smoke"])
def test_a_failure_takes_back_what_was_done(played: Any, tmp_path: Path, old_serves: bool, step: str) -> None:
    host, upgrading = played(old_serves)
    if step == "smoke":
        # Well before, and not after.
        host.step, first = (lambda name, real=host.step: first.pop() if name == "smoke" and first else real(name)), [1]
    host.fails = [step]
    with pytest.raises(Failure, match=r"It was taken back: .*3\.8\.8.* serves") as failed:
        upgrading.run(NEW)
    assert failed.value.code is Code.UPGRADE
    assert (host.image, host.serving, Journal.load(tmp_path), Upgraded.load(tmp_path)) == (OLD, True, None, None)
    # The old server has the schema that it needs.
    assert old_serves or host.revision_now == BEFORE


def test_what_cannot_be_taken_back_says_what_to_do(
    played: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    host, upgrading = played()
    host.fails = ["replace by 3.9.1", "replace by 3.8.8"]
    host.image = OLD
    real = upgrade.replace

    def half(_: Any, image: str) -> None:
        host.image = image
        real(_, image)

    monkeypatch.setattr(upgrade, "replace", half)
    with pytest.raises(Failure, match="And taking it back failed") as failed:
        upgrading.run(NEW)
    assert failed.value.hint == (
        "when that is solved: prefect-upgrade --resume ; or the data of before: prefect-restore --id b1"
    )
    assert Journal.load(tmp_path) is not None


@pytest.mark.parametrize(
    ("phase", "old_serves", "image", "revision", "does", "serves"),
    [
        ("migrating", True, OLD, BEFORE, [], OLD),
        ("migrating", True, OLD, AFTER, [], OLD),
        # It was stopped, and migrated or not.
        ("migrating", False, OLD, AFTER, ["stop", "downgrade", "start"], OLD),
        ("replacing", True, OLD, AFTER, ["replace by 3.9.1", "smoke"], NEW),
        ("replacing", True, NEW, AFTER, ["replace by 3.9.1", "smoke"], NEW),
        ("proving", True, NEW, AFTER, ["replace by 3.9.1", "smoke"], NEW),
    ],
)
def test_an_upgrade_that_was_cut_off_is_taken_back_or_finished(
    played: Any, tmp_path: Path, phase: str, old_serves: bool, image: str, revision: str, does: list[str], serves: str
) -> None:
    host, upgrading = played(old_serves)
    host.image, host.revision_now = image, revision
    Journal(OLD, NEW, phase, "b1", BEFORE, old_serves).save(tmp_path)
    with pytest.raises(Failure, match="did not end"):
        upgrading.run(NEW)
    done = upgrading.resume()
    assert (host.done, done["serves"], host.image) == (does, serves, serves)
    assert Journal.load(tmp_path) is None
    assert (Upgraded.load(tmp_path) is not None) is (serves == NEW)
    assert upgrading.resume() is None


def test_what_a_killed_rehearsal_has_left_is_removed(played: Any, tmp_path: Path) -> None:
    """A copy of all data would fill the disk."""
    host, upgrading = played()
    host.end_orphans = lambda: host.step("orphans")
    host.remove_staging = lambda name: host.step(f"staging {name}")
    host.drop = lambda name: host.step(f"drop {name}")
    rehearse.mark(tmp_path).touch()
    host.fails = ["drop prefect_restore"]
    with pytest.raises(Failure):
        upgrading.resume()
    host.done.clear()
    assert upgrading.resume() == {"resumed": "rehearsal removed"}
    assert host.done == ["orphans", "staging restore", "drop prefect_restore"]
    assert upgrading.resume() is None


@pytest.mark.parametrize("age", [None, 25 * 3600])
def test_what_was_not_rehearsed_is_refused(played: Any, tmp_path: Path, age: float | None) -> None:
    host, upgrading = played()
    found = Rehearsal.load(tmp_path)
    assert found is not None
    if age is None:
        found.after = "prefecthq/prefect:3.9.0-python3.13"
    else:
        found.at -= age
    found.save(tmp_path)
    with pytest.raises(Failure, match=r"not rehearsed on this host|older than 24 hours") as refused:
        upgrading.run(NEW)
    assert (refused.value.code, refused.value.hint) == (Code.REHEARSAL, f"prefect-upgrade --rehearse {NEW}")
    assert host.done == []


def test_the_image_that_serves_is_not_rehearsed(played: Any) -> None:
    host, upgrade_ = played()
    with pytest.raises(Failure, match=f"the server of this host runs {OLD} already") as refused:
        upgrade_.rehearse(OLD)
    assert (refused.value.code, host.done) == (Code.REHEARSAL, [])
