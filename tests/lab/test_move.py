"""move.yml: the server to another host, made from nothing, with a flow run that ends and one that is due meanwhile; and back.

These tests follow one another; at the end the server serves where it did before.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from tests.lab import restores
from tests.lab.asking import Asking, serves
from tests.lab.runs import Runs
from tests.lab.seed import psql
from tests.lab.vps import images, inventory
from tests.lab.vps.endpoint import Endpoint
from tests.lab.vps.playbook import PlaybookRun
from tests.lab.vps.shell import write_whole
from tests.lab.vps.vps import Vps

OLD = ("-e", "move_from=old")
WORKER_UNIT = "prefect-worker@general-1"
# Until the workers stop, the run has to be there.
RUN_SECONDS = 20


@pytest.fixture(scope="module")
def target(make_vps: Callable[..., Vps], vps: Vps, inventory_directory: Path, lab: images.LabImages) -> Iterator[Vps]:
    """The new host, which the inventory names as the server; the one of before is a host in no group."""
    restores.back_up(vps)
    made = make_vps(f"{vps.name}-moved")
    # Other hosts are in no group: each VPS of the lab has a key and known hosts of its own.
    before = inventory.as_yaml(inventory.host_variables(vps))
    group = inventory.hosts_file(made).replace(f"    {made.name}:", f"    {vps.name}:", 1)
    indented = "".join(f"      {line}\n" for line in before.splitlines())
    write_whole(inventory_directory / "hosts.yml", f"{group}ungrouped:\n  hosts:\n    old:\n{indented}")
    yield made
    inventory.write(inventory_directory, vps, lab)


@pytest.fixture(scope="module")
def runs(vps: Vps, endpoint: Endpoint) -> Iterator[Runs]:
    made = Runs(vps, endpoint)
    yield made
    made.remove()


def untouched(vps: Vps) -> bool:
    """Whether nothing on the server of before says that it moves."""
    return "moved.env" not in vps.ssh("ls /etc/prefect").stdout


def test_it_refuses_what_is_no_move(vps: Vps, target: Vps, playbook: Callable[..., PlaybookRun]) -> None:
    done = playbook("move.yml", "-e", f"move_from={target.address}", check=False)
    assert done.recap["changed"] == 0
    assert f'"{target.address}" (move_from) is the very host that hosts.yml names as the server' in done.joined
    done = playbook("move.yml", *OLD, "-e", "back=true", check=False)
    assert done.recap["changed"] == 0
    assert 'there is no move of "old" (move_from) to take back: it serves' in done.joined
    assert untouched(vps)


def test_a_failure_lets_the_server_of_before_serve(
    vps: Vps, target: Vps, endpoint: Endpoint, playbook: Callable[..., PlaybookRun]
) -> None:
    """After the stop, at the last moment: the new host cannot note what it is made from."""
    target.ssh("mkdir -p /var/lib/prefect/restored_from/in-the-way")
    done = playbook("move.yml", *OLD, check=False)
    target.ssh("rm -rf /var/lib/prefect/restored_from")
    assert done.returncode != 0
    assert "internal-sftp" not in vps.ssh("cat /root/.ssh/authorized_keys").stdout
    assert "The move has failed, and the server of before" in done.joined
    assert "Note that it is begun" in done.joined
    assert untouched(vps)
    assert serves(endpoint) == images.NEWEST
    assert vps.ssh(f"systemctl is-active {WORKER_UNIT} prefect-backup.timer").stdout.split() == ["active", "active"]
    assert vps.ssh("systemctl is-enabled prefect-stack prefect-backup.timer").stdout.split() == ["enabled", "enabled"]
    assert target.ssh("docker ps --quiet").stdout == ""


def test_the_server_moves(
    vps: Vps, target: Vps, endpoint: Endpoint, playbook: Callable[..., PlaybookRun], runs: Runs
) -> None:
    before = {table: int(psql(vps, f"SELECT count(*) FROM {table}")) for table in ("flow_run", "deployment", "log")}
    due = (datetime.now(UTC) + timedelta(seconds=60)).isoformat()
    late = restores.start_run(endpoint, "hello/hello", at=due)
    working = runs.start(runs.deployment("through-a-move"), parameters={"seconds": RUN_SECONDS})
    runs.wait(working, "Running")
    with Asking(endpoint) as asked:
        done = playbook("move.yml", *OLD)
    # Answers while it is prepared, and again when the new one serves; between, the proxy of before says that it is away.
    print(f"without an answer: {asked.downtime.longest:.0f} s at a time, {asked.downtime.total:.0f} s in all")
    assert "HTTPStatusError" in " ".join(asked.failed)
    assert f"Lead {vps.domain} to {target.address} now." in done.joined

    assert serves(endpoint) == images.NEWEST
    assert vps.ssh("docker ps --quiet").stdout == ""
    assert target.ssh("docker ps --format '{{.Names}}'").stdout.split() != []
    assert runs.wait(working, "Completed", limit=60)["run_count"] == 1
    restores.until_state(endpoint, late, "Completed")
    for table, count in before.items():
        assert int(psql(target, f"SELECT count(*) FROM {table}")) >= count, table
    # All of before have come, and the policy has gone over them once more.
    there = restores.backups(target)
    assert len(set(restores.backups(vps)) & set(there)) > 1, there
    # The key to the files of before is taken back, and nothing of it stays in the settings.
    assert "internal-sftp" not in vps.ssh("cat /root/.ssh/authorized_keys").stdout
    assert "server-before" not in target.ssh("cat /etc/prefect/backups/settings.json").stdout
    again = playbook("site.yml")
    assert again.recap["changed"] == 0, again.changed_tasks


def test_the_host_of_before_serves_nothing_of_its_own(
    vps: Vps, target: Vps, endpoint: Endpoint, playbook: Callable[..., PlaybookRun]
) -> None:
    vps.reboot()
    restores.until("the way on after a reboot", lambda: serves(endpoint) != images.NEWEST)
    assert vps.ssh("docker ps --quiet").stdout == ""
    refused = playbook("site.yml", "-e", f"ansible_host={vps.address}", "-e", known_hosts_of(vps), check=False)
    assert refused.recap["changed"] == 0
    assert f'its server has moved to "{target.address}", and must not serve in two places' in refused.joined


def known_hosts_of(vps: Vps) -> str:
    """What ssh goes by, as an option of the playbook: each VPS has known hosts of its own."""
    return f"ansible_ssh_common_args={inventory.host_variables(vps)['ansible_ssh_common_args']!r}"


def test_it_comes_back(
    vps: Vps, target: Vps, endpoint: Endpoint, playbook: Callable[..., PlaybookRun], inventory_directory: Path, lab
) -> None:
    refused = playbook("move.yml", *OLD, "-e", "back=true", check=False)
    assert refused.recap["changed"] == 0
    assert re.search(r"to go back all the same: -e back=true -e lose_newer=true", refused.joined)
    playbook("move.yml", *OLD, "-e", "back=true", "-e", "lose_newer=true")
    assert untouched(vps)
    assert target.ssh("docker ps --quiet").stdout == ""
    assert serves(endpoint) == images.NEWEST
    assert vps.ssh(f"systemctl is-active {WORKER_UNIT}").stdout.strip() == "active"
    inventory.write(inventory_directory, vps, lab)
    again = playbook("site.yml")
    # It names the host that the server is on.
    assert set(again.changed_tasks) <= {"Write the recovery kit"}
