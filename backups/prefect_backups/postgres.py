"""Postgres in its container: SQL over the socket, and its own version's pg_dump and pg_restore inside it.

The port of the database is open to no network of the host. Its socket lies in a directory that only root passes, so
the tools here need no password. What pg_dump writes and pg_restore reads goes through the directory `staging`, which
is mounted in the container as /staging.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import docker
import docker.errors
import psycopg
from docker.models.containers import Container
from psycopg import sql

from . import parts, roles, staging
from .errors import Code, Failure
from .roles import CLUSTER, SERVER, SUPERUSER
from .settings import Settings

# It warns of connections that are gone; our own errors say so.
logging.getLogger("psycopg").setLevel(logging.ERROR)

LIVE = "prefect"
RESTORING = "prefect_restore"
PREVIOUS = "prefect_previous"
# The one that PREVIOUS was, until the restore that gives it up has ended well.
GIVEN_UP = "prefect_given_up"
# The live one, in the middle of an undo's renames.
SWAPPING = "prefect_swapping"
# The databases of ours beside the live one. Whatever removes or renames one of them looks at its comment first: a
# person may have made one of that name by hand. A comment stays with a database when it is renamed.
OURS = (RESTORING, PREVIOUS, GIVEN_UP, SWAPPING)
MARK = "prefect-backups: "

CONTAINER = "prefect-postgres"
# Where `staging` is inside the container.
INSIDE = "/staging"
# The name under which our connections are seen, and ended when their owner has died.
APPLICATION = "prefect-backups"
# Seconds that a query of a look takes at most: a table that is locked for an hour must not keep anybody from being told.
LOOK = 15.0
# uid and gid of postgres in the official image.
OWNER = staging.OWNER

# Nobody sees a database while it is being restored, and a power cut then means to begin again; that is why an
# acknowledged commit need not be on disk. The memory fits the container. Measured on a lab VPS with 1.06 million rows:
# more memory, parallel index builds, three or four jobs and larger transactions make no difference on two cores.
RESTORE_OPTIONS = {
    "synchronous_commit": "off",
    "maintenance_work_mem": "128MB",
    "max_parallel_maintenance_workers": "0",
}


class Postgres:
    """A Postgres in a container: the live one, or a throwaway one of the same image."""

    def __init__(self, socket: str, staging: Path, container: str = CONTAINER, role: Path | None = None) -> None:
        """Nothing is contacted yet.

        Args:
            socket: the directory of its socket on the host.
            staging: the directory on the host that the container sees as /staging.
            container: its name.
            role: the SQL that gives a database to the server's role; None, or no such file, where all is the superuser's.
        """
        self.socket = socket
        self.staging = staging
        self.container = container
        self.role = role

    @classmethod
    def live(cls, settings: Settings) -> Postgres:
        role = Path(settings.compose_file).with_name("postgres") / "1-server-role.sql"
        return cls(settings.socket, Path(settings.staging), role=role)

    # --- SQL ---------------------------------------------------------------------------------------------------

    @contextmanager
    def connect(
        self, database: str = LIVE, autocommit: bool = True, patience: float = 0.0
    ) -> Iterator[psycopg.Connection]:
        """A connection as the database's owner. Raises Failure when there is no answer within 10 s.

        Args:
            patience: seconds that a statement may take, waiting for locks included; 0: any.
        """
        try:
            user = roles.owner(self.socket, database, APPLICATION, patience)
            connection = roles.connect(self.socket, database, user, APPLICATION, autocommit, patience)
        except psycopg.OperationalError as error:
            raise self._no_way_in(database, error) from error
        with connection:
            yield connection

    def _no_way_in(self, database: str, error: psycopg.Error) -> Failure:
        return Failure(
            Code.NO_DATABASE,
            f'Postgres does not let us into the database "{database}": {" ".join(str(error).split())}',
            "look at: docker logs --tail 20 " + self.container,
        )

    def hand_over(self, database: str = LIVE) -> None:
        """Have the server's role, and the role have what is the superuser's in a database. Raises Failure."""
        if self.role is None or not self.role.exists():
            return
        try:
            roles.hand_over(self.socket, database, APPLICATION, self.role)
        except psycopg.OperationalError as error:
            raise self._no_way_in(database, error) from error
        except psycopg.Error as error:
            raise Failure(
                Code.NOT_READY,
                f'the database "{database}" cannot be given to the role "{SERVER}": {" ".join(str(error).split())}',
                f"look who uses it: docker exec {self.container} psql -U prefect -c 'SELECT * FROM pg_stat_activity'",
            ) from error

    def answers(self) -> bool:
        """Whether Postgres takes connections."""
        try:
            with self.connect(CLUSTER):
                return True
        except Failure:
            return False

    def wait(self, seconds: float) -> None:
        """Wait until it answers. Raises Failure (NO_DATABASE) after `seconds`."""
        end = time.monotonic() + seconds
        while True:
            try:
                with self.connect(CLUSTER):
                    return
            except Failure:
                if time.monotonic() > end:
                    raise
                time.sleep(0.2)

    def databases(self) -> set[str]:
        """The names of the databases."""
        with self.connect(CLUSTER) as connection:
            return {row[0] for row in connection.execute("SELECT datname FROM pg_database")}

    def version(self) -> str:
        """The version of the running server, such as "17.12"."""
        with self.connect(CLUSTER) as connection:
            return connection.execute("SHOW server_version").fetchone()[0].split()[0]

    def size(self, database: str = LIVE) -> int:
        """Bytes on disk of a database with its indexes."""
        with self.connect(CLUSTER) as connection:
            return connection.execute("SELECT pg_database_size(%s)", [database]).fetchone()[0]

    def oid(self, database: str) -> int:
        """The identity of a database in its cluster, which a rename does not change; 0 where there is none."""
        with self.connect(CLUSTER) as connection:
            row = connection.execute("SELECT oid FROM pg_database WHERE datname = %s", [database]).fetchone()
            return row[0] if row else 0

    def cluster(self) -> str:
        """The identity of the cluster: another one for each that was ever made."""
        with self.connect(CLUSTER) as connection:
            return str(connection.execute("SELECT system_identifier FROM pg_control_system()").fetchone()[0])

    def tables(self, database: str = LIVE) -> set[str]:
        """The names of a database's tables. Raises Failure when there is no such database."""
        with self.connect(database) as connection:
            return {row[0] for row in connection.execute("SELECT tablename FROM pg_tables WHERE schemaname = 'public'")}

    def foreign(self) -> list[str]:
        """Databases with a name of ours that this kit has not made."""
        query = "SELECT datname, shobj_description(oid, 'pg_database') FROM pg_database"
        with self.connect(CLUSTER) as connection:
            comments = dict(connection.execute(query).fetchall())
        return [name for name in OURS if name in comments and not (comments[name] or "").startswith(MARK)]

    def adopt(self, database: str) -> None:
        """Mark a database as made by this kit."""
        with self.connect(CLUSTER) as connection:
            self._mark(connection, database)

    @staticmethod
    def _mark(connection: psycopg.Connection, database: str) -> None:
        # None takes the mark away: the live database is nobody's to remove.
        text = f"{MARK}see prefect-restore --help" if database in OURS else None
        connection.execute(sql.SQL("COMMENT ON DATABASE {} IS {}").format(sql.Identifier(database), sql.Literal(text)))

    def refuse_foreign(self, what: str, *names: str) -> None:
        """Raise Failure (FOREIGN) where a database of these names, or of any name of ours, was made by a person."""
        found = [name for name in self.foreign() if name in (names or OURS)]
        if found:
            raise Failure(
                Code.FOREIGN,
                f'Refusing to {what}: the database "{found[0]}" has a name that this kit uses, but was not made by it',
                f"give it another name: docker exec {self.container} psql -U prefect -d postgres"
                f" -c 'ALTER DATABASE {found[0]} RENAME TO mine'",
            )

    def revision(self, database: str = LIVE) -> str | None:
        """The migration that a database is at, or None for an empty one."""
        with self.connect(database) as connection:
            if connection.execute("SELECT to_regclass('public.alembic_version')").fetchone()[0] is None:
                return None
            row = connection.execute("SELECT version_num FROM alembic_version").fetchone()
            return row[0] if row else None

    def create(self, database: str) -> None:
        """A new, empty database like the live one."""
        with self.connect(CLUSTER) as connection:
            there = connection.execute("SELECT 1 FROM pg_roles WHERE rolname = %s", [SERVER]).fetchone()
            owner = sql.Identifier(SERVER if there else SUPERUSER)
            command = sql.SQL("CREATE DATABASE {} OWNER {} TEMPLATE template0").format(sql.Identifier(database), owner)
            connection.execute(command)
            self._mark(connection, database)

    def drop(self, database: str) -> None:
        """Remove a database of ours, connected clients or not; one that is not there is no error.

        Raises Failure (FOREIGN) for one that this kit has not made.
        """
        self.refuse_foreign("remove a database", database)
        with self.connect(CLUSTER) as connection:
            connection.execute(sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(sql.Identifier(database)))

    def swap(self, *renames: tuple[str, str]) -> None:
        """Rename databases in one transaction, all or none: each pair is (from, to). Clients are sent away first.

        A client that connects again in between makes a rename fail; then all is as before, and it is tried again.
        """
        for old, new in renames:
            # One that a kit of before has made.
            if new == LIVE and roles.owner(self.socket, old, APPLICATION) != SERVER:
                self.hand_over(old)
        for last in (False, False, False, False, True):
            try:
                with self.connect(CLUSTER, autocommit=False) as connection:
                    for old, _ in renames:
                        connection.execute(
                            "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE datname = %s", [old]
                        )
                    for old, new in renames:
                        connection.execute(
                            sql.SQL("ALTER DATABASE {} RENAME TO {}").format(sql.Identifier(old), sql.Identifier(new))
                        )
                        self._mark(connection, new)
                return
            except psycopg.errors.ObjectInUse:
                if last:
                    raise

    def end_orphans(self) -> None:
        """End what a killed tool of ours has left at work in the container (pg_dump and pg_restore outlive it)."""
        with self.connect(CLUSTER) as connection:
            connection.execute(
                "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity"
                " WHERE application_name = %s AND pid <> pg_backend_pid()",
                [APPLICATION],
            )

    # --- its own tools, in the container -----------------------------------------------------------------------

    def _container(self) -> Container:
        try:
            found = docker.from_env().containers.get(self.container)
        except docker.errors.NotFound as error:
            raise Failure(
                Code.NO_DATABASE, f'there is no container "{self.container}"', "start it: systemctl start prefect-stack"
            ) from error
        except docker.errors.DockerException as error:
            raise Failure(
                Code.NO_DATABASE, f"the Docker engine does not answer: {error}", "look at: systemctl status docker"
            ) from error
        if found.status != "running":
            raise Failure(
                Code.NO_DATABASE,
                f'the container "{self.container}" is {found.status}',
                "start it: systemctl start prefect-stack",
            )
        return found

    def run(
        self,
        arguments: list[str],
        code: Code,
        options: dict[str, str] | None = None,
        watch: Callable[[], None] | None = None,
        user: str = SUPERUSER,
    ) -> None:
        """Run a tool in the container as postgres; `watch` is called about twice a second meanwhile.

        Args:
            arguments: the command line; never a secret.
            code: exit code of the Failure that is raised when it fails, with its last words.
            options: session settings of its connections.
            user: of the database.
        """
        container = self._container()
        api = container.client.api
        environment = {"PGAPPNAME": APPLICATION, "PGUSER": user}
        if options:
            environment["PGOPTIONS"] = " ".join(f"-c{name}={value}" for name, value in options.items())
        identity = api.exec_create(container.id, arguments, user="postgres", environment=environment, stdout=True)["Id"]
        said: list[bytes] = []
        failed: list[Exception] = []

        def read() -> None:
            try:
                # Not as a stream: that has to be closed, or Python complains on stderr when it collects it.
                said.append(api.exec_start(identity))
            except Exception as error:  # an engine that goes away: told below, by the main thread
                failed.append(error)

        reader = threading.Thread(target=read, daemon=True)
        reader.start()
        while reader.is_alive():
            reader.join(0.4)
            if watch is not None:
                watch()
        if failed:
            raise Failure(code, f"{arguments[0]} was cut off: {failed[0]}", "look at: systemctl status docker")
        status = api.exec_inspect(identity)["ExitCode"]
        if status != 0:
            words = " / ".join(b"".join(said).decode(errors="replace").strip().splitlines()[-5:])
            raise Failure(
                code,
                f'{arguments[0]} ended with {status}: "{words}"',
                f"look at: docker logs --tail 20 {self.container}",
            )

    def make_staging(self, name: str) -> Path:
        """A new, empty directory in staging that the container's postgres may write to (staging.py)."""
        return staging.make(self.staging, name)

    def remove_staging(self, name: str) -> bool:
        """Remove a directory of `make_staging`; whether it was there."""
        return staging.remove(self.staging, name)

    def is_ours(self, name: str) -> bool:
        """Whether there is a directory of that name in staging, and it was made by `make_staging`."""
        return staging.is_ours(self.staging, name)

    def dump(self, directory: str, snapshot: str, jobs: int, watch: Callable[[], None] | None = None) -> None:
        """pg_dump of the live database, as another transaction sees it, to `staging/directory` (which it makes).

        Its large files are cut into small ones (see parts.py). Raises Failure (DUMP).
        """
        self.run(
            [
                "pg_dump",
                f"--dbname={LIVE}",
                f"--snapshot={snapshot}",
                "--format=directory",
                f"--jobs={jobs}",
                # restic compresses, and finds what has not changed, which compressed data would hide from it.
                "--compress=none",
                "--no-owner",
                f"--file={INSIDE}/{directory}",
            ],
            Code.DUMP,
            watch=watch,
        )
        try:
            parts.split(self.staging / directory)
        except OSError as error:
            raise Failure(Code.DUMP, f"the dump could not be cut into files: {error}", "look at: df -h") from error

    def load(self, directory: str, database: str, jobs: int, watch: Callable[[], None] | None = None) -> None:
        """pg_restore of `staging/directory`, as `dump` left it, into a new database. Raises Failure (RESTORE)."""
        try:
            parts.join(self.staging / directory)
        except OSError as error:
            raise Failure(Code.RESTORE, f"the dump's files could not be joined: {error}", "look at: df -h") from error
        self.run(
            [
                "pg_restore",
                f"--dbname={database}",
                f"--jobs={jobs}",
                "--no-owner",
                "--exit-on-error",
                f"{INSIDE}/{directory}",
            ],
            Code.RESTORE,
            options=RESTORE_OPTIONS,
            watch=watch,
            user=roles.owner(self.socket, database, APPLICATION),
        )

    def image(self) -> str:
        """The image of the container, by its id: what runs, whatever a tag means by now."""
        return self._container().image.id
