"""prefect-restore's pure decisions: which backup, which renames, what a journal and the settings may say."""

from __future__ import annotations

import ast
import contextlib
import dataclasses
import fcntl
import io
import json
import signal
import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace

import pytest
from prefect_backups import (
    choose,
    decide,
    lock,
    manifest,
    plan,
    repositories,
    restore_options,
    restore_words,
    schema,
    settings,
    undo,
)
from prefect_backups.decide import possible
from prefect_backups.errors import Code, Failure
from prefect_backups.host import Host
from prefect_backups.journal import Journal
from prefect_backups.plan import Plan
from prefect_backups.postgres import LIVE, PREVIOUS
from prefect_backups.progress import Report, duration, size
from prefect_backups.restic import Backup
from prefect_backups.stopping import Interrupted, stoppable

NOON = datetime(2026, 11, 21, 12, 0, tzinfo=UTC)


def made(identity: str, repository: str = "local") -> Backup:
    time = datetime.strptime(identity, "%Y%m%dT%H%M%SZ").replace(tzinfo=UTC)
    return Backup(
        identity, f"{abs(hash(identity)):064x}", time, "scheduled", repository, 1, 1, "3.8.8", "17.12", "r", "k"
    )


HOURLY = [made(f"20261121T{hour:02}1200Z") for hour in (11, 10, 9)]


# --- which backup ------------------------------------------------------------------------------------------------


def test_the_newest_is_taken_when_nothing_else_is_asked() -> None:
    assert choose.pick(HOURLY[::-1], None, None) is HOURLY[0]


def test_the_newest_from_before_a_moment_is_taken() -> None:
    assert choose.pick(HOURLY, None, NOON - timedelta(hours=1)) is HOURLY[1]
    assert choose.pick(HOURLY, None, HOURLY[2].time) is HOURLY[2]


def test_an_id_may_be_cut_short_while_it_is_unmistakable() -> None:
    assert choose.pick(HOURLY, "20261121T10", None) is HOURLY[1]
    with pytest.raises(Failure) as refused:
        choose.pick(HOURLY, "20261121", None)
    assert refused.value.fact == (
        '"20261121" is the beginning of 3 backups: 20261121T111200Z, 20261121T101200Z, 20261121T091200Z'
    )


def test_what_is_not_there_is_said_with_what_is() -> None:
    for identity, before, fact in (
        ("2025", None, 'there is no backup "2025"; the oldest is 20261121T091200Z, the newest 20261121T111200Z'),
        (None, NOON - timedelta(days=1), "there is no backup from before "),
    ):
        with pytest.raises(Failure) as refused:
            choose.pick(HOURLY, identity, before)
        assert refused.value.code is Code.NOT_FOUND
        assert refused.value.fact.startswith(fact)
    with pytest.raises(Failure, match="there is no backup"):
        choose.pick([], None, None)


def test_backups_of_several_repositories_are_listed_once_the_nearest_first() -> None:
    offsite = [made(one.id, "away") for one in HOURLY] + [made("20261101T000000Z", "away")]
    merged = choose.merge([HOURLY[1:], offsite])
    assert [(one.id[:11], one.repository) for one in merged] == [
        ("20261121T11", "away"),
        ("20261121T10", "local"),
        ("20261121T09", "local"),
        ("20261101T00", "away"),
    ]


@pytest.mark.parametrize(
    ("text", "moment"),
    [
        ("2h", NOON - timedelta(hours=2)),
        ("30 m", NOON - timedelta(minutes=30)),
        ("3d", NOON - timedelta(days=3)),
        ("2026-11-21 04:30+00:00", datetime(2026, 11, 21, 4, 30, tzinfo=UTC)),
        ("2026-11-21T04:30:00+01:00", datetime(2026, 11, 21, 3, 30, tzinfo=UTC)),
        ("04:30", NOON.astimezone().replace(hour=4, minute=30)),
    ],
)
def test_a_time_is_understood_as_a_person_writes_it(text: str, moment: datetime) -> None:
    assert choose.parse_time(text, NOON) == moment


@pytest.mark.parametrize("text", ["yesterday", "25:00", "", "2026-13-01"])
def test_what_is_no_time_is_refused_with_what_is(text: str) -> None:
    with pytest.raises(Failure) as refused:
        choose.parse_time(text, NOON)
    assert refused.value.fact == f'"{text}" is not a time'
    assert "2h" in refused.value.hint


@pytest.mark.parametrize(
    ("one", "other", "is_newer"),
    [("3.10.1", "3.9.9", True), ("3.8.8", "3.8.8", False), ("3.8.8", "3.8.10", False), ("17.12", "17.9", True)],
)
def test_versions_are_compared_as_numbers(one: str, other: str, is_newer: bool) -> None:
    assert choose.newer(one, other) is is_newer


# --- names that swap -----------------------------------------------------------------------------------------------

RESTORE = [("prefect", "prefect_previous"), ("prefect_restore", "prefect")]
UNDO = [("prefect", "prefect_swapping"), ("prefect_previous", "prefect"), ("prefect_swapping", "prefect_previous")]


@pytest.mark.parametrize(
    ("renames", "there", "chosen"),
    [
        (RESTORE, {"prefect", "prefect_restore", "postgres"}, RESTORE),
        (RESTORE, {"prefect_restore", "postgres"}, RESTORE[1:]),
        (UNDO, {"prefect", "prefect_previous"}, UNDO),
        (UNDO, {"prefect_previous"}, UNDO[1:2]),
    ],
)
def test_a_database_that_somebody_dropped_is_no_obstacle(renames: list, there: set, chosen: list) -> None:
    assert possible(renames, there) == chosen


def test_what_is_there_is_backed_up_first_where_there_is_something_that_can_be() -> None:
    for live in ("readable", "unreadable"):
        assert decide.safety_backup(live, wanted=True, lost=False)
        assert not decide.safety_backup(live, wanted=False, lost=False)
        assert not decide.safety_backup(live, wanted=True, lost=True)
    for live in ("missing", "empty"):
        assert not decide.safety_backup(live, wanted=True, lost=False)


# --- the journal ---------------------------------------------------------------------------------------------------


def test_a_journal_is_read_as_it_was_written(tmp_path: Path) -> None:
    journal = Journal("20261121T111200Z", target=16400, workers=["prefect-worker@a.service"], cancel_before=5.0)
    journal.enter(tmp_path, "switching")
    assert Journal.load(tmp_path) == journal
    assert (tmp_path / "restore.json").stat().st_mode & 0o777 == 0o600
    journal.end(tmp_path)
    assert Journal.load(tmp_path) is None
    journal.end(tmp_path)


@pytest.mark.parametrize("text", ["", "{}", '{"backup": "x", "unknown": 1}', '{"backup": "x", "phase": "gone"}', "[]"])
def test_a_journal_that_is_none_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "restore.json").write_text(text)
    with pytest.raises(Failure) as refused:
        Journal.load(tmp_path)
    assert "restore.json" in refused.value.fact


# --- what was shown is what is restored ------------------------------------------------------------------------------


def unit_arguments(*words: str, plan: Plan | None = None, shown: int = 0) -> list[str]:
    return restore_options.settled(restore_options.parser().parse_args(words), plan, shown)


def plan_of(backup: Backup, last_life: datetime | None = None) -> Plan:
    return Plan(backup, None, None, "3.8.8", "readable", last_life, last_life)  # type: ignore[arg-type]


def test_the_unit_restores_what_was_shown() -> None:
    """Minutes may pass at the question, and another backup, or another 2h, is newer by then."""
    shown = plan_of(made("20261121T101200Z", "far"), NOON)
    for which in (["--latest"], ["--before", "2h"], ["--id", "2026"], ["--latest", "--from", "all"]):
        assert unit_arguments(*which, "--without-safety-backup", "--json", "--drain", "5", plan=shown) == [
            *("--id", "20261121T101200Z", "--from", "far", "--outage-since", NOON.isoformat()),
            *("--without-safety-backup", "--json", "--drain", "5.0"),
        ]
    # Postgres was down: when the world was last heard of is found out then.
    assert unit_arguments("--latest", plan=plan_of(made("20261121T101200Z"))) == [
        "--id", "20261121T101200Z", "--from", "local"
    ]  # fmt: skip


def test_what_nobody_was_shown_is_passed_on_as_it_was_said() -> None:
    for words in (
        ["--latest", "--from", "far", "--run-late"],
        ["--outage-since", "2h", "--before", "04:30", "--new-cluster"],
        ["--id", "2026", "--with-files", "--initial"],
    ):
        assert sorted(unit_arguments(*words, "--yes")) == sorted(words)
    assert unit_arguments("--undo", "--yes", "--json", shown=7) == ["--undo", "--shown", "7", "--json"]


def test_every_option_reaches_the_unit_or_is_of_the_front() -> None:
    front = {"list", "resume", "drop_previous", "dry_run", "yes", "in_unit", "by_systemd", "shown"}
    everything = {"latest": [], "id": ["x"], "before": ["2h"], "undo": [], "repository": ["x"], "outage_since": ["2h"]}
    for name in set(vars(restore_options.parser().parse_args([]))) - front:
        option = {"repository": "--from"}.get(name, f"--{name.replace('_', '-')}")
        value = everything.get(name, ["5"] if name in ("drain", "image") else [])
        assert option in unit_arguments(option, *value), name


def test_workers_that_do_not_run_are_said() -> None:
    assert restore_words.workers_of(2, []) == "2 workers are back."
    assert restore_words.workers_of(0, ["prefect-worker@a.service", "prefect-worker@b.service"]) == (
        "0 workers are back. 2 do not run, and did not before: prefect-worker@a.service, prefect-worker@b.service;"
        " start them: systemctl start prefect-worker@a.service prefect-worker@b.service"
    )
    assert restore_words.workers_of(1, ["prefect-worker@b.service"]) == (
        "1 worker is back. 1 does not run, and did not before: prefect-worker@b.service;"
        " start it: systemctl start prefect-worker@b.service"
    )


# --- which repositories ----------------------------------------------------------------------------------------------


def test_a_name_of_repositories_means_the_same_everywhere() -> None:
    far = [{"name": "far", "repository": "/far"}, {"name": "s3", "repository": "/s3"}]
    known = settings.parse(json.dumps(LEAST | {"offsite": far}))
    for name, meant in (
        (None, ["local"]),
        ("local", ["local"]),
        ("s3", ["s3"]),
        ("off-site", ["far", "s3"]),
        ("offsite", ["far", "s3"]),
        ("all", ["local", "far", "s3"]),
    ):
        assert [one.name for one in repositories.find(known, name)] == meant, name
    for name in ("moon", "off-site"):
        with pytest.raises(Failure) as refused:
            repositories.find(settings.parse(json.dumps(LEAST)), name)
        assert refused.value.fact == f'there is no repository "{name}"; there are: local'
        assert refused.value.code is Code.NOT_FOUND


class PlayedRepository:
    """A repository with some backups, or none that opens."""

    def __init__(self, name: str, *identities: str, broken: str = "") -> None:
        self.name, self._backups, self._broken = name, [made(one, name) for one in identities], broken
        self.is_local = name == "local"

    def open(self) -> None:
        if self._broken:
            raise Failure(Code.WRONG_KEY, self._broken)

    def backups(self) -> list[Backup]:
        self.open()
        return self._backups


def test_a_repository_that_does_not_open_hides_no_other() -> None:
    said = io.StringIO()
    broken = PlayedRepository("local", broken="it does not open")
    far = PlayedRepository("far", "20261121T111200Z")
    assert [one.repository for one in repositories.backups([broken, far], Report(said))] == ["far"]
    assert said.getvalue() == "not in the list: it does not open\n"
    with pytest.raises(Failure, match="it does not open"):
        repositories.backups([broken], Report(said))


def test_the_list_shows_all_of_them(tmp_path: Path) -> None:
    many = [made(f"202611{day:02}T{hour:02}1200Z") for day in (20, 21) for hour in range(24)]
    assert restore_words.table_of(many, tmp_path, NOON).row_count == len(many) == 48


# --- the lock --------------------------------------------------------------------------------------------------------


def test_who_is_at_work_is_known(tmp_path: Path) -> None:
    assert lock.holder(tmp_path) is None
    with lock.only_one(tmp_path, "a restore"):
        assert lock.holder(tmp_path) == "a restore"
        with pytest.raises(Failure, match=r"a restore .* has been at work"), lock.only_one(tmp_path, "a backup"):
            pass
    assert lock.holder(tmp_path) is None


def test_who_only_asks_whether_the_lock_is_held_fails_no_backup(tmp_path):
    with open(tmp_path / "lock", "a+") as asked:
        fcntl.flock(asked, fcntl.LOCK_EX)
        threading.Timer(0.05, lambda: fcntl.flock(asked, fcntl.LOCK_UN)).start()
        with lock.only_one(tmp_path, "a backup"):
            pass


# --- a person says stop ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_restore_is_stopped_once_and_its_taking_back_is_not(number: signal.Signals) -> None:
    before, said, taken_back = signal.getsignal(number), io.StringIO(), False
    with pytest.raises(Interrupted, match=number.name), stoppable(Report(said)):
        try:
            signal.raise_signal(number)
        finally:
            signal.raise_signal(number)
            taken_back = True
    assert taken_back
    assert said.getvalue() == "      The short stop is under way and ends by itself in seconds; not stopping now.\n"
    assert signal.getsignal(number) == before


def test_the_short_stop_is_not_stopped() -> None:
    said = io.StringIO()
    with stoppable(Report(said)) as stop:
        stop.put_off()
        signal.raise_signal(signal.SIGTERM)
        # The terminal may go at any time.
        signal.raise_signal(signal.SIGHUP)
    assert said.getvalue().count("not stopping now") == 1


# --- the settings --------------------------------------------------------------------------------------------------

LEAST = {"kit": "1", "endpoint": {"url": "https://x", "user": "backups", "password_file": "/p", "ca_file": "/c"}}


def test_the_least_settings_are_enough_and_full_ones_come_back() -> None:
    least = settings.parse(json.dumps(LEAST))
    assert least.keep == settings.Keep()
    full = dataclasses.asdict(least) | {"offsite": [{"name": "a", "repository": "/b", "environment": {"K": "v"}}]}
    assert settings.parse(json.dumps(full)).offsite == [settings.Offsite("a", "/b", {"K": "v"})]


@pytest.mark.parametrize(
    ("change", "fact"),
    [
        ({"jobs": "2"}, 'jobs is "2", but must be a whole number from 0 up'),
        ({"jobs": True}, "jobs is true, but must be a number"),
        ({"reserve_mb": -1}, "reserve_mb is -1, but must be a whole number from 0 up"),
        ({"keep": {"yearly": 1}}, "keep.yearly is not a setting"),
        ({"offsite": [{"name": "a"}]}, "offsite[0].repository is missing"),
        (
            {"offsite": [{"name": "a", "repository": "/b", "prune": 1}]},
            "offsite[0].prune is 1, but must be true or false",
        ),
        ({"offsite": {}}, "offsite is {}, but must be a list"),
        ({"endpoint": []}, "endpoint is [], but must be an object"),
        ({"maxage": 1}, "maxage is not a setting"),
    ],
)
def test_a_setting_that_is_wrong_is_named(change: dict, fact: str) -> None:
    with pytest.raises(Failure) as refused:
        settings.parse(json.dumps(LEAST | change))
    assert refused.value.code is Code.SETTINGS
    assert refused.value.fact == f"/etc/prefect/backups/settings.json: {fact}"


def test_every_exit_code_is_its_own() -> None:
    assert len({code.value for code in Code}) == len(list(Code))
    assert min(code.value for code in Code) > 2


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0.4, "0 s"), (119, "119 s"), (150, "2 minutes"), (7100, "118 minutes"), (7300, "2 hours"), (400000, "5 days")],
)
def test_a_duration_is_said_in_words(seconds: float, words: str) -> None:
    assert duration(seconds) == words


def test_a_size_is_said_in_words() -> None:
    assert [size(count) for count in (0, 400_000, 73_000_000, 12_340_000_000)] == [
        "0.0 MB",
        "0.4 MB",
        "73 MB",
        "12.3 GB",
    ]


# --- the newest backup that a server can serve -------------------------------------------------------------------


class _Repository:
    """As much of a repository as a plan reads: its name, and the manifest of each backup."""

    name = "local"

    def __init__(self, tables: dict[str, set[str]]) -> None:
        self._tables = tables

    def read(self, backup: Backup, _: str) -> str:
        facts = manifest.Manifest(
            id=backup.id, created="", kind=backup.kind, kit="", prefect="3.8.8", postgres="17", revision="r",
            tables={name: manifest.Table(1) for name in self._tables[backup.id]},
            database_bytes=0, dump_bytes=0, dump_seconds=0.0,
        )  # fmt: skip
        return facts.to_json()


def _planner(monkeypatch, lost: dict[str, set[str]]) -> plan.Planner:
    """The backups of HOURLY, each of a database that had lost some tables."""
    whole = set(schema.TABLES)
    repository = _Repository({one.id: whole - lost.get(one.id, set()) for one in HOURLY})
    stack = SimpleNamespace(prefect_version=lambda: "3.8.8")
    planner = plan.Planner(Host(SimpleNamespace(), None, stack, None))
    monkeypatch.setattr(plan.repositories, "find", lambda settings, name: [repository])
    monkeypatch.setattr(plan.manifest, "path", lambda settings: "/manifest")
    monkeypatch.setattr(plan.repositories, "backups", lambda repositories, report: HOURLY)
    return planner


def test_the_newest_is_the_newest_of_a_database_with_all_its_tables(monkeypatch):
    """A restore's safety backup of the very damage is the newest of all."""
    made = _planner(monkeypatch, {HOURLY[0].id: {"flow_run"}})._choose(plan.Request())
    assert made.backup is HOURLY[1]
    assert made.notes == [f"{HOURLY[0].id} ({HOURLY[0].kind}) is newer, but the database had no table flow_run then"]
    assert _planner(monkeypatch, {})._choose(plan.Request()).backup is HOURLY[0]


def test_an_id_is_what_was_asked_for(monkeypatch):
    made = _planner(monkeypatch, {HOURLY[0].id: {"flow_run"}})._choose(plan.Request(id=HOURLY[0].id))
    assert (made.backup, made.notes) == (HOURLY[0], [])


def test_backups_that_all_lack_a_table_are_refused_with_the_way_to_one(monkeypatch):
    planner = _planner(monkeypatch, {one.id: {"log"} for one in HOURLY})
    with pytest.raises(Failure) as refusal:
        planner._choose(plan.Request())
    assert refusal.value.code is Code.NOT_FOUND
    assert "there is no backup of a database with all its tables" in refusal.value.fact
    assert f"prefect-restore --id {HOURLY[-1].id}" in refusal.value.hint


def test_the_tables_are_those_that_the_server_is_watched_for():
    source = (Path(__file__).resolve().parents[2] / "compose/server/health.py").read_text()
    module = ast.parse(source)
    [listed] = [
        node.value
        for node in module.body
        if isinstance(node, ast.Assign) and [getattr(one, "id", "") for one in node.targets] == ["TABLES"]
    ]
    assert ast.literal_eval(listed) == schema.TABLES


def test_settings_that_an_older_version_wrote_are_read():
    """An upgrade that was cut off before it wrote them must not keep anybody from restoring."""
    older = {"door" if name == "endpoint" else name: value for name, value in LEAST.items()}
    assert settings.parse(json.dumps(older)) == settings.parse(json.dumps(LEAST))


@pytest.mark.parametrize(
    ("before", "live", "words", "migrated", "raises"),
    [
        ("new", "new", "", False, False),
        (None, "new", "", False, False),
        ("old", "new", "", True, False),
        # After a way back of an upgrade by the image alone: this Prefect serves the newer schema, and cannot migrate it.
        ("new", "old", "CommandError: Can't locate revision identified by 'new'", True, False),
        ("old", "new", "another error", True, True),
    ],
)
def test_the_database_before_is_brought_to_this_prefect(before, live, words, migrated, raises):
    done = []

    def migrate(database, image):
        assert image == ""
        done.append(database)
        if words:
            raise Failure(Code.RESTORE, words, "")

    postgres = SimpleNamespace(
        revision=lambda name: {PREVIOUS: before, LIVE: live}[name],
        databases=lambda: {LIVE, PREVIOUS},
        # The migrations are the server's role's.
        hand_over=lambda name: done.append(name) if name != PREVIOUS else None,
    )
    host = SimpleNamespace(postgres=postgres, stack=SimpleNamespace(migrate=migrate), report=Report.silent())
    with pytest.raises(Failure) if raises else contextlib.nullcontext():
        undo.migrate(host)
    assert bool(done) is migrated
