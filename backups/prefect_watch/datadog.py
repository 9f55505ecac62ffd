"""Flow run state changes as events in Datadog: what an event says, and the HTTP API that takes it (POST /api/v1/events)."""

from __future__ import annotations

import contextlib
import queue
import re
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import requests

from .elsewhere import why
from .settings import Datadog

#: Seconds for one answer.
ANSWER_SECONDS = 5.0
#: Characters: Datadog's limits of a text and of a tag. A title has none any more; a longer one is hard to read in a list.
TEXT, TAG, TITLE = 4000, 200, 100
#: Of a flow run's own tags so many are told.
OWN_TAGS = 20
#: Seconds to wait where Datadog says that there are too many requests: unless it says how long, and at most.
WAIT, WAIT_MOST = 60.0, 3600.0
#: Debian's authorities, and those that the inventory adds to them.
AUTHORITIES = Path("/etc/ssl/certs/ca-certificates.crt")
ALERT_TYPES = {
    "completed": "success",
    "failed": "error",
    "timedout": "error",
    "crashed": "error",
    "late": "warning",
    "cancelled": "warning",
}
#: Keys of tags that Datadog or the kit has a meaning for: a flow run's own cannot take their place.
TAKEN_KEYS = {"host", "device", "source", "service", "state", "flow", "deployment", "work_pool"}


@dataclass(frozen=True)
class Change:
    """A flow run that came into a state. Moments in seconds since 1970."""

    id: str
    #: When the server has written it down, and when it was made.
    updated: float
    when: float
    state: str
    message: str
    run_id: str
    run: str
    flow: str
    deployment: str
    work_pool: str
    tags: Sequence[str] = ()


@dataclass(frozen=True)
class Answer:
    """What came back: the status of HTTP (0: nothing did), for how many seconds to wait, and what went wrong, in words."""

    status: int
    wait: float = 0.0
    error: str = ""

    @property
    def taken(self) -> bool:
        return 200 <= self.status < 300


def tag(key: str, value: str) -> str:
    """A tag as Datadog would write it: lower case, other characters than its own as underscores, at most 200 characters."""
    text = re.sub(r"[^\w:./-]", "_", f"{key}:{value}" if key else value).lower()
    return re.sub(r"_+", "_", text)[:TAG].rstrip("_:")


def own_tag(text: str) -> str:
    """A flow run's own tag: as it is, unless Datadog would not take it for a tag, or for one of another meaning."""
    key = text.split(":", 1)[0].lower() if ":" in text else ""
    return tag("" if text[:1].isalpha() and key not in TAKEN_KEYS else "flow_run_tag", text)


def event_of(change: Change, url: str, host: str) -> dict[str, Any]:
    """The event, as the body of the request has it.

    Args:
        url: of Prefect's UI.
        host: that the event is of, as Datadog's agent calls it.
    """
    name = f"{change.flow}/{change.deployment}" if change.deployment else change.flow
    of = f"{'deployment' if change.deployment else 'flow'} {name}"
    title = f"Flow run {change.run} ({of}) is {change.state}"
    lines = [title, f"{url.rstrip('/')}/runs/flow-run/{change.run_id}"]
    lines += [f"Work pool: {change.work_pool}"] if change.work_pool else []
    lines += ["", change.message] if change.message else []
    tags = [tag("service", "prefect"), tag("state", change.state), tag("flow", change.flow)]
    tags += [tag("deployment", name)] if change.deployment else []
    tags += [tag("work_pool", change.work_pool)] if change.work_pool else []
    tags += [own_tag(one) for one in change.tags[:OWN_TAGS]]
    return {
        "title": short(title, TITLE),
        "text": short("\n".join(lines), TEXT),
        "date_happened": int(change.when),
        "alert_type": ALERT_TYPES.get(change.state.lower(), "info"),
        "tags": list(dict.fromkeys(tags)),
        "host": host,
        "aggregation_key": change.run_id,
        "source_type_name": "prefect",
    }


def short(text: str, most: int) -> str:
    """At most so many characters."""
    return text if len(text) <= most else text[: most - 1] + "…"


class Sender:
    """The API of one site, and one key. The key is in no message, and is never sent to where a redirect leads."""

    def __init__(self, settings: Datadog) -> None:
        self._api = (settings.url or f"https://api.{settings.site}").rstrip("/")
        #: What messages call it.
        self.name = f"Datadog ({settings.url or settings.site})"
        self._session = requests.Session()
        # Nothing of whoever runs this.
        self._session.trust_env = False
        self._session.verify = str(AUTHORITIES) if AUTHORITIES.exists() else True
        self._session.headers.update({"DD-API-KEY": settings.api_key, "Accept": "application/json"})

    def send(self, event: Mapping[str, Any], seconds: float) -> Answer:
        """Send an event."""
        return self._asked(lambda: self._request("POST", "/api/v1/events", seconds, event), seconds)

    def validate(self) -> Answer:
        """Ask whether the key is taken."""
        return self._asked(lambda: self._request("GET", "/api/v1/validate", 2 * ANSWER_SECONDS), 2 * ANSWER_SECONDS)

    def _request(self, method: str, path: str, seconds: float, body: Mapping[str, Any] | None = None) -> Answer:
        try:
            answer = self._session.request(method, self._api + path, json=body, timeout=seconds, allow_redirects=False)
        except requests.RequestException as error:
            # Not its text: that of a wrong header shows the key.
            return Answer(0, error=f"{self.name} does not answer: {type(error).__name__}{why(str(error))}")
        return Answer(answer.status_code, wait_of(answer.headers), self._words(answer.status_code))

    def _words(self, status: int) -> str:
        if 200 <= status < 300:
            return ""
        if status in (401, 403):
            return f"{self.name} refuses the API key ({status}): look at watch_datadog_api_key, which is of one site (watch_datadog_site)"
        return f"{self.name} answers {status}" + (" (too many requests)" if status == 429 else "")

    def _asked(self, ask: Callable[[], Answer], seconds: float) -> Answer:
        """Within so many seconds, whatever holds it up: looking up a name has no limit of its own, nor has an answer that drips."""
        answers: queue.SimpleQueue[Answer] = queue.SimpleQueue()
        threading.Thread(target=lambda: answers.put(ask()), daemon=True).start()
        try:
            return answers.get(timeout=seconds + 1)
        except queue.Empty:
            return Answer(0, error=f"{self.name} does not answer within {seconds:.0f} s")


def wait_of(headers: Mapping[str, str]) -> float:
    """For how many seconds a server that has had enough wants to be left alone."""
    for name in ("Retry-After", "X-RateLimit-Reset"):
        with contextlib.suppress(ValueError):
            return min(max(float(headers.get(name, "")), 1.0), WAIT_MOST)
    return WAIT
