#!/usr/bin/python
"""Ansible module: the deployments that a release of flows made."""

from __future__ import annotations

DOCUMENTATION = r"""
module: prefect_deployments
short_description: Deployments that a deploy of this kit has made
description:
  - Lists the deployments that the playbook has made (files/deploy_flows.py of the role flows marks them), and the
    releases that any deployment needs. Changes nothing.
  - Where the API is and who asks (C(api_url), C(url_username), C(url_password), C(ca_path)) is described once, at
    API_ARGUMENTS in module_utils/prefect_api.py.
options:
  directory:
    description: Directory of the releases on the workers' hosts.
    type: str
    required: true
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
  description: Name (flow/deployment) of each deployment that the kit has made, and the release that it points to.
  type: dict
  returned: always
releases:
  description: Names of the releases that a deployment needs, whoever made it.
  type: list
  returned: always
"""

import json  # noqa: E402
import re  # noqa: E402
from typing import Any  # noqa: E402

from ansible.module_utils.basic import AnsibleModule  # noqa: E402

from ansible.module_utils.prefect_api import API_ARGUMENTS, PrefectApi  # noqa: E402


def release_of(deployment: dict[str, Any], directory: str) -> str | None:
    """The release below `directory` that a run of the deployment works in.

    Its path stands in the job variables (RELEASE_DIRECTORY), or in a pull step.
    """
    paths = [((deployment.get("job_variables") or {}).get("env") or {}).get("RELEASE_DIRECTORY")]
    for step in deployment.get("pull_steps") or []:
        paths += [values.get("directory") for values in step.values() if isinstance(values, dict)]
    for path in paths:
        if isinstance(path, str) and path.startswith(directory.rstrip("/") + "/"):
            return path.removeprefix(directory.rstrip("/") + "/").split("/")[0]
    return None


def is_marked(deployment: dict[str, Any], name: str, directory: str) -> bool:
    """Whether a deploy of the kit has made the deployment; `name` is its full one.

    The mark stands in its job variables. Earlier versions of the kit gave the release's name as version instead.
    """
    mark = ((deployment.get("job_variables") or {}).get("env") or {}).get("RELEASE_DEPLOYMENT")
    if mark is not None:
        return bool(mark == name)
    release = release_of(deployment, directory)
    return release is not None and release == deployment.get("version")


def releases_named(deployment: dict[str, Any], directory: str) -> set[str]:
    """Every release below `directory` that a run of the deployment would need, be it for its interpreter alone."""
    text = json.dumps([deployment.get("pull_steps"), deployment.get("job_variables"), deployment.get("path")])
    return set(re.findall(re.escape(directory.rstrip("/")) + r"/([0-9A-Za-z][0-9A-Za-z._-]*)", text))


def main() -> None:
    module = AnsibleModule(
        argument_spec={**API_ARGUMENTS, "directory": {"type": "str", "required": True}},
        supports_check_mode=True,
    )
    api = PrefectApi(module)
    directory = module.params["directory"]
    flows = {flow["id"]: flow["name"] for flow in api.filter("/flows/filter", {})}
    made: dict[str, str | None] = {}
    releases: set[str] = set()
    for deployment in api.filter("/deployments/filter", {}):
        name = f"{flows.get(deployment['flow_id'])}/{deployment['name']}"
        releases |= releases_named(deployment, directory)
        if is_marked(deployment, name, directory):
            made[name] = release_of(deployment, directory)
    module.exit_json(changed=False, deployments=made, releases=sorted(releases))


if __name__ == "__main__":
    main()
