"""What is wrong with the settings of an inventory, in words: pure decisions, taken before a host is touched.

Names, types and choices are those of each role's `meta/argument_specs.yml` (types.py). What argument_specs cannot say
comes after, a module for each concern: formats, references between settings, duplicates, weak passwords.

A check takes the settings of the right types and gives what is wrong with them, one sentence each. A new one goes into
the module of its concern, and into CHECKS here.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

from .accounts import (
    monitor_problems,
    password_problems,
    prefect_left_passwords,
    secrets_problems,
    sso_problems,
    user_problems,
    worker_block_problems,
)
from .egress import egress_problems
from .endpoint import acme_problems, address_problems, certificate_problems, domain_problems
from .host import (
    admin_problems,
    allowed_problems,
    authority_problems,
    clock_problems,
    cloud_problems,
    guessing_problems,
    interface_problems,
    journal_problems,
    key_problems,
    port_problems,
    upload_problems,
    window_problems,
)
from .numbers import number_problems
from .running import (
    prefect_moved_problems,
    prefect_postgres_problems,
    prefect_postgres_upgrade_problem,
    prefect_running,
    prefect_upgrade_problem,
    prefect_version_problems,
)
from .types import Unread, prefect_options, read, unknown_problems
from .versions import archive_problems, image_problems, server_image_problems, version_problems
from .watch import automation_problems, datadog_problems, heartbeat_problems, people_problems
from .work import flow_problems, flows_pool_problems, pool_problems, worker_problems

__all__ = [
    "prefect_left_passwords",
    "prefect_moved_problems",
    "prefect_options",
    "prefect_postgres_problems",
    "prefect_postgres_upgrade_problem",
    "prefect_running",
    "prefect_settings_problems",
    "prefect_typed",
    "prefect_upgrade_problem",
    "prefect_version_problems",
]

Check = Callable[[dict[str, Any]], list[str]]
# Each looks at few settings, so that one that cannot be read hides as little as possible.
CHECKS: tuple[Check, ...] = (
    domain_problems,
    acme_problems,
    user_problems,
    sso_problems,
    worker_block_problems,
    monitor_problems,
    certificate_problems,
    secrets_problems,
    password_problems,
    *(
        partial(image_problems, name=name)
        for name in ("prefect_image", "prefect_postgres_image", "prefect_caddy_image")
    ),
    archive_problems,
    pool_problems,
    worker_problems,
    flow_problems,
    flows_pool_problems,
    clock_problems,
    cloud_problems,
    window_problems,
    journal_problems,
    admin_problems,
    key_problems,
    port_problems,
    interface_problems,
    guessing_problems,
    allowed_problems,
    egress_problems,
    authority_problems,
    upload_problems,
    people_problems,
    heartbeat_problems,
    datadog_problems,
    automation_problems,
    address_problems,
    number_problems,
)


def prefect_settings_problems(
    values: dict[str, Any], options: dict[str, Any], variables: list[str], supported: list[str]
) -> list[str]:
    """Everything that is wrong with the settings, one sentence each; empty when all is well.

    Args:
        values: the value of each setting (of those that failed, the reasons by name under `__failed`: lookup prefect_values).
        options: what the roles' argument_specs say of each setting.
        variables: every variable whose name begins like a setting's.
        supported: the versions of Prefect that the kit supports, the newest last. Which of them the host runs is not known
            yet: `prefect_version_problems` asks, once it is.
    """
    problems = unknown_problems(variables, options)
    settings = read(values, options, problems)
    versions: list[Check] = [partial(check, supported=supported) for check in (version_problems, server_image_problems)]
    for check in (*versions, *CHECKS):
        # What could not be read has been told, and what depends on it cannot be judged.
        with contextlib.suppress(Unread):
            problems += check(settings)
    return problems


def prefect_typed(values: dict[str, Any], options: dict[str, Any], needed: Iterable[str] = ("",)) -> dict[str, Any]:
    """The settings in the types that the roles' argument_specs name; none at all when one that is needed is of another.

    Args:
        values: the value of each setting.
        options: what the roles' argument_specs say of each setting.
        needed: how the names of those begin that are needed; all, when it is not given.
    """
    settings = read(values, options, [])
    unread = [name for name in options if name not in settings and name.startswith(tuple(needed))]
    return {} if unread else dict(settings)
