"""The recovery kit beside the inventory, and the way to prefect-restore from the laptop."""

from __future__ import annotations

import importlib.util
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[2]


def load(name: str, path: Path) -> ModuleType:
    spec = importlib.util.spec_from_loader(name, SourceFileLoader(name, str(path)))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


kit = load("prefect_recovery_kit", ROOT / "ansible/library/prefect_recovery_kit.py")
restore = load("scripts_restore", ROOT / "scripts/restore")


@pytest.fixture
def inventory(tmp_path: Path) -> Path:
    """An inventory with what the playbook has put beside it."""
    directory = tmp_path / "mine"
    for name in ("hosts.yml", "group_vars/all.yml", "secrets/users/admin", "ca.crt", ".git/HEAD", "recovery-kit/old"):
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        (directory / name).write_text(name)
    return directory


def wanted(inventory: Path) -> dict[str, bytes]:
    copies = {"inventory": str(inventory), "inventory/secrets": str(inventory / "secrets")}
    return kit.wanted_files(copies, {"RECOVERY.md": "what to do"}, ["recovery-kit", "ca.crt", "secrets"])


def test_what_is_in_the_kit(inventory):
    assert wanted(inventory) == {
        "RECOVERY.md": b"what to do",
        "inventory/hosts.yml": b"hosts.yml",
        "inventory/group_vars/all.yml": b"group_vars/all.yml",
        "inventory/secrets/users/admin": b"secrets/users/admin",
    }


def test_the_kit_is_written_once_and_follows(inventory):
    directory = inventory / "recovery-kit"
    assert set(kit.make_equal(directory, wanted(inventory), change=False)) == {*wanted(inventory), "old"}
    assert (directory / "old").exists()
    kit.make_equal(directory, wanted(inventory), change=True)
    assert kit.make_equal(directory, wanted(inventory), change=True) == []
    (inventory / "group_vars/all.yml").unlink()
    (inventory / "hosts.yml").write_text("new")
    assert kit.make_equal(directory, wanted(inventory), change=True) == [
        "inventory/group_vars/all.yml",
        "inventory/hosts.yml",
    ]
    assert (directory / "inventory/hosts.yml").read_text() == "new"
    assert not (directory / "inventory/group_vars").exists()


def test_nobody_else_reads_the_kit(inventory):
    directory = inventory / "recovery-kit"
    kit.make_equal(directory, wanted(inventory), change=True)
    (directory / "RECOVERY.md").chmod(0o644)
    assert kit.make_equal(directory, wanted(inventory), change=True) == ["RECOVERY.md"]
    for path in (directory, *directory.rglob("*")):
        assert path.stat().st_mode & 0o777 == (0o700 if path.is_dir() else 0o600), path


def test_the_way_to_the_server_is_ansibles():
    variables = {
        "ansible_host": "192.0.2.10",
        "ansible_user": "ada",
        "ansible_port": 2222,
        "ansible_ssh_private_key_file": "/keys/id",
        "ansible_ssh_common_args": "-o 'ProxyCommand=ssh jump -W %h:%p'",
    }
    assert restore.ssh_command("prefect-1", variables, ["--before", "2026-11-21 04:30"], terminal=True) == [
        *(
            "ssh",
            "-t",
            "-o",
            "ProxyCommand=ssh jump -W %h:%p",
            "-i",
            "/keys/id",
            "-p",
            "2222",
            "-l",
            "ada",
            "192.0.2.10",
        ),
        "sudo prefect-restore --before '2026-11-21 04:30'",
    ]
    assert restore.ssh_command("prefect-1", {}, [], terminal=False) == ["ssh", "prefect-1", "sudo prefect-restore"]
