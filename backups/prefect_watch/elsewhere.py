"""The checks of a server from another host (watch_from): whether it answers, and whether its own checks still run.

A server that still works alerts people itself, by its own prefect-watch. This is for when it cannot.
"""

from __future__ import annotations

import re
import time
from datetime import UTC, datetime
from pathlib import Path

import requests
from prefect_doctor import clocks
from prefect_doctor.finding import Finding, Level, playbook

from .settings import Server

#: Seconds for an answer.
PATIENCE = 15.0
#: Seconds after which the server's own result is out of date; as in caddy/Caddyfile.
OLD = 150.0
#: The first line of what /status says (status.py).
FIRST = re.compile(r"(ok|bad) (\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ)")
#: The line of it that says that the server's own prefect-watch reaches nobody.
UNHEARD = re.compile(r"^[A-Z]+ alert delivery: .*$", re.MULTILINE)


def look(server: Server) -> list[Finding]:
    """Ask /status, and give the findings."""
    name = server.url.split("://", 1)[-1].rstrip("/")
    client = requests.Session()
    # Nothing of whoever runs this.
    client.trust_env = False
    client.verify = server.ca_file
    client.auth = (server.user, Path(server.password_file).read_text().strip())
    asked = time.time()
    try:
        answer = client.get(f"{server.url.rstrip('/')}/status", timeout=PATIENCE)
    except requests.RequestException as error:
        return findings(name, 0, type(error).__name__ + why(str(error)), datetime.now(UTC))
    now = time.time()
    seconds = clocks.ahead(answer.headers.get("Date"), asked, now)
    # How old its last look is, its own clock says.
    found = findings(name, answer.status_code, answer.text, datetime.fromtimestamp(now - (seconds or 0.0), UTC))
    return found if seconds is None else [*found, clocks.finding(name, seconds)]


def why(error: str) -> str:
    """The part of an error of requests' that a person understands, with its colon; or nothing."""
    for pattern in (
        r"(Name or service not known|Temporary failure in name resolution|No address associated with hostname)",
        r"(Connection refused|No route to host|Network is unreachable|timed out|reset by peer)",
        r"(certificate verify failed[^(')]*)",
    ):
        if found := re.search(pattern, error):
            return f": {found[1].strip()}"
    return ""


def findings(name: str, status: int, text: str, now: datetime) -> list[Finding]:
    """What is wrong with an answer; a pure decision.

    Args:
        name: of the server.
        status: of HTTP; 0: there was no answer.
        text: the body, or why there was none.
        now: by the server's clock, with its time zone.
    """
    reached, looked, heard = f"server {name}", f"prefect-watch of {name}", f"alert delivery of {name}"
    limit = "an answer"
    # Neither well nor bad: "well again" is not said of a watch that nobody can ask.
    unknown = [Finding(one, Level.OK, "cannot be asked", pending=True) for one in (looked, heard)]
    if status == 0:
        mend = (
            f"is its host up? ping {name}; ssh {name}; look at your provider's console. If it is lost: docs/restore.md"
        )
        return [Finding(reached, Level.BAD, f"does not answer ({text})", limit, mend), *unknown]
    if status == 401:
        mend = playbook("site.yml --tags stack,watch")
        return [Finding(reached, Level.BAD, "refuses the account of this host (401)", limit, mend), *unknown]
    first = FIRST.match(text)
    fresh = first and 0 <= abs((now - datetime.fromisoformat(first[2])).total_seconds()) < OLD
    if status not in (200, 503) or (status == 503 and not first and "prefect-watch.timer" not in text):
        mend = f"on {name}: systemctl status prefect-stack; docker ps --all"
        return [Finding(reached, Level.BAD, f"answers {status}", limit, mend), *unknown]
    found = [Finding(reached, Level.OK, f"answers {status}", limit)]
    if not fresh:
        mend = f"on {name}: systemctl status prefect-watch.timer; journalctl -u prefect-watch -n 50; prefect-doctor"
        stopped = Finding(looked, Level.BAD, "its checks have not run in the last 150 s", "each minute", mend)
        return [*found, stopped, unknown[1]]
    found.append(Finding(looked, Level.OK, f"says {first[1] if first else ''}", "each minute"))
    unheard = UNHEARD.search(text)
    level = Level.BAD if unheard else Level.OK
    mend = f"on {name}: prefect-watch test; prefect-doctor" if unheard else ""
    return [*found, Finding(heard, level, unheard[0] if unheard else "are delivered", "are delivered", mend)]
