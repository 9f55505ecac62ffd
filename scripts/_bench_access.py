"""`scripts/bench access`: what roles and audit cost, and the whole public endpoint (Caddy, TLS, password, roles), beside Prefect's bare server."""

from __future__ import annotations

import argparse
import base64
import json
import shlex
import statistics
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import httpx
from _bench import console, new_table, step

from tests.lab.vps.endpoint import Endpoint
from tests.lab.vps.vps import Vps

# The goals: what the gate adds at the median, in milliseconds, and which share of the bare server's throughput the public endpoint keeps.
MOST_ADDED_MS = 2.0
LEAST_OF_BARE = 0.9
LOAD = Path(__file__).with_name("_bench_access_load.py")
#: A second and a third process in the server's container, without background services: Prefect's alone, and with the gate. The
#: reverse proxy is led to the latter, so that all three ways end in servers that do the same work: the first process has the
#: background services, and stores the event of each change of a state.
PORTS = {"bare": 4210, "gate": 4211}
#: In the network of the server's container.
LEAD = f"""
set -e
pid=$(docker inspect --format '{{{{.State.Pid}}}}' prefect-server)
nsenter --target="$pid" --net nft 'add table ip bench; add chain ip bench led {{ type nat hook prerouting priority dstnat; }}
    add rule ip bench led tcp dport 4200 redirect to :{PORTS["gate"]}'
docker restart prefect-caddy > /dev/null
"""
LEAD_BACK = """
pid=$(docker inspect --format '{{.State.Pid}}' prefect-server)
nsenter --target="$pid" --net nft delete table ip bench 2> /dev/null && docker restart prefect-caddy > /dev/null || true
"""
START = """
import sys
if {gate}:
    sys.path.append("/opt/prefect-start")
    from access import wall
    sys.path.pop()
    wall.build()
import runpy
sys.argv[1:] = ["server", "start", "--no-services", "--host", "0.0.0.0" if {gate} else "127.0.0.1", "--port", "{port}"]
runpy.run_module("prefect", run_name="__main__", alter_sys=True)
"""
WAIT = """
import sys, time, urllib.request
for _ in range(120):
    try:
        urllib.request.urlopen(sys.argv[1], timeout=2)
        break
    except OSError:
        time.sleep(1)
else:
    sys.exit("no server")
"""
SECONDS_TO_ANSWER = 30
#: Of all roles the one for which most is looked at.
WORKER = "worker-general-1"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--rounds", type=int, default=3, metavar="N", help="rounds, of which the best counts (default: 3)"
    )
    parser.add_argument("--seconds", type=float, default=5.0, metavar="N", help="seconds of each figure (default: 5)")


def _in_server(vps: Vps, option: str, *words: str, **more: Any) -> str:
    """Python in the server's container; gives its output."""
    return vps.ssh(shlex.join(["docker", "exec", option, "prefect-server", "python3", "-P", *words]), **more).stdout


def _start(vps: Vps) -> None:
    """Both servers, and wait until they answer."""
    for name, port in PORTS.items():
        _in_server(vps, "--detach", "-c", START.format(gate=name == "gate", port=port))
    for port in PORTS.values():
        _in_server(vps, "--interactive", "-c", WAIT, f"http://127.0.0.1:{port}/api/health", timeout=180)
    vps.ssh(LEAD)


def _stop(vps: Vps) -> None:
    vps.ssh(LEAD_BACK)
    # The brackets keep the pattern from matching the shell that it stands in.
    vps.ssh("pkill --full '[-]-no-services.*--port' || true")


def _wait(endpoint: Endpoint) -> None:
    """Wait until the reverse proxy, started again, answers. Raises httpx.HTTPError after 30 s."""
    end = time.monotonic() + SECONDS_TO_ANSWER
    while True:
        try:
            endpoint.get("/api/health").raise_for_status()
        except httpx.HTTPError:
            if time.monotonic() > end:
                raise
            time.sleep(0.3)
        else:
            return


def _plan(vps: Vps, options: argparse.Namespace, endpoint: Endpoint, run: str) -> dict[str, Any]:
    domain = vps.domain or vps.address
    login = base64.b64encode(f"{WORKER}:{endpoint.passwords[WORKER]}".encode()).decode()
    # What the proxy says of a request of the worker's.
    forwarded = {"X-Prefect-Account": WORKER, "X-Forwarded-For": "192.0.2.1"}
    return {
        "domain": domain,
        "run": run,
        "rounds": 1 if options.short else options.rounds,
        "seconds": 1.0 if options.short else options.seconds,
        "works": ["read", "write", "events"],
        "clients": [1, 8, 64],
        "ways": [
            {"name": "bare", "url": f"http://127.0.0.1:{PORTS['bare']}", "headers": {}},
            {"name": "gate", "url": f"http://127.0.0.1:{PORTS['gate']}", "headers": forwarded},
            {"name": "public", "url": "https://caddy", "headers": {"Host": domain, "Authorization": f"Basic {login}"}},
        ],
    }


def run(vps: Vps, options: argparse.Namespace, endpoint: Endpoint) -> int:
    """Measure and print; gives the exit code, for which the goals do not count in a short run."""
    deployment = endpoint.get("/api/deployments/name/hello/hello").raise_for_status().json()
    made = endpoint.post(f"/api/deployments/{deployment['id']}/create_flow_run", {}).raise_for_status().json()
    with step("two further servers, with and without roles"):
        _start(vps)
        _wait(endpoint)
    try:
        with step("reads, changes of state and events, by 1, 8 and 64 clients") as say:
            plan = _plan(vps, options, endpoint, made["id"])
            say(f"{len(plan['works']) * len(plan['clients']) * len(plan['ways']) * plan['rounds']} figures")
            said = _in_server(vps, "--interactive", "-", json.dumps(plan), text=LOAD.read_text(), timeout=3600)
    finally:
        _stop(vps)
        _wait(endpoint)
        endpoint.delete(f"/api/flow_runs/{made['id']}")
    met = report([json.loads(line) for line in said.splitlines() if line.startswith("{")])
    return 0 if met or options.short else 1


def report(lines: list[dict[str, Any]]) -> bool:
    """The table, and whether the goals are met."""
    rates: dict[tuple[str, int], dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    medians: dict[tuple[str, int], dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for line in lines:
        rates[line["work"], line["clients"]][line["way"]].append(line["rate"])
        medians[line["work"], line["clients"]][line["way"]].append(line["median"])
    ratios, times = ("roles ÷", "public ÷"), ("bare ms", "roles ms", "public ms")
    table = new_table(
        "As a worker; the best of each", "", "clients", "bare /s", "roles /s", "public /s", *ratios, *times
    )
    kept, added = [], []
    for (work, clients), found in rates.items():
        best = {name: max(values) for name, values in found.items()}
        quickest = {name: min(values) for name, values in medians[work, clients].items()}
        shares = [best["gate"] / best["bare"], best["public"] / best["bare"]]
        if clients > 1:
            kept.append(shares[1])
        elif work != "events":
            added.append(quickest["gate"] - quickest["bare"])
        table.add_row(
            work,
            str(clients),
            *(f"{best[name]:,.0f}" for name in ("bare", "gate", "public")),
            *(f"{share:.2f}" for share in shares),
            *(f"{quickest[name]:,.1f}" for name in ("bare", "gate", "public")),
        )
    console.print(table)
    hung_up = {way: sum(line["failed"] for line in lines if line["way"] == way) for way in ("bare", "gate", "public")}
    if any(hung_up.values()):
        console.print("Hung up by a busy server: " + ", ".join(f"{way} {count}" for way, count in hung_up.items()))
    console.print(
        f"Roles add {max(added):.2f} ms at the median to one client (goal: less than {MOST_ADDED_MS:g}); with 8 and 64 clients"
        f" the public endpoint keeps {min(kept):.2f} to {max(kept):.2f} of the bare server's throughput, at the mean"
        f" {statistics.mean(kept):.2f} (goal: {LEAST_OF_BARE:g})."
    )
    return max(added) < MOST_ADDED_MS and min(kept) >= LEAST_OF_BARE
