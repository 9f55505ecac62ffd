"""The reverse proxy: who gets in, what is told to whom, and what a browser may do. From outside, against the provisioned VPS."""

from __future__ import annotations

import base64
import json
import os
import re
import shlex
import socket
import ssl
import statistics
import subprocess
import sys
import time
import uuid
import warnings
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
from testinfra.host import Host
from websockets.exceptions import InvalidMessage, InvalidStatus
from websockets.sync.client import ClientConnection, connect

USER = "admin"
WEBSOCKETS = (
    "/api/events/in",
    "/api/events/out",
    "/api/logs/out",
    "/api/task_runs/subscriptions/scheduled",
    "/api/work_pools/general/workers/connect",
)
DETOURS = (
    "/api/health",
    "/api/ready",
    "//api/health",
    "/api/../api/health",
    "/%2e%2e/api/health",
    "/api/health/../admin/settings",
    "/API/HEALTH",
    "/api;x=/health",
    "/\\api/health",
    "/api/health?x=/..",
    "/ui-settings",
    "/openapi.json",
    "/docs",
    "/favicon.ico",
    "/metrics",
    "/debug/pprof/",
    "/config/",
)


def basic(endpoint: Any, user: str = USER, password: str | None = None) -> str:
    """The value of an Authorization header."""
    secret = f"{user}:{endpoint.passwords[user] if password is None else password}"
    return f"Basic {base64.b64encode(secret.encode()).decode()}"


def raw(endpoint: Any, request: str) -> str:
    """What comes back for these very bytes, sent over TLS."""
    host = urlsplit(endpoint.url).hostname
    context = ssl.create_default_context(cafile=endpoint.ca)
    said = b""
    with socket.create_connection((host, 443), 10) as plain, context.wrap_socket(plain, server_hostname=host) as stream:
        stream.sendall(request.encode())
        while piece := stream.recv(65536):
            said += piece
    return said.decode()


def websocket(endpoint: Any, path: str, **headers: str) -> ClientConnection:
    """A websocket through the reverse proxy, with these headers."""
    try:
        return open_websocket(endpoint, path, headers)
    except InvalidMessage:
        # Once in some hundred refusals this client finds the connection closed before it has read the answer.
        return open_websocket(endpoint, path, headers)


def open_websocket(endpoint: Any, path: str, headers: dict[str, str]) -> ClientConnection:
    """One try of `websocket`."""
    context = ssl.create_default_context(cafile=endpoint.ca)
    return connect(
        endpoint.url.replace("https:", "wss:") + path,
        ssl=context,
        additional_headers=headers,
        subprotocols=["prefect"],
        proxy=None,
        open_timeout=20,
    )


def iso_time(offset: float) -> str:
    """The time in so many seconds."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() + offset))


def greet(connection: ClientConnection) -> None:
    """Prefect's first words on every websocket. Its own password is not used, so the token is empty."""
    connection.send(json.dumps({"type": "auth", "token": None}))
    assert json.loads(connection.recv(timeout=20))["type"] == "auth_success"


# --- who gets in -----------------------------------------------------------------------------------------------


def test_nobody_gets_in_without_a_password(endpoint) -> None:
    answer = endpoint.get("/", user=None)
    assert answer.status_code == 401
    assert answer.headers["www-authenticate"] == 'Basic realm="Prefect"'
    assert answer.text == "A user name and a password are needed.\n"


@pytest.mark.parametrize(("user", "password"), [(USER, "wrong"), (USER, ""), ("nobody", "wrong"), ("", "")])
def test_nobody_gets_in_with_a_wrong_one(endpoint, user: str, password: str) -> None:
    for path in ("/", "/api/health", "/api/admin/version"):
        assert endpoint.get(path, user=user, password=password).status_code == 401


def test_every_account_gets_in(endpoint) -> None:
    # Passwords of accounts that the inventory once had lie there too.
    for user in ("admin", "playbook", "worker-general-1"):
        assert endpoint.get("/api/health", user=user).json() is True


@pytest.mark.parametrize("path", DETOURS)
def test_no_path_leads_around_the_password(endpoint, path: str) -> None:
    host = urlsplit(endpoint.url).hostname
    for method in ("GET", "HEAD", "OPTIONS", "POST"):
        said = raw(
            endpoint, f"{method} {path} HTTP/1.1\r\nHost: {host}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
        )
        assert said.startswith("HTTP/1.1 401 "), f"{method} {path}: {said[:200]}"


@pytest.mark.parametrize("name", ["localhost", "server", "127.0.0.1:2020", "other.example.org"])
def test_no_other_name_leads_around_it(endpoint, name: str) -> None:
    said = raw(endpoint, f"GET /api/health HTTP/1.1\r\nHost: {name}\r\nConnection: close\r\n\r\n")
    assert said.startswith("HTTP/1.1 421 "), said[:200]
    said = raw(endpoint, f"GET http://{name}/api/health HTTP/1.1\r\nHost: {name}\r\nConnection: close\r\n\r\n")
    assert said.startswith("HTTP/1.1 421 "), said[:200]


def test_no_two_requests_in_one_lead_around_it(endpoint) -> None:
    """Smuggling: what a careless proxy would take for the body of the first request, and pass on as the second."""
    host = urlsplit(endpoint.url).hostname
    second = f"GET /api/health HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n"
    first = f"POST /api/flows/filter HTTP/1.1\r\nHost: {host}\r\nAuthorization: {basic(endpoint)}\r\n"
    said = raw(endpoint, f"{first}Content-Length: 6\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n{second}")
    statuses = re.findall(r"^HTTP/1.1 (\d+)", said, re.MULTILINE)
    # The first has a password and is answered; the second, if it is one, has none.
    assert statuses[0] == "200" and "200" not in statuses[1:], said[:400]


# --- encryption and names ----------------------------------------------------------------------------------------


def test_the_certificate_is_of_the_authority_that_clients_were_given(endpoint) -> None:
    host = urlsplit(endpoint.url).hostname
    assert endpoint.get("/api/health").status_code == 200  # verified with that authority alone
    with pytest.raises(httpx.ConnectError, match="CERTIFICATE_VERIFY_FAILED"):
        httpx.get(f"{endpoint.url}/", trust_env=False)
    context = ssl.create_default_context(cafile=endpoint.ca)
    context.set_alpn_protocols(["h3", "h2", "http/1.1"])
    with socket.create_connection((host, 443), 10) as plain, context.wrap_socket(plain, server_hostname=host) as stream:
        assert stream.selected_alpn_protocol() == "h2"
        assert stream.version() == "TLSv1.3"


def test_old_protocols_are_refused(endpoint) -> None:
    host = urlsplit(endpoint.url).hostname
    context = ssl.create_default_context(cafile=endpoint.ca)
    context.set_ciphers("ALL:@SECLEVEL=0")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        context.minimum_version = ssl.TLSVersion.TLSv1
        context.maximum_version = ssl.TLSVersion.TLSv1_1
    with socket.create_connection((host, 443), 10) as plain, pytest.raises((ssl.SSLError, ConnectionError)):
        context.wrap_socket(plain, server_hostname=host)


@pytest.mark.parametrize("path", ["/", "/runs?page=2", "/api/health"])
def test_plain_http_is_redirected(endpoint, vps, path: str) -> None:
    for host in (urlsplit(endpoint.url).hostname, vps.address):
        answer = httpx.get(f"http://{host}{path}", trust_env=False)
        assert answer.status_code == 308
        assert answer.headers["location"] == f"{endpoint.url}{path}"
        assert "server" not in answer.headers


# --- headers -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "user"), [("/", USER), ("/api/health", USER), ("/", None), ("/docs", USER), ("/api/no-such-thing", USER)]
)
def test_every_answer_carries_the_headers(endpoint, path: str, user: str | None) -> None:
    headers = endpoint.get(path, user=user).headers
    assert headers["strict-transport-security"] == "max-age=31536000"
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["x-frame-options"] == "DENY"
    assert headers["referrer-policy"] == "same-origin"
    assert headers["cross-origin-opener-policy"] == "same-origin"
    assert "camera=()" in headers["permissions-policy"]
    assert not {"server", "via"} & set(headers)
    policy = dict(rule.split(" ", 1) for rule in headers["content-security-policy"].split("; "))
    host = urlsplit(endpoint.url).netloc
    for rule, sources in policy.items():
        allowed = {"'self'", "'none'", "'unsafe-inline'", "'unsafe-eval'", "data:", "blob:", f"wss://{host}"}
        assert set(sources.split()) <= allowed, rule
    assert policy["frame-ancestors"] == policy["object-src"] == "'none'"
    assert "'unsafe-inline'" not in policy["script-src"]


@pytest.mark.parametrize("path", ["/docs", "/redoc", "/docs/oauth2-redirect", "/api/docs", "/DOCS"])
def test_pages_that_load_foreign_scripts_are_refused(endpoint, path: str) -> None:
    answer = endpoint.get(path)
    assert answer.status_code == 404
    assert answer.text.startswith("The API's documentation pages would load scripts from other hosts.")


def test_the_ui_is_told_to_use_its_own_origin(endpoint) -> None:
    assert endpoint.get("/ui-settings").json()["api_url"] == "/api"


# --- other sites' pages --------------------------------------------------------------------------------------------


CREATIONS = """
import asyncio
from datetime import timedelta
from prefect.client.orchestration import get_client
from prefect.states import Scheduled
from prefect.types._datetime import now

async def main():
    async with get_client() as client:
        deployment = await client.read_deployment_by_name("smoke/smoke")
        later = Scheduled(scheduled_time=now() + timedelta(days=300))
        made = await asyncio.gather(*(
            client.create_flow_run_from_deployment(deployment.id, state=later) for _ in range(8)
        ))
        for run in made:
            await client.delete_flow_run(run.id)
        print(len({run.id for run in made}))

asyncio.run(main())
"""


def test_a_new_client_may_ask_for_many_things_at_once(endpoint, tmp_path) -> None:
    """With the server's tokens, each of its requests fetched one that ended the others'."""
    environment = {
        "PATH": os.environ["PATH"],
        "HOME": str(tmp_path),
        "PREFECT_API_URL": f"{endpoint.url}/api",
        "PREFECT_API_SSL_CERT_FILE": str(endpoint.ca),
        "PREFECT_CLIENT_CUSTOM_HEADERS": json.dumps({"Authorization": basic(endpoint)}),
        "DO_NOT_TRACK": "1",
    }
    done = subprocess.run(
        [sys.executable, "-c", CREATIONS], env=environment, capture_output=True, text=True, timeout=60
    )
    assert done.stdout == "8\n", done.stderr[-2000:]


def test_a_program_needs_no_token_and_a_page_of_another_site_gets_nowhere(endpoint) -> None:
    """All that a page can do with the password that a browser sends by itself: tests/unit/test_caddyfile.py."""
    with endpoint.client() as client:
        assert client.post("/api/flows/filter", json={}).status_code == 200
        foreign = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "document"}
        answer = client.post("/api/flows/filter", data={"a": "b"}, headers=foreign)
    assert answer.status_code == 403
    assert answer.text == "This address does not answer to pages of other sites.\n"


def test_an_error_of_the_servers_harms_no_other_request(endpoint) -> None:
    """It answers 500 to NaN, which is JSON to Python alone, and then closes its connection without saying so."""
    with endpoint.client() as client:
        for _ in range(5):
            answer = client.post("/api/flows/filter", content='{"limit": NaN}')
            assert answer.status_code == 500
            assert client.post("/api/flows/filter", json={}).status_code == 200


@pytest.mark.parametrize("origin", ["https://evil.example.org", "null", "http://prefect.lab.test"])
def test_a_page_of_another_site_gets_nothing(endpoint, origin: str) -> None:
    answer = endpoint.get("/api/admin/version", headers={"Origin": origin})
    assert answer.status_code == 403
    assert answer.text == "This address does not answer to scripts of other sites.\n"
    for path in WEBSOCKETS:
        with pytest.raises(InvalidStatus) as refused:
            websocket(endpoint, path, Authorization=basic(endpoint), Origin=origin)
        assert refused.value.response.status_code == 403


def test_our_own_page_gets_everything(endpoint) -> None:
    assert endpoint.get("/api/health", headers={"Origin": endpoint.url}).status_code == 200
    with websocket(endpoint, "/api/events/out", Authorization=basic(endpoint), Origin=endpoint.url) as connection:
        greet(connection)


# --- websockets ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", WEBSOCKETS)
def test_a_websocket_needs_a_password(endpoint, path: str) -> None:
    for headers in ({}, {"Authorization": basic(endpoint, password="wrong")}):
        with pytest.raises(InvalidStatus) as refused:
            websocket(endpoint, path, **headers)
        assert refused.value.response.status_code == 401


@pytest.mark.parametrize("path", WEBSOCKETS)
def test_a_websocket_works_with_one(endpoint, path: str) -> None:
    with websocket(endpoint, path, Authorization=basic(endpoint)) as connection:
        greet(connection)


def test_events_and_logs_come_live(endpoint) -> None:
    """What is sent into one websocket comes out of another within seconds, and a log written by HTTP of a third."""
    name = f"lab.{uuid.uuid4().hex}"
    authorization = basic(endpoint)
    with (
        websocket(endpoint, "/api/events/out", Authorization=authorization) as events,
        websocket(endpoint, "/api/logs/out", Authorization=authorization) as logs,
        websocket(endpoint, "/api/events/in", Authorization=authorization) as sender,
    ):
        for connection in (events, logs, sender):
            greet(connection)
        # Without a time, a filter ends now.
        wanted = {"event": {"name": [name]}, "occurred": {"since": iso_time(-60), "until": iso_time(3600)}}
        events.send(json.dumps({"type": "filter", "filter": wanted, "backfill": False}))
        logs.send(json.dumps({"type": "filter", "filter": {}}))
        time.sleep(1)  # the server says nothing when it has subscribed
        now = iso_time(0)
        resource = {"prefect.resource.id": "lab"}
        sender.send(json.dumps({"event": name, "id": str(uuid.uuid4()), "occurred": now, "resource": resource}))
        line = {"name": "lab", "level": 20, "message": name, "timestamp": now, "flow_run_id": None}
        assert endpoint.post("/api/logs/", [line]).status_code == 201
        assert json.loads(events.recv(timeout=20))["event"]["event"] == name
        while json.loads(logs.recv(timeout=20))["log"]["message"] != name:
            pass


# --- what it costs -------------------------------------------------------------------------------------------------


def test_a_repeated_login_costs_nothing_and_a_wrong_one_little(endpoint, capsys) -> None:
    def milliseconds(client: httpx.Client, **more: Any) -> float:
        started = time.perf_counter()
        client.get("/api/health", **more)
        return (time.perf_counter() - started) * 1000

    with endpoint.client() as client:
        client.get("/api/health")
        right = statistics.median(milliseconds(client) for _ in range(30))
        wrong = statistics.median(milliseconds(client, auth=(USER, uuid.uuid4().hex)) for _ in range(10))
        # The second differs from an account's name in what base64 does not keep apart at its end.
        unknown = max(
            statistics.median(milliseconds(client, auth=(name, uuid.uuid4().hex)) for _ in range(10))
            for name in ("nobody", f"{USER}9")
        )
    with capsys.disabled():
        print(
            f"\nat the reverse proxy: right password {right:.1f} ms, wrong {wrong:.0f} ms, unknown user {unknown:.0f} ms"
        )
    assert right < 40
    assert wrong < 800
    # Caddy by itself takes a second and more for a name that it does not know.
    assert unknown < 200


def test_large_bodies_pass_and_huge_ones_do_not(endpoint) -> None:
    large = endpoint.post("/api/flow_runs/filter", {"limit": 1, "padding": "x" * 5_000_000})
    assert large.status_code in {200, 422}, "refused or taken by Prefect, not by the reverse proxy"
    assert endpoint.post("/api/flow_runs/filter", {"padding": "x" * 17_000_000}).status_code == 413


# --- who guesses passwords ---------------------------------------------------------------------------------------------

# On one connection, until it is cut ($1: address, $2: name, $3: most tries). A name that nobody has costs no hash.
GUESSES = """
import base64, json, socket, ssl, sys, time
address, name, most = sys.argv[1], sys.argv[2], int(sys.argv[3])
plain = socket.create_connection((address, 443), 10)
stream = ssl._create_unverified_context().wrap_socket(plain, server_hostname=name)
made, ended, own = 0, "", stream.getsockname()[0]
try:
    while made < most:
        login = base64.b64encode(f"guesser:{made}".encode()).decode()
        stream.sendall(f"GET /api/health HTTP/1.1\\r\\nHost: {name}\\r\\nAuthorization: Basic {login}\\r\\n\\r\\n".encode())
        assert stream.recv(65536).startswith(b"HTTP/1.1 401 ")
        made += 1
        time.sleep(0.01)
except OSError as error:
    ended = type(error).__name__
print(json.dumps({"made": made, "ended": ended, "own": own}))
"""
# $1 is a line of Caddy's of a failed login: whoever writes to the journal may call himself what he likes.
FORGED = """
for _ in 1 2 3 4 5 6 7 8; do
    printf 'MESSAGE=%s\\nPRIORITY=3\\nSYSLOG_IDENTIFIER=prefect-caddy\\nCONTAINER_NAME=prefect-caddy\\nCONTAINER_TAG=prefect-caddy\\n' "$1" |
        logger --journald
done
"""
FAILED_LOGINS = "journalctl -n 1 -o cat PRIORITY=3 _SYSTEMD_UNIT=docker.service CONTAINER_NAME=prefect-caddy"
FINDING = '/opt/prefect/backups/venv/bin/python -c "from prefect_doctor import logs; print(logs.findings(logs.look())[0].measured)"'


@pytest.fixture
def few_guesses(host: Host) -> Iterator[None]:
    """Fewer than the lab's thousand, and more than the tests have made before; afterwards nobody is blocked."""
    assert host.check_output("fail2ban-client get prefect maxretry") == "1000"
    host.run_expect([0], "fail2ban-client set prefect maxretry 200")
    yield
    host.run_expect([0], "fail2ban-client set prefect maxretry 1000; fail2ban-client unban --all")


def test_who_guesses_is_blocked_and_nobody_else(endpoint, vps, host: Host, few_guesses: None) -> None:
    domain = urlsplit(endpoint.url).hostname

    def guess(most: int) -> dict[str, Any]:
        return json.loads(
            vps.outsider("python3", "-c", GUESSES, vps.address, domain, str(most), check=False).stdout or "{}"
        )

    line = re.sub(r'"network":"[^"]*"', '"network":"203.0.113.9"', host.check_output(FAILED_LOGINS))
    assert "203.0.113.9" in line
    for user in ("nobody", "root"):
        vps.ssh(f"runuser --user {user} -- sh -c {shlex.quote(FORGED)} _ {shlex.quote(line)}")
    found = guess(3000)
    # Within a second or so of the last that is allowed. (A run before this one on a kept VPS counts, too.)
    assert 1 <= found["made"] < 3000 and found["ended"] == "ConnectionResetError", found
    status = host.check_output("fail2ban-client status prefect")
    assert status.split("Banned IP list:")[1].split() == [found["own"]], status
    assert guess(1) == {}, "a new connection"
    assert endpoint.get("/api/health").status_code == 200, "another address"
    finding = host.check_output(f"cd $(dirname $(readlink -f /usr/local/sbin/prefect-doctor)); {FINDING}")
    assert f"blocked: {found['own']}" in finding

    # What the firewall does to its own rules leaves it, and so does a new start of fail2ban.
    host.run_expect([0], "systemctl reload prefect-firewall && systemctl restart fail2ban")
    kept = f"nft list set inet prefect-blocked ipv4 | grep -q {found['own']}"
    host.run_expect([0], f"timeout 20 sh -c 'until {kept}; do sleep 0.2; done'")
    assert guess(1) == {}

    # By the command of docs/security.md.
    host.run_expect([0], f"fail2ban-client unban {found['own']}")
    assert guess(1)["made"] == 1


def test_the_processor_time_of_the_proxy_is_limited_where_it_can_be(host: Host) -> None:
    quota = int(host.check_output("docker inspect --format '{{.HostConfig.CpuQuota}}' prefect-caddy"))
    possible = host.check_output("docker info --format '{{.CPUCfsQuota}}'") == "true"
    assert quota == (int(host.check_output("nproc")) * 50_000 if possible else 0)


# --- the access log ------------------------------------------------------------------------------------------------


def test_the_log_names_the_user_and_no_secret(endpoint, access_log, host: Host) -> None:
    mark, typed = uuid.uuid4().hex, f"typed-{uuid.uuid4().hex}"
    answer = endpoint.get(
        f"/api/{mark}", headers={"Cookie": f"session={typed}", "User-Agent": "lab/1", "X-Api-Key": typed}
    )
    assert answer.status_code == 404
    assert endpoint.get(f"/api/{mark}", password=typed).status_code == 401
    endpoint.post(f"/api/{mark}", {"secret": typed})
    time.sleep(1)
    lines = [line for line in access_log(60) if mark in line["request"]["uri"]]
    assert [(line["user_id"], line["status"]) for line in lines] == [(USER, 404), ("", 401), (USER, 404)]
    assert lines[0]["user_agent"] == "lab/1"
    assert lines[0]["request"]["remote_ip"]
    everything = host.check_output(
        "docker logs --since 120s prefect-caddy 2>&1; docker logs --since 120s prefect-server 2>&1"
    )
    assert mark in everything
    for secret in (typed, endpoint.passwords[USER], basic(endpoint).split()[1]):
        assert secret not in everything
    for header in ("authorization", "cookie", 'csrf-token"', "x-api-key"):
        assert f'"{header}' not in everything.lower()


def test_the_log_is_in_the_journal(host: Host) -> None:
    for name in ("postgres", "server", "caddy"):
        assert host.check_output(f"journalctl CONTAINER_TAG=prefect-{name} -n 50 -o cat --no-pager").strip()


# --- a second endpoint, beside a stand-in for the server ---------------------------------------------------------------

ECHO = (
    ":4200 {\n"
    '\trespond /broken "no database" 500\n'
    '\trespond `{"authorization": "{header.Authorization}", "forwarded": "{header.Forwarded}",'
    ' "real": "{header.X-Real-Ip}", "for": "{header.X-Forwarded-For}", "proto": "{header.X-Forwarded-Proto}",'
    ' "host": "{header.X-Forwarded-Host}", "upgrade": "{header.Upgrade}"}`\n'
    "}\n"
)
SCRATCH = "/root/scratch"


class Scratch:
    """Throwaway containers on a network of their own on the VPS, with the Caddyfile that the playbook has placed."""

    def __init__(self, host: Host) -> None:
        self.host = host
        self.image = host.check_output("docker inspect --format '{{.Config.Image}}' prefect-caddy")
        self.remove()
        host.check_output(f"install -d {SCRATCH} {SCRATCH}/users && docker network create scratch")
        hashed = host.check_output(
            f"docker run --rm {self.image} caddy hash-password --algorithm bcrypt --bcrypt-cost 10 --plaintext open"
        )
        self.write("users/users.caddy", f"alice {hashed}\n")

    def write(self, name: str, text: str) -> None:
        """A file below SCRATCH."""
        encoded = base64.b64encode(text.encode()).decode()
        self.host.check_output(f"echo {encoded} | base64 -d > {SCRATCH}/{name}")

    def server(self) -> None:
        """A server that answers with the headers that have reached it."""
        self.write("server", ECHO)
        self.host.check_output(
            "docker run -d --name scratch-server --network scratch --network-alias server"
            f" --volume {SCRATCH}/server:/tmp/Caddyfile:ro {self.image}"
            " caddy run --config /tmp/Caddyfile --adapter caddyfile"
        )

    def endpoint(self, domain: str) -> None:
        """The reverse proxy under test, for another domain."""
        self.host.run("docker rm --force scratch-endpoint")
        self.host.check_output(
            f"docker run -d --name scratch-endpoint --network scratch --network-alias {domain}"
            f" --env PREFECT_DOMAIN={domain} --env PREFECT_TLS=internal"
            " --cap-drop ALL --cap-add NET_BIND_SERVICE --read-only --tmpfs /data --tmpfs /config"
            f" --volume /opt/prefect/caddy:/etc/caddy:ro --volume {SCRATCH}/users:/etc/prefect-caddy:ro {self.image}"
        )
        wait = "curl --silent --retry 20 --retry-connrefused --retry-delay 1 http://127.0.0.1:2020/"
        assert self.host.check_output(f"docker exec scratch-endpoint {wait}") == "ok"

    def curl(self, words: str) -> str:
        """What curl says on that network."""
        return self.host.check_output(
            f"docker run --rm --network scratch --volume {SCRATCH}:/scratch:ro {self.image}"
            f" curl --silent --max-time 60 {words}"
        )

    def remove(self) -> None:
        self.host.run("docker ps -aq --filter name=^scratch- | xargs -r docker rm --force --volumes")
        self.host.run(f"docker network rm scratch; rm -rf {SCRATCH}")


@pytest.fixture
def scratch(host: Host) -> Iterator[Scratch]:
    scratch = Scratch(host)
    yield scratch
    scratch.remove()


def test_the_password_and_claims_of_the_client_end_at_the_proxy(scratch: Scratch) -> None:
    scratch.server()
    scratch.endpoint("endpoint.scratch.test")
    claims = " ".join(
        f"--header '{header}'"
        for header in ("Forwarded: for=1.2.3.4", "X-Real-Ip: 1.2.3.4", "X-Forwarded-For: 1.2.3.4",
                       "X-Forwarded-Proto: http", "X-Forwarded-Host: evil.example.org")
    )  # fmt: skip
    for upgrade in ("", "--http1.1 --header 'Connection: Upgrade' --header 'Upgrade: websocket'"):
        said = json.loads(
            scratch.curl(f"--insecure --user alice:open {claims} {upgrade} https://endpoint.scratch.test/")
        )
        assert said["authorization"] == said["forwarded"] == said["real"] == ""
        assert said["proto"] == "https"
        assert said["host"] == "endpoint.scratch.test"
        assert re.fullmatch(r"172\.[0-9.]+|10\.[0-9.]+|192\.168\.[0-9.]+", said["for"])
        assert said["upgrade"] == ("websocket" if upgrade else "")


def test_a_server_without_a_database_is_asked_again(scratch: Scratch) -> None:
    """Its own words stay; flow runs hear when."""
    scratch.server()
    scratch.endpoint("endpoint.scratch.test")
    said = scratch.curl("--insecure --user alice:open --include https://endpoint.scratch.test/broken")
    head, _, body = said.replace("\r", "").partition("\n\n")
    assert " 500" in head.splitlines()[0]
    assert "retry-after: 10" in head.lower()
    assert "strict-transport-security" in head.lower()
    assert body == "no database"


def test_it_says_what_to_do_when_the_server_is_down(scratch: Scratch) -> None:
    scratch.endpoint("endpoint.scratch.test")
    said = scratch.curl("--insecure --user alice:open --include https://endpoint.scratch.test/api/health")
    head, _, body = said.replace("\r", "").partition("\n\n")
    assert " 503" in head.splitlines()[0]
    assert "retry-after: 5" in head.lower()
    assert "prefect-maintenance" not in head.lower()
    assert "strict-transport-security" in head.lower()
    assert body.startswith("Prefect server does not answer.")
    assert "systemctl status prefect-stack" in body
    # To a flow run it says that waiting is of use, however long.
    flow_run = "--header 'X-Prefect-Flow-Id: 0198a1b2-0000-7000-8000-000000000001'"
    said = scratch.curl(f"--insecure --user alice:open {flow_run} --include https://endpoint.scratch.test/api/health")
    assert " 503" in said.splitlines()[0] and "prefect-maintenance: true" in said.lower()
    said = scratch.curl("--insecure --include https://endpoint.scratch.test/api/health")
    assert " 401" in said.splitlines()[0]


def test_an_address_for_a_name(scratch: Scratch) -> None:
    """A bare IPv4: the certificate is for the address, and clients send no server name."""
    scratch.server()
    scratch.endpoint("endpoint.scratch.test")
    template = "{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}"
    address = scratch.host.check_output(f"docker inspect --format '{template}' scratch-endpoint")
    # Made anew it gets the same address, the lowest that is free.
    scratch.endpoint(address)
    assert scratch.host.check_output(f"docker inspect --format '{template}' scratch-endpoint") == address
    root = "/data/caddy/pki/authorities/local/root.crt"
    scratch.curl(f"--insecure --user alice:open https://{address}/")
    scratch.host.check_output(f"docker exec scratch-endpoint cat {root} > {SCRATCH}/root.crt")
    said = json.loads(scratch.curl(f"--cacert /scratch/root.crt --user alice:open https://{address}/"))
    assert said["host"] == address
