"""The settings in /etc/prefect/watch/settings.json: written by the Ansible role `watch`, read by prefect-watch."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path

from prefect_backups.settings import as_json, build, text_of

# Another place for tests of the tool itself.
FILE = Path(os.environ.get("PREFECT_WATCH_ETC", "/etc/prefect/watch")) / "settings.json"


@dataclass(frozen=True)
class FlowRuns:
    """Which flow runs people are alerted to."""

    # Names of states, as Prefect's UI has them.
    states: list[str] = field(default_factory=lambda: ["Crashed"])
    # Only runs with one of these tags; empty: all.
    tags: list[str] = field(default_factory=list)
    # Most messages about flow runs in an hour; more are summed up in one digest.
    messages_per_hour: int = 10


@dataclass(frozen=True)
class Server:
    """The server of another host, which this host watches; without an address it watches itself."""

    url: str = ""
    # An account that may only monitor.
    user: str = ""
    password_file: str = ""
    # PEM file of the authority that its certificate comes from.
    ca_file: str = ""


@dataclass(frozen=True)
class Datadog:
    """Where flow run state changes go as events; without a key, nowhere."""

    # Secret.
    api_key: str = ""
    # Of the organization.
    site: str = "datadoghq.com"
    # What is called in the place of https://api.SITE: a proxy that passes events on, or a test's stand-in.
    url: str = ""
    # Names of states, as Prefect's UI has them.
    flow_run_states: list[str] = field(
        default_factory=lambda: ["Completed", "Failed", "TimedOut", "Crashed", "Cancelled"]
    )


@dataclass(frozen=True)
class Watch:
    """Who is alerted, and to what."""

    # Addresses that apprise sends to. Secret.
    notify_urls: list[str] = field(default_factory=list)
    # Hours after which an alert is repeated while its problem lasts.
    again_hours: float = 24
    # Names of checks that send no alerts; * stands for anything.
    ignore: list[str] = field(default_factory=list)
    # Called each minute while nothing is bad. Secret.
    heartbeat_url: str = ""
    flow_runs: FlowRuns = field(default_factory=FlowRuns)
    server: Server = field(default_factory=Server)
    datadog: Datadog = field(default_factory=Datadog)


def load() -> Watch:
    """The settings of this host. Raises Failure when they are missing, unreadable or wrong."""
    watch: Watch = build(Watch, as_json(text_of(FILE, "watch"), FILE, "watch"), "", FILE, "watch")
    return watch
