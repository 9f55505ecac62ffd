"""What a request is about, by the name that a person knows it by: it is looked up before a deletion makes it unknown."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from .decide import Asked, Found

Get = Callable[[str], Awaitable[dict[str, Any]]]

#: Of a thing of Prefect's, by the first part of its path.
KINDS = {
    "artifacts": "artifact",
    "automations": "automation",
    "block_documents": "block",
    "block_schemas": "block schema",
    "block_types": "block type",
    "concurrency_limits": "tag concurrency limit",
    "deployments": "deployment",
    "flow_runs": "flow run",
    "flows": "flow",
    "saved_searches": "saved search",
    "task_runs": "task run",
    "v2/concurrency_limits": "concurrency limit",
    "variables": "variable",
    "work_pools": "work pool",
    "work_queues": "work queue",
}
#: Fields of a body, and of a thing, by which a person knows it.
NAMES = ("name", "key", "tag", "slug")
ID = re.compile(r"[0-9a-fA-F]{8}-?(?:[0-9a-fA-F]{4}-?){3}[0-9a-fA-F]{12}")
#: Of many things at once so many are named.
NAMED = 5
#: Names that are remembered.
REMEMBERED = 1000
#: Bytes of a body that is read for a name alone.
MOST = 1024 * 1024


@dataclass(frozen=True)
class Target:
    """What a request is about."""

    #: Prefect's noun; empty where there is no such thing.
    kind: str = ""
    #: FLOW/NAME of a deployment, TYPE/NAME of a block, POOL/NAME of a work queue.
    name: str = ""
    #: Things whose names only Prefect knows, and which part of its API knows them.
    ids: Sequence[str] = ()
    area: str = ""


def target(asked: Asked, found: Found) -> Target:
    """As far as the request itself tells."""
    words = asked.path.split("/")[2:]
    area = "/".join(words[:2]) if words[:1] == ["v2"] else "".join(words[:1])
    parts = found[0][1] if found else {}
    body = asked.body if isinstance(asked.body, dict) else {}
    if area == "work_pools":
        return _of_work_pool(words, parts, body)
    if "resource_id" in parts:
        # prefect.deployment.ID
        kind, _, id = parts["resource_id"].removeprefix("prefect.").rpartition(".")
        noun = kind.replace("-", " ")
        return Target(f"automations of {noun}".strip(), parts["resource_id"], _ids([id]), f"{kind.replace('-', '_')}s")
    kind = KINDS.get(area, "")
    known = parts.get("id") or parts.get("id_or_name") or ""
    if ID.fullmatch(known):
        return Target(kind, "", (known,), area)
    name = known or parts.get("name") or parts.get("tag") or _name(body)
    if not parts and "/bulk_" in asked.path:
        return Target(f"{kind}s", "", _ids(_listed(body.get(area))), area)
    if not parts and area in ("deployments", "block_documents"):
        # Of what is made, the flow or the type has a name already.
        id, of = body.get("flow_id"), "flows"
        if area == "block_documents":
            id, of = body.get("block_type_id"), "block_types"
        return Target(kind, name, _ids([id]), of)
    return Target(kind, name)


def _of_work_pool(words: Sequence[str], parts: dict[str, str], body: dict[str, Any]) -> Target:
    pool = parts.get("work_pool_name") or parts.get("name") or _name(body)
    inner = words[2] if len(words) > 2 and "work_pool_name" in parts else ""
    if inner in ("queues", "workers"):
        name = parts.get("name") or _name(body)
        return Target("work queue" if inner == "queues" else "worker", f"{pool}/{name}")
    return Target("work pool", pool)


def _name(body: dict[str, Any]) -> str:
    return next((body[key] for key in NAMES if isinstance(body.get(key), str)), "")


def _listed(filter: Any) -> Sequence[Any]:
    """The ids of one of Prefect's filters: {"id": {"any_": [...]}}."""
    inner = filter.get("id") if isinstance(filter, dict) else None
    found = inner.get("any_") if isinstance(inner, dict) else None
    return found if isinstance(found, list) else []


def _ids(found: Sequence[Any]) -> Sequence[str]:
    return tuple(one for one in found if isinstance(one, str) and ID.fullmatch(one))


class Names:
    """Looks names up. What fails at that is left unnamed: it is no reason to hold a request up."""

    def __init__(self, get: Get) -> None:
        """
        Args:
            get: gives the JSON of a path of the API, and nothing where there is none.
        """
        self._get = get
        #: Of deployments and flows, which keep their names for life.
        self._known: dict[tuple[str, str], str] = {}

    async def of(self, found: Target) -> Target:
        """The same, with the names that Prefect has for it."""
        if not found.ids:
            return found
        names = []
        for id in found.ids[:NAMED]:
            try:
                names.append(await self._name_of(found.area, id) or id)
            except Exception:
                # Whatever of Prefect's it was: the request meets it, too, and its client is told.
                names.append(id)
        more = f" and {len(found.ids) - NAMED} more" if len(found.ids) > NAMED else ""
        name = ", ".join(names) + more
        if found.name and not found.kind.startswith("automations of"):
            name = f"{name}/{found.name}"
        return replace(found, name=name)

    async def _name_of(self, area: str, id: str) -> str:
        if area not in ("deployments", "flows"):
            return await self._look(area, id)
        if (area, id) not in self._known:
            name = await self._look(area, id)
            if not name:
                return ""
            if len(self._known) >= REMEMBERED:
                self._known.clear()
            self._known[area, id] = name
        return self._known[area, id]

    async def _look(self, area: str, id: str) -> str:
        thing = await self._get(f"/api/{area}/{id}")
        if area == "block_schemas":
            thing = thing.get("block_type") or {}
        # A type of blocks is known by its slug.
        name = str(thing.get("slug") or _name(thing))
        if not name:
            return ""
        if area == "deployments" and thing.get("flow_id"):
            return f"{await self._name_of('flows', thing['flow_id'])}/{name}"
        if area == "flow_runs" and thing.get("deployment_id"):
            return f"{name} of {await self._name_of('deployments', thing['deployment_id'])}"
        if area == "block_documents":
            return f"{(thing.get('block_type') or {}).get('slug', '')}/{name}"
        if area == "work_queues" and thing.get("work_pool_name"):
            return f"{thing['work_pool_name']}/{name}"
        return name
