"""scripts/lock: the command that makes a lock, and what it refuses before it asks any index."""

from __future__ import annotations

import subprocess
import sys
from importlib.machinery import SourceFileLoader
from importlib.util import module_from_spec, spec_from_loader
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "scripts"))
LOADER = SourceFileLoader("lock", str(ROOT / "scripts/lock"))
lock = module_from_spec(spec_from_loader("lock", LOADER))
LOADER.exec_module(lock)


@pytest.mark.parametrize(
    ("source", "said"),
    [
        (None, '"{}" has no requirements.in, which says what the flows import'),
        ("httpx\n# prefect\nprefect-aws\n", '"{}/requirements.in" does not name prefect, which runs the flows'),
        ("prefect\n", None),
        ("  Prefect[docker] >= 3\nhttpx", None),
    ],
)
def test_what_cannot_be_locked(tmp_path, source, said):
    if source is not None:
        (tmp_path / "requirements.in").write_text(source)
    found = lock.problem(tmp_path)
    assert (found[0] if found else None) == (said.format(tmp_path) if said else None)


def test_a_directory_that_is_not_there_is_refused_as_fact_and_hint(tmp_path):
    done = subprocess.run([ROOT / "scripts/lock", tmp_path / "none"], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (
        2,
        f'ERROR: there is no directory "{tmp_path}/none"\nHINT: ./scripts/lock DIRECTORY\n',
    )


def test_the_command_has_hashes_extras_for_pip_and_no_address_of_an_index():
    words = lock.command("requirements.in", "requirements.txt", "3.11", ["--upgrade"], True)
    for word in ("--generate-hashes", "--no-emit-index-url", "--no-header", "--universal", "--no-strip-extras"):
        assert word in words
    assert words[-3:] == ["--python-version", "3.11", "--upgrade"]
    assert "--no-strip-extras" not in lock.command("a", "b", "3.11", [], False)
    newer = lock.command("a", "b", "3.11", ["--python-version", "3.13"], True)
    assert newer.count("--python-version") == 1


def test_a_requirement_with_extras_stands_there_without_them_too():
    made = (
        "a==1 \\\n    --hash=sha256:00\nb[x, y]==2 ; m \\\n    --hash=sha256:01 \\\n    --hash=sha256:02\n    # via a\n"
    )
    both = lock.with_bases(made)
    twice = "b==2 ; m \\\n    --hash=sha256:01 \\\n    --hash=sha256:02\n"
    assert both == made.replace("b[x, y]", f"{twice}b[x, y]")
    assert lock.with_bases(both) == both


def test_people_s_own_flows_are_locked_for_the_version_that_they_pin():
    text = lock.VERSIONS.read_text()
    newest = lock.of_new_hosts(text)
    assert newest in lock.supported(text)
    assert (
        lock.version_for("pandas\nprefect\n", text)
        == lock.version_for("prefect>=3\nprefect-aws==0.5\n", text)
        == newest
    )
    assert lock.version_for("Prefect == 3.8.8  # as the server\n", text) == "3.8.8"
    assert lock.version_for("prefect[aws]==3.8.8\n", text) == "3.8.8"
    for version in lock.supported(text):
        assert f"prefect=={version}\n" in (ROOT / lock.BOUNDS.format(version)).read_text()


def test_people_s_own_flows_keep_to_the_versions_of_clients():
    assert lock.FOR_PIP <= set(lock.LOCKS)
