"""prefect-restore's pure decisions: which backup, which renames, what a journal and the settings may say."""

from __future__ import annotations

import dataclasses
import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from prefect_backups import choose, settings
from prefect_backups.errors import Code, Failure
from prefect_backups.journal import Journal
from prefect_backups.progress import duration, size
from prefect_backups.restic import Backup
from prefect_backups.restore import possible

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


# --- the settings --------------------------------------------------------------------------------------------------

LEAST = {"kit": "1", "door": {"url": "https://x", "user": "backups", "password_file": "/p", "ca_file": "/c"}}


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
        ({"door": []}, "door is [], but must be an object"),
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
