"""The proof that everything works again: one flow run, asked for and counted through the public endpoint.

The standard question of this kit: a proxy or a client that is wrong loses task runs in silence, so they are counted.
"""

from __future__ import annotations

import time
import uuid
from pathlib import Path
from typing import Any

import requests

from .errors import Code, Failure
from .progress import Advance, Report
from .settings import Endpoint


class Client:
    """Prefect's REST API with an account at the reverse proxy."""

    def __init__(self, endpoint: Endpoint) -> None:
        self._session = requests.Session()
        # Nothing from the environment of whoever runs this: no proxy, no netrc.
        self._session.trust_env = False
        self._session.verify = endpoint.ca_file
        self._session.auth = (endpoint.user, Path(endpoint.password_file).read_text().strip())
        self._url = endpoint.url.rstrip("/") + "/api"

    def call(self, method: str, path: str, body: Any = None) -> Any:
        """One route. Raises Failure (SMOKE) when it cannot be reached or refuses."""
        try:
            if method == "POST" and "Prefect-Csrf-Token" not in self._session.headers:
                identity = str(uuid.uuid4())
                token = self._session.get(f"{self._url}/csrf-token", params={"client": identity}, timeout=20)
                # 422: the server's protection against cross-site requests is off.
                if token.status_code == 200:
                    self._session.headers["Prefect-Csrf-Client"] = identity
                    self._session.headers["Prefect-Csrf-Token"] = token.json()["token"]
            answer = self._session.request(method, self._url + path, json=body, timeout=20)
        except requests.RequestException as error:
            raise Failure(
                Code.SMOKE,
                f"{self._url}{path} cannot be reached: {error}",
                "look at: docker logs --tail 20 prefect-caddy",
            ) from error
        if not answer.ok:
            raise Failure(
                Code.SMOKE,
                f'{method} {self._url}{path} answered {answer.status_code}: "{answer.text[:200]}"',
                "look at: docker logs --tail 20 prefect-caddy ; docker logs --tail 20 prefect-server",
            )
        return answer.json()


def find(client: Client, endpoint: Endpoint) -> str | None:
    """The id of the smoke deployment; None where these data have none. Raises Failure (SMOKE)."""
    flow, name = endpoint.deployment.split("/", 1)
    found = client.call("POST", "/deployments/filter", {"deployments": {"name": {"any_": [name]}}})
    flows = {one["id"] for one in client.call("POST", "/flows/filter", {"flows": {"name": {"any_": [flow]}}})}
    return next((one["id"] for one in found if one["flow_id"] in flows), None)


def run(client: Client, endpoint: Endpoint, deployment: str, advance: Advance) -> str:
    """Run the smoke deployment and count its task runs.

    Args:
        deployment: its id.

    Returns:
        What was seen, in words.

    Raises:
        Failure: SMOKE, when the run does not complete in time or its task runs are not all there.
    """
    started = time.monotonic()
    made = client.call("POST", f"/deployments/{deployment}/create_flow_run", {})
    state: dict[str, Any] = {}
    while time.monotonic() - started < endpoint.seconds:
        try:
            state = client.call("GET", f"/flow_runs/{made['id']}")["state"]
        except Failure:
            # A busy server that has just started may give one answer too late; the run goes on, and so does the question.
            if time.monotonic() - started >= endpoint.seconds - 1:
                raise
            time.sleep(1)
            continue
        advance(None, state["name"])
        if state["type"] in {"COMPLETED", "FAILED", "CRASHED", "CANCELLED"}:
            break
        time.sleep(0.5)
    if state.get("type") != "COMPLETED":
        raise Failure(
            Code.SMOKE,
            f"the smoke run {made['id']} is {state.get('name')} after {time.monotonic() - started:.0f} s:"
            f' "{state.get("message") or ""}"',
            "look at: journalctl -n 50 -u 'prefect-worker@*'",
        )
    # Task runs arrive by way of events, a moment after the run has ended.
    end = time.monotonic() + 30
    while True:
        count = client.call("POST", "/task_runs/count", {"flow_runs": {"id": {"any_": [made["id"]]}}})
        if count == endpoint.task_runs:
            return f"flow run Completed with {count} task runs in {time.monotonic() - started:.0f} s"
        if time.monotonic() > end:
            raise Failure(
                Code.SMOKE,
                f"the smoke run {made['id']} has {count} task runs, but should have {endpoint.task_runs}",
                "events are lost on the way: look at: docker logs --tail 50 prefect-caddy",
            )
        time.sleep(0.5)


def prove(endpoint: Endpoint, report: Report) -> dict[str, Any]:
    """The smoke flow; gives how it went for --json, None where the restored data have no deployment for one."""
    client = Client(endpoint)
    deployment = find(client, endpoint)
    if deployment is None:
        report.say(f'  none the smoke flow: there is no deployment "{endpoint.deployment}"')
        return {"smoke": None}
    with report.step("smoke flow through the reverse proxy", "smoke") as advance:
        return {"smoke": run(client, endpoint, deployment, advance)}
