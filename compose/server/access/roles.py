"""Roles, and accounts that have them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

_VIEWER = frozenset({"public", "read", "blocks"})
_OPERATOR = _VIEWER | {"run", "state", "operate"}
#: The permissions of each role (routes.PERMISSIONS). What depends on more than the route is in decide.py.
ROLES: Mapping[str, frozenset[str]] = {
    "admin": frozenset(
        {
            "public",
            "read",
            "blocks",
            "run",
            "state",
            "operate",
            "define",
            "variables",
            "work",
            "poll",
            "admin",
        }
    ),
    "operator": _OPERATOR,
    # And flows that they run by hand, on their own machine.
    "deployer": _OPERATOR | {"define", "variables", "work"},
    "viewer": _VIEWER,
    # Of its own work pools.
    "worker": _VIEWER | {"run", "state", "work", "poll"},
    # An application: of the deployments that are named for it.
    "trigger": frozenset({"public", "run", "state"}),
}
#: Those of people, with the most powerful first.
PEOPLE = ("admin", "deployer", "operator", "viewer")


@dataclass(frozen=True)
class Account:
    """Whoever has logged in."""

    name: str
    role: str
    #: Work pools of a worker.
    pools: frozenset[str] = frozenset()
    #: FLOW/DEPLOYMENT: all that a trigger may run, and what a worker's flows may run of other work pools.
    deployments: frozenset[str] = frozenset()
    #: TYPE/NAME of blocks whose secrets it may read; TYPE/* and * are for all of a type, and all.
    blocks: frozenset[str] = frozenset()
    #: Permissions beyond those of its role.
    more: frozenset[str] = field(default=frozenset())

    @property
    def permissions(self) -> frozenset[str]:
        """Those of its role, and its own."""
        return ROLES[self.role] | self.more


def parsed(text: str) -> dict[str, Account]:
    """Accounts by name, of the JSON that the playbook writes. Raises ValueError: it is not that."""
    found: dict[str, Any] = json.loads(text)
    accounts = {}
    for name, one in found.items():
        if one.get("role") not in ROLES:
            raise ValueError(
                f"the account {name} has no role that there is: {one.get('role')!r}; roles: {', '.join(ROLES)}"
            )
        lists = {key: frozenset(one.get(key, ())) for key in ("pools", "deployments", "blocks", "more")}
        accounts[name] = Account(name, one["role"], **lists)
    return accounts


#: Before the name of a group, in the file of the accounts.
GROUP = "@"


class Accounts:
    """Those of a file, read again when it has changed: a removed account is out with its next request."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._mark: tuple[int, int] | None = None
        self._found: dict[str, Account] = {}

    def get(self, name: str) -> Account | None:
        """An account; None where there is none of that name, or the file cannot be read: then nobody has any rights."""
        try:
            status = self._path.stat()
            mark = (status.st_mtime_ns, status.st_ino)
            if mark != self._mark:
                self._found, self._mark = parsed(self._path.read_text()), mark
        except (OSError, ValueError) as error:
            self._found, self._mark = {}, None
            print(f"access: no account is known: {error}", flush=True)
        return self._found.get(name)

    def person(self, name: str, groups: Iterable[str]) -> Account | None:
        """Somebody whom single sign-on knows: the role is that of their group which may do most. None: no group has any.

        Args:
            groups: of the identity provider; the file has them as @GROUP.
        """
        found = [account for group in groups if group and (account := self.get(f"{GROUP}{group}"))]
        best = min(found, key=lambda one: PEOPLE.index(one.role) if one.role in PEOPLE else len(PEOPLE), default=None)
        return best and replace(best, name=name, blocks=frozenset().union(*(one.blocks for one in found)))
