"""A work pool of type docker: each flow run in a fresh container of the release's image, and nothing of it left.

The pool, its worker and flows of the test's own are put on the main VPS by extra variables, and taken away at the end.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.lab import outside

ROOT = Path(__file__).parents[2]
WORKER = "containers-1"
USER = f"prefect_{WORKER}"
UNIT = f"prefect-docker-worker@{WORKER}.service"
TOOL = "/usr/local/sbin/prefect-flows-image"
TAGS = ("--tags", "stack,workers,flows")
ENDED = ("Completed", "Failed", "Crashed", "Cancelled")

FLOW = '''
import json
import os
import socket
import sys
import time
from pathlib import Path

from prefect import flow, get_run_logger

MARK = "one"
PROBE


@flow
def contained(seconds: float = 0, tries: list = ()) -> None:
    """Say where it runs and how what it tries ends, then take its time."""
    status = dict(line.split(":\\t", 1) for line in Path("/proc/self/status").read_text().splitlines() if ":\\t" in line)
    said = {"mark": MARK, "hostname": socket.gethostname(), "uid": os.getuid(), "python": sys.executable}
    said |= {name: status[name] for name in ("CapEff", "CapBnd", "NoNewPrivs")}
    said |= {"tried": probe(tries)}
    get_run_logger().info("contained %s", json.dumps(said))
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        time.sleep(0.2)
'''.replace("PROBE", outside.PROBE)
PREFECT_YAML = """
prefect-version: 3.8.8
name: contained
pull:
  - prefect.deployments.steps.set_working_directory:
      directory: "{{ $RELEASE_DIRECTORY }}"
deployments:
  - name: contained
    entrypoint: contained.py:contained
    version: "{{ $FLOWS_VERSION }}"
    work_pool:
      name: containers
      job_variables:
        image: "{{ $FLOWS_IMAGE }}"
        env: {RELEASE_DIRECTORY: "{{ $FLOWS_DIRECTORY }}"}
"""


class Runs:
    """Flow runs of the deployment contained/contained, by the API."""

    def __init__(self, endpoint) -> None:
        self.endpoint = endpoint

    def deployment(self) -> dict[str, Any]:
        return self.endpoint.get("/api/deployments/name/contained/contained").json()

    def start(self, seconds: float = 0, tries: Sequence[list[Any]] = (), **job_variables: Any) -> str:
        body = {"parameters": {"seconds": seconds, "tries": tries}, "job_variables": job_variables}
        return self.endpoint.post(f"/api/deployments/{self.deployment()['id']}/create_flow_run", body).json()["id"]

    def cancel(self, run: str) -> None:
        self.endpoint.post(f"/api/flow_runs/{run}/set_state", {"state": {"type": "CANCELLING", "name": "Cancelling"}})

    def state(self, run: str) -> str:
        return self.endpoint.get(f"/api/flow_runs/{run}").json()["state"]["name"]

    def wait(self, run: str, *names: str, timeout: float = 120) -> str:
        """The name of the run's state, as soon as it is one of these or the run has ended."""
        end = time.monotonic() + timeout
        while (state := self.state(run)) not in (*names, *ENDED) and time.monotonic() < end:
            time.sleep(0.5)
        return state

    def said(self, run: str, timeout: float = 60) -> dict[str, Any]:
        """What the flow said of itself."""
        end = time.monotonic() + timeout
        while time.monotonic() < end:
            query = {"logs": {"flow_run_id": {"any_": [run]}}, "limit": 200}
            for line in self.endpoint.post("/api/logs/filter", query).json():
                if line["message"].startswith("contained {"):
                    return json.loads(line["message"].removeprefix("contained "))
            time.sleep(0.5)
        pytest.fail(f"the run {run} says nothing; it is {self.state(run)}")


@pytest.fixture(scope="module")
def flows(tmp_path_factory) -> Path:
    directory = tmp_path_factory.mktemp("docker") / "flows"
    directory.mkdir()
    (directory / "contained.py").write_text(FLOW)
    (directory / "prefect.yaml").write_text(PREFECT_YAML)
    # No Dockerfile: the kit's is for those who bring none.
    shutil.copy(ROOT / "flows" / "requirements.txt", directory)
    return directory


@pytest.fixture(scope="module")
def settings(flows) -> tuple[str, str]:
    """The extra variables that add the pool and its worker."""
    general = {
        "name": "general",
        "queues": [{"name": n, "priority": p} for p, n in enumerate(("high", "default", "low"), 1)],
    }
    return (
        "--extra-vars",
        json.dumps(
            {
                "prefect_work_pools": [general, {"name": "containers", "type": "docker"}],
                "prefect_workers": [
                    {"name": "general-1", "pool": "general", "limit": 4},
                    {"name": WORKER, "pool": "containers"},
                ],
                "flows_pool": "general",
                "flows_directory": str(flows),
                # In the place of the kit's own flows.
                "flows_remove_deployments": True,
                # Everything here, image and flow runs, goes with it.
                "workers_egress": "listed",
                "workers_egress_names": [outside.LISTED_NAME],
                "workers_egress_networks": outside.NETWORKS,
            }
        ),
    )


def parts(host) -> list[str]:
    """What there is of the docker pool on the host."""
    paths = [
        TOOL,
        f"/etc/systemd/system/{UNIT.replace(WORKER, '')}",
        "/etc/prefect/docker-workers",
        "/opt/prefect/docker",
    ]
    found = [path for path in paths if host.file(path).exists]
    found += ["the user"] if host.user(USER).exists else []
    return found + host.check_output("docker image ls --quiet prefect-flows").split()


def test_it_is_off_unless_asked_for(host, vps):
    """Access to Docker's socket is root."""
    assert parts(host) == []
    assert host.check_output("getent group docker | cut -d: -f4") == ""


@pytest.fixture
def beyond(host) -> Iterator[outside.Outside]:
    made = outside.Outside(host)
    yield made
    made.down()


@pytest.fixture(scope="module")
def runs(playbook, settings, endpoint, host, aloud) -> Runs:
    with aloud("a docker pool, its worker and its image"):
        playbook("site.yml", *TAGS, *settings)
    unit = f"prefect-deploy@{Runs(endpoint).deployment()['version']}.service"
    # Of the last time that it ran.
    built = host.check_output(f"journalctl --unit {unit} --invocation=0 --output short-unix --no-pager")
    times = [float(line.split()[0]) for line in built.splitlines() if " env[" in line]
    with aloud(f"the image was built and checked in {max(times) - min(times):.0f} s"):
        return Runs(endpoint)


def container_of(host, run: str) -> dict[str, Any] | None:
    """The container of a run as `docker inspect` has it; only root and the group docker may ask."""
    found = host.check_output(f"docker ps --all --quiet --filter label=io.prefect.flow-run-id={run}")
    # It may go between the two.
    inspected = host.run(f"docker inspect {found}") if found else None
    return json.loads(inspected.stdout)[0] if inspected and inspected.rc == 0 else None


def gone(host, run: str, timeout: float = 30) -> bool:
    end = time.monotonic() + timeout
    while (there := container_of(host, run)) and time.monotonic() < end:
        time.sleep(0.5)
    return not there


def test_the_worker_has_the_socket_and_nothing_else(runs, host):
    pid = host.check_output(f"systemctl show --property MainPID --value {UNIT}")
    status = host.check_output(f"cat /proc/{pid}/status")
    fields = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
    assert fields["Uid"].split()[0] == str(host.user(USER).uid)
    docker, own = str(host.group("docker").gid), fields["Gid"].split()[0]
    assert docker in fields["Groups"].split()
    assert set(fields["Groups"].split()) <= {docker, own}
    assert int(fields["CapEff"], 16) == int(fields["CapBnd"], 16) == 0
    assert (fields["NoNewPrivs"], fields["Seccomp"]) == ("1", "2")
    # By the unit alone: whatever else runs as a worker's user has no such group.
    assert host.check_output("getent group docker | cut -d: -f4") == ""
    assert "OK" in host.check_output(f"systemd-analyze security --no-pager {UNIT} | tail -1")
    # The worker's unit and what stands beside the deploying one.
    deploy = f"prefect-deploy@{runs.deployment()['version']}.service"
    assert host.run(f"systemd-analyze verify {UNIT} {deploy}").stderr == ""


def test_each_run_has_a_container_of_its_own(runs, host, access_log):
    first, second = runs.start(), runs.start()
    assert [runs.wait(run) for run in (first, second)] == ["Completed", "Completed"]
    said = [runs.said(run) for run in (first, second)]
    names = {entry["hostname"] for entry in said} | {host.check_output("hostname")}
    assert len(names) == 3
    for entry in said:
        assert (entry["uid"], entry["python"]) == (64202, "/opt/flows/.venv/bin/python")
        assert int(entry["CapEff"], 16) == int(entry["CapBnd"], 16) == 0
        assert entry["NoNewPrivs"] == "1"
    assert gone(host, first) and gone(host, second)
    # Through the reverse proxy, under the worker's name, from the containers' network.
    subnet = json.loads(host.check_output("docker network inspect prefect-flows"))[0]["IPAM"]["Config"][0]["Subnet"]
    of_worker = [line for line in access_log(120) if line.get("user_id") == f"worker-{WORKER}"]
    assert any(run in line["request"]["uri"] for line in of_worker for run in (first, second))
    assert subnet.startswith("172.")


def test_a_flow_run_sends_only_where_it_may(runs, host, beyond):
    """Its host's name server is one that would answer it, on the loopback, where Docker's engine asks by itself."""
    beyond.resolve()
    # The file before has asked for the name, too, and was refused.
    for name in ("names4", "refused4", "refused6"):
        host.check_output(f"nft flush set inet prefect-egress {name}")
    tries = [one for one, _ in outside.TRIES]
    run = runs.start(tries=tries)
    assert runs.wait(run) == "Completed"
    ended = list(zip(tries, runs.said(run)["tried"], strict=True))
    assert [
        (one, how) for (one, how), (_, allowed) in zip(ended, outside.TRIES, strict=True) if how not in allowed
    ] == []
    # By ping and UDP a flow does not learn that it was refused.
    assert beyond.arrived() == {outside.LISTED, outside.LISTED_ADDRESS}
    assert "tunnel" not in beyond.asked() and "below" not in beyond.asked()
    found = json.loads(host.run("prefect-doctor --json").stdout)["findings"]
    (refused,) = [one for one in found if one["check"] == "egress of flows"]
    assert refused["level"] == "WARNING" and f"flow containers to {outside.STRANGER}:443/tcp" in refused["measured"]


@pytest.fixture
def opened_template(endpoint) -> Iterator[None]:
    """Somebody has changed the work pool at the API: its containers may have all of the host."""
    pool = "/api/work_pools/containers"
    template = endpoint.get(pool).json()["base_job_template"]
    kwargs = {"user": "0:0", "pid_mode": "host", "cap_add": ["ALL"]}
    asked = {"volumes": ["/:/host"], "privileged": True, "networks": [], "network_mode": "host"}
    opened = {**template["job_configuration"], **asked, "container_create_kwargs": kwargs}
    change = {"base_job_template": {**template, "job_configuration": opened}}
    assert endpoint.request("PATCH", pool, json=change).status_code == 204
    yield
    assert endpoint.request("PATCH", pool, json={"base_job_template": template}).status_code == 204


def test_neither_deployment_nor_template_can_ask_for_the_host(runs, host, opened_template):
    """What a container may have is the worker's host's to say; the account is in its environment, and in no argument."""
    run = runs.start(seconds=12, volumes=["/:/host"], privileged=True, network_mode="host", mem_limit="300m")
    assert runs.wait(run, "Running") == "Running"
    container = container_of(host, run)
    limits = container["HostConfig"]
    assert (limits["Privileged"], limits["CapDrop"], limits["NetworkMode"]) == (False, ["ALL"], "prefect-flows")
    assert limits["SecurityOpt"] == ["no-new-privileges:true"]
    assert (container["Config"]["User"], limits["PidMode"], limits["CapAdd"]) == ("64202:64202", "", None)
    assert [(mount["Destination"], mount["RW"]) for mount in container["Mounts"]] == [("/opt/prefect/ca.crt", False)]
    variables = dict(line.split("=", 1) for line in container["Config"]["Env"])
    assert "Basic " in variables["PREFECT_CLIENT_CUSTOM_HEADERS"]
    assert "PREFECT_HOME" not in variables
    secret = variables["PREFECT_CLIENT_CUSTOM_HEADERS"].split("Basic ")[1].split('"')[0]
    assert secret not in host.check_output("cat /proc/[0-9]*/cmdline 2>/dev/null | tr '\\0' ' ' || true")
    assert host.run(f"runuser -u prefect_general-1 -- docker inspect {container['Id']}").rc != 0
    assert runs.wait(run) == "Completed"


def test_a_killed_container_is_a_crash_and_a_cancelled_one_is_none(runs, host, endpoint):
    killed, cancelled = runs.start(seconds=300), runs.start(seconds=300)
    assert [runs.wait(run, "Running") for run in (killed, cancelled)] == ["Running", "Running"]
    host.check_output(f"docker kill {container_of(host, killed)['Id']}")
    runs.cancel(cancelled)
    assert runs.wait(killed, timeout=30) == "Crashed"
    assert "137" in endpoint.get(f"/api/flow_runs/{killed}").json()["state"]["message"]
    assert runs.wait(cancelled, timeout=60) == "Cancelled"
    assert gone(host, killed) and gone(host, cancelled, timeout=60)


def test_a_new_worker_takes_up_the_containers_of_a_dead_one(runs, host):
    ends, dies = runs.start(seconds=25), runs.start(seconds=300)
    assert [runs.wait(run, "Running") for run in (ends, dies)] == ["Running", "Running"]
    host.check_output(f"systemctl kill --signal=KILL {UNIT}")
    # The engine's restart leaves containers alone; whoever watches them must not lose them.
    deadline = time.monotonic() + 60
    while "Taking up" not in host.check_output(f"journalctl --unit {UNIT} --since -60s --output cat --no-pager"):
        assert time.monotonic() < deadline
        time.sleep(1)
    host.check_output("systemctl restart docker")
    host.check_output(f"docker kill {container_of(host, dies)['Id']}")
    assert runs.wait(dies, timeout=60) == "Crashed"
    assert runs.wait(ends, timeout=60) == "Completed"
    assert gone(host, dies) and gone(host, ends)


def images(host) -> dict[str, str]:
    """Why each image stays, by its release."""
    lines = [line.split("\t") for line in host.check_output(f"{TOOL} list").splitlines()]
    return {name.removeprefix("prefect-flows:"): reason for name, reason in lines}


def test_the_next_run_has_the_new_image_and_a_running_one_its_own(runs, host, flows, playbook, settings):
    old = runs.deployment()["version"]
    running = runs.start(seconds=1200)
    assert runs.wait(running, "Running") == "Running"
    (flows / "contained.py").write_text(FLOW.replace('"one"', '"two"'))
    done = playbook("site.yml", *TAGS, *settings)
    # Nothing of pools, workers, accounts: the same settings again change nothing.
    assert not {name for name in done.changed_tasks if "docker" in name or "worker" in name or "pool" in name}
    new = runs.deployment()["version"]
    assert new != old
    after = runs.start()
    assert runs.wait(after) == "Completed"
    assert runs.said(after)["mark"] == "two"
    assert gone(host, after)
    # Only the last one is to stay, but the run that goes on has the other.
    host.check_output(f"{TOOL} prune --keep 1")
    assert images(host) == {old: "a container uses it", new: "deployed"}
    assert 'MARK = "one"' in host.check_output(f"docker exec {container_of(host, running)['Id']} cat contained.py")
    runs.cancel(running)
    assert runs.wait(running) == "Cancelled"
    assert gone(host, running)
    host.check_output(f"{TOOL} prune --keep 1")
    assert images(host) == {new: "deployed"}
    assert host.check_output("docker image ls --quiet --filter dangling=true") == ""


def test_a_release_that_does_not_import_in_its_image_is_refused(runs, host):
    """Beside the server's own environment there is the image's, and both must do."""
    before = runs.deployment()
    here, bad = f"/opt/prefect/flows/releases/{before['version']}", "/opt/prefect/flows/releases/bad"
    host.check_output(
        f"cp -a {here} {bad} && printf 'import os\\nif os.getuid() == 64202:\\n    import no_such\\n' >> {bad}/contained.py"
    )
    try:
        assert host.run("systemctl start prefect-deploy@bad.service").rc != 0
        journal = host.check_output("journalctl --unit prefect-deploy@bad.service --output cat --no-pager")
        assert "No module named 'no_such'" in journal
        assert 'the flows of the release "bad" do not import in its image' in journal
        assert "bad" not in images(host)
        assert runs.deployment()["job_variables"] == before["job_variables"]
    finally:
        host.check_output(f"rm -r {bad}; systemctl reset-failed prefect-deploy@bad.service || true")


def test_an_edited_template_stays(runs, endpoint, playbook, settings):
    pool = endpoint.get("/api/work_pools/containers").json()
    edited = json.loads(json.dumps(pool["base_job_template"]))
    edited["variables"]["properties"]["mem_limit"]["default"] = "2g"
    endpoint.request("PATCH", "/api/work_pools/containers", json={"base_job_template": edited})
    done = playbook("site.yml", "--tags", "workers", *settings)
    assert done.recap["changed"] == 0, done.changed_tasks
    assert 'the work pool "containers" keeps its base job template' in done.joined
    endpoint.request("PATCH", "/api/work_pools/containers", json={"base_job_template": pool["base_job_template"]})


def test_it_goes_as_it_came(runs, playbook, host, endpoint):
    deployment = runs.deployment()
    last = runs.start(seconds=20)
    assert runs.wait(last, "Running") == "Running"
    playbook("site.yml", *TAGS, "--extra-vars", "flows_remove_deployments=true")
    # Its worker, and the account, were there to the end.
    assert runs.state(last) == "Completed"
    endpoint.delete(f"/api/deployments/{deployment['id']}")
    endpoint.delete("/api/work_pools/containers")
    assert parts(host) == []
    assert host.run("docker network inspect prefect-flows").rc != 0
    assert host.check_output("getent group docker | cut -d: -f4") == ""
    assert host.check_output("systemctl --failed --plain --no-legend") == ""
    again = playbook("site.yml", *TAGS)
    assert again.recap["changed"] == 0, again.changed_tasks
