#!/usr/bin/python
"""Ansible module: what the host can download from, found out before anything is changed there."""

from __future__ import annotations

DOCUMENTATION = r"""
module: prefect_reach
short_description: Look whether the host reaches what a first installation downloads from
description:
  - Asks each of O(endpoints), the Python package index that pip and uv of the host are set to, and the host's Debian
    mirrors, all at the same time. Changes nothing.
options:
  endpoints:
    description:
      - Entries with C(name) (returned as it is), C(urls), of which one must answer, and optionally C(proxy). Below 400 or
        401 is an answer.
    type: list
    elements: dict
    default: []
  index:
    description: The Python package index of a host whose pip and uv are told no other; empty for none.
    type: str
    default: ""
  index_project:
    description: A package that the index is asked for, and from whose files the host must be able to download.
    type: str
    default: uv
  mirrors:
    description: Whether the host's Debian mirrors are asked.
    type: bool
    default: false
  authorities:
    description: Certificates (PEM) that the host will trust besides those it trusts now.
    type: list
    elements: str
    default: []
  timeout:
    description: Seconds for each connection.
    type: int
    default: 10
author:
  - the prefect self-hosting kit
"""

EXAMPLES = r"""
- name: Look whether the host reaches a registry
  prefect_reach:
    endpoints:
      - name: registry
        urls: [https://registry.example.org/v2/]
"""

RETURN = r"""
failures:
  description:
    - For each that does not answer its C(name), C(host), the C(kind) of failure (name, way, certificate, status, apt), the
      C(text) of it, and for a certificate that is not trusted that certificate as C(certificate).
  type: list
  returned: always
"""

import configparser  # noqa: E402
import contextlib  # noqa: E402
import os  # noqa: E402
import re  # noqa: E402
import shutil  # noqa: E402
import socket  # noqa: E402
import ssl  # noqa: E402
import tempfile  # noqa: E402
import time  # noqa: E402
import urllib.error  # noqa: E402
import urllib.request  # noqa: E402
from concurrent.futures import ThreadPoolExecutor  # noqa: E402
from pathlib import Path  # noqa: E402
from typing import Any  # noqa: E402
from urllib.parse import urljoin, urlsplit  # noqa: E402

from ansible.module_utils.basic import AnsibleModule  # noqa: E402

# A name server that is slow for once, or a mirror that is being restarted, is no reason to refuse.
TRIES = 3
HREF = re.compile(r"""<a\s[^>]*href=["']([^"'#]+)""", re.IGNORECASE)


#: Seconds for the second try of what did not answer in time: an index behind an inspecting proxy took 12 s (measured).
PATIENCE = 45.0


def trusting(authorities: list[str]) -> ssl.SSLContext:
    """What the host trusts now, and these authorities."""
    context = ssl.create_default_context()
    # pip and uv take a company's authority that lacks what RFC 5280 asks for, so this does, too.
    context.verify_flags &= ~getattr(ssl, "VERIFY_X509_STRICT", 0)
    for pem in authorities:
        context.load_verify_locations(cadata=pem)
    return context


def failure(host: str, kind: str, text: Any, certificate: str = "") -> dict[str, str]:
    return {"host": host, "kind": kind, "text": " ".join(str(text).split())[:300], "certificate": certificate}


class Asking:
    """Requests with one set of authorities and one time limit."""

    def __init__(self, context: ssl.SSLContext, timeout: float, patience: float = PATIENCE) -> None:
        self.context = context
        self.timeout = timeout
        self.patience = patience

    def get(self, url: str, proxy: str = "") -> tuple[str, dict[str, str] | None]:
        """The beginning of an answer as text, and what went wrong, if anything did, each of several times."""
        text, wrong = self._once(url, proxy, self.timeout)
        for _ in range(TRIES - 1):
            # A certificate is no other a moment later.
            if not wrong or wrong["kind"] == "certificate":
                break
            time.sleep(2)
            # One that takes connections and is only slow, such as an inspecting proxy, has more time.
            text, wrong = self._once(url, proxy, self.patience if wrong["kind"] == "slow" else self.timeout)
        if wrong and wrong["kind"] == "slow":
            wrong["kind"] = "way"
        return text, wrong

    def _once(self, url: str, proxy: str, timeout: float) -> tuple[str, dict[str, str] | None]:
        host = urlsplit(url).hostname or url
        proxies = urllib.request.ProxyHandler({"https": proxy, "http": proxy} if proxy else None)
        opener = urllib.request.build_opener(proxies, urllib.request.HTTPSHandler(context=self.context))
        request = urllib.request.Request(url, headers={"User-Agent": "prefect-kit", "Accept": "text/html, */*"})
        try:
            with opener.open(request, timeout=timeout) as answer:
                return answer.read(200_000).decode(errors="replace"), None
        except urllib.error.HTTPError as error:
            return "", None if error.code == 401 else failure(host, "status", f"{error.code} {error.reason}")
        except urllib.error.URLError as error:
            return "", self._failure(url, host, error.reason, timeout)
        except (OSError, ValueError) as error:
            return "", self._failure(url, host, error, timeout)

    def _failure(self, url: str, host: str, reason: Any, timeout: float) -> dict[str, str]:
        if isinstance(reason, ssl.SSLCertVerificationError):
            certificate = ""
            with contextlib.suppress(OSError):
                certificate = ssl.get_server_certificate((host, urlsplit(url).port or 443), timeout=self.timeout)
            return failure(host, "certificate", reason.verify_message, certificate)
        if isinstance(reason, socket.gaierror):
            return failure(host, "name", reason.strerror)
        if isinstance(reason, TimeoutError):
            # Connected, if it was the handshake or the answer that took too long.
            kind = "slow" if re.search("handshake|read operation", str(reason)) else "way"
            return failure(host, kind, f"no answer within {timeout:.0f} s")
        return failure(host, "way", getattr(reason, "strerror", None) or reason)

    def endpoint(self, name: str, urls: list[str], proxy: str = "") -> list[dict[str, str]]:
        """The failure of the first address, where none of them answers."""
        wrong = [found for found in (self.get(url, proxy)[1] for url in urls) if found]
        return [{"name": name, **wrong[0]}] if urls and len(wrong) == len(urls) else []

    def index(self, url: str, project: str) -> list[dict[str, str]]:
        """What keeps packages from being downloaded: from the index, or from where its files are."""
        page = f"{url.rstrip('/')}/{project}/"
        text, wrong = self.get(page)
        link = HREF.search(text)
        if not wrong and link:
            wrong = self.get(urljoin(page, link.group(1)))[1]
        return [{"name": "index", **wrong}] if wrong else []


def indexes(default: str, etc: Path = Path("/etc"), environment: Any = os.environ) -> list[str]:
    """The package indexes that pip and uv of this host take packages from, as far as they are asked over HTTP."""
    pip = configparser.ConfigParser(interpolation=None)
    pip.read([etc / "pip.conf"])
    # An index in uv.toml, whichever way it is written; without one uv asks the same as pip by itself.
    toml = etc / "uv/uv.toml"
    named = re.findall(r'(?m)^\s*(?:index-)?url\s*=\s*"([^"]+)"', toml.read_text()) if toml.is_file() else []
    of_pip = environment.get("PIP_INDEX_URL") or pip.get("global", "index-url", fallback="") or default
    of_uv = environment.get("UV_DEFAULT_INDEX") or environment.get("UV_INDEX_URL") or (named or [default])[0]
    return [url for url in dict.fromkeys([of_pip, of_uv]) if url.startswith(("http://", "https://"))]


def mirrors(module: AnsibleModule, timeout: int) -> list[dict[str, str]]:
    """What keeps apt from its mirrors, by apt's own means: its proxies and its authorities are another matter than ours."""
    code, said, _ = module.run_command(["apt-get", "--print-uris", "update"])
    uris = re.findall(r"^'(https?://[^']+)'", said, re.MULTILINE) if code == 0 else []
    first = {urlsplit(uri).hostname: uri for uri in reversed(uris)}
    options = [f"-oAcquire::{kind}::Timeout={timeout}" for kind in ("http", "https")]
    options.append(f"-oAcquire::Retries={TRIES - 1}")
    place = tempfile.mkdtemp(prefix="prefect-reach-")
    try:
        wrong = []
        for host, uri in first.items():
            command = ["/usr/lib/apt/apt-helper", *options, "download-file", uri, f"{place}/release"]
            code, _, errors = module.run_command(command)
            if code:
                words = [line[3:] for line in errors.splitlines() if line.startswith("E: ")]
                wrong.append({"name": "mirror", **failure(host or "", "apt", (words or [errors])[0])})
        return wrong
    finally:
        shutil.rmtree(place, ignore_errors=True)


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "endpoints": {"type": "list", "elements": "dict", "default": []},
            "index": {"type": "str", "default": ""},
            "index_project": {"type": "str", "default": "uv"},
            "mirrors": {"type": "bool", "default": False},
            "authorities": {"type": "list", "elements": "str", "default": []},
            "timeout": {"type": "int", "default": 10},
        },
        supports_check_mode=True,
    )
    wanted = module.params
    asking = Asking(trusting(wanted["authorities"]), wanted["timeout"])
    with ThreadPoolExecutor() as pool:
        answers = [
            pool.submit(asking.endpoint, each["name"], each["urls"], each.get("proxy") or "")
            for each in wanted["endpoints"]
        ]
        if wanted["index"]:
            answers += [pool.submit(asking.index, url, wanted["index_project"]) for url in indexes(wanted["index"])]
        if wanted["mirrors"]:
            answers.append(pool.submit(mirrors, module, wanted["timeout"]))
        failures = [found for answer in answers for found in answer.result()]
    module.exit_json(changed=False, failures=failures)


if __name__ == "__main__":
    main()
