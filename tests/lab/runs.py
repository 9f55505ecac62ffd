"""What tests of workers share: flows of their own on the VPS, deployments of them, and what becomes of a flow run."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from tests.lab.restores import ENDS, until
from tests.lab.vps.vps import Vps

FLOWS = "/opt/lab-flows"
RUN_LIMIT = 120  # seconds until a flow run that nothing holds up has come as far as it should
CODE = '''
import ctypes, os, re, socket, subprocess, sys, time
from pathlib import Path
from prefect import flow, get_run_logger, task

def told(flow, flow_run, state):
    """A hook: leaves word of what it ran with, and a program in the background."""
    subprocess.Popen(["setsid", "sleep", "31339"])
    (Path.home() / f"hook-{flow_run.name}").write_text(f"{state.type.value} {sys.executable} {os.environ['PREFECT_HOME']}")

def leave_programs():
    """Two programs whose parent is gone, one of them in a session of its own; both have this process's output."""
    subprocess.run("setsid sleep 31337 & sleep 31338 &", shell=True)

@flow(log_prints=True)
def leaves():
    """Normal end; and what a run sees of the host."""
    leave_programs()
    print("interfaces:", len(socket.if_nameindex()))
    # As libzmq does in each of its threads; it aborts when this is refused.
    os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))
    print("scheduling: set")
    print("devices:", [name for name in os.listdir("/dev") if name.startswith("nvidia")])
    if os.path.exists("/dev/nvidia0"):
        open("/dev/nvidia0", "r+b").close()
        print("opened")

@flow(on_cancellation=[told], on_crashed=[told])
def child(abort: bool = False):
    """Programs in the background and one that is waited for, when the run is cancelled or its process dies."""
    leave_programs()
    get_run_logger().info("all are there")
    if abort:
        os.abort()
    subprocess.run(["bash", "-c", "sleep 31337; true"])

@flow(timeout_seconds=3)
def times_out():
    leave_programs()
    time.sleep(60)

@flow
def slow(seconds: float = 10):
    """Log every second."""
    logger = get_run_logger()
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        logger.info("still here")
        time.sleep(min(1, max(0, end - time.monotonic())))
    logger.info("to the end")

@task(persist_result=True, result_storage_key="kept")
def kept():
    return "computed once"

@flow
def guarded():
    """Leave a word wherever a flow can, for everybody to read and write who comes that far, and wait."""
    home, results = Path.home(), Path(os.environ["PREFECT_LOCAL_STORAGE_PATH"])
    for place in (home, results, Path("/tmp"), Path("/var/tmp"), Path("/dev/shm")):
        (place / "guarded").write_text(os.environ["GUARDED"])
        (place / "guarded").chmod(0o666)
    server = socket.socket(socket.AF_UNIX)
    server.bind(str(home / "guarded.sock"))
    server.listen()
    get_run_logger().info("process %s", os.getpid())
    while not (home / "go").exists():
        time.sleep(0.2)

@flow
def prying(pid: int, worker: str, pool: str):
    """Try to get at another worker's flow run, and at what everybody shares; say what has not failed."""
    kept()
    libc = ctypes.CDLL(None, use_errno=True)
    def trace():
        if libc.ptrace(16, pid, 0, 0):
            raise OSError(ctypes.get_errno(), "ptrace")
    state, results = f"/var/lib/prefect-worker/{worker}", os.environ["PREFECT_LOCAL_STORAGE_PATH"]
    # The other unit's control group, by the path of this one.
    own = re.search("(?m)^0::(/.*?[.]service)", Path("/proc/self/cgroup").read_text())[1]
    group = Path(re.sub("@.*[.]service", f"@{worker}.service", f"/sys/fs/cgroup{own}"))
    assert (group / "cgroup.controllers").exists()
    attempts = {
        "state": lambda: os.listdir(state),
        "file": lambda: open(f"{state}/guarded"),
        "socket": lambda: socket.socket(socket.AF_UNIX).connect(f"{state}/guarded.sock"),
        "runtime": lambda: os.listdir(f"/run/prefect-worker/{worker}"),
        "account": lambda: open(f"/etc/prefect/workers/{worker}.secret.env"),
        "process": lambda: os.stat(f"/proc/{pid}"),
        "environment": lambda: open(f"/proc/{pid}/environ"),
        "signal": lambda: os.kill(pid, 0),
        "trace": trace,
        "group": lambda: (group / "cgroup.procs").write_text(str(os.getpid())),
        "kill": lambda: (group / "cgroup.kill").write_text("1"),
        "results": lambda: open(f"{results}/guarded"),
        "results of the pool": lambda: os.listdir(f"{results}/{pool}"),
        "/tmp": lambda: open("/tmp/guarded"),
        "/var/tmp": lambda: open("/var/tmp/guarded"),
        "/dev/shm": lambda: open("/dev/shm/guarded"),
        "program": lambda: open("/opt/prefect/worker/program/__main__.py", "a"),
        "release": lambda: open(f"{sys.prefix}/guarded", "w"),
        "unit": lambda: open("/etc/systemd/system/prefect-worker@.service", "a"),
    }
    got = []
    for name, attempt in attempts.items():
        try:
            attempt()
            got.append(name)
        except OSError:
            pass
    get_run_logger().info("tried %s, got at %s; results: %s", len(attempts), got, sorted(os.listdir(results)))

@flow
def stubborn(seconds: float = 10):
    """Hold Python's lock, so that no other thread of the process gets a turn: no heartbeat of the flow's own."""
    import re
    logger = get_run_logger()
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        # One call of about 20 s that never lets go; catastrophic backtracking, on purpose.
        re.match(r"(a+)+$", "a" * 28 + "b")
    logger.info("to the end")

@flow
def greedy(chunk: int = 20_000_000, limit: int = 3_000_000_000):
    """Take memory until somebody puts an end to it (here at the latest at 3 GB)."""
    leave_programs()
    taken = []
    while sum(map(len, taken)) < limit:
        taken.append(b"x" * chunk)
        time.sleep(0.05)

@flow
def hoarder(chunk: int = 10_000_000, limit: int = 1_000_000_000):
    """Write until somebody puts an end to it (here at the latest at 1 GB)."""
    with open(Path.home() / "hoard", "wb") as file:
        for _ in range(limit // chunk):
            file.write(b"x" * chunk)
            time.sleep(0.1)

@flow
def parent(seconds: float = 10):
    """A subflow in the same process, and programs in the background."""
    leave_programs()
    slow(seconds)

@flow
def chatty(seconds: float = 10):
    """One subflow after the other: some requests in each moment."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        slow(0.1)
'''


class Runs:
    """Deployments of the flows above, made by the API, and their runs."""

    def __init__(self, vps: Vps, endpoint: Any) -> None:
        self.vps = vps
        self.endpoint = endpoint
        self._made: list[str] = []
        vps.ssh(f"mkdir -p {FLOWS} && cat > {FLOWS}/lab.py <<'END'\n{CODE}\nEND\nchmod -R a+rX {FLOWS}")

    def deployment(self, name: str, flow: str = "slow", **more: Any) -> str:
        """A deployment of one of the flows; gives its id. `more` is added to what is sent to the API."""
        smoke = self.endpoint.get("/api/deployments/name/smoke/smoke").raise_for_status().json()
        flow_id = self.endpoint.post("/api/flows/", {"name": flow}).raise_for_status().json()["id"]
        body = {
            "name": name,
            "flow_id": flow_id,
            "entrypoint": f"lab.py:{flow}",
            "pull_steps": [{"prefect.deployments.steps.set_working_directory": {"directory": FLOWS}}],
            "work_pool_name": "general",
            "job_variables": smoke["job_variables"],
            **more,
        }
        made = self.endpoint.post("/api/deployments/", body).raise_for_status().json()["id"]
        self._made.append(made)
        return made

    def start(self, deployment: str, **more: Any) -> str:
        """A run of a deployment; gives its id. `more`: name, tags, work_queue_name, …; `parameters` too."""
        return (
            self.endpoint.post(f"/api/deployments/{deployment}/create_flow_run", more).raise_for_status().json()["id"]
        )

    def read(self, run: str) -> dict[str, Any]:
        return self.endpoint.get(f"/api/flow_runs/{run}").raise_for_status().json()

    def wait(self, run: str, *names: str, limit: float = RUN_LIMIT) -> dict[str, Any]:
        """Wait until a run's state has one of the names; any end, when none is given. Gives the run."""

        def wrong() -> str:
            try:
                found = self.read(run)
            except Exception as error:
                return repr(error)
            here = found["state"]["name"]
            if here in names or (not names and found["state"]["type"] in ENDS):
                return ""
            if found["state"]["type"] in ENDS:
                raise AssertionError(f"{found['name']} is {here} ({found['state']['message']}), not {names}")
            return f"{here} {found['state']['message']}"

        until(f"the run to be {' or '.join(names) or 'at its end'}", wrong, limit)
        return self.read(run)

    def of(self, deployment: str) -> list[dict[str, Any]]:
        """The runs of a deployment, as they were made."""
        body = {"deployments": {"id": {"any_": [deployment]}}, "sort": "ID_DESC"}
        found = self.endpoint.post("/api/flow_runs/filter", body).raise_for_status().json()
        return sorted(found, key=lambda run: run["created"])

    def states(self, run: str) -> list[str]:
        """The names of all the states that a run has had."""
        found = (
            self.endpoint.request("GET", "/api/flow_run_states/", params={"flow_run_id": run}).raise_for_status().json()
        )
        return [state["name"] for state in sorted(found, key=lambda state: state["timestamp"])]

    def said(self, run: str) -> str:
        """The logs of a run."""
        body = {"logs": {"flow_run_id": {"any_": [run]}}, "sort": "TIMESTAMP_ASC", "limit": 200}
        return "\n".join(
            line["message"] for line in self.endpoint.post("/api/logs/filter", body).raise_for_status().json()
        )

    def logged(self, run: str, text: str, limit: float = 30) -> None:
        """Wait until a text stands in the logs of a run."""
        until(f'"{text}" in the logs', lambda: "" if text in self.said(run) else self.said(run) or "no logs", limit)

    def forget(self, deployment: str) -> None:
        """Remove a deployment, and then its runs: a schedule would make new ones."""
        found = self.of(deployment)
        self.endpoint.delete(f"/api/deployments/{deployment}")
        for run in found:
            self.endpoint.delete(f"/api/flow_runs/{run['id']}")
        self._made.remove(deployment)

    def remove(self) -> None:
        """Remove the deployments and their runs."""
        for deployment in list(self._made):
            self.forget(deployment)


def timed(what: str, do: Callable[[], Any], table: dict[str, float]) -> Any:
    """Do something and note in a table how many seconds it took."""
    began = time.monotonic()
    done = do()
    table[what] = round(time.monotonic() - began, 1)
    return done
