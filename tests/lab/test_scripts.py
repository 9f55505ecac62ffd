"""Every script of README, from a clean clone in an environment of its own."""

from __future__ import annotations

import os
import shutil
import subprocess

import pytest

from tests.lab.vps.playbook import REPOSITORY


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """`run("setup", "--help")` runs a script of a clone that has what git has, and nothing that was made since."""
    clone = tmp_path_factory.mktemp("scripts") / "clone"
    named = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    files = subprocess.run(named, cwd=REPOSITORY, capture_output=True, text=True, check=True).stdout
    for name in filter(None, files.split("\0")):
        if (REPOSITORY / name).is_file():
            (clone / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(REPOSITORY / name, clone / name)
    # Not this process's own environment, which has everything.
    own = {name: value for name, value in os.environ.items() if name not in ("VIRTUAL_ENV", "PYTHONPATH")}
    own["PATH"] = os.pathsep.join(part for part in own["PATH"].split(os.pathsep) if ".venv" not in part)

    def script(name, *words):
        path = clone / "scripts" / name
        return subprocess.run([path, *words], cwd=clone.parent, env=own, capture_output=True, text=True, timeout=600)

    script.names = sorted(
        path.name for path in (clone / "scripts").iterdir() if path.is_file() and os.access(path, os.X_OK)
    )
    return script


def test_each_says_how_it_is_used(run):
    """In the order of README: an environment that ./scripts/setup has made must do for, or grow to, what the others need."""
    assert {"bench", "demo", "lock", "restore", "setup", "test"} <= set(run.names)
    for name in ["setup", *(name for name in run.names if name != "setup")]:
        done = run(name, "--help")
        assert done.returncode == 0, f"{name}: {done.stderr[-3000:]}"
        shows_how = f"./scripts/{name}" in done.stdout or "usage:" in done.stdout.lower()
        assert name == "setup" or shows_how, f"{name}: {done.stdout[-3000:]}"


def test_a_bench_in_short(run, vps):
    """All that a bench does, once; its figures say nothing."""
    done = run("bench", "pickup", "--short", "--vps", vps.name)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    assert "the kit's worker" in done.stdout and "prefect worker start" in done.stdout
