"""README's first command, as a newcomer types it: interrupted once, then to its end, and down. And every script once,
from a clean clone in an environment of its own.

That a second site.yml changes nothing is held by test_provision.py, on a host with more to change.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest

from tests.lab.vps.playbook import REPOSITORY
from tests.lab.vps.vps import Vps

NAME = "demo-test"
LOG = REPOSITORY / f".{NAME}" / "site.log"


def start(tmp_path, *words):
    return subprocess.Popen(
        [REPOSITORY / "scripts" / "demo", *words],
        cwd=tmp_path,
        env={**os.environ, "PREFECT_DEMO_NAME": NAME},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def demo(tmp_path, *words):
    process = start(tmp_path, *words)
    said, _ = process.communicate(timeout=900)
    assert process.returncode == 0, said[-6000:]
    return said


@pytest.fixture(scope="module", autouse=True)
def nothing_left_behind(lab):
    yield
    Vps(NAME).down()


def test_an_interrupted_try_is_no_harm(tmp_path):
    process = start(tmp_path)
    deadline = time.monotonic() + 600
    while not (LOG.exists() and "TASK [docker" in LOG.read_text()):
        if process.poll() is not None or time.monotonic() > deadline:
            # Not left to work on the next test's VPS.
            os.killpg(process.pid, signal.SIGKILL)
            pytest.fail(f"it has not come to the role docker:\n{process.communicate()[0][-3000:]}")
        time.sleep(0.5)
    # Ctrl-C reaches every process of the terminal.
    os.killpg(process.pid, signal.SIGINT)
    said, _ = process.communicate(timeout=60)
    assert process.returncode != 0
    assert "Traceback" not in said


def test_it_ends_with_a_completed_flow_run_and_a_working_address(tmp_path):
    said = demo(tmp_path)
    assert re.search(r'hello/hello: flow run "[\w-]+" Completed in', re.sub(r"\s+", " ", said))
    assert re.search(r"Restored \d{8}T\d{6}Z from local\. The API was away for [\d.]+ s\.", said)
    address = re.search(r"Prefect runs at (https://[\d.]+)\s+user admin\s+password (\S+)", said)
    assert address, said
    ca = REPOSITORY / f".{NAME}" / "inventory" / "ca.crt"
    # The password goes in by a file descriptor of curl's, as in README.
    done = subprocess.run(
        ["curl", "--silent", "--cacert", ca, "--config", "-", f"{address.group(1)}/api/admin/version"],
        input=f'user = "admin:{address.group(2)}"',
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert done.stdout.strip('"') == "3.8.8"


def test_down_leaves_nothing_behind(tmp_path):
    demo(tmp_path, "down")
    assert Vps(NAME).state == "absent"
    assert not LOG.parent.exists()
    listed = subprocess.run(["docker", "volume", "ls", "--quiet"], capture_output=True, text=True, check=True).stdout
    assert f"prefect-lab-{NAME}" not in listed
    assert NAME not in Path("/etc/hosts").read_text()


def test_every_script_runs_from_a_clean_clone(tmp_path):
    """In the order of README: an environment that ./scripts/setup has made must do for, or grow to, what the others need."""
    clone = tmp_path / "clone"
    named = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    files = subprocess.run(named, cwd=REPOSITORY, capture_output=True, text=True, check=True).stdout
    for name in filter(None, files.split("\0")):
        if (REPOSITORY / name).is_file():
            (clone / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(REPOSITORY / name, clone / name)
    scripts = sorted(path.name for path in (clone / "scripts").iterdir() if path.is_file() and os.access(path, os.X_OK))
    assert {"bench", "demo", "lock", "restore", "setup", "test"} <= set(scripts)
    # Not this process's own environment, which has everything.
    own = {name: value for name, value in os.environ.items() if name not in ("VIRTUAL_ENV", "PYTHONPATH")}
    own["PATH"] = os.pathsep.join(part for part in own["PATH"].split(os.pathsep) if ".venv" not in part)
    for script in ["setup", *(script for script in scripts if script != "setup")]:
        done = subprocess.run(
            [clone / "scripts" / script, "--help"], cwd=tmp_path, env=own, capture_output=True, text=True, timeout=300
        )
        assert done.returncode == 0, f"{script}: {done.stderr[-3000:]}"
        shows_how = f"./scripts/{script}" in done.stdout or "usage:" in done.stdout.lower()
        assert script == "setup" or shows_how, f"{script}: {done.stdout[-3000:]}"
