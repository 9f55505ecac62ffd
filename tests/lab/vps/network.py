"""The network of a shard's VPSs: a subnet and a name server of its own, and names that this machine resolves."""

from __future__ import annotations

import fcntl
import ipaddress
import os
import subprocess
from collections.abc import Iterable
from pathlib import Path

from .engine import docker
from .images import LabImages
from .shell import LabError, say

#: Name of the network; each shard has its own, so that VPSs made from one snapshot can have one domain.
NETWORK = os.environ.get("PREFECT_LAB_NETWORK", "prefect-lab")
DNS_CONTAINER = f"{NETWORK}-dns"
HOSTS_FILE = Path("/etc/hosts")
#: What ends a line of the lab's in the hosts file, before the VPS's name.
HOSTS_MARK = "# prefect-lab VPS "
# Of the network's addresses the first eight are for its gateway and outsiders (Docker gives them out), one is the
# name server's, and the VPSs have theirs from the tenth on.
OUTSIDERS_PREFIX = 29
DNS_ADDRESS = 9
FIRST_ADDRESS = 10


# --- decisions -------------------------------------------------------------------------------------------------


def pick_subnet(taken: Iterable[str]) -> str:
    """A private /24 that overlaps none of the networks in `taken` (in CIDR notation, a default route left out)."""
    used = [ipaddress.ip_network(cidr, strict=False) for cidr in taken]
    used = [network for network in used if network.version == 4 and network.prefixlen]
    for third in range(80, 256):
        candidate = ipaddress.ip_network(f"10.213.{third}.0/24")
        if not any(candidate.overlaps(network) for network in used):
            return str(candidate)
    raise LabError("no private /24 of 10.213.0.0/16 is free", "ip route; docker network ls")


def pick_address(subnet: ipaddress.IPv4Network, taken: Iterable[str]) -> str:
    """The lowest free address for a VPS. It is fixed for the VPS's life, so a reboot keeps it."""
    used = set(taken)
    for address in list(subnet.hosts())[FIRST_ADDRESS - 1 :]:
        if str(address) not in used:
            return str(address)
    raise LabError(f'no address of "{subnet}" is free', "python3 -m tests.lab.vps down --all")


def hosts_lines(text: str, name: str, entry: str | None) -> str:
    """The text of /etc/hosts without the marked line of this VPS and, if `entry` is given, with it at the end."""
    lines = [line for line in text.splitlines() if not line.endswith(HOSTS_MARK + name)]
    if entry:
        lines.append(f"{entry} {HOSTS_MARK}{name}")
    return "\n".join(lines) + "\n"


def hosts_without_lab(text: str) -> str:
    """The text of /etc/hosts without any VPS: what a shard with a hosts file of its own starts from."""
    return "".join(line for line in text.splitlines(keepends=True) if HOSTS_MARK not in line)


# --- doing -----------------------------------------------------------------------------------------------------


def _routes() -> list[str]:
    """The machine's IPv4 routes in CIDR notation."""
    found = []
    for line in Path("/proc/net/route").read_text().splitlines()[1:]:
        fields = line.split()
        destination, mask = (int.from_bytes(bytes.fromhex(fields[i]), "little") for i in (1, 7))
        found.append(f"{ipaddress.ip_address(destination)}/{ipaddress.ip_address(mask)}")
    return found


def ensure_network(images: LabImages) -> ipaddress.IPv4Network:
    """Make the network and its name server if they are not there. The caller holds the lock "addresses"."""
    template = "{{range .IPAM.Config}}{{.Subnet}}{{end}}"
    found = docker("network", "inspect", "--format", template, NETWORK, check=False)
    subnet = ipaddress.IPv4Network(found.stdout.strip() if found.returncode == 0 else pick_subnet(_routes()))
    if found.returncode:
        docker(
            "network", "create", "--label=prefect-lab", f"--subnet={subnet}",
            f"--ip-range={subnet.network_address}/{OUTSIDERS_PREFIX}", NETWORK,
        )  # fmt: skip
    running = docker("container", "inspect", "--format", "{{.State.Running}}", DNS_CONTAINER, check=False)
    if running.stdout.strip() != "true":
        docker("rm", "--force", DNS_CONTAINER, check=False)
        # It asks Docker's own name server, which knows the VPSs and, for the rest, asks what this machine asks.
        # Nothing is cached: a new VPS may have an old one's name.
        docker(
            "run", "--detach", "--restart=unless-stopped", "--label=prefect-lab", f"--name={DNS_CONTAINER}",
            f"--network={NETWORK}", f"--ip={subnet[DNS_ADDRESS]}", images.outsider,
            "dnsmasq", "--keep-in-foreground", "--user=root", "--no-hosts", "--no-resolv", "--cache-size=0",
            "--server=127.0.0.11",
        )  # fmt: skip
    return subnet


def remove_network(network: str = NETWORK) -> None:
    """Remove a network with the name server and the outsiders on it. The caller holds the lock "addresses"."""
    filters = ("--filter=label=prefect-lab", f"--filter=network={network}")
    for container in docker("ps", "--all", "--quiet", *filters).stdout.split():
        docker("rm", "--force", "--volumes", container)
    if docker("network", "inspect", network, check=False).returncode == 0:
        docker("network", "rm", network)


def all_networks() -> list[str]:
    """Every network of the lab on this machine."""
    return docker("network", "ls", "--filter=label=prefect-lab", "--format={{.Name}}").stdout.split()


def edit_hosts_file(name: str, entry: str | None) -> None:
    """Keep this VPS's line in /etc/hosts. In place: the file is a bind mount in some sandboxes, and in a shard."""
    before = HOSTS_FILE.read_text()
    if hosts_lines(before, name, entry) == before:
        return
    if not os.access(HOSTS_FILE, os.W_OK):
        if entry:
            say(f'HINT: this user may not write {HOSTS_FILE}; add there: "{entry}"')
        return
    with HOSTS_FILE.open("r+") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        after = hosts_lines(stream.read(), name, entry)
        stream.seek(0)
        stream.write(after)
        stream.truncate()


def on_host_network(image: str, *command: str) -> str:
    """Run a command in the machine's own network, with the rights and the tools of a container."""
    options = ["--rm", "--label=prefect-lab", "--network=host", "--cap-add=NET_ADMIN"]
    return docker("run", *options, image, *command).stdout


def outsider(*command: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    """Run a command (nmap, curl, python3 are there) in a stranger's container on the lab's network."""
    image = docker("container", "inspect", "--format", "{{.Config.Image}}", DNS_CONTAINER).stdout.strip()
    return docker("run", "--rm", "--label=prefect-lab", f"--network={NETWORK}", image, *command, check=check)
