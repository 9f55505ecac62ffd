"""prefect-restore on the bad night: what is broken, one command, and what the restored world is like.

The world is made through the API and by flows. Every backup and every restore is a real one; what came back is read
through the public endpoint.
"""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from tests.lab import restores
from tests.lab.restores import WORKER, back_up, databases, leftovers, mark, marker, restore, restored, until
from tests.lab.seed import counts, psql, seed
from tests.lab.vps.vps import Vps

SECRET = "correct horse battery staple"
BLOCK, VARIABLE, ARTIFACT, LIMIT, TAG = "restore-block", "restore-variable", "restore-artifact", "restore-limit", "slow"
ALONE = "exclusive/one-at-a-time"
LONG = 900  # seconds: longer than any test here takes
ROWS = 300_000  # long enough for a death in the middle of the load; a million: scripts/bench backup

# A flow run with a task run at work, and a slot of a limit and of a tag's limit, until somebody kills it.
AT_WORK = f"""
import time
from prefect import flow, task
from prefect.concurrency.sync import concurrency

@task(tags=["{TAG}"])
def wait():
    with concurrency("{LIMIT}", occupy=1):
        time.sleep({LONG})

@flow(name="restore-at-work")
def at_work():
    wait()

at_work()
"""


@dataclass
class World:
    """What was there when the backup was made, by id."""

    backup: str
    # Ended; Running with a task run; Running in a deployment that allows one at a time.
    done: str
    at_work: str
    alone: str
    # Scheduled, hours and minutes before the backup; nobody had taken them.
    hours_ago: str
    minutes_ago: str
    block: str
    artifact: str
    next_runs: list[str]
    # How many flow runs were at work, and have no process any more.
    dead: int


@pytest.fixture(scope="module", autouse=True)
def no_timers(vps: Vps) -> Iterator[None]:
    with restores.no_timers(vps):
        yield


def make_block(endpoint: Any) -> str:
    """An encrypted Secret block; gives its id."""
    endpoint.post("/api/block_types/install_system_block_types", {})
    kind = endpoint.get("/api/block_types/slug/secret").raise_for_status().json()["id"]
    body = {"block_schemas": {"block_type_id": {"any_": [kind]}}}
    schema = endpoint.post("/api/block_schemas/filter", body).raise_for_status().json()[0]["id"]
    body = {"name": BLOCK, "block_type_id": kind, "block_schema_id": schema, "data": {"value": SECRET}}
    return endpoint.post("/api/block_documents/", body).raise_for_status().json()["id"]


def messages(endpoint: Any, run: str) -> list[str]:
    """The log of a flow run."""
    found = endpoint.post("/api/logs/filter", {"logs": {"flow_run_id": {"any_": [run]}}}).raise_for_status().json()
    return [line["message"] for line in found]


def slots(endpoint: Any) -> dict[str, int]:
    """Slots that are taken, by the name of their limit, as far as there are any."""
    found = endpoint.post("/api/v2/concurrency_limits/filter", {}).raise_for_status().json()
    return {one["name"]: round(one["active_slots"]) for one in found if one["active_slots"]}


def next_runs(endpoint: Any) -> list[str]:
    """The times to come for which the deployment with a schedule has runs."""
    body = {
        "deployments": {"id": {"any_": [restores.deployment(endpoint, "report/interval")["id"]]}},
        "flow_runs": {"expected_start_time": {"after_": datetime.now(UTC).isoformat()}},
        "sort": "EXPECTED_START_TIME_ASC",
    }
    runs = endpoint.post("/api/flow_runs/filter", body).raise_for_status().json()
    return [one["expected_start_time"] for one in runs if one["state_type"] == "SCHEDULED"]


def remove_world(vps: Vps, endpoint: Any) -> None:
    """Remove what a former session has left, as far as it is in the way: names, and places that nobody gives back."""
    vps.ssh("systemctl kill --signal=KILL at-work.service", check=False)
    body = {"deployments": {"id": {"any_": [restores.deployment(endpoint, ALONE)["id"]]}}}
    for run in endpoint.post("/api/flow_runs/filter", body).raise_for_status().json():
        endpoint.delete(f"/api/flow_runs/{run['id']}").raise_for_status()
    for name in slots(endpoint):
        endpoint.request("PATCH", f"/api/v2/concurrency_limits/{name}", json={"active_slots": 0}).raise_for_status()
    for path in (
        f"/api/variables/name/{VARIABLE}",
        f"/api/v2/concurrency_limits/{LIMIT}",
        f"/api/concurrency_limits/tag/{TAG}",
    ):
        endpoint.delete(path)
    found = endpoint.get(f"/api/block_types/slug/secret/block_documents/name/{BLOCK}")
    if found.status_code == 200:
        endpoint.delete(f"/api/block_documents/{found.json()['id']}").raise_for_status()


@pytest.fixture(scope="module")
def world(vps: Vps, endpoint: Any) -> Iterator[World]:
    """A world, its backup, and then a later world: the marker says which is served."""
    remove_world(vps, endpoint)
    mark(endpoint, "backup")
    block = make_block(endpoint)
    endpoint.post("/api/variables/", {"name": VARIABLE, "value": {"kept": [1, 2]}}).raise_for_status()
    body = {"key": ARTIFACT, "type": "markdown", "data": "# kept"}
    artifact = endpoint.post("/api/artifacts/", body).raise_for_status().json()["id"]
    endpoint.post("/api/v2/concurrency_limits/", {"name": LIMIT, "limit": 1}).raise_for_status()
    endpoint.post("/api/concurrency_limits/", {"tag": TAG, "concurrency_limit": 1}).raise_for_status()
    done = restores.start_run(endpoint, "smoke/smoke")
    alone = restores.start_run(endpoint, ALONE, {"seconds": LONG})
    files = "".join(f" -p EnvironmentFile=/etc/prefect/workers/general-1{end}.env" for end in ("", ".secret"))
    settings = "-E HOME=/tmp/at-work -E PREFECT_HOME=/tmp/at-work -p User=prefect_general-1 -p PrivateTmp=yes"
    python = "/opt/prefect/worker/venv/bin/python -"
    # The script comes in a file: a unit has no standard input that outlives ssh.
    vps.ssh(
        "cat > /run/at-work.py; systemd-run --quiet --collect --unit at-work -p StandardInput=file:/run/at-work.py "
        f"{files} {settings} {python}",
        text=AT_WORK,
    )
    restores.until_state(endpoint, done, "Completed")
    # Task runs and logs travel by themselves, a little behind the state of the flow run.
    until("the log of a run", lambda: "" if "smoke: done" in messages(endpoint, done) else messages(endpoint, done))
    until("its task runs", lambda: "" if (now := restores.task_states(endpoint, done)) == ["Completed"] * 3 else now)
    restores.until_state(endpoint, alone, "Running")
    at_work: list[str] = []

    def not_at_work() -> str:
        body = {
            "flows": {"name": {"any_": ["restore-at-work"]}},
            "flow_runs": {"state": {"type": {"any_": ["RUNNING"]}}},
        }
        at_work[:] = [one["id"] for one in endpoint.post("/api/flow_runs/filter", body).raise_for_status().json()]
        return "" if at_work and restores.task_states(endpoint, at_work[0]) == ["Running"] else f"runs: {at_work}"

    until("a flow with a task at work", not_at_work)
    until("three slots taken", lambda: "" if len(slots(endpoint)) == 3 else str(slots(endpoint)))
    # Nobody takes what is asked for from here on; and nobody reports the runs that were at work, as if their host had died.
    vps.ssh(
        f"systemctl kill --kill-whom=all --signal=KILL {WORKER}; systemctl stop {WORKER}; "
        "systemctl kill --signal=KILL at-work.service; rm /run/at-work.py"
    )
    now = datetime.now(UTC)
    hours_ago, minutes_ago = (
        restores.start_run(endpoint, "smoke/smoke", at=(now - timedelta(minutes=minutes)).isoformat())
        for minutes in (180, 5)
    )
    until("runs of the schedule", lambda: "" if next_runs(endpoint) else "none yet")
    upcoming = next_runs(endpoint)
    # Two, or three when a schedule's run was just at work.
    body = {"flow_runs": {"state": {"type": {"any_": ["RUNNING", "PENDING", "CANCELLING"]}}}}
    dead = endpoint.post("/api/flow_runs/count", body).raise_for_status().json()
    assert dead >= len((alone, at_work[0]))
    made = World(back_up(vps), done, at_work[0], alone, hours_ago, minutes_ago, block, artifact, upcoming, dead)
    vps.ssh(f"systemctl start {WORKER}")
    mark(endpoint, "later")
    yield made
    until("nothing left over", lambda: leftovers(vps))


def assert_restored(endpoint: Any, world: World) -> None:
    """Known rows of the backup, read back through the public endpoint."""
    assert marker(endpoint) == "backup"
    secret = endpoint.get(f"/api/block_documents/{world.block}?include_secrets=true").raise_for_status().json()
    assert secret["data"] == {"value": SECRET}
    assert endpoint.get(f"/api/variables/name/{VARIABLE}").raise_for_status().json()["value"] == {"kept": [1, 2]}
    assert endpoint.get(f"/api/artifacts/{world.artifact}").raise_for_status().json()["data"] == "# kept"
    assert restores.state_of(endpoint, world.done) == "Completed"
    assert restores.task_states(endpoint, world.done) == ["Completed"] * 3
    assert messages(endpoint, world.done).count("smoke: done") == 1


# --- disasters ---------------------------------------------------------------------------------------------------


def test_a_corrupted_data_file(vps: Vps, endpoint: Any, world: World) -> None:
    """What cannot be read is not backed up first, and not thrown away either. Then: the restored world in order."""
    path = psql(vps, "CHECKPOINT; SELECT pg_relation_filepath('log')")
    volume = "$(docker volume inspect --format '{{.Mountpoint}}' prefect_postgres)"
    # In the middle of the first page's rows, with nobody having it in memory afterwards.
    vps.ssh(
        "docker stop prefect-server prefect-postgres && "
        f"printf XXXXXXXX | dd of={volume}/{path} bs=1 seek=8000 conv=notrunc status=none && "
        "systemctl restart prefect-stack"
    )
    refused = restore(vps, "--id", world.backup)
    assert refused.exit == 22
    assert refused.facts["code"] == "SAFETY_BACKUP"
    assert "Refusing to go on: what is there now cannot be backed up first: " in refused.facts["error"]
    assert "invalid page in block 0 of relation" in refused.facts["error"]
    assert refused.facts["hint"] == (
        "nothing has changed. To go on without: the same command with --without-safety-backup; what is there"
        " is then kept as it is, for prefect-restore --undo, and nowhere else"
    )
    until("nothing left over", lambda: leftovers(vps))
    assert marker(endpoint) == "later"

    outcome = restored(vps, "--id", world.backup, "--without-safety-backup", "--outage-since", "1h")
    facts = outcome.facts
    assert {key: facts[key] for key in ("backup", "repository", "undo", "workers")} == {
        "backup": world.backup,
        "repository": "local",
        "undo": "prefect-restore --undo",
        "workers": 1,
    }
    assert (facts["crashed"], facts["slots_freed"]) == (world.dead, 3)
    assert facts["crashed_task_runs"] >= 1
    # A run of a schedule may become due meanwhile, too.
    assert facts["cancelled"] == 1
    assert facts["late"] >= 1
    assert facts["smoke"].startswith("flow run Completed with 3 task runs in ")
    assert facts["downtime_seconds"] > 0
    assert f"Restored {world.backup} from local. The API was away for {facts['downtime_seconds']} s." in outcome.said
    assert (
        f"{world.dead} flow runs that were at work then are Crashed, 1 whose time had passed are Cancelled,"
        f" {facts['late']} run late;"
        " 3 concurrency slots came free."
    ) in outcome.joined
    assert_restored(endpoint, world)


def test_the_restored_world_is_in_order(endpoint: Any, world: World) -> None:
    message = f"Its process did not survive: the server was restored from the backup {world.backup}."
    for run in (world.at_work, world.alone):
        assert restores.flow_run(endpoint, run)["state"]["message"] == message
        assert restores.state_of(endpoint, run) == "Crashed"
    assert restores.task_states(endpoint, world.at_work) == ["Crashed"]
    late = restores.flow_run(endpoint, world.hours_ago)["state"]
    assert late["name"] == "Cancelled"
    assert late["message"] == f"Its time passed before the server was restored from the backup {world.backup}."
    restores.until_state(endpoint, world.minutes_ago, "Completed")
    assert slots(endpoint) == {}
    # The place of the dead run is free for the next one.
    restores.until_state(endpoint, restores.start_run(endpoint, ALONE, {"seconds": 0}), "Completed")
    # The runs to come that the backup knew are still to come, and there are new ones behind them.
    now = datetime.now(UTC).isoformat()
    assert {one for one in world.next_runs if one > now} <= set(next_runs(endpoint))


class Terminal:
    """prefect-restore on a terminal over ssh, as a person has it."""

    def __init__(self, vps: Vps, *arguments: str, **environment: str) -> None:
        command = restores._command(("prefect-restore", *arguments), environment)
        ssh = [*vps.ssh_command()[:1], "-tt", *vps.ssh_command(f"stty cols 200; {command}")[1:]]
        self.process = subprocess.Popen(ssh, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        self.seen = ""

    def read_until(self, text: str) -> None:
        """Read until something is there to read. Raises AssertionError when it does not come."""
        while text not in self.seen:
            # One by one: whoever waits for more does not see a question.
            part = self.process.stdout.read(1)  # type: ignore[union-attr]
            assert part, f'"{text}" did not come: {self.seen}'
            self.seen += part.decode(errors="replace")

    def type(self, text: str) -> None:
        """Type a line."""
        self.process.stdin.write(f"{text}\n".encode())  # type: ignore[union-attr]
        self.process.stdin.flush()  # type: ignore[union-attr]

    def end(self) -> int:
        """The exit code, after all that was still said."""
        self.seen += self.process.communicate(timeout=restores.LIMIT)[0].decode(errors="replace")
        return self.process.returncode


def test_a_person_at_a_terminal_may_say_no(vps: Vps, endpoint: Any, world: World) -> None:
    mark(endpoint, "later")
    number = restores.backups(vps).index(world.backup) + 1
    terminal = Terminal(vps)
    terminal.read_until("Which one?")
    assert world.backup in terminal.seen
    terminal.type(str(number))
    terminal.read_until("Go on?")
    assert f"Backup    {world.backup}, " in terminal.seen
    assert "There now is backed up first, then kept as it is for --undo" in terminal.seen
    terminal.type("n")
    assert terminal.end() == 28
    assert "ERROR: nothing was changed" in terminal.seen
    assert marker(endpoint) == "later"


def test_a_dropped_table_and_a_lost_connection(vps: Vps, endpoint: Any, world: World) -> None:
    """A restore on a terminal: nothing else begins meanwhile, and when the terminal goes, the work goes on."""
    psql(vps, "DROP TABLE flow_run CASCADE")
    assert endpoint.post("/api/flow_runs/filter", {}).is_server_error
    terminal = Terminal(vps, "--id", world.backup, PREFECT_BACKUPS_FAILPOINT="stop:compare")
    terminal.read_until("Go on?")
    assert "the database there now cannot be read whole" in terminal.seen
    assert 'relation "flow_run" does not exist' in terminal.seen
    terminal.type("y")
    until("a restore that stands still", lambda: restores.not_halted(vps))
    try:
        for command in (("prefect-restore", "--latest", "--yes"), ("prefect-restore", "--undo", "--yes")):
            busy = restores.run(vps, *command)
            assert busy.exit == 11
            assert busy.facts["error"].startswith("Refusing to start: a restore (process ")
            assert busy.facts["hint"] == "wait until it has ended; see: systemctl list-units 'prefect-*'"
        assert restores.run(vps, "prefect-backup", "create", "--wait", "0").exit == 11
        terminal.process.kill()
        terminal.process.wait()
        # What asked the questions; the unit has other arguments.
        until("the end of the session", lambda: vps.ssh("pgrep -f '[p]refect-restore --id'", check=False).stdout)
    finally:
        vps.ssh(f"systemctl kill --signal=CONT '{restores.UNITS}'")
    until("the rest of the restore", lambda: leftovers(vps))
    assert_restored(endpoint, world)


def test_a_second_and_a_third_mistake(vps: Vps, endpoint: Any, world: World) -> None:
    """Undone to what was broken, then a restore that dies, then the volume gone: a backup comes back all the same.

    There is nothing to go back to then. What a person has made beside our databases is left alone as long as it is there.
    """
    psql(vps, "CREATE DATABASE mine", database="postgres")
    shown = restores.run(vps, "prefect-restore", "--undo", "--dry-run")
    assert (shown.exit, shown.facts) == (0, {"dry_run": True})
    assert f"To go back to: the database of before the restore of {world.backup}, " in shown.said
    assert "But the server cannot serve it: it lacks the tables flow_run\n" in shown.said
    undone = restore(vps, "--undo")
    assert (undone.exit, undone.facts["code"]) == (24, "NOT_READY")
    assert undone.facts["error"] == (
        "the database of before is back as it was, without the tables flow_run: the server cannot serve it"
    )
    assert undone.facts["hint"] == "forward again: prefect-restore --undo ; or another backup: prefect-restore --list"
    assert vps.ssh(f"ls {restores.STATE}/restore.json", check=False).returncode != 0, "it has ended"

    with restores.no_resumption(vps):
        died = restore(vps, "--id", world.backup, "--without-safety-backup", PREFECT_BACKUPS_FAILPOINT="kill:order")
        assert died.exit == 255
        assert "mine" in psql(vps, "SELECT datname FROM pg_database", database="postgres").split()
        volume = vps.ssh("docker volume inspect --format '{{.Mountpoint}}' prefect_postgres").stdout.strip()
        vps.ssh(f"docker stop prefect-server prefect-postgres && rm -r {volume}")
        shown = restores.run(vps, "prefect-restore", "--latest", "--dry-run")
        assert (shown.exit, shown.facts) == (0, {"dry_run": True, "unfinished": world.backup})
        assert f"Unfinished the restore of {world.backup}, begun " in shown.said
        assert " ago: the databases have swapped, and the server was being started\n" in shown.said
        assert f"the restore of {world.backup}, which did not end, is given up\n" in shown.said
        assert "Postgres's data are gone: a new cluster is made first\n" in shown.said
        assert vps.ssh(f"ls -d {volume}", check=False).returncode != 0, "nothing was changed"
    overdue = restores.run(vps, "prefect-backup", "check")
    assert overdue.exit == 26
    assert f"the restore of {world.backup} did not end: prefect-restore --resume, --undo, or --latest" in overdue.joined
    # What boot, or the end of the unit, would do: it says at once what is needed, and waits for nobody.
    stuck = restores.run(vps, "prefect-restore", "--resume")
    assert (stuck.exit, stuck.facts["error"]) == (
        24,
        f'the restore of {world.backup}, which did not end, cannot go on: the database "prefect" has no tables',
    )
    assert stuck.facts["hint"] == "bring a backup back, which gives it up: prefect-restore --latest"

    vps.ssh("docker stop prefect-postgres")
    outcome = restored(vps, "--id", world.backup, "--run-late")
    assert f"given up: the restore of {world.backup}, which did not end" in outcome.said
    assert "Postgres was down and has been started" in outcome.said
    assert "the database there now is empty" in outcome.said
    facts = outcome.facts
    assert (facts["undo"], facts["crashed"], facts["cancelled"]) == (None, world.dead, 0)
    # The one that died has stopped it.
    assert (facts["workers"], facts["workers_down"]) == (1, [])
    assert facts["late"] >= len((world.hours_ago, world.minutes_ago)), "and those of a schedule, when one passes now"
    assert_restored(endpoint, world)
    for run in (world.hours_ago, world.minutes_ago):
        restores.until_state(endpoint, run, "Completed")

    nothing = restore(vps, "--undo")
    assert nothing.exit == 27
    assert nothing.facts["error"] == 'there is no restore to undo: no database "prefect_previous"'
    assert nothing.facts["hint"] == (
        "it is kept for 7 days after a restore; safety backups are in: prefect-restore --list"
    )


# --- going back --------------------------------------------------------------------------------------------------


def test_undo_and_undo_of_the_undo(vps: Vps, endpoint: Any, world: World) -> None:
    """Running flow runs are given time to end, in the world that is left; going back finds it so."""
    mark(endpoint, "later")
    ending = restores.start_run(endpoint, ALONE, {"seconds": 8})
    restores.until_state(endpoint, ending, "Running")
    outcome = restored(vps, "--id", world.backup, "--drain", str(RUNNING_ENDS))
    safety = outcome.said.split("kept as ")[1].split()[0]
    assert safety in restores.backups(vps)
    # Without a word about it, what was due before the last sign of life of the world before is cancelled.
    assert outcome.facts["cancelled"] >= len((world.hours_ago, world.minutes_ago))
    assert_restored(endpoint, world)
    assert endpoint.get(f"/api/flow_runs/{ending}").status_code == 404

    undone = restored(vps, "--undo")
    assert (undone.facts["backup"], undone.facts["undo"]) == ("undo", "prefect-restore --undo")
    assert undone.facts["smoke"].startswith("flow run Completed with 3 task runs")
    assert marker(endpoint) == "later"
    assert restores.state_of(endpoint, ending) == "Completed"
    assert endpoint.get("/api/work_pools/general").json()["is_paused"] is False

    restored(vps, "--undo")
    assert_restored(endpoint, world)


RUNNING_ENDS = 120  # seconds given to a flow run that takes a few


def test_choices_change_nothing(vps: Vps, endpoint: Any, world: World) -> None:
    """--list, --dry-run with each way to say which, and nobody to ask."""
    mark(endpoint, "later")
    there = restores.backups(vps)
    assert there == sorted(there, reverse=True)
    older, newest = world.backup, there[0]
    before = (databases(vps), vps.ssh("docker inspect --format '{{.State.StartedAt}}' prefect-server").stdout)
    moment = datetime.strptime(older, "%Y%m%dT%H%M%SZ").replace(tzinfo=UTC).isoformat()
    for which, expected in ((("--latest",), newest), (("--before", moment), older), (("--id", older[:-1]), older)):
        planned = restores.run(vps, "prefect-restore", *which, "--dry-run")
        assert planned.exit == 0, planned.said
        assert planned.facts == {"dry_run": True}
        assert f"Backup    {expected}, " in planned.said
        assert "Nothing was changed (--dry-run)." in planned.said
    nobody = restores.run(vps, "prefect-restore")
    assert (nobody.exit, nobody.facts["error"]) == (28, "no backup was named, and nobody can be asked here")
    assert nobody.facts["hint"] == "prefect-restore --latest --yes, or --id ID"
    nobody = restores.run(vps, "prefect-restore", "--latest")
    assert (nobody.exit, nobody.facts["error"]) == (28, "nobody can be asked here")
    for which, error in (
        (("--id", "19990101"), 'there is no backup "19990101"; '),
        (("--before", "2001-01-01"), "there is no backup from before 2001-01-01 00:00 "),
        (("--before", "soon"), '"soon" is not a time'),
        (("--latest", "--from", "moon"), 'there is no repository "moon"; there are: local'),
    ):
        unknown = restore(vps, *which)
        assert (unknown.exit, unknown.facts["code"]) == (21, "NOT_FOUND")
        assert unknown.facts["error"].startswith(error)
    after = (databases(vps), vps.ssh("docker inspect --format '{{.State.StartedAt}}' prefect-server").stdout)
    assert after == before
    assert marker(endpoint) == "later"
    until("nothing left over", lambda: leftovers(vps))


# --- many rows ---------------------------------------------------------------------------------------------------


def loading(vps: Vps) -> str:
    """Nothing, once rows are being copied into the new database."""
    query = (
        "SELECT 1 FROM pg_stat_activity WHERE datname = 'prefect_restore' AND query LIKE 'COPY%' AND state = 'active'"
    )
    return "" if psql(vps, query, database="postgres") else "no rows are being copied"


def test_many_rows_and_a_cluster_that_does_not_start(vps: Vps, endpoint: Any, world: World) -> None:
    """Killed in the middle of the load, then onto a new cluster."""
    seed(vps, ROWS)
    mark(endpoint, "many")
    before = counts(vps)
    assert sum(before.values()) >= ROWS
    big = back_up(vps)

    command = vps.ssh_command(f"prefect-restore --id {big} --yes --without-safety-backup")
    killed = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    until("rows on their way", lambda: loading(vps))
    vps.ssh(f"systemctl kill --signal=KILL '{restores.UNITS}'")
    assert killed.wait(restores.LIMIT) != 0
    until("what was left is taken back", lambda: leftovers(vps))
    assert vps.ssh("docker top prefect-postgres -eo args | grep pg_restore", check=False).stdout == ""

    volume = vps.ssh("docker volume inspect --format '{{.Mountpoint}}' prefect_postgres").stdout.strip()
    vps.ssh(f"docker stop prefect-server prefect-postgres && truncate --size 100 {volume}/global/pg_control")
    refused = restore(vps, "--id", big)
    assert (refused.exit, refused.facts["code"]) == (16, "NO_DATABASE")
    assert refused.facts["error"].startswith('Postgres does not start: "')
    assert "pg_control" in refused.facts["error"]
    assert refused.facts["hint"] == (
        "if its data is beyond repair, set it aside and begin a new cluster: prefect-restore --latest --new-cluster"
    )
    outcome = restored(vps, "--id", big, "--new-cluster")
    aside = outcome.said.split("the broken one is kept in ")[1].split(";")[0]
    assert vps.ssh(f"stat --format %s {aside}/global/pg_control").stdout.strip() == "100"
    vps.ssh(f"rm -r {aside}")
    assert marker(endpoint) == "many"
    after = counts(vps)
    # The smoke run, and whatever else the restored world does, is new.
    assert all(after[table] >= before[table] for table in before), (before, after)
    assert endpoint.post("/api/flow_runs/count", {}).raise_for_status().json() >= before["flow_run"]
    assert restores.state_of(endpoint, world.done) == "Completed"

    # Small again, for the tests after this one.
    restored(vps, "--id", world.backup, "--without-safety-backup")
    assert restores.run(vps, "prefect-restore", "--drop-previous").facts == {"dropped": "prefect_previous"}
    assert databases(vps) == {"prefect"}
    assert_restored(endpoint, world)
