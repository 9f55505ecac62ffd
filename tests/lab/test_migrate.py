"""Coming from elsewhere: a workspace of Cloud by scripts/migrate, a server of the official compose guide by its dump.

Cloud is a stand-in of its API; the destination is the kit's own server, through the public endpoint, as a person reaches it.
"""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.lab import restores
from tests.lab.cloud_api import KEY, CloudApi, served_workspace
from tests.lab.restores import databases, mark, marker, restored, run
from tests.lab.vps.endpoint import Endpoint
from tests.lab.vps.vps import Vps

ROOT = Path(__file__).resolve().parents[2]
SECRET = "s3cr3t"
# The migration of Prefect 3.8.8.
EARLIER = "d4a7e1c93f52"
FERNET = "Zq0rO3YkN2pXb1dVZ2hTcUx1YzVvQm1XeTdFdEprUm4="
DUMP = "/root/source.dump"
# As the official guide has it, without Redis and worker, and with a key of its own.
COMPOSE = """
name: source
services:
  postgres:
    image: {postgres}
    environment: {{POSTGRES_USER: prefect, POSTGRES_PASSWORD: prefect, POSTGRES_DB: prefect}}
    healthcheck: {{test: [CMD-SHELL, pg_isready -h 127.0.0.1 -U prefect], interval: 1s, retries: 60}}
  prefect-server:
    image: {prefect}
    depends_on: {{postgres: {{condition: service_healthy}}}}
    environment:
      PREFECT_API_DATABASE_CONNECTION_URL: postgresql+asyncpg://prefect:prefect@postgres:5432/prefect
      PREFECT_SERVER_ENCRYPTION_KEY: {key}
      PREFECT_SERVER_ANALYTICS_ENABLED: "false"
    command: prefect server start --host 0.0.0.0
    healthcheck:
      test: [CMD, python, -c, "import urllib.request as u; u.urlopen('http://127.0.0.1:4200/api/ready')"]
      interval: 1s
      retries: 120
"""
SEED = f"""
import json, urllib.request
def post(path, body):
    request = urllib.request.Request("http://127.0.0.1:4200/api" + path, json.dumps(body).encode(), method="POST")
    request.add_header("Content-Type", "application/json")
    return json.load(urllib.request.urlopen(request))
def get(path):
    return json.load(urllib.request.urlopen("http://127.0.0.1:4200/api" + path))
flow = post("/flows/", {{"name": "adopted"}})["id"]
post("/deployments/", {{"name": "theirs", "flow_id": flow, "schedules": [{{"schedule": {{"cron": "0 3 * * *"}}, "active": True}}]}})
post("/flow_runs/", {{"flow_id": flow, "name": "of-old", "state": {{"type": "COMPLETED"}}}})
kind = get("/block_types/slug/secret")["id"]
schema = post("/block_schemas/filter", {{"block_schemas": {{"block_type_id": {{"any_": [kind]}}}}}})[0]["id"]
post("/block_documents/", {{"name": "theirs", "block_type_id": kind, "block_schema_id": schema, "data": {{"value": "{SECRET}"}}}})
"""
# What a person may have added, and what must not come along.
MORE = """
CREATE ROLE reporting; GRANT SELECT ON flow_run TO reporting;
CREATE FUNCTION noticed() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NEW; END';
CREATE TRIGGER noticed BEFORE INSERT ON flow_run FOR EACH ROW EXECUTE FUNCTION noticed();
"""


def compose(vps: Vps, command: str, text: str | None = None) -> str:
    return vps.ssh(f"docker compose --file /root/source.yml {command}", text=text).stdout


# --- a workspace of Cloud --------------------------------------------------------------------------------------------


@pytest.fixture
def cloud() -> Iterator[CloudApi]:
    with served_workspace() as api:
        yield api


def test_a_workspace_comes_over_and_its_schedules_switch(cloud: CloudApi, endpoint: Endpoint, tmp_path: Path) -> None:
    word = base64.b64encode(f"admin:{endpoint.passwords['admin']}".encode()).decode()
    environment = {
        **os.environ,
        "PREFECT_FROM_API_URL": cloud.url,
        "PREFECT_FROM_API_KEY": KEY,
        "PREFECT_API_URL": f"{endpoint.url}/api",
        "PREFECT_CLIENT_CUSTOM_HEADERS": json.dumps({"Authorization": f"Basic {word}"}),
        "PREFECT_API_SSL_CERT_FILE": str(endpoint.ca),
        "NO_PROXY": "*",
    }

    def migrate(*arguments: str) -> dict[str, Any]:
        command = [sys.executable, str(ROOT / "scripts/migrate"), *arguments, "--json"]
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    def deployment(name: str) -> dict[str, Any]:
        return endpoint.get(f"/api/deployments/name/etl/{name}").raise_for_status().json()

    try:
        facts = migrate("transfer", "--pool", "serverless=general")
        assert facts["missing"] == {
            "work pool": ["managed", "serverless"],
            "work queue": ["managed/default", "serverless/default"],
            "automation": ["broken"],
        }
        # A pool of that name was made, and the secret is the one that it was.
        assert (deployment("nightly")["work_pool_name"], deployment("pushed")["work_pool_name"]) == (
            "default",
            "general",
        )
        path = "/api/block_types/slug/secret/block_documents/name/token?include_secrets=true"
        assert endpoint.get(path).json()["data"] == {"value": SECRET}
        assert migrate("transfer", "--pool", "serverless=general")["made"] == []

        state = ("--state", str(tmp_path / "state.json"))
        migrate("switch", *state, "--leave", "broken", "--without-workers")
        assert [one["active"] for one in deployment("nightly")["schedules"]].count(True) == 1
        assert not any(one["active"] for each in cloud.objects["deployments"] for one in each["schedules"])
        migrate("switch", "--back", *state)
        assert not any(one["active"] for one in deployment("nightly")["schedules"])
    finally:
        for flow in endpoint.post("/api/flows/filter", {"flows": {"name": {"any_": ["etl", "never-deployed"]}}}).json():
            endpoint.delete(f"/api/flows/{flow['id']}").raise_for_status()
        for automation in endpoint.post("/api/automations/filter", {}).json():
            if automation["name"] in ("pause", "of-pushed"):
                endpoint.delete(f"/api/automations/{automation['id']}").raise_for_status()
        endpoint.delete("/api/work_pools/default")


# --- a server of the official compose guide --------------------------------------------------------------------------


@pytest.fixture(scope="module")
def dump(vps: Vps) -> Iterator[str]:
    """Its dump, made as docs/migrate.md says, of an earlier Prefect."""
    images = [
        vps.ssh(f"docker inspect --format '{{{{.Config.Image}}}}' prefect-{name}").stdout.strip()
        for name in ("postgres", "server")
    ]
    text = COMPOSE.format(postgres=images[0], prefect=images[1], key=FERNET)
    vps.ssh("cat > /root/source.yml", text=text)
    try:
        compose(vps, "up --detach --wait --quiet-pull")
        compose(vps, "exec -T prefect-server python -", SEED)
        compose(vps, "stop prefect-server")
        compose(
            vps, f"run --rm -T --no-deps prefect-server prefect server database downgrade --yes --revision {EARLIER}"
        )
        compose(vps, "exec -T postgres psql -qU prefect", MORE)
        compose(vps, f"exec -T postgres pg_dump --username=prefect --format=custom prefect > {DUMP}")
        compose(vps, "down --volumes")
        yield DUMP
    finally:
        vps.ssh(
            f"docker compose --file /root/source.yml down --volumes; rm -f {DUMP} /root/source.yml /root/key",
            check=False,
        )


def test_a_dump_becomes_a_backup_and_that_the_database(vps: Vps, endpoint: Endpoint, dump: str) -> None:
    before = restores.backups(vps)
    refused = run(vps, "prefect-backup", "adopt", dump)
    assert refused.exit == 19
    assert "PREFECT_SERVER_ENCRYPTION_KEY" in refused.said
    assert restores.backups(vps) == before
    vps.ssh("umask 077; cat > /root/key", text=FERNET)
    adopted = run(vps, "prefect-backup", "adopt", dump, "--key-file", "/root/key")
    assert adopted.exit == 0, adopted.said
    # Its scheduler may have made runs of the coming days.
    assert adopted.facts["flow_runs"] >= 1
    assert adopted.facts["revision"] == EARLIER
    assert "objects that are not of Prefect's schema are left out" in adopted.said
    assert FERNET not in adopted.said
    # --latest never means it.
    assert adopted.facts["id"] not in run(vps, "prefect-restore", "--latest", "--dry-run").said

    mark(endpoint, "before the adoption")
    with restores.no_timers(vps):
        restored(vps, "--id", adopted.facts["id"])
        runs = endpoint.post("/api/flow_runs/filter", {}).json()
        assert "of-old" in [one["name"] for one in runs]
        path = "/api/block_types/slug/secret/block_documents/name/theirs?include_secrets=true"
        assert endpoint.get(path).json()["data"] == {"value": SECRET}
        restored(vps, "--undo")
        assert marker(endpoint) == "before the adoption"
        vps.ssh("prefect-restore --drop-previous --yes")
    assert databases(vps) == {"prefect"}
