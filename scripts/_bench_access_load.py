"""Asks servers side by side, in turns, and prints what came of it as JSON. For scripts/_bench_access.py, which runs it with the
image's own Python in the server's container: it needs httpx and websockets, which Prefect has.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import ssl
import statistics
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import httpx
from websockets.asyncio.client import connect
from websockets.exceptions import WebSocketException
from websockets.typing import Subprotocol

#: Events between two looks at the clock.
EVENTS = 100

Work = Callable[[], Awaitable[int]]
#: What a client does one thing after the other with, for as long as it lasts.
Held = Callable[[], contextlib.AbstractAsyncContextManager[Work]]


class Way:
    """One way to a server."""

    def __init__(self, plan: dict[str, Any], said: dict[str, Any]) -> None:
        self.plan, self.name, self.url, self.headers = plan, said["name"], said["url"], said["headers"]
        self.context = ssl.create_default_context()
        self.context.check_hostname, self.context.verify_mode = False, ssl.CERT_NONE

    def client(self, clients: int) -> httpx.AsyncClient:
        # As many connections as there are clients, kept open as Prefect's own client does.
        limits = httpx.Limits(max_connections=clients, max_keepalive_connections=clients)
        more: dict[str, Any] = {"verify": self.context} if self.url.startswith("https") else {}
        return httpx.AsyncClient(
            base_url=self.url, headers=self.headers, timeout=60, limits=limits, trust_env=False, **more
        )

    def works(self, client: httpx.AsyncClient) -> dict[str, Held]:
        """What a client does, again and again; each gives how many things it has done."""
        run = self.plan["run"]

        async def asked(method: str, path: str, body: Any) -> int:
            sni = {"sni_hostname": self.plan["domain"]} if self.url.startswith("https") else {}
            answer = await client.request(method, path, json=body, extensions=sni)
            answer.raise_for_status()
            return 1

        async def read() -> int:
            return await asked("POST", "/api/flow_runs/filter", {"limit": 20, "sort": "EXPECTED_START_TIME_DESC"})

        async def write() -> int:
            return await asked("POST", f"/api/flow_runs/{run}/set_state", {"state": {"type": "RUNNING"}, "force": True})

        @contextlib.asynccontextmanager
        async def events() -> AsyncIterator[Work]:
            # As Prefect's own client does: one websocket for as long as a flow run lasts. Closing it waits until the server has
            # read all that was sent.
            more = {"ssl": self.context, "server_hostname": self.plan["domain"]} if self.url.startswith("https") else {}
            headers = {name: value for name, value in self.headers.items() if name != "Host"}
            address = self.url.replace("http", "ws", 1)
            if self.url.startswith("https"):
                more["host"], address = httpx.URL(self.url).host, f"wss://{self.plan['domain']}"
            async with connect(
                f"{address}/api/events/in",
                additional_headers=headers,
                subprotocols=[Subprotocol("prefect")],
                proxy=None,
                close_timeout=60,
                **more,
            ) as socket:
                await socket.send(json.dumps({"type": "auth", "token": None}))
                await socket.recv()

                async def sent() -> int:
                    for _ in range(EVENTS):
                        now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
                        event = {"event": "bench", "occurred": now, "resource": {"prefect.resource.id": "bench"}}
                        await socket.send(json.dumps(event))
                    return EVENTS

                yield sent

        def asking(work: Work) -> Held:
            @contextlib.asynccontextmanager
            async def held() -> AsyncIterator[Work]:
                yield work

            return held

        return {"read": asking(read), "write": asking(write), "events": events}


async def measured(way: Way, work: str, clients: int, seconds: float) -> tuple[float, float, int]:
    """Things a second, the median of milliseconds that one took, and how often a busy server has hung up."""
    times: list[float] = []
    done = failed = 0
    async with way.client(clients) as client:
        hold = way.works(client)[work]
        with contextlib.suppress(WebSocketException, OSError):
            async with hold() as do:
                await do()
        started = time.perf_counter()

        async def one() -> None:
            nonlocal done, failed
            while time.perf_counter() - started < seconds:
                try:
                    async with hold() as do:
                        while time.perf_counter() - started < seconds:
                            begun = time.perf_counter()
                            made = await do()
                            times.append((time.perf_counter() - begun) * 1000)
                            done += made
                except (httpx.HTTPError, WebSocketException, OSError):
                    failed += 1

        await asyncio.gather(*(one() for _ in range(clients)))
        took = time.perf_counter() - started
    return done / took, statistics.median(times or [seconds * 1000]), failed


async def main() -> None:
    plan = json.loads(sys.argv[1])
    ways = [Way(plan, one) for one in plan["ways"]]
    for number in range(plan["rounds"]):
        for work in plan["works"]:
            for clients in plan["clients"]:
                # Each round begins with another one, so that none is always after the same.
                for way in ways[number % len(ways) :] + ways[: number % len(ways)]:
                    rate, median, failed = await measured(way, work, clients, plan["seconds"])
                    found = {"round": number, "work": work, "clients": clients, "way": way.name}
                    print(json.dumps({**found, "rate": rate, "median": median, "failed": failed}), flush=True)


asyncio.run(main())
