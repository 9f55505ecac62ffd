"""A client that asks the API all the time, and the downtime that it has seen: for the test of upgrades and their bench."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple

from tests.lab.vps.endpoint import Endpoint

# Between two rounds of three requests.
SECONDS_BETWEEN = 0.2
# So long may nobody have an answer before it counts as downtime: a request takes its time on a busy machine.
SECONDS_UNNOTICED = 1.0


class Answer(NamedTuple):
    """When a request had ended, in seconds of the monotonic clock, and whether it went well."""

    at: float
    well: bool


@dataclass(frozen=True)
class Downtime:
    """What one client has seen: seconds without a successful answer, and requests."""

    #: The longest time without one.
    longest: float
    #: All times without one that are longer than SECONDS_UNNOTICED.
    total: float
    tried: int
    failed: int


def downtime(answers: Iterable[Answer], began: float, ended: float) -> Downtime:
    """The downtime that a client has seen.

    Args:
        answers: of its requests, in their order.
        began: when it began to ask; until the first success there was none, either.
        ended: when it had asked for the last time.
    """
    found = list(answers)
    successes = [one.at for one in found if one.well]
    gaps = [after - before for before, after in pairwise((began, *successes, ended))]
    return Downtime(
        longest=max(gaps),
        total=sum(gap for gap in gaps if gap > SECONDS_UNNOTICED),
        tried=len(found),
        failed=len(found) - len(successes),
    )


class Asking(threading.Thread):
    """Makes a flow run, reads it and sets its state, over and over; nothing is tried twice."""

    def __init__(self, endpoint: Endpoint) -> None:
        super().__init__(daemon=True)
        self.endpoint = endpoint
        self.flow = endpoint.post("/api/flows/", {"name": "asking"}).raise_for_status().json()["id"]
        self.answers: list[Answer] = []
        self.failed: list[str] = []
        self.slowest = 0.0
        self.began = self.ended = 0.0
        self._over = threading.Event()

    @property
    def tried(self) -> int:
        """How many requests were made."""
        return len(self.answers)

    @property
    def downtime(self) -> Downtime:
        """What it has seen, once it has ended."""
        return downtime(self.answers, self.began, self.ended)

    def run(self) -> None:
        with self.endpoint.client() as client:
            while not self._over.is_set():
                made = self._ask(client, "POST", "/api/flow_runs/", {"flow_id": self.flow})
                if made:
                    self._ask(client, "GET", f"/api/flow_runs/{made['id']}")
                    state = {"state": {"type": "CANCELLED"}, "force": True}
                    self._ask(client, "POST", f"/api/flow_runs/{made['id']}/set_state", state)
                time.sleep(SECONDS_BETWEEN)

    def _ask(self, client: Any, method: str, path: str, body: Any = None) -> Any:
        began = time.monotonic()
        said = None
        try:
            said = client.request(method, path, json=body).raise_for_status().json()
        except Exception as error:
            self.failed.append(f"{method} {path}: {error!r}")
        at = time.monotonic()
        self.answers.append(Answer(at, said is not None))
        self.slowest = max(self.slowest, at - began)
        return said

    def __enter__(self) -> Asking:
        self.began = time.monotonic()
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self.join()
        self.ended = time.monotonic()
        print(f"requests: {self.tried} tried, {len(self.failed)} failed, the slowest {self.slowest:.1f} s")


def serves(endpoint: Endpoint) -> str:
    """The version of Prefect that answers."""
    return endpoint.get("/api/admin/version").raise_for_status().json()
