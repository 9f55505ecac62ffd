"""People who are told something: a webhook, a mailbox behind a real SMTP server, and a service that waits for a heartbeat.

They listen on this machine, where a VPS gets to by its gateway.
"""

from __future__ import annotations

import json
import socket
import threading
from email import message_from_bytes, policy
from email.message import EmailMessage
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from aiosmtpd.controller import Controller
from aiosmtpd.smtp import AuthResult, Envelope, LoginPassword

from tests.lab.vps.vps import Vps

PASSWORD = "hush-4711"


def gateway(vps: Vps) -> str:
    """The address of this machine, as the VPS sees it."""
    return vps.ssh("ip -4 route show default").stdout.split()[2]


class Person(ThreadingHTTPServer):
    """Receives what apprise sends to `url`, which holds a password; and GETs, as of a heartbeat. Takes nothing while `away`."""

    daemon_threads = True
    password = PASSWORD

    def __init__(self, address: str) -> None:
        super().__init__((address, 0), _Receiver)
        self.messages: list[dict[str, Any]] = []
        self.calls = 0
        self.away = False
        self.url = f"json://person:{self.password}@{address}:{self.server_port}/told"
        self.heartbeat = f"http://{address}:{self.server_port}/{self.password}"

    def __enter__(self) -> Person:
        threading.Thread(target=self.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.shutdown()
        self.server_close()


class _Receiver(BaseHTTPRequestHandler):
    server: Person

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.server.away:
            self.send_error(503)
            return
        self.server.messages.append(json.loads(body))
        self.send_response(204)
        self.end_headers()

    def do_GET(self) -> None:
        self.server.calls += 1
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *words: Any) -> None:
        """Not on stderr."""


class Mailbox:
    """An SMTP server that takes mail of whoever knows the password."""

    password = PASSWORD

    def __init__(self, address: str) -> None:
        self.mails: list[EmailMessage] = []
        with socket.create_server((address, 0)) as free:
            self._port: int = free.getsockname()[1]
        self._controller = Controller(
            self,
            hostname=address,
            port=self._port,
            authenticator=self._allows,
            auth_required=True,
            auth_require_tls=False,
        )
        self._address = address

    def __enter__(self) -> Mailbox:
        self._controller.start()
        self.url = (
            f"mailto://person:{self.password}@{self._address}:{self._port}/?smtp={self._address}&mode=insecure"
            "&from=prefect@example.org&to=ops@example.org"
        )
        return self

    def __exit__(self, *_: object) -> None:
        self._controller.stop()

    async def handle_DATA(self, _server: object, _session: object, envelope: Envelope) -> str:
        content = envelope.content or b""
        mail = message_from_bytes(content if isinstance(content, bytes) else content.encode(), policy=policy.default)
        self.mails.append(mail)
        return "250 OK"

    def _allows(self, _server: object, _session: object, _envelope: object, _mechanism: str, data: Any) -> AuthResult:
        return AuthResult(success=isinstance(data, LoginPassword) and data.password == self.password.encode())

    def text(self, number: int = -1) -> str:
        """The text of a mail."""
        part = self.mails[number].get_body(("plain", "html"))
        return str(part.get_content()) if part else ""
