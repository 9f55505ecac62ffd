"""Migrations of a database to an image's version, without a limit of time and with what they are at in words.

Prefect says nothing between their begin and their end, and an index of a large table takes half an hour (PrefectHQ/prefect
#17844, #18263): Postgres says how far its builds are.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence

import docker
import psycopg
from docker.models.containers import Container
from prefect_backups.errors import Failure
from prefect_backups.host import Host
from prefect_backups.progress import Advance

#: No limit of ours: index builds on large tables take as long as they take.
SECONDS = 7 * 24 * 3600.0
#: Seconds between two looks at what Postgres is building.
PERIOD = 2.0
#: One row for each build: its table, index, phase, and what has been done of what (lockers are transactions it waits for).
PROGRESS = (
    "SELECT relid::regclass::text, coalesce(nullif(index_relid, 0)::regclass::text, 'an index'), phase,"
    " blocks_done, blocks_total, tuples_done, tuples_total, lockers_done, lockers_total"
    " FROM pg_stat_progress_create_index WHERE datname = current_database()"
)
#: Builds go on in Postgres when who asked for them has died, and a second build beside them would find the index invalid.
BUILDING = "SELECT count(*) FROM pg_stat_progress_create_index WHERE datname = current_database()"


def migrate(
    host: Host, database: str, image: str, text: str, name: str = "migrate", command: Sequence[str] = ()
) -> None:
    """Bring a database's schema to the version of an image, as a step of the report. Raises Failure.

    Args:
        database: LIVE or RESTORING.
        image: whose migrations are run.
        text: of the step.
        name: of the step.
        command: what is run in the place of the upgrade, such as a downgrade.
    """
    _wait_for_others(host, database)
    with host.report.step(text, name) as advance:
        over = threading.Event()
        watcher = threading.Thread(target=_watch, args=(host, database, advance, over), daemon=True)
        watcher.start()
        try:
            host.stack.migrate(database, image, command, SECONDS)
        finally:
            over.set()
            watcher.join()


def progress(row: Sequence[object]) -> tuple[float | None, str]:
    """How far the build of an index is: a fraction, where there is one, and words, from a row of PROGRESS."""
    table, index, phase, *counts = row
    blocks, of_blocks, tuples, of_tuples, lockers, of_lockers = (int(str(count or 0)) for count in counts)
    words = f"{index} of {table}: {phase}"
    if str(phase).startswith("waiting") and of_lockers:
        return None, f"{words} ({lockers} of {of_lockers} transactions have ended)"
    for done, total in ((tuples, of_tuples), (blocks, of_blocks)):
        if total:
            return done / total, words
    return None, words


def _watch(host: Host, database: str, advance: Advance, over: threading.Event) -> None:
    """Tell what Postgres is building. What cannot be told is no reason to fail."""
    while not over.wait(PERIOD):
        try:
            with host.postgres.connect(database) as connection:
                rows = connection.execute(PROGRESS).fetchall()  # type: ignore[call-overload]
        except (Failure, psycopg.Error):
            continue
        advance(*(progress(rows[0]) if rows else (None, "")))


def _wait_for_others(host: Host, database: str) -> None:
    """Let migrations end that were begun before, by somebody who was killed meanwhile: two at once fail."""
    if not _others(host, database):
        return
    with host.report.step("migrations that were begun before come to their end", "others") as advance:
        while _others(host, database):
            advance(None, "")
            time.sleep(PERIOD)


def _others(host: Host, database: str) -> bool:
    with host.postgres.connect(database) as connection:
        building = connection.execute(BUILDING).fetchone()  # type: ignore[call-overload]
    return bool(building and building[0]) or any(_migrates(one, database) for one in _containers())


def _containers() -> list[Container]:
    label = ["com.docker.compose.project=prefect", "com.docker.compose.service=migrate"]
    return docker.from_env().containers.list(filters={"label": label})


def _migrates(container: Container, database: str) -> bool:
    return f"PREFECT_SERVER_DATABASE_NAME={database}" in (container.attrs["Config"].get("Env") or [])
