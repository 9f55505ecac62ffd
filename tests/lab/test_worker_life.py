"""Workers that survive anything: told to stop, killed, out of memory, without a server. Nothing is lost, all is said."""

from __future__ import annotations

import json
import re
import subprocess
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from tests.lab.restores import until
from tests.lab.runs import Runs, timed

UNIT = "prefect-worker@general-1.service"
TABLE: dict[str, float] = {}


@pytest.fixture(scope="module")
def runs(vps, endpoint, playbook) -> Iterator[Runs]:
    made = Runs(vps, endpoint)
    yield made
    made.remove()
    print("\nseconds until a run was right again:", json.dumps(TABLE, indent=1))


@pytest.fixture
def settings(vps) -> Iterator[Any]:
    """`settings(WORKER_DRAIN_SECONDS=3)` starts the worker with other values; back again after the test."""
    place = f"/run/systemd/system/{UNIT}.d"

    def use(**values: str | int) -> None:
        lines = "".join(f"{key}={value}\\n" for key, value in values.items())
        vps.ssh(
            f"mkdir -p {place} && printf '{lines}' > {place}/values && "
            f"printf '[Service]\\nEnvironmentFile={place}/values\\n' > {place}/99-test.conf && "
            f"systemctl daemon-reload && systemctl restart {UNIT}"
        )

    yield use
    vps.ssh(f"rm -rf {place} && systemctl daemon-reload && systemctl restart {UNIT}")


def test_a_restart_waits_for_flow_runs_and_takes_no_new_ones(vps, runs):
    deployment = runs.deployment("drain")
    first = runs.start(deployment, parameters={"seconds": 12})
    runs.wait(first, "Running")
    vps.ssh(f"systemctl restart --no-block {UNIT}")
    until("it is stopping", lambda: _unless(vps, "ActiveState", "deactivating"))
    second = runs.start(deployment, parameters={"seconds": 1})
    until("it says for how long", lambda: "" if "Stopping; up to" in _status(vps) else _status(vps), 5)
    assert runs.wait(first, "Completed")["run_count"] == 1
    assert runs.wait(second, "Completed")["start_time"] > runs.read(first)["end_time"]


def _status(vps) -> str:
    return vps.ssh(f"systemctl show --property StatusText --value {UNIT}").stdout


def _unless(vps, name: str, value: str) -> str:
    seen = vps.ssh(f"systemctl show --property {name} --value {UNIT}").stdout.strip()
    return "" if seen == value else seen


def test_everything_that_a_run_has_started_ends_with_it(vps, runs):
    """At a normal end, a time-out, a crash and a cancellation; and the hooks run in the run's own environment."""
    ends = [
        runs.start(runs.deployment("leaves", flow="leaves")),
        runs.start(runs.deployment("times-out", flow="times_out")),
        runs.start(runs.deployment("aborts", flow="child"), parameters={"abort": True}, name="aborts"),
        cancelled := runs.start(runs.deployment("cancelled", flow="child"), name="cancelled"),
    ]
    runs.logged(cancelled, "all are there", 60)
    runs.endpoint.post(f"/api/flow_runs/{cancelled}/set_state", {"state": {"type": "CANCELLING"}})
    states = [runs.wait(run)["state"]["name"] for run in ends]
    assert states == ["Completed", "TimedOut", "Crashed", "Cancelled"]
    runs.logged(ends[0], "interfaces: ")
    runs.logged(ends[0], "scheduling: set")
    runs.logged(ends[0], "Still running when the process of this flow run had ended, and ended with it: sleep, sleep.")
    runs.logged(ends[2], "was ended by SIGABRT (signal 6). Likely: a library gave up: the worker's sandbox refused")
    for run in ends[2:]:
        runs.logged(run, "Hook 'told' finished running successfully")
    held = "cat /var/lib/prefect-worker/general-1/held.json"
    until("all slots are free", lambda: vps.ssh(held).stdout.strip("[]\n"))
    assert _programs(vps) == ""
    group = vps.ssh(f"systemctl show --property ControlGroup --value {UNIT}").stdout.strip()
    assert vps.ssh(f"cd /sys/fs/cgroup{group} && ls --directory */").stdout == "worker/\n"
    assert vps.ssh("prefect-worker-drain general-1 --seconds 1 && prefect-worker-resume general-1").returncode == 0
    words = vps.ssh(
        "cd /var/lib/prefect-worker/general-1 && cat hook-aborts && echo && cat hook-cancelled && rm hook-*"
    )
    python = "/opt/prefect/flows/releases/[0-9a-f]+/.venv/bin/python /var/lib/prefect-worker/general-1"
    assert re.fullmatch(f"CRASHED {python}\nCANCELL(ED|ING) {python}", words.stdout), words.stdout


def _programs(vps) -> str:
    """What flows of tests/lab/runs.py have left running in the background."""
    return vps.ssh("pgrep --list-full '^sleep$' | grep 3133 || true").stdout


def test_a_changed_worker_lets_its_flow_runs_end_under_site_yml(playbook, runs, vps, inventory_directory):
    """The playbook restarts a worker whose configuration has changed; the run that is under way is Completed.

    It then sees the device that it has been given and no other; and of the workers that the inventory does not have, the
    playbook removes what it has made itself, and leaves a person's.
    """
    vps.ssh("for i in 0 1; do test -e /dev/nvidia$i || mknod -m 666 /dev/nvidia$i c 1 3; done")
    vps.ssh("cp /etc/prefect/workers/general-1.env /etc/prefect/workers/by-hand.env")
    run = runs.start(runs.deployment("under-site"), parameters={"seconds": 25})
    runs.wait(run, "Running")
    before = vps.ssh(f"systemctl show --property MainPID --value {UNIT}").stdout
    workers = [
        {"name": "general-1", "pool": "general", "limit": 4, "devices": ["/dev/nvidia0"]},
        {"name": "general-9", "pool": "general"},
    ]
    changes = {"workers_shutdown_seconds": 31, "prefect_workers": workers}
    # As if the reverse proxy knew it; that run would be a longer one.
    account = inventory_directory / "secrets/users/worker-general-9"
    account.write_text("notthatanybodyasksforit\n")
    done = playbook("site.yml", "--tags", "workers", "-e", json.dumps(changes))
    assert "Restart changed workers" in done.changed_tasks
    assert vps.ssh(f"systemctl show --property MainPID --value {UNIT}").stdout != before
    assert runs.wait(run, "Completed")["run_count"] == 1
    sees = runs.start(runs.deployment("sees", flow="leaves"))
    runs.wait(sees, "Completed")
    runs.logged(sees, "devices: ['nvidia0']")
    runs.logged(sees, "opened")
    vps.ssh("test -e /etc/prefect/workers/general-9.env")
    playbook("site.yml", "--tags", "workers")
    assert vps.ssh("ls /etc/prefect/workers/*-9* /etc/prefect/workers/by-hand*", check=False).stdout == (
        "/etc/prefect/workers/by-hand.env\n"
    )
    vps.ssh("rm /etc/prefect/workers/by-hand.env")
    account.unlink()
    assert playbook("site.yml", "--tags", "workers").recap["changed"] == 0


def test_what_does_not_end_in_time_is_ended_reported_and_run_again(vps, runs, settings):
    settings(WORKER_DRAIN_SECONDS=3)
    deployment = runs.deployment("too-long", flow="parent", tags=["rerun:1"])
    run = runs.start(deployment, parameters={"seconds": 600}, name="too-long")
    runs.wait(run, "Running")
    until(
        "its subflow",
        lambda: "" if [one["state"]["name"] for one in _subflows(runs, run)] == ["Running"] else "not yet",
    )
    vps.ssh(f"systemctl stop {UNIT}")
    timed("stopped, not at its end in time", lambda: runs.wait(run, "Crashed"), TABLE)
    runs.logged(
        run, "was told to stop, and this flow run had not ended 3 s later (workers_drain_seconds). It is ended."
    )
    assert [one["state"]["type"] for one in _subflows(runs, run)] == ["CRASHED"]
    assert vps.ssh("pgrep --full '[p]refect.engine' || true").stdout == ""
    assert _programs(vps) == ""
    vps.ssh(f"systemctl start {UNIT}")
    until("the run that follows", lambda: "" if len(runs.of(deployment)) == 2 else runs.of(deployment))
    again = runs.of(deployment)[1]
    assert (again["name"], again["parameters"]) == ("too-long-rerun-1", {"seconds": 600})
    assert again["labels"]["prefect-worker.rerun-of"] == run
    runs.logged(run, "Run again as too-long-rerun-1 (1 of at most 1).")
    # The second crash is the last one.
    runs.wait(again["id"], "Running")
    vps.ssh(f"systemctl stop {UNIT} && systemctl start {UNIT}")
    runs.wait(again["id"], "Crashed")
    time.sleep(5)
    assert len(runs.of(deployment)) == 2


def _subflows(runs: Runs, run: str) -> list[dict[str, Any]]:
    return runs.endpoint.post("/api/flow_runs/filter", {"flow_runs": {"parent_flow_run_id": {"any_": [run]}}}).json()


def test_a_killed_worker_reports_its_flow_runs_and_frees_their_slots(vps, runs):
    deployment = runs.deployment(
        "killed",
        flow="parent",
        tags=["rerun:2"],
        concurrency_options={"collision_strategy": "ENQUEUE"},
        concurrency_limit=1,
    )
    run = runs.start(deployment, parameters={"seconds": 600}, name="killed")
    runs.wait(run, "Running")
    vps.ssh(f"systemctl kill --kill-whom=main --signal=KILL {UNIT}")
    # Before the next worker is there, which starts the run that follows.
    until("what the run had started is gone", lambda: _programs(vps), 5)
    crashed = timed("worker killed -9 with its flow", lambda: runs.wait(run, "Crashed"), TABLE)
    assert "ended without notice" in crashed["state"]["message"]
    until("the run that follows", lambda: "" if len(runs.of(deployment)) == 2 else runs.of(deployment))
    # It has the deployment's only slot.
    again = runs.of(deployment)[1]["id"]
    timed("and the run that follows is Running", lambda: runs.wait(again, "Running"), TABLE)
    # The flow alone is killed: the worker reports it by itself.
    vps.ssh("pkill --signal KILL --full '[p]refect.engine'")
    timed("flow killed -9", lambda: runs.wait(again, "Crashed"), TABLE)
    until("the second that follows", lambda: "" if len(runs.of(deployment)) == 3 else runs.of(deployment))
    last = runs.of(deployment)[2]
    assert last["name"] == "killed-rerun-2"
    runs.wait(last["id"], "Running")
    runs.endpoint.post(f"/api/flow_runs/{last['id']}/set_state", {"state": {"type": "CANCELLING"}})
    runs.wait(last["id"], "Cancelled")


def test_a_reboot_gives_less_time_and_says_so(vps, runs, settings):
    settings(WORKER_SHUTDOWN_SECONDS=3)
    run = runs.start(runs.deployment("reboot"), parameters={"seconds": 600})
    runs.wait(run, "Running")
    vps.reboot()
    timed("rebooted, from when it is up", lambda: runs.wait(run, "Crashed"), TABLE)
    runs.logged(run, "had not ended 3 s later (workers_shutdown_seconds). It is ended.")


def test_a_run_that_eats_all_memory_or_disk_goes_and_says_why_and_others_go_on(vps, runs, settings):
    # No disk here has as much: it is nearly full all the time.
    settings(WORKER_MEMORY_MAX="700M", WORKER_DISK_RESERVE="9T")
    modest = runs.start(runs.deployment("modest"), parameters={"seconds": 20})
    runs.wait(modest, "Running")
    run = runs.start(runs.deployment("greedy", flow="greedy"))
    timed("flow that eats all memory", lambda: runs.wait(run, "Crashed"), TABLE)
    runs.logged(run, "Out of memory: this flow run held ")
    runs.logged(run, "(memory_max in prefect_workers). It is ended.")
    assert _programs(vps) == ""
    hoarder = runs.start(runs.deployment("hoarder", flow="hoarder"))
    runs.wait(hoarder, "Crashed")
    runs.logged(hoarder, "Out of disk space: ")
    runs.logged(hoarder, "(workers_disk_reserve_mb), and this flow run went on writing. It is ended;")
    assert int(vps.ssh("stat --format %s /var/lib/prefect-worker/general-1/hoard").stdout) < 500_000_000
    vps.ssh("rm /var/lib/prefect-worker/general-1/hoard")
    assert runs.wait(modest, "Completed")["run_count"] == 1


def test_drain_and_resume_by_hand(vps, runs):
    deployment = runs.deployment("by-hand")
    first = runs.start(deployment, parameters={"seconds": 8})
    runs.wait(first, "Running")
    drained = vps.ssh("prefect-worker-drain general-1 --seconds 60")
    assert "waiting for 1: " in drained.stdout
    assert "drained: general-1" in drained.stdout
    assert runs.read(first)["state"]["type"] == "COMPLETED"
    second = runs.start(deployment, parameters={"seconds": 0})
    # It stays so across a restart, and across a kill.
    vps.ssh(f"systemctl restart {UNIT}")
    time.sleep(15)
    assert runs.read(second)["state"]["type"] == "SCHEDULED"
    assert vps.ssh("prefect-worker-resume general-1").stdout == "taking flow runs again: general-1\n"
    runs.wait(second, "Completed")
    wrong = vps.ssh("prefect-worker-drain general-7", check=False)
    assert wrong.returncode == 2
    assert 'there is no worker "general-7" on this host; there is general-1' in wrong.stderr


def test_late_scheduled_runs_are_run_or_skipped_as_the_deployment_says(vps, runs):
    vps.ssh("prefect-worker-drain general-1")
    every = {"schedules": [{"schedule": {"interval": 15}, "active": True}], "parameters": {"seconds": 0}}
    late = runs.deployment("late-all", **every)
    skip = runs.deployment("late-skip", tags=["skip-if-late:30"], **every)
    asked = runs.start(skip)

    def due(deployment: str) -> list[dict[str, Any]]:
        """Runs of a schedule that are later than the tag allows."""
        before = (datetime.now(UTC) - timedelta(seconds=32)).isoformat()
        return [run for run in runs.of(deployment) if run["auto_scheduled"] and run["expected_start_time"] < before]

    until("runs that are late", lambda: "" if len(due(late)) >= 2 and len(due(skip)) >= 2 else "not yet")
    ids = {deployment: [run["id"] for run in due(deployment)] for deployment in (late, skip)}
    vps.ssh("prefect-worker-resume general-1")
    runs.wait(asked, "Completed")
    assert {runs.wait(run)["state"]["name"] for run in ids[late]} == {"Completed"}
    skipped = [runs.wait(run) for run in ids[skip]]
    assert {run["state"]["name"] for run in skipped} == {"Skipped"}
    assert "(tag skip-if-late)" in skipped[0]["state"]["message"]
    for deployment in late, skip:
        runs.forget(deployment)


def test_high_priority_goes_first_and_another_pools_runs_are_left_alone(vps, runs, settings, endpoint):
    settings(WORKER_LIMIT="--limit 1")
    endpoint.post("/api/work_pools/", {"name": "gpu", "type": "process"}).raise_for_status()
    try:
        gpu = runs.start(runs.deployment("gpu", work_pool_name="gpu"), parameters={"seconds": 0})
        deployment = runs.deployment("routed")
        vps.ssh("prefect-worker-drain general-1")
        order = [
            runs.start(deployment, parameters={"seconds": 0}, work_queue_name=queue)
            for queue in ("low", "default", "high")
        ]
        vps.ssh("prefect-worker-resume general-1")
        began = [runs.wait(run, "Completed")["start_time"] for run in order]
        assert began == sorted(began, reverse=True)
        assert runs.states(gpu) == ["Scheduled"] or runs.states(gpu) == ["Scheduled", "Late"]
    finally:
        endpoint.delete("/api/work_pools/gpu")


def test_flow_runs_outlive_a_database_that_is_killed(vps, runs):
    """Whatever they ask just then, or are being claimed: the server answers 500 when it finds no database."""
    deployment = runs.deployment("chatty", flow="chatty")
    found = [runs.start(deployment, parameters={"seconds": 25}) for _ in range(2)]
    for run in found:
        runs.wait(run, "Running")
    brief = runs.deployment("brief")
    now = datetime.now(UTC)
    for second in range(2, 20, 2):
        state = {
            "type": "SCHEDULED",
            "state_details": {"scheduled_time": (now + timedelta(seconds=second)).isoformat()},
        }
        found.append(runs.start(brief, parameters={"seconds": 1}, state=state))
    once = "kill -9 $(docker inspect --format '{{.State.Pid}}' prefect-postgres)"
    vps.ssh(f"for i in 1 2 3; do {once} && sleep 6; done")
    for run in found:
        assert runs.wait(run, "Completed", limit=180)["run_count"] == 1
    until(
        "nothing is held", lambda: vps.ssh("cat /var/lib/prefect-worker/general-1/held.json").stdout.strip("[]\n"), 90
    )


def test_a_proxy_that_refuses_its_first_request_is_waited_for(vps, runs):
    """The reverse proxy goes when the process of the flow run is there, and still imports what it needs to ask for anything."""
    deployment = runs.deployment("refused")
    process = "pgrep --full '[p]refect.engine'"
    command = (
        f"while {process} > /dev/null; do sleep 0.1; done; echo watching; until {process}; do sleep 0.02; done; "
        "docker kill prefect-caddy; sleep 8; docker start prefect-caddy; date --utc +%FT%T"
    )
    with subprocess.Popen(vps.ssh_command(command), stdout=subprocess.PIPE, text=True) as endpoint:
        assert endpoint.stdout.readline() == "watching\n"
        run = runs.start(deployment, parameters={"seconds": 1})
        back = endpoint.stdout.read().splitlines()[-1]
    ended = runs.wait(run, "Completed")
    assert (ended["start_time"] > back, ended["run_count"]) == (True, 1)


def test_a_vanished_host_and_a_server_that_is_away(vps, runs):
    """The server is away for longer than the window; one worker vanishes meanwhile, the other's run is slow but well.

    The vanished one's run becomes Crashed and is run again, the other one's never is; and when the vanished host is
    back, the process that it still has is ended.
    """
    lost_unit = "prefect-worker@general-2.service"
    # A host that has vanished is not watched by its systemd either.
    place = f"/run/systemd/system/{lost_unit}.d"
    # A second worker, such as the playbook makes one (test_workers.py).
    vps.ssh(
        f"mkdir -p {place} && printf '[Service]\\nWatchdogSec=0\\n' > {place}/99-test.conf && cd /etc/prefect/workers && "
        "sed 's/^PREFECT_WORKER_WEBSERVER_PORT=.*/PREFECT_WORKER_WEBSERVER_PORT=8099/' general-1.env > general-2.env && "
        "cp -p general-1.secret.env general-2.secret.env && useradd --system --user-group prefect_general-2 && "
        f"systemctl daemon-reload && systemctl start {lost_unit}"
    )
    try:
        vps.ssh("prefect-worker-drain general-2")
        well = runs.start(runs.deployment("well", flow="stubborn"), parameters={"seconds": 130})
        runs.wait(well, "Running")
        vps.ssh("prefect-worker-resume general-2 && prefect-worker-drain general-1 --seconds 0", check=False)
        vanishing = runs.deployment("vanishing", tags=["rerun:1"])
        lost = runs.start(vanishing, parameters={"seconds": 900})
        runs.wait(lost, "Running")
        # What comes now is for the other one: a flow that ends when nobody can be told.
        vps.ssh("prefect-worker-drain general-2 --seconds 0; prefect-worker-resume general-1", check=False)
        ending = runs.start(runs.deployment("ending"), parameters={"seconds": 20})
        runs.wait(ending, "Running")
        vps.ssh("docker stop prefect-server")
        vps.ssh(f"systemctl kill --kill-whom=all --signal=STOP {lost_unit}")
        time.sleep(100)
        vps.ssh("docker start prefect-server")
        began = time.monotonic()
        crashed = runs.wait(lost, "Crashed", limit=180)
        TABLE["host vanished while the server was away"] = round(time.monotonic() - began, 1)
        # It had nobody to tell for more than a minute, after which Prefect by itself would call it Failed.
        assert runs.wait(ending)["state"]["type"] == "COMPLETED"
        assert "No heartbeat from the worker" in crashed["state"]["message"]
        until("the run that follows", lambda: "" if len(runs.of(vanishing)) == 2 else runs.of(vanishing))
        runs.wait(runs.of(vanishing)[1]["id"], "Running")
        runs.wait(well, "Completed", limit=180)
        assert "Crashed" not in runs.states(well)
        vps.ssh(f"systemctl kill --kill-whom=all --signal=CONT {lost_unit}")
        runs.logged(lost, "On the server this flow run is Crashed; its process is ended here.", limit=90)
    finally:
        vps.ssh("docker start prefect-server")
        vps.ssh(f"systemctl kill --kill-whom=all --signal=CONT {lost_unit}", check=False)
        vps.ssh("prefect-worker-resume --all")
        for run in runs.of(vanishing)[1:]:
            runs.endpoint.post(f"/api/flow_runs/{run['id']}/set_state", {"state": {"type": "CANCELLING"}})
            runs.wait(run["id"])
        vps.ssh(
            f"systemctl stop {lost_unit}; rm -r {place} /etc/prefect/workers/general-2.* /var/lib/prefect-worker/general-2 && "
            "userdel prefect_general-2 && systemctl daemon-reload"
        )
