"""What is set of the host itself: time, journal, administrator, firewall, certificate authorities."""

from __future__ import annotations

import ipaddress
import re
import zoneinfo
from pathlib import Path
from typing import Any

from .words import NAME, NAME_WORDS, given, is_file, quoted

CLOCK = re.compile(r"([01][0-9]|2[0-3]):[0-5][0-9]")
SIZE = re.compile(r"[1-9][0-9]*[KMGT]")
UPLOAD = re.compile(r"https?://[A-Za-z0-9.:\[\]-]+(/\S*)?")
# Or how the names of several begin.
INTERFACE = re.compile(r"[A-Za-z0-9._@:-]{1,15}|[A-Za-z0-9._@:-]{1,14}\*")
USER = re.compile(r"[A-Za-z_][A-Za-z0-9._-]{0,31}")
PUBLIC_KEY = re.compile(r"(^|\s)(ssh-(ed25519|rsa)|ecdsa-sha2-\S+|sk-\S+@openssh\.com) [A-Za-z0-9+/]{60,}=*(\s|$)")
# As long as fail2ban remembers (dbpurgeage).
A_DAY = 86400
# Users of the system, and those that the playbook makes for its services.
RESERVED_USERS = ("root", "prefect", "prefect-server", "prefect-caddy", "prefect-docker")


def clock_problems(settings: dict[str, Any]) -> list[str]:
    """A time zone that nobody knows."""
    zone, zones = settings["host_timezone"], zoneinfo.available_timezones()
    # A control machine without a zone database cannot judge; the host then does.
    if not zones or zone in zones:
        return []
    return [f"{given('host_timezone', zone)}; it must be a name such as Europe/Berlin or Etc/UTC"]


def window_problems(settings: dict[str, Any]) -> list[str]:
    """A time of day that is none."""
    time = settings["host_reboot_time"]
    return [] if CLOCK.fullmatch(time) else [f"{given('host_reboot_time', time)}; it must be a time such as 03:30"]


def journal_problems(settings: dict[str, Any]) -> list[str]:
    """A size that is none."""
    size = settings["host_journal_max_size"]
    return (
        []
        if SIZE.fullmatch(size)
        else [f"{given('host_journal_max_size', size)}; it must be a size such as 500M or 2G"]
    )


def upload_problems(settings: dict[str, Any]) -> list[str]:
    """An address that no log can be sent to, and files that are not there."""
    url = settings["host_journal_upload_url"]
    files = {name: settings[f"host_journal_upload_{name}"] for name in ("ca", "certificate", "key")}
    problems = [
        f"{given(f'host_journal_upload_{name}', path)}; it must be the absolute path of a PEM file on the control machine"
        for name, path in files.items()
        if path and not is_file(path)
    ]
    if url and not UPLOAD.fullmatch(url):
        problems.append(
            f"{given('host_journal_upload_url', url)}; it must be an address such as https://logs.example.org:19532"
        )
    if bool(files["certificate"]) != bool(files["key"]):
        problems.append("host_journal_upload_certificate and host_journal_upload_key go together: set both, or none")
    return problems


def admin_problems(settings: dict[str, Any]) -> list[str]:
    """A user for administration that cannot be made."""
    admin = settings["host_admin_user"]
    if NAME.fullmatch(admin) and admin not in RESERVED_USERS:
        return []
    return [f"{given('host_admin_user', admin)}; allowed is {NAME_WORDS}, and none of {', '.join(RESERVED_USERS)}"]


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
        f"{name}: {quoted(port)} is not a port from 1 to 65535"
        for name in ("host_firewall_tcp_ports", "host_firewall_udp_ports")
        for port in settings[name]
        if not 1 <= port <= 65535
    ]


def interface_problems(settings: dict[str, Any]) -> list[str]:
    """Names that no network interface has."""
    return [
        f"host_firewall_trusted_interfaces: {quoted(name)} is no name of a network interface, such as wg0"
        for name in settings["host_firewall_trusted_interfaces"]
        if not INTERFACE.fullmatch(name)
    ]


def cloud_problems(settings: dict[str, Any]) -> list[str]:
    """Names that no user has. (Whether the host has that user, the preflight asks there.)"""
    return [
        f"host_cloud_metadata_users: {quoted(name)} is no name of a system user, such as dd-agent"
        for name in settings["host_cloud_metadata_users"]
        if not USER.fullmatch(name)
    ]


def not_networks(settings: dict[str, Any], name: str) -> list[str]:
    """Entries of a list that are neither addresses nor networks."""

    def is_network(text: str) -> bool:
        try:
            ipaddress.ip_network(text)
        except ValueError:
            return False
        return True

    return [
        f"{name}: {quoted(text)} is no address or network, such as 203.0.113.7 or 203.0.113.0/24"
        for text in settings[name]
        if not is_network(text)
    ]


def allowed_problems(settings: dict[str, Any]) -> list[str]:
    """Networks that are none, and a certificate that nobody would give to a server that is closed."""
    problems = not_networks(settings, "prefect_allowed_networks")
    public = settings["prefect_tls"] == "acme" and ".letsencrypt.org/" in settings["prefect_acme_directory"]
    if settings["prefect_allowed_networks"] and public:
        problems.append(
            "prefect_allowed_networks keeps out Let's Encrypt, which connects from anywhere to ports 80 and 443; with prefect_tls"
            " files bring a certificate of your own, or take prefect_tls internal"
        )
    return problems


def guessing_problems(settings: dict[str, Any]) -> list[str]:
    """Addresses that are none, and blocks that end before they begin or are forgotten before they end."""
    problems = not_networks(settings, "host_guessing_never_block")
    first, longest = settings["host_guessing_block_seconds"], settings["host_guessing_longest_block_seconds"]
    if not first <= longest <= A_DAY:
        problems.append(
            f"{given('host_guessing_longest_block_seconds', longest)}; it must be from {first} (host_guessing_block_seconds) to {A_DAY}"
        )
    return problems


def authority_problems(settings: dict[str, Any]) -> list[str]:
    """Files that hold no certificate."""
    return [
        f"host_extra_ca_certificates: {quoted(path)} is not the absolute path of a PEM file with a certificate "
        "on the control machine"
        for path in settings["host_extra_ca_certificates"]
        if not is_file(path) or b"-----BEGIN CERTIFICATE-----" not in Path(path).read_bytes()
    ]
