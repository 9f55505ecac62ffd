"""What is wrong with the settings of an inventory, in words: pure decisions, taken before a host is touched.

Names, types and choices are those of each role's `meta/argument_specs.yml`. They are looked at here and not by
Ansible's own check, because that prints a hundred lines around one fact, and stops at the first role.
What argument_specs cannot say comes after: formats, references between settings, duplicates, weak passwords.
"""

from __future__ import annotations

import contextlib
import difflib
import ipaddress
import os
import re
import zoneinfo
from collections import Counter
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from functools import cache, partial
from pathlib import Path
from typing import Any

import yaml
from cryptography import x509
from cryptography.hazmat.primitives import serialization

LABEL = r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?"
# The last label is never a number: 10.0.0.256 is a mistyped address and not a name.
DOMAIN = re.compile(rf"(?=.{{1,253}}$)({LABEL}\.)+(?![0-9]+$){LABEL}")
EMAIL = re.compile(r"[^@\s]+@[^@\s]+\.[^@\s]+")
# Also the instance of a systemd unit, a file name and a line in Caddy's users file.
NAME = re.compile(r"[a-z][a-z0-9-]{0,30}")
NAME_WORDS = "a lower-case letter, then up to 30 lower-case letters, digits and hyphens"
# A pinned image: a tag that is not "latest", or a digest.
IMAGE = re.compile(r"[a-z0-9./:_-]+(:(?!latest$)[A-Za-z0-9._-]+|@sha256:[0-9a-f]{64})")
# The database's files are of this major version of Postgres.
POSTGRES_MAJOR = "17"
CLOCK = re.compile(r"([01][0-9]|2[0-3]):[0-5][0-9]")
SIZE = re.compile(r"[1-9][0-9]*[KMGT]")
INTERFACE = re.compile(r"[A-Za-z0-9._@:-]{1,15}")
URL = re.compile(r"https://[^\s/]+(/\S*)?")
PUBLIC_KEY = re.compile(r"(^|\s)(ssh-(ed25519|rsa)|ecdsa-sha2-\S+|sk-\S+@openssh\.com) [A-Za-z0-9+/]{60,}=*(\s|$)")
LOCKED_PREFECT = re.compile(r"^prefect==([0-9.]+)", re.MULTILINE)
# Each wrong password costs the server a bcrypt hash, and there is no lock-out: length is what protects.
SHORTEST_PASSWORD = 16
# bcrypt looks at no more than 72 bytes.
LONGEST_PASSWORD = 72
FEWEST_CHARACTERS = 6
# Written by the playbook itself: its own accounts, and one for each worker.
RESERVED_ACCOUNT = re.compile(r"playbook|backups|worker-.*")
# Users of the system, and those that the playbook makes for its services.
RESERVED_USERS = ("root", "prefect", "prefect-server", "prefect-caddy", "prefect-docker")
# Inventories have variables host_…, docker_… and the like of their own: of those only what is nearly one of ours counts
# as a mistake.
STRICT_PREFIXES = ("prefect_", "preflight_")
LIKENESS = {"strict": 0.8, "loose": 0.9}
# The least that makes sense for settings that are numbers.
LEAST = {
    "prefect_events_retention_days": 1,
    "prefect_runs_retention_days": 1,
    "preflight_min_memory_mb": 0,
    "preflight_min_free_disk_gb": 0,
    "stack_postgres_memory_mb": 256,
    "stack_server_memory_mb": 512,
    "stack_caddy_memory_mb": 64,
    # The server's pool is 20, and a migration, a backup and a person with psql want in as well.
    "stack_postgres_max_connections": 30,
    "stack_start_timeout": 60,
    "stack_docker_timeout": 60,
    "backups_random_delay_seconds": 0,
    "backups_max_age_hours": 1,
    "backups_verify_max_age_days": 1,
    "backups_jobs": 1,
    "backups_reserve_mb": 256,
    "backups_notify_again_hours": 1,
    "backups_keep_previous_days": 0,
    "workers_api_timeout": 1,
    "workers_drain_seconds": 0,
    "workers_shutdown_seconds": 0,
    # Three signs of life, which come every 30 seconds.
    "workers_crash_seconds": 90,
    "checks_workers_timeout": 1,
    "checks_smoke_timeout": 1,
}
TYPE_WORDS = {
    "str": "text",
    "path": "text",
    "int": "a whole number",
    "bool": "true or false",
    "list": "a list",
    "dict": "a mapping",
}
# Under this name the lookup prefect_values tells of settings whose expression fails.
FAILED = "__failed"
BOOLEANS = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}


def _is_ipv4(text: str) -> bool:
    try:
        ipaddress.IPv4Address(text)
    except ValueError:
        return False
    return True


def _quoted(value: Any) -> str:
    return f'"{value}"'


def _is(name: str, value: Any) -> str:
    """The fact that a refusal begins with."""
    return f"{name} is not set" if value is None or value == "" else f"{name} is {_quoted(value)}"


class _Unread(Exception):
    """A setting that could not be read, so that what depends on it cannot be judged."""


class _Settings(dict[str, Any]):
    """The settings that are of the right types."""

    def __missing__(self, name: str) -> Any:
        raise _Unread(name)


def _listed(words: Iterable[Any]) -> str:
    """`a, b and c`."""
    *first, last = [str(word) for word in words]
    return f"{', '.join(first)} and {last}" if first else last


def _duplicates(names: Iterable[Any]) -> list[Any]:
    return [name for name, count in Counter(names).items() if count > 1]


def _bad_names(setting: str, names: list[str]) -> list[str]:
    problems = [
        f"{setting}: the name {_quoted(name)} is not allowed; allowed is {NAME_WORDS}"
        for name in names
        if not NAME.fullmatch(name)
    ]
    return problems + [f"{setting}: the name {_quoted(name)} stands twice" for name in _duplicates(names)]


def _is_file(path: str) -> bool:
    # A path that is not absolute means another file to each part of Ansible.
    return Path(path).is_absolute() and Path(path).is_file()


# --- names and types ---------------------------------------------------------------------------------------------


@cache
def _read_options(files: tuple[str, ...]) -> dict[str, Any]:
    """What the entry points main of these argument_specs.yml say, read once however often it is asked for."""
    options: dict[str, Any] = {}
    for file in files:
        options |= yaml.safe_load(Path(file).read_text())["argument_specs"]["main"].get("options") or {}
    return options


def prefect_options(files: list[str]) -> dict[str, Any]:
    """What the roles' argument specs say of each setting."""
    return _read_options(tuple(map(str, files)))


def unknown_problems(variables: Iterable[str], options: dict[str, Any]) -> list[str]:
    """Variables that look like settings of the kit and are none: mistyped, most likely."""
    problems = []
    for name in sorted(set(variables) - set(options)):
        strict = name.startswith(STRICT_PREFIXES)
        near = difflib.get_close_matches(name, options, n=1, cutoff=LIKENESS["strict" if strict else "loose"])
        if near:
            problems.append(f"there is no setting {_quoted(name)}; did you mean {_quoted(near[0])}?")
        elif strict:
            problems.append(f"there is no setting {_quoted(name)}; docs/settings.md lists what there is")
    return problems


def typed(where: str, value: Any, option: dict[str, Any], problems: list[str]) -> Any:
    """The value in the type that its option names; what is wrong with it is appended to `problems`.

    Text that reads as a number or a truth value is taken for one: `-e name=value` gives nothing but text.
    """
    kind = option["type"]
    if value is None:
        problems.append(f"{where} is not set; it must be {TYPE_WORDS[kind]}")
        return None
    if kind in ("str", "path") and isinstance(value, str):
        if value not in option.get("choices", [value]):
            problems.append(f"{_is(where, value)}; allowed are {_listed(option['choices'])}")
        return value
    if kind in ("str", "path") and isinstance(value, bool | int | float):
        # YAML has made 3.10 the number 3.1, and 13:30 the number 810: what was meant is lost.
        problems.append(f"{where} is the value {_quoted(value)} without quotes; it must be text, so write it in quotes")
        return None
    if kind == "int" and not isinstance(value, bool) and re.fullmatch(r"-?[0-9]+", str(value)):
        return int(value)
    if kind == "bool" and str(value).lower() in BOOLEANS:
        return BOOLEANS[str(value).lower()]
    if kind == "list" and isinstance(value, list):
        element = {**option, "type": option["elements"]}
        return [typed(f"{where}, entry {number}", entry, element, problems) for number, entry in enumerate(value, 1)]
    if kind == "dict" and isinstance(value, dict):
        return typed_keys(where, value, option["options"], problems) if "options" in option else value
    problems.append(f"{_is(where, value)}; it must be {TYPE_WORDS[kind]}")
    return None


def typed_keys(where: str, mapping: dict[str, Any], options: dict[str, Any], problems: list[str]) -> dict[str, Any]:
    """The same for each key of a mapping; a key that may be left out may also be empty, and is then left out."""
    for name in mapping:
        if name not in options:
            problems.append(f"{where}: there is no key {_quoted(name)}; allowed are {_listed(options)}")
    for name, option in options.items():
        if option.get("required") and mapping.get(name) is None:
            problems.append(f"{where}: the key {_quoted(name)} is missing")
    return {
        name: typed(f"{where}: {name}", mapping[name], option, problems)
        for name, option in options.items()
        if mapping.get(name) is not None
    }


# --- values ------------------------------------------------------------------------------------------------------


def number_problems(settings: dict[str, Any]) -> list[str]:
    """Numbers that are too small to work."""
    return [
        f"{setting} is {_quoted(settings[setting])}; it must be {least} or more"
        for setting, least in LEAST.items()
        # One that could not be read hides none of the others.
        if setting in settings and settings[setting] < least
    ]


def address_problems(settings: dict[str, Any]) -> list[str]:
    """What is wrong with the address of the server for other hosts."""
    address = settings["workers_server_address"]
    try:
        ipaddress.ip_address(address or "::1")
    except ValueError:
        return [f"workers_server_address is {_quoted(address)}; it must be an IP address, or empty"]
    return []


def domain_problems(settings: dict[str, Any]) -> list[str]:
    """What is wrong with the address that everybody uses."""
    domain = settings["prefect_domain"]
    if settings["prefect_tls"] == "acme":
        if DOMAIN.fullmatch(domain):
            return []
        return [
            f"{_is('prefect_domain', domain)}; with prefect_tls acme it must be a DNS name in lower case, "
            "such as prefect.example.org (without a name of your own: prefect_tls: internal)"
        ]
    if DOMAIN.fullmatch(domain) or _is_ipv4(domain):
        return []
    return [
        f"{_is('prefect_domain', domain)}; it must be a DNS name in lower case, such as prefect.example.org, or an IPv4 address"
    ]


def acme_problems(settings: dict[str, Any]) -> list[str]:
    """What is wrong with what an ACME authority is told, and with its own address."""
    email, directory = settings["prefect_email"], settings["prefect_acme_directory"]
    if settings["prefect_tls"] != "acme":
        return (
            [f"{_is('prefect_email', email)}; it must be an e-mail address or empty"]
            if email and not EMAIL.fullmatch(email)
            else []
        )
    problems = []
    if not EMAIL.fullmatch(email):
        problems.append(
            f"{_is('prefect_email', email)}; with prefect_tls acme it must be an e-mail address, such as ops@example.org"
        )
    if not URL.fullmatch(directory):
        problems.append(f"{_is('prefect_acme_directory', directory)}; it must begin with https://")
    return problems


def user_problems(settings: dict[str, Any]) -> list[str]:
    """What is wrong with the people and programs that may log in."""
    names = [user["name"] for user in settings["prefect_users"]]
    problems = _bad_names("prefect_users", names)
    problems += [
        f"prefect_users: the name {_quoted(name)} is reserved for the playbook and its workers"
        for name in names
        if RESERVED_ACCOUNT.fullmatch(name)
    ]
    if not names:
        problems.append("prefect_users is empty; without a user nobody can log in")
    return problems


def certificate_problems(settings: dict[str, Any], now: datetime | None = None) -> list[str]:
    """What is wrong with a certificate of the user's own and its key; `now` is the time to judge by (with a zone)."""
    if settings["prefect_tls"] != "files":
        return []
    paths = {name: settings[name] for name in ("prefect_tls_certificate", "prefect_tls_key")}
    problems = [
        f"{_is(name, path)}; with prefect_tls files it must be the absolute path of a PEM file on the control machine"
        for name, path in paths.items()
        if not _is_file(path)
    ]
    if problems:
        return problems
    certificate = key = None
    try:
        # The first one is the server's; what follows is its chain.
        certificate = x509.load_pem_x509_certificates(Path(paths["prefect_tls_certificate"]).read_bytes())[0]
    except ValueError:
        problems.append(
            f"prefect_tls_certificate is {_quoted(paths['prefect_tls_certificate'])}; that file holds no certificate in PEM"
        )
    try:
        key = serialization.load_pem_private_key(Path(paths["prefect_tls_key"]).read_bytes(), password=None)
    except (ValueError, TypeError):
        problems.append(
            f"prefect_tls_key is {_quoted(paths['prefect_tls_key'])}; that file holds no private key in PEM "
            "that is free of a passphrase"
        )
    if not certificate:
        return problems
    fact = f"prefect_tls_certificate is {_quoted(paths['prefect_tls_certificate'])}; that certificate"
    if key and certificate.public_key() != key.public_key():
        problems.append(f"{fact} does not belong to the key {_quoted(paths['prefect_tls_key'])} (prefect_tls_key)")
    begin, end = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    if not begin <= (now or datetime.now(UTC)) <= end:
        problems.append(f"{fact} is valid from {begin:%Y-%m-%d} to {end:%Y-%m-%d}, which is not now")
    names = _certificate_names(certificate)
    domain = settings["prefect_domain"]
    if not {domain, "*." + domain.partition(".")[2]} & set(names):
        problems.append(
            f"{fact} is for {_listed(map(_quoted, names)) if names else 'no name'}, "
            f"not for {_quoted(domain)} (prefect_domain)"
        )
    return problems


def _certificate_names(certificate: x509.Certificate) -> list[str]:
    """DNS names and addresses that a certificate is for; clients look at no other part of it."""
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return []
    return names.get_values_for_type(x509.DNSName) + [str(ip) for ip in names.get_values_for_type(x509.IPAddress)]


def secrets_problems(settings: dict[str, Any]) -> list[str]:
    """What is wrong with the secrets directory."""
    directory = Path(settings["prefect_secrets_dir"])
    there = next((path for path in (directory, *directory.parents) if path.exists()), Path("/"))
    if not directory.is_absolute() or not there.is_dir() or not os.access(there, os.W_OK):
        return [
            f"prefect_secrets_dir is {_quoted(directory)}; it must be the absolute path of a directory on the control "
            "machine that you may write to (it is made when it is missing)"
        ]
    return []


def password_problems(settings: dict[str, Any]) -> list[str]:
    """What is wrong with the passwords that are there; never says a password itself."""
    directory = Path(settings["prefect_secrets_dir"])
    accounts = [user["name"] for user in settings["prefect_users"]]
    accounts += ["playbook", "backups", *(f"worker-{worker['name']}" for worker in settings["prefect_workers"])]
    problems = []
    for account in dict.fromkeys(accounts):
        path = directory / "users" / account
        if "/" in account or not path.is_file():
            continue
        weakness = password_weakness(path.read_bytes().rstrip(b"\n"))
        if weakness:
            problems.append(
                f"the password of {_quoted(account)} in {path} {weakness} (delete the file to have one generated)"
            )
    return problems


def password_weakness(password: bytes) -> str:
    """What is wrong with a password, as the end of a sentence that begins with it; empty when all is well."""
    if not SHORTEST_PASSWORD <= len(password) <= LONGEST_PASSWORD:
        return f"has {len(password)} bytes; allowed are {SHORTEST_PASSWORD} to {LONGEST_PASSWORD}"
    if not password.isascii() or not password.decode().isprintable() or b" " in password:
        return "holds a blank, a control or a non-ASCII character, which browsers and clients encode differently"
    if len(set(password)) < FEWEST_CHARACTERS:
        return f"is made of {len(set(password))} different characters; {FEWEST_CHARACTERS} or more are needed"
    return ""


def image_problems(settings: dict[str, Any], name: str) -> list[str]:
    """What is wrong with one of the images; a server of another version than the workers is refused (drift)."""
    image = settings[name]
    pinned = IMAGE.fullmatch(image)
    if not pinned:
        return [f"{_is(name, image)}; it must be pinned by a tag other than latest, or by a digest"]
    # Also beside a digest.
    tagged = re.search(r":([^:/]+)$", image.partition("@")[0])
    tag = tagged[1] if tagged else ""
    # Of a tag that begins with no version nothing can be said.
    found = re.match(r"[0-9]+\.[0-9]+\.[0-9]+", tag)
    if name == "prefect_image" and found and found[0] != settings["prefect_version"]:
        return [
            f"{_is(name, image)}; that is not the version {_quoted(settings['prefect_version'])} of prefect_version"
        ]
    if name == "prefect_postgres_image" and not tag:
        return [
            f"{_is(name, image)}; beside its digest it must have a tag, which tells its major version, such as "
            f"postgres:{POSTGRES_MAJOR}@sha256:…"
        ]
    major = re.match(r"[0-9]+", tag)
    if name == "prefect_postgres_image" and major and major[0] != POSTGRES_MAJOR:
        return [
            f"{_is(name, image)}; it must be of Postgres {POSTGRES_MAJOR}, as another major version cannot read the database's "
            "files"
        ]
    return []


def version_problems(settings: dict[str, Any], locked_version: str) -> list[str]:
    """A version that this release of the kit is not made for."""
    version = settings["prefect_version"]
    if version == locked_version:
        return []
    return [
        f"{_is('prefect_version', version)}; this release of the kit locks its workers to {_quoted(locked_version)}, "
        "and server and workers of different versions break each other"
    ]


def archive_problems(settings: dict[str, Any]) -> list[str]:
    """An archive of the images that is not there; what it holds is looked at where it is needed (server.yml)."""
    archive = settings["prefect_images_archive"]
    if not archive or _is_file(archive):
        return []
    return [
        f"prefect_images_archive is {_quoted(archive)}; it must be empty, or the absolute path of a file on the control machine"
    ]


def pool_problems(settings: dict[str, Any]) -> list[str]:
    """What is wrong with work pools and their queues."""
    pools = settings["prefect_work_pools"]
    problems = _bad_names("prefect_work_pools", [pool["name"] for pool in pools])
    if not pools:
        problems.append("prefect_work_pools is empty; without a work pool no flow runs")
    for pool in pools:
        where = f"prefect_work_pools: pool {_quoted(pool['name'])}"
        if pool["name"].startswith("prefect"):
            problems.append(f'{where}: Prefect keeps names that begin with "prefect" for itself')
        queues = pool.get("queues", [])
        problems += _bad_names(f"{where}, queues", [queue["name"] for queue in queues])
        problems += [
            f"{where}: two queues have the priority {_quoted(priority)}; Prefect keeps one queue at each"
            for priority in _duplicates(queue["priority"] for queue in queues)
        ]
        numbers = [("concurrency_limit", pool.get("concurrency_limit"), 0)]
        for queue in queues:
            of = f"of queue {_quoted(queue['name'])}"
            numbers.append((f"priority {of}", queue["priority"], 1))
            numbers.append((f"concurrency_limit {of}", queue.get("concurrency_limit"), 0))
        problems += [
            f"{where}: {what} is {_quoted(number)}; it must be {least} or more"
            for what, number, least in numbers
            if number is not None and number < least
        ]
    return problems


def worker_problems(settings: dict[str, Any]) -> list[str]:
    """What is wrong with workers, and with what they say of pools and queues."""
    pools = {pool["name"]: pool for pool in settings["prefect_work_pools"]}
    workers = settings["prefect_workers"]
    problems = _bad_names("prefect_workers", [worker["name"] for worker in workers])
    for worker in workers:
        where = f"prefect_workers: worker {_quoted(worker['name'])}"
        pool = pools.get(worker["pool"])
        if pool is None:
            problems.append(
                f"{where}: its pool is {_quoted(worker['pool'])}; "
                f"prefect_work_pools has {_listed(map(_quoted, pools)) if pools else 'none'}"
            )
        else:
            # Prefect makes the queue "default" with every pool.
            queues = dict.fromkeys(["default", *(queue["name"] for queue in pool.get("queues", []))])
            problems += [
                f"{where}: its queue is {_quoted(queue)}; the pool {_quoted(worker['pool'])} has {_listed(map(_quoted, queues))}"
                for queue in worker.get("queues", [])
                if queue not in queues
            ]
        if worker.get("limit", 1) < 1:
            problems.append(f"{where}: its limit is {_quoted(worker['limit'])}; it must be 1 or more")
    ports = [worker.get("health_port", 8080 + index) for index, worker in enumerate(workers)]
    problems += [
        f"prefect_workers: two workers have the health_port {_quoted(port)}; each needs its own "
        "(8080 and up by position when unset)"
        for port in _duplicates(ports)
    ]
    problems += [
        f"prefect_workers: health_port is {_quoted(port)}; allowed are 1024 to 65535"
        for port in ports
        if not 1024 <= port <= 65535
    ]
    return problems


def flow_problems(settings: dict[str, Any]) -> list[str]:
    """What is wrong with the release of the flows, as far as it can be said before it is built."""
    problems = []
    directory = Path(os.path.normpath(settings["flows_directory"]))
    for name in ("prefect.yaml", "requirements.txt"):
        if not directory.is_absolute() or not (directory / name).is_file():
            problems.append(
                f"{_is('flows_directory', settings['flows_directory'] and directory)}; it must be the absolute path of a "
                f'directory on the control machine with the file "{name}" in it'
            )
    if not problems:
        locked = LOCKED_PREFECT.search((directory / "requirements.txt").read_text())
        server = settings["prefect_version"]
        if not locked:
            problems.append(
                f'flows_directory is {_quoted(directory)}; its requirements.txt has no line "prefect==…", '
                "and without Prefect no flow starts"
            )
        elif _version(locked[1]) > _version(server):
            problems.append(
                f"flows_directory is {_quoted(directory)}; its requirements.txt has Prefect {_quoted(locked[1])}, which is "
                f"newer than the server's {_quoted(server)} (prefect_version)"
            )
    return problems


def flows_pool_problems(settings: dict[str, Any]) -> list[str]:
    """A pool for deployments that there is not."""
    pools, pool = [pool["name"] for pool in settings["prefect_work_pools"]], settings["flows_pool"]
    if not pools or pool in pools:
        return []
    return [f"{_is('flows_pool', pool)}; prefect_work_pools has {_listed(map(_quoted, pools))}"]


def _version(text: str) -> list[int]:
    return [int(part) for part in re.findall(r"[0-9]+", text)]


def clock_problems(settings: dict[str, Any]) -> list[str]:
    """A time zone that nobody knows."""
    zone, zones = settings["host_timezone"], zoneinfo.available_timezones()
    # A control machine without a zone database cannot judge; the host then does.
    if not zones or zone in zones:
        return []
    return [f"{_is('host_timezone', zone)}; it must be a name such as Europe/Berlin or Etc/UTC"]


def window_problems(settings: dict[str, Any]) -> list[str]:
    """A time of day that is none."""
    time = settings["host_reboot_time"]
    return [] if CLOCK.fullmatch(time) else [f"{_is('host_reboot_time', time)}; it must be a time such as 03:30"]


def journal_problems(settings: dict[str, Any]) -> list[str]:
    """A size that is none."""
    size = settings["host_journal_max_size"]
    return (
        [] if SIZE.fullmatch(size) else [f"{_is('host_journal_max_size', size)}; it must be a size such as 500M or 2G"]
    )


def admin_problems(settings: dict[str, Any]) -> list[str]:
    """A user for administration that cannot be made."""
    admin = settings["host_admin_user"]
    if NAME.fullmatch(admin) and admin not in RESERVED_USERS:
        return []
    return [f"{_is('host_admin_user', admin)}; allowed is {NAME_WORDS}, and none of {', '.join(RESERVED_USERS)}"]


def key_problems(settings: dict[str, Any]) -> list[str]:
    """Keys that are none; the value is not shown, as it may be a private key."""
    return [
        f"host_admin_keys, entry {number} is no public ssh key, such as: ssh-ed25519 AAAA… name"
        for number, key in enumerate(settings["host_admin_keys"], 1)
        if not PUBLIC_KEY.search(key)
    ]


def port_problems(settings: dict[str, Any]) -> list[str]:
    """Ports that there are not."""
    return [
        f"host_firewall_tcp_ports: {_quoted(port)} is not a port from 1 to 65535"
        for port in settings["host_firewall_tcp_ports"]
        if not 1 <= port <= 65535
    ]


def interface_problems(settings: dict[str, Any]) -> list[str]:
    """Names that no network interface has."""
    return [
        f"host_firewall_trusted_interfaces: {_quoted(name)} is no name of a network interface, such as wg0"
        for name in settings["host_firewall_trusted_interfaces"]
        if not INTERFACE.fullmatch(name)
    ]


def authority_problems(settings: dict[str, Any]) -> list[str]:
    """Files that hold no certificate."""
    return [
        f"host_extra_ca_certificates: {_quoted(path)} is not the absolute path of a PEM file with a certificate "
        "on the control machine"
        for path in settings["host_extra_ca_certificates"]
        if not _is_file(path) or b"-----BEGIN CERTIFICATE-----" not in Path(path).read_bytes()
    ]


# Each looks at few settings, so that one that cannot be read hides as little as possible.
CHECKS: tuple[Callable[[dict[str, Any]], list[str]], ...] = (
    domain_problems,
    acme_problems,
    user_problems,
    certificate_problems,
    secrets_problems,
    password_problems,
    *(
        partial(image_problems, name=name)
        for name in ("prefect_image", "prefect_postgres_image", "prefect_caddy_image")
    ),
    archive_problems,
    pool_problems,
    worker_problems,
    flow_problems,
    flows_pool_problems,
    clock_problems,
    window_problems,
    journal_problems,
    admin_problems,
    key_problems,
    port_problems,
    interface_problems,
    authority_problems,
    address_problems,
    number_problems,
)


def read(values: dict[str, Any], options: dict[str, Any], problems: list[str]) -> _Settings:
    """The settings of the right types; what is wrong with the others is appended to `problems`."""
    settings = _Settings()
    failed = values.get(FAILED, {})
    for name, option in options.items():
        if name in failed:
            problems.append(f"{name} cannot be computed from what it is set to: {failed[name]}")
            continue
        wrong: list[str] = []
        value = typed(name, values[name], option, wrong)
        if not wrong:
            settings[name] = value
        problems += wrong
    return settings


def prefect_settings_problems(
    values: dict[str, Any], options: dict[str, Any], variables: list[str], locked_version: str
) -> list[str]:
    """Everything that is wrong with the settings, one sentence each; empty when all is well.

    Args:
        values: the value of each setting (of those that failed, the reasons by name under `__failed`: lookup prefect_values).
        options: what the roles' argument_specs say of each setting.
        variables: every variable whose name begins like a setting's.
        locked_version: the version of Prefect in the lock file of the workers' venv.
    """
    problems = unknown_problems(variables, options)
    settings = read(values, options, problems)
    for check in (partial(version_problems, locked_version=locked_version), *CHECKS):
        # What could not be read has been told, and what depends on it cannot be judged.
        with contextlib.suppress(_Unread):
            problems += check(settings)
    return problems


def prefect_typed(values: dict[str, Any], options: dict[str, Any], needed: Iterable[str] = ("",)) -> dict[str, Any]:
    """The settings in the types that the roles' argument_specs name; none at all when one that is needed is of another.

    Args:
        values: the value of each setting.
        options: what the roles' argument_specs say of each setting.
        needed: how the names of those begin that are needed; all, when it is not given.
    """
    settings = read(values, options, [])
    unread = [name for name in options if name not in settings and name.startswith(tuple(needed))]
    return {} if unread else dict(settings)


def prefect_left_passwords(accounts: list[str], directory: str) -> list[str]:
    """What is left in the secrets directory of accounts that the inventory has no longer, one sentence each.

    Only of those that the playbook has let in: beside the password of each it keeps a salt of its own making.
    """
    secrets = Path(directory)
    left = sorted(path.name for path in (secrets / "users").glob("*") if path.name not in accounts)
    return [
        f"the account {_quoted(name)} is not in the inventory, and its password is still in {secrets / 'users' / name}; delete "
        f"that file, or {_quoted(name)} has the same password when it is added again"
        for name in left
        if (secrets / "salts" / name).is_file()
    ]


class FilterModule:
    """Makes the filters known to Ansible."""

    def filters(self) -> dict[str, Any]:
        return {
            "prefect_left_passwords": prefect_left_passwords,
            "prefect_options": prefect_options,
            "prefect_settings_problems": prefect_settings_problems,
            "prefect_typed": prefect_typed,
        }
