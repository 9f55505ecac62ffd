"""The module prefect_owner: directories change hands whatever somebody has put there. Here the new owner is whoever runs the tests."""

from __future__ import annotations

import grp
import os
import pwd
import stat
from pathlib import Path

import pytest

from .test_modules import ANSIBLE, load

owner = load("prefect_owner", ANSIBLE / "library/prefect_owner.py")
ME, GROUP = pwd.getpwuid(os.getuid()).pw_name, grp.getgrgid(os.getgid()).gr_name


def tree(path: Path, **more) -> dict:
    given = {"path": str(path), "uid": os.getuid(), "gid": os.getgid(), "mode": None, "shared": None, "former": None}
    return owner.Tree(**{**given, **more})


def take(path: Path, look_only: bool = False, **more) -> bool:
    return owner.Hands(tree(path, **more), look_only).take()


@pytest.fixture
def state(tmp_path: Path) -> Path:
    """What is to be handed over, with a file outside that a flow would like to get along with it."""
    (tmp_path / "outside").write_text("secret")
    (tmp_path / "outside").chmod(0o600)
    state = tmp_path / "state"
    (state / "deep" / "deeper").mkdir(parents=True)
    (state / "deep" / "file").write_text("mine")
    state.chmod(0o755)
    return state


def test_it_is_done_once(state):
    assert take(state, mode=0o700)
    assert stat.S_IMODE(state.stat().st_mode) == 0o700
    assert not take(state, mode=0o700)


def test_a_look_changes_nothing(state):
    assert take(state, look_only=True, mode=0o700)
    assert stat.S_IMODE(state.stat().st_mode) == 0o755


def test_links_are_not_followed(state):
    outside = state.parent / "outside"
    (state / "link").symlink_to(outside)
    (state / "tree").symlink_to(state.parent)
    os.mkfifo(state / "pipe")
    before = outside.stat()
    assert take(state, mode=0o700)
    assert outside.stat() == before
    assert (state / "link").is_symlink()


def test_a_hard_link_to_a_file_outside_becomes_a_copy(state):
    outside = state.parent / "outside"
    os.link(outside, state / "deep" / "hard")
    assert take(state, mode=0o700)
    assert outside.stat().st_nlink == 1
    outside.write_text("changed later")
    assert (state / "deep" / "hard").read_text() == "secret"
    assert sorted(path.name for path in (state / "deep").iterdir()) == ["deeper", "file", "hard"]


def test_hard_links_among_its_own_files_stay(state):
    os.link(state / "deep" / "file", state / "again")
    assert take(state, mode=0o700)
    assert (state / "again").stat().st_nlink == 2


def test_only_what_is_the_former_users_changes_hands(state):
    assert not take(state, former=os.getuid() + 1)
    assert take(state, look_only=True, former=os.getuid())
    assert stat.S_IMODE(state.stat().st_mode) == 0o755


def test_a_group_reads_and_writes_what_anybody_makes_there(state):
    try:
        os.setxattr(state, owner.DEFAULT, owner.acl(os.getgid(), 7))
        os.removexattr(state, owner.DEFAULT)
    except OSError:
        pytest.skip("this file system keeps no access control lists")
    assert take(state, shared=12345)
    assert not take(state, shared=12345)
    assert stat.S_IMODE(state.stat().st_mode) == 0o770
    before = os.umask(0o077)
    try:
        (state / "new").mkdir()
        (state / "new" / "file").write_text("of one worker's")
    finally:
        os.umask(before)
    for path in (state / "new" / "file", state / "deep" / "file"):
        assert stat.S_IMODE(path.stat().st_mode) == 0o660
        assert b"\x08\x00\x07\x00" in (said := os.getxattr(path, owner.ACCESS)) or b"\x08\x00\x06\x00" in said


def test_one_that_is_absent_is_made_where_that_is_wanted(tmp_path):
    given = {"path": str(tmp_path / "a"), "owner": ME, "mode": "0700", "shared": None, "former": None, "make": False}
    assert not owner.hand_over(given, look_only=False)
    given["make"] = True
    assert owner.hand_over(given, look_only=True)
    assert not (tmp_path / "a").exists()
    if ME == GROUP:
        assert owner.hand_over(given, look_only=False)
        assert not owner.hand_over(given, look_only=False)
