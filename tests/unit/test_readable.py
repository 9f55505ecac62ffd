"""Inventories that are no YAML: refused with file and line, all mistakes at once, before Ansible reads anything."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

BROKEN = [
    ("a: b\n\tc: d\n", 2, "there is a tab; YAML is indented with blanks only"),
    (
        "prefect_domain: a: b\n",
        1,
        "there is a colon too many, the line above has none (with a blank behind it), or this one is indented too far; a value "
        "with a colon and a blank in it must be in quotes",
    ),
    (
        "prefect_users:\n  - name: ada\n   kind: person\n",
        3,
        "the line does not fit those above it: they begin in line 2; look at its indentation, and for a quote that closes too "
        "early",
    ),
    ('a: "b\nc: d\n', 3, "the quote or the bracket that opens in line 1 is not closed"),
    ("a: [1, 2\nb: 3\n", 2, "the bracket that opens in line 1 is not closed, or a comma is missing"),
    ("a: {{ x }}\n", 1, "a value that begins with {{ must be in quotes"),
    ("a: @x\n", 1, "a value that begins with @ must be in quotes"),
    ("a: *x\n", 1, "a value that begins with * must be in quotes"),
    ('a: "\\d"\n', 1, 'a backslash in "…" is special; write it twice, or use single quotes'),
    ("a: 1\nb: 2\na: 3\n", 3, '"a" stands twice, here and in line 1; only one of them would count'),
    ("- a\n", 1, "it must hold names with values, as in prefect_domain: prefect.example.org"),
    ("a: }\n", 1, "it is no YAML (expected the node content, but found '}')"),
]


@pytest.fixture
def inventory(tmp_path) -> Path:
    """One that is right, with everything that YAML and Ansible allow."""
    (tmp_path / "group_vars").mkdir()
    (tmp_path / "hosts.yml").write_text("---\nprefect:\n  hosts:\n    prefect-1:\n      ansible_host: 192.0.2.10\n")
    (tmp_path / "group_vars/all.yml").write_text('---\n# empty\n"a": "{{ b }}"\nc: &x {d: 1}\ne: {<<: *x}\n')
    (tmp_path / "group_vars/prefect").mkdir()
    (tmp_path / "group_vars/prefect/vault").write_text("$ANSIBLE_VAULT;1.1;AES256\n6162\n")
    (tmp_path / "group_vars/prefect/empty.yml").write_text("---\n# nothing\n")
    # None of Ansible's business either.
    (tmp_path / "group_vars/all.yml~").write_text("a: b: c")
    (tmp_path / "secrets").mkdir()
    (tmp_path / "secrets/postgres_password").write_text("a: b: c")
    return tmp_path


def run(inventory: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """ansible-playbook, as a person types it."""
    return subprocess.run(
        [ROOT / ".venv/bin/ansible-playbook", "-i", inventory, "site.yml", "--list-hosts", *arguments],
        cwd=ROOT / "ansible",
        env={**os.environ, "ANSIBLE_NOCOLOR": "1"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )


def test_an_inventory_that_is_right(inventory):
    (inventory / "group_vars/prefect/vault").unlink()
    done = run(inventory)
    assert (done.returncode, done.stderr) == (0, "")
    assert "hosts (1):\n      prefect-1" in done.stdout


def test_each_mistake_with_its_file_and_line(inventory):
    (inventory / "host_vars").mkdir()
    for number, (text, _, _) in enumerate(BROKEN):
        (inventory / f"host_vars/{number:02}.yml").write_text(text)
    (inventory / "hosts.yml").write_text("prefect:\n  hosts\n    a:\n")
    (inventory / "group_vars/latin.yml").write_bytes("a: ä\n".encode("latin-1"))
    done = run(inventory)
    problems = [
        f"{inventory}/hosts.yml, line 3: {BROKEN[1][2]}",
        f"{inventory}/group_vars/latin.yml: it is not UTF-8",
        *(
            f"{inventory}/host_vars/{number:02}.yml, line {line}: {words}"
            for number, (_, line, words) in enumerate(BROKEN)
        ),
    ]
    listed = "".join(f"- {problem}\n" for problem in problems)
    assert done.stderr == (
        f"Refusing to run, because the inventory cannot be read:\n{listed}Correct that, and run it again. Nothing has been "
        "changed.\n"
    )
    assert (done.returncode, done.stdout) == (4, "")


def test_hosts_on_the_command_line_are_no_file():
    done = run(Path("192.0.2.1,"))
    assert done.returncode == 0
    assert "cannot be read" not in done.stderr


def refused(inventory: Path) -> str:
    """What site.yml says, as one line; it is refused before any host is connected to."""
    done = subprocess.run(
        [ROOT / ".venv/bin/ansible-playbook", "-i", inventory, "site.yml"],
        cwd=ROOT / "ansible",
        env={**os.environ, "ANSIBLE_NOCOLOR": "1"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2, done.stdout + done.stderr
    return " ".join(done.stdout.split())


def test_settings_that_cannot_be_computed_are_told_with_all_others(inventory):
    (inventory / "group_vars/prefect/vault").unlink()
    (inventory / "group_vars/all.yml").write_text(
        'prefect_domain: "{{ mine }}"\nprefect_email: ops@example.org\nprefect_users: ada\nhost_timezone: Berlin\n'
    )
    assert (
        "Refusing to change prefect-1: - prefect_domain cannot be computed from what it is set to: 'mine' is undefined "
        '- prefect_users is "ada"; it must be a list - host_timezone is "Berlin"; it must be a name such as Europe/Berlin or '
        f"Etc/UTC Edit {inventory}/group_vars/all.yml (or where you set it), and run the playbook again. Nothing has been changed."
    ) in refused(inventory)


def test_hosts_that_do_not_go_together_are_told_with_the_settings(inventory):
    (inventory / "group_vars/prefect/vault").unlink()
    (inventory / "group_vars/all.yml").write_text("prefect_domain: p.example.org\n")
    with (inventory / "hosts.yml").open("a") as hosts:
        hosts.write("workers:\n  hosts:\n    gpu-1:\n      ansible_host: 192.0.2.10\n")
    said = refused(inventory)
    assert (
        "Refusing to change prefect-1: - prefect_email is not set; with prefect_tls acme it must be an e-mail address, such as "
        'ops@example.org - "prefect-1" and "gpu-1" have the same address, "192.0.2.10" (ansible_host); give each its own, '
    ) in said
    assert said.count("have the same address") == said.count("Refusing to change prefect-1")
