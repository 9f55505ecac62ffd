"""The newer UI's analytics are taken out of the files that the server serves."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "compose" / "server"))

import analytics


def test_the_key_goes_and_nothing_else(tmp_path, monkeypatch):
    (tmp_path / "v2" / "assets").mkdir(parents=True)
    index, other = (tmp_path / "v2" / "assets" / name for name in ("index-a.js", "other.js"))
    index.write_text(f"function a(){{return`{'0af1' * 8}`}}function b(){{return`{'0' * 31}`}}")
    other.write_text(f"const hash=`{'0af1' * 8}`")
    monkeypatch.setenv("PREFECT_SERVER_UI_STATIC_DIRECTORY", str(tmp_path))
    assert analytics.turn_off() == ["index-a.js"]
    assert index.read_text() == f"function a(){{return``}}function b(){{return`{'0' * 31}`}}"
    assert other.read_text() == f"const hash=`{'0af1' * 8}`"
    assert analytics.turn_off() == []
    assert sorted(path.name for path in index.parent.iterdir()) == ["index-a.js", "other.js"]


def test_files_that_are_not_there_are_no_error(tmp_path):
    assert analytics.turn_off(tmp_path) == []
