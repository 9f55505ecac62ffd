"""Fixtures of the lab tests: engine and images, a VPS that site.yml has provisioned from nothing, its door.

With `--lab-keep` (or PREFECT_LAB_KEEP=1) the VPS stays after the session and the next one uses it again, for
development; site.yml is then run at the start only when a file that it deploys has changed.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import testinfra
import yaml
from testinfra.host import Host

from tests.lab.lanes import ORDER, this_lane
from tests.lab.vps import engine, images, inventory
from tests.lab.vps.endpoint import Endpoint as Door
from tests.lab.vps.playbook import REPOSITORY, PlaybookRun, run_playbook
from tests.lab.vps.shell import cache_directory, step, write_whole
from tests.lab.vps.vps import Vps

NAME = this_lane().vps
DOMAIN = this_lane().domain
# What site.yml puts on a host; a change there makes a kept VPS be provisioned again.
DEPLOYED = ("ansible", "backups", "caddy", "compose", "flows", "systemd")
SECONDS_TO_PROVISION = 1800

Aloud = Callable[[str], AbstractContextManager[None]]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run the files in the order of their lanes, others before them; within one, as they are written."""
    items.sort(key=lambda item: ORDER.index(item.path.stem) if item.path.stem in ORDER else -1)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--lab-keep", action="store_true", help="keep the lab's VPS, and use the one that was kept")


# --- the VPS ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def lab_keep(request: pytest.FixtureRequest) -> bool:
    """Whether the VPS outlives the session."""
    return bool(request.config.getoption("--lab-keep", default=False)) or os.environ.get("PREFECT_LAB_KEEP") == "1"


@pytest.fixture(scope="session")
def aloud(request: pytest.FixtureRequest) -> Aloud:
    """`with aloud("what takes long"):` shows progress while pytest captures everything else."""
    capture = request.config.pluginmanager.getplugin("capturemanager")

    @contextlib.contextmanager
    def speaking(text: str) -> Iterator[None]:
        with capture.global_and_fixture_disabled(), step(text):
            yield

    return speaking


@pytest.fixture(scope="session")
def lab(aloud: Aloud) -> images.LabImages:
    """The Docker engine is up and the images are there; gives the images."""
    with aloud("engine and images"):
        engine.start_engine()
        return images.ensure_images()


@pytest.fixture(scope="session")
def inventory_directory() -> Path:
    """The inventory of the main VPS, with the secrets and the CA that the playbook puts beside it."""
    return cache_directory() / f"{NAME}-inventory"


@pytest.fixture(scope="session")
def bare_vps(lab: images.LabImages, inventory_directory: Path, lab_keep: bool, aloud: Aloud) -> Iterator[Vps]:
    """The main VPS with its inventory, before site.yml has run (unless it was kept from an earlier session)."""
    vps = Vps(NAME)
    if not lab_keep:
        vps.down()
    if vps.state == "absent":
        shutil.rmtree(inventory_directory, ignore_errors=True)
        inventory_directory.with_name(f"{NAME}-first-run.json").unlink(missing_ok=True)
    with aloud(f"the VPS {NAME}"):
        vps.up(domain=DOMAIN)
    inventory.write(inventory_directory, vps, lab)
    yield vps
    if not lab_keep:
        vps.down()
        shutil.rmtree(inventory_directory, ignore_errors=True)


@pytest.fixture(scope="session")
def make_vps(lab: images.LabImages) -> Iterator[Callable[..., Vps]]:
    """`make_vps(NAME, domain=None)` makes a further VPS, bare and new, that goes at the end of the session."""
    made: list[Vps] = []

    def make(name: str, domain: str | None = None) -> Vps:
        vps = Vps(name)
        vps.down()
        made.append(vps)
        vps.up(domain=domain)
        return vps

    yield make
    for vps in made:
        vps.down()


@pytest.fixture(scope="session")
def first_run(bare_vps: Vps, inventory_directory: Path, aloud: Aloud) -> PlaybookRun:
    """The run of site.yml that provisioned the VPS, from nothing; of a kept VPS, the latest that changed it."""
    record = inventory_directory.with_name(f"{NAME}-first-run.json")
    content = images.content_hash(REPOSITORY / folder for folder in DEPLOYED)
    if record.exists():
        kept = json.loads(record.read_text())
        if kept.pop("content") == content:
            return PlaybookRun(**kept)
    with aloud("ansible-playbook site.yml"):
        run = run_playbook(inventory_directory, "site.yml", timeout=SECONDS_TO_PROVISION)
    if run.returncode:
        # Hundreds of errors would say the same.
        pytest.exit(f"site.yml failed on the VPS {NAME}:\n{run.stdout[-8000:]}", returncode=1)
    write_whole(record, json.dumps({"content": content, **asdict(run)}))
    return run


@pytest.fixture(scope="session")
def vps(bare_vps: Vps, first_run: PlaybookRun) -> Vps:
    """The main VPS, provisioned."""
    return bare_vps


@pytest.fixture(scope="session")
def host(vps: Vps) -> Host:
    """Testinfra's view of the main VPS, over ssh as root."""
    return host_of(vps)


def host_of(vps: Vps) -> Host:
    """Testinfra's view of any VPS of the lab, by the lab's key and that VPS's own host key."""
    options = f"-o UserKnownHostsFile={vps.known_hosts} -o StrictHostKeyChecking=yes -o IdentitiesOnly=yes"
    return testinfra.get_host(f"ssh://root@{vps.address}", ssh_identity_file=str(vps.key), ssh_extra_args=options)


# --- the playbook ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def playbook(bare_vps: Vps, inventory_directory: Path) -> Callable[..., PlaybookRun]:
    """`playbook("site.yml", *arguments)` runs ansible-playbook on the main VPS and fails the test when it fails.

    `check=False` gives a failed run back, `inventory=` takes another inventory, `timeout=` is in seconds.
    """

    def play(
        name: str,
        *arguments: str,
        check: bool = True,
        inventory: Path = inventory_directory,
        timeout: float = SECONDS_TO_PROVISION,
    ) -> PlaybookRun:
        run = run_playbook(inventory, name, *arguments, timeout=timeout)
        if check and run.returncode:
            pytest.fail(f"{name} {' '.join(arguments)} ended with {run.returncode}:\n{run.stdout[-6000:]}")
        return run

    return play


@pytest.fixture(scope="session")
def list_tasks(playbook: Callable[..., PlaybookRun]) -> Callable[..., str]:
    """`list_tasks("--tags", "host")` gives the tasks that site.yml would run, without running them."""

    def tasks(*arguments: str) -> str:
        return playbook("site.yml", "--list-tasks", *arguments).stdout

    return tasks


@pytest.fixture(scope="session")
def inventory_variables(bare_vps: Vps, inventory_directory: Path) -> dict[str, Any]:
    """The settings of the main VPS's inventory."""
    return yaml.safe_load((inventory_directory / "group_vars" / "all.yml").read_text())


@pytest.fixture(scope="session")
def inventory_secrets(vps: Vps, inventory_directory: Path) -> dict[str, str]:
    """Every secret that the playbook generated, by its path below `secrets/`."""
    folder = inventory_directory / "secrets"
    return {
        str(path.relative_to(folder)): path.read_text().strip() for path in sorted(folder.rglob("*")) if path.is_file()
    }


# --- the door --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def door(vps: Vps, inventory_directory: Path) -> Door:
    """The way in to the provisioned Prefect."""
    return Door(f"https://{DOMAIN}", inventory_directory)


@pytest.fixture(scope="session")
def access_log(host: Host) -> Callable[[int], list[dict[str, Any]]]:
    """`access_log(60)` gives the lines of Caddy's access log of the last 60 seconds, as objects."""

    def lines(seconds: int) -> list[dict[str, Any]]:
        said = host.check_output(f"docker logs --since {seconds}s prefect-caddy 2>&1")
        parsed = [json.loads(line) for line in said.splitlines() if line.startswith("{")]
        return [line for line in parsed if "request" in line]

    return lines
