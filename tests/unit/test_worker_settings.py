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
        ({"devices": ["nvidia0"]}, 'its devices have "nvidia0"; allowed are paths such as /dev/nvidia0'),
        ({"devices": ["/dev/../etc/shadow"]}, 'its devices have "/dev/../etc/shadow"'),
        ({"devices": ["/dev/nvidia0 /etc"]}, 'its devices have "/dev/nvidia0 /etc"'),
        ({"devices": ["/dev/%i"]}, 'its devices have "/dev/%i"'),
        ({"environment": {"PREFECT_PROFILES_PATH": "x"}}, "which the playbook sets itself"),
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
        "devices": ["/dev/nvidia0", "/dev/dri/renderD128"],
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


def _stat(path: str, **stat: object) -> dict:
    return {"item": [{"name": "gpu-1"}, path], "stat": stat}


def test_devices_that_a_worker_could_not_use_are_refused_in_words():
    found = [
        _stat("/dev/nvidia0", exists=True, ischr=True),
        _stat("/dev/nvidia1", exists=False),
        _stat("/dev/dri", exists=True, isdir=True),
        _stat("/dev/sound", exists=True, isreg=True),
        _stat("/dev/nvme0n1", exists=True, isblk=True),
    ]
    where = 'prefect_workers: worker "gpu-1": its device'
    assert workers.prefect_device_problems(found) == [
        f'{where} "/dev/nvidia1" is not on the host; install its driver, or take it out of devices',
        f'{where} "/dev/dri" is a directory; name the devices in it that the worker needs',
        f'{where} "/dev/sound" is no device',
    ]


def test_a_device_s_group_is_given_where_not_everybody_may_use_it():
    found = [
        _stat("/dev/nvidia0", exists=True, roth=True, woth=True, rgrp=True, gr_name="root"),
        _stat("/dev/dri/renderD128", exists=True, roth=False, woth=False, rgrp=True, gr_name="render"),
        _stat("/dev/kfd", exists=True, roth=False, woth=False, rgrp=True, gr_name="", gid=992),
        _stat("/dev/mem", exists=True, roth=False, woth=False, rgrp=True, gr_name="root"),
        _stat("/dev/other", exists=True, roth=False, woth=False, rgrp=True, gr_name="video"),
    ]
    mine = ["/dev/nvidia0", "/dev/dri/renderD128", "/dev/kfd", "/dev/mem"]
    assert workers.prefect_device_groups(found, mine) == ["992", "render"]
    assert workers.prefect_device_groups(found, []) == []


def test_only_workers_that_the_playbook_has_made_are_its_to_remove():
    made = (ANSIBLE / "roles/workers/templates/worker.env.j2").read_text()
    files = {
        "/etc/prefect/workers/general-1.env": made.replace("{{ worker.name }}", "general-1"),
        "/etc/prefect/workers/by-hand.env": "WORKER_POOL=general\n",
        # A copy under another name, which a person made.
        "/etc/prefect/workers/copy-1.env": made.replace("{{ worker.name }}", "general-1"),
        "/etc/prefect/workers/empty.env": "",
    }
    assert workers.prefect_made_workers(files, "prefect-worker") == ["general-1"]
    assert workers.prefect_made_workers(files, "prefect-docker-worker") == []
    docker = (ANSIBLE / "roles/workers/templates/docker-worker.env.j2").read_text()
    files = {"/etc/prefect/docker-workers/docker-1.env": docker.replace("{{ worker.name }}", "docker-1")}
    assert workers.prefect_made_workers(files, "prefect-docker-worker") == ["docker-1"]


def test_workers_that_the_inventory_has_no_longer_are_told_by_kind():
    made = "# By the playbook: what {}@{}.service is started with.\n"
    files = {
        "/etc/prefect/workers/general-1.env": made.format("prefect-worker", "general-1"),
        "/etc/prefect/workers/old.env": made.format("prefect-worker", "old"),
        "/etc/prefect/docker-workers/box.env": made.format("prefect-docker-worker", "box"),
        "/etc/prefect/docker-workers/by-hand.env": "WORKER_POOL=x\n",
    }
    process = {"etc": "/etc/prefect/workers", "unit": "prefect-worker", "workers": [{"name": "general-1"}]}
    docker = {"etc": "/etc/prefect/docker-workers", "unit": "prefect-docker-worker", "workers": [{"name": "box"}]}
    assert workers.prefect_workers_found(files, process) == {"extra": ["old"], "strangers": False}
    assert workers.prefect_workers_found(files, docker) == {"extra": [], "strangers": True}
    assert workers.prefect_workers_found(files, docker | {"workers": []}) == {"extra": ["box"], "strangers": True}
    assert workers.prefect_workers_found({}, docker) == {"extra": [], "strangers": False}


def test_what_a_worker_runs_with_names_all_that_a_restart_puts_into_effect():
    (one,) = workers.prefect_worker_services([{"name": "a"}], "/etc/prefect/workers", "prefect-worker", "venv")
    assert one == {
        "name": "a",
        "stamp": "/etc/prefect/workers/a.applied",
        "files": [
            "/etc/prefect/workers/a.env",
            "/etc/prefect/workers/a.secret.env",
            "/etc/systemd/system/prefect-worker@.service",
            "/etc/systemd/system/prefect-worker@a.service.d/40-user.conf",
            "/etc/systemd/system/prefect-worker@a.service.d/60-devices.conf",
            "/etc/systemd/system/prefect-worker@.service.d/egress.conf",
        ],
        "also": "venv",
    }
