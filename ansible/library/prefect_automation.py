#!/usr/bin/python
"""Ansible module: one automation of the server, which the playbook owns."""

from __future__ import annotations

DOCUMENTATION = r"""
module: prefect_automation
short_description: An automation of the Prefect server
description:
  - Makes an automation, or brings the one of that name back to what is wanted; a person's changes to it do not last.
  - Where the API is and who asks (C(api_url), C(url_username), C(url_password), C(ca_path)) is described once, at
    API_ARGUMENTS in module_utils/prefect_api.py.
options:
  ready_timeout:
    description: Wait so many seconds for the API and its database to answer first; 0 does not wait.
    type: int
    default: 0
  name:
    description: Name of the automation. Of several with that name the oldest stays.
    type: str
    required: true
  description:
    description: What it is for, shown in the UI.
    type: str
    default: ""
  trigger:
    description: The trigger, as the API takes it.
    type: dict
    required: true
  actions:
    description: The actions, as the API takes them.
    type: list
    elements: dict
    required: true
author:
  - the prefect self-hosting kit
"""

EXAMPLES = r"""
- name: Tell of failures
  prefect_automation:
    api_url: https://prefect.example.org/api
    url_username: playbook
    url_password: "{{ password }}"
    name: Pause after failures
    trigger: {type: event, posture: Reactive, expect: [prefect.flow-run.Failed], threshold: 3, within: 600}
    actions:
      - {type: pause-deployment, source: inferred}
"""

RETURN = r"""
automation:
  description: The automation as it is now.
  type: dict
  returned: always
"""

from typing import Any  # noqa: E402

from ansible.module_utils.basic import AnsibleModule  # noqa: E402

from ansible.module_utils.prefect_api import API_ARGUMENTS, PrefectApi  # noqa: E402


def differs(wanted: Any, found: Any) -> bool:
    """Whether what is wanted is not there; what the server adds (ids, defaults) does not count."""
    if isinstance(wanted, dict):
        return not isinstance(found, dict) or any(differs(value, found.get(key)) for key, value in wanted.items())
    if isinstance(wanted, list):
        if not isinstance(found, list) or len(wanted) != len(found):
            return True
        # The server keeps names of events as a set.
        if all(isinstance(item, str) for item in wanted):
            return sorted(wanted) != sorted(found)
        return any(differs(ours, theirs) for ours, theirs in zip(wanted, found, strict=True))
    if isinstance(wanted, (int, float)) and not isinstance(wanted, bool):
        return not isinstance(found, (int, float)) or float(wanted) != float(found)
    return wanted != found


def main() -> None:
    """Compare, and write what differs."""
    module = AnsibleModule(
        argument_spec={
            **API_ARGUMENTS,
            "ready_timeout": {"type": "int", "default": 0},
            "name": {"type": "str", "required": True},
            "description": {"type": "str", "default": ""},
            "trigger": {"type": "dict", "required": True},
            "actions": {"type": "list", "elements": "dict", "required": True},
        },
        supports_check_mode=True,
    )
    api = PrefectApi(module)
    if module.params["ready_timeout"]:
        api.ready(module.params["ready_timeout"])
    wanted = {key: module.params[key] for key in ("name", "description", "trigger", "actions")} | {"enabled": True}
    found = api.filter("/automations/filter", {"automations": {"name": {"any_": [wanted["name"]]}}})
    first, more = (found[0], found[1:]) if (found := sorted(found, key=lambda one: one["created"])) else (None, [])
    changed = first is None or bool(more) or differs(wanted, first)
    if changed and not module.check_mode:
        if first is None:
            first = api.call("POST", "/automations/", wanted)
        else:
            api.call("PUT", f"/automations/{first['id']}", wanted)
        for one in more:
            api.call("DELETE", f"/automations/{one['id']}")
    module.exit_json(changed=changed, automation=first or {})


if __name__ == "__main__":
    main()
