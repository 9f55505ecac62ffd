"""A small client of Prefect's REST API for this kit's modules: standard library and Ansible only.

The SDK is not used, because these modules run on hosts that have no Prefect (yet), the control machine included.
"""

from __future__ import annotations

import json
import time
import uuid
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.urls import fetch_url

# The arguments that every module of this kit takes: the address of the API, ending in /api; an account of the reverse proxy and
# its password; the PEM file of the authority that the server's certificate comes from (unset: what the host trusts).
API_ARGUMENTS: dict[str, dict[str, Any]] = {
    "api_url": {"type": "str", "required": True},
    "url_username": {"type": "str", "required": True},
    "url_password": {"type": "str", "required": True, "no_log": True},
    "ca_path": {"type": "path"},
    # Read by fetch_url: send the password at once, not after a 401.
    "force_basic_auth": {"type": "bool", "default": True},
}

# Prefect's own ceiling for one page of a filter.
PAGE = 200


class PrefectApi:
    """Calls under `api_url`; every answer that is not wanted ends the module with the fact and a hint."""

    def __init__(self, module: AnsibleModule) -> None:
        self.module = module
        self.url = module.params["api_url"].rstrip("/")
        self._csrf: dict[str, str] = {}

    def call(self, method: str, path: str, body: Any = None, accept: tuple[int, ...] = ()) -> Any:
        """Call one route; returns the decoded answer, or None for a status in `accept` and for an empty answer.

        Args:
            method: the HTTP method.
            path: the route below `/api`, such as `/work_pools/`.
            body: what is sent as JSON.
            accept: statuses other than 2xx that are no error, such as 404.
        """
        if method != "GET" and not self._csrf:
            self._csrf = self._csrf_headers()
        answer, status, text = self._fetch(method, path, body)
        if 200 <= status < 300:
            return json.loads(answer) if answer else None
        if status in accept:
            return None
        self.module.fail_json(
            msg=f'{method} {self.url}{path} answered {status}: "{text}". {self._hint(status)}', status=status
        )

    def ready(self, timeout: float) -> None:
        """Wait until the API and its database answer; ends the module after `timeout` seconds."""
        end = time.monotonic() + timeout
        while True:
            _, status, text = self._fetch("GET", "/ready", None)
            if status == 200:
                return
            if time.monotonic() > end or status == 401:
                self.module.fail_json(
                    msg=f'{self.url}/ready answers {status} after {timeout:.0f} s: "{text}". {self._hint(status)}'
                )
            time.sleep(1)

    def filter(self, path: str, body: dict[str, Any]) -> list[dict[str, Any]]:
        """All rows of a `…/filter` route, page by page."""
        rows: list[dict[str, Any]] = []
        while True:
            page = self.call("POST", path, {**body, "limit": PAGE, "offset": len(rows)})
            rows += page
            if len(page) < PAGE:
                return rows

    def _csrf_headers(self) -> dict[str, str]:
        client = str(uuid.uuid4())
        answer = self.call("GET", f"/csrf-token?client={client}", accept=(404, 422))
        # 404, 422: the server has the protection turned off.
        return {"Prefect-Csrf-Client": client, "Prefect-Csrf-Token": answer["token"]} if answer else {"X-No-Csrf": "1"}

    def _fetch(self, method: str, path: str, body: Any) -> tuple[bytes, int, str]:
        headers = {"Content-Type": "application/json", "Accept": "application/json", **self._csrf}
        response, info = fetch_url(
            self.module,
            self.url + path,
            data=None if body is None else json.dumps(body),
            headers=headers,
            method=method,
            timeout=30,
            ca_path=self.module.params["ca_path"],
        )
        answer = response.read() if response else info.get("body") or b""
        if isinstance(answer, str):
            answer = answer.encode()
        text = answer.decode(errors="replace")[:500].strip() if info["status"] > 0 else info["msg"]
        return answer, info["status"], text

    def _hint(self, status: int) -> str:
        if status == 401:
            return f'HINT: the reverse proxy does not know the account "{self.module.params["url_username"]}" or its password; run site.yml --tags stack'
        if status <= 0:
            return "HINT: is the name right, the port open, the certificate trusted? Look at: journalctl CONTAINER_TAG=prefect-caddy"
        return "HINT: look at: journalctl CONTAINER_TAG=prefect-server"
