"""What a restore does inside the server's container, against a client that gives its answers in pages."""

from __future__ import annotations

import asyncio
import importlib
import json
import sys
from types import SimpleNamespace

import pytest


class Client:
    """A server with more of everything than a page holds."""

    def __init__(self):
        self.limits = [SimpleNamespace(name=f"limit-{n}", active_slots=n % 2) for n in range(450)]
        self.tags = [SimpleNamespace(tag=f"tag-{n}", active_slots=["run"] * (n % 2)) for n in range(401)]
        self.pools = [SimpleNamespace(name=f"pool-{n}", is_paused=n == 0) for n in range(201)]
        self.changed: list[str] = []

    async def read_global_concurrency_limits(self, limit, offset):
        return self.limits[offset : offset + limit]

    async def read_concurrency_limits(self, limit, offset):
        return self.tags[offset : offset + limit]

    async def read_work_pools(self, *, limit, offset):
        return self.pools[offset : offset + limit]

    async def update_global_concurrency_limit(self, name, update):
        self.changed.append(name)

    async def reset_concurrency_limit_by_tag(self, tag):
        self.changed.append(tag)

    async def update_work_pool(self, name, update):
        self.changed.append(name)


@pytest.fixture
def in_server(monkeypatch):
    """The module as the server's container imports it, without its last line, which does what ORDER says."""
    monkeypatch.setenv("ORDER", json.dumps({"do": "nothing"}))
    monkeypatch.setattr(asyncio, "run", lambda coroutine: coroutine.close())
    sys.modules.pop("prefect_backups.in_server", None)
    yield importlib.import_module("prefect_backups.in_server")
    sys.modules.pop("prefect_backups.in_server", None)


def go(coroutine):
    with asyncio.Runner() as runner:
        return runner.run(coroutine)


def test_every_slot_is_freed_not_only_those_of_the_first_page(in_server):
    client = Client()
    assert go(in_server.free_slots(client)) == 225 + 200
    assert {"limit-449", "tag-399"} <= set(client.changed)


def test_every_work_pool_is_paused_but_those_that_are(in_server):
    client = Client()
    assert len(go(in_server.pause(client))["paused"]) == 200
    assert "pool-200" in client.changed and "pool-0" not in client.changed
