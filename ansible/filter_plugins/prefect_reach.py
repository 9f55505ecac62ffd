"""What a first installation downloads from where, and what keeps a host from it, in words: pure decisions."""

from __future__ import annotations

import json
import re
from typing import Any

from cryptography import x509

# Where Docker looks for an image whose name begins with no registry.
DOCKER_HUB = "registry-1.docker.io"
IMAGE_SETTINGS = ("prefect_image", "prefect_postgres_image", "prefect_caddy_image")
SSH_USER = "the user that Ansible logs in as (ansible_user)"


def _quoted(value: Any) -> str:
    return f'"{value}"'


def _listed(words: list[str]) -> str:
    """`a, b and c`."""
    *first, last = words
    return f"{', '.join(first)} and {last}" if first else last


def registry_of(image: str) -> str:
    """The registry's host (and port) that an image comes from."""
    first, slash, _ = image.partition("/")
    return first if slash and ("." in first or ":" in first or first == "localhost") else DOCKER_HUB


def prefect_endpoints(settings: dict[str, Any]) -> list[dict[str, Any]]:
    """What the server's host asks over HTTPS for a first installation, for the module prefect_reach.

    Args:
        settings: the three images, `prefect_images_archive`, `docker_daemon_settings`, `prefect_tls` and
            `prefect_acme_directory`.
    """
    endpoints = []
    engine = settings["docker_daemon_settings"]
    if not settings["prefect_images_archive"]:
        proxy = (engine.get("proxies") or {}).get("https-proxy", "")
        for registry in dict.fromkeys(registry_of(settings[name]) for name in IMAGE_SETTINGS):
            mirrors = engine.get("registry-mirrors") or [] if registry == DOCKER_HUB else []
            insecure = registry in (engine.get("insecure-registries") or [])
            addresses = [mirror.rstrip("/") for mirror in mirrors] + [f"https://{registry}"]
            if not insecure:
                endpoints.append({"name": "registry", "urls": [f"{url}/v2/" for url in addresses], "proxy": proxy})
    if settings["prefect_tls"] == "acme":
        endpoints.append({"name": "acme", "urls": [settings["prefect_acme_directory"]]})
    return endpoints


def prefect_package_index(_: Any = None) -> str:
    """The Python package index of whoever is told no other, from pip itself; empty where pip does not say."""
    try:
        from pip._internal.models.index import PyPI
    except ImportError:
        # No public name holds it, and a file of this kit names no index.
        return ""
    return PyPI.simple_url


# What is downloaded from each, and what to set where there is another way.
WHAT = {
    "mirror": (
        "download Debian's packages from {host}",
        "let it through, or name a mirror that it reaches in its /etc/apt/sources.list.d (a proxy: /etc/apt/apt.conf.d)",
    ),
    "index": (
        "download Python packages from {host}",
        "let it through, or name an index that it reaches as index-url in its /etc/pip.conf and /etc/uv/uv.toml",
    ),
    "registry": (
        "download images from {host}",
        "let it through, or set prefect_images_archive to an archive of the images, or registry-mirrors or proxies in "
        "docker_daemon_settings",
    ),
    "acme": (
        "ask for a certificate at {host} (prefect_acme_directory)",
        "let it through, or choose prefect_tls: internal or files",
    ),
}


def issuer_of(certificate: str) -> str:
    """Who made a certificate (PEM); empty where it cannot be read."""
    try:
        return x509.load_pem_x509_certificate(certificate.encode()).issuer.rfc4514_string()
    except ValueError:
        return ""


def prefect_reach_problems(failures: list[dict[str, str]]) -> list[str]:
    """Why a host could not be provisioned from where it is, one sentence each; empty when all answers.

    Args:
        failures: what the module prefect_reach has returned.
    """
    reasons = {
        "name": "that name does not resolve there",
        "way": "{text}",
        "status": "it answers {text}",
        "apt": "{text}",
    }
    untrusted: dict[str, list[str]] = {}
    problems = []
    for each in failures:
        if each["kind"] == "certificate":
            untrusted.setdefault(issuer_of(each["certificate"]), []).append(_quoted(each["host"]))
            continue
        what, instead = WHAT[each["name"]]
        reason = reasons[each["kind"]].format(text=each["text"])
        problems.append(f"it cannot {what.format(host=_quoted(each['host']))}: {reason}; {instead}")
    for issuer, hosts in untrusted.items():
        maker = f"made by {_quoted(issuer)}" if issuer else "of an authority"
        problems.append(
            f"it does not trust the certificates that it is shown for {_listed(list(dict.fromkeys(hosts)))}, {maker}; if that "
            "is your company's inspection of TLS, put the authority's PEM file into host_extra_ca_certificates"
        )
    return problems


def prefect_archive_problem(read: dict[str, Any], settings: dict[str, Any]) -> str:
    """Why prefect_images_archive does not do, as far as it can be read; empty when it does.

    Args:
        read: `rc`, `stdout` and `stderr` of tar, which was asked for manifest.json.
        settings: the archive and the three images.
    """
    where = f"prefect_images_archive is {_quoted(settings['prefect_images_archive'])};"
    if read["rc"]:
        # Where the program that uncompresses it is missing here, the host's Docker may still know how.
        lacking = re.search(
            r"cannot exec|not found: |command not found|child returned status 127", read["stderr"], re.I
        )
        if lacking and "manifest.json" not in read["stderr"]:
            return ""
        return (
            f"{where} that file is no archive as docker save writes it; make it with: docker save --output FILE IMAGE…"
        )
    try:
        held = [tag for image in json.loads(read["stdout"]) for tag in image.get("RepoTags") or []]
    except (ValueError, AttributeError, TypeError):
        return f"{where} its manifest.json is not one of docker save"
    held = [re.sub(r"^docker\.io/(library/)?", "", tag) for tag in held]
    missing = [
        f"{_quoted(settings[name])} ({name})"
        for name in IMAGE_SETTINGS
        if "@" not in settings[name] and settings[name] not in held
    ]
    if not missing:
        return ""
    there = f"it holds {_listed([_quoted(tag) for tag in sorted(held)])}" if held else "it holds no image with a name"
    return f"{where} {there}, and not {_listed(missing)}; make it with: docker save --output FILE IMAGE…"


def prefect_connection_problem(tried: dict[str, Any], login: str, port: int | str = 22, host: str = "") -> str:
    """Why Ansible does not get into a host, and what to do; empty when it does.

    Args:
        tried: what a first command there gave: its `rc`, and the words of Ansible, ssh and sudo.
        login: the user and the host, as ssh takes them (`root@192.0.2.10`, or the host alone).
        port: where ssh asks.
        host: the host's name in the inventory.
    """
    if tried.get("rc") == 0 and not tried.get("unreachable"):
        return ""
    said = " ".join(" ".join(str(tried.get(name, "")) for name in ("msg", "module_stderr", "stderr", "stdout")).split())
    address = login.rpartition("@")[2]
    ssh = f"ssh {login}" if str(port) == "22" else f"ssh -p {port} {login}"
    remembered = address if str(port) == "22" else f"'[{address}]:{port}'"
    where = f'"{address}"' + (f" (ansible_host of {host})" if host and host != address else "")
    if "IDENTIFICATION HAS CHANGED" in said:
        return (
            f"the host key of {where} is another one than this machine remembers. Has the server been reinstalled? Then run: "
            f"ssh-keygen -R {remembered}, and log in once by hand: {ssh}. If not, do not connect: somebody may answer in its place"
        )
    if "Host key verification failed" in said or "authenticity of host" in said:
        return (
            f"this machine does not know the host key of {where} yet. Log in once by hand: {ssh}, compare the fingerprint with "
            "the one that your provider shows, and answer yes"
        )
    if re.search(r"Permission denied|Too many authentication failures|no matching host key|Incorrect password", said):
        user = login.rpartition("@")[0]
        return (
            f"{where} accepts no ssh key of yours"
            f"{f' for the user {_quoted(user)}' if user else ''}. Give it one: ssh-copy-id {login}, or name the right user and "
            f"key in hosts.yml (ansible_user, ansible_ssh_private_key_file), until this works: {ssh}"
        )
    if re.search(r"Could not resolve hostname|Name or service not known", said):
        return f"{where} does not resolve on this machine. Set ansible_host in hosts.yml to an address that this works with: {ssh}"
    if re.search(r"timed out|No route to host|refused|unreachable|Connection (reset|closed)", said, re.I):
        reason = re.search(
            r"(Connection timed out|No route to host|Connection refused|Network is unreachable|Connection \w+)", said
        )
        return (
            f"nothing lets this machine in at port {port} of {where}"
            f"{f' ({reason[0]})' if reason else ''}. Is the address right (ansible_host in hosts.yml), is the server up, does a "
            f"firewall of your provider's let port {port} through? Try: {ssh}"
        )
    if re.search(r"sudo: .*password|Missing sudo password|a terminal is required|not in the sudoers", said):
        return (
            f"{SSH_USER} may not use sudo there without a password. Run it with --ask-become-pass, log in as root "
            "(ansible_user: root), or let that user use sudo"
        )
    return f"it cannot be logged in to: {said[-300:]}. Try: {ssh}"


class FilterModule:
    """Makes the filters known to Ansible."""

    def filters(self) -> dict[str, Any]:
        return {
            "prefect_archive_problem": prefect_archive_problem,
            "prefect_connection_problem": prefect_connection_problem,
            "prefect_endpoints": prefect_endpoints,
            "prefect_package_index": prefect_package_index,
            "prefect_reach_problems": prefect_reach_problems,
        }
