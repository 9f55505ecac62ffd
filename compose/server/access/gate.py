"""The gate before Prefect's application: an ASGI application around another one."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass, replace
from typing import Any
from urllib.parse import parse_qsl

from . import audit, body, decide, naming, routes
from .body import Message, Receive
from .decide import NOTHING, Asked, Question, Thing
from .roles import Account, Accounts

Scope = MutableMapping[str, Any]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

#: By which Caddy says whose password a request came with. It is the only one of another machine's that gets here: the networks of
#: compose.yml have no others in them, and no address of the host's.
ACCOUNT = b"x-prefect-account"
#: By which it says whom single sign-on knows, and of which groups, with commas between; there is no account of theirs then.
PERSON, GROUPS = b"x-prefect-person", b"x-prefect-groups"
#: That a request was passed on; Caddy adds it to each, and what is in this container does not.
FORWARDED = b"x-forwarded-for"
#: Who may start a program in this container can do anything (root on the host).
LOCAL = Account("root", "admin")
#: Bytes of a body that is looked at; Caddy lets none through that is larger.
LARGEST = 16 * 1024 * 1024
#: Facts that are remembered: what work pool a flow run is of does not change while it is under way.
REMEMBERED = 4096
#: A websocket that is refused (RFC 6455, policy violation).
REFUSED = 1008
#: Seconds after which an open websocket is ended whose account may not have it any more.
WATCHED = 1.0
#: Seconds that one of single sign-on's lasts: who has left is known there, and asked for at each new request.
SIGNED_ON = 3600.0


@dataclass(frozen=True)
class Came:
    """Whom a request is of."""

    name: str
    account: Account | None
    #: Of somebody whom single sign-on knows.
    groups: tuple[str, ...] | None = None


class Gate:
    """Asks for each request whether its account may, and only then passes it on."""

    def __init__(self, app: App, accounts: Accounts, note: Callable[[audit.Entry], None]) -> None:
        """
        Args:
            app: Prefect's.
            note: writes down who has changed what.
        """
        self._app, self._accounts, self._note = app, accounts, note
        self._known: OrderedDict[Question, Thing] = OrderedDict()
        self._refusals, self._names = audit.Refusals(), naming.Names(self._get)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """As ASGI has it."""
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        came = self._came(scope)
        method = "WS" if scope["type"] == "websocket" else scope["method"]
        path = scope["path"]
        found = routes.table().find(method, path)
        said = None
        if came.account is not None and decide.needs_body(came.account, found):
            looked = await body.read(receive, LARGEST)
            if not looked.whole:
                await _answer(send, 413, f"The body of this request may have at most {LARGEST // 1024**2} MiB.")
                return
            said, receive = looked.json, looked.receive
        asked = Asked(method, path, _query(scope), said)
        answers: dict[Question, Thing] = {}
        if came.account is not None:
            for question in decide.questions(came.account, asked, found):
                answers[question] = await self._answer(question)
        if why := decide.refusal(came.account, asked, found, answers):
            await self._note_refusal(came, asked, found, why, scope)
            await (_close(receive, send) if method == "WS" else _answer(send, 403, why))
        elif method == "WS":
            await self._watched(came, asked, found, self._app(scope, receive, send), send)
        elif came.account is None or not audit.changes(came.account, asked, found):
            await self._app(scope, receive, send)
        else:
            if asked.body is None and audit.names_are_in_the_body(asked):
                looked = await body.read(receive, naming.MOST)
                receive, asked = looked.receive, replace(asked, body=looked.json)
            await self._pass_and_note(scope, receive, send, came, asked, found)

    async def _watched(
        self, came: Came, asked: Asked, found: decide.Found, served: Awaitable[None], send: Send
    ) -> None:
        """A websocket, for as long as its account may have it: a password is asked for once, and an open one lasts for days."""
        task = asyncio.ensure_future(served)
        try:
            began = time.monotonic()
            while not (await asyncio.wait({task}, timeout=WATCHED))[0]:
                account = came.account if came.account is LOCAL else self._account(came.name, came.groups)
                if decide.refusal(account, asked, found, {}):
                    return
                if came.groups is not None and time.monotonic() - began > SIGNED_ON:
                    return
            task.result()
        finally:
            if not task.done():
                task.cancel()
                with contextlib.suppress(asyncio.CancelledError, Exception):
                    await task
                # Where the client has gone meanwhile there is nothing to close.
                with contextlib.suppress(Exception):
                    await send({"type": "websocket.close", "code": REFUSED})

    def _came(self, scope: Scope) -> Came:
        """Whom it is of; the header that says so ends here."""
        headers = dict(scope["headers"])
        own = (ACCOUNT, PERSON, GROUPS)
        scope["headers"] = [(name, value) for name, value in scope["headers"] if name not in own]
        if FORWARDED not in headers and (scope.get("client") or ("",))[0] in ("127.0.0.1", "::1"):
            return Came(LOCAL.name, LOCAL)
        name, person = (headers.get(key, b"").decode("latin-1").strip() for key in (ACCOUNT, PERSON))
        if name or not person:
            return Came(name, self._account(name, None))
        groups = tuple(group.strip() for group in headers.get(GROUPS, b"").decode("utf-8", "replace").split(","))
        return Came(person, self._account(person, groups), groups)

    def _account(self, name: str, groups: tuple[str, ...] | None) -> Account | None:
        return self._accounts.get(name) if groups is None else self._accounts.person(name, groups)

    async def _note_refusal(self, came: Came, asked: Asked, found: decide.Found, why: str, scope: Scope) -> None:
        """Notes it, with the name of what it was about, which whoever is nobody makes nobody look up."""
        if words := self._refusals.words(came.name, why, time.monotonic()):
            target = naming.target(asked, found)
            if came.account is not None:
                target = await self._names.of(target)
            self._note(audit.entry(came.name, came.account, asked, target, 403, words, scope))

    async def _pass_and_note(
        self, scope: Scope, receive: Receive, send: Send, came: Came, asked: Asked, found: decide.Found
    ) -> None:
        """Passes a change on, and notes it before its client has the answer; one that ends without any is noted, too."""
        # Before it is done: what is deleted has no name afterwards.
        target = await self._names.of(naming.target(asked, found))
        noted = False

        def note(status: int) -> None:
            nonlocal noted
            noted = True
            if (came.name, target) == audit.PROBE:
                return
            self._note(audit.entry(came.name, came.account, asked, target, status, "", scope))

        async def answered(message: Message) -> None:
            if message["type"] == "http.response.start" and not noted:
                note(message["status"])
            await send(message)

        try:
            await self._app(scope, receive, answered)
        finally:
            if not noted:
                note(0)

    async def _answer(self, question: Question) -> Thing:
        """A fact, asked of Prefect's application as any client would."""
        if question in self._known:
            self._known.move_to_end(question)
            return self._known[question]
        thing = await self._look(question)
        # A deployment can be given another work pool.
        if thing.found and question.kind != "deployment":
            self._known[question] = thing
            while len(self._known) > REMEMBERED:
                self._known.popitem(last=False)
        return thing

    async def _look(self, question: Question) -> Thing:
        if question.kind == "flow_run":
            run = await self._get(f"/api/flow_runs/{question.id}")
            if not run:
                return NOTHING
            deployment = run.get("deployment_id")
            name = (await self._answer(Question("deployment", deployment))).name if deployment else ""
            pool = run.get("work_pool_name") or await self._pool_of_parent(run)
            return Thing(pool, name)
        if question.kind == "deployment":
            found = await self._get(f"/api/deployments/{question.id}")
            if not found:
                return NOTHING
            flow = await self._get(f"/api/flows/{found['flow_id']}") if found.get("flow_id") else {}
            name = f"{flow.get('name')}/{found.get('name')}" if flow else ""
            return Thing(found.get("work_pool_name") or "", name)
        found = await self._get(f"/api/block_documents/{question.id}")
        kind = (found.get("block_type") or {}).get("slug")
        return Thing(name=f"{kind}/{found['name']}") if kind and found.get("name") else NOTHING

    async def _pool_of_parent(self, run: dict[str, Any]) -> str:
        """A subflow is of the work pool of the flow run that has started it."""
        if not run.get("parent_task_run_id"):
            return ""
        task = await self._get(f"/api/task_runs/{run['parent_task_run_id']}")
        parent = task.get("flow_run_id")
        return (await self._answer(Question("flow_run", parent))).pool if parent else ""

    async def _get(self, path: str) -> dict[str, Any]:
        """JSON of a GET within this process; empty where there is none of it."""
        scope = {
            "type": "http",
            "asgi": {"version": "3.0"},
            "http_version": "1.1",
            "method": "GET",
            "scheme": "http",
            "path": path,
            "raw_path": path.encode(),
            "query_string": b"",
            "root_path": "",
            "headers": [(b"host", b"gate")],
            "client": ("127.0.0.1", 0),
            "server": ("gate", 80),
            "state": {},
        }
        status, parts = 0, []

        async def receive() -> Message:
            return {"type": "http.request", "body": b"", "more_body": False}

        async def send(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            elif message["type"] == "http.response.body":
                parts.append(message.get("body", b""))

        await self._app(scope, receive, send)
        if status != 200:
            return {}
        found = json.loads(b"".join(parts))
        return found if isinstance(found, dict) else {}


def _query(scope: Scope) -> dict[str, str]:
    """The query. Of a name that is there twice, Prefect takes one: whatever of them is not false, counts."""
    found: dict[str, str] = {}
    for name, value in parse_qsl(scope.get("query_string", b"").decode("latin-1"), keep_blank_values=True):
        if name not in found or not decide.is_true(found[name]):
            found[name] = value
    return found


async def _answer(send: Send, status: int, why: str) -> None:
    text = json.dumps({"detail": why}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(text)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": text})


async def _close(receive: Receive, send: Send) -> None:
    # Before it is accepted: the client gets a 403.
    await receive()
    await send({"type": "websocket.close", "code": REFUSED})
