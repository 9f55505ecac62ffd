"""Another major version of Postgres: the order of things and their deaths, on directories in the place of clusters."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from prefect_backups import switch
from prefect_backups.errors import Code, Failure
from prefect_backups.progress import Report
from prefect_backups.stack import Stack
from prefect_upgrades import cluster
from prefect_upgrades.cluster import PostgresUpgrade
from prefect_upgrades.record import Cluster, ClusterJournal, ClusterRehearsal, Journal

OLD, NEW = "postgres:17.12-trixie", "postgres:18.6-trixie"


class Killed(BaseException):
    """As kill -9: nothing of the program runs after it."""


class Played:
    """A host whose cluster is a directory with a file `who`, which is what `serves` reads; what was done stands in `done`."""

    def __init__(self, folder: Path) -> None:
        self.state, self.data = folder / "state", folder / "volume" / "_data"
        self.state.mkdir()
        self.data.mkdir(parents=True)
        (self.data / "who").write_text("old")
        self.environment_file = folder / "stack.env"
        self.environment_file.write_text(f"POSTGRES_IMAGE={OLD}\n")
        self.settings: Any = SimpleNamespace(endpoint=None, compose_environment=str(self.environment_file))
        self.report = Report.silent()
        self.stack = self
        self.postgres = self
        self.staging = folder
        self.done: list[str] = []
        # What fails or kills, once, by the step.
        self.faults: dict[str, BaseException] = {}
        self.up = True

    def step(self, name: str) -> None:
        self.done.append(name)
        if fault := self.faults.pop(name, None):
            raise fault

    # -- the stack

    def environment(self) -> dict[str, str]:
        return dict(line.split("=") for line in self.environment_file.read_text().splitlines())

    def postgres_major(self) -> int:
        return int(self.environment()["POSTGRES_IMAGE"].split(":")[1].split(".")[0])

    def volume(self) -> Path:
        self.data.mkdir(exist_ok=True)
        return self.data

    def place(self) -> Path:
        return self.data

    def compose(self, *arguments: str, **_: Any) -> None:
        self.step(" ".join(arguments))
        if arguments[:1] == ("up",) and not any(self.data.iterdir()):
            # The entrypoint makes a cluster where there is none.
            (self.data / "who").write_text("empty")

    set_aside, take_cluster, put_back, remove_aside = (
        Stack.set_aside,
        Stack.take_cluster,
        Stack.put_back,
        Stack.remove_aside,
    )

    def stop_server(self) -> None:
        self.step("stop server")
        self.up = False

    def start_server(self) -> None:
        self.step("start server")
        self.up = True

    def wait_for(self, *_: Any) -> None:
        self.step("wait")

    # -- Postgres

    def wait(self, _: float) -> None:
        """It answers."""

    def hand_over(self) -> None:
        self.step("hand over")

    def fill(self) -> None:
        self.step("fill")
        (self.data / "who").write_text("new")

    def remove_staging(self, _: str) -> None:
        """There is none."""

    @property
    def serves(self) -> tuple[str, str, bool]:
        """The cluster in its place, the image that it is served by, and whether the server runs."""
        return (self.data / "who").read_text(), self.environment()["POSTGRES_IMAGE"], self.up

    @property
    def aside(self) -> list[str]:
        """The clusters beside it."""
        return sorted((path / "who").read_text() for path in self.data.parent.iterdir() if path != self.data)


BEFORE, AFTER = ("old", OLD, True), ("new", NEW, True)


@pytest.fixture
def played(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Played, PostgresUpgrade]:
    """A host on which the upgrade was rehearsed, and what upgrades it."""
    host = Played(tmp_path)
    made = {"id": "b1"}
    monkeypatch.setattr(cluster.backup, "create", lambda *_, **__: host.step("backup off-site") or made)
    monkeypatch.setattr(cluster.backup, "create_unlocked", lambda *_, **__: host.step("last backup") or made)
    monkeypatch.setattr(cluster.smoke, "prove", lambda *_: host.step("smoke") or {"smoke": "well"})
    monkeypatch.setattr(cluster.restores, "read", lambda _: None)
    monkeypatch.setattr(PostgresUpgrade, "_fill", lambda *_: host.fill())
    monkeypatch.setattr(PostgresUpgrade, "_written_since", lambda *_: "7 flow runs were made since")
    monkeypatch.setattr(cluster.docker, "from_env", lambda: SimpleNamespace(images=SimpleNamespace(get=lambda _: None)))
    ClusterRehearsal(OLD, NEW, time.time(), "b0", 1.0).save(host.state)
    return host, PostgresUpgrade(host)  # type: ignore[arg-type]


def test_an_upgrade_and_the_way_back_and_the_end_of_it(played: tuple[Played, PostgresUpgrade]) -> None:
    host, upgrading = played
    done = upgrading.run(NEW)
    assert (done["from"], done["to"], done["backup"], done["smoke"]) == (OLD, NEW, "b1", "well")
    # The last backup when nothing is written any more, and before the cluster is touched.
    order = ["backup off-site", "smoke", "stop server", "last backup", "stop server postgres", "fill", "start server"]
    assert [one for one in host.done if one in order] == [*order, "smoke"]
    assert (host.serves, host.aside) == (AFTER, ["old"])
    assert ClusterJournal.load(host.state) is None

    with pytest.raises(Failure, match="7 flow runs were made since") as refused:
        upgrading.back(lose_newer=False)
    assert refused.value.code is Code.DECLINED
    assert host.serves == AFTER
    upgrading.back(lose_newer=True)
    assert (host.serves, host.aside) == (BEFORE, ["new"])
    with pytest.raises(Failure, match="there is no upgrade of Postgres to take back"):
        upgrading.back(lose_newer=True)
    assert upgrading.drop_previous() == {"dropped": None}

    upgrading.run(NEW)
    assert upgrading.drop_previous()["dropped"]
    with pytest.raises(Failure, match="there is no upgrade of Postgres to take back"):
        upgrading.back(lose_newer=True)


STEPS = ("stop server", "last backup", "stop server postgres", "up --detach postgres", "wait", "fill", "start server")


@pytest.mark.parametrize("step", STEPS)
def test_a_failure_takes_back_what_was_done(played: tuple[Played, PostgresUpgrade], step: str) -> None:
    host, upgrading = played
    host.faults = {step: Failure(Code.NO_DATABASE, f"{step} failed")}
    with pytest.raises(Failure, match=f"{step} failed. It was taken back: {OLD} serves") as failed:
        upgrading.run(NEW)
    assert failed.value.code is Code.UPGRADE
    assert (host.serves, host.aside, ClusterJournal.load(host.state), Cluster.load(host.state)) == (
        BEFORE,
        [],
        None,
        None,
    )


def _die(monkeypatch: pytest.MonkeyPatch, host: Played, step: str, do: Callable[[], Any]) -> None:
    """Have what `do` does die at a step, as by kill -9: nothing takes it back."""
    host.faults = {step: Killed()}
    with monkeypatch.context() as patch:
        patch.setattr(PostgresUpgrade, "_taken_back", lambda *_: contextlib.nullcontext())
        if step == "between":
            patch.setattr(cluster, "failpoint", host.step)
        with pytest.raises(Killed):
            do()


@pytest.mark.parametrize("step", [*STEPS, "between"])
def test_a_death_is_taken_back_or_finished(
    played: tuple[Played, PostgresUpgrade], monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    host, upgrading = played
    _die(monkeypatch, host, step, lambda: upgrading.run(NEW))
    with pytest.raises(Failure, match="did not end"):
        upgrading.run(NEW)
    done = upgrading.resume()
    assert done is not None
    finished = step == "start server"
    assert (done["resumed"], host.serves) == (("finished", AFTER) if finished else ("taken back", BEFORE))
    assert host.aside == (["old"] if finished else [])
    assert upgrading.resume() is None


@pytest.mark.parametrize("step", ["stop server", "stop server postgres", "between", "wait", "start server"])
def test_a_death_of_the_way_back(
    played: tuple[Played, PostgresUpgrade], monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    host, upgrading = played
    upgrading.run(NEW)
    _die(monkeypatch, host, step, lambda: upgrading.back(lose_newer=True))
    upgrading.resume()
    finished = step == "start server"
    assert (host.serves, host.aside) == ((BEFORE, ["new"]) if finished else (AFTER, ["old"]))
    if not finished:
        upgrading.back(lose_newer=True)
        assert host.serves == BEFORE


@pytest.mark.parametrize("back", [False, True])
def test_a_take_back_that_dies_is_made_up_for(
    played: tuple[Played, PostgresUpgrade], monkeypatch: pytest.MonkeyPatch, back: bool
) -> None:
    """Between its two renames, and after them."""
    host, upgrading = played
    if back:
        upgrading.run(NEW)
    serves, aside = host.serves, host.aside
    real = Path.rename
    for survived in (1, 2):
        _die(
            monkeypatch,
            host,
            "wait",
            (lambda: upgrading.back(lose_newer=True)) if back else (lambda: upgrading.run(NEW)),
        )
        left = [survived]

        def rename(path: Path, target: Path, left: list[int] = left) -> Path:
            if not left[0]:
                raise Killed
            left[0] -= 1
            return real(path, target)

        with monkeypatch.context() as patch, contextlib.suppress(Killed):
            patch.setattr(Path, "rename", rename)
            if survived == 2:
                patch.setattr(cluster, "set_image", lambda *_: (_ for _ in ()).throw(Killed()))
            upgrading.resume()
        assert ClusterJournal.load(host.state) is not None
        upgrading.resume()
        assert (host.serves, host.aside, ClusterJournal.load(host.state)) == (serves, aside, None)


def test_a_restore_gives_up_an_upgrade_that_did_not_end(played: tuple[Played, PostgresUpgrade]) -> None:
    """Else the next boot would take the data of before back, over those that were restored."""
    host, upgrading = played
    aside = host.data.with_name("aside")
    aside.mkdir()
    ClusterJournal(OLD, NEW, "building", str(aside)).save(host.state)
    Journal("a", "b", "migrating", "b1", "r", True).save(host.state)
    said: list[str] = []
    host.report.say = lambda text, **_: said.append(text)  # type: ignore[method-assign]
    assert {ClusterJournal.path(host.state).name, Journal.path(host.state).name} == set(switch.UPGRADES)
    switch.give_up_upgrades(host)  # type: ignore[arg-type]
    # It is all the data of before, and nobody would find it otherwise.
    assert any(f"stays in {aside}; when nobody needs it any more: rm -r {aside}" in text for text in said)
    assert upgrading.resume() is None
    assert Journal.load(host.state) is None


def test_a_cluster_that_is_kept_is_not_forgotten(played: tuple[Played, PostgresUpgrade]) -> None:
    _, upgrading = played
    upgrading.run(NEW)
    with pytest.raises(Failure, match="is still kept in") as refused:
        upgrading.run("postgres:19.1")
    assert refused.value.hint.endswith("prefect-upgrade --drop-previous-postgres")


def test_what_was_not_rehearsed_or_is_no_upgrade_is_refused(played: tuple[Played, PostgresUpgrade]) -> None:
    host, upgrading = played
    for image, words in (
        ("postgres:18.5-trixie", "was not rehearsed on this host"),
        ("postgres:17.13-trixie", "a Postgres 17 like"),
        ("postgres:16.1", "is older than"),
    ):
        with pytest.raises(Failure, match=words):
            upgrading.run(image)
    assert (host.done, host.serves) == ([], BEFORE)
