"""What workers are given: environment that systemd reads as it was meant, and refusals in words."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

ANSIBLE = Path(__file__).resolve().parents[2] / "ansible"


def _load(path: str):
    spec = importlib.util.spec_from_file_location(Path(path).stem, ANSIBLE / path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


workers = _load("filter_plugins/prefect_workers.py")


@pytest.mark.parametrize(
    ("value", "written"),
    [
        ("plain", '"plain"'),
        ('a "b" $c `d` \\e', '"a \\"b\\" \\$c \\`d\\` \\\\e"'),
        ("two\nlines", '"two\nlines"'),
        (5, '"5"'),
        (True, '"true"'),
        ("", '""'),
    ],
)
def test_values_are_written_as_systemd_reads_them(value, written):
    assert workers.prefect_environment_value(value) == written


@pytest.mark.parametrize(
    ("worker", "problem"),
    [
        ({"environment": {"A-B": 1}}, 'the environment has the name "A-B"; allowed are letters, digits and _'),
        ({"secrets": {"PREFECT_API_URL": "x"}}, 'the secrets has "PREFECT_API_URL", which the playbook sets itself'),
        ({"environment": {"PREFECT_CLIENT_METRICS_ENABLED": True}}, "which the playbook sets itself"),
        ({"environment": {"A": 1}, "secrets": {"A": 2}}, '"A" is in environment and in secrets; one of them has to go'),
        ({"memory_max": "lots"}, 'its memory_max is "lots"; allowed are 1500M, 2G and the like, or 1% to 100%'),
        ({"memory_max": "0%"}, 'its memory_max is "0%"'),
        ({"cpu_weight": 0}, 'its cpu_weight is "0"; allowed are 1 to 10000 (100 is normal)'),
    ],
)
def test_what_is_wrong_is_said(worker, problem):
    (said,) = workers.prefect_worker_limit_problems([{"name": "general-1", **worker}])
    assert said.startswith('prefect_workers: worker "general-1": ')
    assert problem in said


def test_what_is_right_passes():
    worker = {
        "name": "a",
        "environment": {"TZ": "UTC"},
        "secrets": {"TOKEN": "x"},
        "memory_max": "40%",
        "cpu_weight": 50,
    }
    assert workers.prefect_worker_limit_problems([worker, {"name": "b"}]) == []


@pytest.mark.parametrize("workers_", ["none", None, ["a"], [{"name": "a", "environment": "x", "cpu_weight": "y"}]])
def test_other_types_are_somebody_elses_to_tell(workers_):
    assert workers.prefect_worker_limit_problems(workers_) == []


def test_the_name_of_a_program_follows_its_content(tmp_path):
    first, second = tmp_path / "a.py", tmp_path / "b.py"
    first.write_text("1")
    second.write_text("2")
    name = workers.prefect_content_name([str(first), str(second)])
    assert name == workers.prefect_content_name([str(second), str(first)])
    second.write_text("3")
    assert name != workers.prefect_content_name([str(first), str(second)])
