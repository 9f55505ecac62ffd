"""scripts/bench upgrade: the downtime that a client has seen, the goals, and the server of the ways without the kit."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import yaml

from tests.lab.asking import Answer, Downtime, downtime

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "scripts"))
import _bench_upgrade  # noqa: E402
from _bench_upgrade import goals  # noqa: E402


def every(seconds: float, first: float, last: float) -> list[Answer]:
    """Successes from one time to another."""
    return [Answer(first + number * seconds, True) for number in range(round((last - first) / seconds) + 1)]


def seen(longest: float, total: float = 0.0, failed: int = 0) -> Downtime:
    return Downtime(longest, total, 100, failed)


@pytest.mark.parametrize(
    ("answers", "longest", "total"),
    [
        # A success each half second: nobody notices.
        (every(0.5, 0.5, 9.5), 0.5, 0),
        # Away twice, for 4 and for 2 seconds, whether requests failed then or only took so long.
        ([*every(0.5, 0.5, 2), *every(0.5, 6, 7), *every(0.5, 9, 9.5)], 4, 6),
        ([*every(0.5, 0.5, 2), Answer(4, False), *every(0.5, 6, 9.5)], 4, 4),
        # A moment of one second is not noticed, and is the longest all the same.
        ([*every(0.5, 0.5, 4), *every(0.5, 5, 9.5)], 1, 0),
        # Away at the beginning, and at the end.
        (every(0.5, 3, 9.5), 3, 3),
        ([*every(0.5, 0.5, 8), Answer(9, False)], 2, 2),
        # Never there.
        ([Answer(2, False), Answer(8, False)], 10, 10),
        ([], 10, 10),
    ],
)
def test_downtime_is_the_time_without_a_success(answers: list[Answer], longest: float, total: float) -> None:
    found = downtime(answers, 0, 10)
    assert (found.longest, found.total) == (pytest.approx(longest), pytest.approx(total))
    assert (found.tried, found.failed) == (len(answers), sum(not one.well for one in answers))


def test_the_goals_are_held_against_the_least_of_each_that_the_plain_ways_cost() -> None:
    plain = [seen(30, 30, 9), seen(12, 36, 3)]
    assert [one.met for one in goals(seen(4, 10), plain)] == [True, True, True]
    assert [(one.measured, one.met) for one in goals(seen(4.8, 15, 1), plain)] == [
        ("0.40 x", False),
        ("0.50 x", False),
        ("1", False),
    ]


def test_the_goals_hold_where_nobody_was_away() -> None:
    assert [one.measured for one in goals(seen(0.2), [seen(0.8)])] == ["0.25 x", "0.0 s, and 0 s without the kit", "0"]
    assert [one.met for one in goals(seen(0.2), [seen(0.8)])] == [True, True, True]
    assert [one.met for one in goals(seen(1.5, 1.5), [seen(0.8)])] == [False, False, True]


def test_what_the_plain_server_has_set_is_set_in_compose_yml_too() -> None:
    """A name that is misspelt would be ignored, and the server would not migrate."""
    services = yaml.safe_load((ROOT / "compose/compose.yml").read_text())["services"]
    (name, server), *others = _bench_upgrade.override()["services"].items()
    assert (name, others) == ("server", [])
    assert server.keys() <= services["server"].keys()
    assert server["environment"].keys() <= services["server"]["environment"].keys()
    assert services["server"]["environment"]["PREFECT_SERVER_DATABASE_MIGRATE_ON_START"] == "false"
