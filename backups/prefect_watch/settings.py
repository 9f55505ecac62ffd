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
    """Which flow runs a person is told of."""

    # Names of states, as Prefect's UI has them.
    states: list[str] = field(default_factory=lambda: ["Crashed"])
    # Only runs with one of these tags; empty: all.
    tags: list[str] = field(default_factory=list)
    # Messages about flow runs within an hour; what is more comes as one digest.
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
class Watch:
    """Who is told, and of what."""

    # Addresses that apprise sends to. Secret.
    notify_urls: list[str] = field(default_factory=list)
    # Hours until a person is told once more of what stays bad.
    again_hours: float = 24
    # Names of checks that people are not told of; * stands for anything.
    ignore: list[str] = field(default_factory=list)
    # Called at each look that finds all well. Secret.
    heartbeat_url: str = ""
    flow_runs: FlowRuns = field(default_factory=FlowRuns)
    server: Server = field(default_factory=Server)


def load() -> Watch:
    """The settings of this host. Raises Failure when they are missing, unreadable or wrong."""
    watch: Watch = build(Watch, as_json(text_of(FILE, "watch"), FILE, "watch"), "", FILE, "watch")
    return watch
