"""prefect-watch: whom it tells what, and when; pure decisions, and messages that could not be delivered."""

from __future__ import annotations

import json
import os
import re
import threading
from dataclasses import fields, replace
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from prefect_backups.errors import Code, Failure
from prefect_backups.meanings import MEANINGS, WHOLE, meaning_of
from prefect_backups.settings import Endpoint, Settings
from prefect_backups.unit_names import UNITS
from prefect_doctor import units
from prefect_doctor.finding import Finding, Level
from prefect_doctor.registry import Group, Seen
from prefect_watch import alerts, elsewhere, flow_runs, memory, message, outbox, pause, send
from prefect_watch import round as one_round
from prefect_watch import settings as contract
from prefect_watch.alerts import CALM, Looked, News, Problem
from prefect_watch.flow_runs import Ended, Told
from prefect_watch.memory import Memory
from prefect_watch.pause import Pause, Stack
from prefect_watch.settings import FlowRuns

OK, WARNING, BAD, UNKNOWN = Level
ROOT = Path(__file__).resolve().parents[2]
ROLE = ROOT / "ansible/roles/watch"
BEGAN = 1_800_000_000.0


# --- when a person is told -------------------------------------------------------------------------------------------


class Server:
    """Looked at each minute; gives what a person is told, as (minute, what, checks)."""

    def __init__(self) -> None:
        self.problems: dict[str, Problem] = {}
        self.minute = 0
        self.told: list[tuple[int, str, list[str]]] = []

    def look(self, minutes: int = 1, quiet: bool = False, failed: bool = False, **levels: Level) -> None:
        findings = [Finding(check, level, "measured") for check, level in levels.items()]
        for _ in range(minutes):
            now = BEGAN + 60 * self.minute
            self.problems = alerts.seen(self.problems, {"group": Looked(findings, failed)}, now)
            if not quiet:
                news, self.problems = alerts.news(self.problems, now, 24)
                for what in ("began", "lasting", "over"):
                    if problems := getattr(news, what):
                        self.told.append((self.minute, what, [one.check for one in problems]))
            self.minute += 1


def test_what_is_well_is_not_told_or_remembered():
    server = Server()
    server.look(100, api=OK)
    assert (server.told, server.problems) == ([], {})


def test_what_becomes_bad_is_told_at_the_second_look_and_later_that_it_is_well_again():
    server = Server()
    server.look(10, api=BAD)
    assert server.told == [(1, "began", ["api"])]
    server.look(10, api=OK)
    assert server.told[1:] == [(10 + CALM / 60, "over", ["api"])]
    server.look(200, api=OK)
    assert len(server.told) == 2 and server.problems == {}


def test_a_restart_is_not_told():
    """It falls on one look at most."""
    server = Server()
    for _ in range(5):
        server.look(1, api=BAD)
        server.look(20, api=OK)
    assert server.told == []


def test_a_warning_is_told_when_it_lasts_and_once():
    server = Server()
    server.look(29, disk=WARNING)
    assert server.told == []
    server.look(3 * 1440, disk=WARNING)
    assert server.told == [(30, "began", ["disk"])]
    # And when it becomes more, at once.
    server.look(1, disk=BAD)
    assert server.told[1:] == [(29 + 3 * 1440, "began", ["disk"])]


def test_what_stays_bad_is_told_once_a_day():
    server = Server()
    server.look(3 * 1440, api=BAD)
    assert [(minute, what) for minute, what, _ in server.told] == [(1, "began"), (1441, "lasting"), (2881, "lasting")]


def test_what_comes_and_goes_is_told_less_and_less():
    """Four minutes bad, six well, for six hours: well again is said later and later, and soon no more."""
    server = Server()
    for _ in range(36):
        server.look(4, api=BAD)
        server.look(6, api=OK)
    assert [what for _, what, _ in server.told] == ["began", "over", "began"]
    # Bad every two minutes is one problem from the first on.
    server = Server()
    server.look(5, api=BAD)
    for _ in range(60):
        server.look(2, api=OK)
        server.look(2, api=BAD)
    assert [what for _, what, _ in server.told] == ["began"]


def test_what_follows_from_it_is_in_the_same_message():
    """And what comes later is one more; a warning waits for its time."""
    server = Server()
    server.look(1, postgres=BAD)
    server.look(1, postgres=BAD, server=BAD, disk=WARNING)
    server.look(1, postgres=BAD, server=BAD, disk=WARNING, ui=BAD)
    assert server.told == [(1, "began", ["postgres", "server"])]
    server.look(3, postgres=BAD, server=BAD, disk=WARNING, ui=BAD)
    assert server.told[1:] == [(3, "began", ["ui"])]


def test_a_look_that_failed_says_nothing_of_its_checks():
    server = Server()
    server.look(5, rows=BAD)
    server.look(30, failed=True, group=UNKNOWN)
    assert [(what, checks) for _, what, checks in server.told] == [("began", ["rows"]), ("began", ["group"])]
    server.look(10, rows=OK)
    assert server.told[-1][1:] == ("over", ["rows", "group"])


def test_what_is_no_longer_looked_at_is_well():
    """A worker that was taken out of the inventory."""
    server = Server()
    server.look(5, worker=BAD)
    server.look(10, other=OK)
    assert server.told[-1][1:] == ("over", ["worker"])


def test_what_is_in_between_stays_as_it_was():
    given = Finding("unit", OK, "is at work", pending=True)
    told = replace(Problem("group", "unit", BAD, "failed", since=BEGAN, looks=9), told=BEGAN)
    assert alerts.seen({"unit": told}, {"group": Looked([given])}, BEGAN + 9999) == {"unit": told}
    assert alerts.seen({}, {"group": Looked([given])}, BEGAN) == {}


def test_what_is_still_bad_after_a_pause_is_told_then():
    server = Server()
    server.look(60, quiet=True, api=BAD)
    server.look(1, api=BAD)
    assert server.told == [(60, "began", ["api"])]
    # And what began and ended in it, never.
    server = Server()
    server.look(60, quiet=True, api=BAD)
    server.look(30, api=OK)
    assert server.told == []


def test_a_clock_that_was_set_back_silences_nobody():
    problem = Problem("group", "api", BAD, "x", since=BEGAN + 10**6, looks=5)
    news, _ = alerts.news({"api": problem}, BEGAN, 24)
    assert news.began == [problem]


def test_the_worst_of_what_is_not_well():
    problems = {
        str(level): replace(Problem("g", str(level), level, ""), well=well)
        for level, well in ((WARNING, 0.0), (BAD, BEGAN), (UNKNOWN, 0.0))
    }
    assert alerts.worst(problems) is UNKNOWN
    assert alerts.worst({}) is OK


# --- what a person reads ---------------------------------------------------------------------------------------------


def test_a_message_has_the_fact_since_when_and_what_to_do():
    api = Problem("public endpoint", "API", BAD, "no answer", "docker logs prefect-server", since=BEGAN, looks=3)
    disk = Problem("machine", "disk /", WARNING, "86% used", "du -xhd2 /", since=BEGAN - 3600, looks=60)
    unit = Problem("units", "prefect-backup.service", BAD, "failed: x", "df -h", "ERROR: y\nHINT: z", since=BEGAN)
    news = News([disk, api, unit])
    assert message.title(news, "vps") == "vps: bad: API: no answer (and 2 more)"
    assert message.body(news, [], "vps", BEGAN + 120) == (
        "BAD: API: no answer\n  since 2027-01-15 08:00 UTC (2 minutes)\n  what to do: docker logs prefect-server\n\n"
        "BAD: prefect-backup.service: failed: x\n  since 2027-01-15 08:00 UTC (2 minutes)\n  what to do: df -h\n"
        "  last log lines:\n    ERROR: y\n    HINT: z\n\n"
        "WARNING: disk /: 86% used\n  since 2027-01-15 07:00 UTC (62 minutes)\n  what to do: du -xhd2 /\n\n"
        "All problems, on vps as root: prefect-doctor --bad\nNo alerts while you work on it: prefect-watch pause 1h\n"
    )


def test_a_message_that_all_is_well_again():
    api = Problem("public endpoint", "API", BAD, "no answer", since=BEGAN, well=BEGAN + 600, told=BEGAN + 120)
    disk = Problem("machine", "disk /", WARNING, "86% used", since=BEGAN)
    swap = Problem("machine", "swap", WARNING, "60%", since=BEGAN, well=BEGAN + 7200, told=BEGAN + 1800)
    news = News(over=[api, swap])
    assert message.title(news, "vps") == "vps: resolved: API, swap"
    assert message.body(news, [disk], "vps", BEGAN + 900) == (
        "Resolved:\n  API (was bad for 10 minutes)\n  swap (was a warning for 2 hours)\n\nReported before, and still so: disk /\n\n"
        "All problems, on vps as root: prefect-doctor --bad\n"
    )


def test_what_stays_bad_is_so_for_any_time():
    """watch_again_hours need not be a day."""
    api = Problem("way in", "API", BAD, "no answer", since=BEGAN, told=BEGAN)
    assert message.body(News(lasting=[api]), [], "vps", BEGAN + 7200).startswith(
        "Reported before, and still so:\nBAD: API: no answer\n  since 2027-01-15 08:00 UTC (2 hours)\n"
    )


def test_a_title_is_one_short_line():
    api = Problem("public endpoint", "API", BAD, "no answer " * 30, since=BEGAN)
    assert len(message.title(News([api]), "vps")) < 120
    assert "\n" not in message.title(News([replace(api, check="work pool a\nBcc: x@example.org")]), "vps")
    many = [replace(api, check=f"a check of a long name {number}") for number in range(20)]
    assert message.title(News(over=many), "vps") == "vps: resolved: 20 checks"


@pytest.mark.parametrize("code", list(Code))
def test_each_exit_code_has_words_for_a_person(code):
    """In every unit that is told of, what is true of earlier backups among them; and a row in docs/restore.md."""
    meaning = MEANINGS[code]
    for unit in UNITS:
        shown = {"ActiveState": "failed", "Result": "exit-code", "ExecMainStatus": str(code.value), "lines": "last"}
        found = units.ended(unit, shown, 0.0)
        assert found.measured == f"failed: {meaning.what} (result exit-code, exit code {code.value}). {meaning.earlier}"
        assert found.mend.startswith(meaning.do)
    doubtful = {Code.WRONG_KEY, Code.NO_REPOSITORY, Code.DAMAGED, Code.MISMATCH}
    assert (meaning.earlier != WHOLE) is (code in doubtful)
    rows = re.findall(r"^\| ([0-9, ]+) \|", (ROOT / "docs/restore.md").read_text(), re.MULTILINE)
    assert str(code.value) in {number.strip() for row in rows for number in row.split(",")}


def test_other_ends_have_words_too():
    for status in ("0", "1", "2", "9", "255", "130", "?", ""):
        assert meaning_of("u.service", {"Result": "exit-code", "ExecMainStatus": status}).do
    killed = meaning_of("u.service", {"Result": "signal", "ExecMainStatus": "9"})
    assert killed.what == "it was ended (signal)" and killed.do.endswith("systemctl start u.service")
    assert meaning_of("u.service", {"Result": "exit-code", "ExecMainStatus": "1"}).earlier == (
        "Earlier backups were not touched."
    )


# --- flow runs -------------------------------------------------------------------------------------------------------


def ended(number: int, state: str = "Crashed", deployment: str = "nightly") -> Ended:
    return Ended(
        f"s{number}", f"run-{number}", deployment, "load", state, BEGAN + number, "killed", f"id-{number}", ["a", "b"]
    )


def test_flow_runs_are_told_in_one_message_and_the_rest_is_counted():
    title, body = flow_runs.text([ended(number) for number in range(22)], Told(), "vps", "https://p.example.org", BEGAN)
    assert title == "vps: 22 flow runs Crashed"
    assert body.startswith(
        "2027-01-15 08:00:00 UTC  Crashed: run-0 (deployment load/nightly)\n  https://p.example.org/runs/flow-run/id-0\n"
        "  killed\n    a\n    b\n"
    )
    assert "run-20" not in body and body.endswith("and 2 more: https://p.example.org/runs\n")
    title, body = flow_runs.text([ended(1, "Failed", "")], Told(), "vps", "https://p.example.org", BEGAN)
    assert title == "vps: 1 flow run Failed" and "(flow load)" in body


def test_flow_runs_are_told_so_often_an_hour_and_then_in_a_digest():
    wanted, told, sent = FlowRuns(messages_per_hour=2), Told(), []
    for minute in range(120):
        now = BEGAN + 60 * minute
        found = [ended(minute)] if minute < 30 else []
        before = told
        told, due = flow_runs.decide(told, found, wanted, now)
        if due:
            sent.append((minute, flow_runs.text(found, before, "vps", "https://p", now)))
    assert [minute for minute, _ in sent] == [0, 1, 60]
    title, body = sent[2][1]
    assert title == "vps: 28 flow runs Crashed"
    assert "28 x Crashed deployment load/nightly" in body and "In the last 58 minutes" in body
    assert told.counted == {}


def test_flow_runs_are_looked_at_since_the_last_time_and_told_once():
    told, due = flow_runs.decide(Told(), [ended(1)], FlowRuns(), BEGAN + 60)
    assert due and "s1" in told.seen
    # A state may bear an earlier moment than that of the look which missed it.
    assert flow_runs.after(told, BEGAN + 120) == BEGAN + 60 - flow_runs.OVERLAP
    # A host that was off for a week does not tell of a week; a clock that was set back loses nothing.
    assert flow_runs.after(told, BEGAN + 7 * 86400) == BEGAN + 7 * 86400 - flow_runs.LOOK_BACK
    assert flow_runs.after(told, BEGAN - 600) == BEGAN - 600 - flow_runs.OVERLAP
    later, _ = flow_runs.decide(told, [], FlowRuns(), BEGAN + 86400)
    assert later.seen == {}


def test_a_flow_run_is_told_once_whatever_time_its_state_bears():
    """What has been seen is remembered for as long as it is found again."""
    told, due = flow_runs.decide(Told(), [replace(ended(1), when=BEGAN - 86400)], FlowRuns(), BEGAN)
    assert due
    for minute in range(1, 6):
        told, _ = flow_runs.decide(told, [], FlowRuns(), BEGAN + 60 * minute)
        assert flow_runs.after(told, BEGAN + 60 * minute) > BEGAN - 86400 and "s1" in told.seen


def test_more_flow_runs_than_are_read_at_once_are_told_at_the_next_look():
    told, _ = flow_runs.decide(Told(until=BEGAN), [], FlowRuns(), BEGAN + 60)
    crashed = [ended(number) for number in range(flow_runs.MOST)]
    for minute in range(2, 10):
        told, _ = flow_runs.decide(told, crashed, FlowRuns(), BEGAN + 60 * minute)
    assert flow_runs.after(told, BEGAN + 600) == BEGAN + 60 - flow_runs.OVERLAP
    told, _ = flow_runs.decide(told, crashed[1:], FlowRuns(), BEGAN + 600)
    assert told.until == BEGAN + 600


def test_flow_runs_of_a_pause_are_told_as_a_digest_at_its_end():
    told, due = Told(), False
    for minute in range(120):
        told, due = flow_runs.decide(told, [ended(minute)], FlowRuns(), BEGAN + 60 * minute, quiet=True)
        assert not due
    before, now = told, BEGAN + 7200
    told, due = flow_runs.decide(told, [], FlowRuns(), now)
    title, body = flow_runs.text([], before, "vps", "https://p", now)
    assert due and told.counted == {}
    assert title == "vps: 120 flow runs Crashed" and "120 x Crashed deployment load/nightly" in body


def test_names_and_messages_of_any_length_are_short_lines():
    long = "x\ny " * 2500
    found = flow_runs._ended("s", long, long, long, "Crashed", datetime.fromtimestamp(BEGAN, UTC), long, "id")
    _, body = flow_runs.text([found] * 30, Told(), "vps", "https://p", BEGAN)
    assert len(body.splitlines()) == 3 * flow_runs.NAMED + 1 and max(map(len, body.splitlines())) < 500


# --- the server of another host --------------------------------------------------------------------------------------

NOW = datetime(2027, 1, 15, 8, 2, tzinfo=UTC)
UNHEARD = "BAD alert delivery: 3 waiting since 2027-01-15 07:00 UTC"


@pytest.mark.parametrize(
    ("status", "text", "bad"),
    [
        (200, "ok 2027-01-15T08:01:30Z\n", {}),
        # What it can say itself, its own watch tells.
        (503, "bad 2027-01-15T08:01:30Z\nBAD API: 500\n", {}),
        (0, "ConnectTimeout: timed out", {"server p": "does not answer (ConnectTimeout: timed out)"}),
        (401, "A user name and a password are needed.", {"server p": "refuses the account of this host (401)"}),
        (502, "", {"server p": "answers 502"}),
        (404, "not found", {"server p": "answers 404"}),
        (
            503,
            "The checks of this server have not run in the last 150 s. On it: systemctl status prefect-watch.timer\n",
            {"prefect-watch of p": "its checks have not run in the last 150 s"},
        ),
        (200, "ok 2027-01-15T07:01:30Z\n", {"prefect-watch of p": "its checks have not run in the last 150 s"}),
        (503, f"bad 2027-01-15T08:01:30Z\n{UNHEARD}\n", {"alert delivery of p": UNHEARD}),
        (200, f"ok 2027-01-15T08:01:30Z\n{UNHEARD}\n", {"alert delivery of p": UNHEARD}),
    ],
)
def test_the_server_of_another_host(status, text, bad):
    found = elsewhere.findings("p", status, text, NOW)
    assert {one.check: one.measured for one in found if one.level is not OK} == bad
    assert all(bool(one.mend) is (one.level is not OK) for one in found)


def test_what_cannot_be_asked_is_not_well_again():
    """The watch of the server has ended, and half an hour later the server is gone."""
    known: dict[str, Problem] = {}
    old = f"ok {datetime(2027, 1, 15, 7, tzinfo=UTC):%Y-%m-%dT%H:%M:%SZ}"
    for minute in range(60):
        status, text = (503, old) if minute < 30 else (0, "ConnectTimeout")
        looks = {"server": Looked(elsewhere.findings("p", status, text, NOW))}
        known = alerts.seen(known, looks, BEGAN + 60 * minute)
        news, known = alerts.news(known, BEGAN + 60 * minute, 24)
        assert not news.over
    assert {check: one.well for check, one in known.items()} == {"prefect-watch of p": 0.0, "server p": 0.0}


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (
            "HTTPSConnectionPool(…): Failed to resolve 'p' ([Errno -2] Name or service not known)",
            ": Name or service not known",
        ),
        ("… [Errno 111] Connection refused'))", ": Connection refused"),
        (
            "[SSL: CERTIFICATE_VERIFY_FAILED] certificate verify failed: certificate has expired (_ssl.c:1016)",
            ": certificate verify failed: certificate has expired",
        ),
        ("something else", ""),
    ],
)
def test_why_a_server_does_not_answer(error, words):
    assert elsewhere.why(error) == words


# --- pauses ----------------------------------------------------------------------------------------------------------


def test_a_pause(tmp_path):
    path = tmp_path / "watch" / "paused.json"
    assert pause.read(path, BEGAN) is None
    pause.begin(path, BEGAN + 3600, "a new disk")
    assert pause.read(path, BEGAN) == Pause(BEGAN + 3600, "a new disk")
    assert pause.read(path, BEGAN + 3601) is None
    # A clock that was set back by a year makes no pause of a year.
    assert pause.read(path, BEGAN - 365 * 86400) is None
    pause.end(path)
    pause.end(path)
    assert pause.read(path, BEGAN) is None
    path.write_text("{")
    assert pause.read(path, BEGAN) is None


@pytest.mark.parametrize(("text", "seconds"), [("45s", 45), ("30m", 1800), ("2h", 7200), ("7d", 604800)])
def test_how_long_a_pause_is(text, seconds):
    assert pause.seconds_of(text) == seconds


@pytest.mark.parametrize("text", ["", "2", "h", "2 h", "8d", "0h", "-1h", "forever"])
def test_a_pause_that_is_none(text):
    with pytest.raises(Failure) as caught:
        pause.seconds_of(text)
    assert caught.value.fact == f"a pause of {text!r} is not possible"


@pytest.mark.parametrize(
    ("given", "stack", "held", "why"),
    [
        (None, "active", None, ""),
        (Pause(BEGAN + 9, "a new disk"), "active", None, "paused (a new disk)"),
        (Pause(BEGAN + 9), "failed", None, "paused"),
        (None, Stack("activating", since=BEGAN - 60), None, "prefect-stack is activating"),
        (None, Stack("reloading", since=BEGAN - 60), None, "prefect-stack is reloading"),
        # One that has failed is tried again for ever; and one that hangs.
        (None, Stack("activating", restarts=1, since=BEGAN - 5), None, ""),
        (None, Stack("activating", since=BEGAN - 400), None, ""),
        (None, "failed", None, ""),
        (None, "active", ("a backup", BEGAN), ""),
        (None, "active", ("a rehearsal of an upgrade", BEGAN), ""),
        (None, "active", ("a restore", BEGAN - 60), "a restore is running"),
        (None, "active", ("an upgrade of Postgres", BEGAN - 60), "an upgrade of Postgres is running"),
        # One that hangs is told of.
        (None, "active", ("a restore", BEGAN - 5 * 3600), ""),
    ],
)
def test_why_nobody_is_told(given, stack, held, why):
    assert pause.reason(given, held, stack if isinstance(stack, Stack) else Stack(stack), BEGAN) == why


def test_what_systemd_says_of_the_stack():
    said = "NRestarts=13\nActiveState=activating\nStateChangeTimestamp=@1795769000\n"
    assert pause.stack_of(said) == Stack("activating", 13, 1795769000.0)
    assert pause.stack_of("") == Stack("active", 0, 0.0)


def test_what_takes_the_server_away_calls_itself_so():
    """What holds the tools' lock says what it does in the source, and nothing else holds the two together."""
    source = "".join(path.read_text() for path in (ROOT / "backups").rglob("*.py"))
    for what in pause.AWAY:
        assert re.search(rf'only_one\([^\n]*"{what}"|(WHAT|RESUMPTION) = "{what}', source), what


# --- what is remembered ----------------------------------------------------------------------------------------------


def test_what_is_remembered_comes_back_and_the_newest_counts(tmp_path):
    known = Memory(
        BEGAN,
        {"api": Problem("public endpoint", "api", BAD, "x", since=BEGAN, told=BEGAN, told_level=BAD)},
        Told(BEGAN, {"s": BEGAN}, [BEGAN], {"Crashed flow a": 2}, BEGAN),
        {"backups": Looked([Finding("backups", WARNING, "y")], failed=True)},
        {"backups": BEGAN},
    )
    run, disk = tmp_path / "run" / "memory.json", tmp_path / "disk" / "memory.json"
    assert memory.save(known, [run, disk]) == ""
    assert memory.load([run, disk]) == known
    assert memory.save(replace(known, at=BEGAN + 60), [disk]) == ""
    assert memory.load([run, disk]).at == BEGAN + 60
    # A full disk, or a torn file, is survived by the other place.
    disk.write_text('{"at": 9e99, ')
    assert memory.load([run, disk]) == known


def test_what_another_version_has_written_is_forgotten(tmp_path):
    path = tmp_path / "memory.json"
    for text in ("[]", "{}", '{"at": 1, "problems": {"a": {"new": 1}}, "told": {}, "looks": {}, "looked": {}}'):
        path.write_text(text)
        assert memory.load([path]) == Memory()


def test_that_nothing_can_be_remembered_is_said(tmp_path):
    (tmp_path / "file").touch()
    said = memory.save(Memory(), [tmp_path / "file" / "memory.json"])
    assert said.endswith("Not a directory") or said.endswith("File exists")
    assert memory.save(Memory(), [tmp_path / "file" / "x.json", tmp_path / "y.json"]) == ""


# --- settings --------------------------------------------------------------------------------------------------------


def test_what_people_do_not_want_to_be_told_of():
    looks = {
        "work": Looked([Finding("worker gpu-1", BAD, "x"), Finding("worker a", BAD, "x")]),
        "api": Looked([], True),
    }
    left = one_round.of_interest(looks, ["worker gpu-*", "disk *"])
    assert [one.check for one in left["work"].findings] == ["worker a"] and left["api"].failed


def test_the_role_writes_what_the_program_reads():
    written: dict[str, Any] = yaml.safe_load((ROLE / "vars/main.yml").read_text())["__watch_settings"]
    defaults = yaml.safe_load((ROLE / "defaults/main.yml").read_text())
    elsewhere_written = yaml.safe_load((ROLE / "vars/main.yml").read_text())["__watch_settings_elsewhere"]
    assert set(written) | {"server"} == {field.name for field in fields(contract.Watch)}
    assert set(elsewhere_written) <= {field.name for field in fields(contract.Watch)}
    assert set(elsewhere_written["server"]) == {field.name for field in fields(contract.Server)}
    assert set(written["flow_runs"]) == {field.name for field in fields(FlowRuns)}
    assert FlowRuns().states == defaults["watch_flow_run_states"]
    assert FlowRuns().messages_per_hour == defaults["watch_flow_run_messages_per_hour"]
    assert contract.Watch().again_hours == defaults["watch_again_hours"]


def test_settings_that_are_wrong_are_named(tmp_path, monkeypatch):
    monkeypatch.setattr(contract, "FILE", tmp_path / "settings.json")
    with pytest.raises(Failure, match="cannot be read"):
        contract.load()
    (tmp_path / "settings.json").write_text(json.dumps({"flow_runs": {"states": "Failed"}}))
    with pytest.raises(Failure) as caught:
        contract.load()
    assert caught.value.fact.endswith('settings.json: flow_runs.states is "Failed", but must be a list')
    assert caught.value.hint.endswith("site.yml --tags watch")


def test_a_message_that_fails_names_no_address():
    urls = ["json://user:hush@127.0.0.1:9/x", "nonsense"]
    assert send.send(urls, "t", "b") == (urls, "2 of 2 addresses failed: number 1 (json), number 2 (not an address)")


@pytest.mark.parametrize(("more", "messages"), [("", 1), ("?overflow=split", 3)])
def test_a_message_is_no_longer_than_its_service_takes(monkeypatch, more, messages):
    """Discord refuses one of more than 2,000 characters; what somebody has chosen in the address holds."""
    posted: list[str] = []

    def post(url: str, data: str, **_: Any) -> Any:
        posted.append(json.loads(data)["content"])
        return SimpleNamespace(status_code=204, headers={}, content=b"", text="")

    monkeypatch.setattr("requests.post", post)
    url = f"discord://{'1' * 18}/{'t' * 64}/{more}"
    assert send.send([url], "vps: bad: disk /", "a long line " * 400) == ([], "")
    assert len(posted) == messages and max(map(len, posted)) <= 2000
    assert "vps: bad: disk /" in posted[0]


# --- messages that could not be delivered ----------------------------------------------------------------------------


class People:
    """Some of whom can be reached."""

    def __init__(self, *away: str) -> None:
        self.away, self.told = list(away), []

    def __call__(self, urls, title, body):
        self.told += [(url, title) for url in urls if url not in self.away]
        failed = [url for url in urls if url in self.away]
        return failed, f"{len(failed)} failed" if failed else ""


def test_a_message_that_was_delivered_is_not_kept(tmp_path):
    people = People()
    assert outbox.deliver(tmp_path, ["a", "b"], "t", "x", people) == ""
    assert people.told == [("a", "t"), ("b", "t")]
    assert outbox.waiting(tmp_path) == []


def test_a_message_that_was_not_delivered_waits_and_is_told_once_to_each(tmp_path, monkeypatch):
    people = People("b")
    kept = []
    said = outbox.deliver(tmp_path, ["a", "b"], "t", "x", people, kept=lambda: kept.append(outbox.waiting(tmp_path)))
    assert said == "1 failed"
    # It was there before anything was tried, so a death in between loses nothing.
    assert [message.tries for _, message in kept[0]] == [0]
    ((path, message),) = outbox.waiting(tmp_path)
    assert (message.title, message.tries, message.error) == ("t", 1, "1 failed")
    assert path.stat().st_mode & 0o777 == 0o600
    assert not {"a", "b"} & set(message.told)
    # Not every minute, for days.
    assert outbox.again(tmp_path, ["a", "b"], people) == (0, 1)
    now = message.tried
    monkeypatch.setattr(outbox.time, "time", lambda: now + outbox.FIRST + 1)
    assert outbox.again(tmp_path, ["a", "b"], people) == (0, 1)
    people.away = []
    monkeypatch.setattr(outbox.time, "time", lambda: now + 3 * outbox.LAST)
    assert outbox.again(tmp_path, ["a", "b"], people) == (1, 0)
    assert people.told == [("a", "t"), ("b", "t")]


def test_a_full_disk_ends_no_look_and_tells_nobody_twice(tmp_path, monkeypatch):
    people = People("b")
    outbox.deliver(tmp_path, ["a", "b"], "t", "x", people)
    now = outbox.time.time()
    monkeypatch.setattr(outbox.time, "time", lambda: now + outbox.LAST)

    def full(path: Path, text: str) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as disk:
        disk.setattr(outbox, "write_whole", full)
        people.away = []
        assert [outbox.again(tmp_path, ["a", "b"], people) for _ in range(3)] == [(0, 1)] * 3
        # What is new, is told all the same.
        assert outbox.deliver(tmp_path, ["a", "b"], "new", "x", people) == ""
    assert outbox.again(tmp_path, ["a", "b"], people) == (1, 0)
    assert people.told == [("a", "t"), ("a", "new"), ("b", "new"), ("b", "t")]


def test_an_address_that_does_not_answer_keeps_no_look_waiting(tmp_path, monkeypatch):
    for number in range(50):
        outbox.deliver(tmp_path, ["a"], f"{number}", "x", People("a"))
    now, clock = outbox.time.time(), [0.0]
    monkeypatch.setattr(outbox.time, "time", lambda: now + outbox.LAST + clock[0])
    monkeypatch.setattr(outbox.time, "monotonic", lambda: clock[0])
    tried: list[str] = []

    def hangs(urls, title, body):
        clock[0] += 8
        tried.append(title)
        return urls, "1 failed"

    for _ in range(60):
        began = clock[0]
        assert outbox.again(tmp_path, ["a"], hangs) == (0, 50)
        assert clock[0] - began < outbox.PATIENCE + 8
    # All have their turn.
    assert len(set(tried)) == 50


def test_a_notice_of_days_ago_is_still_delivered_and_one_of_last_month_is_not(tmp_path, monkeypatch):
    people = People("a")
    outbox.deliver(tmp_path, ["a"], "t", "x", people)
    people.away = []
    now = outbox.time.time()
    monkeypatch.setattr(outbox.time, "time", lambda: now + 3 * 86400)
    assert outbox.again(tmp_path, ["a"], people) == (1, 0)
    people.away = ["a"]
    outbox.deliver(tmp_path, ["a"], "t", "x", people)
    monkeypatch.setattr(outbox.time, "time", lambda: now + 40 * 86400)
    assert outbox.again(tmp_path, ["a"], people) == (0, 0)


def test_what_a_person_has_put_beside_the_messages_stays(tmp_path):
    (tmp_path / "outbox").mkdir()
    for name in ("note.txt", "mine.json"):
        (tmp_path / "outbox" / name).write_text("mine")
    outbox.deliver(tmp_path, ["a"], "t", "x", People())
    assert outbox.again(tmp_path, ["a"], People()) == (0, 0)
    assert sorted(path.name for path in (tmp_path / "outbox").iterdir()) == ["mine.json", "note.txt"]


# --- which checks are looked at --------------------------------------------------------------------------------------


def test_dear_checks_are_looked_at_less_often_and_soon_again_when_something_is_bad():
    level, looked = [OK], []

    def backups():
        looked.append(round(now - BEGAN))
        return [Finding("backups", level[0], "x")]

    def others():
        return [Finding("api", OK, "x")]

    known = Memory()
    for minute in range(40):
        now = BEGAN + 60 * minute
        level[0] = BAD if 16 <= minute < 20 else OK
        seen = one_round.look(known, {"backups": Group(backups, 900), "others": Group(others)}, now)
        assert "others" in seen and ("backups" in seen) is (looked[-1] == 60 * minute)
        assert set(known.looks) == {"backups", "others"}
    # Each quarter of an hour; and each two minutes from when it is seen to be bad.
    assert looked == [0, 900, 1800]
    level[0], looked[:] = BAD, []
    known = Memory()
    for minute in range(6):
        now = BEGAN + 60 * minute
        one_round.look(known, {"backups": Group(backups, 900)}, now)
    assert looked == [0, 120, 240]


def test_a_group_of_checks_that_hangs_hides_nothing_of_the_others(monkeypatch):
    monkeypatch.setattr(one_round, "PATIENCE", 0.05)
    gone = threading.Event()
    groups = {
        "machine": Group(lambda: [Finding("disk", OK, "x")] * gone.wait(10)),
        "api": Group(lambda: [Finding("API", BAD, "x")]),
        "automations": Group(list),
    }
    found = one_round.look(Memory(), groups, BEGAN)
    gone.set()
    (hangs,) = found["machine"].findings
    assert (hangs.check, hangs.level, found["machine"].failed) == ("machine", UNKNOWN, True)
    assert [one.check for one in found["api"].findings] == ["API"]
    assert found["automations"] == Looked([])


def test_that_the_watch_itself_fails_is_told_once_in_a_while_and_again_after_it_was_well(tmp_path, monkeypatch):
    monkeypatch.setattr(memory, "RUN", tmp_path / "memory.json")
    told: list[str] = []
    monkeypatch.setattr(send, "tell", lambda watch, state, title, body: told.append(title))
    mark = tmp_path / "failed"

    def fails(at: float) -> int:
        one_round.tell_of_own_failure(contract.Watch(), tmp_path, ValueError("x"), at)
        return len(told)

    assert fails(BEGAN) == 1
    os.utime(mark, (BEGAN, BEGAN))
    assert fails(BEGAN + 60) == 1
    # It comes and goes: nobody wants a message each minute.
    one_round.forget_own_failure(BEGAN + 240)
    assert fails(BEGAN + 300) == 1
    one_round.forget_own_failure(BEGAN + 7200)
    assert fails(BEGAN + 7260) == 2


def test_figures_are_written_only_where_metrics_are_wanted(tmp_path, monkeypatch):
    """Debian's node exporter, which somebody had before, has the same directory, and answers everybody."""
    written: list[Path] = []
    for name, path in (("METRICS", "kit.prom"), ("METRICS_WANTED", "unit")):
        monkeypatch.setattr(one_round, name, tmp_path / path)
    monkeypatch.setattr(one_round.status, "PATH", tmp_path / "status.txt")
    monkeypatch.setattr(one_round.figures, "write", lambda path, *_: written.append(path))
    monkeypatch.setattr(one_round.samples, "record", lambda *_: True)
    for wanted in ([], [tmp_path / "kit.prom"]):
        assert one_round._publish(Memory(), Seen(), Settings("", Endpoint("", "", "", "")), None, BEGAN) == []
        assert written == wanted and (tmp_path / "status.txt").exists()
        (tmp_path / "unit").touch()
    role = yaml.safe_load((ROOT / "ansible/roles/metrics/vars/main.yml").read_text())
    monkeypatch.undo()
    assert role["__metrics_last"] == str(one_round.METRICS_WANTED)
    assert role["__metrics_figures"] == str(one_round.METRICS)


def test_people_are_told_of_what_was_bad_before_there_were_any(tmp_path, monkeypatch):
    monkeypatch.setattr(memory, "RUN", tmp_path / "memory.json")
    titles: list[str] = []

    def sent(urls: list[str], title: str, body: str) -> tuple[list[str], str]:
        titles.append(title)
        return [], ""

    monkeypatch.setattr(send, "send", sent)
    monkeypatch.setattr(one_round, "hostname", lambda: "vps")
    known, people = Memory(), contract.Watch(notify_urls=["json://x"])
    for minute in range(20):
        now, watch = BEGAN + 60 * minute, people if minute >= 10 else contract.Watch()
        level = BAD if minute < 15 else OK
        looks = {"group": Looked([Finding("api", level, "x"), Finding("disk", BAD if minute < 5 else OK, "y")])}
        known.problems = alerts.seen(known.problems, looks, now)
        assert one_round._tell_of_problems(known, watch, tmp_path, now) == ""
        known.at = now
        memory.save(known, [memory.RUN])
        known = memory.load([memory.RUN])
    # Of what was over before, they are told neither.
    assert titles == ["vps: bad: api: x"]
