"""A line of the audit in words."""

from __future__ import annotations

from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

#: What the last part of a path says is done; {} is the object.
DEEDS = {
    ("POST", "create_flow_run"): "run {}",
    ("POST", "bulk"): "run {} several times",
    ("POST", "pause_deployment"): "pause {}",
    ("POST", "resume_deployment"): "resume {}",
    ("POST", "schedule"): "make scheduled flow runs of {}",
    ("POST", "schedules"): "add a schedule to {}",
    ("POST", "resume"): "resume {}",
    ("POST", "input"): "answer {}",
    ("POST", "bulk_delete"): "delete {}",
    ("POST", "install_system_block_types"): "install Prefect's own block types",
    ("POST", "reset"): "reset {}",
    ("PATCH", "labels"): "change the labels of {}",
}
VERBS = {"POST": "create", "PUT": "replace", "PATCH": "change", "DELETE": "delete", "GET": "read", "HEAD": "read"}
#: Ends of paths that are read by POST.
READ = ("filter", "count", "paginate", "history", "get_scheduled_flow_runs", "get_runs", "validate", "lateness")


def object_of(entry: Mapping[str, Any]) -> str:
    """What it was about: Prefect's noun, and the name."""
    return " ".join(filter(None, [str(entry.get("kind", "")), str(entry.get("name", ""))]))


def what(entry: Mapping[str, Any]) -> str:
    """What was done, or tried: "delete deployment etl/nightly"; method and path where there are no better words."""
    method, path, about = str(entry.get("method", "")), str(entry.get("path", "")), object_of(entry)
    last = path.rstrip("/").rpartition("/")[2]
    if method == "WS" or not about or last in READ:
        return f"{method} {path}"
    if last in ("set_state", "bulk_set_state"):
        state = str(entry.get("state", "")).capitalize()
        if state in ("Cancelling", "Cancelled"):
            return f"cancel {about}"
        return f"set {about} to {state or 'another state'}"
    if "/schedules/" in path:
        return f"{VERBS.get(method, method)} a schedule of {about}"
    return DEEDS.get((method, last), f"{VERBS.get(method, method)} {{}}").replace("{}", about)


def result(entry: Mapping[str, Any]) -> str:
    """How it ended."""
    status = int(entry.get("status", 0) or 0)
    if why := entry.get("refused"):
        return f"refused: {why}"
    if status == 0:
        return "no answer: it may be done"
    if status < 400:
        return "done"
    try:
        return f"failed: {status} {HTTPStatus(status).phrase}"
    except ValueError:
        return f"failed: {status}"
