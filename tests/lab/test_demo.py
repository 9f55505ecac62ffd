"""README's first command, as a newcomer types it: interrupted once, then to its end, and down.

That a second site.yml changes nothing is held by test_provision.py, on a host with more to change.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import time
from pathlib import Path

import pytest

from tests.lab.vps import images
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
        # A suite that was started in the background ignores Ctrl-C, and would hand that on.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
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
    assert done.stdout.strip('"') == images.NEWEST


def test_down_leaves_nothing_behind(tmp_path):
    demo(tmp_path, "down")
    assert Vps(NAME).state == "absent"
    assert not LOG.parent.exists()
    listed = subprocess.run(["docker", "volume", "ls", "--quiet"], capture_output=True, text=True, check=True).stdout
    assert f"prefect-lab-{NAME}" not in listed
    assert NAME not in Path("/etc/hosts").read_text()
