#!/usr/bin/python
"""Ansible module: one work pool with its work queues."""

from __future__ import annotations

DOCUMENTATION = r"""
module: prefect_work_pool
short_description: A Prefect work pool and its work queues
description:
  - Makes a work pool, its concurrency limit, and the work queues that are named, with their priorities.
  - Other queues of the pool are left as they are; nothing is ever deleted, because flow runs may wait there.
  - Where the API is and who asks (C(api_url), C(url_username), C(url_password), C(ca_path)) is described once, at
    API_ARGUMENTS in module_utils/prefect_api.py.
options:
  name:
    description: Name of the work pool.
    type: str
    required: true
  type:
    description: Worker type; it cannot be changed once the pool exists.
    type: str
    default: process
  concurrency_limit:
    description: Flow runs of the pool at the same time; unset means no limit.
    type: int
  queues:
    description: Work queues, with distinct priorities from 1 up; the smallest goes first.
    type: list
    elements: dict
    default: []
    suboptions:
      name:
        description: Name of the work queue.
        type: str
        required: true
      priority:
        description: From 1 up.
        type: int
        required: true
      concurrency_limit:
        description: Flow runs of the queue at the same time; unset means no limit.
        type: int
author:
  - the prefect self-hosting kit
"""

EXAMPLES = r"""
- name: Make the pool
  prefect_work_pool:
    api_url: https://prefect.example.org/api
    url_username: playbook
    url_password: "{{ password }}"
    name: general
    queues:
      - name: high
        priority: 1
"""

RETURN = r"""
work_pool:
  description: The pool as it is now.
  type: dict
  returned: always
"""

from typing import Any  # noqa: E402

from ansible.module_utils.basic import AnsibleModule  # noqa: E402

from ansible.module_utils.prefect_api import API_ARGUMENTS, PrefectApi  # noqa: E402

QUEUE_ARGUMENTS = {
    "name": {"type": "str", "required": True},
    "priority": {"type": "int", "required": True},
    "concurrency_limit": {"type": "int"},
}


def pool_as_wanted(parameters: dict[str, Any]) -> dict[str, Any]:
    """The part of a pool that the parameters speak of, in the shape of `pool_as_found`."""
    queues = {
        queue["name"]: {"priority": queue["priority"], "concurrency_limit": queue["concurrency_limit"]}
        for queue in parameters["queues"]
    }
    return {
        "type": parameters["type"],
        "concurrency_limit": parameters["concurrency_limit"],
        "queues": dict(sorted(queues.items(), key=lambda item: item[1]["priority"])),
    }


def pool_as_found(pool: dict[str, Any] | None, queues: list[dict[str, Any]], names: set[str]) -> dict[str, Any]:
    """The same part of the pool on the server; queues that the parameters do not name are left out."""
    if pool is None:
        return {}
    known = {
        queue["name"]: {"priority": queue["priority"], "concurrency_limit": queue["concurrency_limit"]}
        for queue in queues
        if queue["name"] in names
    }
    return {
        "type": pool["type"],
        "concurrency_limit": pool["concurrency_limit"],
        "queues": dict(sorted(known.items(), key=lambda item: item[1]["priority"])),
    }


def read(api: PrefectApi, name: str, names: set[str]) -> tuple[dict[str, Any] | None, dict[str, Any]]:
    """The pool on the server (None where there is none) and the part of it that is ours."""
    pool = api.call("GET", f"/work_pools/{name}", accept=(404,))
    queues = api.filter(f"/work_pools/{name}/queues/filter", {}) if pool else []
    return pool, pool_as_found(pool, queues, names)


def write(api: PrefectApi, name: str, found: dict[str, Any], wanted: dict[str, Any]) -> None:
    """Make the pool on the server what is wanted."""
    if not found:
        api.call(
            "POST",
            "/work_pools/",
            {"name": name, "type": wanted["type"], "concurrency_limit": wanted["concurrency_limit"]},
        )
        _, found = read(api, name, set(wanted["queues"]))
    elif found["concurrency_limit"] != wanted["concurrency_limit"]:
        api.call("PATCH", f"/work_pools/{name}", {"concurrency_limit": wanted["concurrency_limit"]})
    # By priority, from the first: the server moves the others up when one takes a place.
    for queue, values in wanted["queues"].items():
        if queue not in found["queues"]:
            api.call("POST", f"/work_pools/{name}/queues", {"name": queue, **values})
        elif found["queues"][queue] != values:
            api.call("PATCH", f"/work_pools/{name}/queues/{queue}", values)


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            **API_ARGUMENTS,
            "name": {"type": "str", "required": True},
            "type": {"type": "str", "default": "process"},
            "concurrency_limit": {"type": "int"},
            "queues": {"type": "list", "elements": "dict", "default": [], "options": QUEUE_ARGUMENTS},
        },
        supports_check_mode=True,
    )
    api = PrefectApi(module)
    name = module.params["name"]
    wanted = pool_as_wanted(module.params)
    _, before = read(api, name, set(wanted["queues"]))
    if before and before["type"] != wanted["type"]:
        module.fail_json(
            msg=f'Refusing to change the work pool "{name}": it is of type "{before["type"]}", not "{wanted["type"]}", and '
            "Prefect cannot change a pool's type. Give the pool another name in prefect_work_pools."
        )
    after = wanted
    if before != wanted and not module.check_mode:
        # The server renumbers the others when one queue takes a place, so a second pass may be needed.
        for _ in range(3):
            _, found = read(api, name, set(wanted["queues"]))
            if found == wanted:
                break
            write(api, name, found, wanted)
        _, after = read(api, name, set(wanted["queues"]))
        if after != wanted:
            module.fail_json(msg=f'the work pool "{name}" is "{after}" after the change, not "{wanted}"')
    module.exit_json(changed=before != wanted, work_pool=after, diff={"before": before, "after": after})


if __name__ == "__main__":
    main()
