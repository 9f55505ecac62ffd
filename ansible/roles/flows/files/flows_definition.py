"""What a prefect.yaml says, held against what Prefect knows.

No line here asks a server: deploy_flows.py does, and hands in what it was told. A file that works with a plain `prefect
deploy` works here; what Prefect would silently ignore is an error, because the person who wrote it meant something.
"""

from __future__ import annotations

import difflib
import re
import zoneinfo
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

from deploy_schedules import Wanted, schedule_configs
from deploy_seam import (
    ConcurrencyLimitSpec,
    DeploymentConfig,
    PrefectYamlModel,
    RawScheduleConfig,
    WorkPoolConfig,
    parse_datetime,
    schedule_of_entry,
)
from prefect.client.schemas.schedules import CronSchedule, RRuleSchedule, is_valid_timezone
from prefect.utilities.templating import apply_values
from pydantic import TypeAdapter, ValidationError

KINDS = ("cron", "interval", "rrule")
KEYS = {
    "deployment": sorted(DeploymentConfig.model_fields),
    "work_pool": sorted(WorkPoolConfig.model_fields),
    "schedules": sorted(RawScheduleConfig.model_fields),
    "concurrency_limit": sorted(ConcurrencyLimitSpec.model_fields),
}
# `definitions` is where Prefect's documentation puts YAML anchors.
TOP_KEYS = sorted({spec.alias or name for name, spec in PrefectYamlModel.model_fields.items()} | {"definitions"})
# Keys of a schedule that mean something with one kind of it only.
ONLY_WITH = {"day_or": "cron", "anchor_date": "interval"}
STRATEGIES = ("ENQUEUE", "CANCEL_NEW")
# An address with an account in it, or with something in its query that looks like a credential.
WITH_CREDENTIAL = re.compile(r"://[^/?#]*@|[?&][^=&]*(token|password|passwd|secret|key)[^=&]*=", re.IGNORECASE)
SSH_USER = re.compile(r"^\s*(git\+)?ssh://[^/@:]+@", re.IGNORECASE)


def templated(value: Any) -> bool:
    """Whether Prefect fills the value in later, from a block or a variable."""
    return isinstance(value, str) and "{{" in value


def one_line(reason: object) -> str:
    """A library's long words, shortened to one line."""
    return " ".join(str(reason).split())[:400]


def like(word: object, known: Iterable[str]) -> str:
    """`; did you mean "x"?`, or nothing."""
    near = difflib.get_close_matches(str(word), list(known), 1)
    return f'; did you mean "{near[0]}"?' if near else ""


# --- keys and values -------------------------------------------------------------------------------------------------


def key_errors(given: Mapping[Any, Any], place: str) -> list[str]:
    """Keys that Prefect would ignore, each with where it belongs or what may have been meant."""
    errors = []
    for key in given:
        if key in KEYS[place]:
            continue
        elsewhere = [other for other, keys in KEYS.items() if key in keys and other != "deployment"]
        if near := difflib.get_close_matches(str(key), KEYS[place], 1):
            errors.append(f'there is no key "{key}"; did you mean "{near[0]}"?')
        elif key in KEYS["deployment"]:
            errors.append(f'"{key}" does nothing here; it belongs into the deployment itself')
        elif elsewhere:
            errors.append(f'"{key}" does nothing here; it belongs into {elsewhere[0]}')
        else:
            errors.append(f'there is no key "{key}"; there are {", ".join(KEYS[place])}')
    return errors


def top_errors(content: Mapping[Any, Any]) -> list[str]:
    """The same for the head of the file, where other keys may hold YAML anchors."""
    errors = []
    for key in content:
        if key in TOP_KEYS:
            continue
        if key in KEYS["deployment"]:
            errors.append(f'"{key}" does nothing at the head of prefect.yaml; it belongs into a deployment')
        elif difflib.get_close_matches(str(key), TOP_KEYS, 1, 0.8):
            errors.append(f'prefect.yaml has no key "{key}"{like(key, TOP_KEYS)}')
    return errors


def timezone_errors(zone: Any) -> list[str]:
    if zone is None or templated(zone) or (isinstance(zone, str) and is_valid_timezone(zone)):
        return []
    return [f'timezone: "{zone}" is not a time zone{like(zone, zoneinfo.available_timezones())}']


def _is_interval(value: Any) -> bool:
    if isinstance(value, bool):
        return False
    return TypeAdapter(timedelta).validate_python(value) > timedelta(0)


def _tried(make: Callable[[], Any]) -> bool:
    try:
        return make() is not False
    except Exception:  # each library has exceptions of its own
        return False


def _rrule(value: Any, zone: Any) -> RRuleSchedule:
    return schedule_of_entry({"rrule": value, "timezone": zone})["schedule"]


def schedule_errors(config: Any) -> list[str]:
    """What is wrong with one schedule of prefect.yaml."""
    if not isinstance(config, Mapping):
        return [f'is "{config}", and must be a mapping with one of {", ".join(KINDS)}']
    errors = key_errors(config, "schedules")
    kinds = [kind for kind in KINDS if config.get(kind) is not None]
    if len(kinds) != 1:
        errors.append(f"must have exactly one of {', '.join(KINDS)}, and has {' and '.join(kinds) or 'none'}")
        return errors + timezone_errors(config.get("timezone"))
    kind, value = kinds[0], config[kinds[0]]
    for key, only in ONLY_WITH.items():
        if config.get(key) is not None and kind != only:
            errors.append(f'"{key}" does nothing beside {kind}, only beside {only}')
    zones = timezone_errors(config.get("timezone"))
    errors += zones
    zone = None if zones or templated(config.get("timezone")) else config.get("timezone")
    rules: dict[str, tuple[Callable[[], Any], str]] = {
        "cron": (
            lambda: CronSchedule(cron=value),
            'is not a cron expression (minute hour day month weekday, such as "15 3 * * *")',
        ),
        "interval": (lambda: _is_interval(value), 'is no length of time (seconds, or such as "PT15M")'),
        "rrule": (lambda: _rrule(value, zone), "is not a recurrence rule (RFC 5545)"),
    }
    check, words = rules[kind]
    if not templated(value) and not _tried(check):
        errors.append(f'{kind}: "{value}" {words}')
    anchor = config.get("anchor_date")
    if anchor is not None and not templated(anchor) and not _tried(lambda: parse_datetime(str(anchor))):
        errors.append(f'anchor_date: "{anchor}" is no date (such as "2026-01-01T00:00:00Z")')
    active = config.get("active")
    if active is not None and not isinstance(active, bool) and not templated(active):
        errors.append(f'active: "{active}" is neither true nor false')
    return errors


def _schedules_errors(entry: Mapping[str, Any]) -> list[str]:
    errors = []
    if entry.get("schedule") and "schedules" in entry:
        errors.append('has both "schedule" and "schedules"; use "schedules" alone')
    if not isinstance(entry.get("schedules", []), list | None):
        errors.append("schedules: must be a list")
    seen: set[str] = set()
    for number, config in enumerate(schedule_configs(entry), 1):
        found = schedule_errors(config)
        errors += [f"schedule {number}: {text}" for text in found]
        if found or any(templated(value) for value in config.values()):
            continue
        slug = Wanted.of(schedule_of_entry(dict(config))).slug
        if slug in seen:
            errors.append(f'schedule {number}: the slug "{slug}" is there twice' if config.get("slug") else
                          f"schedule {number}: is there twice")  # fmt: skip
        seen.add(slug)
    return errors


def _pool_errors(entry: Mapping[str, Any], pools: Mapping[str, Mapping[str, Any]]) -> list[str]:
    given = entry.get("work_pool", {})
    if not isinstance(given, Mapping):
        return [f'work_pool: is "{given}", and must be a mapping with name']
    errors = [f"work_pool: {text}" for text in key_errors(given, "work_pool")]
    name = given.get("name")
    if name is not None and not templated(name) and name not in pools:
        there = f"there are {', '.join(sorted(pools))}" if pools else "there are none"
        errors.append(f'work_pool: there is no work pool "{name}"; {there} (prefect_work_pools in the inventory)')
    variables = given.get("job_variables", {})
    if not isinstance(variables, Mapping):
        return [*errors, f'work_pool: job_variables: is "{variables}", and must be a mapping']
    if not isinstance(variables.get("env", {}), Mapping) and not templated(variables["env"]):
        errors.append(f'work_pool: job_variables: env: is "{variables["env"]}", and must be a mapping')
    known = (pools.get(name) or {}).get("variables")
    for key in variables if known else ():
        if key not in known and key != "env":
            errors.append(f'work_pool: job_variables: the work pool "{name}" has no job variable "{key}"'
                          + (like(key, known) or f"; it has {', '.join(sorted(known))}"))  # fmt: skip
    return errors


def _parameter_errors(given: Any, known: Iterable[str] | None, where: str = "parameters") -> list[str]:
    if not isinstance(given, Mapping):
        return [f'{where}: is "{given}", and must be a mapping']
    if known is None:
        return []
    known = list(known)
    there = f"; it has {', '.join(known)}" if known else "; it has none"
    return [
        f'{where}: the flow has no parameter "{name}"{like(name, known) or there}'
        for name in given
        if name not in known
    ]


def step_errors(steps: Any) -> list[str]:
    """Credentials in the addresses of pull steps, which a deployment would show to everybody."""
    errors = []
    for step in steps if isinstance(steps, list) else [steps]:
        for values in step.values() if isinstance(step, Mapping) else ():
            address = values.get("repository") if isinstance(values, Mapping) else None
            if isinstance(address, str) and WITH_CREDENTIAL.search(address) and not SSH_USER.match(address):
                shown = re.sub(r"[?].*", "?***", re.sub(r"//[^/]*@", "//***@", address))
                errors.append(
                    f'pull: "{shown}" has a credential in it, which everybody reads who sees the deployment; give it by '
                    'a Secret block: access_token: "{{ prefect.blocks.secret.NAME }}"'
                )
    return errors


@dataclass
class Checked:
    """What a file's entries came to: every error, and the entries as far as they can be tried out."""

    errors: list[str] = field(default_factory=list)
    entries: list[dict[str, Any]] = field(default_factory=list)


def entry_errors(
    entry: Mapping[str, Any], pools: Mapping[str, Mapping[str, Any]], parameters: Iterable[str] | None
) -> list[str]:
    """What is wrong with one deployment of prefect.yaml, with what the environment has filled in.

    Args:
        entry: the deployment.
        pools: the server's work pools by name, each with `type` and the names of its job `variables`.
        parameters: the names of the flow's parameters; None when it takes any, or is not known.
    """
    errors = key_errors(entry, "deployment")
    if not isinstance(entry.get("name"), str) or not entry["name"].strip():
        errors.append("has no name")
    entrypoint = entry.get("entrypoint")
    if not isinstance(entrypoint, str) or not entrypoint.strip():
        errors.append("has no entrypoint (such as hello.py:hello)")
    tags = entry.get("tags")
    if tags is not None and not templated(tags) and not (
        isinstance(tags, list) and all(isinstance(tag, str) for tag in tags)
    ):  # fmt: skip
        errors.append(f'tags: is "{tags}", and must be a list of texts')
    if (version := entry.get("version")) is not None and not isinstance(version, str):
        errors.append(f'version: is {version!r}, and must be a text: put it in quotes, "{version}"')
    errors += _pool_errors(entry, pools)
    errors += _schedules_errors(entry)
    errors += _parameter_errors(entry.get("parameters", {}), parameters)
    for number, config in enumerate(schedule_configs(entry), 1):
        if isinstance(config, Mapping):
            errors += _parameter_errors(config.get("parameters") or {}, parameters, f"schedule {number}: parameters")
    limit = entry.get("concurrency_limit")
    if isinstance(limit, Mapping):
        errors += [f"concurrency_limit: {text}" for text in key_errors(limit, "concurrency_limit")]
        strategy = limit.get("collision_strategy")
        if strategy is not None and strategy not in STRATEGIES:
            errors.append(f'concurrency_limit: collision_strategy: "{strategy}" is not one of {", ".join(STRATEGIES)}')
    errors += step_errors(entry.get("pull") or [])
    if not errors:
        # What else Prefect would refuse; it would then go on as if the file had no deployments at all.
        rest = {key: value for key, value in entry.items() if key not in ("schedule", "schedules")}
        try:
            DeploymentConfig.model_validate(rest)
        except ValidationError as reason:
            errors += [f"{'.'.join(map(str, error['loc']))}: {error['msg']}" for error in reason.errors()]
    return errors


def check(
    content: Any, pools: Mapping[str, Mapping[str, Any]], flows: Mapping[str, Any], environment: Mapping[str, str]
) -> Checked:
    """Hold a whole file against the rules; nothing is left out because of an earlier error.

    Args:
        content: prefect.yaml as YAML has it.
        pools: as entry_errors() has them.
        flows: for each entrypoint that imports, the names of its flow's parameters (None: any).
        environment: what `{{ $NAME }}` is filled in from.
    """
    found = Checked()
    entries = content.get("deployments") if isinstance(content, Mapping) else None
    if not isinstance(entries, list) or not entries:
        found.errors.append(f"prefect.yaml has no {'deployments' if entries == [] else 'list of deployments'}")
        return found
    found.errors += top_errors(content)
    found.errors += step_errors(content.get("pull") or [])
    for number, entry in enumerate(entries, 1):
        if not isinstance(entry, Mapping):
            found.errors.append(f'deployment {number}: is "{entry}", and must be a mapping')
            continue
        filled = apply_values(dict(entry), dict(environment), remove_notset=False)
        label = f'deployment "{filled["name"]}"' if filled.get("name") else f"deployment {number}"
        errors = entry_errors(filled, pools, flows.get(str(filled.get("entrypoint"))))
        found.errors += [f"{label}: {text}" for text in errors]
        if not errors and filled["entrypoint"] in flows:
            found.entries.append(dict(entry))
    return found
