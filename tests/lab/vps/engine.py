"""The machine's Docker engine: the one that answers, else one that we install and start."""

from __future__ import annotations

import functools
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

from .shell import LabError, apt_install, cache_directory, locked, run, say, step

SECONDS_TO_START = 60
# Running VPSs are shut down first, each within its own stop timeout.
SECONDS_TO_STOP = 150


def _log() -> Path:
    return cache_directory() / "dockerd.log"


def _pidfile() -> Path:
    return cache_directory() / "dockerd.pid"


def _unit_mark() -> Path:
    """Present when we started the engine by systemctl, so that we may stop it so, too."""
    return cache_directory() / "docker.service-started"


def _answers(client: str) -> bool:
    done = run([client, "version", "--format", "{{.Server.Version}}"], check=False, timeout=30)
    return done.returncode == 0


@functools.cache
def _client() -> str:
    """The first `docker` client that the engine talks to; a client may be too new for a Debian engine."""
    candidates = [shutil.which("docker"), "/usr/bin/docker"]
    for client in candidates:
        if client and Path(client).exists() and _answers(client):
            return client
    return ""


def client() -> str:
    """Path of the docker client. Raises LabError when no engine answers."""
    if not _client():
        _client.cache_clear()
        raise LabError("no Docker engine answers", "python3 -m tests.lab.vps up")
    return _client()


def docker(
    *arguments: str, text: str | None = None, check: bool = True, timeout: float | None = None
) -> subprocess.CompletedProcess[str]:
    """Run the docker client to its end. The classic builder: Debian's engine package has no other."""
    return run([client(), *arguments], text=text, check=check, timeout=timeout, environment={"DOCKER_BUILDKIT": "0"})


def started_by_us() -> bool:
    """Whether the engine that runs is one that we started (by process id, and its command line names our file)."""
    return _our_pid() is not None or _unit_mark().exists()


def _our_pid() -> int | None:
    try:
        pid = int(_pidfile().read_text())
        words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except (OSError, ValueError):
        return None
    return pid if f"--pidfile={_pidfile()}".encode() in words else None


def start_engine() -> None:
    """Make sure that a Docker engine answers, installing and starting one where there is none.

    Raises LabError where neither is possible.
    """
    with locked("engine"):
        _client.cache_clear()
        if _client():
            return
        if os.environ.get("DOCKER_HOST"):
            raise LabError(
                f'no Docker engine answers at DOCKER_HOST="{os.environ["DOCKER_HOST"]}"', "unset DOCKER_HOST"
            )
        if os.geteuid() != 0:
            raise LabError(
                f'no Docker engine answers for user id "{os.geteuid()}", and only root may start one',
                "sudo systemctl start docker && sudo usermod --append --groups docker $USER, then log in again",
            )
        if not shutil.which("dockerd"):
            apt_install(["docker.io"], "The lab's Docker engine")
        if not shutil.which("docker"):
            # From Debian 13 on the client is a package of its own.
            apt_install(["docker-cli"], "The lab's Docker client")
        with step("starting the Docker engine"):
            _start()


def _start() -> None:
    if Path("/run/systemd/system").exists():
        run(["systemctl", "start", "docker.service"])
        _unit_mark().touch()
        process = None
    else:
        with _log().open("ab") as log:
            process = subprocess.Popen(
                ["dockerd", f"--pidfile={_pidfile()}"],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                # Not where it was started from: what looks for processes of a checkout would find the engine.
                cwd="/",
            )
    deadline = time.monotonic() + SECONDS_TO_START
    while time.monotonic() < deadline:
        if process and process.poll() is not None:
            raise LabError(f'dockerd ended at once with exit code "{process.returncode}"', f"tail {_log()}")
        _client.cache_clear()
        if _client():
            return
        time.sleep(0.3)
    raise LabError(f'the Docker engine did not answer within "{SECONDS_TO_START}" s', f"tail {_log()}")


def stop_engine() -> bool:
    """Stop the engine if it is one that we started; says whether it was."""
    with locked("engine"):
        _client.cache_clear()
        if _unit_mark().exists():
            run(["systemctl", "stop", "docker.socket", "docker.service"])
            _unit_mark().unlink()
            return True
        pid = _our_pid()
        if pid is None:
            say("the Docker engine is not one that the lab started: left running")
            return False
        with step("stopping the Docker engine"):
            os.kill(pid, signal.SIGTERM)
            deadline = time.monotonic() + SECONDS_TO_STOP
            while _our_pid() is not None:
                if time.monotonic() > deadline:
                    raise LabError(f'dockerd (process "{pid}") did not end', f"kill -9 {pid}")
                time.sleep(0.2)
        return True
