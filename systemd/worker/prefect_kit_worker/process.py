"""Flow runs in processes: what each of them is started with, in which control group, and what is said of its end."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from prefect.workers.process import ProcessWorker

from . import ends, seam
from .groups import Groups, RunGroup
from .worker import KitWorker

if TYPE_CHECKING:
    from prefect.client.schemas.objects import FlowRun

ENGINE = Path(__file__).resolve().parents[1] / "prefect_engine.py"


def interpreter(command: str | None) -> str | None:
    """The words of a flow run's command that start its Python; None for a command of somebody else's making."""
    python, its, rest = (command or "").partition(" -m prefect.engine")
    return python if python and its and not rest.strip() else None


def patient(command: str | None) -> str | None:
    """The command of a flow run with our prefect_engine.py in the place of Prefect's engine; another command as it is."""
    python = interpreter(command)
    return f"{python} {ENGINE}" if python else command


class ProcessKitWorker(KitWorker, ProcessWorker):
    """Flow runs in processes of the worker's own unit, each in a control group of its own."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        seam.install()
        self._groups = Groups.of_this_process()
        self._runs_in_hand: dict[str, seam.RunInHand] = {}
        self._cleared = False
        if self._groups.root is None:
            self.log.warning(
                "This worker cannot make control groups (its unit needs Delegate=yes and DelegateSubgroup=worker): what a "
                "flow run leaves behind is ended only as far as it is still the run's descendant."
            )

    async def after_sync(self) -> None:
        if not self._cleared:
            self._cleared = True
            # systemd ends them with the worker; this is for what it could not end.
            for name in await self._groups.clear():
                self.log.warning("Processes that the worker before had left are ended: %s", name)
        await super().after_sync()

    async def run(self, flow_run: FlowRun, configuration: Any, task_status: Any = None) -> Any:
        run_id = str(flow_run.id)
        hooks: list[RunGroup] = []

        def hooks_group() -> RunGroup:
            hooks.append(self._groups.make(run_id, "hooks"))
            return hooks[-1]

        run = seam.RunInHand(
            group=self._groups.make(run_id),
            hooks_group=hooks_group,
            interpreter=interpreter(configuration.command),
            # The worker has a PREFECT_HOME that flow runs cannot write to.
            environment={"PREFECT_HOME": str(self._kit.state_directory)},
        )
        configuration.command = patient(configuration.command)
        killed_before = self._groups.killed_for_memory()
        self._runs_in_hand[run_id] = run
        token = seam.in_hand.set(run)
        try:
            result = await super().run(flow_run, configuration, task_status)
        finally:
            seam.in_hand.reset(token)
            for group in (run.group, *hooks):
                await group.end()
            self._runs_in_hand.pop(run_id, None)
        if run.left:
            self.get_flow_run_logger(flow_run).info(ends.left_behind(run.left))
        ours = self._runs.get(run_id)
        if ours is None or ours.reason is None:
            for_memory = self._groups.killed_for_memory() > killed_before
            if text := ends.by_signal(result.status_code, for_memory, self.name):
                self.tell_run(flow_run, text)
        return result

    def processes_of(self, run_id: str) -> list[int]:
        run = self._runs_in_hand.get(run_id)
        return run.group.pids() if run else []

    def kill_processes(self, run_id: str) -> None:
        if run := self._runs_in_hand.get(run_id):
            run.group.kill()

    def has_hooks_running(self, run_id: str) -> bool:
        run = self._runs_in_hand.get(run_id)
        return run is not None and run.hooks_running
