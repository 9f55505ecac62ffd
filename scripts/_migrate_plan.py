"""What comes over, what does not, and how to make the rest again: decided from two inventories. Asks no server."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Set
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from _migrate_inventory import KINDS, TAG, Inventory
from _migrate_side import Refused

#: What Prefect gives in the place of a secret to who may not read it.
HIDDEN = re.compile(r"\*{8,}")
UUID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")
#: Types of work pools that the kit makes workers for.
OF_KIT = ("process", "docker")
#: And others that its prefect_work_pools takes, with the page that says how to make one.
ELSEWHERE = {"kubernetes": "docs/kubernetes.md"} | dict.fromkeys(
    ("cloud-run-v2", "ecs", "azure-container-instance"), "docs/serverless.md"
)


class Verdict(StrEnum):
    """What becomes of an object."""

    COMES = "comes over"
    THERE = "there already"
    BY_HAND = "by hand"


@dataclass(frozen=True)
class Item:
    """One object of the source, or one matter that is no object."""

    kind: str
    name: str
    verdict: Verdict
    # Why it does not come over, or what is to be known of it; may be empty.
    why: str = ""
    # What to type or set.
    then: str = ""


def pool_of(deployment: Mapping[str, Any], pools: Mapping[str, str]) -> str | None:
    """The work pool that a deployment gets at the destination."""
    name = deployment.get("work_pool_name")
    return pools.get(name, name) if name else None


def check_pools(pools: Mapping[str, str], source: Inventory, destination: Inventory) -> None:
    """Raises Refused for a pair of work pools that does not exist."""
    for old, new in pools.items():
        if old not in source.names("work pool"):
            raise Refused(f'--pool {old}={new}: the source has no work pool "{old}"', "./scripts/migrate inventory")
        if new not in destination.names("work pool"):
            raise Refused(
                f'--pool {old}={new}: the destination has no work pool "{new}"',
                "add it to prefect_work_pools, and run site.yml --tags stack,workers",
            )


def plan(source: Inventory, destination: Inventory, pools: Mapping[str, str]) -> list[Item]:
    """What becomes of everything that the source has, in the order in which it is made. Raises Refused.

    Args:
        source: read with secrets.
        destination: what is there; it stays as it is.
        pools: work pools of the destination, for deployments of work pools that do not come over.
    """
    check_pools(pools, source, destination)
    items: list[Item] = []
    for kind in KINDS:
        for name, one in source.objects[kind].items():
            if name in destination.names(kind):
                item = Item(kind, name, Verdict.THERE, _of_existing(kind, one, destination.objects[kind][name]))
            else:
                item = DECIDE[kind](name, one, source, destination, pools)
            items.append(item)
    return [*_without_lost(items, source), *_matters(source)]


def _without_lost(items: list[Item], source: Inventory) -> list[Item]:
    """The same, where automations that refer to what does not come over do not come either."""
    known = {one["id"] for objects in source.objects.values() for one in objects.values()}
    while True:
        there = {source.objects[one.kind][one.name]["id"] for one in items if one.verdict is not Verdict.BY_HAND}
        found = [_if_whole(one, source, there, known) for one in items]
        if found == items:
            return found
        items = found


def _if_whole(item: Item, source: Inventory, there: Set[str], known: Set[str]) -> Item:
    if item.kind != "automation" or item.verdict is not Verdict.COMES:
        return item
    lost = lost_ids(source.objects["automation"][item.name], there, known)
    if not lost:
        return item
    names = ", ".join(sorted(_named(words, source) for words in lost))
    return Item("automation", item.name, Verdict.BY_HAND, f"it refers to what does not come over: {names}")


def _named(words: str, source: Inventory) -> str:
    """ "deployment ID", or an id, with the object's name where the source still has it."""
    identity = words.rpartition(" ")[2]
    for kind, objects in source.objects.items():
        for name, one in objects.items():
            if one["id"] == identity:
                return f"{kind} {name}"
    return f"{words}, which is gone"


def _of_existing(kind: str, one: Mapping[str, Any], there: Mapping[str, Any]) -> str:
    if kind == "work pool" and one["type"] != there["type"]:
        return f"of type {there['type']}, the source's of type {one['type']}"
    if kind == "work queue" and one["name"] == "default":
        return "made with its work pool"
    return ""


def _simple(kind: str) -> Any:
    return lambda name, one, source, destination, pools: Item(kind, name, Verdict.COMES)


def _limit(name: str, *_: Any) -> Item:
    why = "with all of its slots free"
    return Item("concurrency limit", name, Verdict.COMES, why if not name.startswith(TAG) else "")


def _block(name: str, one: Mapping[str, Any], *_: Any) -> Item:
    if any(HIDDEN.fullmatch(text) for text in texts(one.get("data"))):
        return Item(
            "block",
            name,
            Verdict.BY_HAND,
            "its account may not read the secret in it",
            "make it in the UI of the destination (Blocks); or give the source's account the right to read secrets",
        )
    secret = ((one.get("block_schema") or {}).get("fields") or {}).get("secret_fields")
    return Item("block", name, Verdict.COMES, "with its secret" if secret else "")


def is_clouds(pool: Mapping[str, Any]) -> bool:
    """Whether a work pool runs in Prefect Cloud only: push, or managed."""
    return bool(pool.get("is_push_pool")) or str(pool["type"]).endswith((":push", ":managed"))


def _pool(name: str, one: Mapping[str, Any], source: Inventory, _: Inventory, pools: Mapping[str, str]) -> Item:
    if name in pools:
        return Item("work pool", name, Verdict.THERE, f"its deployments go to {pools[name]}")
    if is_clouds(one):
        return Item(
            "work pool",
            name,
            Verdict.BY_HAND,
            f"of type {one['type']}: Prefect Cloud starts its flow runs",
            f"a pool of type process or docker in prefect_work_pools, site.yml; then --pool {name}=THAT_POOL",
        )
    then = f"prefect_work_pools: - {{name: {name}, type: {one['type']}}}"
    if one["type"] in OF_KIT:
        return Item("work pool", name, Verdict.COMES, "it needs a worker", f"{then}; prefect_workers; site.yml")
    if page := ELSEWHERE.get(one["type"]):
        return Item("work pool", name, Verdict.COMES, "it needs a worker", f"{then}; site.yml; {page}")
    return Item("work pool", name, Verdict.COMES, f"it needs a worker of type {one['type']}, which the kit has not")


def _queue(
    name: str, one: Mapping[str, Any], source: Inventory, destination: Inventory, pools: Mapping[str, str]
) -> Item:
    pool = name.rpartition("/")[0]
    ours, theirs = source.objects["work pool"][pool], destination.objects["work pool"].get(pool)
    if pool in pools or is_clouds(ours) or (theirs is not None and theirs["type"] != ours["type"]):
        return Item("work queue", name, Verdict.BY_HAND, "its work pool does not come over")
    return Item("work queue", name, Verdict.COMES)


def _deployment(
    name: str, one: Mapping[str, Any], source: Inventory, destination: Inventory, pools: Mapping[str, str]
) -> Item:
    pool = one.get("work_pool_name")
    if not pool:
        return Item(
            "deployment",
            name,
            Verdict.COMES,
            "no pool: a process of yours serves it",
            "start that process with the PREFECT_API_URL of the destination",
        )
    ours = source.objects["work pool"].get(pool, {"type": "?"})
    theirs = destination.objects["work pool"].get(pool)
    if pool in pools:
        target = destination.objects["work pool"][pools[pool]]
        words = "" if target["type"] == ours["type"] else f"; of its job variables only env, for type {target['type']}"
        return Item("deployment", name, Verdict.COMES, f"to the work pool {pools[pool]}{words}")
    if theirs is not None and theirs["type"] != ours["type"]:
        return Item(
            "deployment",
            name,
            Verdict.BY_HAND,
            f'the destination\'s work pool "{pool}" is of type {theirs["type"]}, not {ours["type"]}',
            f"--pool {pool}={pool}, if it shall go there",
        )
    if theirs is None and is_clouds(ours):
        return Item(
            "deployment",
            name,
            Verdict.BY_HAND,
            f'its work pool "{pool}" does not come over',
            f"--pool {pool}=POOL, with a work pool of the destination",
        )
    return Item("deployment", name, Verdict.COMES)


def _automation(name: str, one: Mapping[str, Any], *_: Any) -> Item:
    words = "off until the switch" if one.get("enabled") else ""
    return Item("automation", name, Verdict.COMES, words)


DECIDE: Mapping[str, Any] = {
    "variable": _simple("variable"),
    "concurrency limit": _limit,
    "block": _block,
    "work pool": _pool,
    "work queue": _queue,
    "flow": _simple("flow"),
    "deployment": _deployment,
    "automation": _automation,
}


def _matters(source: Inventory) -> Iterator[Item]:
    """What is no object that could come over."""
    if source.flow_runs:
        yield Item(
            "history",
            f"{source.flow_runs} flow runs",
            Verdict.BY_HAND,
            "no API takes flow runs, logs or artifacts of before",
            "export what must be kept: prefect flow-run ls -o json"
            if source.cloud
            else "prefect-backup adopt DUMP on the new server, instead of transfer: it brings all",
        )
    for name in source.webhooks:
        yield Item(
            "webhook",
            name,
            Verdict.BY_HAND,
            "only Cloud has them",
            "whoever calls it posts to /api/deployments/ID/create_flow_run or /api/events, with a service account",
        )
    if source.cloud:
        yield Item(
            "roles",
            "members, service accounts",
            Verdict.BY_HAND,
            "accounts are the kit's own",
            "prefect_users with role: viewer, operator, deployer or admin (docs/access.md#roles); site.yml --tags stack,workers",
        )


def texts(value: Any) -> Iterator[str]:
    """All strings in a value of JSON."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for one in value.values():
            yield from texts(one)
    elif isinstance(value, list):
        for one in value:
            yield from texts(one)


def remapped(value: Any, ids: Mapping[str, str]) -> Any:
    """A value of JSON in which ids of the source are those of the destination, inside of longer words too."""
    if isinstance(value, str):
        return UUID.sub(lambda found: ids.get(found[0], found[0]), value)
    if isinstance(value, Mapping):
        return {name: remapped(one, ids) for name, one in value.items()}
    if isinstance(value, list):
        return [remapped(one, ids) for one in value]
    return value


def lost_ids(automation: Mapping[str, Any], there: Set[str], known: Set[str]) -> set[str]:
    """What an automation refers to and the destination has not: "deployment ID" of its actions, or an id.

    Args:
        automation: as the API gives it.
        there: ids of the source's objects that are, or will be, at the destination.
        known: ids of all objects of the source; another id in a trigger may be anything, and is left as it is.
    """
    body = {name: value for name, value in automation.items() if name != "id"}
    actions = [body.get(name) for name in ("actions", "actions_on_trigger", "actions_on_resolve")]
    named = {identity: f"{name.removesuffix('_id')} {identity}" for name, identity in _ids_of(actions)}
    found = {identity for text in texts(body) for identity in UUID.findall(text)} & known
    return {named.get(identity, identity) for identity in (found | named.keys()) - there}


def _ids_of(value: Any) -> list[tuple[str, str]]:
    """Name and value of each "…_id" that holds an id."""
    if isinstance(value, Mapping):
        here = [
            (name, one)
            for name, one in value.items()
            if name.endswith("_id") and isinstance(one, str) and UUID.fullmatch(one)
        ]
        return here + [pair for one in value.values() for pair in _ids_of(one)]
    if isinstance(value, list):
        return [pair for one in value for pair in _ids_of(one)]
    return []
