#!/usr/bin/python
"""Ansible module: one work pool with its work queues."""

from __future__ import annotations

DOCUMENTATION = r"""
module: prefect_work_pool
short_description: A Prefect work pool and its work queues
description:
  - Makes a work pool, its concurrency limit, and the work queues that are named, with their priorities.
  - Other queues of the pool are left as they are; nothing is ever deleted, because flow runs may wait there.
  - A new pool gets the base job template that the server knows for its type (from its own copy of the collections'
    metadata, so the server needs no way out), with C(job_defaults), C(job_configuration) and C(job_fixed) put in.
  - The template of a pool that is there is looked at only where one of these three is given. One that has the module's
    mark and is as the module wrote it follows them; one that somebody has edited stays, with a warning, unless
    C(overwrite_template) is set.
  - Where the API is and who asks (C(api_url), C(url_username), C(url_password), C(ca_path)) is described once, at
    API_ARGUMENTS in module_utils/prefect_api.py.
options:
  ready_timeout:
    description: Wait so many seconds for the API and its database to answer first; 0 does not wait.
    type: int
    default: 0
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
  job_defaults:
    description: Defaults of variables of the base job template; a deployment's job_variables win over them.
    type: dict
    default: {}
  job_fixed:
    description: >-
      Values of the base job template's job_configuration in the place of variables: no deployment and no flow run can
      ask for another, unless somebody edits the pool.
    type: dict
    default: {}
  job_configuration:
    description: >-
      Values of the base job template's job_configuration, which may have variables of the template in them; those stay.
    type: dict
    default: {}
  overwrite_template:
    description: Whether a base job template that somebody has edited is overwritten.
    type: bool
    default: false
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
template:
  description: What was done about the base job template, one of write, same, keep.
  type: str
  returned: always
"""

import copy  # noqa: E402
import hashlib  # noqa: E402
import json  # noqa: E402
from typing import Any  # noqa: E402

from ansible.module_utils.basic import AnsibleModule  # noqa: E402

from ansible.module_utils.prefect_api import API_ARGUMENTS, PrefectApi  # noqa: E402

QUEUE_ARGUMENTS = {
    "name": {"type": "str", "required": True},
    "priority": {"type": "int", "required": True},
    "concurrency_limit": {"type": "int"},
}


VIEW = "/collections/views/aggregate-worker-metadata"
# A keyword of JSON schema that nothing but people reads.
MARK_KEY = "$comment"
MARK = "By the playbook, which writes it anew as long as nobody has edited it: "


def without_mark(template: dict[str, Any]) -> dict[str, Any]:
    """A base job template as it would be without the module's mark."""
    variables = {key: value for key, value in template.get("variables", {}).items() if key != MARK_KEY}
    return {**template, "variables": variables}


def mark_of(template: dict[str, Any]) -> str:
    """The mark that says that a template is as the module wrote it."""
    text = json.dumps(without_mark(template), sort_keys=True)
    return MARK + hashlib.sha256(text.encode()).hexdigest()[:12]


def template_of_type(view: dict[str, Any], kind: str) -> dict[str, Any] | None:
    """The base job template of a worker type in the collections' metadata; None for a type that is not there."""
    for collection in view.values():
        if kind in collection:
            return collection[kind]["default_base_job_configuration"]
    return None


def template_as_wanted(
    template: dict[str, Any], defaults: dict[str, Any], fixed: dict[str, Any], values: dict[str, Any]
) -> dict[str, Any]:
    """The template with other defaults, with fixed values instead of variables, with other values that may hold variables,
    and with the module's mark.

    Raises:
        KeyError: there is no variable of a name in `defaults`.
    """
    wanted = copy.deepcopy(template)
    variables = wanted["variables"].get("properties", {})
    for name, value in defaults.items():
        variables[name]["default"] = value
    wanted["job_configuration"].update(values)
    for name, value in fixed.items():
        wanted["job_configuration"][name] = value
        variables.pop(name, None)
    if "required" in wanted["variables"]:
        wanted["variables"]["required"] = [name for name in wanted["variables"]["required"] if name not in fixed]
    wanted["variables"][MARK_KEY] = mark_of(wanted)
    return wanted


def template_decision(found: dict[str, Any], wanted: dict[str, Any], overwrite: bool) -> str:
    """What to do about a pool's template: write it, leave it because it is the same, or keep what somebody edited."""
    if found and without_mark(found) == without_mark(wanted):
        return "same"
    # A pool that was made without a template, and that no worker has given one.
    if not found.get("job_configuration"):
        return "write"
    edited = found.get("variables", {}).get(MARK_KEY) != mark_of(found)
    return "keep" if edited and not overwrite else "write"


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


def template_for(api: PrefectApi, parameters: dict[str, Any]) -> dict[str, Any]:
    """The base job template that a pool of these parameters begins with; ends the module where there is none."""
    kind = parameters["type"]
    template = template_of_type(api.call("GET", VIEW), kind)
    if template is None:
        api.module.fail_json(
            msg=f'the server knows no worker type "{kind}" (work pool "{parameters["name"]}"). Set another type in prefect_work_pools.'
        )
    try:
        return template_as_wanted(
            template, parameters["job_defaults"], parameters["job_fixed"], parameters["job_configuration"]
        )
    except KeyError as error:
        there = ", ".join(sorted(template["variables"].get("properties", {})))
        api.module.fail_json(
            msg=f'work pool "{parameters["name"]}": the base job template of the type {kind} has no variable {error}; it has {there}'
        )


def write(
    api: PrefectApi, name: str, found: dict[str, Any], wanted: dict[str, Any], template: dict[str, Any] | None
) -> None:
    """Make the pool on the server what is wanted; `template` is what a new pool begins with."""
    if not found:
        body = {"name": name, "type": wanted["type"], "concurrency_limit": wanted["concurrency_limit"]}
        api.call("POST", "/work_pools/", {**body, "base_job_template": template})
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
            "ready_timeout": {"type": "int", "default": 0},
            "name": {"type": "str", "required": True},
            "type": {"type": "str", "default": "process"},
            "concurrency_limit": {"type": "int"},
            "job_defaults": {"type": "dict", "default": {}},
            "job_fixed": {"type": "dict", "default": {}},
            "job_configuration": {"type": "dict", "default": {}},
            "overwrite_template": {"type": "bool", "default": False},
            "queues": {"type": "list", "elements": "dict", "default": [], "options": QUEUE_ARGUMENTS},
        },
        supports_check_mode=True,
    )
    api = PrefectApi(module)
    if module.params["ready_timeout"]:
        api.ready(module.params["ready_timeout"])
    name = module.params["name"]
    wanted = pool_as_wanted(module.params)
    pool, before = read(api, name, set(wanted["queues"]))
    if before and before["type"] != wanted["type"]:
        module.fail_json(
            msg=f'Refusing to change the work pool "{name}": it is of type "{before["type"]}", not "{wanted["type"]}", and '
            "Prefect cannot change a pool's type. Give the pool another name in prefect_work_pools."
        )
    # The view is asked for only where it is needed: it costs the server a look outside, which ends at its network.
    ours = any(module.params[name] for name in ("job_defaults", "job_fixed", "job_configuration"))
    template = template_for(api, module.params) if pool is None or ours else None
    decision = "write"
    if pool is not None:
        found = pool["base_job_template"] or {}
        decision = template_decision(found, template, module.params["overwrite_template"]) if template else "same"
    if decision == "keep":
        module.warn(
            f'the work pool "{name}" keeps its base job template: it is not as the playbook wrote it. '
            "To have the playbook's: -e docker_pool_overwrite_template=true"
        )
    if pool is not None and decision == "write" and not module.check_mode:
        api.call("PATCH", f"/work_pools/{name}", {"base_job_template": template})
    after = wanted
    if before != wanted and not module.check_mode:
        # The server renumbers the others when one queue takes a place, so a second pass may be needed.
        for _ in range(3):
            _, found = read(api, name, set(wanted["queues"]))
            if found == wanted:
                break
            write(api, name, found, wanted, template)
        _, after = read(api, name, set(wanted["queues"]))
        if after != wanted:
            module.fail_json(msg=f'the work pool "{name}" is "{after}" after the change, not "{wanted}"')
    changed = before != wanted or decision == "write"
    module.exit_json(changed=changed, work_pool=after, template=decision, diff={"before": before, "after": after})


if __name__ == "__main__":
    main()
