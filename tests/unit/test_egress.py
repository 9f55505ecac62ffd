"""Where flows may connect to (workers_egress): what is refused, and the rules and lines that are written. That they hold is tested in the lab."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import jinja2
import pytest
from prefect_doctor import egress
from prefect_doctor.finding import Level

from .test_settings import load

ROOT = Path(__file__).resolve().parents[2]
EGRESS = load("prefect_egress")
problems = EGRESS.egress.egress_problems


def wrong(chosen: str = "listed", names: list[str] | None = None, networks: list[str] | None = None) -> list[str]:
    return problems(
        {"workers_egress": chosen, "workers_egress_names": names or [], "workers_egress_networks": networks or []}
    )


def test_names_and_networks_of_every_kind_are_taken() -> None:
    assert not wrong(
        names=["api.example.org", "*.storage.example.org", "a-1.b_c.example"],
        networks=[
            "10.0.0.0/8",
            "203.0.113.7",
            "203.0.113.7:5432",
            "2001:db8::/32",
            "[2001:db8::7]:5432",
            "[2001:db8::/32]:1",
        ],
    )
    assert not wrong("open") and not wrong("none")


@pytest.mark.parametrize(
    "name",
    [
        "https://a.example",
        "a.example:443",
        "a.*.example",
        "*",
        "*.",
        "*.org.",
        "localhost",
        "A.example",
        "a..b",
        "1.2.3.4",
        "a.example/b",
        "-a.example",
        "",
    ],
)
def test_what_is_no_name_is_refused(name: str) -> None:
    assert wrong(names=[name]) == [
        f'workers_egress_names: "{name}" is not allowed; allowed is a host\'s name in lower case, such as api.example.org,'
        " or *.example.org for all names below that one"
    ]


@pytest.mark.parametrize(
    "network",
    [
        "10.0.0.1/8",
        "10.0.0.0/33",
        "a.example",
        "10.0.0.0/8:0",
        "10.0.0.0/8:65536",
        "[10.0.0.1]:5",
        "2001:db8::/32:5432x",
        "[2001:db8::7]",
        "",
        "1.2.3.4:http",
    ],
)
def test_what_is_no_network_is_refused(network: str) -> None:
    assert wrong(networks=[network]) == [
        f'workers_egress_networks: "{network}" is not allowed; allowed is an address or a network, such as 10.0.0.0/8'
        " or 2001:db8::/32, or with a port 203.0.113.7:5432 or [2001:db8::7]:5432"
    ]


def test_a_list_that_would_hold_nothing_is_refused() -> None:
    assert wrong("open", names=["a.example"]) == [
        'workers_egress_names is not empty, and workers_egress is "open", which lets flows connect to anywhere; set'
        " workers_egress: listed, or take the list out"
    ]
    assert wrong("none", networks=["10.0.0.0/8"]) == [
        'workers_egress_networks is not empty, and workers_egress is "none", which lets them connect to nothing; set'
        " workers_egress: listed, or take the list out"
    ]


def test_networks_become_rules() -> None:
    assert EGRESS.prefect_egress_rules(["10.0.0.0/8", "10.0.0.0/8", "203.0.113.7:5432", "[2001:db8::/32]:443"]) == [
        "ip daddr 10.0.0.0/8 accept",
        "ip daddr 203.0.113.7/32 meta l4proto { tcp, udp } th dport 5432 accept",
        "ip6 daddr 2001:db8::/32 meta l4proto { tcp, udp } th dport 443 accept",
    ]


def test_only_listed_names_are_asked_for() -> None:
    """A name below an exact one could carry data to whoever answers for it."""
    names = ["api.example.org", "*.s3.example.org", "both.example", "*.both.example"]
    sets = "4#inet#prefect-egress#{0}4,6#inet#prefect-egress#{0}6"
    assert EGRESS.prefect_egress_asked(names, "prefect.example") == [*names, "prefect.example"]
    assert EGRESS.prefect_egress_resolved(names, "prefect.example") == [
        f"nftset=/api.example.org/{sets.format('names')}",
        f"nftset=/s3.example.org/{sets.format('names')}",
        f"nftset=/both.example/{sets.format('names')}",
        f"nftset=/prefect.example/{sets.format('server')}",
        "local=/*.api.example.org/",
        "local=/*.prefect.example/",
    ]
    assert EGRESS.prefect_egress_asked([], "") == EGRESS.prefect_egress_resolved([], "") == []


def rules(**settings: Any) -> str:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(ROOT / "ansible/roles/workers/templates"),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        autoescape=False,
    )
    environment.filters["prefect_egress_rules"] = EGRESS.prefect_egress_rules
    return environment.get_template("egress.nft.j2").render(
        {
            "workers_egress": "listed",
            "workers_egress_networks": ["10.0.0.0/8"],
            "__prefect_worker_uids": [992, 993],
            "__prefect_bridges": {"flows": "prefect-flows", "edge": "prefect-edge"},
            "__workers_egress_server": ["192.0.2.1", "2001:db8::1"],
            **settings,
        }
    )


def test_none_lets_flows_connect_to_their_server_alone() -> None:
    listed, none = rules(), rules(workers_egress="none")
    assert "ip daddr 10.0.0.0/8 accept" in listed and "@names4" in listed
    (allowed,) = re.findall(r"chain allowed \{\n(.*?)\n    \}", none, re.DOTALL)
    accepted = [line.strip() for line in allowed.splitlines() if "accept" in line]
    assert accepted == [
        'oifname "prefect-edge" tcp dport { 80, 443 } accept',
        "ip daddr @server4 tcp dport 443 update @server4 { ip daddr } accept",
        "ip6 daddr @server6 tcp dport 443 update @server6 { ip6 daddr } accept",
        "ip daddr 192.0.2.1 tcp dport 443 accept",
        "ip6 daddr 2001:db8::1 tcp dport 443 accept",
    ]


def test_every_worker_is_meant() -> None:
    assert rules().count("meta skuid { 992, 993 }") == 2


def test_the_resolver_and_the_rules_name_the_same() -> None:
    """The plain file knows ports, sets and bridges that the template writes."""
    resolver = (ROOT / "systemd/prefect-egress-names.conf").read_text()
    unit = (ROOT / "systemd/prefect-egress-names.service").read_text()
    assert {"port=5053", "interface=lo", "interface=prefect-flows", "bind-dynamic"} <= set(resolver.splitlines())
    assert rules().count("redirect to :5053") == 2
    for name in ("names4", "names6", "server4", "server6"):
        assert f"nft flush set inet prefect-egress {name}\n" in unit
        assert f"set {name} {{" in rules()
    # The forward proxy of automations listens where flows could connect to.
    assert "Port 3128" in (ROOT / "systemd/prefect-automations.conf").read_text()
    assert "tcp dport 3128 goto refused_processes" in rules()


# --- what prefect-doctor says of it -----------------------------------------------------------------------------------


def table(name: str, *elements: tuple[list[Any], int]) -> str:
    """As nft 1.1.3 prints it."""
    elem = [
        {"elem": {"val": {"concat": key}, "expires": 9, "counter": {"packets": n, "bytes": 60}}} for key, n in elements
    ]
    return json.dumps(
        {
            "nftables": [
                {"metainfo": {"version": "1.1.3"}},
                {"table": {"family": "inet", "name": "x"}},
                {"set": {"name": "names4", "elem": [{"elem": {"val": "192.0.2.1", "expires": 1}}]}},
                {"set": {"name": "refused6", "type": []}},
                {"set": {"name": name, "elem": elem}},
            ]
        }
    )


def test_who_was_refused_and_how_often() -> None:
    flows = egress.of_flows(
        table("refused4", ([0, "tcp", "203.0.113.7", 443], 3), ([987654, "udp", "2001:db8::8", 53], 1))
    )
    assert flows == {
        egress.Refused("root", "203.0.113.7:443/tcp"): 3,
        egress.Refused("user 987654", "[2001:db8::8]:53/udp"): 1,
    }
    assert egress.of_flows(table("refused-containers4", (["tcp", "203.0.113.7", 443], 2))) == {
        egress.Refused("flow containers", "203.0.113.7:443/tcp"): 2
    }
    assert egress.of_stack(table("refused4", (["prefect-edge", "tcp", "203.0.113.7", 80], 1))) == {
        egress.Refused("the reverse proxy", "203.0.113.7:80/tcp"): 1
    }


@pytest.mark.parametrize("text", ["", "Operation not permitted", "{}", "[]"])
def test_a_firewall_that_says_nothing_has_not_said_that_nothing_was_refused(text: str) -> None:
    with pytest.raises(OSError, match="nft does not list"):
        egress.of_flows(text)


def test_names_that_were_refused() -> None:
    lines = [
        " 4 10.0.0.2/54779 config evil.example is NXDOMAIN",
        " 5 127.0.0.1/54779 config evil.example is NXDOMAIN",
        " 7 172.21.0.2/1 config a.b.example is NXDOMAIN",
        " 6 127.0.0.1/54779 config fine.example is 192.0.2.1",
        " using nameserver 192.0.2.53#53 for domain api.example.org",
    ]
    assert egress.of_names(lines) == {"evil.example": 2, "a.b.example": 1}


def test_what_the_doctor_says() -> None:
    refused = Counter({egress.Refused("prefect_etl-1", f"203.0.113.7:{port}/tcp"): 9 - port for port in range(1, 8)})
    found = egress.flows(egress.Egress(held=True, flows=refused, names=Counter({"evil.example": 2})))
    assert found.level == Level.WARNING
    assert found.measured == (
        "refused: prefect_etl-1 to 203.0.113.7:1/tcp (8 packets), prefect_etl-1 to 203.0.113.7:2/tcp (7 packets), "
        "prefect_etl-1 to 203.0.113.7:3/tcp (6 packets), prefect_etl-1 to 203.0.113.7:4/tcp (5 packets), "
        "prefect_etl-1 to 203.0.113.7:5/tcp (4 packets) and 2 more; names that are not listed: evil.example (2 times)"
    )
    assert "workers_egress_names or workers_egress_networks" in found.mend
    assert egress.flows(egress.Egress(held=True)).level == Level.OK
    assert egress.flows(egress.Egress()).measured == "open: flow runs may connect to anywhere"
    down = egress.flows(egress.Egress(held=True, down=["prefect-egress.service"]))
    assert (down.level, down.mend) == (Level.BAD, "systemctl start prefect-egress.service")
    one, two = egress.findings(egress.Egress(stack=Counter({egress.Refused("the server", "203.0.113.7:80/tcp"): 1})))
    assert (one.level, two.level) == (Level.OK, Level.WARNING)
    assert two.measured == "refused: the server to 203.0.113.7:80/tcp (1 packet)"
