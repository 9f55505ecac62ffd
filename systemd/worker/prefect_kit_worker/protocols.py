"""What the components of the worker know of it: no more than this, so that each can be tried without Prefect."""

from __future__ import annotations

from collections.abc import Coroutine
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from prefect.client.schemas.objects import FlowRun

    from .held import HeldRun


class Worker(Protocol):
    """The worker that a component is a part of."""

    name: str

    @property
    def log(self) -> Any:
        """The worker's own log."""

    def tell_run(self, flow_run: FlowRun, text: str) -> None:
        """Into the run's own logs, where its owner looks, and into the worker's."""

    async def tell_run_soon(self, run_id: str, text: str) -> None:
        """Into the logs of a run, if the API gives its name at once; else into the worker's own."""

    def in_background(self, work: Coroutine[Any, Any, Any]) -> None:
        """Do something beside everything else, for as long as the worker lives."""


class Infrastructure(Protocol):
    """What flow runs run in, which differs between the kinds of workers."""

    def processes_of(self, run_id: str) -> list[int]:
        """The processes of a flow run, all that it has started included."""

    def kill_processes(self, run_id: str) -> None:
        """End them all at once."""

    def has_hooks_running(self, run_id: str) -> bool:
        """Whether hooks of a run that has ended are running."""

    async def has_outlived(self, left: HeldRun) -> bool:
        """Whether what an earlier worker started is still there."""

    async def kill_infrastructure(self, infrastructure_pid: str, configuration: Any, grace_seconds: int) -> None:
        """Prefect's own: end what is no process of ours."""
