"""A newcomer, with an inventory and flows of their own: installation, mistakes, releases, the bad night, and back.

What is typed is what README.md and docs/ say. The tests follow one another.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from tests.lab.vps import images, inventory
from tests.lab.vps.endpoint import Endpoint
from tests.lab.vps.playbook import REPOSITORY, PlaybookRun, run_playbook
from tests.lab.vps.vps import Vps

NAME = "newcomer"
DOMAIN = "flows.example.test"
FLOW = """
from prefect import flow, get_run_logger

@flow
def mine(name: str = "nobody"):
    get_run_logger().info("hello %s", name)
"""


class Newcomer:
    """Their server, inventory and flows, and what they type."""

    def __init__(self, vps: Vps, folder: Path, lab: images.LabImages) -> None:
        self.vps = vps
        self.inventory, self.flows = folder / "inventory", folder / "my-flows"
        shutil.copytree(REPOSITORY / "ansible/inventory/example", self.inventory)
        shutil.copytree(REPOSITORY / "flows/template", self.flows)
        # In place of an editor: host, domain and e-mail, what the lab needs, and where the flows are.
        hosts = {"prefect": {"hosts": {"prefect-1": inventory.host_variables(vps)}}}
        (self.inventory / "hosts.yml").write_text(yaml.safe_dump(hosts))
        settings = inventory.group_variables(DOMAIN, lab, {"flows_directory": str(self.flows)})
        (self.inventory / "group_vars/all.yml").write_text(yaml.safe_dump(settings))
        (self.flows / "mine.py").write_text(FLOW)
        self.deployments = yaml.safe_load((self.flows / "prefect.yaml").read_text())
        self.deployments["deployments"].append(
            {"name": "mine", "entrypoint": "mine.py:mine", "work_pool": {"name": "general"}}
        )
        self.write()
        self.endpoint = Endpoint(f"https://{DOMAIN}", self.inventory)

    def write(self) -> None:
        (self.flows / "prefect.yaml").write_text(yaml.safe_dump(self.deployments))

    def play(self, playbook: str, *arguments: str) -> PlaybookRun:
        return run_playbook(self.inventory, playbook, *arguments, timeout=1800)

    def script(self, *command: str) -> subprocess.CompletedProcess[str]:
        """A script of the kit, from the top of the repository, by somebody at no terminal."""
        return subprocess.run(
            [str(REPOSITORY / "scripts" / command[0]), *command[1:]],
            cwd=REPOSITORY,
            env={**os.environ, "PATH": os.environ["PATH"]},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=900,
        )

    def restore(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return self.script("restore", "-i", str(self.inventory), *arguments)

    def deployed(self) -> set[str]:
        found = self.endpoint.post("/api/deployments/filter", {"limit": 200}).json()
        return {one["name"] for one in found}


@pytest.fixture(scope="module")
def newcomer(make_vps: Callable[..., Vps], lab: images.LabImages, tmp_path_factory: pytest.TempPathFactory) -> Newcomer:
    return Newcomer(make_vps(NAME, domain=DOMAIN), tmp_path_factory.mktemp(NAME), lab)


def test_their_flows_are_locked_by_one_command(newcomer):
    done = newcomer.script("lock", str(newcomer.flows))
    assert done.returncode == 0, done.stdout
    lock = (newcomer.flows / "requirements.txt").read_text()
    assert re.search(r"^prefect==", lock, re.MULTILINE) and "--hash=sha256:" in lock and "://" not in lock


def test_a_first_installation_with_their_own_flows_is_proven_and_backed_up(newcomer):
    run = newcomer.play("site.yml")
    assert run.returncode == 0, run.stdout[-6000:]
    assert "Make the first backup" in run.changed_tasks
    assert {"on-demand", "nightly", "mine"} <= newcomer.deployed()
    listed = json.loads(newcomer.vps.ssh("prefect-backup list --json").stdout)
    assert listed, "no backup"
    # And nothing is left to do.
    again = newcomer.play("deploy.yml")
    assert (again.returncode, again.recap["changed"]) == (0, 0), again.stdout[-3000:]


def test_all_mistakes_in_prefect_yaml_are_refused_at_once_and_nothing_changes(newcomer):
    good = json.dumps(newcomer.deployments)
    nightly, mine = newcomer.deployments["deployments"][1:3]
    nightly["schedules"][0]["cron"] = "every night"
    mine["work_pool"]["name"] = "general-pool"
    mine["tag"] = ["daily"]
    newcomer.write()
    before = newcomer.deployed()
    refused = newcomer.play("deploy.yml")
    assert refused.returncode != 0
    for word in ("every night", "general-pool", '"tag"'):
        assert word in refused.joined, refused.stdout[-3000:]
    # Two of three are mended; the third is told again.
    nightly["schedules"][0]["cron"] = "15 3 * * *"
    mine["work_pool"]["name"] = "general"
    newcomer.write()
    refused = newcomer.play("deploy.yml")
    assert refused.returncode != 0 and '"tag"' in refused.joined and "every night" not in refused.joined
    assert newcomer.deployed() == before
    newcomer.deployments = json.loads(good)
    newcomer.write()


def test_what_a_person_made_stays_and_a_release_goes_back(newcomer):
    flow = newcomer.endpoint.post("/api/flows/", {"name": "by-hand"}).json()
    newcomer.endpoint.post("/api/deployments/", {"name": "by-hand", "flow_id": flow["id"]})
    newcomer.deployments["deployments"] = [
        one for one in newcomer.deployments["deployments"] if one["name"] != "on-demand"
    ]
    newcomer.write()
    second = newcomer.play("deploy.yml")
    assert second.returncode == 0, second.stdout[-3000:]
    assert "on-demand" not in newcomer.deployed() and {"by-hand", "mine", "nightly"} <= newcomer.deployed()
    back = newcomer.play("rollback.yml")
    assert back.returncode == 0, back.stdout[-3000:]
    assert {"by-hand", "mine", "nightly", "on-demand"} <= newcomer.deployed()
    ran = newcomer.play("run.yml", "-e", "run_deployment=mine/mine")
    assert ran.returncode == 0 and "Completed" in ran.joined, ran.stdout[-3000:]


def test_the_bad_night_with_a_second_mistake_in_it(newcomer):
    newcomer.vps.ssh("prefect-backup create")
    newcomer.vps.ssh("docker exec prefect-postgres psql -U prefect prefect -c 'DROP TABLE flow_run CASCADE'")
    done = newcomer.restore("--latest", "--yes")
    assert done.returncode == 0, done.stdout
    # They undo the wrong thing: what was there before had no table flow_run any more.
    undone = newcomer.restore("--undo", "--yes")
    assert "flow_run" in undone.stdout, undone.stdout
    # And then the volume goes.
    newcomer.vps.ssh("systemctl stop prefect-stack; docker rm -f prefect-postgres; docker volume rm prefect_postgres")
    done = newcomer.restore("--latest", "--yes")
    if done.returncode == 16:
        done = newcomer.restore("--latest", "--new-cluster", "--yes")
    assert done.returncode == 0, done.stdout
    assert {"by-hand", "mine", "nightly", "on-demand"} <= newcomer.deployed()
    runs = newcomer.endpoint.post("/api/flow_runs/filter", {"limit": 200}).json()
    assert any(run["state"]["type"] == "COMPLETED" for run in runs)
    proven = newcomer.play("site.yml", "--tags", "checks")
    assert proven.returncode == 0, proven.stdout[-3000:]
