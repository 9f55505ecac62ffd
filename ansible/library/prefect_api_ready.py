#!/usr/bin/python
"""Ansible module: wait until Prefect's API and its database answer through the public endpoint."""

from __future__ import annotations

DOCUMENTATION = r"""
module: prefect_api_ready
short_description: Wait for Prefect's API
description:
  - Waits until the API answers that it and its database are ready. Changes nothing.
  - Where the API is and who asks (C(api_url), C(url_username), C(url_password), C(ca_path)) is described once, at
    API_ARGUMENTS in module_utils/prefect_api.py.
options:
  timeout:
    description: Seconds to wait.
    type: int
    default: 60
author:
  - the prefect self-hosting kit
"""

EXAMPLES = r"""
- name: Wait for the API
  prefect_api_ready:
    api_url: https://prefect.example.org/api
    url_username: playbook
    url_password: "{{ password }}"
"""

RETURN = r"""
version:
  description: Version of the server.
  type: str
  returned: always
"""

from ansible.module_utils.basic import AnsibleModule  # noqa: E402

from ansible.module_utils.prefect_api import API_ARGUMENTS, PrefectApi  # noqa: E402


def main() -> None:
    module = AnsibleModule(
        argument_spec={**API_ARGUMENTS, "timeout": {"type": "int", "default": 60}},
        supports_check_mode=True,
    )
    api = PrefectApi(module)
    api.ready(module.params["timeout"])
    module.exit_json(changed=False, version=api.call("GET", "/admin/version"))


if __name__ == "__main__":
    main()
