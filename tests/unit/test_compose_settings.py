"""Prefect's settings in compose.yml, held against each supported Prefect: it ignores a misspelt one silently."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest
import yaml

from tests.contract import environments

from .compose_file import COMPOSE, interpolate

SERVICES = ("server", "migrate")
# What the Prefect container reads that is not Prefect's own: its user's home, its Postgres driver, uvicorn, analytics.
NOT_OF_PREFECT = {"HOME", "PGPASSFILE", "FORWARDED_ALLOW_IPS", "DO_NOT_TRACK", "HTTPS_PROXY", "HTTP_PROXY", "NO_PROXY"}


def environment(service: str) -> dict[str, str]:
    """The service's environment as a container gets it with nothing but a domain set."""
    found = yaml.safe_load(interpolate(COMPOSE.read_text(), {"PREFECT_DOMAIN": "prefect.example.org"}))
    return found["services"][service]["environment"]


@pytest.mark.parametrize("version", environments.SUPPORTED)
def test_each_name_is_a_setting_and_each_value_means_what_we_mean(tmp_path: Path, version: str) -> None:
    """In a process of its own: settings are read once, from the environment."""
    program = """
import json
from prefect.settings import Settings, get_current_settings
from prefect.settings.legacy import _get_valid_setting_names
server = get_current_settings().server
print(json.dumps({
    "names": sorted(_get_valid_setting_names(Settings)),
    "analytics": server.analytics_enabled,
    "promotions": server.ui.show_promotional_content,
    "csrf": server.api.csrf_protection_enabled,
    "origins": server.api.cors_allowed_origins,
    "ui api": server.ui.api_url,
    "migrate": server.database.migrate_on_start,
    "url": server.database.connection_url.get_secret_value(),
    "connections": server.database.sqlalchemy.pool_size + server.database.sqlalchemy.max_overflow,
    "events days": server.events.retention_period.days,
    "runs days": server.services.db_vacuum.retention_period.days,
    "vacuum": sorted(server.services.db_vacuum.enabled_vacuum_types),
    "leases": server.concurrency.lease_storage,
    "live logs": server.logs.stream_publishing_enabled and server.logs.stream_out_enabled,
}))
"""
    # The home is another one than in the container: Prefect would make it.
    given = environment("server") | {"PREFECT_HOME": str(tmp_path), "PATH": os.environ["PATH"]}
    done = subprocess.run(
        [environments.python_of(version), "-c", program], env=given, capture_output=True, text=True, check=True
    )
    said = json.loads(done.stdout)
    names = set(said.pop("names"))
    for service in SERVICES:
        assert set(environment(service)) - names - NOT_OF_PREFECT == set()
    assert said == {
        "analytics": False,
        "promotions": False,
        # The proxy does that.
        "csrf": False,
        "origins": "https://prefect.example.org",
        "ui api": "/api",
        "migrate": False,
        "url": "postgresql+asyncpg://prefect_server@postgres:5432/prefect",
        "connections": 20,
        "events days": 7,
        "runs days": 90,
        "vacuum": ["events", "flow_runs", "orphans"],
        "leases": "prefect.server.concurrency.lease_storage.filesystem",
        "live logs": True,
    }
