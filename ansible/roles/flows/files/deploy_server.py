"""What the server has: work pools and deployments, read to the end."""

from __future__ import annotations

from typing import Any

from prefect.client.orchestration import SyncPrefectClient

PAGE = 200


def work_pools(client: SyncPrefectClient) -> dict[str, dict[str, Any]]:
    """The server's work pools, each with its type and the names of its job variables."""
    found: dict[str, dict[str, Any]] = {}
    while True:
        page = client.read_work_pools(limit=PAGE, offset=len(found))
        for pool in page:
            variables = (pool.base_job_template.get("variables") or {}).get("properties") or {}
            found[pool.name] = {"type": pool.type, "variables": set(variables)}
        if len(page) < PAGE:
            return found


def deployments_there(client: SyncPrefectClient) -> dict[str, dict[str, Any]]:
    """Every deployment of the server by its full name."""

    def pages(path: str) -> list[dict[str, Any]]:
        rows: list[dict[str, Any]] = []
        while True:
            page = client.request("POST", path, json={"limit": PAGE, "offset": len(rows)}).raise_for_status().json()
            rows += page
            if len(page) < PAGE:
                return rows

    flows = {flow["id"]: flow["name"] for flow in pages("/flows/filter")}
    return {f"{flows.get(one['flow_id'])}/{one['name']}": one for one in pages("/deployments/filter")}
