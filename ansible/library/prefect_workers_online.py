#!/usr/bin/python
"""Ansible module: wait until workers are online in their work pools."""

from __future__ import annotations

DOCUMENTATION = r"""
module: prefect_workers_online
short_description: Wait for Prefect workers
description:
  - Waits until the server has lately heard from each of the workers, in its work pool. Changes nothing.
  - Where the API is and who asks (C(api_url), C(url_username), C(url_password), C(ca_path)) is described once, at
    API_ARGUMENTS in module_utils/prefect_api.py.
options:
  workers:
    description: The workers, each with its C(name) and its C(pool); other keys are not looked at.
    type: list
    elements: dict
    required: true
  timeout:
    description: Seconds to wait; a worker that runs is heard from every 30 seconds.
    type: int
    default: 90
author:
  - the prefect self-hosting kit
"""

EXAMPLES = r"""
- name: Wait for the workers
  prefect_workers_online:
    api_url: https://prefect.example.org/api
    url_username: playbook
    url_password: "{{ password }}"
    workers:
      - name: general-1
        pool: general
"""

RETURN = r"""
seconds:
  description: How long it took.
  type: float
  returned: success
"""

import time  # noqa: E402
from typing import Any  # noqa: E402

from ansible.module_utils.basic import AnsibleModule  # noqa: E402

from ansible.module_utils.prefect_api import API_ARGUMENTS, PrefectApi  # noqa: E402


def missing(workers: list[dict[str, Any]], states: dict[tuple[str, str], str]) -> list[str]:
    """What is wrong with each worker that is not online; `states` are by pool and worker."""
    found = [(worker, states.get((worker["pool"], worker["name"]), "unknown to the server")) for worker in workers]
    return [
        f'"{worker["name"]}" of the pool "{worker["pool"]}" is {state}' for worker, state in found if state != "ONLINE"
    ]


def read(api: PrefectApi, pools: set[str]) -> dict[tuple[str, str], str]:
    """The state of every worker of these pools."""
    return {
        (pool, worker["name"]): worker["status"]
        for pool in sorted(pools)
        for worker in api.filter(f"/work_pools/{pool}/workers/filter", {})
    }


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            **API_ARGUMENTS,
            "workers": {"type": "list", "elements": "dict", "required": True},
            "timeout": {"type": "int", "default": 90},
        },
        supports_check_mode=True,
    )
    api = PrefectApi(module)
    workers = module.params["workers"]
    began = time.monotonic()
    while problems := missing(workers, read(api, {worker["pool"] for worker in workers})):
        if time.monotonic() - began > module.params["timeout"]:
            module.fail_json(
                msg=f"after {module.params['timeout']} s, {'; '.join(problems)}. "
                "HINT: on its host, look at: journalctl --unit 'prefect-worker@*'"
            )
        time.sleep(1)
    module.exit_json(changed=False, seconds=round(time.monotonic() - began, 1))


if __name__ == "__main__":
    main()
