"""The shards in which the lab's test files run side by side."""

from __future__ import annotations

from pathlib import Path

from tests.lab.shards import FILES, ORDER, SPACE, VARIABLE, shard, split, this_shard

LAB = Path(__file__).resolve().parents[1] / "lab"


def test_every_file_of_the_lab_is_in_one_shard():
    assert sorted(ORDER) == sorted(path.stem for path in LAB.glob("test_*.py"))


def test_files_that_are_named_are_run_in_their_own_shards():
    one, other, third = (
        f"tests/lab/{FILES[0][-1]}.py",
        f"tests/lab/{FILES[1][0]}.py::test_some",
        f"tests/lab/{FILES[0][0]}.py",
    )
    assert split(["-k", "x", other]) == {2: [other, "-k", "x"]}
    assert split([one, other, third]) == {1: [one, third], 2: [other]}


def test_options_alone_are_for_all_files():
    found = split(["-k", "proxy"])
    assert list(found) == list(range(1, len(FILES) + 1))
    assert found[2] == [*(f"tests/lab/{file}.py" for file in FILES[1]), "-k", "proxy"]
    assert split([])[1] == [f"tests/lab/{file}.py" for file in FILES[0]]


def test_shards_share_no_vps_and_no_network():
    all_of_them = [shard(number) for number, _ in enumerate(FILES, 1)]
    assert len({one.vps for one in all_of_them}) == len({one.network for one in all_of_them}) == len(FILES)


def test_the_first_shard_is_the_one_that_nobody_has_named(monkeypatch):
    monkeypatch.delenv(SPACE, raising=False)
    monkeypatch.delenv(VARIABLE, raising=False)
    assert this_shard() == shard(1)
    monkeypatch.setenv(VARIABLE, "2")
    assert this_shard() == shard(2)


def test_two_checkouts_on_one_machine_have_vps_of_their_own(monkeypatch):
    monkeypatch.setenv(VARIABLE, "2")
    monkeypatch.setenv(SPACE, "mine")
    assert (this_shard().vps, this_shard().network) == ("tests-2-mine", "prefect-lab-2-mine")
