"""A restore that did not end, in each phase, after each disaster, with each command: none of it needs a file moved by hand.

Two tables. The first holds the decision alone (decide.py). The second lets the real `Restore` walk every cell, over a
host that is played: its databases, containers and workers are what a restore changes, and the journal is a real file.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from prefect_backups import build, decide, manifest, previous, restore, smoke, switch, undo, unfinished
from prefect_backups.decide import Action, Command, Live
from prefect_backups.errors import Code, Failure
from prefect_backups.host import Host
from prefect_backups.journal import PHASES, Journal
from prefect_backups.plan import TAKE_BACK_ONLY, Plan, Request
from prefect_backups.postgres import GIVEN_UP, LIVE, OURS, PREVIOUS, RESTORING
from prefect_backups.progress import Report
from prefect_backups.restic import Backup
from prefect_backups.restore import Restore
from prefect_backups.resume import TRIES
from prefect_backups.settings import Endpoint, Settings

# --- the decision --------------------------------------------------------------------------------------------------

T, F, G, S = Action.TAKE_BACK, Action.FINISH, Action.GIVE_UP, Action.STUCK
# For each phase and live database: of a resumption, of an undo, of a restore.
TABLE = {
    ("building", Live.GONE): (T, T, G),
    ("building", Live.BEFORE): (T, T, G),
    ("building", Live.TARGET): (T, T, G),
    ("switching", Live.GONE): (S, G, G),
    ("switching", Live.BEFORE): (T, T, G),
    ("switching", Live.TARGET): (F, G, G),
    ("ordering", Live.GONE): (S, G, G),
    ("ordering", Live.BEFORE): (T, G, G),
    ("ordering", Live.TARGET): (F, G, G),
    ("starting", Live.GONE): (S, G, G),
    ("starting", Live.BEFORE): (T, G, G),
    ("starting", Live.TARGET): (F, G, G),
}


def test_the_decision_is_made_for_every_cell() -> None:
    assert set(TABLE) == set(itertools.product(PHASES, Live))
    for (phase, live), actions in TABLE.items():
        for command, action in zip((Command.RESUME, Command.UNDO, Command.RESTORE), actions, strict=True):
            assert decide.unfinished(command, phase, live) is action, (command, phase, live)


def test_without_a_journal_there_is_nothing_to_do() -> None:
    for command, live in itertools.product(Command, Live):
        assert decide.unfinished(command, None, live) is Action.NOTHING


def test_a_newer_restore_is_never_held_up() -> None:
    for phase, live, served in itertools.product(PHASES, Live, (True, False)):
        assert decide.unfinished(Command.RESTORE, phase, live, served) is Action.GIVE_UP


def test_what_was_set_aside_is_put_back_where_the_databases_have_not_swapped() -> None:
    for command, live in itertools.product((Command.RESUME, Command.UNDO), (Live.GONE, Live.BEFORE)):
        assert decide.unfinished(command, "switching", live, aside=True) is Action.TAKE_BACK
    assert decide.unfinished(Command.RESUME, "switching", Live.TARGET, aside=True) is Action.FINISH
    assert decide.unfinished(Command.UNDO, "switching", Live.TARGET, aside=True) is Action.GIVE_UP


def test_nobody_waits_for_a_server_that_was_not_ready_before() -> None:
    assert decide.unfinished(Command.RESUME, "switching", Live.GONE, served=False) is Action.TAKE_BACK


@pytest.mark.parametrize(
    ("live", "there", "unserved", "renames", "kept"),
    [
        ("readable", {LIVE, PREVIOUS}, False, [(PREVIOUS, GIVEN_UP), (LIVE, PREVIOUS), (RESTORING, LIVE)], True),
        ("unreadable", {LIVE}, False, [(LIVE, PREVIOUS), (RESTORING, LIVE)], True),
        # Nothing worth keeping is there: what --undo would bring back stays that.
        ("empty", {LIVE, PREVIOUS}, False, [(LIVE, GIVEN_UP), (RESTORING, LIVE)], False),
        ("missing", {PREVIOUS}, False, [(RESTORING, LIVE)], False),
        # A copy of a backup, by a restore that never ended: the database of before that one is worth more.
        ("readable", {LIVE, PREVIOUS}, True, [(LIVE, GIVEN_UP), (RESTORING, LIVE)], False),
        ("readable", {LIVE}, True, [(LIVE, PREVIOUS), (RESTORING, LIVE)], True),
    ],
)
def test_what_is_kept_for_an_undo(live: str, there: set[str], unserved: bool, renames: Any, kept: bool) -> None:
    assert decide.of_restore(live, there | {RESTORING}, False, unserved) == (renames, kept)


def test_an_empty_database_is_nothing_to_come_back_to() -> None:
    assert decide.of_undo(False, {LIVE, PREVIOUS}) == [(LIVE, GIVEN_UP), (PREVIOUS, LIVE)]
    assert decide.of_undo(False, {PREVIOUS}) == [(PREVIOUS, LIVE)]


# --- a host that is played -----------------------------------------------------------------------------------------

SCHEMA = frozenset({"alembic_version", "flow_run"})
NEW = "20261121T111200Z"
OLD_WORLD, OLDER_WORLD, RESTORED_WORLD = "the world before", "the world before that", "the restored world"


@dataclass
class Database:
    """One database: which world is in it."""

    oid: int
    world: str
    tables: frozenset[str] = SCHEMA


@dataclass
class Played:
    """A host: Postgres (both `Postgres` and what is behind `Stack`), server, proxy, workers."""

    databases_: dict[str, Database] = field(default_factory=dict)
    cluster_id: str = "1"
    postgres_starts: bool = True
    postgres_up: bool = True
    server_starts: bool = True
    server_up: bool = True
    proxy_starts: bool = True
    proxy_up: bool = True
    disk_full: bool = False
    workers_up: bool = True
    # What --new-cluster has set aside, by its path; whether Postgres starts with it.
    aside: dict[str, tuple[dict[str, Database], str, bool]] = field(default_factory=dict)
    oids: Any = field(default_factory=lambda: itertools.count(20000))

    def wipe(self, cluster: str = "2") -> None:
        """The volume is gone: the next start makes a new cluster, and gives the same oids again."""
        self.databases_, self.cluster_id, self.postgres_up, self.server_up = {}, cluster, False, False

    @property
    def world(self) -> str | None:
        """Which one is served."""
        live = self.databases_.get(LIVE)
        return live.world if live and self.server_up and self.postgres_up and live.tables >= SCHEMA else None


class PlayedPostgres:
    def __init__(self, host: Played, staging: Path) -> None:
        self.host, self.staging = host, staging

    def _up(self) -> None:
        if not self.host.postgres_up:
            raise Failure(Code.NO_DATABASE, "Postgres does not let us in")

    def answers(self) -> bool:
        return self.host.postgres_up

    def databases(self) -> set[str]:
        self._up()
        return set(self.host.databases_)

    def _database(self, name: str) -> Database:
        self._up()
        if name not in self.host.databases_:
            raise Failure(Code.NO_DATABASE, f'there is no database "{name}"')
        return self.host.databases_[name]

    def oid(self, name: str) -> int:
        self._up()
        return self.host.databases_[name].oid if name in self.host.databases_ else 0

    def tables(self, name: str = LIVE) -> set[str]:
        return set(self._database(name).tables)

    def revision(self, name: str = LIVE) -> str | None:
        return "r" if "alembic_version" in self.tables(name) else None

    def size(self, name: str = LIVE) -> int:
        return 1

    def cluster(self) -> str:
        self._up()
        return self.host.cluster_id

    def drop(self, name: str) -> None:
        self._up()
        assert name in OURS, "nobody removes the live one"
        self.host.databases_.pop(name, None)

    def hand_over(self, name: str = LIVE) -> None:
        self._database(name)

    def create(self, name: str, world: str) -> None:
        self._up()
        self.host.databases_[name] = Database(next(self.host.oids), world)

    def swap(self, *renames: tuple[str, str]) -> None:
        self._up()
        for old, new in renames:
            assert new not in self.host.databases_, f"{old} to {new}: {self.host.databases_}"
            self.host.databases_[new] = self.host.databases_.pop(old)

    def end_orphans(self) -> None:
        self._up()

    def adopt(self, name: str) -> None:
        self._up()

    def refuse_foreign(self, what: str, *names: str) -> None:
        self._up()

    def remove_staging(self, name: str) -> bool:
        return True


class PlayedStack:
    def __init__(self, host: Played) -> None:
        self.host = host

    def start_postgres(self, postgres: PlayedPostgres) -> None:
        if self.host.disk_full:
            raise Failure(Code.NO_ROOM, "Postgres does not start, because the disk is full")
        if not self.host.postgres_starts:
            raise Failure(Code.NO_DATABASE, "Postgres does not start")
        self.host.postgres_up = True
        # As the image's entrypoint does it in an empty volume: always the same oid.
        if not self.host.databases_:
            self.host.databases_[LIVE] = Database(16384, "nothing", frozenset())

    def start_server(self, wait: bool = True) -> None:
        self.host.postgres_up = self.host.postgres_up or (self.host.postgres_starts and not self.host.disk_full)
        live = self.host.databases_.get(LIVE)
        well = self.host.server_starts and self.host.postgres_up and live is not None and live.tables >= SCHEMA
        self.host.server_up = well
        if wait and not well:
            raise Failure(Code.NOT_READY, "the server is not ready after 180 s")

    def stop_server(self) -> None:
        self.host.server_up = False

    def start_proxy(self) -> None:
        self.host.proxy_up = self.host.proxy_starts
        if not self.host.proxy_up:
            raise Failure(Code.NOT_READY, "no proxy")

    def serves(self) -> bool:
        return self.host.server_up

    def active_workers(self) -> list[str]:
        return ["prefect-worker@a.service"] if self.host.workers_up else []

    def down_workers(self) -> list[str]:
        return []

    def stop_workers(self, units: list[str]) -> None:
        self.host.workers_up = False

    def start_workers(self, units: list[str], wait: bool = True) -> None:
        self.host.workers_up = self.host.workers_up or bool(units)

    def in_server(self, script: str, environment: dict[str, str]) -> str:
        if not self.host.server_up:
            raise Failure(Code.NOT_READY, "the restored runs could not be put in order")
        return '{"crashed": 0, "cancelled": 0, "late": 0, "slots_freed": 0, "paused": []}'

    def migrate(self, database: str, image: str = "") -> None:
        assert database in self.host.databases_

    def forget_leases(self) -> None: ...
    def repair_caddy_data(self) -> None: ...

    def volume(self) -> Path:
        return Path("/volume/_data")

    def set_aside(self, aside: Path) -> None:
        host = self.host
        host.aside[str(aside)] = (host.databases_, host.cluster_id, host.postgres_starts)
        host.wipe(cluster="3")
        host.postgres_starts = True

    def put_back(self, aside: Path) -> None:
        host = self.host
        host.postgres_up = host.server_up = False
        if str(aside) in host.aside:
            host.databases_, host.cluster_id, host.postgres_starts = host.aside.pop(str(aside))


class PlayedPlanner:
    def __init__(self, host: Played, stack: PlayedStack, postgres: PlayedPostgres) -> None:
        self.host, self.stack, self.postgres = host, stack, postgres

    def plan(self, request: Request, touch: bool, tolerated: Any = ()) -> Plan:
        if self.host.disk_full:
            raise Failure(Code.NO_ROOM, "Refusing to restore: it needs room")
        live = "missing"
        if not request.new_cluster:
            if not self.postgres.answers():
                self.stack.start_postgres(self.postgres)
            if LIVE in self.host.databases_:
                tables = self.host.databases_[LIVE].tables
                live = "readable" if tables >= SCHEMA else "unreadable" if tables else "empty"
        now = datetime.now(UTC)
        backup = Backup(NEW, "f" * 64, now, "manual", "local", 1, 1, "3", "17", "r", "k")
        facts = manifest.Manifest(NEW, "", "manual", "k", "3", "17", "r", {}, 1, 1, 1.0)
        return Plan(backup, facts, None, "3", live, None, now)  # type: ignore[arg-type]

    def last_heartbeat(self) -> datetime | None:
        return None


@pytest.fixture
def play(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """`play(host)` is the real Restore on a host that is played."""
    monkeypatch.setattr(
        build, "bring_back", lambda source, backup, facts, postgres, *more: (
            postgres.drop(RESTORING), postgres.create(RESTORING, RESTORED_WORLD)
        )
    )  # fmt: skip
    monkeypatch.setattr(build, "prove", lambda *more: None)
    monkeypatch.setattr(build.backup, "create_unlocked", lambda *more: {"id": "safety"})
    monkeypatch.setattr(smoke, "Client", lambda endpoint: None)
    monkeypatch.setattr(smoke, "run", lambda *more: "flow run Completed")

    def find(client: Any, endpoint: Endpoint) -> str:
        if not host_now[0].proxy_up:
            raise Failure(Code.SMOKE, "the reverse proxy cannot be reached")
        return "id"

    host_now: list[Played] = []
    monkeypatch.setattr(smoke, "find", find)
    settings = Settings("1", Endpoint("https://x", "backups", "/p", "/c"), state=str(tmp_path))

    def make(host: Played, by_systemd: bool = False) -> Restore:
        host_now[:] = [host]
        stack, postgres = PlayedStack(host), PlayedPostgres(host, tmp_path)
        here = Host(settings, Report.silent(), stack, postgres, by_systemd)  # type: ignore[arg-type]
        return Restore(here, PlayedPlanner(host, stack, postgres))  # type: ignore[arg-type]

    class Connection:
        def execute(self, *words: Any) -> None: ...
        def __enter__(self) -> Connection:
            return self

        def __exit__(self, *words: Any) -> None: ...

    monkeypatch.setattr(PlayedPostgres, "connect", lambda self, name: Connection(), raising=False)
    return make


# --- every cell ------------------------------------------------------------------------------------------------------

CUTS = (
    "building",
    "building a new cluster",
    "switching",
    "switching a new cluster",
    "swapped",
    "ordering",
    "starting",
    "undo switching",
    "undo ordering",
)
DISASTERS = ("none", "database gone", "volume gone", "postgres broken", "server broken", "proxy gone", "disk full")
COMMANDS = ("undo", "latest", "new cluster", "resume", "reboot")


def cut(at: str, state: Path) -> Played:
    """A host on which a restore (or an undo) was cut off."""
    live, older = Database(16384, OLD_WORLD), Database(16500, OLDER_WORLD)
    new = Database(16600, RESTORED_WORLD)
    worker = ["prefect-worker@a.service"]
    undo = at.startswith("undo")
    phase = {"swapped": "switching"}.get(at, at.removeprefix("undo ").removesuffix(" a new cluster"))
    target = older.oid if undo else new.oid
    journal = Journal("undo" if undo else "20261120T111200Z", phase, target, "1", worker, served=True)
    host = Played({LIVE: live, PREVIOUS: older})
    if at == "building":
        host.databases_[RESTORING] = new
        journal.target, journal.workers = 0, []
    elif at.endswith("a new cluster"):
        journal.aside, journal.stopped = "/volume/broken-1", 1.0
        journal.target, journal.cluster = (0, "") if phase == "building" else (new.oid, "2")
        host.aside[journal.aside] = (host.databases_, "1", True)
        host.databases_, host.cluster_id = {LIVE: Database(16384, "nothing", frozenset()), RESTORING: new}, "2"
        host.server_up = host.workers_up = False
    elif at == "switching":
        host.databases_[RESTORING] = new
        host.server_up = host.workers_up = False
    elif at == "undo switching":
        host.server_up = host.workers_up = False
        journal.keep_previous = False
    elif at == "undo ordering":
        host.databases_ = {LIVE: older, PREVIOUS: live}
        host.server_up = host.workers_up = False
        journal.keep_previous = False
    else:
        host.databases_ = {LIVE: new, PREVIOUS: live, GIVEN_UP: older}
        host.server_up, host.workers_up = at == "starting", False
    journal.save(state)
    return host


def strike(host: Played, disaster: str) -> None:
    if disaster == "database gone":
        host.databases_.pop(LIVE, None)
        host.server_up = False
    elif disaster == "volume gone":
        host.wipe("9")
    elif disaster == "postgres broken":
        host.postgres_up = host.postgres_starts = host.server_up = False
    elif disaster == "server broken":
        host.server_starts = host.server_up = False
    elif disaster == "proxy gone":
        host.proxy_up = host.proxy_starts = False
    elif disaster == "disk full":
        host.disk_full, host.postgres_up, host.server_up = True, False, False


def mend(host: Played, disaster: str) -> None:
    """What a person does about what no restore can mend: an image, a configuration, a disk."""
    host.server_starts = host.proxy_starts = True
    host.disk_full = False


def do(command: str, play: Any, host: Played) -> Failure | dict[str, Any] | None:
    """One command; its failure, or its facts."""
    try:
        if command == "undo":
            return play(host).undo(Request())
        if command == "resume":
            return play(host).resume()
        if command == "reboot":
            return play(host, by_systemd=True).resume()
        return play(host).run(Request(new_cluster=command == "new cluster"))
    except Failure as failure:
        return failure


def well(host: Played, state: Path) -> bool:
    return host.world is not None and host.workers_up and host.proxy_up and not Journal.path(state).exists()


@pytest.mark.parametrize("at", CUTS)
@pytest.mark.parametrize("disaster", DISASTERS)
@pytest.mark.parametrize("command", COMMANDS)
def test_from_every_cell_there_is_a_way(at: str, disaster: str, command: str, play: Any, tmp_path: Path) -> None:
    """The command ends, well or with words; then one that README names ends well, once a broken image or disk is mended."""
    host = cut(at, tmp_path)
    strike(host, disaster)
    outcome = do(command, play, host)
    if isinstance(outcome, Failure):
        assert outcome.code in (Code.NOT_READY, Code.NO_DATABASE, Code.NO_ROOM, Code.NO_UNDO, Code.SMOKE), outcome
    if not well(host, tmp_path):
        mend(host, disaster)
        # As README has it: once more, then a backup, and where Postgres itself is lost a new cluster.
        for step in ("resume", "latest", "new cluster"):
            last = do(step, play, host)
            if well(host, tmp_path):
                break
        assert well(host, tmp_path), (outcome, last, host)
    # Nothing of the cut one is left in the databases.
    assert set(host.databases_) <= {LIVE, PREVIOUS}
    # And after all that a restore and an undo work as ever.
    assert isinstance(do("latest", play, host), dict)
    assert host.world == RESTORED_WORLD
    assert isinstance(do("undo", play, host), dict)
    assert well(host, tmp_path)


@pytest.mark.parametrize("at", CUTS)
def test_a_newer_restore_gives_up_the_old_one_and_keeps_the_world_of_before(at: str, play: Any, tmp_path: Path) -> None:
    host = cut(at, tmp_path)
    facts = do("latest", play, host)
    assert isinstance(facts, dict), facts
    assert (host.world, facts["undo"]) == (RESTORED_WORLD, "prefect-restore --undo")
    # An undo was on its way to the older one, and had swapped.
    assert host.databases_[PREVIOUS].world == (OLDER_WORLD if at == "undo ordering" else OLD_WORLD)


@pytest.mark.parametrize("at", CUTS)
def test_an_undo_brings_back_the_world_of_before(at: str, play: Any, tmp_path: Path) -> None:
    host = cut(at, tmp_path)
    assert isinstance(do("undo", play, host), dict)
    assert host.world == OLD_WORLD
    assert well(host, tmp_path)


@pytest.mark.parametrize("at", CUTS)
@pytest.mark.parametrize("command", ["latest", "new cluster"])
def test_a_newer_restore_that_fails_leaves_the_old_one_as_it_was(
    at: str, command: str, play: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its backup does not come back: what was unfinished before is unfinished again, and can be finished."""
    host = cut(at, tmp_path)
    before = Journal.load(tmp_path)

    def broken(*words: Any) -> None:
        raise Failure(Code.DAMAGED, "not whole")

    with monkeypatch.context() as patch:
        patch.setattr(build, "bring_back", broken)
        outcome = do(command, play, host)
    assert isinstance(outcome, Failure) and outcome.code is Code.DAMAGED
    after = Journal.load(tmp_path)
    if before.phase == "building":
        assert after is None
        assert host.world == OLD_WORLD
    else:
        assert (after.backup, after.phase, after.target) == (before.backup, before.phase, before.target)
        assert isinstance(do("resume", play, host), dict)
    assert well(host, tmp_path)


def test_a_new_cluster_whose_backup_does_not_come_back_puts_all_back(
    play: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    host = Played({LIVE: Database(16384, OLD_WORLD)})

    def broken(*words: Any) -> None:
        raise Failure(Code.MISMATCH, "different")

    monkeypatch.setattr(build, "prove", broken)
    assert do("new cluster", play, host).code is Code.MISMATCH
    assert (host.world, host.cluster_id, host.aside) == (OLD_WORLD, "1", {})
    assert well(host, tmp_path)


def test_the_sequence_of_the_bad_night(play: Any, tmp_path: Path) -> None:
    """A table dropped, restored, undone to what was broken, the volume deleted: and the newest backup comes back."""
    host = Played({LIVE: Database(16384, OLD_WORLD, frozenset({"alembic_version"}))}, server_up=False)
    assert do("latest", play, host)["undo"] == "prefect-restore --undo"
    undone = do("undo", play, host)
    assert undone.code is Code.NOT_READY
    assert undone.fact == (
        "the database of before is back as it was, without the tables flow_run: the server cannot serve it"
    )
    assert undone.hint == "forward again: prefect-restore --undo ; or another backup: prefect-restore --list"
    host.wipe("9")
    assert isinstance(do("latest", play, host), dict)
    assert host.world == RESTORED_WORLD
    assert well(host, tmp_path)


def test_systemd_gives_up_after_some_tries_and_a_person_may_go_on(play: Any, tmp_path: Path) -> None:
    host = cut("ordering", tmp_path)
    strike(host, "server broken")
    for _ in range(TRIES):
        assert do("reboot", play, host).fact == "the server is not ready after 180 s"
    refused = do("reboot", play, host)
    assert refused.code is Code.NOT_READY
    assert refused.fact == (
        "the restore of 20261120T111200Z, which did not end, was tried 3 times, and is not tried again by itself"
    )
    assert refused.hint == (
        "try it once more: prefect-restore --resume ; go back: --undo ; or give it up for a backup: --latest"
    )
    mend(host, "server broken")
    assert do("resume", play, host)["resumed"] == "finished"
    assert well(host, tmp_path)


def test_flow_runs_are_reconciled_once(play: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Since then others may be at work, which must not be Crashed at the next boot because a worker did not come."""
    host = cut("starting", tmp_path)

    def never(*words: Any) -> str:
        raise AssertionError("reconciled twice")

    monkeypatch.setattr(PlayedStack, "in_server", never)
    assert do("reboot", play, host)["resumed"] == "finished"
    assert well(host, tmp_path)


@pytest.mark.parametrize("as_is", [True, False])
def test_runs_stay_as_they_are_where_nothing_is_missing(as_is: bool, play: Any, tmp_path: Path) -> None:
    """A move: also where the restore was cut off, and another process finishes it."""
    host = cut("ordering", tmp_path)
    journal = Journal.load(tmp_path)
    journal.as_is = as_is
    journal.save(tmp_path)
    host.workers_up = False
    facts = do("reboot", play, host)
    assert isinstance(facts, dict)
    assert ("crashed" in facts) is not as_is
    assert "crashed" in do("latest", play, host)
    assert "crashed" not in play(host).run(Request(as_is=True))


@pytest.fixture
def images(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The images that have served, the last one now."""
    found = ["newer"]
    monkeypatch.setattr(restore, "served", lambda _: found[-1])
    monkeypatch.setattr(switch, "serve_with", lambda _, image: found.append(image))
    return found


def test_a_restore_may_change_the_image_and_its_undo_changes_it_back(play: Any, images: list[str]) -> None:
    """The way back of an upgrade by the backup from before."""
    host = Played({LIVE: Database(16384, OLD_WORLD)})
    assert "crashed" in play(host).run(Request(image="older"))
    assert (host.world, images) == (RESTORED_WORLD, ["newer", "older"])
    play(host).undo(Request())
    assert (host.world, images[-1]) == (OLD_WORLD, "newer")
    play(host).undo(Request())
    assert (host.world, images[-1]) == (RESTORED_WORLD, "older")
    # Any other restore leaves it as it is.
    play(host).run(Request())
    play(host).run(Request(image="older"))
    assert images[3:] == ["older"]


@pytest.mark.parametrize(
    ("at", "served"), [("building", []), ("switching", []), ("swapped", ["older"]), ("ordering", ["older"])]
)
def test_a_restore_with_another_image_is_finished_with_it_or_taken_back_without(
    at: str, served: list[str], play: Any, images: list[str], tmp_path: Path
) -> None:
    host = cut(at, tmp_path)
    journal = Journal.load(tmp_path)
    journal.image, journal.image_before = "older", "newer"
    journal.save(tmp_path)
    assert isinstance(do("reboot", play, host), dict)
    assert images[1:] == served


def test_a_journal_that_cannot_be_read_is_no_obstacle(play: Any, tmp_path: Path) -> None:
    host = Played({LIVE: Database(16384, OLD_WORLD)})
    Journal.path(tmp_path).write_text('{"phase": "of a newer kit"}')
    assert isinstance(do("latest", play, host), dict)
    assert well(host, tmp_path)
    assert [path.read_text() for path in tmp_path.glob("restore.unreadable-*.json")] == ['{"phase": "of a newer kit"}']


def test_an_undo_is_of_what_was_shown(play: Any, tmp_path: Path) -> None:
    host = Played({LIVE: Database(16384, RESTORED_WORLD), PREVIOUS: Database(16500, OLD_WORLD)})
    with pytest.raises(Failure) as refused:
        play(host).undo(Request(shown=16499))
    assert refused.value.code is Code.DECLINED
    assert refused.value.fact == "what --undo goes back to is not what was shown: another restore has come between"
    assert host.world == RESTORED_WORLD
    assert play(host).undo(Request(shown=16500))["undo"] == "prefect-restore --undo"


def test_an_undo_that_was_to_take_something_back_goes_nowhere_else(play: Any, tmp_path: Path) -> None:
    """The resumption has taken it back meanwhile: an earlier restore is not undone in its place."""
    host = cut("switching", tmp_path)
    assert unfinished.undo_takes_back(play(host).host, Journal.load(tmp_path))
    assert do("resume", play, host)["resumed"] == "taken back"
    with pytest.raises(Failure) as refused:
        play(host).undo(Request(shown=TAKE_BACK_ONLY))
    assert refused.value.code is Code.DECLINED
    assert host.world == OLD_WORLD


def test_a_worker_that_does_not_come_keeps_no_restore_unfinished(
    play: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    host = cut("ordering", tmp_path)

    def broken(self: PlayedStack, units: list[str], wait: bool = True) -> None:
        raise Failure(Code.NOT_READY, "of 1 workers that ran before these do not come back: a")

    with monkeypatch.context() as patch:
        patch.setattr(PlayedStack, "start_workers", broken)
        assert do("latest", play, host).fact == "of 1 workers that ran before these do not come back: a"
    assert host.world == RESTORED_WORLD
    assert Journal.load(tmp_path) is None


def test_what_an_undo_goes_back_to_is_said(play: Any, tmp_path: Path) -> None:
    host = Played({LIVE: Database(1, RESTORED_WORLD), PREVIOUS: Database(2, OLD_WORLD, frozenset({"alembic_version"}))})
    made = play(host).host
    previous.note(made.settings, NEW)
    assert undo.check(made) == (
        f"the database of before the restore of {NEW}, 0 s ago (0.0 MB)\n"
        "But the server cannot serve it: it lacks the tables flow_run"
    )


def test_a_database_of_before_does_not_expire_under_an_unfinished_restore(play: Any, tmp_path: Path) -> None:
    host = cut("ordering", tmp_path)
    made = play(host).host
    (tmp_path / "previous.json").write_text('{"since": 1, "backup": "x", "marked": true}')
    assert previous.expire(made.settings, made.postgres) is False
    assert PREVIOUS in host.databases_
