"""The two sides of a migration: where a Prefect API is, how one gets in, and requests to it. Prefect itself is not needed."""

from __future__ import annotations

import base64
import json
import os
import tomllib
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import requests
from requests.adapters import HTTPAdapter
from urllib3.util import Retry

#: What a request may take, in seconds: to connect, and between two bytes.
TIMEOUT = (10, 60)
#: The most that Prefect gives at once.
PAGE = 200
#: Settings of a side, and which of them are secret.
SETTINGS = (
    "PREFECT_API_URL",
    "PREFECT_API_KEY",
    "PREFECT_API_AUTH_STRING",
    "PREFECT_CLIENT_CUSTOM_HEADERS",
    "PREFECT_API_SSL_CERT_FILE",
)
SECRET = SETTINGS[1:4]
#: Variables of the source, where it is no profile: PREFECT_FROM_API_URL and so on.
FROM = "PREFECT_FROM_"


class Refused(Exception):
    """Input that cannot be used; nothing has changed. Fact and hint."""

    def __init__(self, fact: str, hint: str) -> None:
        super().__init__(fact)
        self.fact = fact
        self.hint = hint


class ApiError(Exception):
    """A request that failed, in words; with the answer's status, 0 without an answer."""

    def __init__(self, words: str, status: int = 0) -> None:
        super().__init__(words)
        self.status = status


@dataclass(frozen=True)
class Side:
    """A Prefect API, and how one gets in."""

    # "source" or "destination".
    role: str
    # With /api, or /api/accounts/…/workspaces/… for Prefect Cloud; without a slash at its end, user or password.
    url: str
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    # A CA file; None: those of the system.
    ca: str | None = None

    @property
    def cloud(self) -> bool:
        """Whether it is a workspace of Prefect Cloud."""
        return "/workspaces/" in self.url


def profile(name: str, environment: Mapping[str, str]) -> dict[str, Any]:
    """The settings of a Prefect profile. Raises Refused for one that is not there."""
    home = Path(environment.get("PREFECT_HOME") or "~/.prefect").expanduser()
    path = Path(environment.get("PREFECT_PROFILES_PATH") or home / "profiles.toml").expanduser()
    try:
        profiles = tomllib.loads(path.read_text()).get("profiles", {})
    except (OSError, ValueError) as error:
        raise Refused(f'the profiles of Prefect cannot be read from "{path}": {error}', f"look at: {path}") from error
    if name not in profiles:
        there = ", ".join(f'"{one}"' for one in sorted(profiles)) or "none"
        raise Refused(f'there is no profile "{name}" in "{path}"; there are: {there}', "prefect profile ls")
    return dict(profiles[name])


def from_environment(role: str, environment: Mapping[str, str]) -> dict[str, Any]:
    """The settings of a side that is no profile; a secret may be in a file, whose variable ends with _FILE."""
    found: dict[str, Any] = {}
    for name in SETTINGS:
        variable = name.replace("PREFECT_", FROM, 1) if role == "source" else name
        value = environment.get(variable, "")
        file = environment.get(f"{variable}_FILE", "") if name in SECRET else ""
        if file:
            try:
                value = Path(file).expanduser().read_text().strip()
            except (OSError, ValueError) as error:
                raise Refused(f'{variable}_FILE "{file}" cannot be read: {error}', f"look at: {file}") from error
        if value:
            found[name] = value
    return found


def side(role: str, settings: Mapping[str, Any], said: str) -> Side:
    """A side of its settings. Raises Refused for what cannot be one.

    Args:
        role: "source" or "destination".
        settings: such as PREFECT_API_URL.
        said: where they come from, for the words of a refusal.
    """
    url = str(settings.get("PREFECT_API_URL") or "").rstrip("/")
    parts = urlsplit(url)
    if not url:
        option, variable = ("--from", "PREFECT_FROM_API_URL") if role == "source" else ("--to", "PREFECT_API_URL")
        raise Refused(
            f"the {role} is not named: {said} has no PREFECT_API_URL",
            f"{option} PROFILE, or {variable} in the environment (docs/migrate.md)",
        )
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.username or parts.query:
        shown = f"{parts.scheme}://{parts.hostname}{parts.path}"
        raise Refused(
            f'the address of the {role} is "{shown}"; it has to be http(s)://HOST/api, without user and password',
            "a password goes into PREFECT_API_AUTH_STRING or PREFECT_CLIENT_CUSTOM_HEADERS, a key into PREFECT_API_KEY",
        )
    headers = {}
    custom = settings.get("PREFECT_CLIENT_CUSTOM_HEADERS") or {}
    if isinstance(custom, str):
        try:
            custom = json.loads(custom)
        except ValueError as error:
            raise Refused(
                f"the custom headers of the {role} are no JSON", 'such as {"Authorization": "Basic …"}'
            ) from error
    if settings.get("PREFECT_API_AUTH_STRING"):
        word = base64.b64encode(str(settings["PREFECT_API_AUTH_STRING"]).encode()).decode()
        headers["Authorization"] = f"Basic {word}"
    if settings.get("PREFECT_API_KEY"):
        headers["Authorization"] = f"Bearer {settings['PREFECT_API_KEY']}"
    headers.update({str(name): str(value) for name, value in dict(custom).items()})
    ca = settings.get("PREFECT_API_SSL_CERT_FILE")
    if ca and not Path(str(ca)).expanduser().is_file():
        raise Refused(f'the CA file "{ca}" of the {role} is not there', f"look at: {said}")
    return Side(role, url, headers, str(Path(str(ca)).expanduser()) if ca else None)


def sides(source: str | None, destination: str | None) -> tuple[Side, Side]:
    """Source and destination, each a profile's name, or None for the environment. Raises Refused."""
    found = []
    for role, name in (("source", source), ("destination", destination)):
        settings = profile(name, os.environ) if name else from_environment(role, os.environ)
        found.append(side(role, settings, f'the profile "{name}"' if name else "the environment"))
    if found[0].url == found[1].url:
        raise Refused(f'source and destination are both "{found[0].url}"', "--from PROFILE --to PROFILE")
    return found[0], found[1]


class _Authorized(requests.auth.AuthBase):
    """Headers as they were given: requests would otherwise take a password of this host out of ~/.netrc."""

    def __init__(self, headers: Mapping[str, str]) -> None:
        self._headers = headers

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        request.headers.update(self._headers)
        return request


class Api:
    """Requests to a side. All of them raise ApiError."""

    def __init__(self, at: Side) -> None:
        self.side = at
        self._session = requests.Session()
        self._session.auth = _Authorized(at.headers)
        # Cloud limits rates, and says how long to wait; a server that restarts answers 503.
        retry = Retry(total=6, connect=2, read=0, status_forcelist=[429, 503], allowed_methods=None, backoff_factor=0.5)
        for scheme in ("http://", "https://"):
            self._session.mount(scheme, HTTPAdapter(max_retries=retry))

    def request(self, method: str, path: str, body: Any = None) -> Any:
        """One request; gives the JSON of its answer, None where that is empty."""
        try:
            answer = self._send(method, path, body)
            if answer.status_code == 403 and "CSRF" in answer.text:
                self._get_token()
                answer = self._send(method, path, body)
        except requests.RequestException as error:
            raise ApiError(f"{self.side.role} {self.side.url}: {_short(error)}") from error
        if answer.status_code >= 400:
            raise ApiError(f"{method} {path}: {answer.status_code} {_reason(answer)}", answer.status_code)
        try:
            return answer.json() if answer.content else None
        except ValueError as error:
            raise ApiError(f"{self.side.url}{path} answers with something that is no JSON: is it an API?") from error

    def _send(self, method: str, path: str, body: Any) -> requests.Response:
        return self._session.request(
            method,
            self.side.url + path,
            json=body,
            timeout=TIMEOUT,
            allow_redirects=method == "GET",
            # With each request: REQUESTS_CA_BUNDLE would go before the session's.
            verify=self.side.ca,
        )

    def _get_token(self) -> None:
        """Servers with PREFECT_SERVER_API_CSRF_PROTECTION_ENABLED want a token with each change."""
        client = str(uuid.uuid4())
        token = self.request("GET", f"/csrf-token?client={client}")
        self._session.headers.update({"Prefect-Csrf-Client": client, "Prefect-Csrf-Token": token["token"]})

    def get(self, path: str) -> Any:
        return self.request("GET", path)

    def post(self, path: str, body: Any) -> Any:
        return self.request("POST", path, body)

    def patch(self, path: str, body: Any) -> Any:
        return self.request("PATCH", path, body)

    def every(self, path: str, **body: Any) -> list[dict[str, Any]]:
        """All objects of `POST PATH/filter`, page by page: Prefect gives 200 at most at once."""
        found: dict[str, dict[str, Any]] = {}
        offset = 0
        while True:
            page = self.post(f"{path}/filter", {**body, "limit": PAGE, "offset": offset})
            found.update({one["id"]: one for one in page})
            if len(page) < PAGE:
                return list(found.values())
            offset += PAGE

    def every_if_any(self, path: str, **body: Any) -> list[dict[str, Any]]:
        """The same, where this side may not have such objects at all."""
        try:
            return self.every(path, **body)
        except ApiError as error:
            if error.status in (403, 404, 405):
                return []
            raise


def _short(error: Exception) -> str:
    """A failure to connect, without the layers of libraries around it."""
    words = " ".join(str(error).split())
    if "CERTIFICATE_VERIFY_FAILED" in words:
        return "its certificate is not trusted: set PREFECT_API_SSL_CERT_FILE to its CA"
    if "too many 429" in words or "too many 503" in words:
        return "it answers that it is busy, again and again"
    if "NameResolutionError" in words or "Name or service not known" in words:
        return "its name does not resolve"
    if "Connection refused" in words:
        return "connection refused"
    return words[-200:]


def _reason(answer: requests.Response) -> str:
    """Why a request was refused, as far as the answer says it."""
    if answer.status_code == 401:
        return "the key or password is wrong, or missing"
    try:
        body = answer.json()
    except ValueError:
        return " ".join(answer.text.split())[:200]
    # The input itself, which may be a secret, is not quoted.
    problems = body.get("exception_detail") if isinstance(body, dict) else None
    if isinstance(problems, list):
        return "; ".join(f"{'.'.join(map(str, one.get('loc', [])))}: {one.get('msg')}" for one in problems)[:300]
    return str(body.get("detail", body) if isinstance(body, dict) else body)[:300]
