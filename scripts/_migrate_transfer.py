"""Make at the destination what a plan says comes over: definitions, through the API of both sides.

Why not by `prefect transfer`: that takes a dependency that is "already there" for one that has failed, and leaves out all
that depends on it without a word. On a server of one's own (3.9.1) these are all deployments of a work pool's default queue
and all blocks of Prefect's own types; see docs/migrate.md.

Each object is made by one request, and what is there already is left as it is: a run that was cut off is simply run again.
Schedules and automations are made inactive, or both sides would run them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from _migrate_inventory import Inventory
from _migrate_plan import Item, Verdict, lost_ids, pool_of, remapped
from _migrate_side import Api, ApiError

#: What comes over of a deployment as it is.
DEPLOYMENT = (
    "name",
    "version",
    "description",
    "tags",
    "labels",
    "parameters",
    "parameter_openapi_schema",
    "enforce_parameter_schema",
    "pull_steps",
    "path",
    "entrypoint",
    "paused",
    "concurrency_options",
)
SCHEDULE = ("schedule", "max_scheduled_runs", "parameters", "slug")
QUEUE = ("description", "is_paused", "concurrency_limit", "priority")
BLOCK_TYPE = ("name", "slug", "logo_url", "documentation_url", "description", "code_example")


class Waiting(Exception):
    """An object refers to another one that is not at the destination, or not yet."""


@dataclass(frozen=True)
class Outcome:
    """How it went with an item that was to come over."""

    item: Item
    # Empty: it is there.
    error: str = ""


def some(one: Mapping[str, Any], names: Sequence[str]) -> dict[str, Any]:
    """The values of these names that say something: a side of another version may not know the others."""
    return {name: one[name] for name in names if one.get(name) is not None}


class Transfer:
    """Makes objects at the destination, and knows by which ids the source's are there."""

    def __init__(self, api: Api, old: Api, source: Inventory, destination: Inventory, pools: Mapping[str, str]) -> None:
        """
        Args:
            api: the destination.
            old: the source.
            source: what it has, with the secrets of blocks.
            destination: what is there before.
            pools: work pools of the destination, for deployments of work pools that do not come over.
        """
        self._api, self._old, self._source, self._pools = api, old, source, pools
        self._queues = set(destination.names("work queue"))
        self._theirs = {name: one["type"] for name, one in destination.objects["work pool"].items()}
        #: Ids at the destination by ids at the source.
        self.ids: dict[str, str] = {}
        self._known = {one["id"] for objects in source.objects.values() for one in objects.values()}
        for kind, objects in source.objects.items():
            for name, one in objects.items():
                there = destination.objects[kind].get(name)
                if there is not None:
                    self.ids[one["id"]] = there["id"]
        for old_name, new_name in pools.items():
            target = destination.objects["work pool"][new_name]
            self.ids[source.objects["work pool"][old_name]["id"]] = target["id"]
            for name, queue in source.objects["work queue"].items():
                if name.rpartition("/")[0] == old_name:
                    same = destination.objects["work queue"].get(f"{new_name}/{queue['name']}")
                    self.ids[queue["id"]] = same["id"] if same else target["default_queue_id"]

    def run(self, items: Sequence[Item], tell: Callable[[str], None]) -> list[Outcome]:
        """Make what comes over; one that fails keeps none but those that refer to it from coming.

        Args:
            items: of the plan, in its order.
            tell: is told what is being made.
        """
        todo = [item for item in items if item.verdict is Verdict.COMES]
        done: list[Outcome] = []
        last = False
        while todo:
            waiting: list[Item] = []
            for item in todo:
                tell(f"{item.kind} {item.name}")
                try:
                    self._make(item)
                    done.append(Outcome(item))
                except Waiting as reason:
                    if last:
                        done.append(Outcome(item, str(reason)))
                    else:
                        waiting.append(item)
                except ApiError as error:
                    if error.status == 0:
                        # One of the sides is away.
                        raise
                    done.append(Outcome(item, str(error)))
            # Once more while that helps: blocks and automations refer to their own kind.
            last = len(waiting) == len(todo)
            todo = waiting
        return done

    def _make(self, item: Item) -> None:
        one = self._source.objects[item.kind][item.name]
        make: Mapping[str, Callable[[Mapping[str, Any]], dict[str, Any]]] = {
            "variable": self._variable,
            "concurrency limit": self._limit,
            "block": self._block,
            "work pool": self._pool,
            "work queue": self._queue,
            "flow": self._flow,
            "deployment": self._deployment,
            "automation": self._automation,
        }
        self.ids[one["id"]] = make[item.kind](one)["id"]

    def _variable(self, one: Mapping[str, Any]) -> dict[str, Any]:
        return self._api.post("/variables/", {"name": one["name"], "value": one["value"], "tags": one["tags"]})

    def _limit(self, one: Mapping[str, Any]) -> dict[str, Any]:
        # Not the slots that are taken: nobody would ever free them.
        return self._api.post(
            "/v2/concurrency_limits/", some(one, ("name", "limit", "active", "slot_decay_per_second"))
        )

    def _flow(self, one: Mapping[str, Any]) -> dict[str, Any]:
        return self._api.post("/flows/", some(one, ("name", "tags", "labels")))

    # --- blocks --------------------------------------------------------------------------------------------------

    def _block(self, one: Mapping[str, Any]) -> dict[str, Any]:
        data = dict(one["data"])
        for name, reference in (one.get("block_document_references") or {}).items():
            identity = reference.get("block_document_id") or (reference.get("block_document") or {}).get("id")
            if identity not in self.ids:
                raise Waiting(f'the block in its field "{name}" is not at the destination')
            data[name] = {"$ref": {"block_document_id": self.ids[identity]}}
        block_type = self._block_type(one["block_type"])
        return self._api.post(
            "/block_documents/",
            {
                "name": one["name"],
                "data": remapped(data, self.ids),
                "block_type_id": block_type,
                "block_schema_id": self._schema(one["block_schema"], block_type),
            },
        )

    def _block_type(self, one: Mapping[str, Any]) -> str:
        """The id of the same type at the destination, which has all of Prefect's own."""
        try:
            return self._api.get(f"/block_types/slug/{one['slug']}")["id"]
        except ApiError as error:
            if error.status != 404:
                raise
        return self._api.post("/block_types/", some(one, BLOCK_TYPE))["id"]

    def _schema(self, one: Mapping[str, Any], block_type: str) -> str:
        """The id of the same schema at the destination; of Prefect's own types the one that its version has."""
        try:
            found = self._api.get(f"/block_schemas/checksum/{one['checksum']}")
            if found["block_type_id"] == block_type:
                return found["id"]
        except ApiError as error:
            if error.status != 404:
                raise
        for reference in ((one.get("fields") or {}).get("block_schema_references") or {}).values():
            for inner in reference if isinstance(reference, list) else [reference]:
                self._schema_of(inner["block_schema_checksum"])
        body = {
            "fields": one["fields"],
            "block_type_id": block_type,
            **some(one, ("capabilities", "version")),
        }
        try:
            return self._api.post("/block_schemas/", body)["id"]
        except ApiError as error:
            if error.status != 403:
                raise
        # Types of Prefect's own take no other schema.
        theirs = self._api.post("/block_schemas/filter", {"block_schemas": {"block_type_id": {"any_": [block_type]}}})
        if not theirs:
            raise Waiting("the destination knows no schema of its type")
        return theirs[0]["id"]

    def _schema_of(self, checksum: str) -> None:
        """A schema that another one refers to."""
        one = self._old.get(f"/block_schemas/checksum/{checksum}")
        self._schema(one, self._block_type(one["block_type"]))

    # --- work ----------------------------------------------------------------------------------------------------

    def _pool(self, one: Mapping[str, Any]) -> dict[str, Any]:
        body = some(one, ("name", "description", "type", "is_paused", "concurrency_limit"))
        for name in ("base_job_template", "storage_configuration"):
            if one.get(name):
                body[name] = remapped(one[name], self.ids)
        made = self._api.post("/work_pools/", body)
        self._theirs[one["name"]] = one["type"]
        # The server has made its default queue.
        ours = self._source.objects["work queue"].get(f"{one['name']}/default")
        if ours is not None:
            self._api.patch(f"/work_pools/{quote(one['name'], safe='')}/queues/default", some(ours, QUEUE))
            self.ids[ours["id"]] = made["default_queue_id"]
        self._queues.add(f"{one['name']}/default")
        return made

    def _queue(self, one: Mapping[str, Any]) -> dict[str, Any]:
        pool = one["work_pool_name"] if one.get("work_pool_name") else self._pool_name(one["work_pool_id"])
        if f"{pool}/{one['name']}" in self._queues:
            return {"id": self.ids[one["id"]]}
        made = self._api.post(f"/work_pools/{quote(pool, safe='')}/queues", some(one, ("name", *QUEUE)))
        self._queues.add(f"{pool}/{one['name']}")
        return made

    def _pool_name(self, identity: str) -> str:
        pools = self._source.objects["work pool"]
        return next(name for name, one in pools.items() if one["id"] == identity)

    def _deployment(self, one: Mapping[str, Any]) -> dict[str, Any]:
        if one["flow_id"] not in self.ids:
            raise Waiting("its flow is not at the destination")
        body = some(one, DEPLOYMENT)
        body["flow_id"] = self.ids[one["flow_id"]]
        # Their id is of the source; the server makes one of its own for the deployment.
        limit = (one.get("global_concurrency_limit") or {}).get("limit")
        if limit:
            body["concurrency_limit"] = limit
        body["schedules"] = [{**some(schedule, SCHEDULE), "active": False} for schedule in one.get("schedules") or []]
        variables = remapped(one.get("job_variables") or {}, self.ids)
        pool = pool_of(one, self._pools)
        if pool:
            if pool not in self._theirs:
                raise Waiting(f'its work pool "{pool}" is not at the destination')
            body["work_pool_name"] = pool
            if f"{pool}/{one.get('work_queue_name')}" in self._queues:
                body["work_queue_name"] = one["work_queue_name"]
            elif one["work_pool_name"] not in self._pools and one.get("work_queue_name"):
                raise Waiting(f'its work queue "{pool}/{one["work_queue_name"]}" is not at the destination')
            if self._theirs[pool] != self._source.objects["work pool"][one["work_pool_name"]]["type"]:
                variables = {name: value for name, value in variables.items() if name == "env"}
        body["job_variables"] = variables
        for name in ("storage_document_id", "infrastructure_document_id"):
            if one.get(name) in self.ids:
                body[name] = self.ids[one[name]]
        return self._api.post("/deployments/", body)

    # --- automations ---------------------------------------------------------------------------------------------

    def _automation(self, one: Mapping[str, Any]) -> dict[str, Any]:
        body = some(
            one,
            ("name", "description", "tags", "actions", "actions_on_trigger", "actions_on_resolve", "owner_resource"),
        )
        body["trigger"] = without_ids(one["trigger"])
        lost = lost_ids(body, self.ids.keys(), self._known)
        if lost:
            raise Waiting(f"it refers to what is not at the destination: {', '.join(sorted(lost))}")
        return self._api.post("/automations/", {**remapped(body, self.ids), "enabled": False})


def without_ids(trigger: Any) -> Any:
    """A trigger without the ids that its server gave it and the triggers in it."""
    if isinstance(trigger, Mapping):
        return {
            name: [without_ids(one) for one in value] if name == "triggers" else value
            for name, value in trigger.items()
            if name != "id"
        }
    return trigger
