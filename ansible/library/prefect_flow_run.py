#!/usr/bin/python
"""Ansible module: run a deployment once and count what came back."""

from __future__ import annotations

DOCUMENTATION = r"""
module: prefect_flow_run
short_description: Run a deployment and wait for its end
description:
  - Makes a flow run of a deployment (and the deployment, where O(definition) says what it is), waits until it has ended, and counts its task runs and log lines.
  - Task runs and logs reach the server by websocket and in batches, so they are waited for after the end too.
  - Where the API is and who asks (C(api_url), C(url_username), C(url_password), C(ca_path)) is described once, at
    API_ARGUMENTS in module_utils/prefect_api.py.
options:
  deployment:
    description: Name of the deployment, as flow/deployment.
    type: str
    required: true
  definition:
    description:
      - What the deployment must be, as POST /deployments/ takes it but for its name and flow. It is made when it is missing,
        and again when any of this is otherwise; without this it must be there.
    type: dict
  state:
    description: Type of state that the run must end in.
    type: str
    default: COMPLETED
  task_runs:
    description: Number of completed task runs that must be there.
    type: int
    default: 0
  log_lines:
    description: Number of log lines that must be there.
    type: int
    default: 0
  log_prefix:
    description: Count only log lines that begin with this; Prefect writes lines of its own.
    type: str
    default: ""
  timeout:
    description: Seconds until the run must have ended.
    type: int
    default: 180
author:
  - the prefect self-hosting kit
"""

EXAMPLES = r"""
- name: Run the smoke flow
  prefect_flow_run:
    api_url: https://prefect.example.org/api
    url_username: playbook
    url_password: "{{ password }}"
    deployment: prefect-kit/smoke
    task_runs: 3
"""

RETURN = r"""
flow_run:
  description: Name, id and state of the run.
  type: dict
  returned: always
task_runs:
  description: Completed task runs counted.
  type: int
  returned: always
log_lines:
  description: Log lines counted.
  type: int
  returned: always
seconds:
  description: From asking for the run to its end.
  type: float
  returned: always
"""

import time  # noqa: E402
from typing import Any  # noqa: E402
from urllib.parse import quote  # noqa: E402

from ansible.module_utils.basic import AnsibleModule  # noqa: E402

from ansible.module_utils.prefect_api import API_ARGUMENTS, PrefectApi  # noqa: E402

TERMINAL = {"COMPLETED", "FAILED", "CRASHED", "CANCELLED"}
# Task runs come by the events websocket and logs in batches of up to 2 s; a loaded host takes longer.
SETTLE_SECONDS = 30


def ensure(api: PrefectApi, name: str, definition: dict[str, Any] | None) -> tuple[dict[str, Any], bool]:
    """The deployment, made as it is defined where it is otherwise; and whether it was made."""
    flow, _, deployment_name = name.partition("/")
    path = f"/deployments/name/{quote(flow, safe='')}/{quote(deployment_name, safe='')}"
    if definition is None:
        return api.call("GET", path), False
    found = api.call("GET", path, accept=(404,))
    if found and all(found.get(key) == value for key, value in definition.items()):
        return found, False
    flow_id = api.call("POST", "/flows/", {"name": flow})["id"]
    return api.call("POST", "/deployments/", {**definition, "name": deployment_name, "flow_id": flow_id}), True


def hint(run: dict[str, Any], deployment: dict[str, Any]) -> str:
    """Where to look when the run has not ended as it should."""
    if run["state_type"] in TERMINAL:
        return (
            "look at its logs in the UI, and at: journalctl --lines 50 --unit 'prefect-worker@*'. After an update of the kit "
            "run the whole site.yml first"
        )
    return (
        f'does a worker of the pool "{deployment["work_pool_name"]}" run? Look at: systemctl status "prefect-worker@*"'
    )


def wait_for_end(api: PrefectApi, run_id: str, timeout: int) -> dict[str, Any]:
    """The flow run once it has ended, or as it is after `timeout` seconds."""
    end = time.monotonic() + timeout
    while True:
        run = api.call("GET", f"/flow_runs/{run_id}")
        if run["state_type"] in TERMINAL or time.monotonic() > end:
            return run
        time.sleep(1)


def count(api: PrefectApi, run_id: str, log_prefix: str) -> tuple[int, int]:
    """Completed task runs of a flow run, and its log lines that begin with `log_prefix`."""
    of_run = {"flow_runs": {"id": {"any_": [run_id]}}}
    completed = {**of_run, "task_runs": {"state": {"type": {"any_": ["COMPLETED"]}}}}
    logs = api.filter("/logs/filter", {"logs": {"flow_run_id": {"any_": [run_id]}}})
    return api.call("POST", "/task_runs/count", completed), sum(line["message"].startswith(log_prefix) for line in logs)


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            **API_ARGUMENTS,
            "deployment": {"type": "str", "required": True},
            "definition": {"type": "dict"},
            "state": {"type": "str", "default": "COMPLETED"},
            "task_runs": {"type": "int", "default": 0},
            "log_lines": {"type": "int", "default": 0},
            "log_prefix": {"type": "str", "default": ""},
            "timeout": {"type": "int", "default": 180},
        },
        supports_check_mode=True,
    )
    if module.check_mode:
        module.exit_json(changed=False, skipped=True, msg="a flow run is not made in check mode")
    api = PrefectApi(module)
    name = module.params["deployment"]
    deployment, made_now = ensure(api, name, module.params["definition"])
    started = time.monotonic()
    made = api.call("POST", f"/deployments/{deployment['id']}/create_flow_run", {"tags": ["playbook"]})
    run = wait_for_end(api, made["id"], module.params["timeout"])
    seconds = round(time.monotonic() - started, 1)
    wanted = (module.params["task_runs"], module.params["log_lines"])
    end = time.monotonic() + SETTLE_SECONDS
    counted = count(api, run["id"], module.params["log_prefix"])
    while (counted[0] < wanted[0] or counted[1] < wanted[1]) and time.monotonic() < end:
        time.sleep(1)
        counted = count(api, run["id"], module.params["log_prefix"])
    result = {
        "flow_run": {"id": run["id"], "name": run["name"], "state": run["state_name"]},
        "task_runs": counted[0],
        "log_lines": counted[1],
        "seconds": seconds,
    }
    if run["state_type"] != module.params["state"]:
        module.fail_json(
            msg=f'the flow run "{run["name"]}" of "{name}" is "{run["state_name"]}" after {seconds:.0f} s, not '
            f'"{module.params["state"]}": "{(run.get("state") or {}).get("message")}". HINT: {hint(run, deployment)}',
            **result,
        )
    if counted[0] < wanted[0] or counted[1] < wanted[1]:
        module.fail_json(
            msg=f'the flow run "{run["name"]}" of "{name}" has {counted[0]} task runs and {counted[1]} log lines on the '
            f"server; {wanted[0]} and {wanted[1]} were made. HINT: what is between worker and server loses websockets or "
            "requests: look at journalctl CONTAINER_TAG=prefect-caddy and the worker's journal",
            **result,
        )
    # The run itself is what was asked for, and no change.
    module.exit_json(changed=made_now, **result)


if __name__ == "__main__":
    main()
