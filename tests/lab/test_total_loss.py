"""The whole server is gone: a new one, the recovery kit and the off-site repository bring everything back.

The off-site repository lies on a second lab host, reached by SFTP. These tests follow one another.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.lab import restores
from tests.lab.conftest import Aloud, Endpoint
from tests.lab.vps import images, inventory, provision
from tests.lab.vps.playbook import PlaybookRun, run_playbook
from tests.lab.vps.shell import write_whole
from tests.lab.vps.vps import Vps

# Encrypted with the key of the host that is lost; the new one has another.
SECRET = "only-the-key-beside-the-database-reads-this"
BLOCK = "total-loss"


@dataclass
class Before:
    """What was there before the loss, and must be there after it."""

    flow_run: str
    deployments: set[str]
    ca: str
    password: str
    backup: str


def deployment_names(endpoint: Endpoint) -> set[str]:
    return {one["name"] for one in endpoint.post("/api/deployments/filter", {"limit": 200}).json()}


def secret_block(endpoint: Endpoint, name: str = BLOCK) -> str:
    """The value of the test's Secret block, decrypted by the server."""
    found = endpoint.post(
        "/api/block_documents/filter",
        {"block_documents": {"name": {"any_": [name]}}, "include_secrets": True},
    ).json()
    return found[0]["data"]["value"]


def make_secret_block(endpoint: Endpoint, name: str = BLOCK) -> None:
    endpoint.post("/api/block_types/install_system_block_types", {})
    kind = endpoint.get("/api/block_types/slug/secret").json()
    schemas = endpoint.post(
        "/api/block_schemas/filter", {"block_schemas": {"block_type_id": {"any_": [kind["id"]]}}}
    ).json()
    body = {
        "name": name,
        "data": {"value": SECRET},
        "block_type_id": kind["id"],
        "block_schema_id": schemas[0]["id"],
    }
    made = endpoint.post("/api/block_documents/", body)
    # A kept VPS has it from the session before.
    assert made.status_code in {201, 409}, made.text


@pytest.fixture(scope="module")
def elsewhere(make_vps: Callable[..., Vps]) -> Vps:
    """A host of somebody else's, with nothing but sshd: the place of the off-site repository."""
    return make_vps("offsite")


@pytest.fixture(scope="module")
def offsite(elsewhere: Vps, vps: Vps, inventory_directory: Path, lab: images.LabImages) -> Iterator[str]:
    """The off-site repository is in the inventory; gives its address. Afterwards the inventory is as before."""
    address = f"sftp:root@{elsewhere.address}:/srv/backups"
    known = [
        line for line in elsewhere.known_hosts.read_text().splitlines() if line.startswith(elsewhere.address + " ")
    ] or elsewhere.known_hosts.read_text().splitlines()
    entry = {"name": "elsewhere", "repository": address, "known_hosts": "\n".join(known)}
    inventory.write(inventory_directory, vps, lab, {"backups_offsite": [entry]})
    yield address
    inventory.write(inventory_directory, vps, lab)


@pytest.fixture(scope="module")
def before(
    offsite: str,
    elsewhere: Vps,
    vps: Vps,
    endpoint: Endpoint,
    inventory_directory: Path,
    playbook: Callable[..., PlaybookRun],
) -> Before:
    """A world that is worth having, in an off-site backup."""
    refused = playbook("site.yml", "--tags", "backups", check=False)
    assert refused.returncode != 0
    assert "An SFTP server that refuses the key must be given it first" in refused.joined
    key = (inventory_directory / "secrets" / "backup_ssh_key.pub").read_text().strip()
    assert key.split()[1] in re.sub(r"\s", "", refused.stdout)
    elsewhere.ssh(f"echo '{key}' >> /root/.ssh/authorized_keys")
    # With a new password for the repositories, which the rest of the file needs.
    (inventory_directory / "secrets" / "backup_password").unlink()
    refused = playbook("site.yml", "--tags", "backups", check=False)
    assert "If the repositories are to have a new password: " in refused.joined
    assert refused.changed_tasks == []
    accepted = playbook("site.yml", "--tags", "backups", "--extra-vars", "backups_change_password=true")
    assert "Give the repositories the new password" in accepted.changed_tasks
    assert "Make the repositories that are missing" in accepted.changed_tasks

    make_secret_block(endpoint)
    flow_run = restores.start_run(endpoint, "hello/hello")
    restores.until_state(endpoint, flow_run, "Completed")
    made = restores.run(vps, "prefect-backup", "create")
    assert made.exit == 0, made.said
    return Before(
        flow_run=flow_run,
        deployments=deployment_names(endpoint),
        ca=(inventory_directory / "ca.crt").read_text(),
        password=endpoint.passwords["admin"],
        backup=made.facts["id"],
    )


def test_each_backup_is_copied_off_site(before: Before, vps: Vps) -> None:
    listed = restores.run(vps, "prefect-restore", "--list", "--from", "off-site")
    assert listed.exit == 0, listed.said
    assert before.backup in listed.facts["backups"]
    assert restores.run(vps, "prefect-backup", "check", "--offsite").exit == 0


def test_a_copy_that_fails_is_told_and_made_up_for(before: Before, vps: Vps, elsewhere: Vps) -> None:
    elsewhere.cut()
    try:
        made = restores.run(vps, "prefect-backup", "create")
    finally:
        elsewhere.heal()
    assert made.exit == 18
    assert re.search(r"the backup \d{8}T\d{6}Z is made, but 1 of 1 copies off-site failed", made.joined)
    assert restores.run(vps, "prefect-backup", "create").exit == 0
    here = restores.run(vps, "prefect-restore", "--list").facts["backups"]
    assert set(here) <= set(restores.run(vps, "prefect-restore", "--list", "--from", "elsewhere").facts["backups"])


def test_the_recovery_kit_is_whole_and_private(before: Before, inventory_directory: Path, playbook: Callable) -> None:
    playbook("site.yml", "--tags", "checks")
    kit = inventory_directory / "recovery-kit"
    for path in (kit, *kit.rglob("*")):
        assert path.stat().st_mode & 0o077 == 0, path
    assert (kit / "inventory/secrets/backup_password").read_text() == (
        inventory_directory / "secrets/backup_password"
    ).read_text()
    steps = (kit / "RECOVERY.md").read_text()
    assert "-e prefect_restore_from=latest" in steps
    assert "elsewhere" in steps


def test_a_new_server_begins_where_the_lost_one_ended(
    before: Before,
    vps: Vps,
    endpoint: Endpoint,
    inventory_directory: Path,
    tmp_path: Path,
    aloud: Aloud,
) -> None:
    # All that is left: the kit, the repository elsewhere, and this git repository.
    kit = tmp_path / "recovery-kit"
    shutil.copytree(inventory_directory / "recovery-kit", kit)
    shutil.rmtree(inventory_directory)
    vps.down()
    vps.up(domain=provision.DOMAIN)
    # As RECOVERY.md says, but a lab VPS has its host key in a file of its own, which the inventory names.
    with aloud("site.yml -e prefect_restore_from=latest on a new VPS"):
        run = run_playbook(
            kit / "inventory",
            "site.yml",
            *("-e", "prefect_restore_from=latest", "-e", f"ansible_host={vps.address}"),
            timeout=1800,
        )
    assert run.returncode == 0, run.stdout[-6000:]
    # The kit's inventory is the inventory from now on.
    shutil.copytree(kit / "inventory", inventory_directory)
    write_whole(inventory_directory / "hosts.yml", (kit / "inventory/hosts.yml").read_text())

    assert (inventory_directory / "ca.crt").read_text() == before.ca
    assert endpoint.passwords["admin"] == before.password
    assert restores.state_of(endpoint, before.flow_run) == "Completed"
    logs = endpoint.post("/api/logs/filter", {"logs": {"flow_run_id": {"any_": [before.flow_run]}}}).json()
    assert logs
    assert deployment_names(endpoint) == before.deployments
    # And who did what on the lost one.
    told = vps.ssh(f"prefect-audit --json --object secret/{BLOCK}").stdout
    assert [(one["account"], one["what"]) for one in json.loads(told)] == [("admin", f"create block secret/{BLOCK}")]
    assert SECRET not in vps.ssh("prefect-audit --json --limit 0").stdout
    assert secret_block(endpoint) == SECRET
    assert vps.ssh(f"systemctl is-active {restores.WORKER}").stdout.strip() == "active"
    assert vps.ssh("cat /var/lib/prefect/restored_from").stdout.strip() == "latest"


def test_it_goes_on_with_the_same_backups(before: Before, vps: Vps) -> None:
    made = restores.run(vps, "prefect-backup", "create")
    assert made.exit == 0, made.said
    there = restores.run(vps, "prefect-restore", "--list", "--from", "elsewhere").facts["backups"]
    assert {made.facts["id"], before.backup} <= set(there)


def test_a_first_restore_never_replaces_a_world(
    before: Before, vps: Vps, inventory_directory: Path, playbook: Callable[..., PlaybookRun]
) -> None:
    refused = playbook("site.yml", "-e", f"prefect_restore_from={before.backup}", check=False)
    assert refused.returncode != 0
    assert refused.recap["changed"] == 0
    assert "restore.yml" in refused.joined
    again = restores.run(vps, "prefect-restore", "--latest", "--initial", "--yes")
    assert again.exit == 28
    assert re.search(r"Refusing a first restore: this server has \d+ flow runs of its own", again.joined)


def test_what_is_in_a_backup_does_not_open_it(before: Before, vps: Vps) -> None:
    """The password of the repository, and the keys to off-site places, are in no backup."""
    names = vps.ssh(
        "RESTIC_PASSWORD_FILE=/etc/prefect/backups/password restic -r /var/backups/prefect/repository --no-cache"
        " ls --json latest"
    ).stdout
    paths = {json.loads(line).get("path", "") for line in names.splitlines()}
    assert "/etc/prefect/stack.env" in paths
    assert any(path.startswith("/var/lib/prefect/caddy/") for path in paths)
    assert not any(path.startswith("/etc/prefect/backups") for path in paths)


def test_the_playbook_does_the_same(before: Before, playbook: Callable[..., PlaybookRun]) -> None:
    run = playbook("restore.yml", "-e", "restore_id=latest", "-e", "restore_dry_run=true")
    assert run.recap["changed"] == 0
    assert "Nothing was changed (--dry-run)." in run.joined
