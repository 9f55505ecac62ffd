"""What each lab test costs in CPU time: that of its VPSs, and that of what it started on this machine.

The shards of the lab keep all processors busy, so a test's own duration says little of what the suite would be without it.
Read from the accounts that the kernel keeps of each container (cpuacct); where there are none, nothing is printed.
"""

from __future__ import annotations

import resource
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.lab.vps import network
from tests.lab.vps.engine import docker
from tests.lab.vps.shell import LabError

#: A directory for each container, named by its id. https://docs.kernel.org/admin-guide/cgroup-v1/cpuacct.html
ACCOUNTS = Path("/sys/fs/cgroup/cpuacct/docker")
#: A VPS can come and go within a test: what it had used by then is known this many seconds late, at most.
SECONDS_BETWEEN_LOOKS = 2.0
DEAREST = 15


class Costs:
    """A pytest plugin: sums CPU seconds for each test (setup, call and teardown) and each file, and prints the dearest."""

    def __init__(self) -> None:
        self.tests: Counter[str] = Counter()
        #: Of each VPS: the last figure of its account, and the sum of those that ended with a power cut.
        self.used: dict[str, float] = {}
        self.ended: Counter[str] = Counter()
        self.ours: dict[str, bool] = {}
        self.lock = threading.Lock()
        self.before = self.now()
        threading.Thread(target=self.look_on, daemon=True).start()

    def look_on(self) -> None:
        """Look at the accounts until the session ends."""
        while not threading.Event().wait(SECONDS_BETWEEN_LOOKS):
            self.look()

    def look(self) -> float:
        """Note what each VPS of this shard has used until now; gives the sum in seconds."""
        with self.lock:
            for account in ACCOUNTS.glob("*/cpuacct.usage"):
                name = account.parent.name
                if name not in self.ours:
                    self.ours[name] = is_ours(name)
                if self.ours[name]:
                    try:
                        used = int(account.read_text()) / 1e9
                    except OSError:
                        # It went between being listed and being read.
                        continue
                    before = self.used.get(name, 0.0)
                    if used < before:
                        self.ended[name] += before
                    self.used[name] = used
            return sum(self.used.values()) + sum(self.ended.values())

    def now(self) -> float:
        """CPU seconds used so far by the VPSs, this process and the children that have ended."""
        spent = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
        return self.look() + sum(one.ru_utime + one.ru_stime for one in spent)

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Iterator[None]:
        """Charge the test with all that was used since the one before it ended: a fixture's VPS to the first that asks for it."""
        try:
            return (yield)
        finally:
            now = self.now()
            self.tests[item.nodeid] += now - self.before
            self.before = now

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        """Print the files and the dearest tests."""
        files: Counter[str] = Counter()
        for name, seconds in self.tests.items():
            files[name.split("::")[0]] += seconds
        terminalreporter.section(f"CPU seconds: {sum(files.values()):.0f}")
        for name, seconds in [*files.most_common(), *self.tests.most_common(DEAREST)]:
            terminalreporter.line(f"{seconds:7.1f}  {name}")


def is_ours(container: str) -> bool:
    """Whether a container is one of this shard's network."""
    try:
        networks = docker("inspect", "--format", "{{json .NetworkSettings.Networks}}", container).stdout
        return f'"{network.NETWORK}"' in networks
    except LabError:
        return False


def plugin() -> Costs | None:
    """The plugin, where the kernel keeps accounts."""
    return Costs() if ACCOUNTS.parent.is_dir() else None
