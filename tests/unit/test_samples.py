"""The ring of samples: it is bounded, bears what a host does to a file and a clock, and never is in anybody's way."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from prefect_backups.errors import Code, Failure
from prefect_backups.host import Host
from prefect_backups.progress import Report
from prefect_backups.settings import Endpoint, Settings
from prefect_doctor import registry, samples
from prefect_doctor.cli import tried
from prefect_doctor.database import Database
from prefect_doctor.finding import Level
from prefect_doctor.machine import Disk, Machine
from prefect_doctor.registry import Seen
from prefect_doctor.samples import EVERY, KEPT, KEPT_BYTES, MORE, MOST_BYTES, Sample, line_of, sample_of
from prefect_doctor.work import Work

from tests.unit.week import GB, NOW, a_week

MACHINE = Machine([Disk("/", 40 * GB, 25 * GB, 1000, 900)], 4 * GB, 3 * GB, 0.01, 0, True)
WORK = Work(late=2, latest=400.4, at_work=5, ended=[("COMPLETED", 12), ("FAILED", 1)])
DATABASE = Database(123_456_789, 12, 100, 0, 0.2)


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings("0", Endpoint("https://prefect.example.com", "doctor", "password", "ca"), state=str(tmp_path))


def record(settings: Settings, now: float) -> bool:
    return samples.record(settings, WORK, DATABASE, MACHINE, now)


def text(settings: Settings) -> bytes:
    return samples.file_of(settings).read_bytes()


def test_what_is_recorded_is_read(settings):
    assert record(settings, NOW)
    (found,) = samples.read(settings, NOW + 60)
    assert (found.at, found.disks, found.memory) == (NOW, {"/": (15 * GB, 40 * GB)}, (GB, 4 * GB))
    assert (found.waited_memory, found.database, found.ended) == (0.01, 123_456_789, {"COMPLETED": 12, "FAILED": 1})
    assert (found.late, found.at_work) == ((2, 400.0), 5)
    # This machine's own.
    assert found.cpu is not None
    assert 0 <= found.cpu <= 1
    assert samples.file_of(settings).stat().st_mode & 0o777 == 0o600


def test_what_could_not_be_looked_at_is_not_known(settings):
    assert samples.record(settings, None, None, None, NOW)
    (found,) = samples.read(settings, NOW)
    assert (found.disks, found.memory, found.database, found.ended, found.late, found.at_work) == ({}, *[None] * 5)


def test_one_every_five_minutes(settings):
    # A timer that calls each minute, never quite at the same second.
    taken = [minute for minute in range(31) if record(settings, NOW + 60 * minute + (minute % 3) * 0.4)]
    assert taken == [0, 5, 10, 15, 20, 25, 30]


def test_the_watch_keeps_what_its_checks_have_found(settings, monkeypatch):
    def down(_: object) -> Database:
        raise Failure(Code.NO_DATABASE, "Postgres does not let us in", "")

    for module, look in ((registry.work, WORK), (registry.machine, MACHINE)):
        monkeypatch.setattr(module, "look", lambda _, look=look: look)
    monkeypatch.setattr(registry.database, "look", down)
    monkeypatch.setattr(registry.machine, "findings", lambda _: [])
    seen = Seen()
    found = registry.groups(settings, Host.here(settings, Report.silent()), seen)
    for name in ("work", "database", "machine"):
        tried(name, found[name].look)
    assert seen == Seen(WORK, None, MACHINE)
    assert samples.record(settings, seen.work, seen.database, seen.machine, NOW)
    assert {one.level for one in found["growth"].look()} == {Level.OK}


def test_a_line_is_read_as_it_was_written():
    for one in [*a_week(40), Sample(NOW), Sample(NOW, {'/a "b" ü\n': (0, GB)})]:
        line = line_of(one)
        assert b"\n" not in line
        assert line_of(sample_of(line)) == line


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"\0" * 200,
        b"hello",
        b"\xff\xfe{}",
        b"[]",
        b"{}",
        b"7",
        b"[" * 100_000,
        line_of(a_week(1)[0])[:-20],
        line_of(a_week(1)[0])[20:],
        line_of(a_week(1)[0]).replace(b'"at":', b'"at":NaN,"x":'),
        line_of(a_week(1)[0]).replace(b'"database":', b'"database":-1,"x":'),
        line_of(a_week(1)[0]).replace(b'"database":', b'"database":1e999,"x":'),
        line_of(a_week(1)[0]).replace(b'"cpu":', b'"cpu":"1","x":'),
        line_of(a_week(1)[0]).replace(b'"disk":{', b'"disk":{"/x":[1],'),
    ],
    ids=range(15),
)
def test_a_line_that_is_torn_or_foreign_is_skipped(settings, line):
    assert sample_of(line) is None
    # Nor does it spoil the one that comes after it, or hide the one before.
    record(settings, NOW)
    with samples.file_of(settings).open("ab") as file:
        file.write(line)
    assert not record(settings, NOW + 60)
    assert record(settings, NOW + EVERY)
    assert [one.at for one in samples.read(settings, NOW + EVERY)] == [NOW, NOW + EVERY]


def test_a_clock_that_jumps(settings):
    times = [NOW, NOW + EVERY]
    assert all(record(settings, at) for at in times)
    # Ahead by a year, and back; after a boot without a clock, in 1970.
    assert record(settings, NOW + 365 * 86400)
    assert record(settings, NOW + 2 * EVERY)
    assert record(settings, 60.0)
    assert not record(settings, 120.0)
    assert record(settings, NOW + 3 * EVERY)
    assert [one.at for one in samples.read(settings, NOW + 3 * EVERY)] == [NOW + index * EVERY for index in range(4)]


def test_only_the_last_days_are_read(settings):
    record(settings, NOW - 8 * 86400)
    record(settings, NOW)
    assert [one.at for one in samples.read(settings, NOW)] == [NOW]


def test_of_those_that_are_left_out_the_newest_is_none(settings):
    for index in range(10):
        record(settings, NOW + index * EVERY)
    found = samples.read(settings, NOW + 9 * EVERY, each=4)
    assert [(one.at - NOW) / EVERY for one in found] == [1, 5, 9]


def test_the_file_is_bounded(settings, monkeypatch):
    monkeypatch.setattr(samples, "KEPT", 20)
    monkeypatch.setattr(samples, "MORE", 5)
    sizes = []
    for index in range(60):
        record(settings, NOW + index * EVERY)
        sizes.append(text(settings).count(b"\n"))
    assert max(sizes) == 25
    assert [one.at for one in samples.read(settings, NOW + 60 * EVERY)][-20:] == [
        NOW + index * EVERY for index in range(40, 60)
    ]


def test_seven_days_are_kept_in_less_than_the_size_that_is_allowed():
    week = [line_of(one) for one in a_week()]
    assert max(map(len, week)) * (KEPT + MORE) < MOST_BYTES
    assert samples.trimmed(week, week[0]) is None
    # Many file systems with long names: less than seven days, but no more bytes.
    long = [b"x" * 1000] * 2000
    anew = samples.trimmed(long, b"new")
    assert anew is not None
    assert anew[-1] == b"new"
    assert KEPT_BYTES - 1001 < sum(len(one) + 1 for one in anew) <= KEPT_BYTES


def test_a_file_that_is_not_ours_is_replaced(settings):
    samples.file_of(settings).write_bytes(b"x" * MOST_BYTES)
    assert record(settings, NOW)
    assert len(text(settings)) <= MOST_BYTES
    assert [one.at for one in samples.read(settings, NOW)] == [NOW]


def test_a_full_disk_loses_a_sample_and_nothing_else(settings, monkeypatch):
    record(settings, NOW)
    before, write = text(settings), os.write
    with monkeypatch.context() as full:
        # The kernel writes what there is room for.
        full.setattr(samples.os, "write", lambda descriptor, data: write(descriptor, data[:50]))
        assert record(settings, NOW + EVERY)
        assert text(settings) == before
        full.setattr(samples.os, "write", lambda *_: os.pread(-1, 1, 0))
        assert record(settings, NOW + EVERY)
        assert text(settings) == before
        # As it is when the file would be written anew.
        full.setattr(samples, "KEPT", 0)
        full.setattr(samples, "MORE", 0)
        full.setattr("prefect_backups.files.os.fsync", lambda _: os.pread(-1, 1, 0))
        assert record(settings, NOW + EVERY)
        assert text(settings) == before
    assert [path.name for path in Path(settings.state).iterdir()] == ["samples.jsonl"]
    assert record(settings, NOW + 2 * EVERY)
    assert [one.at for one in samples.read(settings, NOW + 2 * EVERY)] == [NOW, NOW + 2 * EVERY]


def test_no_place_to_write_to_is_no_failure(settings, tmp_path):
    samples.file_of(settings).mkdir()
    assert record(settings, NOW)
    assert samples.read(settings, NOW) == []


def test_cpu():
    stat = "cpu  100 10 50 800 20 5 5 10 0 0\ncpu0 1 2 3\n"
    assert samples.ticks_of(stat, "4f0c2b1a-1234\n") == (180, 1000, "4f0c2b1a")
    assert samples.ticks_of("intr 5\n", "") is None
    boot = "4f0c2b1a"
    assert samples.busy_share((180, 1000, boot), (480, 2000, boot)) == 0.3
    # The first, and after a reboot: since boot.
    assert samples.busy_share(None, (180, 1000, boot)) == 0.18
    assert samples.busy_share((5000, 9000, "other"), (180, 1000, boot)) == 0.18
    assert samples.busy_share((5000, 9000, "other"), (1800, 10000, boot)) == 0.18
    # Idle time that goes back a little.
    assert samples.busy_share((180, 1000, boot), (300, 1010, boot)) == 1


def test_swap():
    assert samples.swap_of("MemTotal: 1 kB\nSwapTotal:  2048 kB\nSwapFree:  512 kB\n") == (1536 * 1024, 2048 * 1024)
    assert samples.swap_of("MemTotal: 1 kB\n") is None
