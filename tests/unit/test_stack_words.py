"""What the playbook says of containers that are not healthy."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

PATH = Path(__file__).resolve().parents[2] / "ansible" / "filter_plugins" / "prefect_stack.py"
SPEC = importlib.util.spec_from_file_location("prefect_stack", PATH)
MODULE = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(MODULE)


def look(status: str, health: dict | None, restarts: int = 0) -> dict:
    state = {"Status": status} | ({"Health": health} if health else {})
    return {"item": "prefect-server", "exists": True, "container": {"State": state, "RestartCount": restarts}}


@pytest.mark.parametrize(
    ("seen", "words"),
    [
        (look("running", {"Status": "healthy", "Log": []}), []),
        ({"item": "prefect-server", "exists": False, "container": None}, ["prefect-server is not there"]),
        ({"item": "prefect-server", "failed": True, "msg": "no engine"}, ["prefect-server is not there"]),
        (look("exited", None), ["prefect-server is exited (no health check)"]),
        (
            look("running", {"Status": "starting", "Log": None}, restarts=7),
            ["prefect-server is running (starting, restarted 7 times)"],
        ),
        (
            look(
                "running",
                {
                    "Status": "unhealthy",
                    "Log": [
                        {"ExitCode": 0, "Output": ""},
                        {"ExitCode": 1, "Output": 'the database "prefect" has no table log: restore a backup\n'},
                    ],
                },
            ),
            ['prefect-server is running (unhealthy): the database "prefect" has no table log: restore a backup'],
        ),
    ],
)
def test_a_container_that_is_not_healthy_is_named_with_its_reason(seen: dict, words: list[str]) -> None:
    assert MODULE.prefect_stack_words([seen]) == words
