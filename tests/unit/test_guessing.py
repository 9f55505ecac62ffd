"""Who guesses passwords: what the real Caddy logs of it, as fail2ban's filter reads it, and what it leaves such a client."""

from __future__ import annotations

import base64
import configparser
import http.client
import json
import re
import socket
import ssl
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from .test_caddyfile import LOGIN, Caddy, Proxy
from .test_settings import load

ROOT = Path(__file__).resolve().parents[2]
FILES = ROOT / "caddy" / "fail2ban"
WRONG = base64.b64encode(b"alice:wrong").decode()
# As fail2ban has it, in short; it takes no names (usedns = no).
ADDRESS = r"(?P<address>[0-9a-fA-F:.]+)"
JOURNAL = "prefect prefect-caddy[873]: "


def settings(name: str) -> configparser.ConfigParser:
    """One of the files, as fail2ban reads it."""
    found = configparser.ConfigParser(interpolation=None)
    found.read_string((FILES / name).read_text())
    return found


FILTER = re.compile(settings("filter.d/prefect.conf")["Definition"]["failregex"].replace("<ADDR>", ADDRESS))


@pytest.fixture(scope="module")
def proxy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Proxy]:
    """With less patience: a body may stall for 0.3 seconds, and not for ten."""
    proxy = Proxy(Caddy(tmp_path_factory.mktemp("guessing")))
    file = proxy.directory / "caddy.json"
    configuration = json.loads(file.read_text())
    for server in configuration["apps"]["http"]["servers"].values():
        assert server["read_idle_timeout"] == 10_000_000_000
        server["read_idle_timeout"] = 300_000_000
    file.write_text(json.dumps(configuration))
    with proxy:
        yield proxy


def alarms(proxy: Proxy, *paths: str) -> dict[str, str]:
    """The lines of failed logins, by the path that was asked for; waits for all of them."""
    deadline = time.monotonic() + 10
    while True:
        lines = [line for line in proxy.alarms.read_text().splitlines() if "failed_login" in line]
        found = {json.loads(line)["request"]["uri"]: line for line in lines}
        if set(paths) <= set(found) or time.monotonic() > deadline:
            return found
        time.sleep(0.02)


# --- what is counted ---------------------------------------------------------------------------------------------------


def test_a_failed_login_is_read_with_its_address(proxy: Proxy) -> None:
    for path in ("/api/a", "/status"):
        assert proxy.ask("GET", path, Authorization=f"Basic {WRONG}") == 401
    found = alarms(proxy, "/api/a", "/status")
    for path in ("/api/a", "/status"):
        match = FILTER.match(JOURNAL + found[path])
        assert match and match["address"] == "127.0.0.1"


def test_a_client_cannot_name_another_address(proxy: Proxy) -> None:
    """In whatever it may choose: path, browser, user name."""
    other = '","network":"203.0.113.9"}'
    assert proxy.ask("GET", "/forged", User_Agent=other, Authorization=f"Basic {WRONG}") == 401
    assert proxy.ask("GET", f"/x{other}", Authorization=f"Basic {WRONG}") == 401
    found = alarms(proxy, "/forged", f"/x{other}")
    assert "203.0.113.9" in found["/forged"]
    for line in found.values():
        match = FILTER.match(JOURNAL + line)
        assert match and match["address"] == "127.0.0.1"


@pytest.mark.parametrize(
    ("line", "logged"),
    [
        ("GET /logged?token=hushed HTTP/1.1", "/logged"),
        ("GET http://eve:hushed@localhost/absolute?token=hushed HTTP/1.1", "/absolute"),
        ("GET http:eve:hushed@localhost/opaque HTTP/1.1", "/opaque"),
        ("GET https://eve:hushed@localhost?token=hushed HTTP/1.1", ""),
        ("CONNECT eve:hushed@localhost:443 HTTP/1.1", ""),
    ],
)
def test_no_credentials_of_an_address_are_logged(proxy: Proxy, line: str, logged: str) -> None:
    """A client may name a whole address in the first line of a request, and anything in its query."""
    before = len(proxy.alarms.read_text())
    context = ssl._create_unverified_context()
    plain = socket.create_connection(("localhost", proxy.https), timeout=20)
    with context.wrap_socket(plain, server_hostname="localhost") as stream:
        head = f"Host: localhost\r\nAuthorization: Basic {WRONG}\r\nConnection: close\r\n\r\n"
        stream.sendall(f"{line}\r\n{head}".encode())
        assert stream.recv(65536).startswith(b"HTTP/1.1 401 ")
    deadline = time.monotonic() + 10
    while not (said := proxy.alarms.read_text()[before:]).endswith("\n") and time.monotonic() < deadline:
        time.sleep(0.02)
    (found,) = [json.loads(one) for one in said.splitlines() if "failed_login" in one]
    assert found["request"]["uri"] == logged
    assert "hushed" not in said


def test_nothing_else_is_counted() -> None:
    line = '{"level":"info","ts":1.5,"logger":"http.log.access.failed_login","status":401,"network":"203.0.113.9"}'
    assert FILTER.match(JOURNAL + line)
    assert FILTER.match(JOURNAL + line.replace("203.0.113.9", "2001:db8:1:2::"))
    for other in ("http.log.access", "tls", "http.log.access.failed_login.x"):
        assert not FILTER.match(JOURNAL + line.replace("http.log.access.failed_login", other))
    assert not FILTER.match("prefect prefect-server[873]: " + line)
    assert not FILTER.match(JOURNAL + "x " + line)


def test_an_ipv6_address_is_told_by_its_network(tmp_path: Path) -> None:
    for log in Caddy(tmp_path).adapted()["logging"]["logs"].values():
        assert log["encoder"]["fields"]["network"] == {"filter": "ip_mask", "ipv4_cidr": 32, "ipv6_cidr": 64}


def test_only_the_docker_engine_is_believed() -> None:
    """A field without an underscore is whatever its writer says."""
    matches = settings("filter.d/prefect.conf")["Definition"]["journalmatch"].split()
    assert {"_SYSTEMD_UNIT=docker.service", "_UID=0"} <= set(matches)
    assert "+" not in matches


def test_ipv6_is_blocked_by_its_network() -> None:
    action = settings("action.d/prefect.conf")
    assert action["Init?family=inet6"]["prefix"] == "/64"
    assert "<ip><prefix>" in action["Definition"]["actionban"] and "<ip><prefix>" in action["Definition"]["actionunban"]
    sets = re.findall(r"set (\w+) \{", (FILES / "prefect.nft").read_text())
    assert sets == [action[section]["set"] for section in ("Init", "Init?family=inet6")]


def test_who_is_never_blocked() -> None:
    never = load("prefect_host").prefect_never_blocked
    assert never([], ["prefect.example.org", ""]) == ["127.0.0.0/8"]
    assert never(["203.0.113.7", "198.51.100.0/24"], ["192.0.2.1", "192.0.2.1"])[1:] == [
        "203.0.113.7",
        "198.51.100.0/24",
        "192.0.2.1",
    ]
    # The proxy's log has the /64 alone.
    assert never(["2001:db8:1:2::7", "2001:db8::/32"], [])[1:] == ["2001:db8:1:2::/64", "2001:db8::/32"]


def test_the_limit_lets_people_mistype() -> None:
    defaults = yaml.safe_load((ROOT / "ansible/roles/host/defaults/main.yml").read_text())
    first, longest = defaults["host_guessing_block_seconds"], defaults["host_guessing_longest_block_seconds"]
    assert defaults["host_guessing_limit"] >= 20
    assert first <= 60 and longest <= 3600


@pytest.mark.parametrize(
    ("login", "name"), [(b"alice:wrong", "alice"), (b"pinger:secret", "pinger"), (b"alicf:x", None), (b"secret", None)]
)
def test_the_account_that_was_tried_is_told(proxy: Proxy, login: bytes, name: str | None) -> None:
    """And nothing else that was typed."""
    path = f"/as/{login.decode().partition(':')[0]}"
    assert proxy.ask("GET", path, Authorization=f"Basic {base64.b64encode(login).decode()}") == 401
    line = alarms(proxy, path)[path]
    assert json.loads(line)["tried"] == name
    match = FILTER.match(JOURNAL + line)
    assert match and match["address"] == "127.0.0.1"


# --- what it costs -----------------------------------------------------------------------------------------------------


def left_open(proxy: Proxy, head: str, seconds: float = 5) -> float | None:
    """Seconds until the proxy closes a connection whose request has a body that never ends; None: it does not."""
    context = ssl._create_unverified_context()
    with (
        socket.create_connection(("localhost", proxy.https), 10) as plain,
        context.wrap_socket(plain, server_hostname="localhost") as stream,
    ):
        stream.settimeout(seconds)
        began = time.monotonic()
        stream.sendall(f"POST /api/flows/ HTTP/1.1\r\nHost: localhost:{proxy.https}\r\n{head}".encode())
        said = b""
        try:
            while piece := stream.recv(65536):
                said += piece
        except TimeoutError:
            return None
        except OSError:
            pass
        assert said.startswith(b"HTTP/1.1 401 ")
        return time.monotonic() - began


@pytest.mark.parametrize(
    ("login", "body"),
    [
        ("", "Content-Length: 1000\r\n\r\nab"),
        (f"Authorization: Basic {WRONG}\r\n", "Content-Length: 1000000\r\n\r\nab"),
        (f"Authorization: Basic {WRONG}\r\n", "Transfer-Encoding: chunked\r\n\r\n5\r\nab"),
    ],
)
def test_a_stranger_who_never_ends_is_cut_off(proxy: Proxy, login: str, body: str) -> None:
    assert left_open(proxy, login + body) is not None


def test_who_is_let_in_may_be_slow(proxy: Proxy) -> None:
    """A body longer in coming than the proxy's patience with one that stalls."""
    context = ssl._create_unverified_context()
    connection = http.client.HTTPSConnection("localhost", proxy.https, context=context, timeout=20)

    def slowly() -> Iterator[bytes]:
        for _ in range(8):
            time.sleep(0.05)
            yield b"x"

    connection.request("POST", "/api/flows/", slowly(), {"Authorization": f"Basic {LOGIN}", "Content-Length": "8"})
    assert connection.getresponse().status == 200
    connection.close()


# --- what answers say --------------------------------------------------------------------------------------------------


def headers(proxy: Proxy, path: str, login: str) -> Any:
    """Status and headers of an answer."""
    context = ssl._create_unverified_context()
    connection = http.client.HTTPSConnection("localhost", proxy.https, context=context, timeout=20)
    connection.request("GET", path, headers={"Authorization": f"Basic {login}"} if login else {})
    answer = connection.getresponse()
    answer.read()
    connection.close()
    return answer.status, answer.headers


@pytest.mark.parametrize("path", ["/api", "/api/flows/1", "/openapi.json", "/ui-settings", "/status", "/docs"])
def test_no_cache_keeps_what_the_api_says(proxy: Proxy, path: str) -> None:
    for login in (LOGIN, WRONG, ""):
        assert headers(proxy, path, login)[1].get_all("Cache-Control") == ["no-store"]


def test_the_uis_files_may_be_kept(proxy: Proxy) -> None:
    assert headers(proxy, "/assets/index-4f2a.js", LOGIN)[1]["Cache-Control"] is None


@pytest.mark.parametrize("path", ["/", "/api/flows/1", "/docs", "/status", "/metrics"])
def test_no_answer_names_a_server(proxy: Proxy, path: str) -> None:
    """The stand-in's own names itself."""
    for login in (LOGIN, WRONG, ""):
        assert not {"server", "via", "x-powered-by"} & {name.lower() for name in headers(proxy, path, login)[1]}
