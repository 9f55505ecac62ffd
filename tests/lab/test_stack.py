"""The role stack: containers that may do little, are healthy, and keep to themselves."""

from __future__ import annotations

import json
import re
import shlex
import time
import uuid

import pytest

from tests.lab.restores import until
from tests.lab.runs import Runs
from tests.lab.seed import psql

# A worker's event, for each flow run that it holds.
HEARTBEAT = "prefect-worker.flow-run.alive"
CONTAINERS = {
    "prefect-postgres": {"CAP_CHOWN", "CAP_DAC_READ_SEARCH", "CAP_FOWNER", "CAP_SETGID", "CAP_SETUID"},
    "prefect-server": set(),
    "prefect-caddy": {"CAP_NET_BIND_SERVICE"},
}


def inspect(host, name):
    return json.loads(host.check_output(f"docker inspect {name}"))[0]


@pytest.mark.parametrize("name", CONTAINERS)
def test_a_container_is_healthy_and_bounded(host, name):
    found = inspect(host, name)
    assert found["State"]["Health"]["Status"] == "healthy"
    assert found["HostConfig"]["RestartPolicy"]["Name"] == "unless-stopped"
    assert found["HostConfig"]["LogConfig"]["Type"] == "journald"


def test_every_service_has_its_share_of_memory_and_processes(host):
    """As compose understands its file: the lab's kernel may have no memory controller, and the engine then says 0."""
    words = "docker compose --env-file /etc/prefect/stack.env -f /opt/prefect/compose/compose.yml config --format json"
    services = json.loads(host.check_output(words))["services"]
    assert {name: int(service["mem_limit"]) > 0 for name, service in services.items()} == {
        "postgres": True,
        "server": True,
        "caddy": True,
    }
    limits = {"postgres": 150, "server": 512, "caddy": 512}
    assert {name: service["pids_limit"] for name, service in services.items()} == limits
    # The same of that controller, and the engine then says nothing.
    for name, limit in limits.items():
        assert inspect(host, f"prefect-{name}")["HostConfig"]["PidsLimit"] in (limit, None)


def test_every_network_has_the_bridge_that_the_firewall_knows(host):
    for network, bridge in (("database", "prefect-db"), ("api", "prefect-api"), ("edge", "prefect-edge")):
        options = json.loads(host.check_output(f"docker network inspect prefect_{network}"))[0]["Options"]
        assert options["com.docker.network.bridge.name"] == bridge
        assert host.interface(bridge).exists
    # None of the kit's is called by its id.
    assert not re.search(r"br-[0-9a-f]", host.file("/etc/nftables.d/prefect.nft").content_string)


@pytest.mark.parametrize(("name", "capabilities"), CONTAINERS.items())
def test_a_container_may_do_little(host, name, capabilities):
    found = inspect(host, name)["HostConfig"]
    assert found["ReadonlyRootfs"] is True
    assert "no-new-privileges:true" in found["SecurityOpt"]
    assert found["CapDrop"] == ["ALL"]
    added = {word if word.startswith("CAP_") else f"CAP_{word}" for word in found["CapAdd"] or []}
    assert added == capabilities
    assert found["Privileged"] is False


@pytest.mark.parametrize("name", CONTAINERS)
def test_no_process_of_a_container_is_root(host, name):
    """As the kernel sees it: the user and the effective capabilities of every process inside."""
    pids = host.check_output(f"docker top {name} -eo pid").split()[1:]
    assert pids
    for pid in pids:
        # A health check of a moment ago may be gone by now.
        status = dict(
            line.split(":\t", 1) for line in host.run(f"cat /proc/{pid}/status").stdout.splitlines() if ":\t" in line
        )
        if status:
            assert status["Uid"].split()[1] != "0", f"{name}: {status['Name']} runs as root"
            assert status["NoNewPrivs"] == "1"


def test_only_caddy_publishes_ports(host):
    for name in CONTAINERS:
        published = {port for port, where in inspect(host, name)["NetworkSettings"]["Ports"].items() if where}
        assert published == ({"80/tcp", "443/tcp"} if name == "prefect-caddy" else set()), name


def test_the_host_itself_reaches_neither_server_nor_database(host):
    """The host has no address in their networks: what runs on it, flows for instance, has to come through the reverse proxy."""
    for name in ("prefect-server", "prefect-postgres"):
        for network in inspect(host, name)["NetworkSettings"]["Networks"].values():
            route = host.check_output(f"ip route get {network['IPAddress']}")
            # By a gateway, so out of the host; a network of the host's own would be reached directly.
            assert " via " in route, f"{name}: {route}"


def test_the_server_reaches_nothing_outside(host):
    """Not by a setting: the network has no way out, which is what keeps telemetry and update checks in."""
    code = "import socket; socket.create_connection(('1.1.1.1', 443), 3)"
    assert host.run(f'docker exec prefect-server python -c "{code}"').rc != 0


def test_no_secret_is_in_an_environment_or_readable(vps, host, inventory_secrets):
    # Of the host's own making.
    inventory_secrets = inventory_secrets | {
        "encryption_key": host.file("/etc/prefect/secrets/encryption_key").content_string.strip()
    }
    for name in CONTAINERS:
        spoken = host.check_output(f"docker inspect {name}")
        for path, secret in inventory_secrets.items():
            assert secret not in spoken, f"{path} in docker inspect {name}"
    listing = host.check_output("find /etc/prefect -type f -printf '%m %u %p\\n'")
    for line in listing.splitlines():
        mode, _, path = line.split()
        if path != "/etc/prefect/stack.env":
            assert mode in {"400", "600"}, line
    assert host.run("runuser -u prefect_general-1 -- cat /etc/prefect/stack.env").rc != 0
    processes = host.check_output("cat /proc/[0-9]*/cmdline | tr '\\0' ' '")
    for path, secret in inventory_secrets.items():
        assert secret not in processes, f"{path} on a command line"
    assert "ENCRYPTION_KEY" not in host.check_output("cat /proc/[0-9]*/environ | tr '\\0' ' '")
    assert psql(vps, "SELECT count(*) FROM configuration WHERE key = 'ENCRYPTION_KEY'") == "0"


# What the server's database password must not do, tried with it: each is to be refused for lack of privilege.
FORBIDDEN = (
    "COPY flow TO PROGRAM 'id'",
    "COPY flow TO '/tmp/flow'",
    "SELECT pg_read_file('/etc/passwd')",
    "SELECT lo_import('/etc/passwd')",
    "SELECT rolpassword FROM pg_authid",
    "CREATE ROLE mine LOGIN",
    "ALTER ROLE prefect_server SUPERUSER",
    "ALTER ROLE prefect PASSWORD 'mine'",
    "SET ROLE prefect",
    "SET SESSION AUTHORIZATION prefect",
    "GRANT pg_execute_server_program TO prefect_server",
    "CREATE DATABASE mine",
    "CREATE EXTENSION file_fdw",
    "CREATE FUNCTION mine() RETURNS int LANGUAGE c AS 'libc.so.6', 'getpid'",
    "ALTER SYSTEM SET archive_command = 'id'",
    "ALTER DATABASE prefect SET session_preload_libraries = 'mine'",
    "DROP DATABASE postgres",
)
# In the server's container, which has the password. Gives the SQLSTATE of each, and the answer to the superuser's name.
INTRUDER = """
import asyncio, asyncpg, json, sys

async def main():
    said = {}
    mine = await asyncpg.connect(host="postgres", user="prefect_server", database="prefect")
    for statement in json.loads(sys.argv[1]):
        try:
            await mine.execute(statement)
            said[statement] = "done"
        except asyncpg.PostgresError as error:
            said[statement] = error.sqlstate
    password = open("/run/secrets/server_pgpass").read().strip().rpartition(":")[2]
    try:
        await asyncpg.connect(host="postgres", user="prefect", database="prefect", password=password)
        said["prefect"] = "done"
    except asyncpg.PostgresError as error:
        said["prefect"] = error.sqlstate
    print(json.dumps(said))

asyncio.run(main())
"""


def test_the_server_has_its_database_and_nothing_else(host):
    words = shlex.join(["docker", "exec", "prefect-server", "python", "-c", INTRUDER, json.dumps(FORBIDDEN)])
    # insufficient_privilege, and invalid_password: the superuser has none.
    expected = {statement: "42501" for statement in FORBIDDEN} | {"prefect": "28P01"}
    assert json.loads(host.check_output(words)) == expected
    owners = "SELECT DISTINCT relowner::regrole FROM pg_class WHERE relnamespace = 'public'::regnamespace"
    assert host.check_output(f'docker exec prefect-postgres psql -U prefect -AtXc "{owners}"') == "prefect_server"
    assert not host.file("/etc/prefect/secrets/pgpass").exists


def test_postgres_is_tuned_to_the_host(host):
    def setting(name):
        return host.check_output(f"docker exec prefect-postgres psql -U prefect -AtXc 'SHOW {name}' prefect")

    assert setting("max_connections") == "50"
    # A quarter of a quarter of the host's memory, between 96 and 1,024 MB.
    memory = int(host.check_output("awk '/MemTotal/ {print $2}' /proc/meminfo")) // 1024
    share = min(max(memory // 4, 384), 4096) // 4
    assert setting("shared_buffers") == ("1GB" if share == 1024 else f"{share}MB")
    assert setting("data_checksums") == "on"


def test_retention_is_on(host):
    environment = dict(word.split("=", 1) for word in inspect(host, "prefect-server")["Config"]["Env"])
    assert environment["PREFECT_SERVER_EVENTS_RETENTION_PERIOD"] == "7 days"
    assert environment["PREFECT_SERVER_SERVICES_DB_VACUUM_RETENTION_PERIOD"] == "90 days"
    assert environment["PREFECT_SERVER_SERVICES_DB_VACUUM_ENABLED"] == "events,flow_runs"


def test_systemd_owns_the_stack(host):
    unit = host.service("prefect-stack.service")
    assert unit.is_enabled and unit.is_running
    host.run_expect(
        [0], "docker compose --env-file /etc/prefect/stack.env -f /opt/prefect/compose/compose.yml config -q"
    )


def test_our_units_are_valid_and_confined(host, capsys):
    """systemd-analyze verify says nothing of any unit, and `security` no more than 3.0."""
    names = host.check_output("ls /etc/systemd/system | grep -E '^prefect-.*[.](service|timer)$'").split()
    assert {"prefect-stack.service", "prefect-worker@.service", "prefect-deploy@.service"} <= set(names)
    release = host.check_output("ls /opt/prefect/flows/releases").split()[0]
    scores = {}
    for name in names:
        instance = release if name.startswith("prefect-deploy@") else "general-1"
        unit = name.replace("@.", f"@{instance}.")
        assert host.check_output(f"systemd-analyze verify /etc/systemd/system/{unit} 2>&1") == "", unit
        if name.endswith(".service"):
            scores[unit] = json_score(host, unit)
    with capsys.disabled():
        print("\nsystemd-analyze security:", ", ".join(f"{unit} {score}" for unit, score in scores.items()))
    assert max(scores.values()) <= 3.0


def json_score(host, unit):
    """The exposure that systemd computes, from 0 (best) to 10."""
    said = host.run(f"systemd-analyze security --no-pager {unit}").stdout
    return float(next(line for line in said.splitlines() if "Overall exposure level" in line).split(":")[1].split()[0])


# $1 is a line of the audit, as the server writes it.
FORGED = """
printf 'MESSAGE=%s\\nPRIORITY=6\\nCONTAINER_NAME=prefect-server\\nCONTAINER_TAG=prefect-server\\n' "$1" | logger --journald
"""
# What the server prints or logs, whatever is in it: to stdout and to stderr of its process.
LOGGED = """
for one in /proc/[0-9]*; do
    case $(readlink $one/exe) in *python*) ;; *) continue ;; esac
    grep -q /serve.py $one/cmdline || continue
    printf 'log\\n%s\\n' "$1" >$one/fd/1
    printf 'log\\n%s\\n' "$1" >$one/fd/2
    echo written
done
"""


def test_who_did_what_is_kept_and_cannot_be_forged(vps, host, endpoint, access_log):
    """A change, and a refusal, by the names of what they were about; of what only looks like such lines there is none."""
    mark = uuid.uuid4().hex[:8]
    id = endpoint.post(f"/api/variables/?token=hush-{mark}", {"name": f"x_{mark}", "value": "hush"}).json()["id"]
    worker = next(name for name in endpoint.passwords if name.startswith("worker-"))
    assert endpoint.delete(f"/api/variables/{id}", user=worker).status_code == 403
    assert endpoint.delete(f"/api/variables/{id}").status_code == 204
    forged = json.dumps({"audit": 1, "time": "2026-01-01T00:00:00.000+00:00", "account": f"forged-{mark}", "name": "x"})
    for user in ("nobody", "root"):
        vps.ssh(f"runuser --user {user} -- sh -c {shlex.quote(FORGED)} _ {shlex.quote(forged)}")
    said = vps.ssh(f"docker exec prefect-server sh -c {shlex.quote(LOGGED)} _ {shlex.quote(forged)}").stdout
    assert said.split() == ["written"]
    written = f"journalctl --since -2min -o cat --grep forged-{mark} --quiet | wc -l"
    until("all four are in the journal", lambda: "" if (count := host.check_output(written)) == "4" else count, 20)

    host.run_expect([0], "systemctl start prefect-audit.service")
    text = host.check_output(f"prefect-audit --json --object x_{mark}")
    assert [(one["account"], one["what"], one["status"]) for one in json.loads(text)] == [
        ("admin", f"create variable x_{mark}", 201),
        (worker, f"delete variable x_{mark}", 403),
        ("admin", f"delete variable x_{mark}", 204),
    ]
    (address,) = {one["address"] for one in json.loads(text)}
    assert address in {line["request"]["remote_ip"] for line in access_log(60) if id in line["request"]["uri"]}
    kept = host.check_output("cat /var/lib/prefect/audit/*.jsonl")
    assert f"x_{mark}" in kept and "forged" not in kept and "hush" not in kept and "hush" not in str(access_log(60))
    assert all(password not in kept for password in endpoint.passwords.values())
    assert "forged" not in host.check_output("prefect-audit --json --limit 0")
    assert (
        host.check_output("stat -c '%U %a' /var/lib/prefect/audit /var/lib/prefect/audit/*.jsonl").splitlines()[0]
        == "root 700"
    )


def test_a_change_that_does_not_work_is_taken_back(host, playbook):
    """Here an image that is there, but is no Caddy: found after the first files were written."""
    state = (
        "cat /etc/prefect/stack.env /etc/prefect/caddy/* /opt/prefect/caddy/* /opt/prefect/compose/*.yml | sha256sum"
    )
    before = host.check_output(state), [inspect(host, name)["State"]["StartedAt"] for name in CONTAINERS]
    image = host.check_output("docker inspect --format '{{.Config.Image}}' prefect-postgres")
    version = inspect(host, "prefect-server")["Config"]["Image"].partition(":")[2].partition("-")[0]
    host.check_output(f"docker tag {image} caddy:none")
    try:
        run = playbook(
            "site.yml",
            *("--tags", "stack", "-e", "prefect_caddy_image=caddy:none"),
            # Without the preflight, which has nothing to do with this, but for what it would have found.
            *("-e", f"__prefect_running_version={version}"),
            *("--start-at-task", "Make the system users of the containers"),
            check=False,
        )
    finally:
        host.check_output("docker rmi caddy:none")
    assert run.returncode != 0
    assert "The new configuration of the stack does not work." in run.joined
    assert "It was taken back: the former files are in their places again, and the stack runs with them." in run.joined
    assert (host.check_output(state), [inspect(host, name)["State"]["StartedAt"] for name in CONTAINERS]) == before
    assert "CADDY_IMAGE=caddy:none" in host.check_output("tar -xOf /var/lib/prefect/refused.tar etc/prefect/stack.env")


def test_a_start_on_a_slow_machine_is_no_hung_one_and_takes_no_run_for_dead(vps, host, endpoint):
    """On an eighth of a core it takes two minutes: whatever watches it lets it, it ends well, and a flow run of that time,
    for which no heartbeat was heard for longer than workers_crash_seconds, goes on.
    """
    runs = Runs(vps, endpoint)
    try:
        run = runs.start(runs.deployment("through-a-slow-start", "child"))
        runs.logged(run, "all are there", limit=60)
        with vps.throttled(0.13):
            began = time.monotonic()
            vps.ssh("systemctl restart prefect-stack", timeout=1500)
            print(f"the start took {time.monotonic() - began:.0f} s")
        for name in CONTAINERS:
            found = inspect(host, name)
            assert (found["State"]["Health"]["Status"], found["RestartCount"]) == ("healthy", 0), name
        # That it is, or is not, taken for dead comes of its next heartbeat.
        heard = f"SELECT count(*) FROM events WHERE resource_id = 'prefect.flow-run.{run}' AND event = '{HEARTBEAT}'"
        before = int(psql(vps, heard))
        until("its next heartbeat", lambda: "" if int(psql(vps, heard)) > before else "none yet")
        time.sleep(3)
        assert runs.states(run)[-1] == "Running"
        # What it waits for.
        vps.ssh("pkill -f '^sleep 31337'")
        assert runs.wait(run, "Completed")["run_count"] == 1
    finally:
        runs.remove()
