"""The tables that a server of this Prefect needs: a database without one of them serves nobody.

The same list as compose/server/health.py has, which is another program on another Python; a unit test holds them equal.
"""

from __future__ import annotations

from collections.abc import Iterable

TABLES = (
    "agent",
    "alembic_version",
    "artifact",
    "artifact_collection",
    "automation",
    "automation_bucket",
    "automation_event_follower",
    "automation_related_resource",
    "block_document",
    "block_document_reference",
    "block_schema",
    "block_schema_reference",
    "block_type",
    "composite_trigger_child_firing",
    "concurrency_limit",
    "concurrency_limit_v2",
    "configuration",
    "csrf_token",
    "deployment",
    "deployment_schedule",
    "event_resources",
    "events",
    "flow",
    "flow_run",
    "flow_run_input",
    "flow_run_state",
    "log",
    "saved_search",
    "task_run",
    "task_run_state",
    "task_run_state_cache",
    "variable",
    "work_pool",
    "work_queue",
    "worker",
)


def lacks(tables: Iterable[str]) -> list[str]:
    """Of the tables that are needed, those that are not there, by name."""
    return sorted(set(TABLES) - set(tables))
