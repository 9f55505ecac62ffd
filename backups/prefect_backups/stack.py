"""The containers and workers of this host, as far as a restore stops and starts them."""

from __future__ import annotations

import contextlib
import json
import shutil
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

import docker
import docker.errors

from . import images
from .command import run_command
from .errors import Code, Failure
from .postgres import CONTAINER, Postgres
from .restic import FULL
from .settings import Settings

SERVER = "prefect-server"
CADDY = "prefect-caddy"
#: Of Postgres's data.
VOLUME = "prefect_postgres"
# Where systemd keeps what was enabled.
UNITS = Path("/etc/systemd/system")
WORKERS = ("prefect-worker@*.service", "prefect-docker-worker@*.service")
#: What a docker worker gives the container of a flow run.
RUN_LABEL = "io.prefect.flow-run-id"
#: A worker finds this mark in its own directory there, and does not wait for its flow runs when it is told to stop.
AT_ONCE = "/run/prefect-worker/{name}/at-once"
# How often Docker may restart Postgres, or the server, while it is waited for, before it is given up.
RESTARTS = {CONTAINER: 3, SERVER: 5}
# Least seconds for a call of compose.
COMPOSE_SECONDS = 600.0
SLOW = "where the host is only slow: raise stack_start_timeout in the inventory, run site.yml --tags backups"


class TooSlow(Failure):
    """A container that is still starting when its time is over: it is slow, or hangs."""


class Stack:
    """The compose project `prefect` and the units of its workers."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings

    # --- what there is -----------------------------------------------------------------------------------------

    def environment(self) -> dict[str, str]:
        """The stack's env-file. Raises Failure when there is none."""
        path = Path(self.settings.compose_environment)
        try:
            lines = path.read_text().splitlines()
        except OSError as error:
            raise Failure(
                Code.SETTINGS, f"{path} cannot be read: {error.strerror}", "run: ansible-playbook site.yml --tags stack"
            ) from error
        pairs = (line.split("=", 1) for line in lines if "=" in line and not line.lstrip().startswith("#"))
        return {name.strip(): value.strip().strip("'\"") for name, value in pairs}

    def prefect_version(self) -> str:
        """The version of Prefect that this host runs."""
        return images.prefect_version(self.environment().get("PREFECT_IMAGE", ""))

    def postgres_major(self) -> int:
        """The major version of Postgres that this host runs. Raises Failure (INCOMPATIBLE) where that cannot be told."""
        return images.postgres_major(self.environment().get("POSTGRES_IMAGE", ""))

    def active_workers(self) -> list[str]:
        """Units of workers that run, or that systemd is about to start again."""
        return [name for name, state in self._workers().items() if state in {"active", "activating", "reloading"}]

    @staticmethod
    def _workers() -> dict[str, str]:
        """The state of each unit of a worker that systemd knows."""
        said = run_command(
            ["systemctl", "list-units", "--all", "--plain", "--output=json", *WORKERS],
            Code.NOT_READY,
            "systemctl status",
        )
        return {unit["unit"]: unit["active"] for unit in json.loads(said)}

    def enabled_workers(self) -> list[str]:
        """Units of workers that start at boot."""
        # By their links: `systemctl list-unit-files` names the template only, and not its enabled instances.
        return sorted({link.name for pattern in WORKERS for link in UNITS.glob(f"*.wants/{pattern}")})

    def down_workers(self) -> list[str]:
        """Units of workers that start at boot, and do not run now; one that is just stopping may be being restarted."""
        states = self._workers()
        return [name for name in self.enabled_workers() if states.get(name, "inactive") in {"inactive", "failed"}]

    def passing_workers(self) -> list[str]:
        """Units of workers that start at boot, and are being started or stopped."""
        states = self._workers()
        return [name for name in self.enabled_workers() if states.get(name) in {"activating", "deactivating"}]

    def serves(self) -> bool:
        """Whether the server is ready."""
        try:
            return docker.from_env().containers.get(SERVER).health == "healthy"
        except docker.errors.DockerException:
            return False

    # --- stop and start ----------------------------------------------------------------------------------------

    def compose(
        self, *arguments: str, code: Code = Code.NOT_READY, seconds: float = COMPOSE_SECONDS, image: str = ""
    ) -> None:
        """docker compose on the project of this host; `up` waits for what a service depends on.

        Args:
            image: of Prefect, in the place of the one that the env-file names.
        """
        settings = self.settings
        run_command(
            ["docker", "compose", "--env-file", settings.compose_environment, "-f", settings.compose_file, *arguments],
            code,
            "look at: docker ps --all --filter name=prefect- ; journalctl -u prefect-stack -n 20",
            max(seconds, settings.start_seconds),
            # It goes before the env-file.
            {"PREFECT_IMAGE": image} if image else None,
        )

    def stop_workers(self, units: list[str]) -> None:
        """Stop them without the time that they would give their flow runs: those get it before, by --drain."""
        for unit in units:
            mark = Path(AT_ONCE.format(name=unit.partition("@")[2].removesuffix(".service")))
            # One that is just starting has no directory, and no flow runs.
            with contextlib.suppress(OSError):
                # A directory: flows may write there, and a link that one of them has left is not followed by that.
                mark.mkdir(exist_ok=True)
        if units:
            run_command(["systemctl", "stop", *units], Code.NOT_READY, "look at: systemctl status " + units[0])
        # A process worker's flow runs have ended with it; those in containers go on without their worker.
        try:
            for container in docker.from_env().containers.list(filters={"label": RUN_LABEL}):
                with contextlib.suppress(docker.errors.NotFound):
                    container.kill()
        except docker.errors.DockerException as error:
            raise Failure(
                Code.NOT_READY,
                f"the containers of flow runs do not stop: {error}",
                f"docker ps --filter label={RUN_LABEL}",
            ) from error

    def start_workers(self, units: list[str], wait: bool = True) -> None:
        """Start them and, with `wait`, see that they stay. Raises Failure (NOT_READY) that names those that do not."""
        # One that was taken out of the inventory meanwhile may have no unit any more.
        units = [unit for unit in units if self._exists(unit)]
        if not units:
            return
        how = [] if wait else ["--no-block"]
        look = "look at: journalctl -n 20 -u "
        try:
            run_command(["systemctl", "start", *how, *units], Code.NOT_READY, look + units[0])
        except Failure:
            # Which of them, is said below.
            if not wait:
                raise
        if wait:
            time.sleep(2)
            down = [unit for unit in units if unit not in self.active_workers()]
            if down:
                raise Failure(
                    Code.NOT_READY,
                    f"of {len(units)} workers that ran before these do not come back: {', '.join(down)}",
                    f"all is restored but for them; {look}{down[0]} ; then: systemctl start {' '.join(down)}",
                )

    @staticmethod
    def _exists(unit: str) -> bool:
        return subprocess.run(["systemctl", "cat", unit], capture_output=True, check=False).returncode == 0

    def start_proxy(self) -> None:
        """Start the reverse proxy where it does not run. Raises Failure (NOT_READY)."""
        self.compose("up", "--detach", "--no-recreate", "caddy")

    def stop_server(self) -> None:
        """Stop the server; one that is not there is stopped."""
        try:
            docker.from_env().containers.get(SERVER).stop(timeout=30)
        except docker.errors.NotFound:
            return
        except docker.errors.DockerException as error:
            raise Failure(
                Code.NOT_READY, f"the server's container does not stop: {error}", "look at: docker ps --all"
            ) from error

    def forget_leases(self) -> None:
        """Remove the leases of concurrency slots: they belong to the world before, and the server is stopped."""
        state = self.environment().get("PREFECT_STATE", "/var/lib/prefect")
        shutil.rmtree(Path(state) / "server" / "concurrency_leases", ignore_errors=True)

    def start_postgres(self, postgres: Postgres) -> None:
        """Start Postgres where it does not run. Raises Failure (NO_DATABASE) with its last words when it does not come."""
        try:
            # A directory of the volume that somebody has removed: Docker would not start the container.
            self.volume()
            self.compose("up", "--detach", "--no-recreate", "postgres", code=Code.NO_DATABASE)
            # Its health check asks over TCP: while a cluster is being made, a temporary server answers on the socket.
            self.wait_for(CONTAINER, Code.NO_DATABASE)
            postgres.wait(10)
        except (Failure, docker.errors.DockerException) as error:
            words = self.last_words(CONTAINER)
            if FULL.search(words) or FULL.search(str(error)):
                raise Failure(
                    Code.NO_ROOM,
                    f'Postgres does not start, because the disk is full: "{words}"',
                    "make room, then the same command again: df -h ; docker system prune ; journalctl --vacuum-size=100M",
                ) from error
            if isinstance(error, TooSlow):
                raise Failure(
                    Code.NO_DATABASE,
                    f'Postgres does not start within {self._patience}: "{words}"',
                    f"{SLOW} ; or if its data is beyond repair, set it aside: prefect-restore --latest --new-cluster",
                ) from error
            raise Failure(
                Code.NO_DATABASE,
                f'Postgres does not start: "{words}"',
                "if its data is beyond repair, set it aside and begin a new cluster: prefect-restore --latest --new-cluster",
            ) from error

    def last_words(self, container: str) -> str:
        """The last lines of a container's log, in one."""
        try:
            said = docker.from_env().containers.get(container).logs(tail=4).decode(errors="replace")
        except docker.errors.DockerException as error:
            return str(error)
        return " / ".join(said.strip().splitlines())

    def start_server(self, wait: bool = True) -> None:
        """Start the server and wait until it is ready. Raises Failure (NOT_READY).

        Without `wait` nobody waits for Postgres either: for what did not serve before.
        """
        if not wait:
            for name in (CONTAINER, SERVER):
                with contextlib.suppress(docker.errors.DockerException):
                    docker.from_env().containers.get(name).start()
            return
        self.compose("up", "--detach", "--no-recreate", "server")
        then = "when that is solved: prefect-restore --resume ; or go back: prefect-restore --undo"
        try:
            self.wait_for(SERVER, Code.NOT_READY)
        except TooSlow as slow:
            raise Failure(
                Code.NOT_READY,
                f'the server is not ready after {self._patience}: "{self.last_words(SERVER)}"',
                f"look at: docker logs --tail 50 {SERVER} ; {SLOW} ; {then}",
            ) from slow
        except Failure as failure:
            raise Failure(
                Code.NOT_READY,
                f'the server does not start: {failure.fact}: "{self.last_words(SERVER)}"',
                f"look at: docker logs --tail 50 {SERVER} ; {then}",
            ) from failure

    @property
    def _patience(self) -> str:
        """How long a start is waited for, with the setting that changes it."""
        return f"{self.settings.start_seconds} s (stack_start_timeout)"

    def wait_for(self, name: str, code: Code) -> None:
        """Wait until a container is healthy. Raises TooSlow when that takes too long, Failure when it ends again and again."""
        container = docker.from_env().containers.get(name)
        before = container.attrs["RestartCount"]
        end = time.monotonic() + self.settings.start_seconds
        while (container.status, container.health) != ("running", "healthy"):
            if (restarts := container.attrs["RestartCount"] - before) >= RESTARTS.get(name, 1):
                raise Failure(code, f"it has ended {restarts} times")
            if time.monotonic() > end:
                raise TooSlow(code, f"it is {container.status}, {container.health}")
            time.sleep(0.2)
            container.reload()

    def migrate(self, database: str, image: str = "", command: Sequence[str] = (), seconds: float = 4 * 3600) -> None:
        """Bring a database's schema to this host's version of Prefect. Raises Failure (RESTORE).

        Args:
            image: bring it to the version of that image instead.
            command: what is run in the place of the upgrade, such as a downgrade.
            seconds: that it may take.
        """
        self.compose(
            *("run", "--rm", "--no-TTY", "--no-deps", "--env", f"PREFECT_SERVER_DATABASE_NAME={database}", "migrate"),
            *command,
            code=Code.RESTORE,
            seconds=seconds,
            image=image,
        )

    def in_server(self, script: str, environment: dict[str, str]) -> str:
        """Run Python inside the server's container; gives the last line of its stdout. Raises Failure (NOT_READY)."""
        api = docker.from_env().api
        identity = api.exec_create(
            SERVER,
            ["python", "-c", script],
            environment={
                "PREFECT_API_URL": "http://127.0.0.1:4200/api",
                "PREFECT_LOGGING_LEVEL": "WARNING",
                **environment,
            },
        )["Id"]
        out, err = api.exec_start(identity, demux=True)
        if api.exec_inspect(identity)["ExitCode"] != 0:
            words = " / ".join((err or b"").decode(errors="replace").strip().splitlines()[-4:])
            raise Failure(
                Code.NOT_READY,
                f'the restored runs could not be put in order: "{words}"',
                "the data is restored; do the rest with: prefect-restore --resume",
            )
        return (out or b"").decode().strip().splitlines()[-1]

    # --- what is beside the database -----------------------------------------------------------------------------

    def volume(self) -> Path:
        """The directory of Postgres's volume on the host; made when the volume or its directory is gone. Raises Failure."""
        engine = docker.from_env()
        try:
            try:
                found = engine.volumes.get(VOLUME)
            except docker.errors.NotFound:
                self.compose("create", "--no-recreate", "postgres", code=Code.NO_DATABASE)
                found = engine.volumes.get(VOLUME)
        except docker.errors.DockerException as error:
            raise Failure(
                Code.NO_DATABASE, f"Postgres's volume cannot be found: {error}", "docker volume ls"
            ) from error
        data = Path(found.attrs["Mountpoint"])
        # The entrypoint gives it its owner.
        data.mkdir(mode=0o755, parents=True, exist_ok=True)
        return data

    def has_cluster(self) -> bool:
        """Whether there are data of Postgres's. Changes nothing. Raises Failure (NO_DATABASE)."""
        try:
            data = Path(docker.from_env().volumes.get(VOLUME).attrs["Mountpoint"])
        except docker.errors.NotFound:
            return False
        except docker.errors.DockerException as error:
            raise Failure(
                Code.NO_DATABASE, f"the Docker engine does not answer: {error}", "look at: systemctl status docker"
            ) from error
        return (data / "PG_VERSION").exists()

    def place(self) -> Path:
        """A directory on the file system that Postgres's volume is, or will be, on. Changes nothing."""
        try:
            path = Path(docker.from_env().volumes.get(VOLUME).attrs["Mountpoint"])
        except docker.errors.DockerException:
            path = Path("/var/lib/docker/volumes") / VOLUME
        while not path.exists():
            path = path.parent
        return path

    def set_aside(self, aside: Path) -> None:
        """Stop server and Postgres, and rename Postgres's data; the next start makes a new, empty cluster."""
        self.compose("stop", "server", "postgres")
        data = self.volume()
        data.rename(aside)
        # Docker would not start a container whose volume has no directory.
        data.mkdir(mode=0o755, exist_ok=True)

    def take_cluster(self, source: Path) -> None:
        """Have data that were set aside once in the place that `set_aside` has just emptied."""
        data = self.volume()
        data.rmdir()
        source.rename(data)

    def remove_aside(self, aside: Path) -> None:
        """Remove data that were set aside; what is gone already is no error."""
        shutil.rmtree(aside, ignore_errors=True)

    def put_back(self, aside: Path, source: Path | None = None) -> None:
        """Undo `set_aside`, also a half-done one. Postgres and the server are stopped then.

        The new cluster goes; with `source`, it is the one of `take_cluster`, and goes back there.
        """
        self.compose("stop", "server", "postgres")
        data, discarded = self.volume(), aside.with_name(f"{aside.name}.new")
        if aside.exists() and source is not None:
            if source.exists():
                data.rmdir()
            else:
                data.rename(source)
            aside.rename(data)
        elif aside.exists():
            # What is aside is back before anything is removed, and a death between the renames is no obstacle.
            if discarded.exists():
                data.rmdir()
            else:
                data.rename(discarded)
            aside.rename(data)
        shutil.rmtree(discarded, ignore_errors=True)

    def replace_caddy_data(self, restored: Path) -> None:
        """Put Caddy's data (its authority, certificates, ACME account) in the place of what is there."""
        place = Path(self.environment().get("PREFECT_STATE", "/var/lib/prefect")) / "caddy"
        new = place.with_name("caddy.restored")
        shutil.rmtree(new, ignore_errors=True)
        shutil.copytree(restored, new, symlinks=True)
        # The user may have another number on this host than on the one before.
        owner = place.stat()
        for path in (new, *new.rglob("*")):
            shutil.chown(path, owner.st_uid, owner.st_gid)
        new.chmod(owner.st_mode & 0o7777)
        before = place.with_name("caddy.before-restore")
        shutil.rmtree(before, ignore_errors=True)
        self.compose("stop", "caddy")
        place.rename(before)
        new.rename(place)
        self.compose("up", "--detach", "--no-recreate", "caddy")

    def repair_caddy_data(self) -> None:
        """Bring back Caddy's data where somebody was killed between its two renames."""
        place = Path(self.environment().get("PREFECT_STATE", "/var/lib/prefect")) / "caddy"
        before = place.with_name("caddy.before-restore")
        if not place.exists() and before.exists():
            before.rename(place)
