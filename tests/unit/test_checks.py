"""Where the checks at the end of site.yml run their smoke flow."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

PATH = Path(__file__).resolve().parents[2] / "ansible/filter_plugins/prefect_checks.py"
SPEC = importlib.util.spec_from_file_location(PATH.stem, PATH)
checks = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(checks)

POOLS = [{"name": "containers", "type": "docker"}, {"name": "general"}, {"name": "gpu", "type": "process"}]
GENERAL, GPU, CONTAINERS = ({"name": name, "pool": name} for name in ("general", "gpu", "containers"))


@pytest.mark.parametrize(
    ("workers", "preferred", "place"),
    [
        ([GENERAL, GPU], "gpu", {"pool": "gpu", "queue": "default"}),
        ([GENERAL, GPU], "containers", {"pool": "general", "queue": "default"}),
        ([CONTAINERS, GPU], "general", {"pool": "gpu", "queue": "default"}),
        ([GPU], "", {"pool": "gpu", "queue": "default"}),
        # Nobody looks into a queue that no worker has been given.
        ([{**GPU, "queues": ["high", "low"]}], "gpu", {"pool": "gpu", "queue": "high"}),
        ([{**GPU, "queues": ["high", "default"]}], "gpu", {"pool": "gpu", "queue": "default"}),
        ([{**GPU, "queues": ["high"]}, GPU], "gpu", {"pool": "gpu", "queue": "default"}),
        ([CONTAINERS], "containers", {}),
        ([], "general", {}),
    ],
)
def test_where_the_smoke_flow_runs(workers, preferred, place):
    assert checks.prefect_smoke_place(workers, POOLS, preferred) == place
