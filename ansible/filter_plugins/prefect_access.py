"""What each account may do at Prefect's API, as compose/server/access reads it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

#: Of an account that the inventory gives none: as it was before there were roles.
DEFAULT_ROLE = "admin"
#: What an account has beside its role.
LISTS = ("pools", "deployments", "blocks", "more")


def prefect_worker_accounts(workers: Iterable[Mapping[str, Any]], blocks: Iterable[str] = ()) -> list[dict[str, Any]]:
    """The account of each worker, on whichever host: of its work pool, and the blocks that its flows may read.

    Args:
        blocks: those that the flows of all workers may read.
    """
    everybodys = set(blocks)
    return [
        {
            "name": f"worker-{worker['name']}",
            "kind": "service",
            "role": "worker",
            "pools": [worker.get("pool", "")],
            "blocks": sorted(everybodys | set(worker.get("blocks") or [])),
            "deployments": list(worker.get("deployments") or []),
            "more": ["variables"] if worker.get("write_variables") else [],
        }
        for worker in workers
    ]


def prefect_user_accounts(users: Iterable[Mapping[str, Any]], blocks: Iterable[str] = ()) -> list[dict[str, Any]]:
    """The accounts of people and programs. One of the role worker, which the playbook does not make itself, is as its own are.

    Args:
        blocks: those that the flows of all workers may read.
    """
    everybodys = set(blocks)
    return [
        {**user, "blocks": sorted(everybodys | set(user.get("blocks") or []))}
        if user.get("role") == "worker"
        else {**user}
        for user in users
    ]


def prefect_rights(
    accounts: Iterable[Mapping[str, Any]], groups: Mapping[str, str] | None = None
) -> dict[str, dict[str, Any]]:
    """Accounts by name, with their role and what limits or widens it.

    Args:
        groups: the role of each group that single sign-on knows; in the result they are called @GROUP.
    """
    of_groups = {f"@{group}": {"role": role} for group, role in (groups or {}).items()}
    return of_groups | {
        account["name"]: {
            "role": account.get("role") or DEFAULT_ROLE,
            **{key: sorted(account[key]) for key in LISTS if account.get(key)},
        }
        for account in accounts
    }


class FilterModule:
    """The filters of this file, under their own names."""

    def filters(self) -> dict[str, Any]:
        return {
            "prefect_rights": prefect_rights,
            "prefect_user_accounts": prefect_user_accounts,
            "prefect_worker_accounts": prefect_worker_accounts,
        }
