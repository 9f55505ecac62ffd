"""prefect-audit: what it takes out of the journal, how it keeps that, and what it shows."""

from __future__ import annotations

import argparse
import io
import json
import os
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from access import audit as written
from prefect_audit import choose, cli, journal, keep, words
from prefect_audit.choose import Wanted, chosen, moment
from prefect_audit.journal import Line
from prefect_backups import build
from prefect_backups.errors import Code, Failure
from prefect_backups.progress import Report
from prefect_doctor import audit as check
from prefect_doctor.finding import Level

NOW = datetime(2026, 11, 27, 12, tzinfo=UTC)


def line(place: int, time: str = "2026-11-27T10:00:00.000+00:00", **more: Any) -> Line:
    entry = {
        "audit": 1,
        "time": time,
        "account": "ada",
        "role": "admin",
        "method": "DELETE",
        "path": "/api/variables/name/x",
    }
    return Line(f"s=1;i={place}", {**entry, "kind": "variable", "name": "x", "status": 204, **more})


def as_journal(one: Line) -> str:
    """As `journalctl --output=json` prints it."""
    return json.dumps({"MESSAGE": json.dumps(one.entry), "__CURSOR": one.cursor, "__REALTIME_TIMESTAMP": "1"})


# --- what is taken out of the journal -------------------------------------------------------------------------------------


def test_a_line_of_the_server_is_read_as_it_was_written():
    entry = written.Entry(
        "2026-11-27T10:00:00+00:00", "ada", "admin", "POST", "/api/x", "", "", "", 201, "", "192.0.2.1"
    )
    numbers = written.numbers()
    texts = [entry.line(next(numbers)) for _ in range(2)]
    assert [json.loads(text)["number"] for text in texts] == [1, 2]
    found = journal.of_journal(json.dumps({"MESSAGE": texts[0], "__CURSOR": "c"}))
    assert found and found.cursor == "c" and found.entry["account"] == "ada" and found.entry["status"] == 201
    assert journal.of_file(found.kept()) == found
    assert journal.FIRST == written.FIRST


@pytest.mark.parametrize(
    "message",
    [
        "Uvicorn running",
        ' {"audit": 1, "time": "x"}',
        '{"time": "x", "audit": 1}',
        '{"audit": 1, "time": "x"} and more',
        '{"audit": 1, "time": 7}',
        '{"audit": 1, ',
        [1, 2],
        None,
    ],
)
def test_what_is_no_whole_line_is_none(message):
    assert journal.of_journal(json.dumps({"MESSAGE": message, "__CURSOR": "c"})) is None
    assert journal.of_journal("") is None and journal.of_journal("[]") is None


def test_only_the_docker_engine_is_believed():
    """A field without an underscore is whatever its writer says."""
    command = journal.command("s=1;i=2")
    assert {"_SYSTEMD_UNIT=docker.service", "_UID=0", "CONTAINER_NAME=prefect-server", "PRIORITY=6"} <= set(command)
    assert "+" not in command and "--cursor=s=1;i=2" in command
    assert not any(word.startswith("--cursor") for word in journal.command(""))


@pytest.fixture
def journalctl(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """One that prints what it is told to."""
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    (tmp_path / "bin").mkdir()

    def say(*lines: Line, code: int = 0) -> None:
        (tmp_path / "bin" / "said").write_text("".join(as_journal(one) + "\n" for one in lines))
        program = tmp_path / "bin" / "journalctl"
        program.write_text(
            f'#!/bin/sh\necho "$@" >>{tmp_path}/asked\ncat {tmp_path}/bin/said\necho oh >&2\nexit {code}\n'
        )
        program.chmod(0o755)

    return say


def test_a_journal_that_cannot_be_read(journalctl):
    journalctl(code=1)
    with pytest.raises(Failure, match='the journal cannot be read: "oh"'):
        list(journal.after(""))


# --- how it is kept -------------------------------------------------------------------------------------------------------


def collect(directory: Path, days: float = 365, now: datetime = NOW) -> int:
    return keep.collect(directory, days, now)


def test_nothing_is_lost_and_nothing_doubled(tmp_path, journalctl):
    directory = tmp_path / "audit"
    journalctl(line(1), line(2))
    assert collect(directory) == 2
    # The cursor's own line comes once more.
    journalctl(line(2), line(3), line(4, "2026-12-01T00:00:00.000+00:00"))
    assert collect(directory) == 2
    assert [one.cursor for one in keep.kept(directory)] == [f"s=1;i={number}" for number in (1, 2, 3, 4)]
    assert [path.name for path in keep.months(directory)] == ["2026-11.jsonl", "2026-12.jsonl"]
    asked = (tmp_path / "asked").read_text().splitlines()
    assert "--cursor" not in asked[0] and "--cursor=s=1;i=2" in asked[1]
    for path in (directory, *keep.months(directory)):
        assert path.stat().st_mode & 0o077 == 0
    # A clock that was set back: the newest file still ends with the last line.
    journalctl(line(5))
    collect(directory)
    assert keep.newest(directory)[-1].cursor == "s=1;i=5"
    journalctl(line(5))
    assert collect(directory) == 0


@pytest.mark.parametrize(
    "torn", ['{"audit": 1, "ti', '{"audit": 1, "time": "2026-11-27T10:00:00+00:00", "cursor": "s=1;i=2"}']
)
def test_a_line_that_was_cut_off_is_read_again(tmp_path, journalctl, torn):
    journalctl(line(1))
    collect(tmp_path / "audit")
    path = tmp_path / "audit" / "2026-11.jsonl"
    with path.open("a") as file:
        file.write(torn)
    journalctl(line(1), line(2))
    assert collect(tmp_path / "audit") == 1
    assert [one.cursor for one in keep.kept(tmp_path / "audit")] == ["s=1;i=1", "s=1;i=2"]
    assert all(json.loads(text) for text in path.read_text().splitlines())


def test_a_file_with_nothing_but_half_a_line(tmp_path, journalctl):
    directory = tmp_path / "audit"
    journalctl(line(1))
    collect(directory)
    (directory / "2026-12.jsonl").write_text('{"audit"')
    journalctl(line(1), line(2, "2026-12-01T00:00:00.000+00:00"))
    assert collect(directory) == 1
    assert [one.cursor for one in keep.kept(directory)] == ["s=1;i=1", "s=1;i=2"]


def test_what_is_too_old_goes(tmp_path, journalctl):
    directory = tmp_path / "audit"
    (directory / "restored").mkdir(parents=True)
    names = ["2025-10.jsonl", "2025-11.jsonl", "2025-12.jsonl", "2025-10.jsonl.mine", "x2025-10.jsonl"]
    for place in (directory, directory / "restored"):
        for name in names:
            (place / name).write_text(line(1).kept())
    journalctl()
    collect(directory, days=365)
    # The last line of 2025-11 may be 362 days old.
    for place in (directory, directory / "restored"):
        assert sorted(path.name for path in place.iterdir() if path.name in names) == sorted(names[1:])
    collect(directory, days=300)
    assert [path.name for path in keep.months(directory)] == []


def test_a_disk_that_is_full(tmp_path, journalctl, monkeypatch):
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(keep, "append", full)
    journalctl(line(1))
    with pytest.raises(Failure, match=r"the audit cannot be kept in .*: No space left on device"):
        collect(tmp_path / "audit")
    assert not (tmp_path / "audit" / keep.COLLECTED).exists()


def test_what_a_backup_had_is_put_beside_what_is_there(tmp_path):
    """Files of the host are left alone: what it has not is put back, the same month included, and once."""
    here, came = tmp_path / "here", tmp_path / "came"
    (came / "restored").mkdir(parents=True)
    here.mkdir()
    (here / "2026-11.jsonl").write_text(line(9).kept())
    (came / "2026-11.jsonl").write_text(line(9).kept() + line(2).kept() + "torn")
    (came / "2026-10.jsonl").write_text(line(1, "2026-10-01T00:00:00.000+00:00").kept())
    (came / "restored" / "2026-10.jsonl").write_text(line(0, "2026-10-01T00:00:00.000+00:00").kept())
    assert keep.bring_back(here, came) == 3
    assert keep.bring_back(here, came) == 0
    assert (here / "2026-11.jsonl").read_text() == line(9).kept()
    assert {one.cursor for one in keep.kept(here)} == {"s=1;i=9", "s=1;i=2", "s=1;i=1", "s=1;i=0"}
    # Where to go on in the journal is what this host's own last line says.
    assert keep.newest(here)[-1].cursor == "s=1;i=9"


class Kept:
    """A repository with a backup that had such a directory, or whose data cannot be read."""

    def __init__(self, *lines: Line, failure: Failure | None = None) -> None:
        self.lines, self.failure, self.asked = lines, failure, ""

    def restore(self, backup: object, source: str, target: Path, advance: object) -> None:
        self.asked = source
        if self.failure:
            raise self.failure
        (target / "2026-11.jsonl").write_text("".join(one.kept() for one in self.lines))


def restored(directory: Path, repository: Kept, had: list[str]) -> str:
    """What a restore says of it; it never fails."""
    said = io.StringIO()
    host = SimpleNamespace(settings=SimpleNamespace(audit=str(directory)), report=Report(said))
    build.audit(host, SimpleNamespace(repository=repository, backup=None, manifest=SimpleNamespace(files=had)))  # type: ignore[arg-type]
    return said.getvalue()


def test_a_restore_puts_it_back_and_never_fails_for_it(tmp_path):
    directory = tmp_path / "audit"
    repository = Kept(line(1), line(2))
    assert restored(directory, repository, []) == repository.asked == ""
    assert restored(directory, repository, [str(directory)]).endswith("2 lines are new to this host\n")
    assert repository.asked == str(directory)
    assert sorted(path.name for path in directory.iterdir()) == ["restored"]
    text = restored(directory, Kept(failure=Failure(Code.DAMAGED, "it is damaged")), [str(directory)])
    assert text.endswith("the audit of before is not restored: it is damaged\n")


# --- what is shown ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        (("DELETE", "/api/deployments/1", "deployment", "etl/nightly"), "delete deployment etl/nightly"),
        (("PATCH", "/api/deployments/1", "deployment", "etl/nightly"), "change deployment etl/nightly"),
        (("POST", "/api/deployments/1/create_flow_run", "deployment", "etl/nightly"), "run deployment etl/nightly"),
        (("POST", "/api/deployments/1/pause_deployment", "deployment", "etl/n"), "pause deployment etl/n"),
        (("PATCH", "/api/deployments/1/schedules/2", "deployment", "etl/n"), "change a schedule of deployment etl/n"),
        (("POST", "/api/deployments/bulk_delete", "deployments", "a/b, c/d"), "delete deployments a/b, c/d"),
        (("POST", "/api/variables/", "variable", "{x}"), "create variable {x}"),
        (("POST", "/api/flow_runs/filter", "flow run", ""), "POST /api/flow_runs/filter"),
        (("GET", "/api/block_documents/1", "block", "secret/db"), "read block secret/db"),
        (("WS", "/api/events/in", "", ""), "WS /api/events/in"),
        (("PUT", "/api/admin/storage", "", ""), "PUT /api/admin/storage"),
    ],
)
def test_what_was_done_in_words(entry, said):
    assert words.what(dict(zip(("method", "path", "kind", "name"), entry, strict=True))) == said


def test_states_and_results_in_words():
    run = {"method": "POST", "path": "/api/flow_runs/1/set_state", "kind": "flow run", "name": "owl"}
    assert words.what({**run, "state": "CANCELLING"}) == "cancel flow run owl"
    assert words.what({**run, "state": "FAILED"}) == "set flow run owl to Failed"
    results = [words.result({"status": status}) for status in (201, 204, 404, 599, 0)]
    assert results == ["done", "done", "failed: 404 Not Found", "failed: 599", "no answer: it may be done"]
    assert words.result({"status": 403, "refused": "The role viewer may not."}) == "refused: The role viewer may not."


def test_a_time_that_a_person_types():
    def at(text: str) -> str:
        return moment(text, "--since", NOW)

    assert at("2h") == "2026-11-27T10:00:00.000+00:00"
    assert at("3d")[:10] == "2026-11-24" and at("2w")[:10] == "2026-11-13" and at("30m")[11:16] == "11:30"
    assert at("2026-11-01") == "2026-11-01T00:00:00.000+00:00"
    assert at("2026-11-01 14:30") == "2026-11-01T14:30:00.000+00:00"
    assert at("2026-11-01T14:30+02:00") == "2026-11-01T12:30:00.000+00:00"
    assert at("999999w")[:4] == "0001"
    with pytest.raises(Failure) as raised:
        at("yesterday")
    assert raised.value.fact == '--since is "yesterday", but must be a time or how long ago it was'


def test_which_lines_are_wanted():
    lines = [
        line(1, "2026-11-27T08:00:00.000+00:00"),
        line(2, "2026-11-27T09:00:00.000+00:00", account="eve", refused="no", status=403),
        line(3, "2026-11-27T10:00:00.000+00:00", kind="deployment", name="etl/nightly"),
        line(4, "2026-11-27T11:00:00.000+00:00"),
    ]

    def numbers(limit: int = 0, **wanted: Any) -> list[str]:
        return [one.cursor[-1] for one in chosen([lines[2], *lines], Wanted(**wanted), limit)]

    assert numbers() == ["1", "2", "3", "4"]
    assert numbers(limit=2) == ["3", "4"]
    assert numbers(account="eve") == numbers(refused=True) == ["2"]
    assert numbers(object="ETL/night") == numbers(object="delete deployment") == ["3"]
    assert numbers(since="2026-11-27T09:00", until="2026-11-27T10:00:00.000+00:00") == ["2"]


def test_lines_that_are_missing_are_counted():
    missing = choose.Missing()
    lines = [
        line(number, start=start, number=number) for start, number in (("a", 3), ("b", 1), ("a", 7), ("b", 2), ("a", 4))
    ]
    assert list(missing.through([*lines, line(9)])) == [*lines, line(9)]
    assert missing.count == 2


@pytest.fixture
def shown(
    tmp_path: Path, journalctl: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> Iterator[Callable[..., str]]:
    """What `prefect-audit` prints of one line that is kept and two that the journal has."""
    journalctl(line(1))
    collect(tmp_path / "audit")
    journalctl(line(1), line(2, account="eve\x1b[31m[b]"), line(3, account="ada"))

    def show(*arguments: str) -> str:
        options: argparse.Namespace = cli.parser().parse_args(arguments)
        assert cli.show(tmp_path / "audit", options, NOW) == 0
        return capsys.readouterr().out

    return show


def test_the_table(shown):
    text = shown()
    assert text.count("delete variable x") == 3 and text.splitlines()[0].split()[:2] == ["time", "(UTC)"]
    # What a terminal would obey is no part of it.
    assert "\x1b" not in text and "eve [31m[b]" in text
    assert "the newest 1; more: --limit 0" in shown("--limit", "1")
    assert shown("--account", "nobody") == "nothing of that kind\n"
    assert shown("show", "--object", "VARIABLE X").count("delete variable x") == 3


def test_as_json(shown):
    found = json.loads(shown("--json"))
    assert [one["account"] for one in found] == ["ada", "eve\x1b[31m[b]", "ada"]
    assert {**found[0], "time": ""} == {
        "time": "", "account": "ada", "role": "admin", "method": "DELETE", "path": "/api/variables/name/x", "kind": "variable",
        "name": "x", "status": 204, "object": "variable x", "what": "delete variable x", "result": "done",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "fact"),
    [
        (["--since", "soon"], '--since is "soon", but must be a time or how long ago it was'),
        (["--since", "1h", "--until", "2h"], "--until 2h is not after --since 1h"),
        (["--limit", "-1"], "--limit is -1, but must be 0 (all) or more"),
    ],
)
def test_what_makes_no_sense_is_refused(tmp_path, arguments, fact):
    with pytest.raises(Failure) as raised:
        cli.show(tmp_path, cli.parser().parse_args(arguments), NOW)
    assert raised.value.fact == fact


def test_whether_it_is_kept_is_checked(tmp_path):
    now = 1_000_000.0
    assert check.check(tmp_path, now).level is Level.WARNING
    (tmp_path / keep.COLLECTED).touch()
    os.utime(tmp_path / keep.COLLECTED, (now - 300, now - 300))
    assert (check.check(tmp_path, now).level, check.check(tmp_path, now + 601).level) == (Level.OK, Level.WARNING)
    assert check.check(tmp_path, now + 601).mend.startswith("journalctl -u prefect-audit")


def test_only_whole_files_before_a_time_are_left_out(tmp_path):
    (tmp_path / "2026-10.jsonl").write_text(line(1, "2026-10-31T00:00:00.000+00:00").kept())
    (tmp_path / "2026-11.jsonl").write_text(line(2).kept())
    assert [one.cursor for one in keep.kept(tmp_path, "2026-11-27")] == ["s=1;i=2"]
    assert len(list(keep.kept(tmp_path, "2026-10-31"))) == 2
    assert choose.AGO.fullmatch("2h")
