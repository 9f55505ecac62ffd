"""The recovery kit beside the inventory, and the way to prefect-restore from the laptop."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
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
    assert set(kit.make_equal(directory, wanted(inventory), change=False)) == set(wanted(inventory))
    assert not (directory / "RECOVERY.md").exists()
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


def test_what_a_person_has_put_into_the_kit_stays(inventory):
    """Their ssh key, say, which RECOVERY.md says is needed too."""
    directory = inventory / "recovery-kit"
    kit.make_equal(directory, wanted(inventory), change=True)
    for name in ("id_ed25519", "inventory/notes.txt", "mine/empty/../x"):
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        (directory / name).write_text("mine")
    (inventory / "hosts.yml").unlink()
    assert kit.make_equal(directory, wanted(inventory), change=True) == ["inventory/hosts.yml"]
    for name in ("old", "id_ed25519", "inventory/notes.txt", "mine/x"):
        assert (directory / name).exists(), name
    assert (directory / "mine/empty").is_dir()


def test_the_kit_of_before_there_was_a_record_loses_what_the_inventory_has_lost(inventory):
    directory = inventory / "recovery-kit"
    (directory / "inventory/secrets/users").mkdir(parents=True)
    (directory / "inventory/secrets/users/gone").write_text("x")
    assert "inventory/secrets/users/gone" in kit.make_equal(directory, wanted(inventory), change=True)
    assert not (directory / "inventory/secrets/users/gone").exists()
    assert (directory / "old").exists()


def test_nobody_else_reads_the_kit(inventory):
    directory = inventory / "recovery-kit"
    kit.make_equal(directory, wanted(inventory), change=True)
    (directory / "RECOVERY.md").chmod(0o644)
    assert kit.make_equal(directory, wanted(inventory), change=True) == ["RECOVERY.md"]
    (directory / "old").unlink()
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


# --- an inventory in Ansible Vault -----------------------------------------------------------------------------------

SCRIPT = ROOT / "scripts/restore"


@pytest.fixture(scope="module")
def vaulted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A real one, with its password in the file beside it; what ssh is told is written instead of told."""
    tmp_path = tmp_path_factory.mktemp("vaulted")
    (tmp_path / "mine/group_vars").mkdir(parents=True)
    (tmp_path / "mine/hosts.yml").write_text("prefect: {hosts: {one: {}}}\n")
    (tmp_path / "mine/group_vars/all.yml").write_text("ansible_host: 192.0.2.77\n")
    (tmp_path / "password").write_text("open sesame\n")
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/ssh").write_text('#!/bin/sh\necho "$@"\n')
    (tmp_path / "bin/ssh").chmod(0o755)
    vault = [restore._env.VENV / "bin/ansible-vault", "encrypt", "--vault-password-file", tmp_path / "password"]
    subprocess.run([*vault, tmp_path / "mine/group_vars/all.yml"], check=True, capture_output=True)
    return tmp_path


def run_script(vaulted: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    # The .venv's bin goes in front of the PATH; ssh is none of it.
    path = f"{vaulted / 'bin'}:{os.environ['PATH']}"
    return subprocess.run(
        [sys.executable, SCRIPT, "-i", "mine", *arguments],
        cwd=vaulted,
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        env={**os.environ, "PATH": path, **environment},
    )


def test_a_vaulted_inventory_says_how_its_password_is_given(vaulted):
    refused = run_script(vaulted, "--list")
    assert refused.returncode == 2
    assert refused.stderr == (
        'ERROR: the inventory "mine" is in Ansible Vault, and no password was given\n'
        "HINT: say how its password is had, as to ansible-playbook: ./scripts/restore --ask-vault-pass,"
        " --vault-password-file FILE, --vault-id ID; or ANSIBLE_VAULT_PASSWORD_FILE in the environment\n"
    )


@pytest.mark.parametrize("how", ["--vault-password-file", "--vault-id", "environment"])
def test_a_vaulted_inventory_is_read_with_its_password(vaulted, how):
    """The path is one of where the person is."""
    if how == "environment":
        done = run_script(vaulted, "--list", ANSIBLE_VAULT_PASSWORD_FILE=str(vaulted / "password"))
    else:
        done = run_script(vaulted, how, "password" if how.endswith("file") else "default@password", "--list")
    assert (done.returncode, done.stdout) == (0, "192.0.2.77 sudo prefect-restore --list\n"), done.stderr


def test_options_of_ansible_are_not_passed_to_the_server(vaulted):
    done = run_script(vaulted, "--vault-password-file", "password", "-e", "ansible_port=2222", "--latest", "--yes")
    assert done.stdout == "-p 2222 192.0.2.77 sudo prefect-restore --latest --yes\n", done.stderr


@pytest.mark.parametrize("asked", [[], ["--ask-vault-pass"]])
def test_a_person_at_a_terminal_is_asked_for_the_vaults_password(vaulted, asked):
    """On a terminal of its own: Ansible's output is caught, its question must come through all the same."""
    spawn = "import os, pty, sys; sys.exit(os.waitstatus_to_exitcode(pty.spawn(sys.argv[1:])))"
    with subprocess.Popen(
        [sys.executable, "-c", spawn, sys.executable, SCRIPT, "-i", "mine", *asked, "--list"],
        cwd=vaulted,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, "PATH": f"{vaulted / 'bin'}:{os.environ['PATH']}"},
    ) as person:
        shown = b""
        # What is typed before the question is thrown away by getpass.
        while not shown.endswith(b"assword: ") and (more := person.stdout.read(1)):
            shown += more
        person.stdin.write(b"open sesame\n")
        person.stdin.flush()
        rest = person.stdout.read().decode()
    assert shown.decode() == "Vault password: "
    assert (person.returncode, rest.split()) == (0, "-t 192.0.2.77 sudo prefect-restore --list".split()), rest
