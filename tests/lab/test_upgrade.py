"""upgrade.yml: to the later Prefect and back, with flow runs under way on two hosts and a client that asks all the time."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml

from tests.lab import restores
from tests.lab.asking import Asking, serves
from tests.lab.conftest import Aloud
from tests.lab.restores import until
from tests.lab.runs import Runs
from tests.lab.seed import psql
from tests.lab.vps import images, inventory
from tests.lab.vps.endpoint import Endpoint
from tests.lab.vps.playbook import ANSIBLE
from tests.lab.vps.vps import Vps

HERE, LATER = images.EARLIER, images.NEWEST
LATER_IMAGE = images.prefect_image(LATER)
# Longer than until the server has been replaced; the worker then waits for its end.
RUN_SECONDS = 150
WORKER = "/opt/prefect/worker/venv/bin/python -c 'from importlib.metadata import version; print(version(\"prefect\"))'"


@pytest.fixture(scope="module", autouse=True)
def no_timers(vps: Vps) -> Iterator[None]:
    with restores.no_timers(vps):
        # What other tests have done to the database may have failed a backup of the hour, and that would be refused.
        restores.back_up(vps)
        yield


@pytest.fixture(scope="module")
def later(aloud: Aloud) -> tuple[str, ...]:
    """The options of upgrade.yml that go to the later Prefect."""
    with aloud(f"the image of Prefect {LATER}"):
        archive = images.ensure_images(LATER).archive
    given = {"prefect_version": LATER} | ({"prefect_images_archive": str(archive)} if archive else {})
    return ("-e", json.dumps(given))


@pytest.fixture(scope="module")
def far(
    make_vps: Callable[..., Vps], vps: Vps, lab, inventory_directory: Path, playbook, aloud: Aloud
) -> Iterator[Vps]:
    """A second host, whose worker serves a work pool of its own, with the version of the server."""
    made = make_vps(f"{vps.name}-far")
    usual = yaml.safe_load((ANSIBLE / "roles/prefect/defaults/main.yml").read_text())["prefect_work_pools"]
    settings = {"prefect_work_pools": [*usual, {"name": "far"}]}
    workers = {made: {"prefect_workers": [{"name": "far-1", "pool": "far"}]}}
    inventory.write(inventory_directory, vps, lab, settings, workers=workers)
    with aloud("ansible-playbook site.yml with a second host"):
        playbook("site.yml", "--skip-tags", "docker,backups")
    # The flows of the tests.
    Runs(made, None)
    yield made
    inventory.write(inventory_directory, vps, lab)
    playbook("site.yml", "--tags", "stack,workers")


@pytest.fixture(scope="module")
def runs(vps: Vps, endpoint: Endpoint) -> Iterator[Runs]:
    made = Runs(vps, endpoint)
    yield made
    made.remove()


def left_over(vps: Vps) -> str:
    """What an upgrade leaves nothing of: its journal, its unit, containers and the copy of the database."""
    names = vps.ssh("docker ps --all --format '{{.Names}}' | grep -E 'rehearsal|next' || true").stdout
    files = vps.ssh("ls /var/lib/prefect/backups/upgrade.json 2> /dev/null || true").stdout
    units = vps.ssh(
        "systemctl list-units --plain --no-legend 'prefect-upgrade*' | grep -E ' (active|activating|failed) ' || true"
    )
    copy = psql(vps, "SELECT datname FROM pg_database WHERE datname = 'prefect_restore'")
    return f"{names}{files}{units.stdout}{copy}"


def test_site_yml_keeps_the_version_that_runs(playbook, endpoint):
    done = playbook("site.yml", "-e", f"prefect_version={LATER}", check=False)
    assert done.recap["changed"] == 0
    assert f'prefect_version is "{LATER}"' in done.joined
    assert f"ansible-playbook upgrade.yml -e prefect_version={LATER}" in done.joined
    done = playbook("upgrade.yml", "-e", "back=true", check=False)
    assert done.recap["changed"] == 0
    assert f'it runs Prefect "{HERE}", and there is no upgrade to take back' in done.joined


def killed_at(vps: Vps, step: str, option: str = "--to") -> None:
    """An upgrade, rehearsed before, or with `--rehearse` its rehearsal, that dies at a step."""
    died = vps.ssh(f"PREFECT_BACKUPS_FAILPOINT=kill:{step} prefect-upgrade {option} {LATER_IMAGE}", check=False)
    assert died.returncode == 255
    assert died.stderr.endswith(
        "It was killed. systemd takes it back or finishes it; look at: journalctl -u prefect-upgrade\n"
    )
    until("the end of what it has left", lambda: left_over(vps))


def test_a_rehearsal_that_fails_changes_nothing(vps, playbook, endpoint, later):
    """Its words are those of the migration: here a table of somebody else's has the name of a new one."""
    psql(vps, "CREATE TABLE automation_held_event (somebody text)")
    try:
        restores.back_up(vps)
        done = playbook("upgrade.yml", *later, "-e", "rehearse_only=true", check=False)
    finally:
        psql(vps, "DROP TABLE automation_held_event")
        restores.back_up(vps)
    assert done.recap["failed"] == 1
    assert f"the migrations to {LATER_IMAGE} fail" in done.joined
    assert "automation_held_event" in done.joined
    assert "nothing has changed: the server of before serves" in done.joined
    assert left_over(vps) == ""
    # Nor does one that is killed: a copy of all data would fill the disk.
    killed_at(vps, "migrate", "--rehearse")
    assert serves(endpoint) == HERE


def drifted(vps: Vps) -> list[dict[str, str]]:
    """What the doctor takes for changed by hand."""
    found = json.loads(vps.ssh("prefect-doctor --json", check=False).stdout)["findings"]
    drift = ("deployed files", "unit files", "container configuration")
    return [one for one in found if one["check"] in drift and one["level"] != "OK"]


def test_an_upgrade_fails_no_request_and_no_flow_run(vps, far, playbook, endpoint, runs, later):
    """Not even one that dies when the server has been replaced: systemd finishes it, and the playbook goes on from there."""
    on_far = runs.deployment("through-an-upgrade-elsewhere", work_pool_name="far")
    before = {table: int(psql(vps, f"SELECT count(*) FROM {table}")) for table in ("flow_run", "deployment", "log")}
    run = runs.start(runs.deployment("through-an-upgrade"), parameters={"seconds": RUN_SECONDS})
    run_on_far = runs.start(on_far, parameters={"seconds": RUN_SECONDS})
    runs.wait(run, "Running")
    runs.wait(run_on_far, "Running")
    with Asking(endpoint) as asked:
        rehearsed = playbook("upgrade.yml", *later, "-e", "rehearse_only=true")
        assert "the old server serves; and the way back is its image alone" in rehearsed.joined
        assert serves(endpoint) == HERE
        killed_at(vps, "replace:end")
        assert serves(endpoint) == LATER
        # The server comes first: for a while all workers are older.
        between = runs.start(on_far, parameters={"seconds": 1})
        runs.wait(between, "Completed")
        assert far.ssh(WORKER).stdout.strip() == HERE
        done = playbook("upgrade.yml", *later)
    assert (asked.failed, asked.tried > 100) == ([], True)
    assert f"{LATER_IMAGE} already" in done.joined
    assert [host.ssh(WORKER).stdout.strip() for host in (vps, far)] == [LATER, LATER]
    assert runs.wait(run, "Completed", limit=RUN_SECONDS)["run_count"] == 1
    assert runs.wait(run_on_far, "Completed", limit=RUN_SECONDS)["run_count"] == 1
    for table, count in before.items():
        assert int(psql(vps, f"SELECT count(*) FROM {table}")) >= count, table
    # site.yml keeps it, as the inventory does not say which.
    assert playbook("site.yml", "--tags", "stack,workers").recap["changed"] == 0
    assert drifted(vps) == []


def test_the_way_back_loses_nothing_either(vps, far, playbook, endpoint, runs):
    run = runs.start(runs.deployment("through-a-way-back"), parameters={"seconds": 60})
    runs.wait(run, "Running")
    with Asking(endpoint) as asked:
        playbook("upgrade.yml", "-e", "back=true")
    assert asked.failed == []
    assert serves(endpoint) == HERE
    assert [host.ssh(WORKER).stdout.strip() for host in (vps, far)] == [HERE, HERE]
    assert runs.wait(run, "Completed")["run_count"] == 1
    assert left_over(vps) == ""
    assert drifted(vps) == []


def test_a_death_before_the_server_is_replaced_is_taken_back(vps, endpoint):
    """The old server serves all along."""
    killed_at(vps, "migrate:end")
    assert serves(endpoint) == HERE


def test_the_backup_of_before_is_a_way_back_too(vps, endpoint):
    """For a schema that does not go back: a restore with the image of before, whose undo has the newer one again."""
    restores.mark(endpoint, "before")
    vps.ssh(f"prefect-upgrade --to {LATER_IMAGE}")
    restores.mark(endpoint, "newer")
    refused = vps.ssh("prefect-upgrade --back --from-backup", check=False)
    assert refused.returncode == 28
    assert re.search(r"\d+ flow runs were made since the upgrade", " ".join(refused.stderr.split()))
    assert serves(endpoint) == LATER
    vps.ssh("prefect-upgrade --back --from-backup --lose-newer")
    assert (serves(endpoint), restores.marker(endpoint)) == (HERE, "before")
    restores.restored(vps, "--undo")
    assert (serves(endpoint), restores.marker(endpoint)) == (LATER, "newer")
    restores.restored(vps, "--undo")
    assert (serves(endpoint), restores.marker(endpoint)) == (HERE, "before")
    assert left_over(vps) == ""
    assert drifted(vps) == []
