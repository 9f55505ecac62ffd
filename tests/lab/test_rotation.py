"""Every secret is replaced by one run of site.yml, while flow runs go on and a client asks all the time.

The main VPS; these tests follow one another. Its passwords, keys and authority are others afterwards.
"""

from __future__ import annotations

import base64
import json
import ssl
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

import httpx
import pytest

from tests.lab import restores
from tests.lab.conftest import Aloud, Endpoint
from tests.lab.runs import Runs
from tests.lab.seed import psql
from tests.lab.test_total_loss import SECRET, make_secret_block, secret_block
from tests.lab.vps.playbook import STACK_EFFECTS, PlaybookRun
from tests.lab.vps.vps import Vps

SECRETS = "/etc/prefect/secrets"
#: The next file asks who has made its own.
BLOCK = "rotation"
AUTHORITIES = "/var/lib/prefect/caddy/caddy/pki/authorities"
# The password comes on stdin.
RESTIC = "restic --repo /var/backups/prefect/repository --no-cache --password-file /dev/stdin"
# Of each flow run; a worker gives them more when it is restarted (workers_drain_seconds).
RUN_SECONDS = 12
SECONDS_BETWEEN = 0.2
# Between two flow runs that are started; the worker takes four at a time.
SECONDS_BETWEEN_RUNS = 10
# So long the server may be away at a time: it is restarted twice. A guard against hanging, on a machine that two shards share.
AWAY_AT_MOST = 90
ALL = (
    "stack_change_database_password",
    "stack_change_authority",
    "backups_change_password",
    "backups_change_encryption_key",
)
# In the server's container: whether the database takes the password on stdin.
TRY = """
import asyncio, asyncpg, sys

async def main():
    try:
        await asyncpg.connect(host="postgres", user="prefect_server", database="prefect", password=sys.stdin.read().strip())
        print("taken")
    except asyncpg.InvalidPasswordError:
        print("refused")

asyncio.run(main())
"""


class Asking(threading.Thread):
    """Asks the API with an account that stays, each time on a new connection that trusts what `ca.crt` holds then."""

    def __init__(self, endpoint: Endpoint) -> None:
        super().__init__(daemon=True)
        self.endpoint = endpoint
        self.answers: list[tuple[float, str]] = []
        self._over = threading.Event()

    def run(self) -> None:
        while not self._over.is_set():
            self.answers.append((time.monotonic(), self._ask()))
            time.sleep(SECONDS_BETWEEN)

    def _ask(self) -> str:
        try:
            return str(self.endpoint.post("/api/flow_runs/count", {}).status_code)
        except (httpx.HTTPError, ssl.SSLError) as error:
            return f"{type(error).__name__}: {error}"

    def __enter__(self) -> Asking:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self.join()
        print(f"{len(self.answers)} requests: {self.counts}")

    @property
    def counts(self) -> Counter[str]:
        return Counter(said for _, said in self.answers)

    @property
    def longest(self) -> float:
        """The longest time without a 200."""
        well = [at for at, said in self.answers if said == "200"]
        return max(after - before for before, after in pairwise(well))


class Load(threading.Thread):
    """Starts a flow run every few seconds; what is refused is asked for again, as any program does."""

    def __init__(self, runs: Runs, deployment: str) -> None:
        super().__init__(daemon=True)
        self.runs, self.deployment = runs, deployment
        self.started: list[str] = []
        self._over = threading.Event()

    def run(self) -> None:
        while not self._over.is_set():
            try:
                self.started.append(self.runs.start(self.deployment, parameters={"seconds": RUN_SECONDS}))
            except httpx.HTTPError:
                time.sleep(1)
                continue
            self._over.wait(SECONDS_BETWEEN_RUNS)

    def __enter__(self) -> Load:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self.join()


@dataclass
class Secrets:
    """What a run may replace, as it is."""

    users: dict[str, str]
    database: str
    repositories: str
    fingerprint: str
    ca: str
    on_host: str = field(default="")


def secrets_of(vps: Vps, endpoint: Endpoint, directory: Path) -> Secrets:
    return Secrets(
        users=endpoint.passwords,
        database=(directory / "secrets/postgres_password").read_text().strip(),
        repositories=(directory / "secrets/backup_password").read_text().strip(),
        # Of a secret only what tells it from another gets here.
        fingerprint=vps.ssh(f"sha256sum < {SECRETS}/encryption_key").stdout.split()[0],
        ca=endpoint.ca.read_text(),
        on_host=vps.ssh("cat /opt/prefect/ca.crt").stdout,
    )


@pytest.fixture(scope="module")
def runs(vps: Vps, endpoint: Endpoint) -> Iterator[Runs]:
    made = Runs(vps, endpoint)
    yield made
    made.remove()


@pytest.fixture(scope="module")
def before(vps: Vps, endpoint: Endpoint, inventory_directory: Path) -> Secrets:
    make_secret_block(endpoint, BLOCK)
    assert secret_block(endpoint, BLOCK) == SECRET
    return secrets_of(vps, endpoint, inventory_directory)


def database_takes(vps: Vps, password: str) -> str:
    return vps.ssh(f"docker exec -i prefect-server python -c '{TRY}'", text=password).stdout.strip()


def test_another_password_of_the_database_is_no_rotation(
    before: Secrets, inventory_directory: Path, playbook: Callable[..., PlaybookRun]
) -> None:
    """Secrets of another server; that none at all are refused is in test_preflight."""
    file = inventory_directory / "secrets/postgres_password"
    file.write_text("of-another-server\n")
    try:
        refused = playbook("site.yml", "--tags", "preflight", check=False)
    finally:
        file.write_text(before.database + "\n")
    assert refused.returncode != 0 and refused.recap["changed"] == 0
    assert "If the database is to have a new password: " in refused.joined


def test_a_worker_gets_no_password_that_the_reverse_proxy_does_not_know(
    before: Secrets, inventory_directory: Path, playbook: Callable[..., PlaybookRun]
) -> None:
    file = inventory_directory / "secrets/users/worker-general-1"
    file.unlink()
    try:
        refused = playbook("site.yml", "--tags", "workers", check=False)
        assert not file.exists()
    finally:
        file.write_text(before.users["worker-general-1"] + "\n")
    assert refused.returncode != 0 and refused.recap["changed"] == 0
    assert "has no password of worker-general-1, and the reverse proxy would not know the new one" in refused.joined


def silent(runs: Runs, started: list[str]) -> list[str]:
    """The flow runs whose last words are not there."""
    return [run for run in started if "to the end" not in runs.said(run)]


def test_all_of_them_at_once_and_nobody_is_refused(
    before: Secrets,
    vps: Vps,
    endpoint: Endpoint,
    runs: Runs,
    inventory_directory: Path,
    playbook: Callable[..., PlaybookRun],
    aloud: Aloud,
) -> None:
    secrets = inventory_directory / "secrets"
    for path in (secrets / "postgres_password", secrets / "backup_password", *(secrets / "users").iterdir()):
        # The one that asks has none that flow runs begin with.
        if path.name != "admin":
            path.unlink()
    words = [word for name in ALL for word in ("-e", f"{name}=true")]
    with aloud("site.yml that replaces each secret"), Load(runs, runs.deployment("under-rotation")) as load:
        restores.until("a flow run", lambda: "" if load.started else "none")
        runs.wait(load.started[0], "Running")
        with Asking(endpoint) as asking:
            playbook("site.yml", *words)
    ends = [runs.wait(run, limit=300)["state"]["name"] for run in load.started]
    print(f"flow runs: {Counter(ends)}; the longest time without an answer: {asking.longest:.1f} s")
    # Those that were under way, and those that began meanwhile.
    assert set(ends) == {"Completed"} and len(ends) > 3
    # Logs come a moment later; those of one that ends while the server restarts may not come at all.
    restores.until("logs", lambda: "" if len(silent(runs, load.started)) <= 1 else str(silent(runs, load.started)))
    # While the server restarts a client is told to wait. Nobody is refused, or finds a certificate that it does not trust.
    refused = {said: number for said, number in asking.counts.items() if said.startswith("4") or "CERTIFICATE" in said}
    assert refused == {}
    # A connection that a reload of the reverse proxy has cut: a handful of hundreds at most.
    cut = sum(number for said, number in asking.counts.items() if not said.isdigit())
    assert cut <= 5, asking.counts
    assert asking.longest < AWAY_AT_MOST


def test_the_former_ones_are_of_no_use(
    before: Secrets, vps: Vps, endpoint: Endpoint, inventory_directory: Path
) -> None:
    now = secrets_of(vps, endpoint, inventory_directory)
    for name, password in before.users.items():
        # Of workers of earlier tests there is no account any more.
        if name != "admin" and name in now.users:
            assert now.users[name] != password, name
            former = endpoint.post("/api/flow_runs/count", {}, user=name, password=password)
            assert former.status_code == 401, name
    assert endpoint.post("/api/flow_runs/count", {}, user="worker-general-1").status_code == 200
    assert vps.ssh("ls /etc/prefect/caddy").stdout.split().count("before.caddy") == 0
    assert (database_takes(vps, before.database), database_takes(vps, now.database)) == ("refused", "taken")
    opened = f"{RESTIC} cat config"
    assert vps.ssh(opened, text=before.repositories, check=False).returncode != 0
    assert vps.ssh(opened, text=now.repositories).returncode == 0
    assert now.fingerprint != before.fingerprint
    assert secret_block(endpoint, BLOCK) == SECRET


def test_one_authority_is_left_and_everybody_has_it(
    before: Secrets, vps: Vps, endpoint: Endpoint, inventory_directory: Path
) -> None:
    now = secrets_of(vps, endpoint, inventory_directory)
    assert now.ca == now.on_host == vps.ssh(f"cat {AUTHORITIES}/local/root.crt").stdout
    assert now.ca != before.ca and now.ca.count("BEGIN CERTIFICATE") == 1
    assert vps.ssh(f"ls -A {AUTHORITIES}").stdout.split() == ["local"]
    context = ssl.create_default_context(cadata=before.ca)
    with (
        httpx.Client(verify=context, trust_env=False) as client,
        pytest.raises(httpx.ConnectError, match="CERTIFICATE"),
    ):
        client.get(endpoint.url)


def test_no_password_is_in_a_log_or_a_command(
    before: Secrets, vps: Vps, endpoint: Endpoint, inventory_directory: Path
) -> None:
    now = secrets_of(vps, endpoint, inventory_directory)
    said = vps.ssh("docker logs prefect-postgres 2>&1; journalctl --quiet --output cat --since -30min").stdout
    for secret in (before.database, now.database, before.repositories, now.repositories, "SCRAM-SHA-256$"):
        assert secret not in said
    login = base64.b64encode(f"worker-general-1:{now.users['worker-general-1']}".encode()).decode()
    assert login not in said and now.users["worker-general-1"] not in said


def test_a_backup_of_before_holds_the_key_that_its_blocks_have(
    before: Secrets, vps: Vps, endpoint: Endpoint, inventory_directory: Path
) -> None:
    listed = json.loads(vps.ssh("prefect-backup list --json").stdout)["backups"]
    former = next(one["snapshot"] for one in listed if one["kind"] == "safety")
    read = f"{RESTIC} dump {former} {SECRETS}/encryption_key | sha256sum"
    said = vps.ssh(read, text=secrets_of(vps, endpoint, inventory_directory).repositories).stdout
    assert said.split()[0] == before.fingerprint


def test_what_is_cut_off_is_gone_on_with(
    vps: Vps, endpoint: Endpoint, inventory_directory: Path, playbook: Callable[..., PlaybookRun]
) -> None:
    """The key by systemd, the database's password by the next run; and that run changes nothing else."""
    now = secrets_of(vps, endpoint, inventory_directory)
    former, new = now.database, "n" * 32
    # Postgres has the new password already, and the server's file both, the former one first.
    (inventory_directory / "secrets/postgres_password").write_text(new + "\n")
    lines = "".join(f"postgres:5432:*:prefect_server:{password}\n" for password in (former, new))
    vps.ssh(f"cat > {SECRETS}/server_pgpass", text=lines)
    psql(vps, f"ALTER ROLE prefect_server PASSWORD '{new}'", database="postgres")
    with restores.no_resumption(vps):
        killed = vps.ssh("PREFECT_BACKUPS_FAILPOINT='kill:encrypted' prefect-backup encryption-key", check=False)
        assert "systemd takes it back or finishes it" in killed.stderr
        refused = restores.run(vps, "prefect-backup", "create")
        assert "a change of the key of the blocks has not ended" in refused.joined
    # As at boot. It starts the server, which has to find out which password works.
    vps.ssh("systemctl start prefect-restore.service")
    assert vps.ssh(f"sha256sum < {SECRETS}/encryption_key").stdout.split()[0] != now.fingerprint
    assert vps.ssh(f"cd {SECRETS} && stat --format '%n %U %a' encryption_key*").stdout.splitlines() == [
        "encryption_key prefect-server 400"
    ]
    assert secret_block(endpoint, BLOCK) == SECRET
    # Without a word: it has begun.
    run = playbook("site.yml", "--tags", "stack,workers")
    assert {*run.changed_tasks} - STACK_EFFECTS == {
        "Give the server's role its new password",
        "Write it, for Postgres and first for the server",
        "Restart the server with it",
        "Take the former password away",
    }
    assert vps.ssh(f"cat {SECRETS}/server_pgpass").stdout == lines.splitlines(keepends=True)[1]
    assert (database_takes(vps, former), database_takes(vps, new)) == ("refused", "taken")
    assert endpoint.post("/api/flow_runs/count", {}).status_code == 200
