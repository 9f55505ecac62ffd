"""Control groups of flow runs, on the kernel's own; and what is said of a process that a signal has ended."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest
from prefect_kit_worker import ends
from prefect_kit_worker.groups import Groups, RunGroup

RUN = "0198a1b2-0000-7000-8000-000000000001"
# A child that has left its session and closed everything, and whose parent is gone: what F2 is about.
LEAVES = ["bash", "-c", "setsid sleep 9999 < /dev/null > /dev/null 2>&1 & sleep 9998 & echo started"]


def test_all_that_a_run_has_started_ends_with_it(delegated):
    group = Groups(delegated).make(RUN)
    done = subprocess.run(group.entering(LEAVES, os.environ), capture_output=False, stdout=subprocess.DEVNULL)
    assert done.returncode == 0
    pids = group.pids()
    assert len(pids) == 2
    assert asyncio.run(group.end()) is True
    assert [pid for pid in pids if _lives(pid)] == []
    assert not group.path.exists()
    # Once more is no error.
    assert asyncio.run(group.end()) is False


def _lives(pid: int) -> bool:
    try:
        return (Path("/proc") / str(pid) / "stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_groups_that_a_run_has_made_itself_end_with_it(delegated):
    group = Groups(delegated).make(RUN)
    (group.path / "its-own").mkdir()
    command = ["bash", "-c", f"echo 0 > {group.path}/its-own/cgroup.procs; sleep 9999 > /dev/null & disown"]
    subprocess.run(group.entering(command, os.environ), check=True)
    assert len(group.pids()) == 1
    assert asyncio.run(group.end()) is True
    assert not group.path.exists()


def test_what_a_killed_worker_has_left_is_ended_at_the_next_start(delegated):
    groups = Groups(delegated)
    (delegated / "worker").mkdir()
    groups.make("0198a1b2-0000-7000-8000-000000000002")
    left = groups.make(RUN)
    subprocess.run(left.entering(LEAVES, os.environ), check=True, stdout=subprocess.DEVNULL)
    assert asyncio.run(Groups(delegated).clear()) == [f"run-{RUN}"]
    assert [path.name for path in delegated.iterdir() if path.is_dir()] == ["worker"]


def test_a_command_that_is_not_there_fails_by_its_own_name(delegated):
    group = Groups(delegated).make(RUN)
    assert group.entering(["/no/such/python", "x"], os.environ) == ["/no/such/python", "x"]
    with pytest.raises(FileNotFoundError, match="/no/such/python"):
        subprocess.run(group.entering(["/no/such/python"], os.environ))


def test_the_group_is_the_unit_s_where_it_has_been_handed_over(tmp_path):
    unit = tmp_path / "cg/system.slice/prefect-worker@a.service"
    (unit / "worker").mkdir(parents=True)
    (tmp_path / "self").mkdir()
    (tmp_path / "self/cgroup").write_text("1:cpu:/\n0::/system.slice/prefect-worker@a.service/worker\n")
    groups = Groups.of_this_process(tmp_path, tmp_path / "cg")
    assert groups.root == unit
    (unit / "memory.events").write_text("low 0\nhigh 0\nmax 3\noom 1\noom_kill 2\noom_group_kill 0\n")
    assert groups.killed_for_memory() == 2
    (tmp_path / "self/cgroup").write_text("0::/user.slice\n")
    groups = Groups.of_this_process(tmp_path, tmp_path / "cg")
    assert (groups.root, groups.killed_for_memory()) == (None, 0)


def test_without_delegation_the_run_s_descendants_are_ended():
    group = RunGroup(None)
    command = ["bash", "-c", "sleep 9999 & wait"]
    assert group.entering(command, os.environ) == command
    with subprocess.Popen(command) as process:
        group.holds(process.pid)
        deadline = time.monotonic() + 10
        while len(pids := group.pids()) < 2 and time.monotonic() < deadline:
            time.sleep(0.05)
        group.kill()
    assert process.returncode == -signal.SIGKILL
    deadline = time.monotonic() + 10
    while any(map(_lives, pids)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(map(_lives, pids))
    group.forget()
    assert group.pids() == []


@pytest.mark.parametrize(
    ("status", "for_memory", "said"),
    [
        (
            -6,
            False,
            "was ended by SIGABRT (signal 6). Likely: a library gave up: the worker's sandbox refused something",
        ),
        (134, False, "was ended by SIGABRT (signal 6)."),
        (-11, False, "SIGSEGV (signal 11). Likely: a fault in native code"),
        (-31, False, "SIGSYS (signal 31). Likely: the filter of system calls ended it"),
        (
            -9,
            True,
            "Likely: the kernel killed it because the worker's memory was used up (memory_max in prefect_workers)",
        ),
        (-9, False, "Likely: somebody on the host killed it, or the kernel did because the host's memory was used up"),
        (-10, False, "SIGUSR1 (signal 10). Likely: a program on the host sent it"),
    ],
)
def test_a_run_that_a_signal_ended_says_which_and_what_is_likely(status, for_memory, said):
    text = ends.by_signal(status, for_memory, "general-1")
    assert said in text
    assert text.endswith("What it printed: journalctl -u prefect-worker@general-1")


@pytest.mark.parametrize("status", [0, 1, 2, 127, 128, -15, 143, 255])
def test_ordinary_ends_say_nothing(status):
    assert ends.by_signal(status, False, "general-1") is None


def test_what_was_left_behind_is_named():
    text = "Still running when the process of this flow run had ended, and ended with it: "
    assert ends.left_behind(["postgres", "sleep"]) == text + "postgres, sleep."
    assert ends.left_behind(["x"] * 12) == text + ", ".join("x" * 10) + " and 2 more."


def test_the_words_name_a_part_of_the_readme_that_is_there():
    assert "## What a flow run may do" in (Path(__file__).resolve().parents[2] / "systemd/README.md").read_text()
