"""The containers and workers of this host, as far as a restore stops and starts them."""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import subprocess
import time
from pathlib import Path

import docker
import docker.errors

from .errors import Code, Failure
from .postgres import CONTAINER, Postgres
from .settings import Settings

SERVER = "prefect-server"
CADDY = "prefect-caddy"
WORKERS = ("prefect-worker@*.service", "prefect-docker-worker@*.service")
#: What a docker worker gives the container of a flow run.
RUN_LABEL = "io.prefect.flow-run-id"
#: A worker finds this mark in its own directory there, and does not wait for its flow runs when it is told to stop.
AT_ONCE = "/run/prefect-worker/{name}/at-once"
# Seconds until a started server must be ready; a small host under load needs most of it.
SERVER_SECONDS = 180
POSTGRES_SECONDS = 120
# And how often Docker may start it anew meanwhile, before it is given up.
POSTGRES_RESTARTS = 3


def _run(arguments: list[str], code: Code, hint: str, seconds: float = 600) -> str:
    """Run a command of the host; gives its stdout. Raises Failure with its last words."""
    try:
        done = subprocess.run(arguments, capture_output=True, text=True, timeout=seconds, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise Failure(code, f'"{" ".join(arguments)}" failed: {error}', hint) from error
    if done.returncode:
        words = " / ".join((done.stderr or done.stdout).strip().splitlines()[-4:])
        raise Failure(code, f'"{" ".join(arguments[:6])} …" ended with {done.returncode}: "{words}"', hint)
    return done.stdout


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
        """The version of Prefect that this host runs, by the tag of its image or else by asking the image."""
        image = self.environment().get("PREFECT_IMAGE", "")
        found = re.search(r":(\d+\.\d+\.\d+[a-z0-9]*)", image)
        if found:
            return found[1]
        said = docker.from_env().containers.run(
            image, ["python", "-c", "import prefect; print(prefect.__version__)"], network_mode="none", remove=True
        )
        return said.decode().strip().splitlines()[-1]

    def active_workers(self) -> list[str]:
        """Units of workers that run, or that systemd is about to start again."""
        said = _run(
            ["systemctl", "list-units", "--all", "--plain", "--output=json", *WORKERS],
            Code.NOT_READY,
            "systemctl status",
        )
        return [unit["unit"] for unit in json.loads(said) if unit["active"] in {"active", "activating", "reloading"}]

    # --- stop and start ----------------------------------------------------------------------------------------

    def compose(self, *arguments: str, code: Code = Code.NOT_READY, seconds: float = 600) -> None:
        """docker compose on the project of this host."""
        settings = self.settings
        _run(
            ["docker", "compose", "--env-file", settings.compose_environment, "-f", settings.compose_file, *arguments],
            code,
            "look at: docker ps --all --filter name=prefect- ; journalctl -u prefect-stack -n 20",
            seconds,
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
            _run(["systemctl", "stop", *units], Code.NOT_READY, "look at: systemctl status " + units[0])
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
        """Start them and, with `wait`, see that they stay. Raises Failure (NOT_READY) with the unit's name."""
        if not units:
            return
        how = [] if wait else ["--no-block"]
        _run(["systemctl", "start", *how, *units], Code.NOT_READY, "look at: journalctl -n 20 -u " + units[0])
        if wait:
            time.sleep(2)
            for unit in units:
                _run(["systemctl", "is-active", unit], Code.NOT_READY, f"look at: journalctl -n 20 -u {unit}")

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
            self.compose("up", "--detach", "--no-recreate", "postgres", code=Code.NO_DATABASE)
            self._wait_for_postgres()
            postgres.wait(10)
        except (Failure, docker.errors.DockerException) as error:
            raise Failure(
                Code.NO_DATABASE,
                f'Postgres does not start: "{self.last_words(CONTAINER)}"',
                "if its data is beyond repair, set it aside and begin a new cluster: prefect-restore --latest --new-cluster",
            ) from error

    def _wait_for_postgres(self) -> None:
        """Wait for its health check, which asks over TCP: while a cluster is being made, a temporary server answers on
        the socket. Raises Failure (NO_DATABASE) when it does not come, or ends again and again."""
        container = docker.from_env().containers.get(CONTAINER)
        restarts = container.attrs["RestartCount"]
        end = time.monotonic() + POSTGRES_SECONDS
        while (container.status, container.health) != ("running", "healthy"):
            if time.monotonic() > end or container.attrs["RestartCount"] - restarts >= POSTGRES_RESTARTS:
                raise Failure(Code.NO_DATABASE, f"it is {container.status}, {container.health}")
            time.sleep(0.2)
            container.reload()

    def last_words(self, container: str) -> str:
        """The last lines of a container's log, in one."""
        try:
            said = docker.from_env().containers.get(container).logs(tail=4).decode(errors="replace")
        except docker.errors.DockerException as error:
            return str(error)
        return " / ".join(said.strip().splitlines())

    def start_server(self) -> None:
        """Start the server and wait until it is ready. Raises Failure (NOT_READY)."""
        self.compose("up", "--detach", "--no-recreate", "server")
        end = time.monotonic() + SERVER_SECONDS
        engine = docker.from_env()
        while True:
            container = engine.containers.get(SERVER)
            if container.health == "healthy":
                return
            if time.monotonic() > end:
                raise Failure(
                    Code.NOT_READY,
                    f'the server is not ready after {SERVER_SECONDS} s: "{self.last_words(SERVER)}"',
                    f"look at: docker logs --tail 50 {SERVER} ; then: prefect-restore --undo",
                )
            time.sleep(0.2)

    def migrate(self, database: str) -> None:
        """Bring a database's schema to this host's version of Prefect. Raises Failure (RESTORE)."""
        self.compose(
            *("run", "--rm", "--no-TTY", "--no-deps", "--env", f"PREFECT_SERVER_DATABASE_NAME={database}", "migrate"),
            code=Code.RESTORE,
            seconds=4 * 3600,
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
        """The directory of Postgres's volume on the host; it may be missing. Raises Failure."""
        try:
            return Path(docker.from_env().volumes.get("prefect_postgres").attrs["Mountpoint"])
        except docker.errors.DockerException as error:
            raise Failure(
                Code.NO_DATABASE, f"Postgres's volume cannot be found: {error}", "docker volume ls"
            ) from error

    def new_cluster(self) -> Path | None:
        """Stop Postgres and set its data aside; gives where it is. The next start makes a new, empty cluster."""
        self.compose("stop", "server", "postgres")
        data = self.volume()
        aside = None
        if data.exists():
            aside = data.with_name(time.strftime("broken-%Y%m%dT%H%M%SZ", time.gmtime()))
            data.rename(aside)
        # Docker would not start a container whose volume has no directory; the entrypoint gives it its owner.
        data.mkdir(mode=0o755, exist_ok=True)
        return aside

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
