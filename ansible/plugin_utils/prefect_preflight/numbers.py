"""The least that makes sense for settings that are numbers."""

from __future__ import annotations

from typing import Any

from .words import quoted

# The least that makes sense for settings that are numbers.
LEAST = {
    "prefect_events_retention_days": 1,
    "prefect_runs_retention_days": 1,
    "host_guessing_limit": 0,
    "host_guessing_block_seconds": 1,
    "preflight_min_memory_mb": 0,
    "preflight_min_free_disk_gb": 0,
    "stack_postgres_memory_mb": 256,
    "stack_server_memory_mb": 512,
    "stack_caddy_memory_mb": 64,
    "stack_caddy_cpu_percent": 0,
    # The server's pool is 20, and a migration, a backup and a person with psql want in as well.
    "stack_postgres_max_connections": 30,
    "stack_start_timeout": 60,
    "stack_docker_timeout": 60,
    "backups_random_delay_seconds": 0,
    "backups_max_age_hours": 1,
    "backups_verify_max_age_days": 1,
    "backups_jobs": 1,
    "backups_reserve_mb": 256,
    "backups_keep_previous_days": 0,
    "watch_again_hours": 1,
    "watch_flow_run_messages_per_hour": 1,
    "workers_api_timeout": 1,
    "workers_drain_seconds": 0,
    "workers_shutdown_seconds": 0,
    "workers_disk_reserve_mb": 0,
    # Three heartbeats, which come every 30 seconds.
    "workers_crash_seconds": 90,
    "checks_workers_timeout": 1,
    "checks_smoke_timeout": 1,
}


def number_problems(settings: dict[str, Any]) -> list[str]:
    """Numbers that are too small to work."""
    return [
        f"{setting} is {quoted(settings[setting])}; it must be {least} or more"
        for setting, least in LEAST.items()
        # One that could not be read hides none of the others.
        if setting in settings and settings[setting] < least
    ]
