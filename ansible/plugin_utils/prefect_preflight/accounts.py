"""Who may log in, with what passwords, and where those lie on the control machine."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

from .words import bad_names, given, quoted

# Who guesses is blocked, by address (host_guessing_limit): against many addresses length is what protects.
SHORTEST_PASSWORD = 16
# bcrypt looks at no more than 72 bytes.
LONGEST_PASSWORD = 72
FEWEST_CHARACTERS = 6
# A block as `prefect block ls` shows it, or all of a type.
BLOCK = re.compile(r"[a-z0-9-]+/(\*|[^/*\s]+)")
# The proxy of single sign-on, and what the people of a group can be.
PROXY = re.compile(r"https?://[A-Za-z0-9.-]+(:[0-9]{1,5})?")
GROUP_ROLES = ("admin", "deployer", "operator", "viewer")
# Written by the playbook itself: its own accounts, and one for each worker.
RESERVED_ACCOUNT = re.compile(r"playbook|backups|watch|worker-.*")


def user_problems(settings: dict[str, Any]) -> list[str]:
    """What is wrong with the people and programs that may log in."""
    names = [user["name"] for user in settings["prefect_users"]]
    problems = bad_names("prefect_users", names)
    problems += [
        f"prefect_users: the name {quoted(name)} is reserved for the playbook and its workers"
        for name in names
        if RESERVED_ACCOUNT.fullmatch(name)
    ]
    if not names:
        problems.append("prefect_users is empty; without a user nobody can log in")
    pools = [pool["name"] for pool in settings["prefect_work_pools"]]
    return problems + role_problems(settings["prefect_users"], pools)


def role_problems(users: list[dict[str, Any]], pools: list[str]) -> list[str]:
    """What is wrong with what people and programs may do; `pools` are the names of the work pools that there are."""
    problems = []
    if users and not any(user.get("role", "admin") == "admin" for user in users):
        problems.append("prefect_users: nobody has the role admin; one has to, for work pools, blocks and automations")
    for user in users:
        who, role, listed = (
            f"prefect_users: {quoted(user['name'])}",
            user.get("role", "admin"),
            user.get("deployments") or [],
        )
        if role == "trigger" and not listed:
            problems.append(
                f"{who} has the role trigger and no deployments; name those that it may run: [FLOW/DEPLOYMENT]"
            )
        if role not in ("trigger", "worker") and listed:
            problems.append(
                f"{who} has deployments, which are of the roles trigger and worker alone; its role is {role}"
            )
        problems += worker_role_problems(who, role, user.get("pools") or [], pools)
        problems += bad_pairs(who, "deployments", "FLOW/DEPLOYMENT", listed)
        problems += bad_blocks(f"{who}: blocks", user.get("blocks") or [])
        if role in ("admin", "trigger") and user.get("blocks"):
            problems.append(f"{who} has blocks; the role {role} reads {'all' if role == 'admin' else 'none'} anyway")
    return problems


def worker_role_problems(who: str, role: str, named: list[str], pools: list[str]) -> list[str]:
    """What is wrong with the work pools of an account: a worker that the playbook does not make has to have some.

    Args:
        who: the beginning of each sentence.
        named: the work pools that the account names.
        pools: those that there are.
    """
    if role != "worker":
        return [f"{who} has pools, which only the role worker has; its role is {role}"] if named else []
    if not named:
        return [f"{who} has the role worker and no pools; name the work pools that it takes flow runs from: [POOL]"]
    there = ", ".join(map(quoted, pools)) or "none"
    return [f"{who}: pools has {quoted(pool)}; prefect_work_pools has {there}" for pool in named if pool not in pools]


def sso_problems(settings: dict[str, Any]) -> list[str]:
    """What is wrong with single sign-on."""
    proxy, roles = settings["prefect_sso_proxy"], settings["prefect_sso_roles"]
    if not proxy:
        return ["prefect_sso_roles has groups, but prefect_sso_proxy is not set"] if roles else []
    problems = []
    if not PROXY.fullmatch(proxy):
        problems.append(
            f"{given('prefect_sso_proxy', proxy)}; it must be an address without a path, such as http://oauth2-proxy:4180"
        )
    if not roles:
        problems.append("prefect_sso_roles is empty; name the groups that may do something: {GROUP: ROLE}")
    for group, role in roles.items():
        if not str(group).strip() or "," in str(group) or str(group) != str(group).strip():
            problems.append(f"prefect_sso_roles: {quoted(group)} is no name of a group that can be told from others")
        if role not in GROUP_ROLES:
            problems.append(
                f"prefect_sso_roles: {quoted(group)} has the role {quoted(role)}; allowed are {', '.join(GROUP_ROLES)}"
            )
    return problems


def worker_block_problems(settings: dict[str, Any]) -> list[str]:
    """What is wrong with the blocks that workers' flows may load, and the deployments that they may run."""
    problems = bad_blocks("prefect_workers_blocks", settings["prefect_workers_blocks"])
    for worker in settings["prefect_workers"]:
        who = f"prefect_workers: {quoted(worker['name'])}"
        problems += bad_blocks(f"{who}: blocks", worker.get("blocks") or [])
        problems += bad_pairs(who, "deployments", "FLOW/DEPLOYMENT", worker.get("deployments") or [])
    return problems


def bad_blocks(where: str, values: list[str]) -> list[str]:
    """What is wrong with names of blocks."""
    return [
        f"{where} has {quoted(value)}; it must be TYPE/NAME, such as secret/db-password, TYPE/* for all of a type, or *"
        for value in values
        if value != "*" and not BLOCK.fullmatch(value)
    ]


def bad_pairs(who: str, key: str, form: str, values: list[str]) -> list[str]:
    """What is wrong with names of two parts, such as secret/db-password."""
    return [
        f"{who}: {key} has {quoted(value)}; it must be {form}"
        for value in values
        if len(value.split("/")) != 2 or not all(part.strip() for part in value.split("/"))
    ]


def monitor_problems(settings: dict[str, Any]) -> list[str]:
    """What is wrong with the accounts that may only monitor."""
    names = settings["prefect_monitors"]
    problems = bad_names("prefect_monitors", names)
    problems += [
        f"prefect_monitors: the name {quoted(name)} is reserved for the playbook and its workers"
        for name in names
        if RESERVED_ACCOUNT.fullmatch(name)
    ]
    users = {user["name"] for user in settings["prefect_users"]}
    return problems + [
        f"prefect_monitors: the name {quoted(name)} is in prefect_users, too, which may read the same and all the rest; "
        "take it out of one of them"
        for name in dict.fromkeys(names)
        if name in users
    ]


def secrets_problems(settings: dict[str, Any]) -> list[str]:
    """What is wrong with the secrets directory."""
    directory = Path(settings["prefect_secrets_dir"])
    there = next((path for path in (directory, *directory.parents) if path.exists()), Path("/"))
    if not directory.is_absolute() or not there.is_dir() or not os.access(there, os.W_OK):
        return [
            f"prefect_secrets_dir is {quoted(directory)}; it must be the absolute path of a directory on the control "
            "machine that you may write to (it is made when it is missing)"
        ]
    return []


def password_problems(settings: dict[str, Any]) -> list[str]:
    """What is wrong with the passwords that are there; never says a password itself."""
    directory = Path(settings["prefect_secrets_dir"])
    accounts = [user["name"] for user in settings["prefect_users"]]
    accounts += settings["prefect_monitors"]
    accounts += ["playbook", "backups", *(f"worker-{worker['name']}" for worker in settings["prefect_workers"])]
    problems = []
    for account in dict.fromkeys(accounts):
        path = directory / "users" / account
        if "/" in account or not path.is_file():
            continue
        weakness = password_weakness(path.read_bytes().rstrip(b"\n"))
        if weakness:
            problems.append(
                f"the password of {quoted(account)} in {path} {weakness} (delete the file to have one generated)"
            )
    return problems


def password_weakness(password: bytes) -> str:
    """What is wrong with a password, as the end of a sentence that begins with it; empty when all is well."""
    if not SHORTEST_PASSWORD <= len(password) <= LONGEST_PASSWORD:
        return f"has {len(password)} bytes; allowed are {SHORTEST_PASSWORD} to {LONGEST_PASSWORD}"
    if not password.isascii() or not password.decode().isprintable() or b" " in password:
        return "holds a blank, a control or a non-ASCII character, which browsers and clients encode differently"
    if len(set(password)) < FEWEST_CHARACTERS:
        return f"is made of {len(set(password))} different characters; {FEWEST_CHARACTERS} or more are needed"
    return ""


def prefect_left_passwords(accounts: list[str], directory: str) -> list[str]:
    """What is left in the secrets directory of accounts that the inventory has no longer, one sentence each.

    Only of those that the playbook has let in: beside the password of each it keeps a salt of its own making.
    """
    secrets = Path(directory)
    left = sorted(path.name for path in (secrets / "users").glob("*") if path.name not in accounts)
    return [
        f"the account {quoted(name)} is not in the inventory, and its password is still in {secrets / 'users' / name}; delete "
        f"that file, or {quoted(name)} has the same password when it is added again"
        for name in left
        if (secrets / "salts" / name).is_file()
    ]
