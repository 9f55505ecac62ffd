"""The day it is installed: site.yml on a bare VPS, and what later runs of it say and do."""

from __future__ import annotations

import json
import re

import pytest

from tests.lab.runs import Runs
from tests.lab.vps.playbook import STACK_EFFECTS

STRANGER = "a-worker-of-a-long-name-such-as"


def test_first_run_reaches_the_end(vps, first_run, endpoint):
    assert first_run.recap["failed"] == 0
    assert first_run.recap["changed"] > 0
    # The smoke flow's own words, counted through the public endpoint from here.
    assert re.search(r"Smoke flow run .*: Completed in [\d.]+ s, 3 task runs and 4 log lines", first_run.joined)
    # It is the kit's own: whichever flows the server is given, it is proven, and backed up after that.
    own = endpoint.get("/api/deployments/name/prefect-kit/smoke").raise_for_status().json()
    runs = (
        endpoint.post("/api/flow_runs/filter", {"deployments": {"id": {"any_": [own["id"]]}}}).raise_for_status().json()
    )
    assert {run["state_name"] for run in runs} == {"Completed"}
    assert "releases" not in str(own["pull_steps"]) + str(own["job_variables"])
    assert re.search(r"Backups\s+newest \d{8}T\d{6}Z", first_run.joined)


def test_second_run_changes_nothing(vps, playbook):
    again = playbook("site.yml")
    assert again.recap["changed"] == 0, again.changed_tasks
    assert again.recap["failed"] == 0


def test_check_mode_has_nothing_to_report_on_a_provisioned_host(vps, playbook, first_run, inventory_secrets):
    checked = playbook("site.yml", "--check", "--diff", "-vvv")
    assert checked.recap["changed"] == 0, checked.changed_tasks
    assert checked.recap["failed"] == 0
    # Nor does it, at its most talkative, nor did the first run tell a secret.
    spoken = checked.stdout + first_run.stdout
    for path, secret in inventory_secrets.items():
        assert secret not in spoken, path


def test_check_mode_tells_the_truth(vps, playbook, host):
    """What --check says would change does change, and nothing changes before."""
    vps.ssh("printf '\\n# a stray line\\n' >> /opt/prefect/caddy/Caddyfile; rm /etc/apt/apt.conf.d/20auto-upgrades")
    checked = playbook("site.yml", "--check", "--diff", "--tags", "host,stack")
    assert "-# a stray line" in checked.stdout
    assert not host.file("/etc/apt/apt.conf.d/20auto-upgrades").exists
    assert host.file("/opt/prefect/caddy/Caddyfile").contains("a stray line")
    applied = playbook("site.yml", "--tags", "host,stack")
    # Nothing is put into effect in check mode, so there is nothing to note either.
    assert {*checked.changed_tasks} - STACK_EFFECTS == {*applied.changed_tasks} - STACK_EFFECTS
    assert not host.file("/opt/prefect/caddy/Caddyfile").contains("a stray line")


def test_a_run_that_was_cut_off_is_made_up_for(vps, playbook):
    """Files that were written but not put into effect: what runs is compared with them, not with what a run changed."""
    vps.ssh("echo cut off | tee /var/lib/prefect/applied /etc/prefect/workers/general-1.applied > /dev/null")
    after = playbook("site.yml", "--tags", "stack,workers")
    assert {"Apply the changes of the stack", "Restart changed workers"} <= {*after.changed_tasks}
    assert playbook("site.yml", "--tags", "stack,workers").recap["changed"] == 0


def test_secrets_on_the_control_machine_are_for_its_user_only(vps, inventory_directory):
    for path in (inventory_directory / "secrets").rglob("*"):
        mode = path.stat().st_mode & 0o777
        assert mode == (0o700 if path.is_dir() else 0o600), f"{path} is {mode:o}"


@pytest.mark.parametrize("tag", ["host", "docker", "stack", "workers", "flows", "checks"])
def test_each_role_has_its_tag(tag, list_tasks):
    """--tags ROLE runs that role, after the preflight, and no other."""
    # Ansible looks at each role's arguments whatever the tag.
    lines = [line for line in list_tasks("--tags", tag).splitlines() if " : " in line and "arg spec" not in line]
    roles = {line.split(" : ")[0].strip() for line in lines}
    # Docker workers are workers, too; and workers whose accounts the reverse proxy is about to forget are stopped before. When workers
    # have a new password, or trust a new authority, the stack's part of that ends (docs/rotation.md).
    more = {"workers": {"docker_pool", "stack"}, "stack": {"workers"}}
    assert roles == {"preflight", tag} | more.get(tag, set())


def try_the_walls(vps, host, endpoint):
    """What a flow run gets at of another worker's, and what the workers of its own work pool get at."""
    runs = Runs(vps, endpoint)
    try:
        guarded = runs.start(runs.deployment("guarded", flow="guarded", work_pool_name="strangers"))
        runs.logged(guarded, "process ", 60)
        victim = {
            "pid": int(runs.said(guarded).split("process ")[1].split()[0]),
            "worker": STRANGER,
            "pool": "strangers",
        }
        pried = runs.start(runs.deployment("prying", flow="prying"), parameters=victim)
        runs.wait(pried, "Completed")
        runs.logged(pried, "tried 19, got at []; results: ")
        assert "'kept'" in runs.said(pried) and "guarded" not in runs.said(pried)
        host.check_output(f"touch /var/lib/prefect-worker/{STRANGER}/go")
        runs.wait(guarded, "Completed")
        # Another worker of the same pool reads and writes what this one has computed.
        host.check_output(
            "pid=$(systemctl show --property MainPID --value prefect-worker@second); uid=$(id -u prefect_second); "
            "groups=$(sed -n 's/^Groups:\\s*//p' /proc/$pid/status | xargs | tr ' ' ,); "
            "nsenter --target $pid --mount setpriv --reuid $uid --regid $uid --groups $groups "
            "sh -c 'cd /var/lib/prefect-results && test -s kept && echo >> kept'"
        )
    finally:
        runs.remove()


def test_what_leaves_the_inventory_leaves_the_host(vps, playbook, host, endpoint):
    """A user and workers are added, then removed again: nothing of them stays. While they are there, no flow gets at another's."""
    more = {
        "prefect_users": [{"name": "admin", "kind": "person"}, {"name": "grace", "kind": "person"}],
        "prefect_workers": [
            {"name": "general-1", "pool": "general", "limit": 4},
            {"name": "second", "pool": "general", "queues": ["high", "low"]},
            # Of a name too long for a user's.
            {"name": STRANGER, "pool": "strangers", "secrets": {"GUARDED": "walls"}},
        ],
        "prefect_work_pools": [
            {
                "name": "general",
                "queues": [{"name": name, "priority": at} for at, name in enumerate(("high", "default", "low"), 1)],
            },
            {"name": "strangers"},
        ],
    }
    added = playbook("site.yml", "--tags", "stack,workers", "--extra-vars", json.dumps(more))
    assert added.recap["failed"] == 0
    unit = host.service("prefect-worker@second.service")
    assert unit.is_running and unit.is_enabled
    assert endpoint.get("/api/admin/version", user="grace").status_code == 200
    # Another worker's arrival restarts nobody else.
    assert "Restart changed workers" not in added.changed_tasks or "general-1" not in "".join(
        re.findall(r"Restart changed workers.*?(?=\nTASK|\nPLAY|\Z)", added.stdout, re.DOTALL)
    )

    try_the_walls(vps, host, endpoint)

    removed = playbook("site.yml", "--tags", "stack,workers")
    assert removed.recap["failed"] == 0
    assert not unit.is_running and not unit.is_enabled
    assert host.check_output("ls /etc/prefect/workers").split() == [
        "general-1.applied",
        "general-1.env",
        "general-1.secret.env",
    ]
    assert host.check_output("ls /var/lib/prefect-worker") == "general-1"
    assert re.findall("^prefect_.*", host.check_output("getent passwd | cut -d: -f1"), re.MULTILINE) == [
        "prefect_general-1"
    ]
    endpoint.delete("/api/work_pools/strangers")
    # Their work pools keep what they have left; it is nobody's who comes later.
    assert host.check_output(r"find /var/lib/prefect-results -name guarded -printf '%u %g %m\n'") == "root root 666"
    host.check_output("rm -r /var/lib/prefect-results/strangers")
    assert "grace" not in host.file("/etc/prefect/caddy/users.caddy").content_string
    # The password still lies in the secrets directory, which the run says, and is of no use any more.
    assert 'NOTE: the account "grace" is not in the inventory, and its password is still in' in removed.joined
    assert 'NOTE: the account "worker-second" is not in the inventory' in removed.joined
    assert endpoint.get("/api/admin/version", user="grace").status_code == 401
    assert playbook("site.yml", "--tags", "stack,workers").recap["changed"] == 0
