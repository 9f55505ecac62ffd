"""The public endpoint as clients see it, through the reverse proxy: API, a write, the UI, and the certificate."""

from __future__ import annotations

import socket
import ssl
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import requests
from prefect_backups.progress import duration
from prefect_backups.settings import Endpoint, Settings

from .finding import Finding, Level, graded, playbook

#: Seconds for an answer: a browser's user has gone by then.
SLOW, TOO_SLOW = 2.0, 10.0
#: Of a certificate's life that is left. Caddy renews when a third is left: with less, renewals have failed for a while.
LEFT_WARNING, LEFT_BAD = 0.25, 0.1
#: Of a long life, as that of a certificate of one's own, so many days are enough to replace it.
DAYS_WARNING, DAYS_BAD = 21.0, 7.0
#: A name that nobody else uses: made and deleted again.
VARIABLE = "prefect_kit_doctor"
LOGS = "docker logs --tail 50 prefect-caddy; docker logs --tail 50 prefect-server"


@dataclass(frozen=True)
class Answer:
    """What a request gave: the status, or why there was none, and the seconds that it took."""

    status: int
    words: str
    seconds: float


def answered(check: str, answer: Answer, allowed: tuple[int, ...] = (200,)) -> Finding:
    """Whether a request was answered as it should be, and soon."""
    limit = f"{'/'.join(map(str, allowed))} within {SLOW:.0f} s"
    if answer.status not in allowed:
        measured = f"{answer.status}: {answer.words}" if answer.status else answer.words
        return Finding(check, Level.BAD, measured, limit, LOGS)
    level = graded(answer.seconds, SLOW, TOO_SLOW)
    return Finding(
        check, level, f"{answer.status} in {answer.seconds:.2f} s", limit, "uptime; systemd-cgtop" if level else ""
    )


def certificate(not_before: float, not_after: float, now: float) -> Finding:
    """Whether what is served is valid, and is renewed in time.

    Args:
        not_before: the beginning of its life, in seconds since 1970; likewise the others.
    """
    left, life = not_after - now, max(not_after - not_before, 1.0)
    bad, warning = min(LEFT_BAD * life, DAYS_BAD * 86400), min(LEFT_WARNING * life, DAYS_WARNING * 86400)
    level = Level.BAD if left < bad else Level.WARNING if left < warning else Level.OK
    ends = datetime.fromtimestamp(not_after, UTC).strftime("%Y-%m-%d %H:%M UTC")
    words = f"expires {ends}, in {duration(left)}" if left > 0 else f"expired {ends}"
    mend = (
        "docker logs prefect-caddy 2>&1 | grep -i certificate; with prefect_tls: files put a new one in its place, then"
        f" {playbook('site.yml --tags stack')}"
        if level
        else ""
    )
    return Finding("certificate", level, words, f"more than {duration(warning)} left", mend)


def _ask(do: Callable[[], requests.Response]) -> Answer:
    began = time.monotonic()
    try:
        answer = do()
    except requests.RequestException as error:
        return Answer(0, f"no answer: {error}", time.monotonic() - began)
    return Answer(answer.status_code, answer.text[:120].strip(), time.monotonic() - began)


def session(endpoint: Endpoint) -> requests.Session:
    """With the account of the tools, and nothing from the environment of whoever runs this."""
    made = requests.Session()
    made.trust_env = False
    made.verify = endpoint.ca_file
    made.auth = (endpoint.user, Path(endpoint.password_file).read_text().strip())
    return made


def written(client: requests.Session, url: str) -> Answer:
    """Make a variable and delete it: /api/ready says nothing of whether anything can be written."""
    path, limit = f"{url}/api/variables/", TOO_SLOW * 2
    body: dict[str, Any] = {"name": VARIABLE, "value": "is written and deleted by prefect-doctor"}

    def delete() -> Answer:
        return _ask(lambda: client.delete(f"{path}name/{VARIABLE}", timeout=limit))

    made = _ask(lambda: client.post(path, json=body, timeout=limit))
    if made.status == 409:
        # Of one that was killed between the two.
        delete()
        made = _ask(lambda: client.post(path, json=body, timeout=limit))
    if made.status != 201:
        return made
    gone = delete()
    return Answer(201 if gone.status == 204 else gone.status, gone.words, made.seconds + gone.seconds)


def served_certificate(url: str, ca_file: str) -> tuple[float, float]:
    """Beginning and end of the life of the certificate that is served, in seconds since 1970. Raises OSError, ssl.SSLError."""
    parts = urlsplit(url)
    host, port = parts.hostname or "", parts.port or 443
    context = ssl.create_default_context(cafile=ca_file)
    with (
        socket.create_connection((host, port), timeout=TOO_SLOW) as plain,
        context.wrap_socket(plain, server_hostname=host) as secured,
    ):
        found = secured.getpeercert() or {}
    return ssl.cert_time_to_seconds(str(found["notBefore"])), ssl.cert_time_to_seconds(str(found["notAfter"]))


def check(settings: Settings) -> list[Finding]:
    """All of them."""
    endpoint = settings.endpoint
    url = endpoint.url.rstrip("/")
    try:
        findings = [certificate(*served_certificate(url, endpoint.ca_file), time.time())]
    except (OSError, KeyError) as error:
        findings = [Finding("certificate", Level.BAD, f"not valid, or not served: {error}", "a valid one", LOGS)]
    client = session(endpoint)
    ready = _ask(lambda: client.get(f"{url}/api/ready", timeout=TOO_SLOW * 2))
    ui = _ask(lambda: client.get(f"{url}/", timeout=TOO_SLOW * 2))
    write = written(client, url)
    return [*findings, answered("API", ready), answered("API write", write, (201,)), answered("UI", ui)]
