"""What a restore works on: this host, its containers and workers, its Postgres, and who is told."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .postgres import Postgres
from .progress import Report
from .settings import Settings
from .stack import Stack

SCRIPT = Path(__file__).with_name("in_server.py")


@dataclass
class Host:
    """This host."""

    settings: Settings
    report: Report
    stack: Stack
    postgres: Postgres
    # In prefect-restore.service, after which the workers are ordered: waiting for them would not end.
    by_systemd: bool = False

    @classmethod
    def here(cls, settings: Settings, report: Report, by_systemd: bool = False) -> Host:
        """The real one; nothing is contacted yet."""
        return cls(settings, report, Stack(settings), Postgres.live(settings), by_systemd)

    @property
    def state(self) -> Path:
        """Where the tools keep what they have to remember."""
        return Path(self.settings.state)

    def start_postgres(self) -> None:
        """Start Postgres where it does not answer. Raises Failure."""
        if not self.postgres.answers():
            self.stack.start_postgres(self.postgres)

    def in_server(self, **order: Any) -> dict[str, Any]:
        """Have the server do something with its flow runs and work pools; gives what it has done. Raises Failure."""
        return json.loads(self.stack.in_server(SCRIPT.read_text(), {"ORDER": json.dumps(order)}))
