"""Ansible lookup: the values of settings, and of those that cannot be computed why not, all of them at once."""

from __future__ import annotations

DOCUMENTATION = r"""
name: prefect_values
short_description: Values of settings, as far as they can be computed
description:
  - As ansible.builtin.vars, but a setting whose expression fails is told with its reason beside the values of the others
    instead of ending the run by itself.
options:
  _terms:
    description: Names of variables.
    required: true
author:
  - the prefect self-hosting kit
"""

RETURN = r"""
_list:
  description: One mapping of values by name; under C(__failed) another one of reasons by name.
  type: list
"""

from collections.abc import Mapping  # noqa: E402
from typing import Any  # noqa: E402

from ansible.errors import AnsibleError  # noqa: E402
from ansible.plugins.lookup import LookupBase  # noqa: E402

FAILED = "__failed"


def plain(value: Any) -> Any:
    """The value with all that is in it computed, which Ansible puts off until somebody looks."""
    if isinstance(value, Mapping):
        return {key: plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [plain(inner) for inner in value]
    return value


class LookupModule(LookupBase):
    """Found by Ansible."""

    def run(self, terms: list[str], variables: Any = None, **options: Any) -> list[dict[str, Any]]:
        values: dict[str, Any] = {}
        failed: dict[str, str] = {}
        for name in terms:
            try:
                values[name] = plain(self._templar.template(variables[name]))
            except (AnsibleError, KeyError) as error:
                failed[name] = " ".join(str(error).split())[:300]
        return [{**values, FAILED: failed}]
