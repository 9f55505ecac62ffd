"""A stand-in for the API of a workspace of Prefect Cloud, as far as scripts/migrate asks it: a key, pages of 200, rates, secrets.

What it has are the objects of a dictionary; routes, status codes and answers are those of Prefect's REST API (client 3.9.1),
and what Cloud has of its own (webhooks, pools that it runs itself, 429) as its client expects it. It makes objects, too, so that
the units need no server.
"""

from __future__ import annotations

import copy
import json
import re
import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

KEY = "pnu_0123456789abcdef"
WORKSPACE = f"/api/accounts/{uuid.UUID(int=1)}/workspaces/{uuid.UUID(int=2)}"
MOST = 200
STARS = "********"
#: Objects are found by this, but for limits of tags.
NAMED = ("name", "tag")


def new(**values: Any) -> dict[str, Any]:
    """An object with an id."""
    return {"id": str(uuid.uuid4()), **values}


class CloudApi(ThreadingHTTPServer):
    """Answers at `url`. What fails next is in `failing`: (method, pattern of the path) to a status."""

    daemon_threads = True

    def __init__(self, path: str = WORKSPACE, key: str = KEY, secrets: bool = True) -> None:
        super().__init__(("127.0.0.1", 0), _Api)
        self.path, self.key, self.secrets = path, key, secrets
        self.objects: dict[str, list[dict[str, Any]]] = {}
        self.failing: dict[tuple[str, str], int] = {}
        #: How often it still says that it is asked too often.
        self.busy = 0
        self.changes: list[tuple[str, str, Any]] = []
        self.url = f"http://127.0.0.1:{self.server_address[1]}{path}"
        threading.Thread(target=self.serve_forever, args=(0.02,), daemon=True).start()

    def add(self, kind: str, **values: Any) -> dict[str, Any]:
        """One more object of a kind, named as in the routes."""
        one = new(**values)
        self.objects.setdefault(kind, []).append(one)
        return one

    def pool(self, name: str, kind: str) -> dict[str, Any]:
        """A work pool with its default queue."""
        pool = self.add("work_pools", name=name, type=kind, base_job_template={}, is_paused=False, status="READY")
        pool["is_push_pool"] = kind.endswith(":push")
        pool["is_managed_pool"] = kind.endswith(":managed")
        queue = self.queue(pool, "default", 1)
        pool["default_queue_id"] = queue["id"]
        return pool

    def queue(self, pool: dict[str, Any], name: str, priority: int) -> dict[str, Any]:
        return self.add(
            "work_queues", name=name, work_pool_id=pool["id"], work_pool_name=pool["name"], priority=priority
        )

    def answer(self, method: str, path: str, body: Any) -> tuple[int, Any]:
        """Status and body."""
        for (verb, pattern), status in self.failing.items():
            if verb == method and re.search(pattern, path):
                return status, {"detail": "it fails"}
        if method == "POST" and path.endswith("/filter"):
            return self._filter(path.removesuffix("/filter").strip("/"), body)
        if (method, path) == ("POST", "/flow_runs/count"):
            return 200, len(self.objects.get("flow_runs", []))
        if method == "GET":
            return self._read(path)
        self.changes.append((method, path, body))
        if method == "PATCH":
            return self._change(path, body)
        return self._make(path, body)

    def _filter(self, kind: str, body: dict[str, Any]) -> tuple[int, Any]:
        if body.get("limit", MOST) > MOST:
            return 422, {"detail": "limit"}
        if kind == "webhooks" and self.path != WORKSPACE:
            return 404, {"detail": "Not Found"}
        found = copy.deepcopy(self.objects.get(kind, []))
        if kind == "block_documents" and not (self.secrets and body.get("include_secrets")):
            for one in found:
                for name in one["block_schema"]["fields"].get("secret_fields", []):
                    one["data"][name] = STARS
        offset = body.get("offset", 0)
        return 200, found[offset : offset + body.get("limit", MOST)]

    def _read(self, path: str) -> tuple[int, Any]:
        if path == "/admin/version" and self.path != WORKSPACE:
            return 200, "3.9.1"
        for kind, pattern, field in (
            ("block_types", "/block_types/slug/(.+)", "slug"),
            ("block_schemas", "/block_schemas/checksum/(.+)", "checksum"),
        ):
            if found := re.fullmatch(pattern, path):
                one = next((one for one in self.objects.get(kind, []) if one[field] == found[1]), None)
                return (200, one) if one else (404, {"detail": "not found"})
        return 404, {"detail": "Not Found"}

    def _change(self, path: str, body: dict[str, Any]) -> tuple[int, Any]:
        if found := re.fullmatch("/deployments/(.+)/schedules/(.+)", path):
            deployments = [one for one in self.objects["deployments"] if one["id"] == found[1]]
            there = [one for deployment in deployments for one in deployment["schedules"] if one["id"] == found[2]]
        elif found := re.fullmatch("/automations/(.+)", path):
            there = [one for one in self.objects["automations"] if one["id"] == found[1]]
        elif found := re.fullmatch("/work_pools/(.+)/queues/(.+)", path):
            there = [
                one for one in self.objects["work_queues"] if (one["work_pool_name"], one["name"]) == found.groups()
            ]
        else:
            there = []
        if not there:
            return 404, {"detail": "not found"}
        there[0].update(body)
        return 204, None

    def _make(self, path: str, body: dict[str, Any]) -> tuple[int, Any]:
        if found := re.fullmatch("/work_pools/(.+)/queues", path):
            pool = next(one for one in self.objects["work_pools"] if one["name"] == found[1])
            return 201, self.queue(pool, body["name"], body.get("priority", 9))
        kind = path.strip("/")
        name = next(one for one in NAMED if one in body) if kind != "block_schemas" else ""
        same = [
            one
            for one in self.objects.get(kind, [])
            if name and one[name] == body[name] and one.get("flow_id") == body.get("flow_id")
        ]
        if same and kind != "flows":
            return 409, {"detail": "it exists"}
        if same:
            return 200, same[0]
        if kind == "work_pools":
            return 201, {**self.pool(body["name"], body["type"])}
        if kind == "deployments":
            body = {**body, "schedules": [new(**one) for one in body["schedules"]]}
        if kind == "block_documents":
            types = {one["id"]: one for one in self.objects["block_types"]}
            schemas = {one["id"]: one for one in self.objects["block_schemas"]}
            body |= {"block_type": types[body["block_type_id"]], "block_schema": schemas[body["block_schema_id"]]}
        return 201, self.add(kind, **body)


class _Api(BaseHTTPRequestHandler):
    server: CloudApi

    def _serve(self) -> None:
        length = int(self.headers.get("Content-Length") or 0)
        body = json.loads(self.rfile.read(length) or "null")
        if self.server.key and self.headers.get("Authorization") != f"Bearer {self.server.key}":
            status, said = 401, {"detail": "Unauthorized"}
        elif self.server.busy:
            self.server.busy -= 1
            status, said = 429, {"detail": "Too Many Requests"}
        elif not self.path.startswith(self.server.path):
            status, said = 404, {"detail": "Not Found"}
        else:
            status, said = self.server.answer(self.command, self.path.removeprefix(self.server.path), body)
        text = b"" if said is None else json.dumps(said).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(text)))
        if status == 429:
            self.send_header("Retry-After", "0")
        self.end_headers()
        self.wfile.write(text)

    do_GET = do_POST = do_PATCH = _serve

    def log_message(self, *_: Any) -> None:
        """Nothing."""


def workspace(api: CloudApi) -> None:
    """What a team has there: something of each kind, and what does not come over."""
    default, push = api.pool("default", "process"), api.pool("serverless", "cloud-run:push")
    api.pool("managed", "prefect:managed")
    api.queue(default, "fast", 2)
    flow = api.add("flows", name="etl", tags=["team"], labels={})
    api.add("flows", name="never-deployed", tags=[], labels={})

    def deployment(name: str, pool: dict[str, Any] | None, **more: Any) -> dict[str, Any]:
        values = {"work_pool_name": pool["name"], "work_queue_name": "default"} if pool else {}
        schedules = [
            new(active=True, schedule={"cron": "0 3 * * *", "timezone": "UTC", "day_or": True}, slug="nightly"),
            new(active=False, schedule={"interval": 3600.0, "timezone": "UTC"}, parameters={}),
        ]
        values |= {"flow_id": flow["id"], "entrypoint": "flows/etl.py:etl", "path": "/srv", "tags": [], "paused": False}
        values |= {"job_variables": {"env": {"A": "1"}, "cpu": "2"} if pool is push else {}, "schedules": schedules}
        return api.add("deployments", name=name, **{**values, **more})

    nightly = deployment("nightly", default)
    pushed = deployment("pushed", push)
    deployment("served", None)
    deployment("quick", default, work_queue_name="fast", schedules=[])
    secret = api.add("block_types", name="Secret", slug="secret")
    schema = api.add(
        "block_schemas",
        checksum="sha256:1",
        block_type_id=secret["id"],
        fields={"title": "Secret", "type": "object", "properties": {"value": {}}, "secret_fields": ["value"]},
        capabilities=[],
        version="1",
    )
    api.add("block_documents", name="token", data={"value": "s3cr3t"}, block_type=secret, block_schema=schema)
    api.add("variables", name="region", value="eu", tags=[])
    api.add("v2/concurrency_limits", name="db", limit=3, active=True, active_slots=2)
    api.add("v2/concurrency_limits", name=f"deployment:{nightly['id']}", limit=1, active=True)
    api.add("concurrency_limits", tag="gpu", concurrency_limit=2)
    event = {"type": "event", "id": str(uuid.uuid4()), "expect": ["prefect.flow-run.Failed"], "posture": "Reactive"}
    event |= {"match": {"prefect.resource.id": "prefect.flow-run.*"}, "threshold": 1, "within": 0}
    of_nightly = {"match_related": {"prefect.resource.id": f"prefect.deployment.{nightly['id']}"}}

    def automation(name: str, deployment: str, **more: Any) -> None:
        action = {"type": "pause-deployment", "source": "selected", "deployment_id": deployment}
        api.add("automations", name=name, enabled=True, trigger={**event, **more}, actions=[action])

    automation("pause", nightly["id"], **of_nightly)
    automation("of-pushed", pushed["id"])
    # What `prefect transfer` gave up for.
    automation("broken", str(uuid.uuid4()))
    api.add("webhooks", name="from-github")
    api.objects["flow_runs"] = [new() for _ in range(9)]


@contextmanager
def served_workspace() -> Iterator[CloudApi]:
    """A workspace of Cloud that answers on the loopback."""
    with CloudApi() as api:
        workspace(api)
        yield api
        api.shutdown()
