"""The smoke flow after a restore: what it makes of the server's answers."""

from __future__ import annotations

from typing import Any

import pytest
from prefect_backups import smoke
from prefect_backups.errors import Code, Failure
from prefect_backups.settings import Endpoint


class Server:
    """Answers in their order; the last one again and again."""

    def __init__(self, *states: str) -> None:
        self.states = list(states)

    def call(self, method: str, path: str, body: Any = None) -> Any:
        if path.endswith("/create_flow_run"):
            return {"id": "x"}
        if path == "/task_runs/count":
            return 3
        state = self.states.pop(0) if len(self.states) > 1 else self.states[0]
        if state == "500":
            raise Failure(Code.SMOKE, "answered 500")
        return {"state": {"type": state, "name": state.capitalize()}}


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(smoke.time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(smoke.time, "sleep", lambda seconds: clock.__setitem__(0, clock[0] + seconds))


def run(*states: str) -> str:
    return smoke.run(Server(*states), Endpoint("https://p", "b", "/p", "/c"), "d", lambda *_: None)


def test_one_answer_that_fails_is_no_end():
    assert run("PENDING", "500", "500", "COMPLETED").startswith("flow run Completed with 3 task runs")


def test_a_server_that_only_fails_is_told_as_such():
    with pytest.raises(Failure, match="answered 500"):
        run("500")
    with pytest.raises(Failure, match="is Running after 180 s"):
        run("RUNNING")
