"""The kit's metrics: the text format, what is counted on from minute to minute, and how many series there can be."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace

import pytest
from prefect_backups.settings import Endpoint, Offsite, Settings
from prefect_doctor.containers import Container
from prefect_doctor.database import Database
from prefect_doctor.finding import Finding, Level
from prefect_doctor.registry import Seen
from prefect_doctor.work import Work
from prefect_metrics import backups, catalogue, counters, figures, flow_runs
from prefect_metrics.counters import DEPLOYMENTS, IDLE, LONGEST, NONE, OTHER, SETTLED, Begun, Counters, Ended, Places
from prefect_metrics.exposition import escaped, number, sample, text
from prefect_metrics.flow_runs import Current, FlowRuns, Pool

# Of Prefect's own dependencies.
from prometheus_client.parser import text_string_to_metric_families

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "scripts"))
import _promtool

NOW = 1_795_000_000.0
SETTINGS = Settings(
    "0.6", Endpoint("https://x", "u", "/p", "/ca"), offsite=[Offsite("far", "/far"), Offsite("new", "/new")]
)
LAST = {
    "id": "20261118T010000Z",
    "seconds": 4.17,
    "rows": 778,
    "dump_bytes": 631717,
    "added_bytes": 245323,
    "offsite": {"far": {"ids": ["20261117T010000Z", "20261118T000000Z"], "error": None}, "new": {"error": "no route"}},
}
VERIFIED = {
    "good": {"at": "2026-11-17T03:00:00+00:00", "ok": True, "restore_seconds": 12.5},
    "last": {"at": "2026-11-18T03:00:00+00:00", "ok": False},
}
DATABASE = Database(size=13_825_715, connections=12, max_connections=50, checksum_failures=0, transaction=0.25)
FOUND = FlowRuns(
    NOW,
    NOW - SETTLED,
    [
        Current("SCHEDULED", "general", "hello/every-minute", 100, 2, 400.0),
        Current("RUNNING", "general", "hello/every-minute", 3),
        # Its own process begins it: it is late for nobody.
        Current("SCHEDULED", NONE, NONE, 1, 1, 9000.0),
    ],
    [Ended("FAILED", "general", "hello/every-minute", 2, 1, 30.0), Ended("COMPLETED", NONE, NONE, 5, 5, 10.0)],
    [Begun("general", [0, 1, 3, 3, 3, 3, 3, 3], 4, 4000.0)],
    [Pool("general", False, 10, 2), Pool("gpu", True, None, 0)],
    [("db", 2, 5), ("api", 0, 1)],
)


def lines(samples) -> list[str]:
    """What is written of some samples, without HELP and TYPE."""
    return [line for line in text(samples).splitlines() if not line.startswith("#")]


def moment(*when: int) -> int:
    return int(datetime(*when, tzinfo=UTC).timestamp())  # type: ignore[misc]


def everything() -> str:
    """A file with every metric of the catalogue."""
    known = Counters(mark=NOW - 60)
    flow_runs.count_on(known, FOUND)
    return text(
        [
            figures.of_versions("0.6", {"PREFECT_IMAGE": "prefecthq/prefect:3.9.1-python3.13"}),
            *figures.of_findings([Finding("disk /", Level.WARNING, "86% used")]),
            sample("collect_success", 1, part="work"),
            sample("collect_duration_seconds", 0.164),
            *flow_runs.samples(FOUND, known),
            *figures.of_work(Work(workers=[("general", "general-1", 12.0)]), NOW),
            *figures.of_database(DATABASE),
            *figures.of_containers({"prefect-server": Container("running", "healthy", 1)}),
            *figures.of_certificate(NOW - 1000, NOW + 5000),
            *figures.of_machine(NOW, ["openssl"]),
            *backups.of_backups(SETTINGS, LAST),
            *backups.of_verifications(SETTINGS, VERIFIED),
            sample("upgrade_last_timestamp_seconds", NOW),
            sample("postgres_upgrade_last_timestamp_seconds", NOW),
            sample("upgrade_under_way", False),
        ]
    )


# --- the text --------------------------------------------------------------------------------------------------------


def test_the_official_parser_reads_every_metric_of_the_catalogue():
    families = {one.name: one for one in text_string_to_metric_families(everything())}
    for metric in catalogue.ALL:
        # The parser knows a counter by its name without _total.
        found = families.pop(metric.name.removesuffix("_total"))
        assert (found.type, found.documentation) == (metric.kind, metric.meaning)
        assert {one.name for one in found.samples} <= set(metric.samples())
        for one in found.samples:
            assert set(one.labels) - {"le"} == set(metric.labels)
    assert not families


@pytest.mark.skipif(not _promtool.there(), reason="./scripts/test lint fetches promtool, where it can be had")
def test_promtool_finds_nothing_to_say():
    done = subprocess.run(
        [_promtool.there(), "check", "metrics"], input=everything(), capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


@pytest.mark.parametrize("metric", catalogue.ALL, ids=lambda one: one.short)
def test_a_name_follows_the_conventions(metric):
    assert re.fullmatch(r"prefect_kit(_[a-z]+)+", metric.name)
    assert metric.name.endswith("_total") is (metric.kind == catalogue.COUNTER)
    assert not re.search(r"_(ms|minutes|hours|days|mb|kb|percent|count|sum|bucket|gauge)(_|$)", metric.short)
    assert not re.search(r"_(age|ago|since)(_seconds)?$", metric.short) or "max_age" in metric.short
    assert all(re.fullmatch(r"[a-z_]+", label) for label in metric.labels)
    assert metric.meaning.endswith(".") and "\n" not in metric.meaning and "|" not in metric.meaning


def test_what_is_in_a_name_cannot_become_a_line():
    value = 'a "quoted"\nprefect_kit_info 1\\'
    (line,) = lines([sample("check_level", 2, check=value)])
    assert line == r'prefect_kit_check_level{check="a \"quoted\"\nprefect_kit_info 1\\"} 2'
    (family,) = text_string_to_metric_families(text([sample("check_level", 2, check=value)]))
    assert family.samples[0].labels == {"check": value}
    assert escaped("größe") == "größe"


def test_a_long_name_is_cut():
    (line,) = lines([sample("check_level", 0, check="x" * 5000)])
    assert len(line) < 200


def test_numbers():
    assert [number(one) for one in (0, 3.0, 0.25, True, 1_795_753_401.0, -1, 1e300)] == [
        *("0", "3", "0.25", "1", "1795753401", "-1", "1e+300")
    ]
    assert [number(float(one)) for one in ("inf", "-inf", "nan")] == ["+Inf", "-Inf", "NaN"]


def test_two_samples_with_the_same_labels_are_one():
    assert lines([sample("backup_rows", 1), sample("backup_rows", 2)]) == ["prefect_kit_backup_rows 2"]


def test_a_metric_and_its_labels_are_those_of_the_catalogue():
    with pytest.raises(KeyError):
        sample("no_such_thing", 1)
    with pytest.raises(KeyError, match="has the labels"):
        sample("check_level", 1)
    with pytest.raises(KeyError, match="has the labels"):
        sample("backup_rows", 1, check="x")


# --- what only grows -------------------------------------------------------------------------------------------------


def test_the_window_begins_where_the_last_one_ended():
    until = NOW - SETTLED
    assert Counters().window(NOW) == (until, until)
    assert Counters(mark=NOW - 70).window(NOW) == (NOW - 70, until)
    # The watch was away for a day.
    assert Counters(mark=NOW - 86400).window(NOW) == (until - LONGEST, until)
    # The clock was wrong, or the database is another one.
    assert Counters(mark=NOW + 86400).window(NOW) == (until, until)


def test_counters_grow():
    known = Counters(mark=NOW - 60)
    flow_runs.count_on(known, FOUND)
    flow_runs.count_on(known, FOUND)
    assert known.mark == FOUND.until
    key = ("general", "hello/every-minute")
    assert known.ended["FAILED", *key] == (4, 2, 60.0)
    assert known.ended["COMPLETED", NONE, NONE] == (10, 10, 20.0)
    # At 0 from the start, so that a first crash is an increase.
    assert known.ended["CRASHED", *key] == (0, 0, 0.0)
    assert known.begun["general"] == ([0, 2, 6, 6, 6, 6, 6, 6], 8, 8000.0)


def test_counters_outlive_a_restart(tmp_path):
    known = Counters(mark=NOW - 60)
    flow_runs.count_on(known, FOUND)
    counters.save(tmp_path, known)
    assert counters.load(tmp_path) == known


@pytest.mark.parametrize("content", ["", "{", "[]", '{"format": 2}', '{"format": 1, "mark": "x"}', "null"])
def test_counters_that_cannot_be_read_begin_anew(tmp_path, content):
    counters.path(tmp_path).write_text(content)
    assert counters.load(tmp_path) == Counters()
    assert counters.load(tmp_path / "missing") == Counters()


def test_counters_of_other_buckets_begin_anew():
    known = Counters(mark=NOW)
    flow_runs.count_on(known, FOUND)
    values = json.loads(known.to_json())
    values["begun"] = [["general", [1, 2], 3, 4.0]]
    read = Counters.from_json(json.dumps(values))
    assert (read.begun, read.ended) == ({}, known.ended)


def test_the_number_of_series_is_bounded():
    many = [Ended("COMPLETED", f"pool-{n % 40}", f"f/{n}", 1 + n % 3, 1, 1.0) for n in range(1000)]
    current = [Current("SCHEDULED", f"pool-{n % 40}", f"g/{n}", 1) for n in range(1000)]
    begun = [Begun(f"pool-{n}", [1] * 8, 1, 1.0) for n in range(40)]
    found = FlowRuns(NOW, NOW, current, many, begun, [Pool(f"pool-{n}", False, 1, 1) for n in range(40)])
    known = Counters()
    for _ in range(3):
        flow_runs.count_on(known, found)
    samples = flow_runs.samples(found, known)
    deployments = {dict(one.labels).get("deployment") for one in samples} - {None, OTHER}
    assert len(deployments) == DEPLOYMENTS
    assert len({dict(one.labels).get("work_pool") for one in samples}) <= counters.POOLS + 1
    assert len(samples) < 2000
    # What has no series of its own is not lost.
    ended = sum(one.value for one in samples if one.metric.short == "flow_runs_ended_total")
    assert ended == 3 * sum(one.count for one in many)
    assert sum(one.value for one in samples if one.metric.short == "flow_runs") == 1000


def test_a_place_is_given_to_another_after_a_week_without_a_flow_run():
    places = Places(2)
    for name in ("a", "b", "c", NONE):
        places.see(name, NOW)
    places.offer("d")
    assert [places.label(one) for one in ("a", "b", "c", "d", NONE)] == ["a", "b", OTHER, OTHER, NONE]
    places.see("b", NOW + IDLE)
    places.see("c", NOW + IDLE)
    assert [places.label(one) for one in ("a", "b", "c")] == [OTHER, "b", "c"]
    # Who is only scheduled for later makes room for who has something running.
    places = Places(1)
    places.offer("later")
    assert places.label("later") == "later"
    places.see("now", NOW)
    assert [places.label(one) for one in ("later", "now")] == [OTHER, "now"]


def test_who_has_lost_his_place_is_counted_no_more():
    known = Counters(deployments=Places(1))
    first = Ended("FAILED", "general", "a/x", 1, 1, 1.0)
    known.pools.see("general", NOW)
    known.deployments.see("a/x", NOW)
    known.add([first], [], NOW)
    known.deployments.see("b/x", NOW + IDLE)
    known.add([], [], NOW + IDLE)
    assert known.ended == {}


# --- flow runs, workers, limits --------------------------------------------------------------------------------------


def test_flow_runs():
    known = Counters(mark=NOW - 60)
    flow_runs.count_on(known, FOUND)
    said = lines(flow_runs.samples(FOUND, known))
    run = 'work_pool="general",deployment="hello/every-minute"'
    for line in (
        f'prefect_kit_flow_runs{{state="RUNNING",{run}}} 3',
        f'prefect_kit_flow_runs{{state="SCHEDULED",{run}}} 100',
        'prefect_kit_flow_runs{state="SCHEDULED",work_pool="none",deployment="none"} 1',
        f'prefect_kit_flow_runs_ended_total{{state="FAILED",{run}}} 2',
        f"prefect_kit_flow_run_duration_seconds_sum{{{run}}} 30",
        f"prefect_kit_flow_run_duration_seconds_count{{{run}}} 1",
        'prefect_kit_flow_run_start_delay_seconds_bucket{work_pool="general",le="5"} 1',
        'prefect_kit_flow_run_start_delay_seconds_bucket{work_pool="general",le="+Inf"} 4',
        'prefect_kit_flow_run_start_delay_seconds_sum{work_pool="general"} 4000',
        'prefect_kit_late_flow_runs{work_pool="general"} 2',
        'prefect_kit_late_flow_runs{work_pool="gpu"} 0',
        'prefect_kit_flow_run_lateness_max_seconds{work_pool="general"} 400',
        'prefect_kit_workers_online{work_pool="general"} 2',
        'prefect_kit_work_pool_paused{work_pool="gpu"} 1',
        'prefect_kit_work_pool_concurrency_limit{work_pool="general"} 10',
        'prefect_kit_concurrency_slots_active{limit="db"} 2',
        'prefect_kit_concurrency_slots_limit{limit="db"} 5',
    ):
        assert line in said
    assert not [line for line in said if "late" in line and NONE in line]
    assert not [line for line in said if "concurrency_limit" in line and "gpu" in line]


def test_many_limits_are_summed():
    said = lines(flow_runs._slots([(f"limit-{n:03}", 1, 2) for n in range(flow_runs.LIMITS + 7)]))
    assert len(said) == 2 * (flow_runs.LIMITS + 1)
    assert 'prefect_kit_concurrency_slots_active{limit="other"} 7' in said


def test_workers_by_when_they_were_heard_from():
    workers = [("general", f"w-{n:03}", float(n)) for n in range(figures.WORKERS + 50)]
    said = lines(figures.of_work(Work(workers=workers, standing=[("PENDING", 3)]), NOW))
    assert 'prefect_kit_stuck_flow_runs{state="PENDING"} 3' in said
    assert 'prefect_kit_stuck_flow_runs{state="CANCELLING"} 0' in said
    heard = [line for line in said if "heartbeat" in line]
    assert len(heard) == figures.WORKERS
    assert heard[12].endswith(f'worker="w-012"}} {int(NOW) - 12}')


# --- findings, containers, backups -----------------------------------------------------------------------------------


def test_findings_are_levels():
    given = [Finding("backups", Level.WARNING, ""), Finding("disk /", Level.OK, ""), Finding("backups", Level.BAD, "")]
    assert lines(figures.of_findings(given)) == [
        'prefect_kit_check_level{check="backups"} 2',
        'prefect_kit_check_level{check="disk /"} 0',
    ]
    many = [Finding(f"c{n}", Level.OK, "") for n in range(500)] + [Finding("bad", Level.BAD, "")]
    said = lines(figures.of_findings(many))
    assert (len(said), said[0]) == (figures.CHECKS, 'prefect_kit_check_level{check="bad"} 2')


@pytest.mark.parametrize(
    ("container", "running"),
    [
        (Container("running", "healthy"), 1),
        (Container("running", "starting"), 1),
        (Container("running", "unhealthy"), 0),
        (Container("exited"), 0),
        (None, 0),
    ],
)
def test_containers(container, running):
    said = lines(figures.of_containers({"prefect-server": container}))
    assert f'prefect_kit_container_running{{container="prefect-server"}} {running}' in said
    assert (len(said) == 1) is (container is None)


@pytest.mark.parametrize(
    ("image", "tag"),
    [
        ("prefecthq/prefect:3.9.1-python3.13", "3.9.1-python3.13"),
        ("registry:5000/postgres:17.12@sha256:abc", "17.12"),
        ("registry:5000/postgres", "registry:5000/postgres"),
        ("postgres@sha256:abc", "postgres@sha256:abc"),
        ("", ""),
    ],
)
def test_the_tag_of_an_image(image, tag):
    assert figures.tag(image) == tag


def test_what_waits_on_the_machine(tmp_path):
    assert lines(figures.of_machine(NOW, None, tmp_path / "missing")) == ["prefect_kit_reboot_pending_seconds 0"]
    mark = tmp_path / "reboot-required"
    mark.touch()
    os.utime(mark, (NOW - 7200, NOW - 7200))
    assert lines(figures.of_machine(NOW, ["openssl", "curl"], mark)) == [
        "prefect_kit_reboot_pending_seconds 7200",
        "prefect_kit_security_updates_pending 2",
    ]


def test_backups():
    said = lines([*backups.of_backups(SETTINGS, LAST), *backups.of_verifications(SETTINGS, VERIFIED)])
    for line in (
        f"prefect_kit_backup_last_timestamp_seconds {moment(2026, 11, 18, 1)}",
        "prefect_kit_backup_max_age_seconds 10800",
        "prefect_kit_backup_dump_size_bytes 631717",
        f'prefect_kit_offsite_copy_last_timestamp_seconds{{repository="far"}} {moment(2026, 11, 18)}',
        'prefect_kit_offsite_copy_failed{repository="far"} 0',
        'prefect_kit_offsite_copy_failed{repository="new"} 1',
        f"prefect_kit_verification_last_success_timestamp_seconds {moment(2026, 11, 17, 3)}",
        "prefect_kit_verification_max_age_seconds 777600",
        "prefect_kit_verification_failed 1",
        "prefect_kit_restore_duration_seconds 12.5",
    ):
        assert line in said
    # Of a new host there is only what is allowed.
    assert len(lines([*backups.of_backups(SETTINGS, {}), *backups.of_verifications(SETTINGS, {})])) == 4


def test_upgrades(tmp_path):
    assert lines(backups.of_upgrades(tmp_path)) == ["prefect_kit_upgrade_under_way 0"]
    backups.Upgraded("a", "b", NOW, "id", "r", True).save(tmp_path)
    backups.Journal("a", "b", "migrating", "id", "r", True).save(tmp_path)
    assert lines(backups.of_upgrades(tmp_path)) == [
        f"prefect_kit_upgrade_last_timestamp_seconds {int(NOW)}",
        "prefect_kit_upgrade_under_way 1",
    ]


# --- the file --------------------------------------------------------------------------------------------------------


def test_what_cannot_be_taken_hides_nothing_else():
    def down():
        yield sample("backup_rows", 1)
        raise OSError("gone")

    said = lines(
        figures.take({"backups": down, "versions": lambda: [sample("info", 1, **dict.fromkeys(VERSIONS, "x"))]})
    )
    assert said == [
        'prefect_kit_info{version="x",prefect="x",postgres="x",caddy="x"} 1',
        'prefect_kit_collect_success{part="backups"} 0',
        'prefect_kit_collect_success{part="versions"} 1',
    ]


VERSIONS = ("version", "prefect", "postgres", "caddy")


def test_the_file_is_whole_and_for_all_to_read(tmp_path, monkeypatch):
    def refused(*_):
        raise ConnectionError("no Postgres, no Docker, no network in a unit test")

    for module, name in (
        (flow_runs, "look"),
        (figures.work, "look"),
        (figures.database, "look"),
        (figures.containers, "look"),
        (figures.way_in, "served_certificate"),
    ):
        monkeypatch.setattr(module, name, refused)
    path = tmp_path / "prefect_kit.prom"
    path.write_text("before\n")
    host = SimpleNamespace(state=tmp_path, postgres=None)
    mask = os.umask(0o077)
    try:
        took = figures.write(path, SETTINGS, host, [], NOW, Seen(certificate=(1.0, 2.0)))  # type: ignore[arg-type]
    finally:
        os.umask(mask)
    said = path.read_text()
    assert path.stat().st_mode & 0o777 == 0o644
    assert [one.name for one in tmp_path.iterdir()] == ["prefect_kit.prom"]
    assert took > 0
    assert 'prefect_kit_collect_success{part="flow_runs"} 0' in said
    assert 'prefect_kit_collect_success{part="certificate"} 1' in said
    assert "prefect_kit_certificate_not_after_timestamp_seconds 2" in said
    assert "/etc/prefect" not in said
    with pytest.raises(FileNotFoundError):
        figures.write(tmp_path / "missing" / "x.prom", SETTINGS, host, [], NOW)  # type: ignore[arg-type]
