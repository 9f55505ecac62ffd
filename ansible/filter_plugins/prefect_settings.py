"""What is wrong with the settings of an inventory, in words: pure decisions, tried before a host is touched.

Types and choices are held by each role's `meta/argument_specs.yml`; here is what those cannot say: formats,
references between settings, duplicates, and passwords that are too weak.
"""

from __future__ import annotations

import ipaddress
import re
import zoneinfo
from collections import Counter
from pathlib import Path
from typing import Any

LABEL = r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?"
DOMAIN = re.compile(rf"{LABEL}(\.{LABEL})+")
EMAIL = re.compile(r"[^@\s]+@[^@\s]+\.[^@\s]+")
# Also the instance of a systemd unit, a file name and a line in Caddy's users file.
NAME = re.compile(r"[a-z][a-z0-9-]{0,30}")
NAME_WORDS = "a lower-case letter, then up to 30 lower-case letters, digits and hyphens"
# A pinned image: a tag that is not "latest", or a digest.
IMAGE = re.compile(r"[a-z0-9./:_-]+(:(?!latest$)[A-Za-z0-9._-]+|@sha256:[0-9a-f]{64})")
CLOCK = re.compile(r"([01][0-9]|2[0-3]):[0-5][0-9]")
URL = re.compile(r"https://[^\s/]+(/\S*)?")
# Each wrong password costs the server a bcrypt hash, and there is no lock-out: length is what protects.
SHORTEST_PASSWORD = 16
# bcrypt looks at no more than 72 bytes.
LONGEST_PASSWORD = 72
# Written by the playbook itself: its own account, and one for each worker.
RESERVED_ACCOUNT = re.compile(r"playbook|worker-.*")


def _is_ipv4(text: str) -> bool:
    try:
        ipaddress.IPv4Address(text)
    except ValueError:
        return False
    return True


def _quoted(value: Any) -> str:
    return f'"{value}"'


def _duplicates(names: list[str]) -> list[str]:
    return [name for name, count in Counter(names).items() if count > 1]


def _bad_names(setting: str, names: list[str]) -> list[str]:
    problems = [
        f"{setting}: the name {_quoted(name)} is not allowed; allowed is {NAME_WORDS}"
        for name in names
        if not NAME.fullmatch(name)
    ]
    return problems + [f"{setting}: the name {_quoted(name)} stands twice" for name in _duplicates(names)]


def door_problems(settings: dict[str, Any]) -> list[str]:
    """What is wrong with the address, the certificate and the users."""
    problems = []
    domain, tls, email = settings["prefect_domain"], settings["prefect_tls"], settings["prefect_email"]
    if tls == "acme":
        if not DOMAIN.fullmatch(domain) or _is_ipv4(domain):
            problems.append(
                f"prefect_domain is {_quoted(domain)}; with prefect_tls acme it must be a DNS name in lower case, "
                "such as prefect.example.org (without a name of your own: prefect_tls: internal)"
            )
        if not EMAIL.fullmatch(email):
            problems.append(
                f"prefect_email is {_quoted(email)}; prefect_tls acme needs an e-mail address, such as ops@example.org"
            )
        if not URL.fullmatch(settings["prefect_acme_directory"]):
            problems.append(
                f"prefect_acme_directory is {_quoted(settings['prefect_acme_directory'])}; it must begin with https://"
            )
    else:
        if not DOMAIN.fullmatch(domain) and not _is_ipv4(domain):
            problems.append(
                f"prefect_domain is {_quoted(domain)}; it must be a DNS name in lower case, such as "
                "prefect.example.org, or an IPv4 address"
            )
        if email and not EMAIL.fullmatch(email):
            problems.append(f"prefect_email is {_quoted(email)}; it must be an e-mail address or empty")
    if tls == "files":
        for setting in ("prefect_tls_certificate", "prefect_tls_key"):
            path = settings[setting]
            if not path or not Path(path).is_file():
                problems.append(
                    f"{setting} is {_quoted(path)}; prefect_tls files needs the path of a PEM file on the control machine"
                )
    names = [user["name"] for user in settings["prefect_users"]]
    problems += _bad_names("prefect_users", names)
    problems += [
        f"prefect_users: the name {_quoted(name)} is reserved for the playbook and its workers"
        for name in names
        if RESERVED_ACCOUNT.fullmatch(name)
    ]
    if not names:
        problems.append("prefect_users is empty; without a user nobody can log in")
    return problems


def password_problems(settings: dict[str, Any]) -> list[str]:
    """What is wrong with passwords that lie in the secrets directory; never says the password itself."""
    problems = []
    directory = Path(settings["prefect_secrets_dir"]) / "users"
    for user in settings["prefect_users"]:
        path = directory / user["name"]
        if not NAME.fullmatch(user["name"]) or not path.is_file():
            continue
        password = path.read_bytes().rstrip(b"\n")
        if not SHORTEST_PASSWORD <= len(password) <= LONGEST_PASSWORD:
            problems.append(
                f"the password of user {_quoted(user['name'])} in {path} has {len(password)} bytes; allowed are "
                f"{SHORTEST_PASSWORD} to {LONGEST_PASSWORD} (delete the file to have one generated)"
            )
        elif not password.isascii() or not password.decode().isprintable() or b" " in password:
            problems.append(
                f"the password of user {_quoted(user['name'])} in {path} holds a blank, a control or a non-ASCII "
                "character; browsers and clients encode those differently (delete the file to have one generated)"
            )
    return problems


def version_problems(settings: dict[str, Any], locked_version: str) -> list[str]:
    """What is wrong with the versions; a worker of another version than the server is refused (drift)."""
    problems = []
    version = settings["prefect_version"]
    if version != locked_version:
        problems.append(
            f"prefect_version is {_quoted(version)}; this release of the kit locks its workers to {_quoted(locked_version)}, "
            "and server and workers of different versions break each other"
        )
    for setting in ("prefect_image", "prefect_postgres_image", "prefect_caddy_image"):
        if not IMAGE.fullmatch(settings[setting]):
            problems.append(
                f"{setting} is {_quoted(settings[setting])}; it must be pinned by a tag other than latest, or by a digest"
            )
    archive = settings["prefect_images_archive"]
    if archive and not Path(archive).is_file():
        problems.append(f"prefect_images_archive is {_quoted(archive)}; there is no such file on the control machine")
    for setting in ("prefect_events_retention_days", "prefect_runs_retention_days"):
        if settings[setting] < 1:
            problems.append(f"{setting} is {_quoted(settings[setting])}; it must be 1 or more")
    return problems


def worker_problems(settings: dict[str, Any]) -> list[str]:
    """What is wrong with work pools, queues and workers, and with what they say of each other."""
    pools, workers = settings["prefect_work_pools"], settings["prefect_workers"]
    problems = _bad_names("prefect_work_pools", [pool["name"] for pool in pools])
    for pool in pools:
        where = f"prefect_work_pools: pool {_quoted(pool['name'])}"
        queues = pool.get("queues") or []
        problems += _bad_names(f"{where}, queues", [queue["name"] for queue in queues])
        problems += [
            f"{where}: two queues have the priority {_quoted(priority)}; Prefect keeps one queue at each"
            for priority in _duplicates([queue["priority"] for queue in queues])
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
    by_name = {pool["name"]: pool for pool in pools}
    problems += _bad_names("prefect_workers", [worker["name"] for worker in workers])
    for worker in workers:
        where = f"prefect_workers: worker {_quoted(worker['name'])}"
        if worker["pool"] not in by_name:
            problems.append(
                f"{where}: its pool is {_quoted(worker['pool'])}; prefect_work_pools has {', '.join(map(_quoted, by_name))}"
            )
            continue
        pool = by_name[worker["pool"]]
        if pool.get("type", "process") != "process":
            problems.append(
                f"{where}: its pool {_quoted(worker['pool'])} is of type {_quoted(pool['type'])}; "
                "the workers of this kit are of type process"
            )
        # Prefect makes the queue "default" with every pool.
        queues = {queue["name"] for queue in pool.get("queues") or []} | {"default"}
        problems += [
            f"{where}: its queue {_quoted(queue)} is not a queue of the pool {_quoted(worker['pool'])}"
            for queue in worker.get("queues") or []
            if queue not in queues
        ]
        if worker.get("limit") is not None and worker["limit"] < 1:
            problems.append(f"{where}: its limit is {_quoted(worker['limit'])}; it must be 1 or more")
    ports = [worker.get("health_port") or 8080 + index for index, worker in enumerate(workers)]
    problems += [f"prefect_workers: two workers have the health_port {_quoted(port)}" for port in _duplicates(ports)]
    problems += [
        f"prefect_workers: health_port is {_quoted(port)}; allowed are 1024 to 65535"
        for port in ports
        if not 1024 <= port <= 65535
    ]
    return problems


def host_problems(settings: dict[str, Any]) -> list[str]:
    """What is wrong with the settings of the role host."""
    problems = []
    zone = settings["host_timezone"]
    zones = zoneinfo.available_timezones()
    # A control machine without a zone database cannot judge; the host then does.
    if zones and zone not in zones:
        problems.append(f"host_timezone is {_quoted(zone)}; it must be a name such as Europe/Berlin or Etc/UTC")
    if not CLOCK.fullmatch(settings["host_reboot_time"]):
        problems.append(f"host_reboot_time is {_quoted(settings['host_reboot_time'])}; it must be a time such as 03:30")
    if not NAME.fullmatch(settings["host_admin_user"]) or settings["host_admin_user"] == "root":
        problems.append(
            f"host_admin_user is {_quoted(settings['host_admin_user'])}; allowed is {NAME_WORDS}, and not root"
        )
    problems += [
        f"host_firewall_tcp_ports: {_quoted(port)} is not a port from 1 to 65535"
        for port in settings["host_firewall_tcp_ports"]
        if not 1 <= port <= 65535
    ]
    problems += [
        f"host_extra_ca_certificates: {_quoted(path)} is not a file on the control machine"
        for path in settings["host_extra_ca_certificates"]
        if not Path(path).is_file()
    ]
    return problems


def prefect_settings_problems(settings: dict[str, Any], locked_version: str) -> list[str]:
    """Everything that is wrong with the settings, one sentence each; empty when all is well.

    Args:
        settings: the value of every setting that the roles' argument_specs name.
        locked_version: the version of Prefect in the lock file of the workers' venv.
    """
    return [
        *door_problems(settings),
        *password_problems(settings),
        *version_problems(settings, locked_version),
        *worker_problems(settings),
        *host_problems(settings),
    ]


class FilterModule:
    """Makes the filter known to Ansible."""

    def filters(self) -> dict[str, Any]:
        return {"prefect_settings_problems": prefect_settings_problems}
