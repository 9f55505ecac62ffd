"""The history in the terminal and as a page: scales, gaps, and what is said when there is little to show."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest
from prefect_backups.errors import Failure
from prefect_backups.settings import Endpoint, Settings
from prefect_doctor import cli, history, history_page, samples
from prefect_doctor.charts import Line, Span, charts, figures, marks, numbers, slots, span, ticks
from prefect_doctor.samples import EVERY, Sample, line_of

from tests.unit.week import GB, NOW, OFF, a_week

HOUR = 3600.0


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings("0", Endpoint("https://prefect.example.com:8443", "doctor", "password", "ca"), state=str(tmp_path))


def given(settings: Settings, found: list[Sample]) -> None:
    samples.file_of(settings).write_bytes(b"".join(line_of(one) + b"\n" for one in found))


# --- scales ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("highest", "expected"),
    [
        (100, [0, 20, 40, 60, 80, 100]),
        (10, [0, 2, 4, 6, 8, 10]),
        (5, [0, 1, 2, 3, 4, 5]),
        (1, [0, 0.2, 0.4, 0.6, 0.8, 1]),
        (2.53, [0, 1, 2, 3]),
        (399, [0, 100, 200, 300, 400]),
        (1_234_567, [0, 500_000, 1_000_000, 1_500_000]),
    ],
)
def test_ticks_are_round_and_reach_above_all(highest, expected):
    assert ticks(highest) == pytest.approx(expected)


def test_numbers_that_stand_together_have_the_same_digits():
    assert numbers([21, 25.03, 25]) == ["21.0", "25.0", "25.0"]
    assert numbers([0, 0.441, 5.98]) == ["0.00", "0.44", "5.98"]
    assert numbers([0, 3, 1200]) == ["0", "3", "1,200"]
    assert numbers([0.4, 399.6]) == ["0", "400"]
    assert figures(Line("x", "%", [])) == ["-", "-", "-"]


@pytest.mark.parametrize(
    ("hours", "expected"),
    [
        (1, ["04:00", "04:15", "04:30", "04:45", "05:00"]),
        (5, ["04:00", "05:00", "06:00", "07:00", "08:00", "09:00"]),
        (36, ["06:00", "12:00", "18:00", "Sat 28", "06:00", "12:00"]),
        (7 * 24, ["Sat 28", "Sun 29", "Mon 30", "Tue 1", "Wed 2", "Thu 3", "Fri 4"]),
    ],
)
def test_marks_of_time_are_round(hours, expected):
    assert [history_page.mark(at) for at in marks(Span(NOW, NOW + hours * HOUR))] == expected


def test_slots_have_the_highest_of_their_time():
    shown = Span(0, 4 * HOUR)
    assert slots([(10, 1.0), (20, 7.0), (30, 2.0), (2 * HOUR, 3.0), (4 * HOUR, 4.0)], shown, 4) == [7.0, None, 3.0, 4.0]
    # A slot holds at least one sample of a host that is on, however wide the picture is.
    many = slots([(index * EVERY, 1.0) for index in range(49)], shown, 1000)
    assert (len(many), None in many) == (16, False)
    assert slots([(5.0, 1.0)], Span(5, 5), 50) == [1.0]


def test_the_time_that_is_shown_and_its_gaps():
    found = [Sample(at) for at in (0.0, 300, 600, 5000, 5300)]
    assert span(found, 5400) == Span(0, 5400, [(600, 5000)])
    # Off until now; and a picture of an hour at least, whose beginning is no gap.
    assert span(found[:2], 9000) == Span(0, 9000, [(300, 9000)])
    assert span(found[:2], 400) == Span(400 - HOUR, 400, [])


def test_a_sparkline():
    assert history.sparkline([0, 1, None, 3.5, 7, 9], 7) == "▁▂·▅██"
    assert history.sparkline([0, 0], 0) == "▁▁"


def test_the_outline_of_a_line_is_broken_at_gaps():
    wide = history_page.WIDTH - history_page.LEFT - history_page.RIGHT
    low, high = history_page.HEIGHT - history_page.BOTTOM, history_page.TOP
    x = [history_page.LEFT + wide * (index + 0.5) / 4 for index in range(4)]
    assert history_page.path([0, 10, None, 5], 10) == (
        f"M{x[0]:.1f} {low:.1f}L{x[1]:.1f} {high:.1f}M{x[3] - 2:.1f} {(low + high) / 2:.1f}h4"
    )
    assert history_page.path([None, None], 10) == ""


# --- what is shown -----------------------------------------------------------------------------------------------


def test_a_week():
    found = a_week()
    made = {chart.title: chart for chart in charts(found)}
    assert [line.name for line in made["Flow runs ended"].lines] == ["Completed", "Failed", "Crashed", "Cancelled"]
    assert made["Database"].unit == "GB"
    assert made["Disk in use"].lines[0].unit == "% of 40.0 GB"
    # While Postgres was down its figures are not known, and the machine's are.
    assert len(made["CPU busy"].lines[0].points) - len(made["Database"].lines[0].points) == 10
    shown = span(found, NOW)
    assert len(shown.gaps) == 1
    assert shown.gaps[0][1] - shown.gaps[0][0] == (len(OFF) + 1) * EVERY
    assert history.summary(found, shown) == (
        "1886 samples since 2026-11-20 04:05 UTC, over 7 days. 1 gap of 11 hours from 2026-11-23 07:00 UTC:"
        " the host or prefect-watch was off."
    )


def test_what_a_newer_prefect_calls_its_states_is_shown_too():
    (_, *_, ended, _, _) = charts([Sample(NOW, ended={"PAUSED": 2})])
    assert [line.name for line in ended.lines][-1] == "Paused"


def test_the_terminal(settings, capsys):
    given(settings, a_week())
    history.show(settings, "", NOW)
    said = capsys.readouterr().out
    (failed,) = [line for line in said.splitlines() if "Failed" in line]
    assert "·" in failed
    assert failed.split()[-5:] == ["1", "1", "67", "an", "hour"]
    assert "1886 samples since 2026-11-20 04:05 UTC, over 7 days." in said


def test_the_page_is_whole_and_needs_nobody(settings, tmp_path, capsys):
    given(settings, a_week())
    target = tmp_path / "history.html"
    history.show(settings, str(target), NOW)
    text = target.read_text()
    assert f"{target}: 1886 samples since" in capsys.readouterr().out
    assert "<title>prefect.example.com: the last 7 days</title>" in text
    assert not any(word in text for word in ("<script", "src=", "href=", "url(", "@import", "http://", "https://"))
    # All of it is well-formed, and so is each drawing.
    body = ElementTree.fromstring(text[text.index("<body>") : text.index("</html>")])
    drawings = body.findall(".//svg")
    assert len(drawings) == 8
    assert all(len(one.findall("rect")) == 1 for one in drawings)
    assert len(text) < 200_000


@pytest.mark.parametrize("target", ["", "-"])
def test_little_to_show_is_said(settings, capsys, target):
    history.show(settings, target, NOW)
    assert "There are no samples yet." in capsys.readouterr().out
    given(settings, a_week(1))
    history.show(settings, target, NOW)
    assert "One sample yet, of 2026-11-27 04:00 UTC: there is one every 5 minutes." in capsys.readouterr().out


def test_names_are_shown_as_they_are(settings, capsys):
    given(settings, [Sample(NOW, {"/a[b]<c>": (GB, 2 * GB)})])
    history.show(settings, "", NOW)
    assert "/a[b]<c>" in capsys.readouterr().out
    history.show(settings, "-", NOW)
    assert "/a[b]&lt;c&gt;" in capsys.readouterr().out


def test_a_page_that_cannot_be_written(settings, tmp_path):
    with pytest.raises(Failure) as caught:
        history.show(settings, str(tmp_path / "no" / "history.html"), NOW)
    assert "cannot be written: No such file or directory" in caught.value.fact


def test_the_command_line(settings, monkeypatch, capsys):
    monkeypatch.setattr(cli.os, "geteuid", lambda: 0)
    monkeypatch.setattr(cli, "MOVED", Path("/does/not/exist"))
    monkeypatch.setattr(cli.settings, "load", lambda: settings)
    monkeypatch.setattr("sys.argv", ["prefect-doctor", "--history"])
    assert cli.main() == 0
    assert "There are no samples yet." in capsys.readouterr().out
    monkeypatch.setattr("sys.argv", ["prefect-doctor", "--history", "/does/not/exist.html"])
    assert cli.main() == 3
    assert '"/does/not/exist.html" cannot be written' in capsys.readouterr().err
