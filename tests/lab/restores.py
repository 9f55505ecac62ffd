"""What the tests of prefect-restore share: running it, a marker that tells one world from another, what is left over."""

from __future__ import annotations

import json
import shlex
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from tests.lab.seed import psql
from tests.lab.vps.vps import Vps

WORKER = "prefect-worker@general-1.service"
UNITS = "prefect-restore-run-*.service"
TIMERS = "prefect-backup.timer prefect-backup-verify.timer prefect-watch.timer"
STATE = "/var/lib/prefect/backups"
STAGING = "/var/backups/prefect/staging"
MARKER = "restore-marker"
LIMIT = 120  # seconds for what systemd does by itself, such as finishing a restore that was killed
RUN_LIMIT = 120  # seconds until a flow run that nothing holds up has ended
ENDS = {"COMPLETED", "FAILED", "CRASHED", "CANCELLED"}


def until(what: str, wrong: Callable[[], Any], limit: float = LIMIT) -> None:
    """Wait until `wrong` has nothing to say.

    Raises:
        AssertionError: with the last thing that it said, if it still does after `limit` seconds.
    """
    deadline = time.monotonic() + limit
    while True:
        looked = time.monotonic()
        if not (seen := wrong()):
            return
        assert time.monotonic() < deadline, f"{what}: not within {limit} s; last seen: {seen}"
        # A look that costs much is made less often, or waiting is what keeps the machine from getting there.
        time.sleep(max(0.3, time.monotonic() - looked))


# --- running it --------------------------------------------------------------------------------------------------


@dataclass
class Outcome:
    """How a command of the tools ended: exit code, what it told a person (stderr), its JSON (stdout)."""

    exit: int
    said: str
    facts: dict[str, Any] = field(default_factory=dict)

    @property
    def joined(self) -> str:
        """All that was said, in one line."""
        return " ".join(self.said.split())


def _command(arguments: tuple[str, ...], environment: dict[str, str]) -> str:
    settings = " ".join(f"{name}={shlex.quote(value)}" for name, value in environment.items())
    return f"{settings} {shlex.join(arguments)}".strip()


def run(vps: Vps, *arguments: str, **environment: str) -> Outcome:
    """A command of the tools with --json, to its end, however that is."""
    done = vps.ssh(_command((*arguments, "--json"), environment), check=False)
    print(f"--- {shlex.join(arguments)}: {done.returncode}", done.stderr, sep="\n")
    return Outcome(done.returncode, done.stderr, json.loads(done.stdout) if done.stdout.startswith("{") else {})


def restore(vps: Vps, *arguments: str, **environment: str) -> Outcome:
    """prefect-restore, without questions."""
    return run(vps, "prefect-restore", *arguments, "--yes", **environment)


def restored(vps: Vps, *arguments: str, **environment: str) -> Outcome:
    """The same, which has to go well, and to leave nothing over."""
    outcome = restore(vps, *arguments, **environment)
    assert outcome.exit == 0, outcome.said
    # systemd forgets a unit a moment after it has ended.
    until("nothing left over", lambda: leftovers(vps))
    return outcome


def back_up(vps: Vps) -> str:
    """Make a backup; gives its id."""
    outcome = run(vps, "prefect-backup", "create")
    assert outcome.exit == 0, outcome.said
    return outcome.facts["id"]


def backups(vps: Vps) -> list[str]:
    """The ids of the backups of this host, newest first."""
    return run(vps, "prefect-restore", "--list").facts["backups"]


@contextmanager
def no_timers(vps: Vps) -> Iterator[None]:
    """No backup of the hour comes between, after a reboot neither."""
    vps.ssh(f"systemctl disable --now --quiet {TIMERS}")
    # A timer that was just enabled makes up at once for what it missed, and outlives its end: that run is waited for.
    services = TIMERS.replace(".timer", ".service")
    states = f"systemctl is-active {services}"
    until(
        "no backup at work", lambda: {"activating", "deactivating"} & set(vps.ssh(states, check=False).stdout.split())
    )
    try:
        yield
    finally:
        vps.ssh(f"systemctl enable --now --quiet {TIMERS}")


@contextmanager
def no_resumption(vps: Vps) -> Iterator[None]:
    """What is cut off stays so, as if the power had gone with it."""
    directory = "/run/systemd/system/prefect-restore.service.d"
    never = "[Unit]\nConditionPathExists=/not-now\n"
    vps.ssh(f"mkdir -p {directory} && cat > {directory}/test.conf && systemctl daemon-reload", text=never)
    try:
        yield
    finally:
        vps.ssh(f"rm -r {directory} && systemctl daemon-reload")


@contextmanager
def halted(vps: Vps, step: str, *arguments: str) -> Iterator[None]:
    """A restore that stands still where `step` begins, and goes on by itself after the block (if it is still there)."""
    command = _command(("prefect-restore", *arguments, "--yes"), {"PREFECT_BACKUPS_FAILPOINT": f"stop:{step}"})
    process = subprocess.Popen(
        vps.ssh_command(command), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    try:
        until(f"a restore that stands still at {step}", lambda: not_halted(vps))
        yield
    finally:
        vps.ssh(f"systemctl kill --signal=CONT '{UNITS}'", check=False)
        process.kill()
        process.communicate()


def not_halted(vps: Vps) -> str:
    """What the process of the restore does, if it does not stand still."""
    # One that died may still be known, with the process id 0.
    pid = f"$(systemctl show --property MainPID --value '{UNITS}' | grep '[1-9]' | head -1)"
    state = vps.ssh(f"cut -d ' ' -f 3 /proc/{pid}/stat", check=False).stdout.strip()
    return "" if state == "T" else state or "there is none"


# --- what is there afterwards ------------------------------------------------------------------------------------

_AT_WORK = f"""
test ! -e {STATE}/restore.json || echo "journal $(tr -d '\\n' < {STATE}/restore.json)"
systemctl list-units --plain --no-legend '{UNITS}' prefect-restore.service
"""
# A command in a container costs as much processor time as ten of these: run only when nothing is at work any more.
_LEFT = f"""
ls -A {STAGING} | sed 's/^/staging: /'
for unit in {WORKER} prefect-stack.service; do
  state=$(systemctl is-active $unit); test $state = active || echo "$unit $state"
done
health=$(docker inspect --format '{{{{.State.Health.Status}}}}' prefect-server)
test "$health" = healthy || echo "server $health"
docker exec prefect-postgres psql -U prefect -d postgres -Atc "SELECT 'database ' || datname FROM pg_database
  WHERE NOT datistemplate AND datname NOT IN ('postgres', 'prefect', 'prefect_previous')
  UNION ALL SELECT 'connection to ' || datname FROM pg_stat_activity
  WHERE application_name = 'prefect-backups'" || echo "no database answers"
"""


def leftovers(vps: Vps) -> list[str]:
    """What a restore should not leave, and what should run and does not; nothing when all is well."""
    done = vps.ssh(f'seen=$({_AT_WORK}) && test -z "$seen" || {{ echo "$seen"; exit 0; }}; {_LEFT}', check=False)
    return [*done.stdout.splitlines(), *done.stderr.splitlines()]


def databases(vps: Vps) -> set[str]:
    """The databases of ours."""
    said = psql(vps, "SELECT datname FROM pg_database WHERE datname LIKE 'prefect%'", database="postgres")
    return set(said.split())


# --- the world, through the public endpoint --------------------------------------------------------------------------


def mark(endpoint: Any, value: str) -> None:
    """Write into the live world which one it is."""
    if endpoint.get(f"/api/variables/name/{MARKER}").status_code == 404:
        endpoint.post("/api/variables/", {"name": MARKER, "value": value}).raise_for_status()
    else:
        endpoint.request("PATCH", f"/api/variables/name/{MARKER}", json={"value": value}).raise_for_status()


def marker(endpoint: Any) -> str:
    """Which world is served."""
    return endpoint.get(f"/api/variables/name/{MARKER}").raise_for_status().json()["value"]


def deployment(endpoint: Any, name: str) -> dict[str, Any]:
    """A deployment, by FLOW/NAME."""
    return endpoint.get(f"/api/deployments/name/{name}").raise_for_status().json()


def start_run(endpoint: Any, name: str, parameters: dict[str, Any] | None = None, at: str | None = None) -> str:
    """Ask for a run of a deployment, now or at a time (ISO 8601); gives its id."""
    body: dict[str, Any] = {"parameters": parameters or {}}
    if at is not None:
        body["state"] = {"type": "SCHEDULED", "state_details": {"scheduled_time": at}}
    path = f"/api/deployments/{deployment(endpoint, name)['id']}/create_flow_run"
    return endpoint.post(path, body).raise_for_status().json()["id"]


def flow_run(endpoint: Any, run: str) -> dict[str, Any]:
    return endpoint.get(f"/api/flow_runs/{run}").raise_for_status().json()


def state_of(endpoint: Any, run: str) -> str:
    """The name of a flow run's state."""
    return flow_run(endpoint, run)["state"]["name"]


def until_state(endpoint: Any, run: str, name: str) -> None:
    """Wait until a flow run is in a state."""
    until(f"{name} of the run {run}", lambda: "" if (now := state_of(endpoint, run)) == name else now, RUN_LIMIT)


def task_states(endpoint: Any, run: str) -> list[str]:
    """The states of a flow run's task runs."""
    found = endpoint.post("/api/task_runs/filter", {"flow_runs": {"id": {"any_": [run]}}}).raise_for_status().json()
    return [one["state_name"] for one in found]
