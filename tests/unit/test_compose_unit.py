"""The shell in prefect-stack.service, with a stand-in for docker."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

UNIT = (Path(__file__).resolve().parents[2] / "systemd" / "prefect-stack.service").read_text()
# Answers `ps` with the containers that its filters name, of those that run; notes what it is told to stop.
DOCKER = """#!/bin/sh
case $1 in
ps) for name in $RUNNING; do case "$*" in *"name=^prefect-$name\\$"*) echo "id-$name" ;; esac; done ;;
stop) shift; echo "stop $*" >>"$NOTES"; exit "$STOP" ;;
compose) echo "$*" >>"$NOTES"; exit 1 ;;
esac
"""


def commands(key: str) -> str:
    """The shell program of a line of the unit, as systemd hands it on."""
    unfolded = UNIT.replace("\\\n", "")
    (found,) = re.findall(rf"^{key}=/bin/sh -c '(.*)'$", unfolded, re.MULTILINE)
    return found.replace("$$", "$")


@pytest.fixture
def run(tmp_path: Path):
    def execute(key: str, running: str, stop: int = 0, **environment: str) -> tuple[int, list[str]]:
        (tmp_path / "docker").write_text(DOCKER)
        (tmp_path / "docker").chmod(0o755)
        notes = tmp_path / "notes"
        notes.write_text("")
        program = commands(key).replace("/usr/bin/docker", str(tmp_path / "docker")).replace("sleep 15", "sleep 0")
        given = {"PATH": "/usr/bin:/bin", "RUNNING": running, "STOP": str(stop), "NOTES": str(notes)} | environment
        done = subprocess.run(["sh", "-c", program], env=given, capture_output=True, text=True, timeout=20)
        assert done.stderr == ""
        return done.returncode, notes.read_text().splitlines()

    return execute


@pytest.mark.parametrize("result", ["success", "signal", "core-dump", "oom-kill"])
def test_stop_means_stopped_the_database_last(run, result: str) -> None:
    """However many run, and without compose, which does nothing while there is a mistake in its files."""
    all_three = run("ExecStopPost", "postgres server caddy", SERVICE_RESULT=result)
    assert all_three == (0, ["stop id-server id-caddy", "stop id-postgres"])
    assert run("ExecStopPost", "postgres", SERVICE_RESULT=result) == (0, ["stop id-postgres"])
    assert run("ExecStopPost", "", SERVICE_RESULT=result) == (0, [])
    assert run("ExecStopPost", "server postgres", stop=1, SERVICE_RESULT=result)[0] == 1


@pytest.mark.parametrize("result", ["exit-code", "timeout"])
def test_a_start_that_failed_leaves_what_serves_and_is_tried_again(run, result: str) -> None:
    assert run("ExecStopPost", "postgres server caddy", SERVICE_RESULT=result) == (0, [])
    code, notes = run("ExecStart", "")
    assert (code, notes) == (1, ["compose up --detach --wait"])
    # Between two tries systemd runs no command of a unit that is stopped.
    assert "\nRestart=on-failure\nRestartSec=0\n" in UNIT
    assert "\nStartLimitIntervalSec=0\n" in UNIT


def test_nothing_of_somebody_elses_is_removed() -> None:
    assert not [line for line in UNIT.splitlines() if "--remove-orphans" in line and not line.startswith("#")]
