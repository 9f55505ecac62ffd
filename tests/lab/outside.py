"""A network behind a VPS, with hosts that belong to nobody: what a flow may reach there, and what has arrived.

A network namespace on the VPS itself, with addresses for benchmarks (RFC 2544) and documentation only. What leaves the VPS is what tcpdump sees there.
"""

from __future__ import annotations

import json
import shlex
import time
from collections.abc import Iterable

from testinfra.host import Host

#: Nobody's: flows may not reach them.
STRANGER, STRANGER6 = "198.18.0.7", "2001:db8::7"
#: Another name server, which no one is told of.
RESOLVER = "198.18.0.53"
#: What LISTED_NAME leads to; the second is of a name below it.
LISTED_NAME, LISTED_ADDRESS = "api.listed.example", "198.18.0.10"
#: Networks that flows may reach.
NETWORKS = ["198.19.0.0/24", "[2001:db8:1::/64]:443"]
LISTED, LISTED6 = "198.19.0.7", "2001:db8:1::7"
#: A name that is nobody's; and one that carries something.
EVIL_NAME = "c2vjcmv0.tunnel.example"
TAKEN = "/run/outside.pcap"

UP = f"""
set -e
ip netns add outside
ip link add out0 type veth peer name out1 netns outside
for name in out0 lo; do sysctl --quiet --write net.ipv6.conf.$name.disable_ipv6=0; done
ip netns exec outside sysctl --quiet --write net.ipv6.conf.all.disable_ipv6=0
ip link set out0 up
ip -n outside link set lo up
ip -n outside link set out1 up
ip address add 198.18.0.1/24 dev out0
ip address add 198.19.0.1/24 dev out0
ip address add 2001:db8::1/64 dev out0 nodad
ip address add 2001:db8:1::1/64 dev out0 nodad
for address in {STRANGER}/24 {RESOLVER}/24 {LISTED_ADDRESS}/24 {LISTED}/24; do ip -n outside address add $address dev out1; done
for address in {STRANGER6}/64 {LISTED6}/64; do ip -n outside address add $address dev out1 nodad; done
systemd-run --quiet --unit=outside-listener --property=NetworkNamespacePath=/run/netns/outside \
    python3 -c 'import socket
server = socket.create_server(("::", 443), family=socket.AF_INET6, dualstack_ipv6=True)
while True:
    server.accept()[0].recv(4096)'
systemd-run --quiet --unit=outside-taken --property=NetworkNamespacePath=/run/netns/outside \
    tcpdump --interface=out1 --direction=in --packet-buffered -w {TAKEN}
"""
DOWN = f"""
systemctl stop outside-listener.service outside-taken.service outside-resolver.service
ip link delete out0
ip netns delete outside
for name in lo; do sysctl --quiet --write net.ipv6.conf.$name.disable_ipv6=1; done
rm --force {TAKEN}
"""
# On the loopback, as systemd-resolved is: Docker's engine asks such a one for its containers.
RESOLVE = f"""
set -e
asked=$(awk '$1 == "nameserver" {{ print $2; exit }}' /etc/resolv.conf)
cp /etc/resolv.conf /run/outside-resolv.conf
systemd-run --quiet --unit=outside-resolver dnsmasq --keep-in-foreground --no-resolv --no-hosts --pid-file= --cache-size=0 \
    --listen-address=127.0.0.9 --bind-interfaces --server=$asked --local=/example/ --address=/{LISTED_NAME}/{LISTED_ADDRESS} --log-queries
echo nameserver 127.0.0.9 > /etc/resolv.conf
"""
RESOLVE_NO_MORE = "test ! -e /run/outside-resolv.conf || { cat /run/outside-resolv.conf > /etc/resolv.conf && rm /run/outside-resolv.conf; }"

#: Tries of a flow, one line each: what it was, and how it ended.
PROBE = """
import errno, json, socket, struct, sys


def question(name):
    labels = b"".join(bytes([len(one)]) + one.encode() for one in name.split("."))
    return struct.pack(">HHHHHH", 7, 256, 1, 0, 0, 0) + labels + struct.pack(">BHH", 0, 1, 1)


def tried(kind, where, port):
    if kind == "name":
        return sorted({one[4][0] for one in socket.getaddrinfo(where, port, socket.AF_INET)})[0]
    family = socket.AF_INET6 if ":" in where else socket.AF_INET
    if kind == "ping":
        with socket.socket(family, socket.SOCK_DGRAM, socket.getprotobyname("icmp")) as probe:
            return str(probe.sendto(bytes([8, 0, 0, 0, 0, 0, 0, 0]) + b"secret", (where, 0)))
    if kind == "tcp":
        with socket.create_connection((where, port), timeout=5) as probe:
            probe.sendall(b"secret")
            return "connected"
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        probe.settimeout(2)
        probe.sendto(question(port) if kind == "ask" else b"secret", (where, 53 if kind == "ask" else port))
        return f"answer {probe.recv(512)[3] & 15}" if kind == "ask" else "sent"


def probe(tries):
    ended = []
    for one in tries:
        try:
            ended.append(tried(*one))
        except OSError as error:
            ended.append(errno.errorcode.get(error.errno, type(error).__name__))
    return ended
"""
#: What a flow tries that may reach LISTED_NAME and NETWORKS, and what each of it gives where the wall stands.
TRIES = [
    (["tcp", STRANGER, 443], ("EHOSTUNREACH",)),
    (["udp", STRANGER, 443], ("EPERM", "sent")),
    (["ping", STRANGER, 0], ("EPERM", "14", "EACCES")),
    (["tcp", STRANGER6, 443], ("EACCES", "ENETUNREACH")),
    (["udp", STRANGER6, 443], ("EPERM", "ENETUNREACH")),
    (["ask", RESOLVER, EVIL_NAME], ("answer 3",)),
    (["name", EVIL_NAME, 443], ("gaierror",)),
    (["name", "below." + LISTED_NAME, 443], ("gaierror",)),
    # Its address is no one's before it was asked for by the name.
    (["tcp", LISTED_ADDRESS, 443], ("EHOSTUNREACH",)),
    (["name", LISTED_NAME, 443], (LISTED_ADDRESS,)),
    (["tcp", LISTED_ADDRESS, 443], ("connected",)),
    (["tcp", LISTED, 443], ("connected",)),
    (["tcp", LISTED6, 443], ("connected", "ENETUNREACH")),
    (["tcp", LISTED6, 444], ("EACCES", "ENETUNREACH")),
]


class Outside:
    """The network, while it is there."""

    def __init__(self, host: Host) -> None:
        self.host = host
        host.check_output("command -v tcpdump || apt-get install --yes --no-install-recommends tcpdump")
        host.check_output(UP)

    def resolve(self) -> None:
        """Have the host ask a name server that knows LISTED_NAME, on its loopback; needs dnsmasq there."""
        self.host.check_output(RESOLVE)
        end = time.monotonic() + 20
        while "127.0.0.9" not in self.host.check_output("cat /run/prefect-egress/servers"):
            assert time.monotonic() < end, "prefect-egress-servers.path has not seen it"
            time.sleep(0.2)
        # The resolver is told of it right after.
        time.sleep(0.5)

    def down(self) -> None:
        self.host.check_output(RESOLVE_NO_MORE)
        self.host.run(DOWN)

    def arrived(self) -> set[str]:
        """Where packets have arrived: `198.18.0.7`."""
        return {destination(line) for line in self.arrived_packets()}

    def arrived_packets(self) -> set[str]:
        """All of them in tcpdump's words; neighbour discovery, and what is for many, is left out."""
        time.sleep(0.3)
        said = self.host.check_output(f"tcpdump -nn -r {TAKEN} '(ip or ip6) and not icmp6' 2> /dev/null")
        return {
            line
            for line in said.splitlines()
            if " > " in line and not destination(line).startswith(("ff", "224.", "239."))
        }

    def asked(self) -> str:
        """The questions that the host's name server was asked."""
        return self.host.check_output(
            "journalctl --unit=outside-resolver.service --output=cat --no-pager | grep 'query\\['"
        )


def destination(line: str) -> str:
    """The address after the `>` of a line of tcpdump's, without the port."""
    words = line.partition(" > ")[2].partition(": ")[0]
    head, _, port = words.rpartition(".")
    return head if port.isdigit() and (head.count(".") == 3 or ":" in head) else words


def as_worker(host: Host, worker: str, tries: Iterable[list[object]]) -> list[str]:
    """How tries of a process end that is a flow run's but for its parent: the worker's user, in the worker's view of the files."""
    code = f"{PROBE}\nprint(json.dumps(probe(json.loads(sys.argv[1]))))"
    pid = host.check_output(f"systemctl show --property=MainPID --value prefect-worker@{worker}.service")
    user = host.check_output(f"systemctl show --property=User --value prefect-worker@{worker}.service")
    command = [
        "nsenter",
        f"--target={pid}",
        "--mount",
        "setpriv",
        f"--reuid={user}",
        "--regid=nogroup",
        "--clear-groups",
    ]
    command += ["--bounding-set=-all", "--no-new-privs", "python3", "-c", code, json.dumps(list(tries))]
    return json.loads(host.check_output(shlex.join(command)))
