"""The firewall's rules as the playbook writes them. That the kernel takes and holds them is tested in the lab."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import jinja2
import pytest
import yaml

from .test_compose import PROJECT
from .test_settings import load

ROOT = Path(__file__).resolve().parents[2]
ROLES = ROOT / "ansible" / "roles"
DEFAULTS = yaml.safe_load((ROLES / "host/defaults/main.yml").read_text())
BRIDGES = yaml.safe_load((ROLES / "prefect/vars/main.yml").read_text())["__prefect_bridges"]
BRIDGE_NAME = "com.docker.network.bridge.name"
ID = "0123456789abcdef" * 4


def rules(groups: tuple[str, ...] = ("prefect",), **settings: Any) -> str:
    """The rules for a host of these groups with these settings, without comments and margins."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(ROLES / "host/templates"),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        autoescape=False,
    )
    environment.filters |= {"to_json": json.dumps, "bool": bool, "unique": lambda found: list(dict.fromkeys(found))}
    environment.filters["prefect_proxy_ports"] = load("prefect_egress").prefect_proxy_ports
    text = environment.get_template("firewall.nft.j2").render(
        {
            **DEFAULTS,
            "group_names": list(groups),
            "__prefect_bridges": BRIDGES,
            "__host_former_bridges": {},
            "__host_ssh_ports": [22],
            "__host_allowed": {"ipv4": [], "ipv6": []},
            "__prefect_cloud_uids": [],
            "prefect_tls": "internal",
            "prefect_acme_directory": "https://acme.example.org/directory",
            "prefect_sso_proxy": "",
            **settings,
        }
    )
    return "\n".join(line for line in map(str.strip, text.splitlines()) if line and not line.startswith("#"))


def chain(text: str, name: str) -> list[str]:
    (body,) = re.findall(rf"^chain {name} \{{\n(.*?)\n\}}$", text, re.MULTILINE | re.DOTALL)
    return body.splitlines()


def interfaces(line: str) -> list[str]:
    return re.findall(r'"([^"]+)"', line)


def test_every_network_has_the_bridge_that_the_firewalls_know() -> None:
    named = {name: network["driver_opts"][BRIDGE_NAME] for name, network in PROJECT["networks"].items()}
    assert {**named, "flows": "prefect-flows"} == BRIDGES
    # The kernel's limit.
    assert all(len(name) <= 15 for name in BRIDGES.values())
    pool = (ROLES / "docker_pool/tasks/network.yml").read_text()
    assert f"'{BRIDGE_NAME}': __prefect_bridges.flows" in pool
    (guessing,) = re.findall(r"iifname \{ (.+) \} accept", (ROOT / "caddy/fail2ban/prefect.nft").read_text())
    assert interfaces(guessing) == ["lo", "docker0", *BRIDGES.values()]
    (line,) = [line for line in chain(rules(), "prerouting") if "} goto containers" in line and "docker0" in line]
    assert set(interfaces(line)) == {"docker0", *BRIDGES.values()}


def test_a_bridge_of_somebody_elses_is_to_the_host_as_anybody() -> None:
    (line,) = [line for line in chain(rules(), "prerouting") if "*" in line]
    assert line == 'iifname "br-*" fib daddr type != { local, broadcast, multicast, anycast } goto containers'
    assert 'iifname { "wg0", "br-*" } accept' in rules(host_firewall_trusted_interfaces=["wg0", "br-*"])


def test_networks_of_before_are_let_through_until_they_are_made_again() -> None:
    text = rules(__host_former_bridges={"stack": ["br-111111111111"], "flows": ["br-222222222222"]})
    (line,) = [line for line in chain(text, "prerouting") if "} goto containers" in line and "docker0" in line]
    assert {"br-111111111111", "br-222222222222"} < set(interfaces(line))
    (line,) = [line for line in chain(text, "containers_to_host") if "dport { 80, 443 }" in line]
    assert set(interfaces(line)) == {"docker0", "prefect-flows", "br-222222222222"}


def test_the_networks_of_before_are_told_from_those_of_others() -> None:
    bridges = load("prefect_host").prefect_bridges
    networks = f"a{ID[1:]} prefect_api\nb{ID[1:]} prefect-flows\nc{ID[1:]} shop_default\nd{ID[1:]} bridge\ne{ID[1:]} prefect_edge"
    seen = ["lo", "docker0", *(f"br-{letter}{ID[1:12]}" for letter in "abc"), "br-lan"]
    assert bridges(networks, seen, []) == {
        "former": {"stack": [f"br-a{ID[1:12]}"], "flows": [f"br-b{ID[1:12]}"]},
        "others": [f"shop_default (br-c{ID[1:12]})"],
    }
    assert bridges(networks, seen, ["br-*"])["others"] == bridges(networks, seen, [f"br-c{ID[1:12]}"])["others"] == []
    assert bridges("", seen, []) == {"former": {}, "others": []}


def test_containers_reach_the_proxy_and_nothing_else_of_the_host() -> None:
    found = chain(rules(), "containers_to_host")
    assert found == [
        "meta l4proto { tcp, udp } th dport 53 accept",
        'iifname { "docker0", "prefect-flows" } tcp dport { 80, 443 } fib daddr type local accept',
        "counter reject",
    ]
    # Not ssh; what is open to everybody is open to them.
    (line,) = [line for line in chain(rules(host_firewall_tcp_ports=[8443]), "containers_to_host") if "80," in line]
    assert "tcp dport { 80, 443, 8443 }" in line
    assert not [line for line in chain(rules(groups=("workers",)), "containers_to_host") if "443" in line]


def test_containers_of_the_server_are_filtered_before_anything_else_lets_them_through() -> None:
    found = chain(rules(), "prerouting")
    # Names only: what is open to the world (ssh) is not open to them by that.
    assert [n for n, line in enumerate(found) if "goto containers" in line] < [
        n for n, line in enumerate(found) if "22" in line
    ]
    assert chain(rules(), "containers")[0].startswith("fib daddr type { local,")


@pytest.mark.parametrize("who", ["containers", "output"])
def test_the_clouds_metadata_are_closed(who: str) -> None:
    assert [line for line in chain(rules(), who) if "@cloud" in line] == [
        f"{version} daddr @cloud{number} goto {who.replace('output', 'host')}_to_cloud"
        for version, number in (("ip", 4), ("ip6", 6))
    ]


def test_names_and_the_clock_of_a_cloud_stay_open() -> None:
    """Of some clouds they have the very address of the metadata (Google), or one beside it (AWS, Azure)."""
    text = rules(__prefect_cloud_uids=[996])
    assert chain(text, "containers_to_cloud") == [
        "meta l4proto { tcp, udp } th dport 53 accept",
        "udp dport 123 accept",
        "counter reject",
    ]
    found = chain(text, "host_to_cloud")
    assert "meta skuid { 0, 996 } accept" in found
    assert "udp dport { 67, 123, 547 } accept" in found
    assert found[-1] == "counter reject"


def test_the_clouds_metadata_can_be_opened() -> None:
    text = rules(host_cloud_metadata=True)
    assert "goto containers_to_cloud" not in text
    assert "chain output" not in text


def test_the_addresses_of_the_clouds_do_not_overlap() -> None:
    """nft refuses a set whose intervals do."""
    import ipaddress

    for number in (4, 6):
        (elements,) = re.findall(rf"set cloud{number} \{{.*?elements = \{{ (.*?) \}}", rules(), re.DOTALL)
        networks = [ipaddress.ip_network(one) for one in elements.split(", ")]
        assert not [(a, b) for a in networks for b in networks if a is not b and a.overlaps(b)]
    assert ipaddress.ip_address("169.254.169.254") in ipaddress.ip_network("169.254.0.0/16")


def test_only_who_is_allowed_reaches_the_proxy() -> None:
    assert not [line for line in chain(rules(), "prerouting") if "counter drop" in line and "443" in line]
    allowed = {"ipv4": ["10.8.0.0/24", "203.0.113.7/32"], "ipv6": []}
    lines = chain(rules(__host_allowed=allowed), "prerouting")
    four = "meta nfproto ipv4 tcp dport { 80, 443 } ip saddr != { 10.8.0.0/24, 203.0.113.7/32 } counter drop"
    six = "meta nfproto ipv6 tcp dport { 80, 443 } counter drop"
    (ssh,) = [number for number, line in enumerate(lines) if line.startswith("tcp dport { 22")]
    assert lines.index(four) < lines.index(six) < ssh
    assert four not in rules(("workers",), __host_allowed=allowed)
    allowed = {"ipv4": [], "ipv6": ["2001:db8::/32"]}
    lines = chain(rules(__host_allowed=allowed), "prerouting")
    assert "meta nfproto ipv4 tcp dport { 80, 443 } counter drop" in lines
    assert "meta nfproto ipv6 tcp dport { 80, 443 } ip6 saddr != { 2001:db8::/32 } counter drop" in lines


def test_who_is_allowed() -> None:
    allowed = load("prefect_host").prefect_allowed_sources
    assert allowed([], ["10.0.0.9"]) == {"ipv4": [], "ipv6": []}
    assert allowed(["10.8.0.0/24", "2001:db8::7"], ["10.8.0.5", "10.0.0.9", "worker.example.org"]) == {
        "ipv4": ["10.0.0.9/32", "10.8.0.0/24"],
        "ipv6": ["2001:db8::7/128"],
    }


def test_udp_ports() -> None:
    assert "udp dport { 51820 } fib daddr type local accept" in chain(
        rules(host_firewall_udp_ports=[51820]), "prerouting"
    )


def test_containers_of_the_stack_send_nothing_outward() -> None:
    """Docker keeps two of the three networks inside; the third is the reverse proxy's."""
    text = rules()
    assert chain(text, "forward") == [
        "type filter hook forward priority filter - 10; policy accept;",
        "ct state established,related accept",
        'iifname "prefect-db" oifname != "prefect-db" goto stack_refused',
        'iifname "prefect-api" oifname != "prefect-api" goto stack_refused',
        'iifname "prefect-edge" oifname != "prefect-edge" goto proxy_outward',
    ]
    assert chain(text, "proxy_outward") == ["goto stack_refused"]
    refused = chain(text, "stack_refused")
    assert refused[-1] == "counter reject with icmpx admin-prohibited"
    assert [
        line for line in refused if line.startswith("limit rate") and 'log prefix "prefect-stack refused: "' in line
    ]
    assert "stack_refused" not in rules(groups=("workers",))


@pytest.mark.parametrize(
    ("settings", "ports"),
    [
        ({"prefect_tls": "acme"}, "443"),
        ({"prefect_tls": "acme", "prefect_acme_directory": "https://ca.example.org:9000/directory"}, "9000"),
        ({"prefect_sso_proxy": "http://oauth2-proxy:4180"}, "4180"),
        ({"prefect_sso_proxy": "https://auth.example.org"}, "443"),
    ],
)
def test_the_reverse_proxy_reaches_its_authority_and_its_single_sign_on(settings: dict[str, str], ports: str) -> None:
    assert chain(rules(**settings), "proxy_outward") == [
        "meta l4proto { tcp, udp } th dport 53 accept",
        f"tcp dport {{ {ports} }} accept",
        "goto stack_refused",
    ]
