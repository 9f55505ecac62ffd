"""Releases of flows: their names, what is none, which ones stay, and which one a rollback goes back to."""

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


def test_an_executable_bit_gives_another_name(flows):
    before = name(flows)
    (flows / "hello.py").chmod(0o755)
    assert name(flows) != before
    (flows / "hello.py").chmod(0o644)
    assert name(flows) == before


def test_links_that_stay_inside_are_followed(flows):
    before = name(flows)
    (flows / "linked").symlink_to("sub")
    (flows / "again.py").symlink_to("hello.py")
    assert "linked/more.py" in release.release_files(str(flows))
    assert "again.py" in release.release_files(str(flows))
    followed = name(flows)
    assert followed != before
    (flows / "sub" / "more.py").write_text("changed")
    assert name(flows) != followed


def test_links_that_cannot_be_followed_are_refused_in_words(flows, tmp_path):
    (flows / "requirements.txt").write_text(LOCKED)
    (flows / "prefect.yaml").write_text("deployments: []\n")
    (tmp_path / "shared").mkdir()
    (tmp_path / "shared" / "x.py").write_text("")
    (flows / "a").symlink_to(tmp_path / "shared")
    (flows / "b.py").symlink_to("../shared/x.py")
    (flows / "c").symlink_to("nowhere")
    (flows / "sub" / "d").symlink_to("..")
    (flows / "e.py").symlink_to(flows / "hello.py")
    (flows / "ring").symlink_to("ring")
    assert problems(flows) == [
        f'"a" is a link to "{tmp_path}/shared", outside: put what it leads to into the directory itself',
        '"b.py" is a link to "../shared/x.py", outside: put what it leads to into the directory itself',
        '"c" is a link to "nowhere", which is not there',
        f'"e.py" is a link to "{flows}/hello.py", which will not be there on the server: make it a relative one',
        '"ring" is a link to "ring", which is not there',
        '"sub/d" is a link to "..", a directory that it lies in itself',
    ]


def test_a_project_in_a_project_is_no_part_of_it_and_is_named(flows):
    before = name(flows)
    (flows / "sub" / "other").mkdir()
    (flows / "sub" / "other" / "prefect.yaml").write_text("deployments: []\n")
    assert name(flows) == before
    assert release.prefect_release_left_out(str(flows)) == ["sub/other"]


def test_a_directory_that_is_no_release(flows):
    (flows / "requirements.txt").unlink()
    with pytest.raises(FileNotFoundError) as error:
        name(flows)
    assert str(error.value) == f'"{flows}" has no file "requirements.txt", which a release needs'


def test_the_flows_of_the_kit_are_a_release():
    assert "smoke.py" in release.release_files(str(ROOT / "flows"))
    assert not [name for name in release.release_files(str(ROOT / "flows")) if name.startswith("template")]
    assert release.prefect_release_left_out(str(ROOT / "flows")) == ["template"]
    assert name(ROOT / "flows")


# --- what is no release ------------------------------------------------------------------------------------------

LOCKED = (
    "prefect==3.8.8 \\\n    --hash=sha256:00\nhttpx==1 ; python_version > '3' --hash=sha256:01\n    # via prefect\n"
)


def problems(directory: Path) -> list[str]:
    return release.prefect_release_problems(str(directory))


def test_the_kit_s_flows_have_no_problem():
    assert problems(ROOT / "flows") == []


def test_a_directory_that_is_not_there(tmp_path):
    assert problems(tmp_path / "none") == ["there is no such directory"]


def test_a_repository_with_its_flows_further_down(tmp_path, flows):
    assert problems(tmp_path) == [
        "it has no prefect.yaml; there is one in flows (of a git repository: flows_git_directory)",
        "it has no requirements.txt (a lock with hashes): scripts/lock DIRECTORY makes it from a requirements.in",
    ]


@pytest.mark.parametrize(
    ("lock", "problem"),
    [
        (LOCKED, None),
        ("# nothing\n" + LOCKED + "--no-binary :all:\n", None),
        (
            "prefect==3.8.8\nhttpx\n",
            'requirements.txt has no hashes for "prefect==3.8.8" and 1 more. '
            "Make it with: scripts/lock DIRECTORY, from a requirements.in",
        ),
        ("httpx==1 --hash=sha256:01\n", "requirements.txt does not name prefect, which runs the flows"),
        ("", "requirements.txt does not name prefect, which runs the flows"),
    ],
)
def test_a_lock_has_hashes_and_names_prefect(flows, lock, problem):
    (flows / "requirements.txt").write_text(lock)
    assert problems(flows) == ([problem] if problem else [])


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("a: [", "its prefect.yaml is no YAML: "),
        ("", "its prefect.yaml has no list of deployments"),
        ("deployments: {a: 1}", "its prefect.yaml has no list of deployments"),
        ("deployments: [a]", "its prefect.yaml has no list of deployments"),
    ],
)
def test_a_definition_that_is_none(flows, text, problem):
    (flows / "requirements.txt").write_text(LOCKED)
    (flows / "prefect.yaml").write_text(text)
    (said,) = problems(flows)
    assert said.startswith(problem)


# --- history, what stays, rollback -------------------------------------------------------------------------------


def history(*releases: str) -> list[dict]:
    return [{"time": f"2026-01-0{i}", "release": name, "source": f"/{name}"} for i, name in enumerate(releases, 1)]


def test_a_line_that_was_cut_off_is_left_out():
    assert release.prefect_history('{"release": "a"}\n{"release": "b"}\n{"rel') == [{"release": "a"}, {"release": "b"}]
    assert release.prefect_history("") == []


@pytest.mark.parametrize(
    ("deployed", "count", "named", "stay"),
    [
        ("d", 5, [], "abcd"),
        ("d", 2, [], "bcd"),
        ("d", 0, [], "d"),
        ("d", -1, [], "d"),
        ("d", 0, ["a"], "ad"),
        # Deployed again: the ones before it are those that were deployed last, not those that are newest.
        ("b", 1, [], "bd"),
        ("new", 1, [], ["d", "new"]),
    ],
)
def test_which_releases_stay(deployed, count, named, stay):
    past = history("a", "b", "a", "b", "c", "d")
    assert release.prefect_releases_to_keep(past, count, deployed, named) == sorted(stay)


def test_back_is_the_one_before_and_twice_is_forward():
    there = {"server": ["a", "b", "c"], "worker": ["a", "b", "c"]}
    assert release.prefect_rollback(history("a", "b", "c"), there)["release"] == "b"
    assert release.prefect_rollback(history("a", "b", "c", "b"), there)["release"] == "c"
    chosen = release.prefect_rollback(history("a", "b", "c"), there, "a")
    assert (chosen["release"], chosen["source"]) == ("a", "/a")


@pytest.mark.parametrize(
    ("past", "there", "wanted", "problem"),
    [
        ("ab", {"s": ["a", "b"]}, "b", 'the release "b" is deployed already'),
        ("ab", {"s": ["a", "b"]}, "x", 'the release "x" is not on s'),
        ("ab", {"s": ["b"]}, "", 'the release "a" is no longer on s'),
        ("ab", {"s": ["a", "b"], "w": ["b"]}, "a", 'the release "a" is no longer on w'),
        ("b", {"s": ["b"]}, "", "no other release was deployed before"),
        ("", {"s": []}, "", "no other release was deployed before"),
    ],
)
def test_a_rollback_that_is_refused(past, there, wanted, problem):
    chosen = release.prefect_rollback(history(*past), there, wanted)
    assert (chosen["release"], chosen["problem"]) == ("", problem)


def test_what_there_is_the_newest_first():
    assert release.prefect_rollback(history("a", "b"), {"s": ["a", "b", "c"]}, "x")["there"] == [
        "b  2026-01-02  /b  (deployed)",
        "a  2026-01-01  /a",
        "c  never deployed",
    ]


def test_how_many_deployments_have_changed():
    before = {"deployments": {"a/a": "1", "b/b": "1", "c/c": "1"}}
    after = {"deployments": {"b/b": "2", "c/c": "1", "d/d": "2"}}
    assert release.prefect_deployments_changed(before, after) == {"new": 1, "changed": 1, "removed": 1}
