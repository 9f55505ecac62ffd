"""The role workers: unprivileged, confined, with an account of their own, taking what their pool gives."""

from __future__ import annotations

import json

import pytest

UNIT = "prefect-worker@general-1.service"


@pytest.fixture(scope="module")
def main_pid(host, vps):
    return int(host.check_output(f"systemctl show --property MainPID --value {UNIT}"))


def test_the_worker_runs_as_nobody_important(host, main_pid):
    status = dict(
        line.split(":\t", 1) for line in host.check_output(f"cat /proc/{main_pid}/status").splitlines() if ":\t" in line
    )
    assert status["Uid"].split()[0] == str(host.user("prefect_general-1").uid)
    assert int(status["CapEff"], 16) == int(status["CapBnd"], 16) == 0
    assert status["NoNewPrivs"] == "1"
    assert status["Seccomp"] == "2"
    assert host.user("prefect_general-1").shell == "/usr/sbin/nologin"


def test_the_worker_comes_back_without_limit(host):
    shown = host.check_output(f"systemctl show {UNIT} --property Restart --property StartLimitIntervalUSec")
    assert "Restart=always" in shown
    assert "StartLimitIntervalUSec=0" in shown


def test_the_health_endpoint_is_on_loopback_only(host, main_pid):
    host.run_expect(
        [0],
        "curl --fail --silent http://127.0.0.1:8080/health || python3 -c 'import urllib.request as u; u.urlopen(\"http://127.0.0.1:8080/health\", timeout=5)'",
    )
    assert not host.socket("tcp://0.0.0.0:8080").is_listening


def test_the_worker_has_an_account_of_its_own(host, endpoint, access_log):
    """Its requests stand in the access log under its name, and only that account's password is known to it."""
    assert any(line.get("user_id") == "worker-general-1" for line in access_log(60))
    said = host.check_output("cat /etc/prefect/workers/general-1.secret.env")
    assert endpoint.passwords["admin"] not in said


def test_pools_and_queues_are_as_the_inventory_says(endpoint):
    pool = endpoint.get("/api/work_pools/general").json()
    assert (pool["type"], pool["concurrency_limit"]) == ("process", None)
    queues = {
        queue["name"]: queue["priority"] for queue in endpoint.post("/api/work_pools/general/queues/filter", {}).json()
    }
    assert queues == {"high": 1, "default": 2, "low": 3}
    workers = endpoint.post("/api/work_pools/general/workers/filter", {}).json()
    assert {worker["name"]: worker["status"] for worker in workers}["general-1"] == "ONLINE"


def test_a_pool_follows_the_inventory(playbook, endpoint):
    """Limits, priorities and a new pool; then back."""
    pools = [
        {
            "name": "general",
            "concurrency_limit": 7,
            "queues": [
                {"name": "low", "priority": 1},
                {"name": "default", "priority": 2, "concurrency_limit": 3},
                {"name": "high", "priority": 3},
            ],
        },
        {"name": "gpu", "queues": [{"name": "default", "priority": 1}]},
        {"name": "cluster", "type": "kubernetes", "job_defaults": {"memory_limit": "2Gi"}},
    ]
    more = ("--tags", "workers", "--extra-vars", json.dumps({"prefect_work_pools": pools}))
    assert playbook("site.yml", *more).changed_tasks == ["Make the work pools and their queues"]
    assert playbook("site.yml", *more).recap["changed"] == 0
    assert endpoint.get("/api/work_pools/general").json()["concurrency_limit"] == 7
    queues = endpoint.post("/api/work_pools/general/queues/filter", {}).json()
    assert {q["name"]: (q["priority"], q["concurrency_limit"]) for q in queues} == {
        "low": (1, None),
        "default": (2, 3),
        "high": (3, None),
    }
    template = endpoint.get("/api/work_pools/cluster").json()["base_job_template"]
    assert template["variables"]["properties"]["memory_limit"]["default"] == "2Gi"
    # Prefect's variables have stayed what they are, and nothing in it is a password.
    assert template["job_configuration"]["job_manifest"]["metadata"]["namespace"] == "{{ namespace }}"
    assert template["job_configuration"]["env"]["PREFECT_CLIENT_CUSTOM_HEADERS"] is None
    assert playbook("site.yml", "--tags", "workers").recap["failed"] == 0
    assert endpoint.get("/api/work_pools/general").json()["concurrency_limit"] is None
    for name in "gpu", "cluster":
        endpoint.delete(f"/api/work_pools/{name}")


def test_a_pool_cannot_change_its_type(playbook):
    pools = [{"name": "general", "type": "docker", "queues": []}]
    done = playbook(
        "site.yml",
        "--tags",
        "workers",
        "-e",
        json.dumps({"prefect_work_pools": pools, "prefect_workers": []}),
        check=False,
    )
    assert done.returncode != 0
    assert (
        'Refusing to change the work pool "general": it is of type "process", not "docker", and Prefect cannot change '
        "a pool's type. Give the pool another name in prefect_work_pools."
    ) in done.joined
    assert done.recap["changed"] == 0
