"""The name of a release of flows: it changes with what the release holds, and with nothing else."""

from __future__ import annotations

import importlib.util
import re
import shutil
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SPEC = importlib.util.spec_from_file_location("prefect_release", ROOT / "ansible/filter_plugins/prefect_release.py")
release = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(release)


@pytest.fixture
def flows(tmp_path) -> Path:
    directory = tmp_path / "flows"
    (directory / "sub").mkdir(parents=True)
    (directory / "prefect.yaml").write_text("deployments: []\n")
    (directory / "requirements.txt").write_text("prefect==3.8.8\n")
    (directory / "hello.py").write_text("print('hello')\n")
    (directory / "sub" / "more.py").write_bytes(b"\x00\xff")
    return directory


def name(directory: Path) -> str:
    return release.prefect_release(str(directory))


def test_it_is_twelve_hexadecimal_digits_and_always_the_same(flows, tmp_path):
    assert re.fullmatch("[0-9a-f]{12}", name(flows))
    shutil.copytree(flows, tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "hello.py").touch()
    assert name(tmp_path / "elsewhere") == name(flows)
    assert name(tmp_path / "elsewhere" / ".." / "flows") == name(flows)


def test_what_tools_leave_behind_is_no_part_of_it(flows):
    before = name(flows)
    for left in ("__pycache__/hello.pyc", "sub/__pycache__/x.pyc", ".git/HEAD", ".venv/bin/python", ".ruff_cache/x"):
        (flows / left).parent.mkdir(parents=True, exist_ok=True)
        (flows / left).write_text("x")
    (flows / "empty").mkdir()
    assert name(flows) == before
    assert release.release_files(str(flows)) == ["hello.py", "prefect.yaml", "requirements.txt", "sub/more.py"]


def test_a_directory_of_such_a_name_above_it_does_not_empty_it(tmp_path, flows):
    below = tmp_path / ".venv" / "flows"
    shutil.copytree(flows, below)
    assert name(below) == name(flows)


def test_each_change_gives_another_name(flows):
    names = {name(flows)}
    (flows / "hello.py").write_text("print('hello!')\n")
    names.add(name(flows))
    (flows / "hello.py").rename(flows / "hallo.py")
    names.add(name(flows))
    (flows / "hallo.py").rename(flows / "sub" / "hallo.py")
    names.add(name(flows))
    (flows / "new.py").write_text("")
    names.add(name(flows))
    (flows / "sub" / "more.py").unlink()
    names.add(name(flows))
    (flows / "requirements.txt").write_text("prefect==3.8.9\n")
    names.add(name(flows))
    assert len(names) == 7


def test_content_that_moves_between_files_gives_another_name(flows):
    (flows / "a").write_text("12")
    (flows / "b").write_text("3")
    before = name(flows)
    (flows / "a").write_text("1")
    (flows / "b").write_text("23")
    assert name(flows) != before


def test_a_directory_that_is_no_release(flows):
    (flows / "requirements.txt").unlink()
    with pytest.raises(FileNotFoundError) as error:
        name(flows)
    assert str(error.value) == f'"{flows}" has no file "requirements.txt", which a release needs'


def test_the_flows_of_the_kit_are_a_release():
    assert "smoke.py" in release.release_files(str(ROOT / "flows"))
    assert name(ROOT / "flows")
