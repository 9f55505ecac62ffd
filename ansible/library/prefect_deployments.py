#!/usr/bin/python
"""Ansible module: the deployments that a release of flows made."""

from __future__ import annotations

DOCUMENTATION = r"""
module: prefect_deployments
short_description: Deployments whose code lies under a directory
description:
  - Lists the deployments whose code lies under O(directory), that is, those that the playbook made.
  - With O(delete_other_than), deletes those that are not of this version (they are gone from prefect.yaml).
  - Where the API is and who asks (C(api_url), C(url_username), C(url_password), C(ca_path)) is described once, at
    API_ARGUMENTS in module_utils/prefect_api.py.
options:
  directory:
    description: Directory on the workers' hosts; deployments that work below it are meant.
    type: str
    required: true
  delete_other_than:
    description: Version of the deployments that stay; unset deletes none.
    type: str
author:
  - the prefect self-hosting kit
"""

EXAMPLES = r"""
- name: List the deployments of all releases
  prefect_deployments:
    api_url: https://prefect.example.org/api
    url_username: playbook
    url_password: "{{ password }}"
    directory: /opt/prefect/flows/releases
"""

RETURN = r"""
deployments:
  description: Name (flow/deployment) and version of each deployment that is left.
  type: dict
  returned: always
releases:
  description: Names of the releases that a deployment that is left needs, whoever made it.
  type: list
  returned: always
deleted:
  description: Names of the deployments that were deleted.
  type: list
  returned: always
"""

import json  # noqa: E402
import re  # noqa: E402
from typing import Any  # noqa: E402

from ansible.module_utils.basic import AnsibleModule  # noqa: E402

from ansible.module_utils.prefect_api import API_ARGUMENTS, PrefectApi  # noqa: E402


def lies_under(deployment: dict[str, Any], directory: str) -> bool:
    """Whether a run of the deployment works in a directory below `directory`.

    The path stands in its job variables (RELEASE_DIRECTORY), or in a pull step.
    """
    paths = [((deployment.get("job_variables") or {}).get("env") or {}).get("RELEASE_DIRECTORY")]
    for step in deployment.get("pull_steps") or []:
        paths += [values.get("directory") for values in step.values() if isinstance(values, dict)]
    return any(isinstance(path, str) and path.startswith(directory.rstrip("/") + "/") for path in paths)


def releases_named(deployment: dict[str, Any], directory: str) -> set[str]:
    """Every release below `directory` that a run of the deployment would need, be it for its interpreter alone."""
    text = json.dumps([deployment.get("pull_steps"), deployment.get("job_variables"), deployment.get("path")])
    return set(re.findall(re.escape(directory.rstrip("/")) + r"/([0-9A-Za-z][0-9A-Za-z._-]*)", text))


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            **API_ARGUMENTS,
            "directory": {"type": "str", "required": True},
            "delete_other_than": {"type": "str"},
        },
        supports_check_mode=True,
    )
    api = PrefectApi(module)
    keep = module.params["delete_other_than"]
    flows = {flow["id"]: flow["name"] for flow in api.filter("/flows/filter", {})}
    left: dict[str, str | None] = {}
    releases: set[str] = set()
    deleted = []
    for deployment in api.filter("/deployments/filter", {}):
        named = releases_named(deployment, module.params["directory"])
        if not lies_under(deployment, module.params["directory"]):
            releases |= named
            continue
        name = f"{flows[deployment['flow_id']]}/{deployment['name']}"
        if keep is None or deployment["version"] == keep:
            left[name] = deployment["version"]
            releases |= named
            continue
        deleted.append(name)
        if not module.check_mode:
            api.call("DELETE", f"/deployments/{deployment['id']}", accept=(404,))
    module.exit_json(changed=bool(deleted), deployments=left, deleted=sorted(deleted), releases=sorted(releases))


if __name__ == "__main__":
    main()
