"""prefect-doctor residency: packets, the names in them, and the reasons. That it sees what a host sends is tested in the lab."""

from __future__ import annotations

import io
import ipaddress
import json
import socket
import ssl
import struct
from pathlib import Path

import pytest
from prefect_residency import cli, configured, contents, packets, reasons
from prefect_residency.reasons import Configured, Reason
from prefect_residency.seen import DESTINATIONS, NAMES, Destination, Seen, Sent

from .test_doctor_script import doctor

script = doctor._residency

ETH0, INNER = 2, 5


def cooked(body: bytes, kind: int = packets.IPV4, interface: int = ETH0, direction: int = packets.OUTGOING) -> bytes:
    return struct.pack(">HHIHBB8s", kind, 0, interface, 1, direction, 6, b"") + body


def ip(destination: str, protocol: int, body: bytes, source: str = "192.0.2.1", **more: int) -> bytes:
    if ":" in destination and ":" not in source:
        source = "2001:db8::1"
    ends = [ipaddress.ip_address(one).packed for one in (source, destination)]
    if ":" in destination:
        return cooked(
            struct.pack(">IHBB", 6 << 28, len(body), protocol, 64) + ends[0] + ends[1] + body, packets.IPV6, **more
        )
    head = struct.pack(">BBHHHBBH", 0x45, 0, 20 + len(body), 0, more.pop("fragment", 0), 64, protocol, 0)
    return cooked(head + ends[0] + ends[1] + body, **more)


def tcp(
    destination: str, port: int, flags: int = 2, payload: bytes = b"", source: str = "192.0.2.1", **more: int
) -> bytes:
    head = struct.pack(">HHIIBBHHH", 40000, port, 0, 0, 5 << 4, flags, 0, 0, 0)
    return ip(destination, packets.TCP, head + payload, source, **more)


def udp(
    destination: str, port: int, payload: bytes = b"x", source: str = "192.0.2.1", source_port: int = 40000, **more: int
) -> bytes:
    return ip(
        destination, packets.UDP, struct.pack(">HHHH", source_port, port, 8 + len(payload), 0) + payload, source, **more
    )


def capture(*found: bytes, kind: int = packets.COOKED) -> io.BytesIO:
    head = struct.pack("=IHHIIII", 0xA1B2C3D4, 2, 4, 0, 0, 2048, kind)
    return io.BytesIO(head + b"".join(struct.pack("=IIII", 0, 0, len(one), len(one)) + one for one in found))


def seen(*found: bytes) -> Seen:
    made = Seen([ETH0])
    cli.watch(capture(*found), made)
    return made


def asks(name: str) -> bytes:
    labels = b"".join(bytes([len(one)]) + one.encode() for one in name.split("."))
    return struct.pack(">HHHHHH", 7, 0x100, 1, 0, 0, 0) + labels + struct.pack(">BHH", 0, 1, 1)


def answers(name: str, *addresses: str) -> bytes:
    question = asks(name)
    records = [struct.pack(">HHHIH", 0xC00C, 5, 1, 60, 2) + b"\xc0\x0c"]
    for address in addresses:
        packed = ipaddress.ip_address(address).packed
        records.append(struct.pack(">HHHIH", 0xC00C, 1 if len(packed) == 4 else 28, 1, 60, len(packed)) + packed)
    return struct.pack(">HHHHHH", 7, 0x8180, 1, len(records), 0, 0) + question[12:] + b"".join(records)


def hello(name: str) -> bytes:
    """The first message of a real client."""
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = ssl.create_default_context().wrap_bio(incoming, outgoing, server_hostname=name)
    with pytest.raises(ssl.SSLWantReadError):
        client.do_handshake()
    return outgoing.read()


# --- packets and what is in them ----------------------------------------------------------------------------------------


def test_where_a_host_sends_to() -> None:
    found = seen(
        tcp("203.0.113.7", 443),
        tcp("203.0.113.7", 443),
        tcp("2001:db8::7", 443),
        udp("203.0.113.8", 123),
        ip("203.0.113.9", packets.ICMP, bytes([8, 0, 0, 0])),
        ip("2001:db8::9", packets.ICMP6, bytes([128, 0, 0, 0])),
        ip("203.0.113.10", 47, b"x"),
    )
    assert {str(where): sent.packets for where, sent in found.destinations.items()} == {
        "203.0.113.7:443/tcp": 2,
        "[2001:db8::7]:443/tcp": 1,
        "203.0.113.8:123/udp": 1,
        "203.0.113.9/icmp": 1,
        "2001:db8::9/icmp": 1,
        "203.0.113.10/47": 1,
    }


def test_answers_are_no_destinations() -> None:
    """Of ssh, of a tunnel that somebody else has begun, of a ping; and what stays between containers."""
    assert not seen(
        tcp("203.0.113.7", 40000, flags=0x12),
        tcp("203.0.113.7", 40000, flags=0x18, payload=b"data"),
        udp("192.0.2.1", 51820, source="203.0.113.7", source_port=5000, direction=0),
        udp("203.0.113.7", 5000, source_port=51820),
        ip("203.0.113.7", packets.ICMP, bytes([0, 0, 0, 0])),
        tcp("172.18.0.2", 443, interface=INNER),
    ).destinations


def test_an_answer_to_what_the_host_has_asked_makes_it_no_answer() -> None:
    found = seen(
        udp("203.0.113.7", 5000),
        udp("192.0.2.1", 40000, source="203.0.113.7", source_port=5000, direction=0),
        udp("203.0.113.7", 5000),
    )
    assert found.destinations[Destination("udp", "203.0.113.7", 5000)].packets == 2


def test_names_are_read() -> None:
    found = seen(
        udp("192.0.2.53", 53, asks("API.example.org")),
        udp(
            "192.0.2.1", 40000, answers("api.example.org", "203.0.113.7", "2001:db8::7"), "192.0.2.53", 53, direction=0
        ),
        tcp("192.0.2.53", 53, flags=0x18, payload=b"\0\x20" + asks("by.tcp.example")),
        tcp("203.0.113.7", 443, flags=0x18, payload=hello("tls.example.org")),
    )
    assert found.asked == {"api.example.org": 1, "by.tcp.example": 1}
    assert dict(found.names) == {"203.0.113.7": {"api.example.org"}, "2001:db8::7": {"api.example.org"}}
    assert found.destinations[Destination("tcp", "203.0.113.7", 443)].server_names == {"tls.example.org"}


def test_a_name_before_the_end_of_the_capture_is_read() -> None:
    """Keys that resist quantum computers make it longer than a packet."""
    whole = hello("a.example.org")
    assert contents.server_name(whole[: whole.index(b"a.example.org") + 13]) == "a.example.org"
    assert contents.server_name(whole[: whole.index(b"a.example.org") + 12]) == ""


@pytest.mark.parametrize("read", [contents.question, contents.answer, contents.server_name])
def test_garbage_is_no_name(read) -> None:
    loop = struct.pack(">HHHHHH", 7, 0x8180, 1, 1, 0, 0) + b"\xc0\x0c"
    for message in (
        asks("a.example"),
        answers("a.example", "192.0.2.1"),
        hello("a.example"),
        loop,
        b"\x16\x03\x01",
        b"",
    ):
        for end in range(len(message)):
            read(message[:end])
        for at in range(0, len(message), 3):
            read(message[:at] + b"\xff" + message[at + 1 :])


def test_a_name_cannot_write_to_the_terminal() -> None:
    assert contents.question(asks("a\x1b[2Jb.example")) == "a?[2jb.example"


def test_later_fragments_have_no_ports() -> None:
    found = seen(ip("203.0.113.7", packets.UDP, b"whatever it is", fragment=100))
    assert list(found.destinations) == [Destination("udp", "203.0.113.7", 0)]
    # Of IPv6: a header of options, then the fragment's.
    options, fragment = bytes([44, 0, 0, 0, 0, 0, 0, 0]), bytes([17, 0]) + struct.pack(">HI", 0, 1)
    datagram = struct.pack(">HHHH", 40000, 5000, 9, 0) + b"x"
    found = seen(ip("2001:db8::7", 0, options + fragment + datagram))
    assert list(found.destinations) == [Destination("udp", "2001:db8::7", 5000)]


def test_what_is_cut_off_is_left_out() -> None:
    whole = tcp("203.0.113.7", 443)
    for end in range(len(whole)):
        packets.packet(whole[:end])
    cut = capture(whole).getvalue()[:-3]
    assert list(packets.records(io.BytesIO(cut))) == []


@pytest.mark.parametrize("text", [b"tcpdump: no such device", capture(kind=1).getvalue()])
def test_what_is_no_capture_is_refused(text: bytes) -> None:
    with pytest.raises(ValueError, match="tcpdump"):
        list(packets.records(io.BytesIO(text)))


def test_memory_is_bounded() -> None:
    made = Seen([ETH0])
    for number in range(DESTINATIONS + 10):
        one = packets.packet(tcp(str(ipaddress.ip_address("203.0.113.0") + number), 443))
        assert one
        made.take(one)
    for number in range(NAMES + 10):
        one = packets.packet(udp("203.0.113.0", 53, asks(f"n{number}.example")))
        assert one
        made.take(one)
    assert (len(made.destinations), len(made.asked)) == (DESTINATIONS, NAMES)
    # The name server itself is one destination too many.
    assert made.left_out == 10 + 10 + NAMES + 10
    (line,) = [line for line in reasons.lines(made, Configured()) if line.what == "more than is kept"]
    assert not line.explained


# --- reasons ------------------------------------------------------------------------------------------------------------

KNOWN = Configured(
    [
        configured.reason("packages", ["deb.example.org", "[2001:db8::80]"]),
        configured.reason("automations", ["*.hooks.example"]),
        configured.reason("flows", ["198.51.100.0/24"]),
    ],
    frozenset({"192.0.2.53"}),
    ("internal",),
    {"192.0.2.80": "packages"},
)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("deb.example.org", "packages"),
        ("deb.example.org.", "packages"),
        ("deb.example.org.internal", "packages"),
        ("_http._tcp.deb.example.org", "packages"),
        ("a.b.hooks.example", "automations"),
        ("hooks.example", ""),
        ("xdeb.example.org", ""),
        ("c2VjcmV0.deb.example.org", ""),
        ("c2VjcmV0.tunnel.example", ""),
    ],
)
def test_a_name_has_a_reason_or_none(name: str, reason: str) -> None:
    assert reasons.of_name(name, KNOWN) == reason


@pytest.mark.parametrize(
    ("where", "server_names", "names", "reason"),
    [
        (("udp", "192.0.2.53", 53), (), (), reasons.RESOLVER),
        # Another name server, and another port of the host's own.
        (("udp", "8.8.8.8", 53), (), (), ""),
        (("tcp", "192.0.2.53", 443), (), (), ""),
        (("tcp", "203.0.113.7", 80), (), ("deb.example.org",), "packages"),
        (("tcp", "192.0.2.80", 80), (), (), "packages"),
        (("tcp", "2001:db8::80", 80), (), (), "packages"),
        (("tcp", "198.51.100.7", 5432), (), (), "flows"),
        # The address of a CDN, for another of its names.
        (("tcp", "192.0.2.80", 443), ("evil.example",), ("deb.example.org",), ""),
        (("tcp", "192.0.2.80", 443), ("evil.example", "deb.example.org"), (), ""),
        (("tcp", "203.0.113.7", 443), ("deb.example.org",), (), "packages"),
        (("tcp", "203.0.113.7", 443), (), ("evil.example",), ""),
        (("tcp", "169.254.169.254", 80), (), (), reasons.METADATA),
        (("udp", "224.0.0.251", 5353), (), (), reasons.LINK),
        (("udp", "fe80::1", 547), (), (), reasons.LINK),
    ],
)
def test_a_destination_has_a_reason_or_none(
    where: tuple[str, str, int], server_names: tuple[str, ...], names: tuple[str, ...], reason: str
) -> None:
    assert reasons.of_destination(Destination(*where), Sent(1, set(server_names)), names, KNOWN) == reason


def test_what_is_unexplained_comes_first() -> None:
    found = reasons.lines(
        seen(
            tcp("198.51.100.7", 443),
            tcp("203.0.113.7", 443),
            udp("192.0.2.53", 53, asks("tunnel.example")),
        ),
        KNOWN,
    )
    assert [(line.what, line.reason) for line in found] == [
        ("203.0.113.7:443/tcp", ""),
        ("name tunnel.example", ""),
        ("198.51.100.7:443/tcp", "flows"),
        ("192.0.2.53:53/udp", reasons.RESOLVER),
    ]
    assert cli.told(found, 1)["unexplained"] == 2


# --- the host's configuration ---------------------------------------------------------------------------------------------


def test_hosts_of_configurations() -> None:
    assert configured.hosts_of_urls(
        "deb http://deb.example.org/debian trixie main\n# deb http://old.example.org/\nURIs: https://user@sec.example.org:8443/x"
        '\nAcquire::http::Proxy "http://[2001:db8::1]:3142";\n// Acquire::https::Proxy "http://not.example";'
    ) == ["deb.example.org", "sec.example.org", "[2001:db8::1]"]
    assert configured.reason("x", ["A.example.", "[2001:db8::1]", "192.0.2.1", "10.0.0.0/8", "", " "]) == Reason(
        "x",
        ("a.example",),
        tuple(map(ipaddress.ip_network, ("2001:db8::1", "192.0.2.1", "10.0.0.0/8"))),
    )


@pytest.mark.parametrize(
    ("repository", "host"),
    [
        ("/srv/repository", ""),
        ("s3:https://s3.example.org/bucket", "s3.example.org"),
        ("s3:s3.example.org/bucket", "s3.example.org"),
        ("rest:https://user:secret@rest.example.org:8000/", "rest.example.org"),
        ("sftp:backup@nas.example.org:/srv", "nas.example.org"),
        ("sftp://backup@nas.example.org:2222//srv", "nas.example.org"),
        ("rclone:remote:path", ""),
        ("b2:bucket:path", "*.backblazeb2.com"),
    ],
)
def test_hosts_of_repositories(repository: str, host: str) -> None:
    assert configured.host_of_repository(repository) == host


def test_what_the_stack_connects_to() -> None:
    values = configured.variables(
        "# comment\nPREFECT_DOMAIN=prefect.example\nPREFECT_TLS=acme\nPREFECT_ACME_DIRECTORY=https://ca.example/directory\n"
        "PREFECT_SSO_PROXY=http://auth.example:4180\nPREFECT_IMAGE=registry.example:5000/prefect:3\nPOSTGRES_IMAGE=postgres:17\n"
    )
    found = {one.words.partition(" (")[0]: one.names for one in configured.of_stack(values)}
    assert found == {
        "prefect_domain: the server itself": ("prefect.example",),
        "ACME authority": ("ca.example",),
        "single sign-on": ("auth.example",),
        "registry of the images": ("registry.example", *configured.DOCKER_HUB),
    }
    assert "ACME authority" not in {
        one.words.partition(" (")[0] for one in configured.of_stack({"PREFECT_TLS": "internal"})
    }


def test_where_alerts_go() -> None:
    watch = configured.watch_settings.Watch(
        notify_urls=[
            "jsons://hook.example/path",
            "mailtos://u:p@example.org?smtp=smtp.example",
            "slack://T1JJ3T3L2/A1BRTD4JD/TIiajkdnlazkcOXrIdevi7FQ/",
        ],
        heartbeat_url="https://beat.example/secret",
        datadog=configured.watch_settings.Datadog(api_key="k"),
    )
    alerts, heartbeat, datadog = configured.of_watch(watch)
    assert {"hook.example", "hooks.slack.com", "smtp.example"} <= set(alerts.names)
    # Tokens are secrets: no name server is asked for them.
    assert all("." in name for name in alerts.names) and "appriseit.com" not in alerts.names
    assert (heartbeat.names, datadog.names) == (("beat.example",), ("api.datadoghq.com",))
    assert "secret" not in str([alerts, heartbeat, datadog])


def test_interfaces_that_lead_out(tmp_path: Path) -> None:
    for number, (name, inner) in enumerate(
        {"lo": "", "eth0": "", "docker0": "bridge", "veth1": "brport", "br0": "bridge", "wg0": ""}.items(), 1
    ):
        (tmp_path / name).mkdir()
        (tmp_path / name / "ifindex").write_text(f"{number}\n")
        if inner:
            (tmp_path / name / inner).mkdir()
    (tmp_path / "bonding_masters").write_text("")
    assert cli.outward(tmp_path, "default via 192.0.2.254 dev br0 proto dhcp metric 100") == [5, 2, 6]


def test_the_filter_is_one_that_tcpdump_takes() -> None:
    """Its program is not here; what the fields of IPv6 are is held against real packets."""
    packed = tcp("2001:db8::7", 443)[packets.HEADER :]
    assert packed[6] == socket.IPPROTO_TCP and packed[53] & 0x12 == 2
    first = tcp("2001:db8::7", 443, flags=0x18, payload=hello("a.example"))[packets.HEADER :]
    assert first[40 + ((first[52] & 0xF0) >> 2)] == contents.HANDSHAKE
    for words in ("ip6[6] = 6", "ip6[53] & 0x12 = 2", "ip6[(40 + ((ip6[52] & 0xf0) >> 2))] = 0x16"):
        assert words in cli.FILTER


# --- from the control machine -----------------------------------------------------------------------------------------------


def test_all_servers_of_an_inventory() -> None:
    sent = [
        {"what": "203.0.113.7:443/tcp", "names": ["a.example"], "packets": 2, "reason": "unexplained"},
        {"what": "192.0.2.53:53/udp", "names": [], "packets": 9, "reason": reasons.RESOLVER},
    ]
    hosts = {
        "one": {
            "rc": 1,
            "failed": True,
            "stdout": json.dumps({"seconds": 1, "sent": sent}),
            "msg": "non-zero return code",
        },
        "two": {
            "rc": 3,
            "failed": True,
            "stdout": "",
            "stderr": "ERROR: there is no tcpdump, which watches\nHINT: apt-get …",
        },
        "three": {"rc": 0, "stdout": json.dumps({"seconds": 1, "sent": sent[1:]})},
    }
    found = script.all_told(json.dumps({"plays": [{"tasks": [{"hosts": hosts}]}]}))
    assert [one.unexplained for one in found] == [1, 0, 0]
    assert script.table(found) == [
        "host   destination          names      packets  reason",
        "one    203.0.113.7:443/tcp  a.example  2        unexplained",
        "one    192.0.2.53:53/udp               9        name server of the host",
        "three  192.0.2.53:53/udp               9        name server of the host",
        "two was not watched: ERROR: there is no tcpdump, which watches HINT: apt-get …",
    ]
    assert (script.code(found), script.code(found[:1]), script.code(found[2:])) == (3, 1, 0)
    assert script.command(5, ["10.0.0.0/8", "a; b"]).endswith("--seconds 5 --expect 10.0.0.0/8 --expect 'a; b'")
