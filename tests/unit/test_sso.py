"""Single sign-on at the reverse proxy, with the real Caddy and a stand-in for oauth2-proxy and Authelia that knows one cookie."""

from __future__ import annotations

import http.client
import http.server
import ssl
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from .test_caddyfile import LOGIN, Caddy, Proxy

COOKIE = "session=ada"
PAGE = "text/html,application/xhtml+xml"
FORGED = {"X-Prefect-Person": "root", "X-Prefect-Groups": "admins", "X-Prefect-Account": "alice"}


class SignOn(http.server.ThreadingHTTPServer):
    """Answers as oauth2-proxy does, and as Authelia."""

    #: Whether it says who somebody is.
    names = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Answers)
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class _Answers(http.server.BaseHTTPRequestHandler):
    server: SignOn

    def do_GET(self) -> None:
        known = self.headers.get("Cookie") == COOKIE
        headers: dict[str, str] = {}
        if self.path.startswith("/oauth2/auth"):
            status = 202 if known else 401
            headers = {"X-Auth-Request-Email": "ada@example.org", "X-Auth-Request-Groups": "data,everyone"}
        elif self.path.startswith("/api/authz/forward-auth"):
            status = 200 if known else 302
            headers = {"Remote-User": "ada", "Remote-Groups": "data,everyone"}
            if not known:
                headers = {"Location": "https://auth.example.org/?rd=x"}
        else:
            status = 200
        self.send_response(status)
        for name, value in headers.items() if status == 302 or (known and self.server.names) else ():
            self.send_header(name, value)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(scope="module")
def sign_on() -> Iterator[SignOn]:
    found = SignOn()
    yield found
    found.shutdown()
    found.server_close()


@pytest.fixture(scope="module")
def proxy(sign_on: SignOn, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Proxy]:
    caddy = Caddy(tmp_path_factory.mktemp("sso"))
    with Proxy(caddy, PREFECT_SSO="oauth2-proxy", PREFECT_SSO_PROXY=sign_on.url) as found:
        yield found


def ask(proxy: Proxy, path: str = "/api/flow_runs/", **headers: Any) -> tuple[int, dict[str, str], dict[str, str]]:
    """Status, headers, and the headers that arrived at the server."""
    status, answered, arrived, _ = ask_for_text(proxy, path, **headers)
    return status, answered, arrived


def ask_for_text(
    proxy: Proxy, path: str = "/api/flow_runs/", **headers: Any
) -> tuple[int, dict[str, str], dict[str, str], str]:
    """The same, and the text of the answer."""
    proxy.seen.clear()
    context = ssl._create_unverified_context()
    connection = http.client.HTTPSConnection("localhost", proxy.https, context=context, timeout=20)
    connection.request("GET", path, headers=headers.pop("more", {}) | headers)
    answer = connection.getresponse()
    text = answer.read().decode()
    arrived = {name.title(): value for name, value in (proxy.seen[-1] if proxy.seen else {}).items()}
    return answer.status, {name.title(): value for name, value in answer.getheaders()}, arrived, text


def test_a_person_is_led_to_the_sign_in_and_back(proxy: Proxy) -> None:
    status, headers, arrived = ask(proxy, "/v2/runs?tab=a&state=b%26c", Accept=PAGE)
    assert (status, arrived) == (302, {})
    assert headers["Location"] == "/oauth2/sign_in?rd=%2Fv2%2Fruns%3Ftab%3Da%26state%3Db%2526c"
    assert ask(proxy, "/oauth2/sign_in?rd=/")[0] == 200


def test_a_program_is_not_led_anywhere(proxy: Proxy) -> None:
    status, headers, arrived = ask(proxy)
    assert (status, arrived) == (401, {})
    assert not {"Location", "Www-Authenticate"} & set(headers)


@pytest.mark.parametrize("more", [{}, FORGED])
def test_the_server_is_told_who_it_is(proxy: Proxy, more: dict[str, str]) -> None:
    status, _, arrived = ask(proxy, Cookie=COOKIE, more=more)
    assert status == 200
    assert (arrived["X-Prefect-Person"], arrived["X-Prefect-Groups"]) == ("ada@example.org", "data,everyone")
    assert "X-Prefect-Account" not in arrived
    assert "Cookie" not in arrived


@pytest.mark.parametrize("more", [{}, FORGED])
def test_a_password_is_one_still(proxy: Proxy, more: dict[str, str]) -> None:
    status, _, arrived = ask(proxy, Authorization=f"Basic {LOGIN}", more=more)
    assert (status, arrived["X-Prefect-Account"]) == (200, "alice")
    assert not {"X-Prefect-Person", "X-Prefect-Groups", "Authorization"} & set(arrived)
    # Whoever sends one has to have the right one, whatever cookie comes with it.
    assert ask(proxy, Authorization="Basic YWxpY2U6d3Jvbmc=", Cookie=COOKIE)[0] == 401
    assert ask(proxy, Authorization="Bearer x", Cookie=COOKIE)[0] == 401


def test_who_is_let_in_without_a_name_is_nobody(proxy: Proxy, sign_on: SignOn, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sign_on, "names", False)
    status, _, arrived = ask(proxy, Cookie=COOKIE, more=FORGED)
    assert status == 200
    assert not {"X-Prefect-Person", "X-Prefect-Groups", "X-Prefect-Account"} & set(arrived)


def test_pages_of_other_sites_are_kept_out(proxy: Proxy) -> None:
    """A browser sends the cookie to us from whatever page it is on."""
    assert ask(proxy, Cookie=COOKIE, Origin="https://evil.example")[0] == 403
    assert ask(proxy, Cookie=COOKIE, more={"Sec-Fetch-Site": "cross-site"})[0] == 403


def test_what_is_there_for_monitors_asks_for_a_password(proxy: Proxy) -> None:
    assert ask(proxy, "/status", Cookie=COOKIE)[0] == 401


def test_without_the_proxy_programs_go_on(tmp_path_factory: pytest.TempPathFactory) -> None:
    caddy = Caddy(tmp_path_factory.mktemp("away"))
    with Proxy(caddy, PREFECT_SSO="oauth2-proxy", PREFECT_SSO_PROXY="http://127.0.0.1:1") as proxy:
        status, _, _, text = ask_for_text(proxy, Cookie=COOKIE)
        assert (status, text.split(":")[0]) == (503, "Single sign-on does not answer")
        assert ask(proxy, Authorization=f"Basic {LOGIN}")[0] == 200


def test_authelia(sign_on: SignOn, tmp_path_factory: pytest.TempPathFactory) -> None:
    caddy = Caddy(tmp_path_factory.mktemp("authelia"))
    with Proxy(caddy, PREFECT_SSO="authelia", PREFECT_SSO_PROXY=sign_on.url) as proxy:
        status, headers, _ = ask(proxy, "/v2/dashboard", Accept=PAGE)
        assert (status, headers["Location"]) == (302, "https://auth.example.org/?rd=x")
        status, _, arrived = ask(proxy, Cookie=COOKIE, more=FORGED)
        assert (status, arrived["X-Prefect-Person"], arrived["X-Prefect-Groups"]) == (200, "ada", "data,everyone")
        assert ask(proxy, Authorization=f"Basic {LOGIN}", more=FORGED)[2]["X-Prefect-Account"] == "alice"


def test_without_single_sign_on_nobody_says_who_he_is(tmp_path_factory: pytest.TempPathFactory) -> None:
    with Proxy(Caddy(tmp_path_factory.mktemp("off"))) as proxy:
        assert ask(proxy, Cookie=COOKIE, more=FORGED)[0] == 401
        arrived = ask(proxy, Authorization=f"Basic {LOGIN}", more=FORGED)[2]
        assert arrived["X-Prefect-Account"] == "alice"
        assert not {"X-Prefect-Person", "X-Prefect-Groups"} & set(arrived)
