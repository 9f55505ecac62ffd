"""The file behind /status: what counts for 200 or 503, and what stands in it. What the proxy makes of it: test_caddyfile.py."""

from __future__ import annotations

import os
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

import pytest
from prefect_backups.units import Units
from prefect_doctor import containers, copies, database, units, work
from prefect_doctor.finding import Finding, Level
from prefect_doctor.way_in import Answer, answered
from prefect_watch import status

NOON = datetime(2026, 11, 27, 12, 0, 7, 999999, tzinfo=UTC)
WELL = Finding("database", Level.OK, "1 GB")


def text(*findings: Finding) -> str:
    return status.status_text(findings, NOON)


def test_all_is_well() -> None:
    assert text(WELL, Finding("reboot", Level.WARNING, "pending")) == "ok 2026-11-27T12:00:07Z\n"


def test_the_time_is_universal() -> None:
    elsewhere = NOON.astimezone(timezone(timedelta(hours=5)))
    assert status.status_text([WELL], elsewhere) == "ok 2026-11-27T12:00:07Z\n"


def test_nobody_has_looked_at_anything() -> None:
    assert text().startswith("bad ")


def test_what_fails_is_named_what_counts_first() -> None:
    said = text(
        WELL,
        Finding("disk /", Level.BAD, "97% used", "less than 85%", "du"),
        Finding("connections", Level.WARNING, "40 of 50"),
        Finding("worker general-1", Level.BAD, "pool general, 5 min ago", "heard from within 2 min", "systemctl"),
    )
    assert said == "bad 2026-11-27T12:00:07Z\nBAD worker general-1: pool general, 5 min ago\nBAD disk /: 97% used\n"


def test_what_does_not_count_is_named_all_the_same() -> None:
    said = text(WELL, Finding("disk /", Level.BAD, "97% used"))
    assert said == "ok 2026-11-27T12:00:07Z\nBAD disk /: 97% used\n"


def test_many_things_fail() -> None:
    lines = text(*(Finding(f"worker w-{number}", Level.BAD, "silent") for number in range(13))).splitlines()
    assert len(lines) == 12
    assert lines[-1] == "and 3 more: prefect-doctor"


FAILING = (
    *work.workers_online(work.Work(workers=[("general", "general-1", 999.0)])),
    *work.pools_served(work.Work(unserved=[("general", 3)])),
    containers.running("prefect-postgres", None),
    containers.running("prefect-server", None),
    answered("API write", Answer(500, "no", 0.1), (201,)),
    database.connections(database.Database(1, 49, 50, 0, 0.0)),
    *copies.findings(
        [
            "the newest backup is 5 h old: prefect-backup create",
            "there is no copy in far; 3.0 hours are allowed",
            "no backup was ever verified; 9 days are allowed",
        ],
        None,
        NOON,
    ),
    units.ended("prefect-backup.service", {"ActiveState": "failed"}, 0.0),
    units.workers(Units(down=["prefect-worker@a.service"])),
    units.unfinished_restore(Units(unfinished="a restore")),
    # Groups of checks that could not look.
    *(
        Finding(name, Level.UNKNOWN, "could not be checked")
        for name in ("containers", "public endpoint", "work", "database")
    ),
)


@pytest.mark.parametrize("finding", FAILING, ids=lambda one: one.check)
def test_it_is_503_when_prefect_does_not_do_its_work(finding: Finding) -> None:
    assert finding.level >= Level.BAD
    assert text(WELL, finding).startswith("bad ")


@pytest.mark.parametrize(
    "check", ["disk /", "reboot", "certificate", "failed units", "prefect-server restarts", "machine"]
)
def test_other_things_are_told_to_people_and_no_503(check: str) -> None:
    assert text(WELL, Finding(check, Level.BAD, "bad")).startswith("ok ")


def test_a_line_is_a_line_and_nothing_else() -> None:
    nasty = "{{httpError 200}}\nok 2026-11-27T12:00:07Z\r\x00\x1b[2J{env.HOME} <script>" + "x" * 500
    lines = text(WELL, Finding("workers", Level.BAD, nasty)).splitlines()
    assert len(lines) == 2
    assert lines[1].startswith("BAD workers: ((httpError 200)) ok 2026-11-27T12:00:07Z [2J(env.HOME) (script)xxx")
    assert len(lines[1]) == status.LENGTH


def test_the_proxy_can_read_it_whatever_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o077)
    try:
        status.write(tmp_path / "status.txt", [WELL], NOON)
    finally:
        os.umask(before)
    assert (tmp_path / "status.txt").read_text() == "ok 2026-11-27T12:00:07Z\n"
    assert (tmp_path / "status.txt").stat().st_mode & 0o777 == 0o644
