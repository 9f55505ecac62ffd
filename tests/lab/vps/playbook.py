"""Run a playbook of the kit against an inventory, and read what it says."""

from __future__ import annotations

import os
import re
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[3]
ANSIBLE = REPOSITORY / "ansible"
RECAP_LINE = re.compile(r"^(\S+)\s+: (ok=\d+ .*)$", re.MULTILINE)
# Tasks of the role stack that put changed files into effect.
STACK_EFFECTS = frozenset(
    (
        "Apply the changes of the stack",
        "Wait until it is healthy (at most stack_start_timeout)",
        "Keep what it runs with, for the day on which a change does not work",
        "Note what it runs with",
    )
)
HEADING = re.compile(r"(?:TASK|RUNNING HANDLER) \[(?:[\w-]+ : )?(.+)\] \*")


@dataclass(frozen=True)
class PlaybookRun:
    """What a run of a playbook gave: exit code, all that it printed, and how many seconds it took."""

    returncode: int
    stdout: str
    seconds: float

    @property
    def hosts(self) -> dict[str, dict[str, int]]:
        """The recap: counts (ok, changed, failed, …) for each host."""
        return parse_recap(self.stdout)

    @property
    def recap(self) -> dict[str, int]:
        """The recap's counts, summed over the hosts."""
        counts = list(self.hosts.values())
        return {name: sum(count[name] for count in counts) for name in (counts[0] if counts else {})}

    @property
    def changed_tasks(self) -> list[str]:
        """Names of the tasks and handlers that changed something, without their role's, in order."""
        task, found = "", []
        for line in self.stdout.splitlines():
            if heading := HEADING.match(line):
                task = heading.group(1)
            elif line.startswith("changed: ") and task not in found:
                found.append(task)
        return found

    @property
    def joined(self) -> str:
        """The output as one line, with the folding and the quotes undone that YAML puts into long messages."""
        text = re.sub(r"\\\n\s+\\?", "", self.stdout)
        return " ".join(text.split()).replace("''", "'").replace('\\"', '"')


def parse_recap(output: str) -> dict[str, dict[str, int]]:
    """The counts of each host from the recap that ansible-playbook prints at its end."""
    return {
        host: {name: int(count) for name, count in re.findall(r"(\w+)=(\d+)", counts)}
        for host, counts in RECAP_LINE.findall(output)
    }


def run_playbook(
    inventory: Path, playbook: str, *arguments: str, timeout: float | None = None, ansible: Path = ANSIBLE
) -> PlaybookRun:
    """Run a playbook of `ansible/` (or one by its whole path) to its end; a failure is in the result.

    `arguments` go to ansible-playbook as they are, `timeout` is in seconds, `ansible` is that folder of another state of the
    kit.
    """
    programs = REPOSITORY / ".venv" / "bin"
    environment = {
        **os.environ,
        "PATH": f"{programs}{os.pathsep}{os.environ['PATH']}",
        "ANSIBLE_CONFIG": str(ansible / "ansible.cfg"),
        "ANSIBLE_NOCOLOR": "1",
        "ANSIBLE_FORCE_COLOR": "0",
    }
    started = time.monotonic()
    done = subprocess.run(
        [str(programs / "ansible-playbook"), "--inventory", str(inventory), playbook, *arguments],
        cwd=ansible,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        timeout=timeout,
    )
    return PlaybookRun(done.returncode, done.stdout, time.monotonic() - started)
