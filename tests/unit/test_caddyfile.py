"""The decisions in the Caddyfile, read from what the real Caddy makes of it. What it does is tested in the lab."""

from __future__ import annotations

import base64
import http.client
import http.server
import json
import os
import shutil
import socket
import socketserver
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from prefect_doctor.finding import Finding, Level
from prefect_watch import status as watch

from .test_proxy_names import proxy as proxy_names

CADDY = shutil.which("caddy", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
FILES = Path(__file__).resolve().parents[2] / "caddy"
# Of the word "password", at the cost that the playbook uses.
HASH = "$2a$10$jBeC1RLviSLpKhqzgAYNE.oGdkmkJuNoyczjxEh30fi0h0nFdriR6"
known_names = proxy_names.prefect_known_names
MODES = ("acme", "internal", "files")


class Caddy:
    """The Caddyfile with its users somewhere else than on a server, and Caddy's commands on it."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.users = directory / "users.caddy"
        self.users.write_text(f"alice {HASH}\nworker-general-1 {HASH}\n")
        names = 'header Authorization "Basic YWxpY2U6*"\nheader Authorization "Basic d29ya2VyLWdlbmVyYWwtMT*"\n'
        (directory / "names.caddy").write_text(names)
        (directory / "monitors.caddy").write_text(f"pinger {HASH}\n")
        (directory / "monitoring-names.caddy").write_text(names + 'header Authorization "Basic cGluZ2VyO*"\n')
        tried = "".join(f'\t"~{known_names([name])}" {name}\n' for name in ("alice", "pinger"))
        (directory / "tried.caddy").write_text(f"map {{http.request.header.Authorization}} {{tried}} {{\n{tried}}}\n")
        for file in FILES.glob("*[Cc]addy*"):
            text = file.read_text().replace("/etc/prefect-caddy", str(directory))
            (directory / file.name).write_text(text.replace("/run/prefect-monitoring", str(directory)))

    def run(self, verb: str, **environment: str) -> subprocess.CompletedProcess[str]:
        given = {"PREFECT_DOMAIN": "prefect.example.org", "PREFECT_ACME_EMAIL": "ops@example.org"} | environment
        given |= {"HOME": str(self.directory), "XDG_DATA_HOME": str(self.directory / "data")}
        command = [CADDY, verb, "--config", str(self.directory / "Caddyfile"), "--adapter", "caddyfile"]
        return subprocess.run(command, env=given, capture_output=True, text=True, timeout=60)

    def adapted(self, **environment: str) -> dict[str, Any]:
        """The configuration as Caddy itself keeps it."""
        done = self.run("adapt", **environment)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)


@pytest.fixture
def caddy(tmp_path: Path) -> Caddy:
    return Caddy(tmp_path)


def server(configuration: dict[str, Any], listens: str) -> dict[str, Any]:
    (found,) = [one for one in configuration["apps"]["http"]["servers"].values() if one["listen"] == [listens]]
    return found


def handlers(routes: list[dict[str, Any]]) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """Every handler below these routes in the order in which a request meets them, with its route."""
    for route in routes:
        for handler in route.get("handle", []):
            yield route, handler
            yield from handlers(handler.get("routes", []))


def site(configuration: dict[str, Any], domain: str = "prefect.example.org") -> list[dict[str, Any]]:
    """The routes of the site itself."""
    (route,) = [one for one in server(configuration, ":443")["routes"] if one.get("match") == [{"host": [domain]}]]
    return route["handle"][0]["routes"]


MONITORING = [{"path": ["/status", "/metrics", "/metrics/*"]}]


def monitoring(routes: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The routes of what is there for monitoring."""
    ((_, found),) = [(route, one) for route, one in handlers(routes) if route.get("match") == MONITORING]
    return found["routes"]


def beyond(routes: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The same routes without those of monitoring."""
    copied = json.loads(json.dumps(routes))
    for route, _ in list(handlers(copied)):
        if route.get("match") == MONITORING:
            route["handle"] = []
    return copied


def accounts(routes: list[dict[str, Any]]) -> list[str]:
    """The names that get in; raises ValueError where there is not one place that asks for a password."""
    (asking,) = [one for _, one in handlers(routes) if one["handler"] == "authentication"]
    return [account["username"] for account in asking["providers"]["http_basic"].get("accounts", [])]


@pytest.mark.parametrize("name", sorted(file.name for file in FILES.glob("*[Cc]addy*")))
def test_it_is_formatted_as_caddy_would(name: str) -> None:
    done = subprocess.run([CADDY, "fmt", str(FILES / name)], capture_output=True, text=True)
    assert done.stdout == (FILES / name).read_text()


@pytest.mark.parametrize("mode", ["acme", "internal"])
@pytest.mark.parametrize("domain", ["prefect.example.org", "192.0.2.10"])
def test_caddy_takes_it(caddy: Caddy, mode: str, domain: str) -> None:
    done = caddy.run("validate", PREFECT_TLS=mode, PREFECT_DOMAIN=domain)
    assert done.returncode == 0, done.stderr
    assert "Valid configuration" in done.stdout


def test_caddy_takes_a_given_certificate(caddy: Caddy) -> None:
    assert "cert.pem: no such file" in caddy.run("validate", PREFECT_TLS="files").stdout
    key, certificate = caddy.directory / "key.pem", caddy.directory / "cert.pem"
    options = "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj /CN=prefect.example.org -days 2"
    subprocess.run(
        ["openssl", *options.split(), "-keyout", str(key), "-out", str(certificate)], check=True, capture_output=True
    )
    done = caddy.run("validate", PREFECT_TLS="files")
    assert done.returncode == 0, done.stderr


def test_an_unknown_mode_is_refused(caddy: Caddy) -> None:
    done = caddy.run("validate", PREFECT_TLS="letsencrypt")
    assert done.returncode != 0
    assert "tls-letsencrypt.caddy" in done.stderr


def test_without_accounts_the_proxy_is_locked_not_open(caddy: Caddy) -> None:
    caddy.users.write_text("# nobody\n")
    (caddy.directory / "monitors.caddy").write_text("# nobody\n")
    assert accounts(beyond(site(caddy.adapted()))) == []
    assert accounts(monitoring(site(caddy.adapted()))) == []
    caddy.users.unlink()
    done = caddy.run("validate")
    assert done.returncode != 0
    assert "users.caddy" in done.stderr


@pytest.mark.parametrize("mode", MODES)
def test_it_listens_where_it_should(caddy: Caddy, mode: str) -> None:
    configuration = caddy.adapted(PREFECT_TLS=mode)
    servers = configuration["apps"]["http"]["servers"].values()
    assert sorted(address for one in servers for address in one["listen"]) == ["127.0.0.1:2020", ":443", ":80"]
    assert all(one["protocols"] == ["h1", "h2"] for one in servers)
    assert configuration["admin"] == {"config": {"persist": False}, "listen": "127.0.0.1:2019"}


def test_caddy_takes_it_with_metrics(caddy: Caddy) -> None:
    done = caddy.run("validate", PREFECT_METRICS="on")
    assert done.returncode == 0, done.stderr
    # Requests are counted only where somebody asks for the counts.
    assert caddy.adapted(PREFECT_METRICS="on")["apps"]["http"]["metrics"] == {}
    assert "metrics" not in caddy.adapted()["apps"]["http"]


def test_the_mode_decides_where_the_certificate_comes_from(caddy: Caddy) -> None:
    def issuers(mode: str) -> list[dict[str, Any]]:
        return caddy.adapted(PREFECT_TLS=mode)["apps"]["tls"]["automation"]["policies"][0]["issuers"]

    assert issuers("internal") == [{"module": "internal"}]
    assert issuers("acme") == [
        {
            "module": "acme",
            "ca": "https://acme-v02.api.letsencrypt.org/directory",
            "email": "ops@example.org",
        }
    ]
    files = caddy.adapted(PREFECT_TLS="files")["apps"]["tls"]
    # No authority is named, and none is asked whether the certificate was revoked.
    assert files.pop("certificates")
    assert files == {"automation": {"policies": [{"disable_ocsp_stapling": True}]}, "disable_ocsp_stapling": True}


def test_an_acme_server_of_ones_own(caddy: Caddy) -> None:
    found = caddy.adapted(PREFECT_TLS="acme", PREFECT_ACME_DIRECTORY="https://ca.example.org/acme/directory")
    assert (
        found["apps"]["tls"]["automation"]["policies"][0]["issuers"][0]["ca"] == "https://ca.example.org/acme/directory"
    )


def test_nothing_comes_before_the_password_but_headers_and_logs(caddy: Caddy) -> None:
    routes = site(caddy.adapted())
    # Of whom a password of before would do is said by before.caddy alone, which is not there.
    everybody = [{"not": [{"vars": {"password": ["former"]}}]}]
    assert not [one for _, one in handlers(routes) if one["handler"] == "vars" and "password" in one]
    for part, of_whom in ((monitoring(routes), None), (beyond(routes), everybody)):
        met = [(route.get("match"), handler["handler"]) for route, handler in handlers(part)]
        asking = next(one for one in met if one[1] == "authentication")
        before = met[: met.index(asking)]
        assert {handler for _, handler in before} <= {"subroute", "headers", "log_append", "error"}
        assert asking[0] == of_whom
    assert met[-1] == (None, "reverse_proxy")


def test_what_is_there_for_monitoring_ends_there(caddy: Caddy) -> None:
    """Accounts of monitors are known nowhere else, and no path of theirs goes on to the server."""
    routes = site(caddy.adapted())
    assert accounts(monitoring(routes)) == ["alice", "worker-general-1", "pinger"]
    assert accounts(beyond(routes)) == ["alice", "worker-general-1"]
    met = [(route.get("match"), handler) for route, handler in handlers(monitoring(routes))]
    assert (met[-1][0], met[-1][1]["handler"], met[-1][1]["status_code"]) == (None, "error", 404)


def test_passwords_are_hashed_once(caddy: Caddy) -> None:
    asking = [one for _, one in handlers(site(caddy.adapted())) if one["handler"] == "authentication"]
    assert len(asking) == 2
    for basic in (one["providers"]["http_basic"] for one in asking):
        assert basic["hash"]["algorithm"] == "bcrypt"
        assert basic["hash_cache"] == {}


def test_a_name_that_nobody_has_costs_no_hash(caddy: Caddy) -> None:
    """Caddy would compute one of cost 14. The start of the base64 of `NAME:` is enough to tell."""
    known = ["Basic YWxpY2U6*", "Basic d29ya2VyLWdlbmVyYWwtMT*"]
    routes = site(caddy.adapted())
    for part, names in ((beyond(routes), known), (monitoring(routes), [*known, "Basic cGluZ2VyO*"])):
        stranger = [{"header": {"Authorization": ["*"]}, "not": [{"header": {"Authorization": names}}]}]
        turned_away = [one for route, one in handlers(part) if route.get("match") == stranger]
        assert [one["handler"] for one in turned_away] == ["headers", "error"]
        assert turned_away[1]["status_code"] == 401


def test_the_password_goes_no_further(caddy: Caddy) -> None:
    (proxy,) = [one for _, one in handlers(site(caddy.adapted())) if one["handler"] == "reverse_proxy"]
    assert {"Authorization", "Forwarded", "X-Real-Ip"} <= set(proxy["headers"]["request"]["delete"])
    assert proxy["upstreams"] == [{"dial": "server:4200"}]


def test_nobody_is_believed_who_the_client_was(caddy: Caddy) -> None:
    assert "trusted_proxies" not in json.dumps(caddy.adapted())


def test_no_header_is_logged(caddy: Caddy) -> None:
    for log in caddy.adapted()["logging"]["logs"].values():
        fields = log["encoder"]["fields"]
        assert fields["request>headers"] == fields["resp_headers"] == {"filter": "delete"}


@pytest.mark.parametrize(("port", "public"), [("443", ""), ("8443", ":8443")])
def test_plain_http_is_redirected_to_the_public_port(caddy: Caddy, port: str, public: str) -> None:
    routes = list(handlers(server(caddy.adapted(HTTPS_PORT=port), ":80")["routes"]))
    (table,) = [one for _, one in routes if one["handler"] == "map"]
    assert table["source"] == port
    chosen = {one.get("input"): one["outputs"] for one in table["mappings"]}.get(port, table["defaults"])
    assert chosen == [public]
    (redirect,) = [one for _, one in routes if one["handler"] == "static_response"]
    assert redirect["status_code"] == 308
    assert redirect["headers"]["Location"] == ["https://prefect.example.org{public_port}{http.request.uri}"]


class Proxy:
    """The real Caddy with the kit's Caddyfile on ports of its own, before a stand-in that answers 200 to everything."""

    def __init__(self, caddy: Caddy, **environment: str) -> None:
        # Open together: one that is closed again can be given twice.
        free = [socket.create_server(("127.0.0.1", 0)) for _ in range(4)]
        ports = [one.getsockname()[1] for one in free]
        for one in free:
            one.close()
        self.upstream, self.https, *others = ports
        command = [CADDY, *"hash-password --algorithm bcrypt --bcrypt-cost 4 --plaintext password".split()]
        hashed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        caddy.users.write_text(f"alice {hashed}\n")
        (caddy.directory / "monitors.caddy").write_text(f"pinger {hashed}\n")
        text = json.dumps(caddy.adapted(PREFECT_DOMAIN="localhost", **environment))
        # The server's own metrics are a second way to it.
        text = text.replace('"server:4200"', f'"127.0.0.1:{self.upstream}"')
        moved = {":443": self.https, ":80": others[0], "127.0.0.1:2020": others[1]}
        for old, new in ((f'"{old}"', f'"127.0.0.1:{new}"') for old, new in moved.items()):
            assert text.count(old) == 1, old
            text = text.replace(old, new)
        configuration = json.loads(text)
        configuration["admin"]["disabled"] = True
        configuration["apps"]["http"] |= {"https_port": self.https, "http_port": others[0]}
        (caddy.directory / "caddy.json").write_text(json.dumps(configuration))
        self.origin = f"https://localhost:{self.https}"
        self.directory = caddy.directory
        self.alarms = caddy.directory / "stderr"

    def __enter__(self) -> Proxy:
        #: The headers of each request that arrived there.
        seen = self.seen = []

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def answer(self) -> None:
                seen.append(dict(self.headers))
                said = f"{self.path} {sorted({'Authorization', 'Cookie'} & set(self.headers))}".encode()
                self.send_response(200)
                self.send_header("Content-Length", str(len(said)))
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(said)

            do_GET = do_HEAD = do_POST = do_PATCH = do_DELETE = do_OPTIONS = answer

            def log_message(self, *_: object) -> None:
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", self.upstream), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        environment = {"PREFECT_DOMAIN": "localhost", "HOME": str(self.directory), "XDG_DATA_HOME": str(self.directory)}
        command = [CADDY, "run", "--config", str(self.directory / "caddy.json")]
        with self.alarms.open("wb") as alarms:
            self.process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=alarms)
        deadline = time.monotonic() + 30
        while True:
            try:
                self.ask("GET")
                return self
            except OSError:
                assert time.monotonic() < deadline and self.process.poll() is None
                time.sleep(0.1)

    def __exit__(self, *_: object) -> None:
        self.process.terminate()
        self.process.wait(20)
        self.server.shutdown()
        self.server.server_close()

    def ask(self, method: str, path: str = "/api/flow_runs/", **headers: str) -> int:
        """The status of a request with the password, as a browser that has logged in sends it everywhere. An empty header is left out."""
        return self.answer(method, path, **headers)[0]

    def answer(self, method: str, path: str, **headers: str) -> tuple[int, str]:
        """Status and text of such a request."""
        context = ssl._create_unverified_context()
        connection = http.client.HTTPSConnection("localhost", self.https, context=context, timeout=20)
        named = {"Authorization": f"Basic {LOGIN}"} | {name.replace("_", "-"): value for name, value in headers.items()}
        connection.request(method, path, headers={name: value for name, value in named.items() if value})
        response = connection.getresponse()
        said = response.status, response.read().decode()
        connection.close()
        return said


CHANGING = ("POST", "PATCH", "DELETE")
LOGIN = base64.b64encode(b"alice:password").decode()
PINGER = {"Authorization": "Basic " + base64.b64encode(b"pinger:password").decode()}


@pytest.fixture(scope="module")
def proxy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Proxy]:
    with Proxy(Caddy(tmp_path_factory.mktemp("proxy"))) as proxy:
        yield proxy


@pytest.mark.parametrize("method", ["GET", "HEAD", *CHANGING])
def test_programs_need_nothing_but_their_password(proxy: Proxy, method: str) -> None:
    assert proxy.ask(method) == 200
    assert proxy.ask(method, Authorization="Basic " + base64.b64encode(b"alice:wrong").decode()) == 401


def test_only_a_failed_login_is_told_apart_in_the_log(proxy: Proxy) -> None:
    """On stderr, where prefect-doctor finds it: not a login that went well, nor a browser's first request, without a password."""

    def failed(path: str) -> int:
        return sum(f'"uri":"{path}"' in line for line in proxy.alarms.read_text().splitlines())

    for name, login in (("well", LOGIN), ("wrong", "YWxpY2U6d3Jvbmc="), ("stranger", "Ym9iOnBhc3N3b3Jk"), ("none", "")):
        assert proxy.ask("GET", f"/{name}", Authorization=login and f"Basic {login}") == (
            200 if name == "well" else 401
        )
    deadline = time.monotonic() + 10
    while not failed("/stranger") and time.monotonic() < deadline:
        time.sleep(0.05)
    assert [failed(f"/{name}") for name in ("well", "wrong", "stranger", "none")] == [0, 1, 1, 0]
    assert "YWxpY2U6d3Jvbmc" not in proxy.alarms.read_text()


@pytest.mark.parametrize("method", ["GET", "HEAD", *CHANGING])
def test_our_own_pages_work_in_every_browser(proxy: Proxy, method: str) -> None:
    same = {"Sec_Fetch_Site": "same-origin", "Sec_Fetch_Mode": "cors", "Sec_Fetch_Dest": "empty"}
    assert proxy.ask(method, **same) == 200
    assert proxy.ask(method, **same, Origin=proxy.origin) == 200
    # One of before 2023.
    assert proxy.ask(method, Origin=proxy.origin) == 200


@pytest.mark.parametrize("site", ["cross-site", "same-site"])
@pytest.mark.parametrize(
    ("method", "mode", "dest"),
    [
        ("POST", "navigate", "document"),  # a form
        ("POST", "no-cors", "empty"),  # fetch() of a simple request, navigator.sendBeacon()
        ("POST", "cors", "empty"),
        ("PATCH", "cors", "empty"),
        ("DELETE", "cors", "empty"),
        ("OPTIONS", "cors", "empty"),
        ("GET", "no-cors", "image"),
        ("GET", "no-cors", "script"),
        ("GET", "cors", "empty"),
        ("GET", "navigate", "iframe"),
        ("GET", "websocket", "websocket"),
    ],
)
def test_pages_of_other_sites_change_and_read_nothing(
    proxy: Proxy, site: str, method: str, mode: str, dest: str
) -> None:
    """Also without an Origin, which no browser leaves out of those that change something."""
    assert proxy.ask(method, Sec_Fetch_Site=site, Sec_Fetch_Mode=mode, Sec_Fetch_Dest=dest) == 403


@pytest.mark.parametrize("origin", ["https://evil.example.org", "null", "http://localhost", "https://localhost"])
@pytest.mark.parametrize("method", ["GET", *CHANGING])
def test_an_older_browsers_foreign_pages_are_refused_by_their_origin(proxy: Proxy, method: str, origin: str) -> None:
    """A page that hides where it is says null; another port of this name is another origin."""
    assert proxy.ask(method, Origin=origin) == 403


def test_a_link_from_elsewhere_opens_the_ui(proxy: Proxy) -> None:
    link = {"Sec_Fetch_Site": "cross-site", "Sec_Fetch_Mode": "navigate", "Sec_Fetch_Dest": "document"}
    assert proxy.ask("GET", "/runs/flow-run/1", **link) == 200
    typed = {"Sec_Fetch_Site": "none", "Sec_Fetch_Mode": "navigate", "Sec_Fetch_Dest": "document"}
    assert proxy.ask("GET", "/", **typed) == 200


# --- monitoring --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "path", ["/", "/api/health", "/status/", "/statuses", "/metrics/../api/health", "/status/../", "/status%2f..", "//"]
)
def test_a_monitor_gets_nowhere_else(proxy: Proxy, path: str) -> None:
    assert proxy.ask("GET", path) == 200
    assert proxy.ask("GET", path, **PINGER) == 401


@pytest.mark.parametrize("path", ["/status", "/metrics", "/metrics/node", "/api/../status", "/STATUS", "//status"])
def test_monitoring_needs_a_password_and_changes_nothing(proxy: Proxy, path: str) -> None:
    wrong = base64.b64encode(b"pinger:wrong").decode()
    for header in (f"Basic {wrong}", f"Basic {base64.b64encode(b'nobody:password').decode()}", ""):
        assert proxy.ask("GET", path, Authorization=header) == 401
    for method in CHANGING:
        assert proxy.ask(method, path, **PINGER) == 405
    assert proxy.ask("GET", path, Sec_Fetch_Site="cross-site", Sec_Fetch_Mode="no-cors", Sec_Fetch_Dest="image") == 403


def test_what_is_not_there_to_monitor(proxy: Proxy) -> None:
    off = "Metrics are off. To have them: metrics_enabled: true, then site.yml --tags stack,metrics\n"
    for path in ("/metrics", "/metrics/", "/metrics/node"):
        assert proxy.answer("GET", path, **PINGER) == (404, off)


def ago(seconds: int) -> str:
    """The time so many seconds ago, as prefect-watch writes it."""
    return f"{datetime.now(UTC) - timedelta(seconds=seconds):%Y-%m-%dT%H:%M:%SZ}"


@pytest.fixture
def status(proxy: Proxy) -> Iterator[Path]:
    """The file behind /status, away again after the test."""
    file = proxy.directory / "status.txt"
    yield file
    file.unlink(missing_ok=True)


@pytest.mark.parametrize(
    ("seconds", "words", "code"),
    [
        (0, "ok", 200),
        (140, "ok", 200),
        (155, "ok", 503),  # nobody looks any more
        (-50, "ok", 200),
        (-70, "ok", 503),  # the clock was set back: the same
        (0, "bad", 503),
    ],
)
def test_status_is_well_for_as_long_as_somebody_looks(
    proxy: Proxy, status: Path, seconds: int, words: str, code: int
) -> None:
    status.write_text(f"{words} {ago(seconds)}\nBAD disk: {{env.HOME}} {{{{now}}}} {{vars.status}}\n")
    said = proxy.answer("GET", "/status", **PINGER)
    assert said[0] == code
    # As it stands there: nothing in it means anything to the proxy.
    assert status.read_text() in said[1]
    assert ("have not run" in said[1]) == (words == "ok" and code == 503)


@pytest.mark.parametrize(
    "text", [None, "", "ok", "ok \n", "okay {now}", "ok 2026", "ok 2026-99-99T00:00:00Z", "{now} ok {now}"]
)
def test_status_is_never_well_by_a_file_that_is_none(proxy: Proxy, status: Path, text: str | None) -> None:
    if text is not None:
        status.write_text(text.replace("{now}", ago(0)))
    assert proxy.ask("GET", "/status", **PINGER) >= 500
    assert proxy.ask("HEAD", "/status", **PINGER) >= 500


def test_the_status_that_the_watch_writes_is_the_one_that_the_proxy_reads(proxy: Proxy, status: Path) -> None:
    watch.write(status, [Finding("database", Level.OK, "1 GB")], datetime.now(UTC))
    assert proxy.answer("GET", "/status", **PINGER) == (200, status.read_text())
    watch.write(status, [Finding("workers", Level.BAD, "none")], datetime.now(UTC))
    assert proxy.answer("GET", "/status", **PINGER) == (503, status.read_text())


@pytest.fixture(scope="module")
def exporting(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Proxy]:
    """The same with metrics on, and one exporter of two."""

    class Exporter(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            lines = [self.rfile.readline()]
            while (line := self.rfile.readline()).strip():
                lines.append(line)
            said = b" ".join(line.strip() for line in lines)
            self.wfile.write(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n" + said)

    with Proxy(Caddy(tmp_path_factory.mktemp("on")), PREFECT_METRICS="on") as proxy:
        server = socketserver.ThreadingUnixStreamServer(str(proxy.directory / "node.sock"), Exporter)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield proxy
        server.shutdown()
        server.server_close()


@pytest.mark.parametrize("query", ["", "?target=10.0.0.1&collect[]=x", "?"])
def test_each_address_of_metrics_has_one_thing_behind_it(exporting: Proxy, query: str) -> None:
    """An exporter's own paths and queries, of which some have it connect to elsewhere, cannot be had."""
    code, said = exporting.answer("GET", f"/metrics/node{query}", Cookie="a=b", **PINGER)
    assert code == 200
    assert said.startswith(("GET /metrics HTTP/1.1 ", "GET /metrics? HTTP/1.1 "))
    assert "Authorization" not in said and "Cookie" not in said
    code, said = exporting.answer("GET", f"/metrics/prefect{query}", Cookie="a=b", **PINGER)
    assert (code, said.replace("?", "")) == (200, "/api/metrics []")


def test_caddys_own_metrics(exporting: Proxy) -> None:
    code, said = exporting.answer("GET", "/metrics/caddy", **PINGER)
    assert code == 200
    assert "\ncaddy_http_requests_total{" in said


@pytest.mark.parametrize("path", ["/metrics", "/metrics/", "/metrics/node/", "/metrics/node/probe", "/metrics/probe"])
def test_there_are_no_other_metrics(exporting: Proxy, path: str) -> None:
    assert exporting.answer("GET", path, **PINGER) == (404, "There is nothing of this name to monitor.\n")


@pytest.mark.parametrize("path", ["/api/metrics", "/metrics/../api/metrics", "/api/health"])
def test_metrics_open_nothing_else(exporting: Proxy, path: str) -> None:
    assert exporting.ask("GET", path, **PINGER) == 401
    assert exporting.ask("GET", path) == 200


def test_an_exporter_that_is_away_is_not_the_server(exporting: Proxy) -> None:
    code, said = exporting.answer("GET", "/metrics/postgres", **PINGER)
    assert code == 503
    assert said.startswith("What gives these figures does not answer.")
    assert exporting.ask("GET", "/metrics/node", Authorization="") == 401
