"""`scripts/bench pickup`: from `prefect deployment run` to Running, with the kit's worker and with `prefect worker start`."""

from __future__ import annotations

import argparse
import base64
import json
import random
import statistics
import time
from dataclasses import dataclass, field
from datetime import datetime

from _bench import console, step
from rich.table import Table

from tests.lab.runs import Runs
from tests.lab.vps.endpoint import Endpoint
from tests.lab.vps.vps import Vps

# The goals: of the floor, of stock, and of a core.
MOST_OF_FLOOR = 1.5
MOST_OF_STOCK = 0.5
MOST_IDLE_PERCENT = 2.0
SECONDS_IDLE = 60
STOCK = "bench-stock-worker.service"
ACCOUNT = "/run/bench-stock.env"
# What a process that runs a flow has imported by the time that it is Running; it then does nothing.
IMPORTS = "import prefect.engine, prefect.flow_engine, prefect.deployments.steps.core, prefect.client.orchestration"


@dataclass
class Figures:
    """Seconds by what was measured, percent of a core when idle, and what the seconds of the kit's runs went to."""

    seconds: dict[str, list[float]] = field(default_factory=lambda: {"kit": [], "stock": [], "floor": []})
    idle: dict[str, float] = field(default_factory=dict)
    parts: dict[str, list[float]] = field(default_factory=lambda: {"claimed": [], "submitting": [], "running": []})

    def quantile(self, name: str, share: float) -> float:
        values = sorted(self.seconds[name])
        return values[min(len(values) - 1, round(share * (len(values) - 1)))]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--runs", type=int, default=20, metavar="N", help="flow runs of each worker (default: 20)")


def _when(text: str) -> datetime:
    return datetime.fromisoformat(text.replace("Z", "+00:00"))


def _pick_up(runs: Runs, deployment: str, parts: dict[str, list[float]] | None) -> float:
    """Seconds from the making of a run to Running, by the server's own clock."""
    run = runs.start(deployment, parameters={"seconds": 0})
    done = runs.wait(run)
    states = (
        runs.endpoint.request("GET", "/api/flow_run_states/", params={"flow_run_id": run}).raise_for_status().json()
    )
    at = {state["name"]: _when(state["timestamp"]) for state in states}
    made = _when(done["created"])
    if parts is not None and "Pending" in at and "Running" in at:
        parts["claimed"].append((at["Pending"] - made).total_seconds())
        begun = at.get("Submitting", at["Pending"])
        parts["submitting"].append((begun - at["Pending"]).total_seconds())
        parts["running"].append((at["Running"] - begun).total_seconds())
    return (_when(done["start_time"]) - made).total_seconds()


def _floor(vps: Vps) -> float:
    """Seconds of a process with the flow's interpreter that imports what a flow run needs and does nothing."""
    script = f"import subprocess, sys, time; t = time.monotonic(); subprocess.run([sys.executable, '-c', '{IMPORTS}'], check=True); print(time.monotonic() - t)"
    python = "$(ls -d /opt/prefect/flows/releases/*/.venv/bin/python | tail -1)"
    return float(
        vps.ssh(
            f'cd /tmp && runuser -u prefect_general-1 -- env HOME=/tmp PREFECT_HOME=/tmp/bench {python} -c "{script}"'
        ).stdout
    )


def _processor(vps: Vps, unit: str) -> float:
    """Seconds of processor time that a unit has used so far, itself and its children."""
    pid = vps.ssh(f"systemctl show --property MainPID --value {unit}").stdout.strip()
    fields = vps.ssh(f"cat /proc/{pid}/stat").stdout.rpartition(")")[2].split()
    return sum(map(int, fields[11:15])) / 100


def _start_stock(vps: Vps, endpoint: Endpoint) -> None:
    """`prefect worker start` as the documentation has it, beside ours, with the same interpreter, and an account that may poll
    any work pool: a worker's may poll its own.
    """
    login = base64.b64encode(f"admin:{endpoint.passwords['admin']}".encode()).decode()
    headers = json.dumps({"Authorization": f"Basic {login}"})
    vps.ssh(f"umask 077 && cat > {ACCOUNT}", text=f"PREFECT_CLIENT_CUSTOM_HEADERS='{headers}'\n")
    words = "--uid=prefect_general-1 --collect -p StateDirectory=bench-stock -p EnvironmentFile=/etc/prefect/workers/general-1.env"
    words += f" -p EnvironmentFile={ACCOUNT} -E HOME=/var/lib/bench-stock"
    words += " -E PREFECT_HOME=/var/lib/bench-stock -E PREFECT_WORKER_WEBSERVER_PORT=8099"
    vps.ssh(f"systemctl stop {STOCK}", check=False)
    vps.ssh(
        f"systemd-run --unit={STOCK} {words} /opt/prefect/worker/venv/bin/prefect worker start --name stock --type process --pool stock"
    )


def measure(vps: Vps, endpoint: Endpoint, count: int, interval: float, seconds_idle: float) -> Figures:
    """The trials, in turns and up to `interval` seconds apart, and then a while in which both do nothing."""
    figures = Figures()
    if endpoint.get("/api/work_pools/stock").status_code == 404:
        endpoint.post("/api/work_pools/", {"name": "stock", "type": "process"}).raise_for_status()
    runs = Runs(vps, endpoint)
    try:
        with step("prefect worker start, beside ours"):
            _start_stock(vps, endpoint)
            kit, stock = runs.deployment("bench-kit"), runs.deployment("bench-stock", work_pool_name="stock")
            for deployment in kit, stock:
                _pick_up(runs, deployment, None)
        with step(f"{count} flow runs of each") as say:
            for number in range(count):
                figures.seconds["kit"].append(_pick_up(runs, kit, figures.parts))
                # Where in its interval the stock worker is, is chance.
                time.sleep(random.uniform(0, interval))
                figures.seconds["stock"].append(_pick_up(runs, stock, None))
                figures.seconds["floor"].append(_floor(vps))
                say(f"{number + 1} of {count}")
        with step(f"both idle for {seconds_idle:.0f} s"):
            units = {"kit": "prefect-worker@general-1.service", "stock": STOCK}
            before = {name: _processor(vps, unit) for name, unit in units.items()}
            time.sleep(seconds_idle)
            for name, unit in units.items():
                figures.idle[name] = (_processor(vps, unit) - before[name]) / seconds_idle * 100
    finally:
        vps.ssh(f"systemctl stop {STOCK}; rm --force {ACCOUNT}", check=False)
        runs.remove()
        endpoint.delete("/api/work_pools/stock")
    return figures


def run(vps: Vps, options: argparse.Namespace, endpoint: Endpoint) -> int:
    """Measure and print; gives the exit code, for which the goals do not count in a short run."""
    if options.short:
        figures = measure(vps, endpoint, 1, interval=0, seconds_idle=2)
    else:
        figures = measure(vps, endpoint, options.runs, interval=10, seconds_idle=SECONDS_IDLE)
    table = Table(title="From `prefect deployment run` to Running, in seconds")
    for column in ("", "p50", "p95", "idle, % of a core"):
        table.add_column(column, justify="left" if not column else "right")
    words = {"kit": "the kit's worker", "stock": "prefect worker start", "floor": "floor: imports, and nothing"}
    for name, text in words.items():
        idle = f"{figures.idle[name]:.2f}" if name in figures.idle else ""
        table.add_row(text, f"{figures.quantile(name, 0.5):.2f}", f"{figures.quantile(name, 0.95):.2f}", idle)
    console.print(table)
    middle = {name: statistics.median(values) for name, values in figures.parts.items() if values}
    console.print(
        "The kit's seconds, medians: "
        + ", ".join(f"{middle.get(name, 0):.2f} {text}" for name, text in (("claimed", "until claimed (event, fetch)"), ("submitting", "until submitted"), ("running", "process start, imports, API calls")))
    )  # fmt: skip
    floor, stock, idle = (
        figures.quantile("kit", 0.5) / figures.quantile("floor", 0.5),
        figures.quantile("kit", 0.5) / figures.quantile("stock", 0.5),
        figures.idle["kit"],
    )
    well = True
    for text, value, most in (
        ("p50 of the floor", floor, MOST_OF_FLOOR),
        ("p50 of stock", stock, MOST_OF_STOCK),
        ("% of a core, idle", idle, MOST_IDLE_PERCENT),
    ):
        met = value <= most
        well = well and met
        console.print(f"{'[green]met[/]   ' if met else '[red]missed[/]'} {text}: {value:.2f} (goal: at most {most})")
    console.print_json(json.dumps({"seconds": figures.seconds, "idle": figures.idle}))
    return 0 if well or options.short else 1
