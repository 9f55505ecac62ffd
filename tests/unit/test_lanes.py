"""The lanes in which the lab's test files run side by side."""

from __future__ import annotations

from pathlib import Path

from tests.lab.lanes import LANES, ORDER, SPACE, VARIABLE, this_lane

LAB = Path(__file__).resolve().parents[1] / "lab"


def test_every_file_of_the_lab_is_in_one_lane():
    assert sorted(ORDER) == sorted(path.stem for path in LAB.glob("test_*.py"))


def test_lanes_share_no_vps_and_no_domain():
    assert len({lane.vps for lane in LANES}) == len({lane.domain for lane in LANES}) == len(LANES)


def test_the_first_lane_is_the_one_that_nobody_has_named(monkeypatch):
    monkeypatch.delenv(SPACE, raising=False)
    monkeypatch.delenv(VARIABLE, raising=False)
    assert this_lane() is LANES[0]
    monkeypatch.setenv(VARIABLE, "2")
    assert this_lane() is LANES[1]


def test_two_checkouts_on_one_machine_have_vps_of_their_own(monkeypatch):
    monkeypatch.setenv(VARIABLE, "2")
    monkeypatch.setenv(SPACE, "mine")
    assert (this_lane().vps, this_lane().domain) == ("tests-2-mine", "mine-prefect-2.lab.test")
    assert this_lane().files == LANES[1].files
