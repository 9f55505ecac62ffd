"""A second host that only runs workers: made beside the server, apart from it, cut off, destroyed, and gone.

The main VPS is the server; these tests follow one another, and the server is as it was at the end.
"""

from __future__ import annotations

import base64
import json
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.lab import backups, outside, watching
from tests.lab.conftest import Aloud, Endpoint, host_of
from tests.lab.people import Person, gateway
from tests.lab.vps import images, inventory
from tests.lab.vps.playbook import STACK_EFFECTS, PlaybookRun
from tests.lab.vps.vps import Vps

NAME = "worker-a"
SERVERS_WORKER = "general-1"  # takes four runs at a time
WORKERS = [{"name": "far-1", "pool": "general", "limit": 2}, {"name": "far-2", "pool": "general", "queues": ["low"]}]
# Neither has anything to do with other hosts, and a run takes long enough.
QUICKLY = ("--skip-tags", "docker,backups")
RUN_SECONDS = 60  # longer than to start the runs, and the cut
EFFECTS = (*STACK_EFFECTS, "Write the recovery kit")
CUT_SECONDS = 40
LONG_CUT_SECONDS = 150  # workers_crash_seconds is 90 in the lab
BACK_WITHIN = 90  # seconds from the end of that until what has been given up has ended
PROCESSES = "pgrep --full '[p]refect.engine' || true"
# What the other host's account finds at /status: the names of the checks that it goes by.
ASKED = """/opt/prefect/backups/venv/bin/python - <<'END'
import json, sys
sys.path.insert(0, "/opt/prefect/backups/current")
from prefect_watch import elsewhere
from prefect_watch.settings import Server
with open("/etc/prefect/watch/settings.json") as file:
    print([one.check for one in elsewhere.look(Server(**json.load(file)["server"])) if not one.pending])
END"""
OLDER = [f"/opt/prefect/backups/{kind}/0123456789ab" for kind in ("releases", "venvs")]
WRONG_CLOCK = """Environment=LD_PRELOAD=/usr/lib/x86_64-linux-gnu/faketime/libfaketime.so.1 FAKETIME=+90s
"""
ROOT = Path(__file__).parents[2]
# Seconds from the loss of a host until its runs are Crashed. The window is 90, and it is 92 on an idle machine; this is a guard
# against hanging.
CRASHED_WITHIN = 240
RERUN_WITHIN = 60  # and from then until the new run is Running elsewhere


def until(what: str, wrong: Callable[[], str], limit: float) -> float:
    """Wait until `wrong` has nothing to say; gives the seconds that it took."""
    began = time.monotonic()
    while seen := wrong():
        assert time.monotonic() - began < limit, f"{what}: not within {limit} s; last seen: {seen}"
        time.sleep(0.5)
    return time.monotonic() - began


class Runs:
    """A deployment that takes its time, its runs, and which worker has which."""

    def __init__(self, endpoint: Endpoint) -> None:
        self.endpoint = endpoint
        smoke = endpoint.get("/api/deployments/name/smoke/smoke").raise_for_status().json()
        flow = endpoint.get("/api/deployments/name/exclusive/one-at-a-time").raise_for_status().json()["flow_id"]
        same = ("path", "pull_steps", "work_pool_name", "work_queue_name", "job_variables")
        body = {key: smoke[key] for key in same} | {"flow_id": flow, "entrypoint": "overlap.py:exclusive"}
        body |= {"name": "worker-hosts", "tags": ["rerun:1"]}
        self.id = endpoint.post("/api/deployments/", body).raise_for_status().json()["id"]

    def start(self, seconds: float, **more: Any) -> str:
        """Ask for a run that takes so long; gives its id. `more`: work_queue_name, …"""
        body = {"parameters": {"seconds": seconds}, **more}
        return self.endpoint.post(f"/api/deployments/{self.id}/create_flow_run", body).raise_for_status().json()["id"]

    def state(self, run: str) -> str:
        return self.endpoint.get(f"/api/flow_runs/{run}").raise_for_status().json()["state_name"]

    def states(self) -> dict[str, str]:
        """The state of each run of the deployment, by the run's id."""
        body = {"deployments": {"id": {"any_": [self.id]}}}
        runs = self.endpoint.post("/api/flow_runs/filter", body).raise_for_status().json()
        return {run["id"]: run["state_name"] for run in runs}

    def worker(self, run: str) -> str:
        """The worker that took a run, by the label that it gives it before it starts it; empty while there is none."""
        found = self.endpoint.get(f"/api/flow_runs/{run}").raise_for_status().json()
        return found["labels"].get("prefect.worker.name", "")

    def not_all(self, state: str, runs: list[str]) -> str:
        """Those of the runs that are in another state."""
        states = self.states()
        others = {run: states[run] for run in runs if states[run] != state}
        return str(others) if others else ""

    def cancel(self, run: str) -> None:
        """Cancel a run that is under way, and wait until it has ended."""
        body = {"state": {"type": "CANCELLING"}}
        self.endpoint.post(f"/api/flow_runs/{run}/set_state", body).raise_for_status()
        until("it is Cancelled", lambda: self.not_all("Cancelled", [run]), 60)

    def remove(self) -> None:
        """Remove the deployment: those that site.yml deployed are then all there are, as before."""
        self.endpoint.delete(f"/api/deployments/{self.id}")


@pytest.fixture(scope="module")
def write_inventory(vps: Vps, lab: images.LabImages, inventory_directory: Path) -> Iterator[Callable[..., None]]:
    """`write_inventory({host: variables})` writes the main inventory anew; without the other host at the end."""

    def write(workers: dict[Vps, dict[str, Any]] | None = None) -> None:
        inventory.write(inventory_directory, vps, lab, workers=workers)

    yield write
    write()


@pytest.fixture(scope="module")
def other(make_vps: Callable[..., Vps]) -> Vps:
    """The other host, as its provider hands it over."""
    return make_vps(NAME)


@pytest.fixture(scope="module")
def provisioned(
    vps: Vps,
    other: Vps,
    write_inventory: Callable[..., None],
    playbook: Callable[..., PlaybookRun],
    inventory_directory: Path,
    aloud: Aloud,
) -> Iterator[PlaybookRun]:
    """The run of site.yml that made the other host; at the end the server is as it was before, whatever failed."""
    write_inventory({other: {"prefect_workers": WORKERS, "workers_egress": "none"}})
    # As if it had watched the server with an older release of the tools.
    other.ssh(f"mkdir -p {' '.join(OLDER)}")
    with aloud("ansible-playbook site.yml with a second host"):
        run = playbook("site.yml", *QUICKLY, "--extra-vars", f"watch_from={other.name}")
    yield run
    if other.name in (inventory_directory / "hosts.yml").read_text():
        write_inventory()
        playbook("site.yml")


@pytest.fixture(scope="module")
def runs(endpoint: Endpoint, provisioned: PlaybookRun) -> Iterator[Runs]:
    """Runs that take their time."""
    runs = Runs(endpoint)
    yield runs
    runs.remove()


# --- made, and apart ---------------------------------------------------------------------------------------------


def test_a_host_that_cannot_reach_the_server_is_refused_before_anything_changes(other, write_inventory, playbook):
    write_inventory({other: {"prefect_workers": WORKERS, "workers_server_address": "192.0.2.1"}})
    done = playbook("site.yml", check=False)
    assert done.recap["changed"] == 0
    assert (
        f'Refusing to change {other.name}: - nothing answers it at port 443 of "192.0.2.1", where the server\'s public endpoint is; '
        "let it through, or set workers_server_address to an address by which it reaches the server Nothing has been changed."
    ) in done.joined


def test_a_worker_of_the_servers_name_is_refused(vps, other, write_inventory, playbook):
    write_inventory({other: {"prefect_workers": [{"name": SERVERS_WORKER, "pool": "general"}]}})
    done = playbook("site.yml", check=False)
    assert done.recap["changed"] == 0
    assert (
        f'Refusing to change any host: - prefect_workers: "{vps.name}" and "{other.name}" have a worker "{SERVERS_WORKER}" each'
    ) in done.joined


def test_both_hosts_are_provisioned_by_one_run(vps, other, provisioned):
    assert provisioned.hosts[other.name]["changed"] > 0
    assert f"prefect-worker@far-1.service on {other.name}: pool general, online" in provisioned.joined
    assert f"prefect-worker@far-2.service on {other.name}: pool general, queues low, online" in provisioned.joined
    assert other.ssh(f"ls -d {' '.join(OLDER)}", check=False).stdout == ""
    assert (
        other.ssh("ls /opt/prefect/backups/releases /opt/prefect/backups/venvs | grep -cE '^[0-9a-f]{12}$'").stdout
        == "2\n"
    )


def test_its_flows_connect_to_the_server_and_nowhere_else(vps, other, provisioned):
    """By a setting of that host alone. The tests that follow hold that its runs need no more, over cuts and a reboot."""
    tries = [["tcp", vps.domain, 443], ["tcp", vps.address, 22], ["name", outside.EVIL_NAME, 443]]
    assert outside.as_worker(host_of(other), "far-1", tries) == ["connected", "EHOSTUNREACH", "gaierror"]


def test_it_tells_people_when_the_server_does_not_answer_it(vps, other, provisioned):
    """It was provisioned with watch_from; the runs that follow are without it, and so it watches no longer."""
    other.ssh("systemctl stop prefect-watch-from.timer")
    settings = json.loads(other.ssh("cat /etc/prefect/watch/settings.json").stdout)

    def look(seconds: float = 0) -> None:
        print(watching.look(other, seconds, watching.UNIT_ELSEWHERE))

    with Person(gateway(other)) as person:
        settings["notify_urls"] = [person.url]
        with watching.told(other, settings, watching.UNIT_ELSEWHERE):
            until(
                "the server's own look", lambda: "" if "alert delivery" in other.ssh(ASKED).stdout else "none yet", 120
            )
            look()
            assert "no known problems" in other.ssh(f"PREFECT_WATCH_ETC={watching.ETC} prefect-watch status").stdout
            vps.ssh("docker stop prefect-caddy")
            try:
                look()
                look(95)
            finally:
                vps.ssh("docker start prefect-caddy")
            until("the proxy", lambda: "" if "alert delivery" in other.ssh(ASKED).stdout else "not there", 120)
            look()
            look(400)
            # And with a clock that is wrong, here or there.
            other.ssh("apt-get install --yes --no-install-recommends libfaketime > /dev/null")
            other.ssh(f"cat >> {backups.dropin(watching.UNIT_ELSEWHERE)} && systemctl daemon-reload", text=WRONG_CLOCK)
            look()
            look(95)
        told, well, clock = person.messages
    domain = settings["server"]["url"].removeprefix("https://")
    assert told["title"].startswith(f"{other.name}: bad: server {domain}: does not answer (ConnectionError: ")
    assert f"  what to do: is its host up? ping {domain}; ssh {domain};" in told["message"]
    assert f"Resolved:\n  server {domain} (was bad for" in well["message"]
    assert f"clock beside the server's: 90 s ahead of that of {domain}" in clock["title"]


def test_it_watches_the_server_no_longer(other, provisioned, playbook):
    playbook("site.yml", "--tags", "stack,watch")
    assert (
        other.ssh("systemctl is-active prefect-watch-from.timer; ls /etc/prefect/watch", check=False).stdout
        == "inactive\n"
    )


# A server of logs that only takes those that show a certificate of its authority ($1: its own address).
LOG_SERVER = """
set -e
apt-get install --yes --no-install-recommends systemd-journal-remote > /dev/null
directory=/etc/systemd/journal-remote.d && mkdir -p $directory /etc/systemd/journal-remote.conf.d && cd $directory
new() { openssl req -newkey rsa:2048 -nodes -keyout $1.key -subj /CN=$1 -out $1.csr 2> /dev/null; }
openssl req -x509 -newkey rsa:2048 -nodes -keyout ca.key -out ca.pem -days 2 -subj /CN=logs-ca 2> /dev/null
for name in server client; do
  new $name; echo "subjectAltName=IP:$1" > extensions
  openssl x509 -req -in $name.csr -CA ca.pem -CAkey ca.key -CAcreateserial -days 2 -extfile extensions -out $name.pem 2> /dev/null
done
chgrp systemd-journal-remote *.key; chmod 640 *.key
printf '[Remote]\nServerKeyFile=%s/server.key\nServerCertificateFile=%s/server.pem\nTrustedCertificateFile=%s/ca.pem\n' \
  $directory $directory $directory > /etc/systemd/journal-remote.conf.d/lab.conf
nft insert rule inet prefect prerouting tcp dport 19532 accept
systemctl start systemd-journal-remote.socket
"""


def test_logs_are_sent_to_a_server_of_ones_own(vps, other, provisioned, playbook, tmp_path):
    """Over TLS, both sides with a certificate; what is said while that server is away is sent later; and off again."""
    other.ssh(f"set -- {other.address}; {LOG_SERVER}")
    settings = {"host_journal_upload_url": f"https://{other.address}:19532"}
    for setting, name in (("ca", "ca.pem"), ("certificate", "client.pem"), ("key", "client.key")):
        path = tmp_path / name
        path.write_text(other.ssh(f"cat /etc/systemd/journal-remote.d/{name}").stdout)
        settings[f"host_journal_upload_{setting}"] = str(path)
    only = ("--tags", "host", "--limit", vps.name)
    run = playbook("site.yml", *only, "--extra-vars", json.dumps(settings))
    assert "PRIVATE KEY" not in run.stdout

    def arrives(words: str) -> None:
        vps.ssh(f"logger --tag lab-logs '{words}'")
        look = "journalctl --quiet --directory /var/log/journal/remote --identifier lab-logs --output cat"
        until(words, lambda: "" if words in other.ssh(look, check=False).stdout else "not there", 60)

    arrives("before")
    other.ssh("systemctl stop systemd-journal-remote.socket systemd-journal-remote.service")
    vps.ssh("logger --tag lab-logs meanwhile; sleep 3")
    other.ssh("systemctl start systemd-journal-remote.socket")
    arrives("meanwhile")
    other.ssh(
        "systemctl stop systemd-journal-remote.socket systemd-journal-remote.service; systemctl reload prefect-firewall"
    )
    playbook("site.yml", *only)
    left = vps.ssh(
        "systemctl is-enabled systemd-journal-upload.service; systemctl is-failed systemd-journal-upload.service",
        check=False,
    )
    assert left.stdout.split() == ["disabled", "inactive"]
    assert vps.ssh("ls /etc/systemd/journal-upload /etc/systemd/journal-upload.conf.d").stdout.split() == [
        "/etc/systemd/journal-upload:",
        "/etc/systemd/journal-upload.conf.d:",
    ]


def test_the_second_run_changes_nothing_on_either(vps, other, provisioned, playbook):
    again = playbook("site.yml", *QUICKLY)
    assert {name: counts["changed"] for name, counts in again.hosts.items()}.items() >= {
        (vps.name, 0),
        (other.name, 0),
    }, again.changed_tasks


def test_nothing_on_it_listens_in_public_but_ssh(vps, other, provisioned):
    listening = other.ssh("ss --no-header --listening --numeric --tcp --udp").stdout.splitlines()
    addresses = [line.split()[4] for line in listening]
    public = {address for address in addresses if not address.startswith(("127.", "[::1]"))}
    assert {address.rpartition(":")[2] for address in public} <= {"22"}, public
    # And if something did, nobody would reach it.
    other.ssh("systemd-run --quiet --collect --unit listener python3 -m http.server --directory /run 443")
    try:
        nmap = ("nmap", "-Pn", "-n", "-p-", "-T4", "--min-rate=8000", "--max-retries=1", "-oG", "-", other.address)
        said = vps.outsider(*nmap).stdout
    finally:
        other.ssh("systemctl stop listener")
    ports = said.split("Ports: ")[1].split(", ")
    assert {port.split("/")[0] for port in ports if "/open/tcp" in port} == {"22"}


def test_the_doctor_looks_at_it_from_the_laptop(vps, other, provisioned, inventory_directory):
    """It has none of the tools: what looks is sent there."""
    command = [ROOT / "scripts/doctor", "-i", inventory_directory, "--json"]
    other.ssh("systemctl stop prefect-worker@far-2")
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    other.ssh("systemctl start prefect-worker@far-2")
    found = {one["check"]: one for one in json.loads(done.stdout)["findings"] if one["host"] == other.name}
    assert found["workers on this host"]["measured"] == "prefect-worker@far-2.service does not run"
    assert found["deployed files"]["level"] == "OK" and found["deployed files"]["measured"].startswith("all ")
    assert {"memory", "failed units", "unit files", "disk /"} <= set(found)
    assert found["clock beside the server's"]["level"] == "OK"
    # What test_its_flows_connect_to_the_server_and_nowhere_else has tried.
    assert f"prefect_far-1 to {vps.address}:22/tcp" in found["egress of flows"]["measured"]
    assert done.returncode == 2


def test_each_worker_comes_by_an_account_of_its_own(vps, other, provisioned, access_log):
    def come() -> set[tuple[str, str]]:
        return {(line.get("user_id", ""), line["request"]["remote_ip"]) for line in access_log(90)}

    seen = {(user, address == other.address) for user, address in come() if user.startswith("worker-")}
    assert {("worker-far-1", True), ("worker-far-2", True), (f"worker-{SERVERS_WORKER}", False)} == seen
    # Nobody else comes from there.
    assert {user for user, address in come() if address == other.address} <= {
        "worker-far-1",
        "worker-far-2",
        "watch",
        "",
    }


def test_it_has_the_secrets_of_its_own_workers_and_no_others(other, provisioned, inventory_directory):
    folder = inventory_directory / "secrets"
    secrets = {path: path.read_text().strip() for path in folder.rglob("*") if path.is_file()}
    own = {folder / "users" / "worker-far-1", folder / "users" / "worker-far-2"}
    assert own < set(secrets)

    def lies_in(values: list[str]) -> set[str]:
        places = "/etc /opt /home /root /srv /tmp /var"
        words = "\n".join(line for value in values for line in value.splitlines() if len(line) > 8)
        grep = f"grep --recursive --files-with-matches --fixed-strings --file=- {places}"
        return set(other.ssh(grep, text=words, check=False).stdout.split())

    def shapes(path: Path) -> list[str]:
        return [secrets[path], base64.b64encode(f"{path.name}:{secrets[path]}".encode()).decode()]

    assert lies_in([shape for path in own for shape in shapes(path)]) == {
        "/etc/prefect/workers/far-1.secret.env",
        "/etc/prefect/workers/far-2.secret.env",
    }
    assert lies_in([shape for path in set(secrets) - own for shape in shapes(path)]) == set()
    modes = other.ssh("stat --format '%a %U %n' /etc/prefect/workers /etc/prefect/workers/*.secret.env").stdout
    assert {line.rsplit(" ", 1)[0] for line in modes.splitlines()} == {"700 root", "600 root"}


def test_a_run_for_it_alone_is_refused(vps, other, provisioned, playbook):
    done = playbook("site.yml", "--limit", other.name, check=False)
    assert done.recap["changed"] == 0
    assert f"--limit '{vps.name},{other.name}'" in done.joined


def test_flows_that_have_changed_are_not_deployed_past_it(vps, other, provisioned, playbook, tmp_path):
    """It would be told to run a release that it does not have."""
    for name in ("prefect.yaml", "requirements.txt"):
        (tmp_path / name).write_bytes((ROOT / "flows" / name).read_bytes())
    changed = ("-e", json.dumps({"flows_directory": str(tmp_path)}))
    done = playbook("site.yml", "--limit", vps.name, *changed, check=False)
    assert done.recap["changed"] == 0
    assert f'the flows in "{tmp_path}" have changed, and --limit leaves out {other.name}' in done.joined
    done = playbook("deploy.yml", "--limit", vps.name, *changed, check=False)
    assert done.recap["changed"] == 0
    assert f"--limit leaves out {other.name}, which would be told to run what it does not have" in done.joined


@contextmanager
def only_there(vps: Vps) -> Iterator[None]:
    """The server's own worker takes no runs meanwhile."""
    # Exit code 1: it still has some.
    vps.ssh(f"prefect-worker-drain {SERVERS_WORKER} --seconds 0", check=False)
    try:
        yield
    finally:
        vps.ssh(f"prefect-worker-resume {SERVERS_WORKER}")


def test_a_release_goes_to_both_and_back(vps, other, provisioned, playbook, tmp_path, endpoint):
    """deploy.yml and rollback.yml: what the server names, every host has, and runs."""

    def live() -> dict[str, Any]:
        return endpoint.get("/api/deployments/name/smoke/smoke").raise_for_status().json()

    def seen(run: str) -> dict[str, Any]:
        return endpoint.get(f"/api/flow_runs/{run}").raise_for_status().json()

    former = live()["version"]
    flows = tmp_path / "flows"
    shutil.copytree(ROOT / "flows", flows, ignore=shutil.ignore_patterns("__pycache__"))
    (flows / "more.py").write_text('"""A new release."""\n')
    done = playbook("deploy.yml", "-e", json.dumps({"flows_directory": str(flows)}))
    assert done.hosts[other.name]["changed"] > 0
    now = live()
    assert now["version"] != former
    assert "more.py" in other.ssh(f"ls /opt/prefect/flows/releases/{now['version']}").stdout
    with only_there(vps):
        run = endpoint.post(f"/api/deployments/{now['id']}/create_flow_run", {}).raise_for_status().json()["id"]
        until(
            "a run of the new release there",
            lambda: "" if seen(run)["state_name"] == "Completed" else str(seen(run)),
            60,
        )
    assert seen(run)["labels"]["prefect.worker.name"] == "far-1"
    playbook("rollback.yml")
    assert live()["version"] == former


def run_there(vps: Vps, runs: Runs, seconds: float, worker: str = "far-1", **more: Any) -> str:
    """A run that the other host has taken, and that takes so long; Running, or at its end when that is in a moment."""
    with only_there(vps):
        run = runs.start(seconds, **more)
        until("a run there", lambda: "" if runs.state(run) in ("Running", "Completed") else runs.state(run), 60)
    assert runs.worker(run) == worker
    return run


def run_that_follows(runs: Runs, lost: str) -> str:
    """Wait until a run is Crashed and another one has been made for it; gives that."""
    before = set(runs.states())
    until("the lost run is Crashed", lambda: runs.not_all("Crashed", [lost]), CRASHED_WITHIN)
    until("a new run", lambda: "" if set(runs.states()) > before else "none", RERUN_WITHIN)
    (again,) = set(runs.states()) - before
    return again


# --- at work -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def started(runs: Runs) -> list[str]:
    """More runs than one host takes."""
    return [runs.start(RUN_SECONDS) for _ in range(6)]


def test_both_hosts_take_runs_of_one_pool_at_the_same_time(runs, started):
    until("all runs are Running", lambda: runs.not_all("Running", started), 50)
    took = [runs.worker(run) for run in started]
    assert runs.not_all("Running", started) == ""
    assert (took.count(SERVERS_WORKER), took.count("far-1")) == (4, 2)


def test_a_host_that_is_cut_off_goes_on_with_its_runs(other, runs, started):
    other.cut()
    try:
        time.sleep(CUT_SECONDS)
        with pytest.raises(OSError):
            socket.create_connection((other.address, 22), timeout=2).close()
    finally:
        other.heal()
    until("all runs are Completed", lambda: runs.not_all("Completed", started), 90)
    # Each ran once, and the worker takes runs again.
    assert set(runs.states()) == set(started)
    assert other.ssh("systemctl show --property NRestarts --value prefect-worker@far-1").stdout.strip() == "0"


def test_a_host_that_is_cut_off_for_longer_is_taken_for_dead_until_it_is_back(vps, other, runs):
    """Its run begins anew on the other host, and nothing of the first one goes on."""
    lost = run_there(vps, runs, 900)
    began = time.monotonic()
    other.cut()
    try:
        again = run_that_follows(runs, lost)
        until("the new run is Running", lambda: runs.not_all("Running", [again]), RERUN_WITHIN)
        assert runs.worker(again) == SERVERS_WORKER
        time.sleep(max(0.0, LONG_CUT_SECONDS - (time.monotonic() - began)))
    finally:
        other.heal()
    assert other.ssh(PROCESSES).stdout != ""
    until("the end of the process there", lambda: other.ssh(PROCESSES).stdout, BACK_WITHIN)
    assert (runs.state(lost), runs.state(again)) == ("Crashed", "Running")
    runs.cancel(again)


def test_it_takes_runs_again_after_a_reboot(vps, other, runs):
    other.reboot()
    run_there(vps, runs, 1)


# --- and gone ----------------------------------------------------------------------------------------------------


def test_a_worker_that_leaves_is_stopped_and_let_in_no_more(
    vps, other, provisioned, runs, write_inventory, playbook, endpoint
):
    accounts = ("worker-far-1", "worker-far-2")
    assert [endpoint.get("/api/health", user=user).status_code for user in accounts] == [200, 200]
    other.ssh("prefect-worker-drain far-1 --seconds 0", check=False)
    last = run_there(vps, runs, 30, "far-2", work_queue_name="low")
    other.ssh("prefect-worker-resume far-1")
    write_inventory(
        {other: {"prefect_workers": WORKERS[:1], "workers_egress": "none", "workers_server_address": vps.address}}
    )
    playbook("site.yml", "--tags", "stack,workers")
    # Its account was of use to the very end.
    assert runs.state(last) == "Completed"
    assert [endpoint.get("/api/health", user=user).status_code for user in accounts] == [200, 401]
    assert other.ssh("ls /etc/prefect/workers").stdout.split() == ["far-1.applied", "far-1.env", "far-1.secret.env"]
    units = other.ssh("systemctl list-units --plain --no-legend 'prefect-worker@*'").stdout
    assert units.split()[0] == "prefect-worker@far-1.service" and len(units.splitlines()) == 1
    assert f"{vps.address} {vps.domain} # prefect" in other.ssh("cat /etc/hosts").stdout


def test_a_host_that_is_destroyed_loses_no_run(vps, other, runs):
    lost = run_there(vps, runs, 20)
    other.down()
    again = run_that_follows(runs, lost)
    until("the new run is Completed", lambda: runs.not_all("Completed", [again]), RERUN_WITHIN + 30)
    assert runs.worker(again) == SERVERS_WORKER


def test_a_host_that_leaves_is_let_in_no_more_and_the_server_is_as_it_was(runs, write_inventory, playbook, endpoint):
    runs.remove()
    write_inventory()
    gone = playbook("site.yml", "--skip-tags", "host,docker")
    assert {*gone.changed_tasks} <= {"Write the accounts", *EFFECTS}, gone.changed_tasks
    assert endpoint.get("/api/health", user="worker-far-1").status_code == 401
    again = playbook("site.yml", "--tags", "stack,workers,flows")
    assert again.recap["changed"] == 0, again.changed_tasks
