"""Fixtures of the lab tests: engine and images, a VPS that site.yml has provisioned from nothing, its public endpoint.

The VPS is a copy of a snapshot (tests/lab/vps/provision.py), there in seconds. With `--lab-keep` (or PREFECT_LAB_KEEP=1)
it stays after the session and the next one uses it again, for development; site.yml is then run at the start only when a
file that it deploys has changed.
"""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import testinfra
import yaml
from testinfra.host import Host

from tests.lab import costs
from tests.lab.shards import ORDER, SPACE, this_shard
from tests.lab.vps import engine, images, inventory, provision
from tests.lab.vps.endpoint import Endpoint
from tests.lab.vps.playbook import PlaybookRun, run_playbook
from tests.lab.vps.shell import LabError, cache_directory, step, write_whole
from tests.lab.vps.vps import Vps

NAME = this_shard().vps

Aloud = Callable[[str], AbstractContextManager[None]]


def pytest_configure(config: pytest.Config) -> None:
    """Reckon what each test costs."""
    if plugin := costs.plugin():
        config.pluginmanager.register(plugin, "costs")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run the files in the order of their shards, others before them; within one, as they are written."""
    items.sort(key=lambda item: ORDER.index(item.path.stem) if item.path.stem in ORDER else -1)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Print a failure when it happens: a shard's own report of it comes after half an hour."""
    if report.failed:
        print(
            f"\n--- {report.nodeid} failed in its {report.when}\n{report.longreprtext}", file=sys.__stderr__, flush=True
        )


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
        return images.ensure_images(this_shard().prefect)


@pytest.fixture(scope="session")
def inventory_directory() -> Path:
    """The inventory of the main VPS, with the secrets and the CA that the playbook puts beside it."""
    return cache_directory() / f"{NAME}-inventory"


@pytest.fixture(scope="session")
def vps(lab: images.LabImages, inventory_directory: Path, lab_keep: bool, aloud: Aloud) -> Iterator[Vps]:
    """The main VPS, provisioned by site.yml: a copy of the snapshot, or the one that was kept."""
    vps = Vps(NAME)
    try:
        with aloud(f"the VPS {NAME}"):
            if lab_keep and vps.state != "absent":
                bring_up_to_date(vps, inventory_directory, lab)
            else:
                vps.down()
                source = provision.from_snapshot(vps, inventory_directory, lab)
                note_run(inventory_directory, source.content, source.run)
    except LabError as error:
        # Hundreds of errors would say the same.
        pytest.exit(str(error), returncode=1)
    yield vps
    if not lab_keep:
        vps.down()
        shutil.rmtree(inventory_directory, ignore_errors=True)
        record_of(inventory_directory).unlink(missing_ok=True)


def bring_up_to_date(vps: Vps, inventory_directory: Path, lab: images.LabImages) -> None:
    """Start a kept VPS, and run site.yml there when a file that it deploys has changed."""
    vps.up(domain=provision.DOMAIN)
    inventory.write(inventory_directory, vps, lab)
    content = provision.deployed_content(lab)
    record = record_of(inventory_directory)
    if record.exists() and json.loads(record.read_text())["content"] == content:
        return
    run = run_playbook(inventory_directory, "site.yml", timeout=provision.SECONDS_TO_PROVISION)
    if run.returncode:
        raise LabError(f"site.yml failed on {vps.name}:\n{run.stdout[-8000:]}", "read the end of its output above")
    note_run(inventory_directory, content, asdict(run))


def record_of(inventory_directory: Path) -> Path:
    """Where it is noted with what content the main VPS was provisioned, and by which run of site.yml."""
    return inventory_directory.with_name(f"{inventory_directory.name}-first-run.json")


def note_run(inventory_directory: Path, content: str, run: dict[str, Any]) -> None:
    write_whole(record_of(inventory_directory), json.dumps({"content": content, **run}))


@pytest.fixture(scope="module")
def make_vps(lab: images.LabImages) -> Iterator[Callable[..., Vps]]:
    """`make_vps(NAME, domain=None)` makes a further VPS, bare and new, that goes at the end of the file: a server that
    only waits takes a twentieth of a core from the tests after it.
    """
    made: list[Vps] = []

    def make(name: str, domain: str | None = None) -> Vps:
        space = os.environ.get(SPACE, "")
        # Not that of another checkout, which it would take down.
        vps = Vps(name if not space or name.startswith(NAME) else f"{name}-{space}")
        vps.down()
        made.append(vps)
        vps.up(domain=domain)
        return vps

    yield make
    for vps in made:
        vps.down()


@pytest.fixture(scope="session")
def first_run(vps: Vps, inventory_directory: Path) -> PlaybookRun:
    """The run of site.yml that provisioned the VPS, from nothing; of a kept VPS, the latest that changed it."""
    run = json.loads(record_of(inventory_directory).read_text())
    del run["content"]
    return PlaybookRun(**run)


@pytest.fixture(scope="session")
def host(vps: Vps) -> Host:
    """Testinfra's view of the main VPS, over ssh as root."""
    return host_of(vps)


def host_of(vps: Vps) -> Host:
    """Testinfra's view of any VPS of the lab, by the lab's key and that VPS's own host key."""
    return testinfra.get_host(f"ssh://root@{vps.address}", ssh_extra_args=shlex.join(vps.shared_options()))


# --- the playbook ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def playbook(vps: Vps, inventory_directory: Path) -> Callable[..., PlaybookRun]:
    """`playbook("site.yml", *arguments)` runs ansible-playbook on the main VPS and fails the test when it fails.

    `check=False` gives a failed run back, `inventory=` takes another inventory, `timeout=` is in seconds.
    """

    def play(
        name: str,
        *arguments: str,
        check: bool = True,
        inventory: Path = inventory_directory,
        timeout: float = provision.SECONDS_TO_PROVISION,
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
def inventory_variables(vps: Vps, inventory_directory: Path) -> dict[str, Any]:
    """The settings of the main VPS's inventory."""
    return yaml.safe_load((inventory_directory / "group_vars" / "all.yml").read_text())


@pytest.fixture(scope="session")
def inventory_secrets(vps: Vps, inventory_directory: Path) -> dict[str, str]:
    """Every secret that the playbook generated, by its path below `secrets/`."""
    folder = inventory_directory / "secrets"
    return {
        str(path.relative_to(folder)): path.read_text().strip() for path in sorted(folder.rglob("*")) if path.is_file()
    }


# --- the reverse proxy --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def endpoint(vps: Vps, inventory_directory: Path) -> Endpoint:
    """The way in to the provisioned Prefect."""
    return Endpoint(f"https://{provision.DOMAIN}", inventory_directory)


@pytest.fixture(scope="session")
def access_log(host: Host) -> Callable[[int], list[dict[str, Any]]]:
    """`access_log(60)` gives the lines of Caddy's access log of the last 60 seconds, as objects."""

    def lines(seconds: int) -> list[dict[str, Any]]:
        said = host.check_output(f"docker logs --since {seconds}s prefect-caddy 2>&1")
        parsed = [json.loads(line) for line in said.splitlines() if line.startswith("{")]
        return [line for line in parsed if "request" in line]

    return lines
