"""What this host is configured to connect to: read from its own files. Nothing is asked of anybody but its name server."""

from __future__ import annotations

import contextlib
import ipaddress
import re
import socket
from collections.abc import Iterable, Iterator
from pathlib import Path
from urllib.parse import urlsplit

from prefect_backups.errors import Failure
from prefect_backups.settings import Settings
from prefect_doctor.asked import said
from prefect_watch import settings as watch_settings

from .reasons import Configured, Network, Reason

URL = re.compile(r"\b(?:https?|ftp)://(?:[^\s/@]*@)?(\[[0-9A-Fa-f:.]+\]|[^\s/:\]\"';,]+)")
#: Of /etc/nftables.d/prefect-egress.nft: the networks of workers_egress_networks.
EGRESS_NETWORK = re.compile(r"ip6? daddr ([0-9A-Fa-f:.]+/[0-9]+) ")
#: sftp:user@host:/path and user@host:/path of restic.
SFTP = re.compile(r"sftp:(?!//)(?:[^@/]*@)?([^:/]+):")
#: What Docker's own registry consists of, beside the name that images have.
DOCKER_HUB = ("registry-1.docker.io", "auth.docker.io", "production.cloudflare.docker.com")
TIME = ("ServerName", "ServerAddress", "SystemNTPServers", "LinkNTPServers", "FallbackNTPServers", "RuntimeNTPServers")
TIME_FILES = (
    "/etc/chrony/chrony.conf",
    "/etc/chrony/conf.d/*.conf",
    "/etc/chrony/sources.d/*.sources",
    "/etc/ntpsec/ntp.conf",
)
#: Addresses in apprise's classes that nothing is sent to.
NO_ALERTS = ("service_url", "setup_url", "app_url", "image_url_logo", "image_url_mask")
ENVIRONMENT = "/etc/prefect/stack.env"


def place(text: str) -> tuple[str, Network | None]:
    """An entry that names a host, an address or a network: as the name, or as the network."""
    word = text.strip().strip("[]").rstrip(".")
    try:
        return "", ipaddress.ip_network(word, strict=False)
    except ValueError:
        return word.lower(), None


def reason(words: str, entries: Iterable[str]) -> Reason:
    """A reason for these names, addresses and networks."""
    found = [place(entry) for entry in entries if entry.strip()]
    names = tuple(dict.fromkeys(name for name, _ in found if name))
    return Reason(words, names, tuple(dict.fromkeys(network for _, network in found if network is not None)))


def hosts_of_urls(text: str) -> list[str]:
    """The hosts of all addresses in a text, comments left out."""
    lines = (line for line in text.splitlines() if not line.lstrip().startswith(("#", "//")))
    return [found for line in lines for found in URL.findall(line)]


def host_of(url: str) -> str:
    """The host of one address; empty where it has none."""
    try:
        return urlsplit(url if "://" in url or url.startswith("//") else f"//{url}").hostname or ""
    except ValueError:
        return ""


def host_of_repository(repository: str) -> str:
    """The host of a restic repository; empty where it is a path, or where rclone knows."""
    if found := SFTP.match(repository):
        return found[1]
    kind, _, rest = repository.partition(":")
    if kind in ("s3", "rest", "sftp", "swift"):
        return host_of(rest)
    return {"b2": "*.backblazeb2.com", "azure": "*.core.windows.net", "gs": "storage.googleapis.com"}.get(kind, "")


def registries(images: Iterable[str]) -> list[str]:
    """The hosts of the registries of images."""
    found: list[str] = []
    for image in images:
        first, slash, _ = image.partition("/")
        named = slash and ("." in first or ":" in first or first == "localhost")
        found += [first.partition(":")[0]] if named and first != "docker.io" else DOCKER_HUB
    return list(dict.fromkeys(found))


def variables(text: str) -> dict[str, str]:
    """The values of a file of NAME=VALUE lines."""
    pairs = (line.partition("=") for line in text.splitlines() if "=" in line and not line.startswith("#"))
    return {name.strip(): value.strip().strip("\"'") for name, _, value in pairs}


def of_stack(values: dict[str, str]) -> list[Reason]:
    """What stack.env says of others: the ACME authority, single sign-on, registries, the server itself."""
    found = [reason("prefect_domain: the server itself", [values.get("PREFECT_DOMAIN", "")])]
    if values.get("PREFECT_TLS") == "acme":
        found.append(reason("ACME authority (prefect_tls)", [host_of(values.get("PREFECT_ACME_DIRECTORY", ""))]))
    found.append(reason("single sign-on (prefect_sso_proxy)", [host_of(values.get("PREFECT_SSO_PROXY", ""))]))
    images = [value for name, value in values.items() if name.endswith("_IMAGE")]
    found.append(reason("registry of the images", registries(images)))
    return found


def _of_alert(service: object) -> list[str]:
    """The hosts that apprise sends one kind of message to. What else stands in its address may be a secret: no name server is asked for that."""
    found = [str(getattr(service, "smtp_host", "") or ""), str(getattr(service, "host", "") or "")]
    # A service of its own knows its address by itself, beside those of its web site and of apprise's manual.
    for name in dir(type(service)):
        value = getattr(type(service), name, None)
        if name.endswith("_url") and isinstance(value, str) and name not in NO_ALERTS:
            found.append(host_of(value))
    return [host for host in found if "." in host or ":" in host]


def of_watch(watch: watch_settings.Watch) -> list[Reason]:
    """Where alerts and events go."""
    import apprise

    alerts: list[str] = []
    for url in watch.notify_urls:
        alerts += _of_alert(apprise.Apprise.instantiate(url, suppress_exceptions=True))
    datadog = watch.datadog
    events = [host_of(datadog.url) or f"api.{datadog.site}"] if datadog.api_key else []
    return [
        reason("alerts (watch_notify_urls)", alerts),
        reason("heartbeat (watch_heartbeat_url)", [host_of(watch.heartbeat_url)]),
        reason("events for Datadog (watch_datadog_api_key)", events),
    ]


def _texts(*patterns: str) -> Iterator[str]:
    for pattern in patterns:
        for path in sorted(Path("/").glob(pattern.lstrip("/"))):
            try:
                yield path.read_text(errors="replace")
            except OSError:
                continue


def _text(path: str) -> str:
    return "\n".join(_texts(path))


def time_servers() -> list[str]:
    """Names and addresses of the servers that tell the time."""
    clock = ""
    # Where it does not run, timedatectl waits for it.
    if said("systemctl", "is-active", "systemd-timesyncd.service").strip() == "active":
        clock = said("timedatectl", "show-timesync", *(f"--property={name}" for name in TIME))
    servers = [word for line in clock.splitlines() for word in line.partition("=")[2].split()]
    for text in _texts(*TIME_FILES):
        servers += re.findall(r"(?m)^\s*(?:server|pool|peer)\s+(\S+)", text)
    return servers


def look(settings: Settings, expected: Iterable[str]) -> Configured:
    """Everything that the host is configured for.

    Args:
        expected: names, addresses and networks that a person has named.
    """
    sources = "\n".join(
        _texts("/etc/apt/sources.list", "/etc/apt/sources.list.d/*", "/etc/apt/apt.conf", "/etc/apt/apt.conf.d/*")
    )
    servers = time_servers()
    resolved = "\n".join(_texts("/etc/resolv.conf", "/run/systemd/resolve/resolv.conf"))
    names = [
        *_text("/etc/prefect-egress/names").split(),
        *EGRESS_NETWORK.findall(_text("/etc/nftables.d/prefect-egress.nft")),
    ]
    reasons = [
        reason("named on the command line", expected),
        reason("packages and security updates", hosts_of_urls(sources)),
        reason("clock", servers),
        *of_stack(variables(_text(ENVIRONMENT))),
        reason("backups off-site (backups_offsite)", [host_of_repository(one.repository) for one in settings.offsite]),
        reason("what automations send (automations_allowed_hosts)", _text("/etc/prefect-automations/allowed").split()),
        reason(
            "logs (host_journal_upload_url)",
            hosts_of_urls(_text("/etc/systemd/journal-upload.conf.d/*.conf").replace("URL=", "URL= ")),
        ),
        reason("index of Python packages", hosts_of_urls("\n".join(_texts("/etc/pip.conf", "/etc/uv/uv.toml")))),
        reason("what flows may connect to (workers_egress)", names),
    ]
    # Without settings it alerts nobody.
    with contextlib.suppress(Failure):
        reasons += of_watch(watch_settings.load())
    words = [line.split() for line in resolved.splitlines()]
    return Configured(
        [one for one in reasons if one.names or one.networks],
        frozenset(line[1].partition("%")[0] for line in words if line[:1] == ["nameserver"] and len(line) > 1),
        tuple(
            domain.rstrip(".")
            for line in words
            if line[:1] in (["search"], ["domain"])
            for domain in line[1:]
            if domain != "."
        ),
        addresses(reasons),
    )


def addresses(reasons: Iterable[Reason]) -> dict[str, str]:
    """What the configured names lead to now, with the reason of each."""
    found: dict[str, str] = {}
    for one in reasons:
        for name in one.names:
            if "*" in name:
                continue
            try:
                answers = socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)
            except OSError:
                continue
            for answer in answers:
                found.setdefault(str(answer[4][0]), one.words)
    return found
