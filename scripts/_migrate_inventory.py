"""What a Prefect API has, by kind and name, and how two of them differ."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from _migrate_side import Api, ApiError, Refused

#: Kinds of objects, in the order in which they are made: each refers to earlier ones only.
KINDS = (
    "variable",
    "concurrency limit",
    "block",
    "work pool",
    "work queue",
    "flow",
    "deployment",
    "automation",
)
#: A limit that a deployment owns; it comes with the deployment.
OF_DEPLOYMENT = re.compile(r"deployment:[0-9a-f-]{36}")
TAG = "tag:"


@dataclass(frozen=True)
class Inventory:
    """What one side has."""

    url: str
    cloud: bool
    # Prefect's version; "" where it is not told, as by Cloud.
    version: str
    # Objects as the API gives them, by kind and name: FLOW/DEPLOYMENT, POOL/QUEUE, TYPE/BLOCK.
    objects: Mapping[str, Mapping[str, dict[str, Any]]] = field(repr=False)
    # Names of webhooks, which only Cloud has.
    webhooks: tuple[str, ...] = ()
    # Those that have begun.
    flow_runs: int = 0

    def names(self, kind: str) -> set[str]:
        """The names of the objects of a kind."""
        return set(self.objects.get(kind, {}))


def read(api: Api, secrets: bool = False) -> Inventory:
    """All of a side. Raises ApiError, and Refused where there is no Prefect API.

    Args:
        secrets: whether blocks are read with their secrets, as far as the account may.
    """
    version = ""
    if not api.side.cloud:
        try:
            version = str(api.get("/admin/version"))
        except ApiError as error:
            if error.status not in (403, 404):
                raise
            hint = f"PREFECT_API_URL ends with /api, as in {api.side.url}/api"
            if error.status == 404 and not api.side.url.endswith("/api"):
                raise Refused(f'"{api.side.url}" is no Prefect API', hint) from error
    flows = {one["id"]: one for one in api.every("/flows")}
    pools = {one["id"]: one for one in api.every("/work_pools")}
    limits = [one for one in api.every("/v2/concurrency_limits") if not OF_DEPLOYMENT.fullmatch(one["name"])]
    named = {one["name"] for one in limits}
    limits += [
        {**one, "name": TAG + one["tag"], "limit": one["concurrency_limit"], "active": True}
        for one in api.every_if_any("/concurrency_limits")
        if TAG + one["tag"] not in named
    ]
    pool_names = {identity: one["name"] for identity, one in pools.items()}
    return Inventory(
        url=api.side.url,
        cloud=api.side.cloud,
        version=version,
        objects={
            "variable": _by(api.every("/variables"), lambda one: one["name"]),
            "concurrency limit": _by(limits, lambda one: one["name"]),
            "block": _by(
                _blocks(api, secrets),
                lambda one: f"{(one.get('block_type') or {}).get('slug') or one.get('block_type_name')}/{one['name']}",
            ),
            "work pool": _by(pools.values(), lambda one: one["name"]),
            "work queue": _by(
                [one for one in api.every("/work_queues") if one.get("work_pool_id") in pool_names],
                lambda one: f"{pool_names[one['work_pool_id']]}/{one['name']}",
            ),
            "flow": _by(flows.values(), lambda one: one["name"]),
            "deployment": _by(
                api.every("/deployments"), lambda one: f"{flows.get(one['flow_id'], {}).get('name', '?')}/{one['name']}"
            ),
            "automation": _by(api.every("/automations"), lambda one: one["name"]),
        },
        webhooks=tuple(sorted(one["name"] for one in api.every_if_any("/webhooks"))) if api.side.cloud else (),
        flow_runs=int(api.post("/flow_runs/count", {"flow_runs": {"state": {"type": {"not_any_": ["SCHEDULED"]}}}})),
    )


def _blocks(api: Api, secrets: bool) -> list[dict[str, Any]]:
    """All blocks; without their secrets, too, where this account may not read them."""
    try:
        return api.every("/block_documents", include_secrets=secrets)
    except ApiError as error:
        if error.status != 403 or not secrets:
            raise
        return api.every("/block_documents", include_secrets=False)


def _by(objects: Iterable[dict[str, Any]], name: Any) -> dict[str, dict[str, Any]]:
    """Objects by name; automations may share one, and the later ones get a number then."""
    found: dict[str, dict[str, Any]] = {}
    for one in objects:
        taken = wanted = name(one)
        number = 2
        while taken in found:
            taken, number = f"{wanted} ({number})", number + 1
        found[taken] = one
    return dict(sorted(found.items()))


def active_schedules(deployment: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The schedules of a deployment that make flow runs."""
    return [one for one in deployment.get("schedules") or [] if one.get("active")]


def described(kind: str, one: Mapping[str, Any]) -> str:
    """What is worth a word about an object, beside its name; never a value that may be secret."""
    if kind == "work pool":
        return str(one["type"])
    if kind == "concurrency limit":
        return f"limit {one['limit']}"
    if kind == "automation":
        return "" if one.get("enabled") else "off"
    if kind == "deployment":
        schedules, active = one.get("schedules") or [], active_schedules(one)
        words = [f"pool {one['work_pool_name']}" if one.get("work_pool_name") else "no pool: flow.serve()"]
        if schedules:
            words.append(f"schedules: {len(active)} of {len(schedules)} on")
        if one.get("paused"):
            words.append("paused")
        return ", ".join(words)
    return ""


def difference(source: Inventory, destination: Inventory) -> dict[str, tuple[list[str], list[str]]]:
    """By kind, the names that only the source has, and those that only the destination has."""
    return {
        kind: (
            sorted(source.names(kind) - destination.names(kind)),
            sorted(destination.names(kind) - source.names(kind)),
        )
        for kind in KINDS
    }


def facts(one: Inventory) -> dict[str, Any]:
    """For --json: names, and what is said of them."""
    return {
        "url": one.url,
        "version": one.version,
        "flow_runs": one.flow_runs,
        "webhooks": list(one.webhooks),
        "objects": {
            kind: [{"name": name, "about": described(kind, value)} for name, value in one.objects[kind].items()]
            for kind in KINDS
        },
    }
