"""Flow runs in processes, and what each of them is started with."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from prefect.workers.process import ProcessWorker

from .worker import KitWorker

if TYPE_CHECKING:
    from prefect.client.schemas.objects import FlowRun

ENGINE = Path(__file__).resolve().parents[1] / "prefect_engine.py"


def patient(command: str | None) -> str | None:
    """The command of a flow run with our prefect_engine.py in the place of Prefect's engine; another command as it is."""
    python, its, rest = (command or "").partition(" -m prefect.engine")
    return f"{python} {ENGINE}" if python and its and not rest.strip() else command


class ProcessKitWorker(KitWorker, ProcessWorker):
    """Flow runs in processes of the worker's own unit."""

    async def run(self, flow_run: FlowRun, configuration: Any, task_status: Any = None) -> Any:
        configuration.command = patient(configuration.command)
        return await super().run(flow_run, configuration, task_status)
