"""The decisions in compose.yml, as data. That compose takes the file is tested in the lab, where compose is."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml

from .compose_file import COMPOSE, VARIABLE, interpolate

GIVEN = {"PREFECT_DOMAIN": "prefect.example.org"}
PROJECT: dict[str, Any] = yaml.safe_load(interpolate(COMPOSE.read_text(), GIVEN))
SERVICES: dict[str, Any] = PROJECT["services"]
RUNNING = [name for name, service in SERVICES.items() if "profiles" not in service]
CAPABILITIES = {
    "postgres": {"CHOWN", "DAC_READ_SEARCH", "FOWNER", "SETGID", "SETUID"},
    "server": set(),
    "caddy": {"NET_BIND_SERVICE"},
    "migrate": set(),
}


def mebibytes(limit: str) -> int:
    assert limit.endswith("m")
    return int(limit[:-1])


def postgres_setting(name: str) -> str:
    (found,) = [word for word in SERVICES["postgres"]["command"] if word.startswith(f"-c{name}=")]
    return found.partition("=")[2]


def test_the_domain_is_the_only_variable_without_a_default() -> None:
    needed = {name for name, operator, _ in VARIABLE.findall(COMPOSE.read_text()) if operator != "-"}
    assert needed == {"PREFECT_DOMAIN"}
    assert "${PREFECT_DOMAIN:?" in COMPOSE.read_text()


def test_names() -> None:
    assert PROJECT["name"] == "prefect"
    assert set(SERVICES) == set(CAPABILITIES)
    assert {name: SERVICES[name]["container_name"] for name in RUNNING} == {name: f"prefect-{name}" for name in RUNNING}


@pytest.mark.parametrize("name", SERVICES)
def test_every_image_is_pinned(name: str) -> None:
    image, _, tag = SERVICES[name]["image"].partition(":")
    assert image
    assert re.match(r"\d+\.\d+", tag), f"{image}:{tag}"


@pytest.mark.parametrize("name", SERVICES)
def test_every_service_may_do_little(name: str) -> None:
    service = SERVICES[name]
    assert service["cap_drop"] == ["ALL"]
    assert set(service.get("cap_add", [])) == CAPABILITIES[name]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert service["read_only"] is True
    assert not {"privileged", "pid", "network_mode", "devices"} & set(service)
    if name != "postgres":  # whose entrypoint drops root by itself
        user, group = service["user"].split(":")
        assert int(user) > 0 < int(group)


def test_only_caddy_publishes_ports() -> None:
    assert {name for name in SERVICES if "ports" in SERVICES[name]} == {"caddy"}
    assert SERVICES["caddy"]["ports"] == ["80:80/tcp", "443:443/tcp"]


def test_only_caddy_has_a_way_out() -> None:
    inside = {name for name, network in PROJECT["networks"].items() if network.get("internal")}
    assert inside == {"database", "api"}
    assert {name for name in SERVICES if set(SERVICES[name]["networks"]) - inside} == {"caddy"}
    assert "database" not in SERVICES["caddy"]["networks"]


def test_the_host_has_no_address_in_the_internal_networks() -> None:
    for name in ("database", "api"):
        assert PROJECT["networks"][name]["driver_opts"] == {"com.docker.network.bridge.inhibit_ipv4": "true"}


def test_passwords_come_from_files() -> None:
    assert SERVICES["postgres"]["environment"]["POSTGRES_PASSWORD_FILE"] == "/run/secrets/postgres_password"
    assert SERVICES["server"]["environment"]["PGPASSFILE"] == "/run/secrets/pgpass"
    for name, secret in PROJECT["secrets"].items():
        assert secret == {"file": f"/etc/prefect/secrets/{name}"}
    for service in SERVICES.values():
        assert not [key for key in service["environment"] if key.endswith("PASSWORD")]


def test_the_host_reaches_postgres_by_its_socket_and_hands_dumps_over_in_staging() -> None:
    postgres = SERVICES["postgres"]
    binds = {mount["target"]: mount for mount in postgres["volumes"] if isinstance(mount, dict)}
    assert {target: mount["source"] for target, mount in binds.items()} == {
        "/run/postgresql": "/var/lib/prefect/postgres/socket",
        "/staging": "/var/backups/prefect/staging",
    }
    # Made by the kit with their owners, never by the engine as root's.
    assert all(mount["bind"] == {"create_host_path": False} for mount in binds.values())
    assert postgres["tmpfs"] == ["/tmp"]  # noqa: S108


@pytest.mark.parametrize("name", RUNNING)
def test_every_service_comes_back_tells_its_health_and_stops_in_peace(name: str) -> None:
    service = SERVICES[name]
    assert service["restart"] == "unless-stopped"
    assert service["healthcheck"]["test"][0] == "CMD"
    assert {"interval", "timeout", "start_period"} <= set(service["healthcheck"])
    assert service["stop_grace_period"]
    assert service["logging"]["driver"] == "journald"


def test_migrations_are_explicit() -> None:
    assert SERVICES["migrate"]["profiles"] == ["migrate"]
    assert SERVICES["migrate"]["restart"] == "no"
    assert SERVICES["migrate"]["command"] == ["prefect", "server", "database", "upgrade", "-y"]
    assert SERVICES["server"]["environment"]["PREFECT_SERVER_DATABASE_MIGRATE_ON_START"] == "false"


def test_the_defaults_suit_a_host_with_two_gigabytes() -> None:
    """Memory: a quarter of the host stays for the system and a worker. Nobody sets a cpu quota: some hosts refuse it."""
    assert sum(mebibytes(SERVICES[name]["mem_limit"]) for name in RUNNING) <= 0.75 * 2048
    assert not [name for name in SERVICES if {"cpus", "cpu_quota"} & set(SERVICES[name])]


def test_the_server_leaves_connections_for_others() -> None:
    environment = SERVICES["server"]["environment"]
    pool = int(environment["PREFECT_SERVER_DATABASE_SQLALCHEMY_POOL_SIZE"])
    overflow = int(environment["PREFECT_SERVER_DATABASE_SQLALCHEMY_MAX_OVERFLOW"])
    # A parallel dump or restore, a migration, a person, and the three that Postgres keeps for superusers.
    assert pool + overflow + 15 <= int(postgres_setting("max_connections"))


def test_what_is_acknowledged_is_on_disk() -> None:
    assert postgres_setting("synchronous_commit") == "on"
    assert "--data-checksums" in SERVICES["postgres"]["environment"]["POSTGRES_INITDB_ARGS"].split()


def test_caddy_drops_idle_connections_before_the_server_does() -> None:
    caddyfile = (COMPOSE.parents[1] / "caddy" / "Caddyfile").read_text()
    (keepalive,) = re.findall(r"^\s+keepalive (\d+)s$", caddyfile, re.MULTILINE)
    assert int(keepalive) < int(SERVICES["server"]["environment"]["PREFECT_SERVER_API_KEEPALIVE_TIMEOUT"])


# --- the server's health check ---------------------------------------------------------------------------------


class Site:
    """A stand-in for the server and the database: an HTTP server that answers `status`, or nothing."""

    def __init__(self) -> None:
        self.status = 200
        site = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.send_response(site.status)
                self.end_headers()

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.port = self.server.server_address[1]
        threading.Thread(target=self.server.serve_forever, daemon=True).start()


@pytest.fixture
def site() -> Iterator[Site]:
    site = Site()
    yield site
    site.server.shutdown()
    site.server.server_close()


class Check:
    """The program in compose.yml, with the addresses of stand-ins, and with words instead of the killing."""

    def __init__(self, directory: Path, site: Site) -> None:
        self.failing = directory / "failing"
        self.away = directory / "no-database"
        self.log = directory / "log"
        self.log.touch()
        cmd, python, options, program = SERVICES["server"]["healthcheck"]["test"]
        assert (cmd, python, options) == ("CMD", "python", "-Ic")
        for old, new in {
            "http://127.0.0.1:4200": f"http://127.0.0.1:{site.port}",
            "/tmp/failing": str(self.failing),  # noqa: S108
            "/tmp/no-database": str(self.away),  # noqa: S108
            "/proc/1/fd/2": str(self.log),
            "os.kill(-1, signal.SIGKILL)": 'print("KILLED", signal.SIGKILL)',
        }.items():
            assert program.count(old) == 1, old
            program = program.replace(old, new)
        self.program = program

    def run(self, database: int) -> subprocess.CompletedProcess[str]:
        """Run it once, with the database at this port."""
        program = self.program.replace('("postgres", 5432)', f'("127.0.0.1", {database})')
        return subprocess.run([sys.executable, "-Ic", program], capture_output=True, text=True, timeout=30)


@pytest.fixture
def check(tmp_path: Path, site: Site) -> Check:
    return Check(tmp_path, site)


CLOSED_PORT = 1


def test_a_server_that_answers_is_well(check: Check, site: Site) -> None:
    check.failing.touch()
    assert check.run(site.port).returncode == 0
    assert not check.failing.exists()


def test_without_a_database_the_server_is_ill_but_not_to_blame(check: Check, site: Site) -> None:
    site.status = 503
    check.failing.touch()
    done = check.run(CLOSED_PORT)
    assert done.returncode != 0
    assert "no database" in done.stderr
    assert "KILLED" not in done.stdout
    assert not check.failing.exists()


def test_a_server_without_a_database_for_long_starts_anew(check: Check, site: Site) -> None:
    """It heard no sign of life meanwhile, and would take every flow run for dead."""
    site.status = 503
    check.away.touch()
    os.utime(check.away, (time.time() - 70,) * 2)
    assert "KILLED" in check.run(CLOSED_PORT).stdout
    assert "no database for a minute; ending the server" in check.log.read_text()


def test_a_server_that_is_ill_for_a_moment_is_left_alone(check: Check, site: Site) -> None:
    site.status = 503
    for _ in range(2):
        done = check.run(site.port)
        assert done.returncode == 1
        assert "KILLED" not in done.stdout
    assert check.failing.exists()


def test_a_server_that_stays_ill_with_a_database_is_ended(check: Check, site: Site) -> None:
    site.status = 503
    check.failing.touch()
    os.utime(check.failing, (time.time() - 130,) * 2)
    assert "KILLED" in check.run(site.port).stdout
    assert "ending the server" in check.log.read_text()
