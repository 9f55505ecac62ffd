"""The seams to Prefect against every version of it that the kit supports, each in an environment of its own."""

from __future__ import annotations

import os
import re
import subprocess

import pytest

from tests.contract import environments

ROOT = environments.HERE.parents[1]


@pytest.mark.parametrize("version", environments.SUPPORTED)
def test_the_seams_hold(version):
    python = environments.python_of(version)
    # Nothing of this machine's Prefect, which is another version.
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("PREFECT", "PYTHON"))}
    done = subprocess.run(
        [python, "-B", environments.HERE / "check.py"], env=clean, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.fullmatch(rf"{re.escape(version)}: (\d+) of \1 hold", done.stdout.splitlines()[-1])


def test_each_supported_version_has_a_lock_with_hashes_and_the_pinned_one_is_among_them():
    for version in environments.SUPPORTED:
        lock = environments.lock_of(version).read_text()
        assert f"\nprefect=={version} \\\n" in lock
        assert "://" not in lock
        requirements = re.findall(r"^[A-Za-z0-9].*==.*\n(?:    (--hash|#).*)", lock, re.MULTILINE)
        assert requirements
        assert set(requirements) == {"--hash"}
    pinned = re.search(r"^prefect==(\S+)", (ROOT / "docs/client/requirements.in").read_text(), re.MULTILINE)
    assert pinned[1] in environments.SUPPORTED


def test_an_environment_is_another_one_when_its_lock_is(tmp_path):
    places = set()
    for text in ("a==1\n", "a==2\n"):
        (tmp_path / "lock.txt").write_text(text)
        places.add(environments.place_of(tmp_path / "lock.txt", tmp_path))
    assert len(places) == 2
    assert all(place.parent == tmp_path for place in places)


def test_an_environment_that_cannot_be_made_leaves_nothing(tmp_path, monkeypatch):
    """Not half of one, which the next run would take for whole."""
    monkeypatch.setattr(environments.subprocess, "run", _fails)
    with pytest.raises(subprocess.CalledProcessError):
        environments._make(tmp_path / "lock.txt", tmp_path / "cache" / "place")
    assert list((tmp_path / "cache").iterdir()) == []


def _fails(words, **_):
    raise subprocess.CalledProcessError(1, words)
