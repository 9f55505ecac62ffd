"""Is the Prefect server well? What a look finds, and what follows from one finding after the other.

One resident process looks from inside: an interpreter started for each look cost more than the server itself when idle.
Docker's own health check only reads the file that this writes (healthcheck.sh).
"""

from __future__ import annotations

import asyncio
import contextlib
import enum
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import asyncpg

#: All that the server reads and writes; tests/unit/test_compose_server.py holds it against the installed Prefect.
TABLES = (
    "agent",
    "alembic_version",
    "artifact",
    "artifact_collection",
    "automation",
    "automation_bucket",
    "automation_event_follower",
    "automation_related_resource",
    "block_document",
    "block_document_reference",
    "block_schema",
    "block_schema_reference",
    "block_type",
    "composite_trigger_child_firing",
    "concurrency_limit",
    "concurrency_limit_v2",
    "configuration",
    "csrf_token",
    "deployment",
    "deployment_schedule",
    "event_resources",
    "events",
    "flow",
    "flow_run",
    "flow_run_input",
    "flow_run_state",
    "log",
    "saved_search",
    "task_run",
    "task_run_state",
    "task_run_state_cache",
    "variable",
    "work_pool",
    "work_queue",
    "worker",
)
MISSING = "SELECT name FROM unnest($1::text[]) AS name WHERE to_regclass(name) IS NULL ORDER BY name"

# Seconds between two looks: of a server that starts, of one that is well, and of one that has just failed.
STARTING_PERIOD, PERIOD, FAILING_PERIOD = 1, 10, 2
#: Looks in a row that must fail before the server is called ill: one may meet a busy moment.
ILL_LOOKS = 2
#: After so many it is looked at no more often than a well one.
HURRIED_LOOKS = 5
#: Seconds without a database after which the server is ended: it heard no heartbeat of any flow run meanwhile.
NO_DATABASE_LIMIT = 60
# A start is measured by what it does and not by the clock: on a slow machine it takes minutes, and a restart would only
# make it begin from nothing. It has stopped when it uses less than a second of processor time in five minutes, or has
# used a hundred times what a start needs.
START_IDLE_LIMIT, START_PROGRESS_CPU, START_CPU_LIMIT = 300, 1.0, 900


class Kind(enum.Enum):
    """What a look can find."""

    WELL = "well"
    NOT_READY = "not ready"
    NO_DATABASE = "no database"
    NO_SCHEMA = "no schema"


@dataclass(frozen=True)
class Finding:
    """What one look has found, and in words what is wrong."""

    kind: Kind
    words: str = ""


@dataclass(frozen=True)
class Verdict:
    """What follows: a word for healthcheck.sh (starting, well, ill), the reason, and whether to end the server for it."""

    word: str
    reason: str = ""
    end: bool = False


@dataclass(frozen=True)
class Limits:
    """How long a server that has been ready may take: to answer, and to be ready again before it is ended (seconds)."""

    answer: float = 4
    hang: float = 120

    @classmethod
    def of(cls, start: float) -> Limits:
        """They grow with the machine, whose measure is how long the start took: six seconds on a usual one."""
        return cls(answer=min(max(start / 5, 4), 60), hang=min(max(start * 4, 120), 1800))


class Judge:
    """One finding after the other, from the start of the server on. Knows no clock and no process of its own."""

    def __init__(self, now: float) -> None:
        self.limits = Limits()
        self.ready = False
        self._began = now
        self._progress = (now, 0.0)  # when a start was last seen to use the processor, and how much it had used then
        self._kind = Kind.WELL
        self._since = now  # when findings of this kind began
        self._bad = 0  # looks in a row that were not well
        self._same = 0  # of those, looks in a row that found this kind

    @property
    def period(self) -> float:
        """Seconds until the next look."""
        if not self.ready:
            return STARTING_PERIOD
        return FAILING_PERIOD if 0 < self._bad < HURRIED_LOOKS else PERIOD

    def hear(self, finding: Finding, now: float, cpu: float) -> Verdict:
        """What follows from this finding; `cpu` is the processor time that the server has used (seconds)."""
        if not self.ready and finding.kind in (Kind.WELL, Kind.NO_SCHEMA):
            self.ready = True
            self.limits = Limits.of(now - self._began)
        if finding.kind is Kind.WELL:
            self._kind, self._bad, self._same = Kind.WELL, 0, 0
            return Verdict("well")
        if finding.kind is not self._kind:
            self._kind, self._since, self._same = finding.kind, now, 0
        self._bad += 1
        self._same += 1
        return self._of_ready(finding, now) if self.ready else self._of_start(finding, now, cpu)

    def _of_start(self, finding: Finding, now: float, cpu: float) -> Verdict:
        if finding.kind is Kind.NO_DATABASE:
            # It cannot go on, through no fault of its own.
            self._progress = (now, cpu)
            word = "ill" if now - self._since > NO_DATABASE_LIMIT else "starting"
            return Verdict(word, finding.words)
        if cpu - self._progress[1] >= START_PROGRESS_CPU:
            self._progress = (now, cpu)
        if now - self._progress[0] > START_IDLE_LIMIT:
            return Verdict("ill", f"its start has done nothing for {START_IDLE_LIMIT} s", end=True)
        if cpu > START_CPU_LIMIT:
            return Verdict("ill", f"its start has used {START_CPU_LIMIT} s of processor time", end=True)
        return Verdict("starting", f"starting for {now - self._began:.0f} s")

    def _of_ready(self, finding: Finding, now: float) -> Verdict:
        lasted = now - self._since
        if finding.kind is Kind.NO_SCHEMA:
            # A restart brings no table back.
            return Verdict("ill", finding.words)
        if finding.kind is Kind.NO_DATABASE and lasted > NO_DATABASE_LIMIT and self._same >= ILL_LOOKS:
            return Verdict("ill", "no database for a minute", end=True)
        # Counted as well as timed: a machine that was suspended has only looked once.
        if finding.kind is Kind.NOT_READY and lasted > self.limits.hang and self._same >= HURRIED_LOOKS:
            return Verdict("ill", f"not ready for {lasted:.0f} s with the database there ({finding.words})", end=True)
        return Verdict("ill", finding.words) if self._bad >= ILL_LOOKS else Verdict("well", finding.words)


class Looks:
    """Looks at a server on this machine and at its database, whose address is in the server's environment."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        setting = {
            name: environment.get(f"PREFECT_SERVER_DATABASE_{name.upper()}") for name in ("host", "port", "user")
        }
        self.port = int(environment.get("PREFECT_SERVER_API_PORT", "4200"))
        self.database = environment.get("PREFECT_SERVER_DATABASE_NAME", "prefect")
        self._address: dict[str, Any] = setting | {"port": int(setting["port"] or 5432)}
        self._connection: asyncpg.Connection | None = None

    async def connect(self, timeout: float) -> asyncpg.Connection:
        """A connection to the database; the password comes from PGPASSFILE."""
        more = {"server_settings": {"application_name": "prefect-watchdog"}, "command_timeout": timeout}
        return await asyncpg.connect(database=self.database, timeout=timeout, **self._address, **more)

    async def look(self, answer: float) -> Finding:
        """One look, in which nothing may take longer than `answer` seconds."""
        try:
            # The UI can be missing while the API is well.
            for path in "/api/ready", "/":
                await self._get(path, answer)
        except (OSError, ValueError) as error:
            return await self._why(error, answer)
        return await self._schema(answer)

    async def _get(self, path: str, answer: float) -> None:
        """Ask for a path. Without a library: those that keep one limit for a whole answer take seconds to import.

        Raises:
            OSError, ValueError: when there is no answer, or another one than 200.
        """
        async with asyncio.timeout(answer):
            reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
            try:
                writer.write(f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode())
                status = (await reader.readline()).split()
                await reader.read()
            finally:
                writer.close()
        if status[1:2] != [b"200"]:
            raise ValueError(f"{path} answers {b' '.join(status[1:]).decode(errors='replace') or 'nothing'}")

    async def _why(self, error: Exception, answer: float) -> Finding:
        """The server is not ready: is it to blame?"""
        try:
            async with asyncio.timeout(answer):
                _, writer = await asyncio.open_connection(self._address["host"], self._address["port"])
                writer.close()
        except OSError:
            return Finding(Kind.NO_DATABASE, f"no database at {self._address['host']}:{self._address['port']}")
        if isinstance(error, TimeoutError):
            return Finding(Kind.NOT_READY, f"no answer within {answer:.0f} s")
        return Finding(Kind.NOT_READY, str(error))

    async def _schema(self, answer: float) -> Finding:
        """The server answers. Are its tables there? It would say it is ready without a single one."""
        try:
            if self._connection is None:
                self._connection = await self.connect(answer)
            missing = [row["name"] for row in await self._connection.fetch(MISSING, TABLES)]
        except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError) as error:
            # The server's own connections work; that this one does not (all are taken, say) proves nothing.
            await self.close()
            return Finding(Kind.WELL, f"its tables could not be looked at: {error}")
        if not missing:
            return Finding(Kind.WELL)
        what = "has none of Prefect's tables"
        if len(missing) < len(TABLES):
            what = f"has no table {', '.join(missing)}"
        return Finding(
            Kind.NO_SCHEMA, f'the database "{self.database}" {what}: restore a backup with prefect-restore --latest'
        )

    async def close(self) -> None:
        """Let the connection go."""
        connection, self._connection = self._connection, None
        if connection is not None:
            with contextlib.suppress(Exception):
                connection.terminate()


class Report:
    """The file that healthcheck.sh reads: until when it holds (seconds of uptime), the word, the reason."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._said = ""

    def write(self, verdict: Verdict, holds: float) -> None:
        """Say it to Docker and, where the reason is another one than before, to the log."""
        # The clock that a shell can read, too.
        until = float(Path("/proc/uptime").read_text().split()[0]) + holds
        new = self._path.with_suffix(".new")
        new.write_text(f"{until:.0f} {verdict.word} {verdict.reason}\n")
        new.replace(self._path)
        said = verdict.reason if verdict.word == "ill" else ""
        if said != self._said:
            print(f"watchdog: {said or 'well again'}", flush=True)
        self._said = said


def cpu_seconds() -> float:
    """Processor time of all processes here but this one, ended children of theirs included."""
    ticks = 0
    for path in Path("/proc").glob("[0-9]*/stat"):
        if path.parent.name == str(os.getpid()):
            continue
        with contextlib.suppress(OSError):
            # The name, in parentheses, may hold anything; utime, stime, cutime and cstime are the 12th to 15th after it.
            ticks += sum(map(int, path.read_text().rpartition(")")[2].split()[11:15]))
    return ticks / os.sysconf("SC_CLK_TCK")
