"""The control group of a flow run: everything that the run has started, whatever that did to get away, and its end.

The unit's `Delegate=yes` lets the unprivileged worker divide its own control group; `DelegateSubgroup=worker` puts the
worker itself into a part of its own, beside those of its flow runs. The kernel keeps the account: a child that changes
its session, its process group, its environment or its parent stays in the group, and one write ends the whole group,
children that are just being made included. What the other ways lack:

- process groups and sessions: `setsid` leaves them, and many programs call it;
- a subreaper: children whose parents are gone come to the worker, which cannot tell whose they were, and while it looks
  for them they make others;
- `systemd-run --scope`: needs rights that a worker must not have.

Nothing of Prefect here: tests/unit/test_worker_groups.py tries it on real control groups.
"""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import signal
import time
from collections.abc import Iterable, Mapping
from pathlib import Path

from . import memory

#: The part of the unit's control group that the worker itself is in: DelegateSubgroup= of the unit.
OWN = "worker"
#: Seconds until what has been killed is gone; longer only in a system call that cannot be interrupted.
SECONDS_TO_DIE = 5.0
#: Puts itself into a group and becomes the command: what is started so was never outside, not for a moment.
ENTER = 'echo 0 > "$0" && exec "$@"'
RUNS = re.compile(r"(run|hooks)-[0-9a-f-]{36}")


class RunGroup:
    """One flow run's group; without delegation (path None) its process and what is found below that."""

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self._pid: int | None = None

    def entering(self, command: list[str], environment: Mapping[str, str | None]) -> list[str]:
        """A command that does the same in this group. One that is not there stays as it is, and fails by its own name."""
        if self.path is None or shutil.which(command[0], path=environment.get("PATH")) is None:
            return command
        return ["/bin/sh", "-c", ENTER, str(self.path / "cgroup.procs"), *command]

    def holds(self, pid: int) -> None:
        """Note the process that has been started in the group."""
        self._pid = pid

    def forget(self) -> None:
        """That process has ended: its number may soon be another one's."""
        self._pid = None

    def pids(self) -> list[int]:
        """All processes of the group, those of groups that they have made themselves included."""
        if self.path is None:
            return [] if self._pid is None else memory.family(self._pid)
        found: list[int] = []
        for procs in [self.path / "cgroup.procs", *self.path.glob("**/*/cgroup.procs")]:
            try:
                found += [int(line) for line in procs.read_text().split()]
            except OSError:
                continue
        return found

    def names(self) -> list[str]:
        """The names of the programs that run in the group."""
        found = []
        for pid in self.pids():
            try:
                found.append(Path(f"/proc/{pid}/comm").read_text().strip())
            except OSError:
                continue
        return sorted(found)

    def kill(self) -> None:
        """End all processes at once, without a last word."""
        if self.path is None:
            _kill(self.pids())
            return
        try:
            (self.path / "cgroup.kill").write_text("1")
        except OSError:
            # It is gone already, and with it everything that was in it.
            _kill(self.pids())

    async def end(self) -> bool:
        """End what is left and remove the group; says whether something was left."""
        left = bool(self.pids())
        deadline = time.monotonic() + SECONDS_TO_DIE
        while self.pids() and time.monotonic() < deadline:
            self.kill()
            await asyncio.sleep(0.05)
        self._remove()
        return left

    def _remove(self) -> None:
        if self.path is None:
            return
        inner = sorted((path for path in self.path.glob("**/*") if path.is_dir()), reverse=True)
        for path in [*inner, self.path]:
            try:
                path.rmdir()
            except OSError:
                # Not empty (a process that cannot die just now), or gone: the next start of the worker looks again.
                return


class Groups:
    """The groups of one worker's flow runs, below the group that systemd has handed over to it."""

    def __init__(self, root: Path | None) -> None:
        self.root = root

    @classmethod
    def of_this_process(cls, proc: Path = Path("/proc"), mount: Path = Path("/sys/fs/cgroup")) -> Groups:
        """As the unit has it; without a root where this process is in no group that has been handed over."""
        match = re.search(r"^0::(/.*)$", (proc / "self/cgroup").read_text(), re.MULTILINE)
        if match:
            own = mount / match[1].lstrip("/")
            if own.name == OWN and os.access(own.parent, os.W_OK):
                return cls(own.parent)
        return cls(None)

    def make(self, run_id: str, kind: str = "run") -> RunGroup:
        """A new group for a flow run; `kind` is `run` or, for what follows its end, `hooks`."""
        if self.root is None:
            return RunGroup(None)
        path = self.root / f"{kind}-{run_id}"
        path.mkdir(exist_ok=True)
        return RunGroup(path)

    async def clear(self) -> list[str]:
        """End and remove what an earlier worker has left; gives the names of the groups that were not empty."""
        found = [] if self.root is None else [path for path in self.root.iterdir() if RUNS.fullmatch(path.name)]
        return [path.name for path in sorted(found) if await RunGroup(path).end()]

    def killed_for_memory(self) -> int:
        """How many processes of the unit the kernel has killed for want of memory; 0 where it does not count them."""
        try:
            text = (self.root / "memory.events").read_text() if self.root else ""
        except OSError:
            return 0
        match = re.search(r"^oom_kill (\d+)$", text, re.MULTILINE)
        return int(match[1]) if match else 0


def _kill(pids: Iterable[int]) -> None:
    for pid in pids:
        try:
            os.kill(pid, signal.SIGKILL)
        except (ProcessLookupError, PermissionError):
            continue
