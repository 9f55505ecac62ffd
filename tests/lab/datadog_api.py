"""A stand-in for Datadog's HTTP API, as its documentation has it: POST /api/v1/events and GET /api/v1/validate.

It takes what the documented schema allows, and answers anything else as the documentation says: 202 for an event that is taken, 400
for one that is wrong, 403 for a wrong key, 413 for a body that is too large, 429 with X-RateLimit-Reset for too many requests.
"""

from __future__ import annotations

import json
import re
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

KEY = "0123456789abcdef0123456789abcde0"
#: Of https://docs.datadoghq.com/api/latest/events/post-an-event/: fields and their types, and what is required.
FIELDS: dict[str, type] = {
    "aggregation_key": str,
    "alert_type": str,
    "date_happened": int,
    "device_name": str,
    "host": str,
    "priority": str,
    "related_event_id": int,
    "source_type_name": str,
    "tags": list,
    "text": str,
    "title": str,
}
REQUIRED = ("text", "title")
ALERT_TYPES = ("error", "warning", "info", "success", "user_update", "recommendation", "snapshot")
#: Of https://docs.datadoghq.com/getting_started/tagging/: a letter first, at most 200 characters, no colon at the end.
TAG = re.compile(r"[^\W\d_]([\w:./-]{0,198}[\w./-])?")
#: Seconds; bytes.
OLDEST, LARGEST = 18 * 3600, 100_000


def problem(event: Any, now: float) -> str:
    """What is wrong with an event by the documentation; empty when nothing is."""
    if not isinstance(event, dict):
        return "no object"
    wrong = [name for name, value in event.items() if type(value) is not FIELDS.get(name)]
    wrong += [f"{name} is missing" for name in REQUIRED if not event.get(name)]
    if wrong:
        return ", ".join(wrong)
    limits = (
        ("text", len(event["text"]) <= 4000),
        ("aggregation_key", len(event.get("aggregation_key", "")) <= 100),
        ("alert_type", event.get("alert_type", "info") in ALERT_TYPES),
        ("priority", event.get("priority", "normal") in ("normal", "low")),
        ("date_happened", event.get("date_happened", now) > now - OLDEST),
        (
            "tags",
            all(isinstance(one, str) and TAG.fullmatch(one) and one == one.lower() for one in event.get("tags", [])),
        ),
    )
    return ", ".join(name for name, well in limits if not well)


class DatadogApi(ThreadingHTTPServer):
    """Takes events at `url`; what it is to answer instead is `answer`: a status, and headers."""

    daemon_threads = True

    def __init__(self, address: str = "127.0.0.1") -> None:
        super().__init__((address, 0), _Api)
        self.events: list[dict[str, Any]] = []
        #: Everything that was asked for: method, path, status.
        self.asked: list[tuple[str, str, int]] = []
        self.answer: tuple[int, dict[str, str]] | None = None
        #: Seconds before an answer.
        self.slow = 0.0
        self.url = f"http://{address}:{self.server_port}"

    def __enter__(self) -> DatadogApi:
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.shutdown()
        self.server_close()


class _Api(BaseHTTPRequestHandler):
    server: DatadogApi
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        event: Any = None
        status, answer = self._refused(), {}
        if not status and self.path != "/api/v1/events":
            status = 404
        if not status and len(body) > LARGEST:
            status = 413
        if not status:
            try:
                event = json.loads(body)
                wrong = problem(event, time.time())
            except ValueError:
                wrong = "no JSON"
            if self.headers["Content-Type"] != "application/json":
                wrong = "Content-Type"
            status, answer = (400, {"errors": [wrong]}) if wrong else (202, {"status": "ok", "event": event})
        if status == 202:
            self.server.events.append(event)
        self._say(status, answer)

    def do_GET(self) -> None:
        status = self._refused() or (200 if self.path == "/api/v1/validate" else 404)
        self._say(status, {"valid": True} if status == 200 else {})

    def _refused(self) -> int:
        time.sleep(self.server.slow)
        if self.server.answer:
            return self.server.answer[0]
        return 0 if self.headers["DD-API-KEY"] == KEY else 403

    def _say(self, status: int, answer: dict[str, Any]) -> None:
        self.server.asked.append((self.command, self.path, status))
        said = json.dumps(answer or {"errors": ["Forbidden" if status == 403 else "no"]}).encode()
        self.send_response(status)
        for name, value in (self.server.answer or (0, {}))[1].items():
            self.send_header(name, value)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(said)))
        self.end_headers()
        self.wfile.write(said)

    def log_message(self, *words: Any) -> None:
        """Not on stderr."""
