"""The decisions in compose.yml, as data. That compose takes the file is tested in the lab, where compose is."""

from __future__ import annotations

import re
from typing import Any

import pytest
import yaml
from prefect_watch import status

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
        assert PROJECT["networks"][name]["driver_opts"]["com.docker.network.bridge.inhibit_ipv4"] == "true"


def test_passwords_come_from_files() -> None:
    assert SERVICES["postgres"]["environment"]["POSTGRES_PASSWORD_FILE"] == "/run/secrets/postgres_password"
    assert SERVICES["server"]["environment"]["PGPASSFILE"] == "/run/secrets/server_pgpass"
    for name, secret in PROJECT["secrets"].items():
        assert secret == {"file": f"/etc/prefect/secrets/{name}"}
    for service in SERVICES.values():
        assert not [key for key in service["environment"] if key.endswith("PASSWORD")]


def test_the_host_reaches_postgres_by_its_socket_and_hands_dumps_over_in_staging() -> None:
    postgres = SERVICES["postgres"]
    binds = {mount["target"]: mount for mount in postgres["volumes"] if isinstance(mount, dict)}
    assert {target: mount["source"] for target, mount in binds.items()} == {
        "/docker-entrypoint-initdb.d": "./postgres",
        "/run/postgresql": "/var/lib/prefect/postgres/socket",
        "/staging": "/var/backups/prefect/staging",
    }
    # Made by the kit with their owners, never by the engine as root's.
    assert all(mount["bind"] == {"create_host_path": False} for mount in binds.values())
    assert postgres["tmpfs"] == ["/tmp", "/var/lib/postgresql"]  # noqa: S108


def test_the_host_tells_the_proxy_of_itself_and_hears_nothing() -> None:
    """Status and exporters' sockets, as a directory: what is renamed or made anew in it is seen."""
    mounts = [mount for mount in SERVICES["caddy"]["volumes"] if mount["source"] == "/var/lib/prefect/monitoring"]
    assert [(mount["target"], mount["read_only"]) for mount in mounts] == [("/run/prefect-monitoring", True)]
    assert str(status.PATH.parent) == mounts[0]["source"]
    proxy = "".join(path.read_text() for path in (COMPOSE.parents[1] / "caddy").glob("*[Cc]addy*"))
    named = set(re.findall(rf"{mounts[0]['target']}/([\w.]+)", proxy))
    sockets = [path.read_text() for path in (COMPOSE.parents[1] / "systemd").glob("prefect-metrics-*.socket")]
    listening = {line for text in sockets for line in re.findall(r"^ListenStream=(.+)$", text, re.MULTILINE)}
    assert {f"{mounts[0]['source']}/{name}" for name in named} == listening | {str(status.PATH)}


def test_metrics_are_off_until_somebody_wants_them() -> None:
    assert SERVICES["caddy"]["environment"]["PREFECT_METRICS"] == "off"
    assert SERVICES["server"]["environment"]["PREFECT_SERVER_METRICS_ENABLED"] == "off"
    on = yaml.safe_load(interpolate(COMPOSE.read_text(), {**GIVEN, "PREFECT_METRICS": "on"}))["services"]
    assert on["caddy"]["environment"]["PREFECT_METRICS"] == "on"
    assert on["server"]["environment"]["PREFECT_SERVER_METRICS_ENABLED"] == "on"


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
    """Memory: a quarter of the host stays for the system and a worker."""
    assert sum(mebibytes(SERVICES[name]["mem_limit"]) for name in RUNNING) <= 0.75 * 2048


@pytest.mark.parametrize("name", SERVICES)
def test_every_service_has_its_share_of_processes(name: str) -> None:
    """A host of 2 GB has room for some 15,000; Prefect's thread pools have 322 at most, Postgres a process for each connection."""
    limit = int(SERVICES[name]["pids_limit"])
    assert limit == int(postgres_setting("max_connections")) + 100 if name == "postgres" else 400 < limit < 1024
    environment = (COMPOSE.parents[1] / "ansible/roles/stack/templates/stack.env.j2").read_text()
    assert "POSTGRES_PIDS={{ stack_postgres_max_connections | int + 100 }}" in environment


def test_only_caddys_processor_time_is_limited() -> None:
    """By a quota, which Docker leaves out where the kernel cannot limit; `cpus` it refuses there."""
    assert not [name for name in SERVICES if "cpus" in SERVICES[name]]
    assert [name for name in SERVICES if "cpu_quota" in SERVICES[name]] == ["caddy"]
    # Without the playbook's env-file there is none.
    assert SERVICES["caddy"]["cpu_quota"] == 0


def test_the_server_leaves_connections_for_others() -> None:
    environment = SERVICES["server"]["environment"]
    pool = int(environment["PREFECT_SERVER_DATABASE_SQLALCHEMY_POOL_SIZE"])
    overflow = int(environment["PREFECT_SERVER_DATABASE_SQLALCHEMY_MAX_OVERFLOW"])
    # A parallel dump or restore, a migration, a person, and the three that Postgres keeps for superusers.
    assert pool + overflow + 15 <= int(postgres_setting("max_connections"))


def test_what_is_acknowledged_is_on_disk() -> None:
    assert postgres_setting("synchronous_commit") == "on"
    assert "--data-checksums" in SERVICES["postgres"]["environment"]["POSTGRES_INITDB_ARGS"].split()


def test_no_request_meets_a_connection_that_the_server_is_closing() -> None:
    caddyfile = (COMPOSE.parents[1] / "caddy" / "Caddyfile").read_text()
    assert re.findall(r"^\s+keepalive (.+)$", caddyfile, re.MULTILINE) == ["off"]


def test_the_servers_programs_are_mounted_and_a_change_of_them_makes_a_new_container() -> None:
    """Isolated: no variable and no directory of anybody else's decides what they import."""
    server, text = SERVICES["server"], COMPOSE.read_text()
    (mount,) = [mount for mount in server["volumes"] if mount["source"] == "./server"]
    assert mount["read_only"] is True
    assert server["command"] == ["python", "-I", f"{mount['target']}/start.py"]
    assert server["healthcheck"]["test"] == ["CMD", "sh", f"{mount['target']}/healthcheck.sh"]
    assert "prefect-kit.programs: ${SERVER_PROGRAMS:-}" in text
    role = COMPOSE.parents[1] / "ansible" / "roles" / "stack"
    placed = yaml.safe_load((role / "vars" / "main.yml").read_text())
    for directory, names in (("server", "__stack_programs"), ("server/access", "__stack_access")):
        programs = {path.name for path in (COMPOSE.parent / directory).iterdir() if path.is_file()}
        assert set(placed[names]) == programs
    assert (
        "SERVER_PROGRAMS={{ query('ansible.builtin.file', *((__stack_programs + (__stack_access"
        in (role / "templates" / "stack.env.j2").read_text()
    )


@pytest.mark.parametrize("name", RUNNING)
def test_health_checks_are_rare(name: str) -> None:
    """Each costs the engine more than an idle container; while one starts, a slow machine has no time for them."""
    check = SERVICES[name]["healthcheck"]
    assert int(check["interval"].removesuffix("s")) >= 15
    assert name == "server" or int(check["start_interval"].removesuffix("s")) >= 2


def test_what_was_never_healthy_has_time() -> None:
    """A slow machine starts the server, makes a cluster or recovers one for minutes."""
    assert SERVICES["server"]["healthcheck"]["timeout"] == "15m"
    assert SERVICES["postgres"]["healthcheck"]["start_period"] == "15m"
    unit = (COMPOSE.parents[1] / "systemd" / "prefect-stack.service").read_text()
    assert "\nTimeoutStartSec=30min\n" in unit


def test_images_are_had_before_anything_that_names_them_is_written() -> None:
    """And what fails after the first file is written is taken back."""
    role = COMPOSE.parents[1] / "ansible" / "roles" / "stack" / "tasks"
    tasks = yaml.safe_load((role / "main.yml").read_text())
    words = ("ansible.builtin.import_tasks", "ansible.builtin.include_tasks")
    names = [
        name
        for task in tasks
        if (name := next((task[word] for word in words if word in task), "block" * ("block" in task)))
    ]
    # The server's role before a file says that it connects as that, and the superuser's password until it has.
    assert names == [
        "places.yml",
        "secrets.yml",
        "images.yml",
        "server_role.yml",
        "database_password.yml",
        "encryption_key.yml",
        "block",
        "superuser.yml",
        "encryption_key_row.yml",
        "ca.yml",
    ]
    (block,) = [task for task in tasks if "block" in task]
    imported = [task["ansible.builtin.import_tasks"] for task in block["block"]]
    assert imported == ["proxy.yml", "project.yml", "migrate.yml", "service.yml"]
    assert [task["ansible.builtin.import_tasks"] for task in block["rescue"]] == ["take_back.yml"]


def test_docker_has_time_for_each_call() -> None:
    """By default it has 60 s, which a slow machine needs to load an image."""
    for path in (COMPOSE.parents[1] / "ansible" / "roles" / "stack" / "tasks").glob("*.yml"):
        calls = re.findall(r"community\.docker\.docker_(?!compose)\w+:\n((?: +.+\n)+)", path.read_text())
        assert all('timeout: "{{ stack_docker_timeout }}"' in call for call in calls), path.name
