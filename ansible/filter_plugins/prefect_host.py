"""What keeps a host from carrying Prefect, in words: pure decisions about what the preflight has seen there."""

from __future__ import annotations

import fnmatch
import ipaddress
import re
from collections.abc import Iterable
from typing import Any

SYSTEMS = {("debian", "13")}
ARCHITECTURES = ("x86_64", "aarch64")
# One line of `ss --listening --processes`: the local port, and the first process that has the socket.
LISTENER = re.compile(
    r'\S+\s+\S+\s+\S+\s+\S*:(?P<port>[0-9]+)\s+\S+(\s+users:\(\("(?P<name>[^"]*)",pid=(?P<pid>[0-9]+))?'
)
# Those of compose/compose.yml, where the role stack places it.
OUR_PROJECT = "prefect"
OUR_DIRECTORY = "/opt/prefect/compose"
OUR_CONTAINERS = ("prefect-postgres", "prefect-server", "prefect-caddy")
# Those of compose.yml by the names that compose gives them, and that of the role docker_pool: what is in them.
OUR_NETWORKS = {"prefect_database": "stack", "prefect_api": "stack", "prefect_edge": "stack", "prefect-flows": "flows"}
PUBLIC_KEY = re.compile(r"^(ssh|ecdsa|sk)-", re.MULTILINE)
# Packages that apt would remove without a word, as Debian's docker.io conflicts with them.
OTHER_DOCKER = ("docker-ce", "containerd.io", "podman-docker")
# What a firewall of the host's own would do to ours; ufw leaves other tables alone.
OTHER_FIREWALLS = {
    "nftables": "whose rules are loaded beside the kit's, and whose start flushes Docker's",
    "firewalld": "whose rules are loaded beside the kit's, and close the kit's ports",
}


def prefect_system_problems(seen: str) -> list[str]:
    """What is wrong with the system itself, one sentence each; empty when all is well.

    Args:
        seen: six lines, each of which may be empty, and maybe more: id, version and full name of /etc/os-release, the machine's
            architecture, the path of python3, the name of the first process.
    """
    identity, version, name, architecture, python, init = ([line.strip() for line in seen.splitlines()] + [""] * 6)[:6]
    problems = []
    if (identity, version) not in SYSTEMS:
        problems.append(f'its system is "{name or identity or "unknown"}"; supported is Debian 13 (trixie)')
    if architecture not in ARCHITECTURES:
        problems.append(f'its architecture is "{architecture}"; supported are {" and ".join(ARCHITECTURES)}')
    if init != "systemd":
        problems.append(f'its first process is "{init}"; it must be systemd')
    if not python:
        problems.append("it has no python3, which Ansible needs; run there: apt-get install --yes python3")
    return problems


def prefect_domain_problem(domain: str, answer: dict[str, Any], address: str, facts: list[str]) -> str:
    """Why no ACME authority would give the host a certificate for the domain, or not surely; empty when one would.

    Args:
        domain: the name that the certificate is for.
        answer: what the lookup prefect_dns says of the domain and of `address`.
        address: the name or address by which the inventory has the host.
        facts: the addresses that the host says it has.
    """
    leads_to = answer["addresses"][domain]
    host = list(dict.fromkeys([*answer["addresses"][address], *facts]))
    asked = f"asked at {_or(answer['servers'])}, this machine's name server{'s' if len(answer['servers']) > 1 else ''}"
    if not answer["servers"]:
        return f'"{domain}" (prefect_domain) cannot be looked up: this machine has no name server (/etc/resolv.conf)'
    if domain in answer["silent"]:
        return f'"{domain}" (prefect_domain) cannot be looked up: no answer from {_or(answer["servers"])}, this machine\'s name server'
    others = [each for each in leads_to if each not in host]
    if leads_to and not others:
        return ""
    if len(others) < len(leads_to):
        # An authority asks at one address, and takes IPv6 first.
        return (
            f'"{domain}" (prefect_domain) also resolves to {", ".join(others)}, which is not this host\'s '
            f"({', '.join(host)}; {asked}), so an ACME authority may give it no certificate"
        )
    return (
        f'"{domain}" (prefect_domain) resolves to {", ".join(leads_to) or "nothing"}, not to this host '
        f"({', '.join(host)}; {asked}), so no ACME authority would give it a certificate"
    )


def _or(words: list[str]) -> str:
    return " or ".join(words)


def port_problems(listeners: str, ours: bool) -> list[str]:
    """Ports of the reverse proxy that another process has; `ours` says that those are the kit's own Caddy's."""
    if ours:
        return []
    problems: dict[int, str] = {}
    for found in map(LISTENER.match, listeners.splitlines()):
        if found:
            process, status = f'"{found["name"]}" (process {found["pid"]})', f"systemctl status {found['pid']}"
            if not found["pid"]:
                process, status = "a process that cannot be seen", f"ss -ltnp sport = :{found['port']}"
            problems.setdefault(
                int(found["port"]),
                f"port {found['port']} is taken by {process}; find what it belongs to ({status}), and disable that",
            )
    return [problems[port] for port in sorted(problems)]


def other_problems(others: list[str]) -> list[str]:
    """Packages and services that get in the kit's way: each of `others` is the state and the name of one."""
    states = {name: state for state, name in (line.split(" ", 1) for line in others)}
    problems = []
    packages = [name for name in OTHER_DOCKER if states.get(name) == "installed"]
    if packages:
        quoted = ", ".join(f'"{name}"' for name in packages)
        problems.append(
            f"it has Docker from elsewhere ({quoted}), which Debian's docker.io would "
            f"replace; remove it first (apt-get purge {' '.join(packages)}); its data in /var/lib/docker stays"
        )
    problems += [
        f"its {name}.service is enabled, {harm}; move them to host_firewall_tcp_ports, and run there: "
        f"systemctl disable --now {name}"
        for name, harm in OTHER_FIREWALLS.items()
        if states.get(f"{name}.service", "").startswith("enabled")
    ]
    return problems


def room_problems(seen: dict[str, Any]) -> list[str]:
    """Too little memory, or too little disk space for a first install."""
    problems = []
    if seen["memory_mb"] < seen["least_memory_mb"]:
        problems.append(
            f"it has {seen['memory_mb']} MiB of memory; {seen['least_memory_mb']} MiB are needed (preflight_min_memory_mb)"
        )
    if not seen["installed"] and seen["free_gb"] < seen["least_free_gb"]:
        problems.append(
            f"{seen['free_gb']} GiB of disk space are free under /var/lib; {seen['least_free_gb']} GiB are needed "
            "(preflight_min_free_disk_gb)"
        )
    return problems


def container_problems(containers: str) -> list[str]:
    """Containers that the kit's would replace: of its Compose project's name, or of the names of its own.

    Args:
        containers: a line each, before a first install: name, Compose project, and that project's directory, with tabs between.
    """
    directories: dict[str, list[str]] = {}
    problems = []
    for line in containers.splitlines():
        name, project, directory = [*line.split("\t"), "", ""][:3]
        # What is left of an install of the kit's is its own.
        if directory == OUR_DIRECTORY:
            continue
        if project == OUR_PROJECT:
            directories.setdefault(directory, []).append(name)
        elif name in OUR_CONTAINERS:
            problems.append(
                f'it has a container "{name}" that is not the kit\'s, whose own has that name; rename it '
                f"(docker rename {name} {name}-other), or take another host"
            )
    for directory, names in sorted(directories.items()):
        quoted = ", ".join(f'"{name}"' for name in sorted(names))
        problems.append(
            f'it has a Compose project "{OUR_PROJECT}" in "{directory}" that is not the kit\'s ({quoted}), which the kit\'s '
            "project of that name would take over; give it another name (its containers are made again: docker compose "
            "--project-name), or take another host"
        )
    return problems


def key_problems(seen: dict[str, Any]) -> list[str]:
    """No key to log in by."""
    if seen["keys"] is None or seen["admin_keys"] or PUBLIC_KEY.search(seen["keys"]):
        return []
    return [
        "it knows no ssh key of yours, and this playbook turns passwords off in sshd, which would lock you out; set "
        f"host_admin_keys to your public keys, or run: ssh-copy-id {seen['login']}"
    ]


def prefect_host_problems(seen: dict[str, Any]) -> list[str]:
    """What is wrong with the host, one sentence each; empty when all is well.

    Args:
        seen: `memory_mb` and `least_memory_mb` in MiB; `free_gb` and `least_free_gb` in GiB; `installed`, whether an
            earlier run has been here; `password`, the file with the database's password on this machine, and
            `password_exists`; `accounts`, the directory with the accounts' passwords there, and `accounts_exist`; `others`,
            packages and services with their states; `containers`, those that are there before a first install; `listeners`, the output of ss; `ours`,
            whether Caddy of ours has the ports; `keys`, the authorized_keys of the user who is connected (None: not
            looked at); `admin_keys`, the keys of the settings; `login`, that user and the host, as ssh takes them; `domain_problem`.
    """
    problems = room_problems(seen)
    if seen["installed"] and not seen["password_exists"]:
        problems.append(
            f'it has an install, but "{seen["password"]}" is missing on this machine, so new passwords would be made; '
            "copy the secrets directory from where it was installed (prefect_secrets_dir)"
        )
    elif seen["installed"] and not seen["accounts_exist"]:
        problems.append(
            f'it has accounts, but "{seen["accounts"]}" is missing on this machine, so all of them would get new passwords, and nobody '
            "be let in with the present ones; take it from the recovery kit (inventory/secrets/users), or, if you want that, make it, empty: "
            f"mkdir {seen['accounts']}"
        )
    problems += other_problems(seen["others"])
    problems += container_problems(seen["containers"])
    problems += port_problems(seen["listeners"], seen["ours"])
    problems += key_problems(seen)
    if seen["domain_problem"]:
        problems.append(
            f"{seen['domain_problem']}; set its DNS record and wait until it is seen, or go on all the same with "
            "-e preflight_dns_mismatch=warn (right behind NAT, where the public address is not the host's own), or choose "
            "prefect_tls: internal"
        )
    return problems


def prefect_worker_host_problems(seen: dict[str, Any]) -> list[str]:
    """What is wrong with a host that only runs workers, one sentence each; empty when all is well.

    Args:
        seen: as for `prefect_host_problems`, as far as it is there; `server`, where the host looks for the server, and
            whether it `resolved` that name and `reached` the reverse proxy there (both true when there is no server yet).
    """
    problems = room_problems(seen) + other_problems(seen["others"]) + key_problems(seen)
    instead = "or set workers_server_address to an address by which it reaches the server"
    if not seen["resolved"]:
        problems.append(f'it finds no address for "{seen["server"]}" (prefect_domain); set its DNS record, {instead}')
    elif not seen["reached"]:
        problems.append(
            f'nothing answers it at port 443 of "{seen["server"]}", where the server\'s public endpoint is; let it through, {instead}'
        )
    return problems


def prefect_never_blocked(named: Iterable[str], hosts: Iterable[str]) -> list[str]:
    """Who is never blocked for failed logins, as networks that fail2ban takes.

    Of IPv6 the reverse proxy tells the /64, so that is the least that can be named.

    Args:
        named: addresses and networks of the settings. Raises ValueError for one that is none.
        hosts: names and addresses by which the inventory reaches its hosts; a name says nothing of the address that they have.
    """
    given = [ipaddress.ip_network(text) for text in ("127.0.0.0/8", *named)]
    for host in hosts:
        try:
            given.append(ipaddress.ip_network(host))
        except ValueError:
            continue
    networks = [
        one if one.version == 4 or one.prefixlen <= 64 else one.supernet(new_prefix=64) for one in dict.fromkeys(given)
    ]
    single = [str(one.network_address if one.prefixlen == one.max_prefixlen else one) for one in networks]
    return list(dict.fromkeys(single))


def prefect_allowed_sources(named: Iterable[str], hosts: Iterable[str]) -> dict[str, list[str]]:
    """Who may connect to the reverse proxy, for nftables: `ipv4` and `ipv6` networks; both empty when everybody may.

    Args:
        named: addresses and networks of the settings. Raises ValueError for one that is none.
        hosts: names and addresses by which the inventory reaches its hosts; a name says nothing of the address that they have.
    """
    given = [ipaddress.ip_network(text) for text in named]
    if not given:
        return {"ipv4": [], "ipv6": []}
    for host in hosts:
        try:
            given.append(ipaddress.ip_network(host))
        except ValueError:
            continue
    both = {version: [one for one in given if one.version == version] for version in (4, 6)}
    return {
        f"ipv{version}": [str(one) for one in ipaddress.collapse_addresses(found)] for version, found in both.items()
    }


def prefect_bridges(networks: str, interfaces: list[str], trusted: list[str]) -> dict[str, Any]:
    """Which bridges of Docker's networks have the name that Docker gives by itself: `br-` and the network's id.

    Args:
        networks: a line each: id and name.
        interfaces: names of the host's network interfaces.
        trusted: those that the firewall does not filter, or their beginnings with a `*`.

    Returns:
        `former`: of the kit's networks, which get a name of their own when they are made again, by what the firewall lets them
        (`stack`, `flows`); what has none is left out. `others`: everybody else's networks that the firewall filters, each with its bridge.
    """
    former: dict[str, list[str]] = {}
    others = []
    for number, name in (line.split(maxsplit=1) for line in networks.splitlines()):
        bridge = f"br-{number[:12]}"
        if bridge not in interfaces:
            continue
        if name in OUR_NETWORKS:
            former.setdefault(OUR_NETWORKS[name], []).append(bridge)
        elif not any(fnmatch.fnmatchcase(bridge, one) for one in trusted):
            others.append(f"{name} ({bridge})")
    return {"former": {kind: sorted(bridges) for kind, bridges in former.items()}, "others": sorted(others)}


def prefect_release_problem(directory: str, left_out: list[str]) -> str:
    """Why a changed release is not deployed by a run that leaves out hosts which would run it."""
    return (
        f'the flows in "{directory}" have changed, and --limit leaves out {", ".join(left_out)}, which would be told to run '
        "them without having them; run it for all hosts (or take such a host out of the inventory), or add: --skip-tags flows"
    )


PHASES = (
    "host",
    "docker",
    "stack",
    "backups",
    "automations",
    "metrics",
    "workers",
    "docker_pool",
    "flows",
    "watch",
    "checks",
)


def prefect_phases(tags: list[str], skipped: list[str]) -> list[str]:
    """The phases of site.yml that run with these tags; all of them where the tags name none."""
    named = [phase for phase in PHASES if phase in tags] or list(PHASES)
    return [phase for phase in named if phase not in skipped]


def prefect_first_run(phases: list[str], host: str, plan: dict[str, Any]) -> list[str]:
    """What site.yml would do to a host that it has not been through, a line for each phase.

    Args:
        phases: those that would run.
        host: its name in the inventory.
        plan: what the settings say, by name (roles/preflight/tasks/main.yml).
    """
    ports = [22, *([80, 443] if plan["server"] else []), *plan["ports"]]
    tls = {
        "acme": "by the ACME authority",
        "internal": "by an authority of its own",
        "files": "by you (prefect_tls_certificate)",
    }
    images = "pull" if not plan["archive"] else f"load from {plan['archive']}"
    lines = {
        "host": f"take passwords out of sshd, let in the user {plan['admin']} by key, close all TCP ports but "
        f"{', '.join(map(str, ports))}, set the time zone to {plan['timezone']}, turn on security updates",
        "docker": "install Docker and Compose from Debian's packages",
        "stack": f"{images} {', '.join(plan['images'])}, start them, and serve {plan['url']} with a certificate made {tls[plan['tls']]}",
        "backups": f"install restic and the tools, and back up {plan['schedule']}"
        + (
            f", with copies in {', '.join(plan['offsite'])}"
            if plan["offsite"]
            else ", with no copy off-site (backups_offsite)"
        ),
        "workers": (f"make the work pools {', '.join(plan['pools'])}, and " if plan["server"] else "")
        + (f"start the workers {', '.join(plan['workers'])}" if plan["workers"] else "start no worker"),
        "flows": f"place a release of the flows in {plan['flows']}" + (", and deploy it" if plan["server"] else ""),
        "watch": "check the server each minute, and alert "
        + (f"{plan['people']} addresses" if plan["people"] else "nobody (watch_notify_urls)"),
        "checks": "run a smoke flow, and make the first backup",
    }
    on_server_only = ("docker", "stack", "backups", "watch", "checks")
    return [
        f"No installation has reached its end on {host} yet, and a check (--check) compares with what is installed. The preflight "
        "has found nothing in the way. Without --check, site.yml would:",
        *(
            f"- {phase}: {lines[phase]}"
            for phase in phases
            if phase in lines and (plan["server"] or phase not in on_server_only)
        ),
        "Nothing has been changed.",
    ]


class FilterModule:
    """Makes the filters known to Ansible."""

    def filters(self) -> dict[str, Any]:
        return {
            "prefect_bridges": prefect_bridges,
            "prefect_domain_problem": prefect_domain_problem,
            "prefect_host_problems": prefect_host_problems,
            "prefect_never_blocked": prefect_never_blocked,
            "prefect_allowed_sources": prefect_allowed_sources,
            "prefect_release_problem": prefect_release_problem,
            "prefect_first_run": prefect_first_run,
            "prefect_phases": prefect_phases,
            "prefect_system_problems": prefect_system_problems,
            "prefect_worker_host_problems": prefect_worker_host_problems,
        }
