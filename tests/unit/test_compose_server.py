"""What runs in the server's container beside Prefect: start.py, serve.py, health.py and healthcheck.sh."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import asyncpg
import health
import pytest
import start
import way_out
import yaml
from health import Finding, Judge, Kind, Limits, Looks, Report, Verdict
from prefect.server.database import orm_models

from .compose_file import COMPOSE, interpolate

HEALTHCHECK = COMPOSE.parent / "server" / "healthcheck.sh"
CLOSED_PORT = 1
WELL, NOT_READY = Finding(Kind.WELL), Finding(Kind.NOT_READY, "/api/ready answers 503")
NO_DATABASE, NO_SCHEMA = Finding(Kind.NO_DATABASE, "no database"), Finding(Kind.NO_SCHEMA, "no table log")


def test_every_table_of_prefects_is_looked_for() -> None:
    assert sorted({*orm_models.Base.metadata.tables, "alembic_version"}) == list(health.TABLES)


# --- the way out of what automations send --------------------------------------------------------------------------


def test_what_is_said_to_the_proxy_is_carried_to_the_socket_of_the_host(tmp_path: Path) -> None:
    """As it is, in both directions, and to its end; where nobody listens there the connection ends."""
    place = str(tmp_path / "way-out.sock")
    with socket.create_server(("127.0.0.1", 0)) as free:
        address = f"http://127.0.0.1:{free.getsockname()[1]}"

    async def ask(words: bytes) -> bytes:
        reader, writer = await asyncio.open_connection("127.0.0.1", int(address.rpartition(":")[2]))
        writer.write(words)
        writer.write_eof()
        try:
            return await asyncio.wait_for(reader.read(), 10)
        except ConnectionResetError:
            return b""

    async def host(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write((await reader.read()).upper())
        writer.close()

    async def both() -> None:
        async with await way_out.open_way(address, place):
            assert await ask(b"x") == b""
            async with await asyncio.start_unix_server(host, place):
                assert await ask(b"connect example.org" * 10_000) == b"CONNECT EXAMPLE.ORG" * 10_000

    asyncio.run(both())


def test_nothing_listens_where_nothing_may_leave() -> None:
    assert way_out.proxy({}) == way_out.proxy({"HTTPS_PROXY": ""}) == ""
    server = yaml.safe_load(interpolate(COMPOSE.read_text(), {"PREFECT_DOMAIN": "p.example.org"}))["services"]["server"]
    assert server["environment"]["HTTPS_PROXY"] == server["environment"]["HTTP_PROXY"] == ""
    # A rehearsal on a copy of the database tells nobody.
    rehearsal = (COMPOSE.parents[1] / "backups/prefect_upgrades/side.py").read_text()
    assert '"HTTPS_PROXY": "", "HTTP_PROXY": ""' in rehearsal
    (mount,) = [one for one in server["volumes"] if one["target"] == str(Path(way_out.SOCKET).parent)]
    assert mount["read_only"]


# --- what follows from what a look finds -------------------------------------------------------------------------


class Course:
    """A judge, and a clock and a processor that only this test moves."""

    def __init__(self, ready_after: float | None = 6) -> None:
        self.now, self.cpu = 1000.0, 0.0
        self.judge = Judge(self.now)
        if ready_after is not None:
            self.now += ready_after
            assert self.hear(WELL) == Verdict("well")

    def hear(self, finding: Finding, after: float = 0, cpu: float = 0) -> Verdict:
        self.now += after
        self.cpu += cpu
        return self.judge.hear(finding, self.now, self.cpu)

    def last(self, finding: Finding, seconds: float, each: float = 2, cpu: float = 0) -> list[Verdict]:
        """Hear the same for so long, or until the server is to be ended."""
        heard = []
        for _ in range(int(seconds / each)):
            heard.append(self.hear(finding, each, cpu))
            if heard[-1].end:
                break
        return heard


def test_what_was_never_ready_is_not_hung() -> None:
    """On a machine that is fifteen times slower: an hour, as long as it gets on."""
    course = Course(ready_after=None)
    heard = course.last(NOT_READY, 3600, each=10, cpu=0.1)
    assert {verdict.word for verdict in heard} == {"starting"}
    assert heard[-1].reason == "starting for 3600 s"
    assert course.hear(WELL) == Verdict("well")


def test_a_start_that_does_nothing_is_ended() -> None:
    course = Course(ready_after=None)
    course.last(NOT_READY, 60, each=1, cpu=0.1)
    heard = course.last(NOT_READY, 3600, each=10, cpu=0.01)
    assert heard[-1] == Verdict("ill", "its start has done nothing for 300 s", end=True)
    assert 290 <= len(heard) * 10 <= 600


def test_a_start_that_runs_in_circles_is_ended() -> None:
    heard = Course(ready_after=None).last(NOT_READY, 3600, each=10, cpu=10)
    assert heard[-1] == Verdict("ill", "its start has used 900 s of processor time", end=True)


def test_a_start_waits_for_its_database() -> None:
    heard = Course(ready_after=None).last(NO_DATABASE, 3600, each=10)
    assert not heard[-1].end
    assert [verdict.word for verdict in heard[:7]] == ["starting"] * 7
    assert {verdict.word for verdict in heard[7:]} == {"ill"}


def test_one_bad_look_is_none() -> None:
    course = Course()
    assert course.hear(NOT_READY).word == "well"
    assert course.hear(WELL) == Verdict("well")
    assert course.hear(NOT_READY).word == "well"
    assert course.hear(NOT_READY) == Verdict("ill", "/api/ready answers 503")


def test_a_server_that_hangs_with_its_database_there_is_ended_after_two_minutes() -> None:
    heard = Course().last(NOT_READY, 300)
    assert heard[-1] == Verdict("ill", "not ready for 122 s with the database there (/api/ready answers 503)", end=True)


def test_a_slow_machine_has_more_time() -> None:
    """By its start, as a machine has no other number for it."""
    assert Course().judge.limits == Limits(answer=4, hang=120)
    course = Course(ready_after=150)
    assert course.judge.limits == Limits(answer=30, hang=600)
    assert course.last(NOT_READY, 3600)[-1].reason.startswith("not ready for 602 s")
    assert Course(ready_after=10_000).judge.limits == Limits(answer=60, hang=1800)


def test_a_machine_that_was_suspended_is_looked_at_again_first() -> None:
    course = Course()
    course.hear(NOT_READY)
    assert not course.hear(NOT_READY, after=3600).end


def test_a_server_without_a_database_is_ended_after_a_minute() -> None:
    """It heard no heartbeat meanwhile, and would take every flow run for dead. It has not hung: both have own clocks."""
    course = Course()
    assert not course.last(NOT_READY, 100)[-1].end
    heard = course.last(NO_DATABASE, 100)
    assert heard[-1] == Verdict("ill", "no database for a minute", end=True)
    assert len(heard) * 2 > health.NO_DATABASE_LIMIT
    course = Course()
    course.last(NO_DATABASE, 50)
    assert not course.last(NOT_READY, 100)[-1].end


@pytest.mark.parametrize("ready_after", [None, 6])
def test_a_lost_table_is_said_at_once_and_ends_no_server(ready_after: float | None) -> None:
    heard = Course(ready_after).last(NO_SCHEMA, 3600)
    assert heard == [Verdict("ill", "no table log")] * len(heard)


def test_looks_are_frequent_only_while_something_changes() -> None:
    course = Course(ready_after=None)
    assert course.judge.period == 1
    course.hear(WELL)
    assert course.judge.period == 10
    periods = []
    for _ in range(6):
        course.hear(NO_SCHEMA)
        periods.append(course.judge.period)
    assert periods == [2, 2, 2, 2, 10, 10]


def test_a_dead_server_is_noticed_no_later_than_by_three_checks_in_a_row() -> None:
    """As it was with a check every 10 s of at most 4 s, of which three had to fail."""
    watchdog = health.PERIOD + 4 + (health.ILL_LOOKS - 1) * (health.FAILING_PERIOD + 4)
    assert "interval: 20s\n      # While the server starts" in COMPOSE.read_text()
    assert watchdog + 20 <= 3 * (10 + 4)


# --- looks ---------------------------------------------------------------------------------------------------------


class Site:
    """A stand-in for the server and the database: an HTTP server that answers `status`, after `seconds`."""

    def __init__(self) -> None:
        self.status, self.seconds, self.asked = 200, 0.0, []
        site = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                site.asked.append(self.path)
                time.sleep(site.seconds)
                self.send_response(site.status)
                self.end_headers()
                self.wfile.write(b"{}")

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.port = self.server.server_address[1]
        threading.Thread(target=self.server.serve_forever, daemon=True).start()


@pytest.fixture
def site() -> Iterator[Site]:
    site = Site()
    yield site
    site.server.shutdown()
    site.server.server_close()


def looks_at(server: int, database: int) -> Looks:
    return Looks(
        {
            "PREFECT_SERVER_API_PORT": str(server),
            "PREFECT_SERVER_DATABASE_HOST": "127.0.0.1",
            "PREFECT_SERVER_DATABASE_PORT": str(database),
            "PREFECT_SERVER_DATABASE_USER": "prefect",
            "PREFECT_SERVER_DATABASE_NAME": "prefect",
        }
    )


def test_a_look_asks_for_the_api_and_the_ui(site: Site) -> None:
    """That the watchdog has no connection of its own (all may be taken) is not the server's fault."""
    found = asyncio.run(looks_at(site.port, CLOSED_PORT).look(2))
    assert found.kind is Kind.WELL
    assert found.words.startswith("its tables could not be looked at: ")
    assert site.asked == ["/api/ready", "/"]


def test_a_look_tells_a_server_without_a_database_from_one_that_is_ill(site: Site) -> None:
    site.status = 503
    assert asyncio.run(looks_at(site.port, CLOSED_PORT).look(2)) == Finding(
        Kind.NO_DATABASE, f"no database at 127.0.0.1:{CLOSED_PORT}"
    )
    found = asyncio.run(looks_at(site.port, site.port).look(2))
    assert found == Finding(Kind.NOT_READY, "/api/ready answers 503 Service Unavailable")


def test_a_look_ends_in_time(site: Site) -> None:
    site.seconds = 1.5
    assert asyncio.run(looks_at(site.port, site.port).look(0.3)) == Finding(Kind.NOT_READY, "no answer within 0 s")
    assert asyncio.run(looks_at(CLOSED_PORT, site.port).look(2)).kind is Kind.NOT_READY


class Database:
    """A connection whose database lacks some tables."""

    def __init__(self, *missing: str) -> None:
        self.missing = missing

    async def fetch(self, query: str, tables: tuple[str, ...]) -> list[dict[str, str]]:
        assert (query, tables) == (health.MISSING, health.TABLES)
        return [{"name": name} for name in self.missing]


@pytest.mark.parametrize(
    ("missing", "words"),
    [
        (("flow_run", "log"), "has no table flow_run, log"),
        (health.TABLES, "has none of Prefect's tables"),
    ],
)
def test_a_look_finds_lost_tables(
    site: Site, monkeypatch: pytest.MonkeyPatch, missing: tuple[str, ...], words: str
) -> None:
    looks = looks_at(site.port, site.port)
    monkeypatch.setattr(looks, "_connection", Database(*missing))
    assert asyncio.run(looks.look(2)) == Finding(
        Kind.NO_SCHEMA, f'the database "prefect" {words}: restore a backup with prefect-restore --latest'
    )


# --- what Docker is told -------------------------------------------------------------------------------------------


def check(finding: Path, timeout: float = 10) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["sh", str(HEALTHCHECK), str(finding)], capture_output=True, text=True, timeout=timeout)


def test_docker_is_told_what_was_found(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "health"
    report = Report(file)
    for _ in range(2):
        report.write(Verdict("ill", "no table log: restore * `a` $backup"), 60)
        done = check(file)
        assert (done.returncode, done.stdout, done.stderr) == (1, "no table log: restore * `a` $backup\n", "")
    report.write(Verdict("well"), 60)
    assert check(file).returncode == 0
    # The log has each thing once.
    assert capsys.readouterr().out == "watchdog: no table log: restore * `a` $backup\nwatchdog: well again\n"
    report.write(Verdict("well"), -2)
    done = check(file)
    assert (done.returncode, done.stdout) == (1, "the watchdog has not looked at the server any more\n")


def test_the_health_check_waits_for_a_start(tmp_path: Path) -> None:
    file = tmp_path / "health"
    report = Report(file)
    threading.Timer(0.5, report.write, (Verdict("starting", "starting for 1 s"), 60)).start()
    threading.Timer(1.5, report.write, (Verdict("well"), 60)).start()
    began = time.monotonic()
    assert check(file).returncode == 0
    assert time.monotonic() - began > 1.5


# --- start.py ------------------------------------------------------------------------------------------------------

SERVER = """
import http.server, sys
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200); self.end_headers()
    def log_message(self, *_): pass
http.server.HTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
"""


@pytest.fixture
def started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], tuple[int, list[Verdict]]]:
    """`started(PROGRAM)` runs main with that Python program as the server; gives the exit code and what was reported."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    reported: list[Verdict] = []
    well = threading.Event()

    class Noted(Report):
        def write(self, verdict: Verdict, holds: float) -> None:
            super().write(verdict, holds)
            reported.append(verdict)
            if verdict.word == "well":
                well.set()

    async def refuse(*_: Any, **__: Any) -> None:
        raise asyncpg.InvalidPasswordError("no")

    monkeypatch.setattr(Looks, "connect", refuse)
    monkeypatch.setattr(start, "Report", Noted)
    monkeypatch.setattr(start, "HEALTH", tmp_path / "health")
    monkeypatch.setattr(health, "STARTING_PERIOD", 0.05)
    for name, value in {"API_PORT": str(port), "DATABASE_HOST": "127.0.0.1", "DATABASE_PORT": str(CLOSED_PORT)}.items():
        monkeypatch.setenv(f"PREFECT_SERVER_{name}", value)

    def run(program: str) -> tuple[int, list[Verdict]]:
        monkeypatch.setattr(start, "SERVER", (sys.executable, "-c", program, str(port)))
        return asyncio.run(start.main()), reported

    run.well = well  # type: ignore[attr-defined]
    return run


def test_the_end_of_the_server_is_the_end_of_its_container(started: Any, capsys: pytest.CaptureFixture[str]) -> None:
    """And what cannot be reset (a first start has no tables) keeps nothing from starting."""
    assert started("raise SystemExit(7)")[0] == 7
    assert capsys.readouterr().out == "Windows of Crash detection are as they were: no\n"


def test_the_server_is_prefects_own_with_a_lazier_garbage_collector(tmp_path: Path) -> None:
    """A module that lies beside the program is not taken for one of Prefect's."""
    (tmp_path / "prefect").mkdir()
    (tmp_path / "prefect" / "__init__.py").touch()
    (tmp_path / "prefect" / "__main__.py").write_text(
        "import gc, importlib.util, os, sys; print(sys.argv[1:], gc.get_threshold()[0], importlib.util.find_spec('health'),"
        " os.environ['PREFECT_SERVER_ENCRYPTION_KEY'])"
    )
    (tmp_path / "key").write_text("abc=\n")
    files = {"PYTHONPATH": str(tmp_path), "ENCRYPTION_KEY_FILE": str(tmp_path / "key")}
    command, environment = list(start.SERVER), {**os.environ, **files}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    # The container's stdout is for the lines of the audit alone.
    assert (done.stdout, done.stderr) == ("", "['server', 'start'] 50000 None abc=\n")


def test_a_stop_is_passed_on(started: Any) -> None:
    # On a busy machine the server takes its time.
    threading.Thread(target=lambda: started.well.wait(60) and os.kill(os.getpid(), signal.SIGTERM)).start()
    code, reported = started(SERVER)
    assert code == 128 + signal.SIGTERM
    assert reported[0] == Verdict("starting")
    assert reported[-1].word == "well"


def test_a_server_that_hangs_is_killed(
    started: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Even one that hears no signal; here one that sleeps at its start, with a limit of less than a second."""
    monkeypatch.setattr(health, "START_IDLE_LIMIT", 0.5)
    monkeypatch.setattr(start, "cpu_seconds", lambda: 0.0)

    async def no_why(*_: Any) -> Finding:
        return NOT_READY

    monkeypatch.setattr(Looks, "_why", no_why)
    code, _ = started("import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(60)")
    assert code == 128 + signal.SIGKILL
    assert "watchdog: its start has done nothing for 0.5 s; ending the server\n" in capsys.readouterr().out


def test_a_start_waits_for_a_database(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Postgres that is not there, or still recovers, is asked again; then the windows are reset."""
    asked: list[str] = []

    class Ready:
        async def execute(self, query: str, longer: float) -> str:
            asked.append(f"{query} {longer}")
            return "UPDATE 2"

        async def close(self) -> None:
            asked.append("closed")

    async def connect(*_: Any, **__: Any) -> Ready:
        asked.append("connect")
        if len(asked) == 1:
            raise ConnectionRefusedError("refused")
        return Ready()

    monkeypatch.setattr(Looks, "connect", connect)
    asyncio.run(start.reset_windows(looks_at(CLOSED_PORT, CLOSED_PORT), Report(tmp_path / "health")))
    # Longer than any start takes: the services look at them before the server hears a heartbeat.
    assert asked == ["connect", "connect", f"{start.RESET} 3600.0", "closed"]
    asked.clear()
    assert asyncio.run(start.begin_windows(looks_at(CLOSED_PORT, CLOSED_PORT))) is False
    assert asyncio.run(start.begin_windows(looks_at(CLOSED_PORT, CLOSED_PORT))) is True
    assert asked == ["connect", "connect", f"{start.RESET} 0.0", "closed"]


def test_processor_time_is_that_of_others() -> None:
    before = health.cpu_seconds()
    subprocess.run([sys.executable, "-c", "sum(range(10**7))"], check=True)
    assert health.cpu_seconds() >= before
