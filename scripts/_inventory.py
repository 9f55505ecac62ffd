"""An inventory, as the scripts of a person take it: the only one by itself, and in Ansible Vault with Ansible's own options."""

from __future__ import annotations

import argparse
from pathlib import Path

import _env

ANSIBLE = _env.ROOT / "ansible"
#: What Ansible says of a file that it has no password for.
VAULTED = "no vault secrets found"


def vault_hint(script: str) -> str:
    """How a vault's password is given to a script."""
    return (
        f"say how its password is had, as to ansible-playbook: ./scripts/{script} --ask-vault-pass,"
        " --vault-password-file FILE, --vault-id ID; or ANSIBLE_VAULT_PASSWORD_FILE in the environment"
    )


def only_inventory(script: str) -> Path:
    """The one inventory that is not the example. Ends the script where there are several, or none."""
    found = sorted(path for path in (ANSIBLE / "inventory").iterdir() if path.name != "example")
    if len(found) != 1:
        names = ", ".join(f'"{path.relative_to(_env.ROOT)}"' for path in found) or "none"
        _env.fail(
            f"there must be one inventory to take it by itself; there are: {names}", f"./scripts/{script} -i INVENTORY"
        )
    return found[0]


def add_options(parser: argparse.ArgumentParser) -> None:
    """The inventory, the password of its vault, and variables."""
    parser.add_argument("-i", "--inventory", type=Path, help="inventory, as ansible-playbook takes it")
    parser.add_argument(
        "-J", "--ask-vault-pass", "--ask-vault-password", action="store_true", help="ask for the vault's password"
    )
    for name, meta, text in (
        ("--vault-password-file", "FILE", "file with the vault's password, or program that prints it"),
        ("--vault-id", "ID", "vault identity: LABEL@SOURCE, or a source"),
    ):
        parser.add_argument(name, metavar=meta, action="append", default=[], help=text)
    parser.add_argument(
        "-e", "--extra-vars", action="append", default=[], help="variables, as ansible-playbook takes them"
    )


def ansible_options(options: argparse.Namespace) -> list[str]:
    """The options for Ansible, which runs in another directory: paths become absolute."""
    words = ["--ask-vault-pass"] if options.ask_vault_pass else []
    for path in options.vault_password_file:
        words += ["--vault-password-file", str(Path(path).expanduser().resolve())]
    for identity in options.vault_id:
        label, at, source = identity.rpartition("@")
        found = Path(source).expanduser()
        words += ["--vault-id", f"{label}{at}{found.resolve() if found.exists() else source}"]
    for extra in options.extra_vars:
        words += ["-e", f"@{Path(extra[1:]).expanduser().resolve()}" if extra.startswith("@") else extra]
    return words
