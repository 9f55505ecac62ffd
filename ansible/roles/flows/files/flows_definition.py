"""What a prefect.yaml says, held against what Prefect knows; the lines that it may leave out; and its schedules.

No line here asks a server: deploy_flows.py does, and hands in what it was told. A file that works with a plain `prefect
deploy` works here; what Prefect would silently ignore is an error, because the person who wrote it meant something.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import re
import zoneinfo
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import yaml
from deploy_seam import (
    ConcurrencyLimitSpec,
    DeploymentConfig,
    PrefectYamlModel,
    RawScheduleConfig,
    WorkPoolConfig,
    parse_datetime,
    schedule_of_entry,
)
from prefect.client.schemas.schedules import CronSchedule, IntervalSchedule, RRuleSchedule, is_valid_timezone
from prefect.utilities.templating import apply_values
from pydantic import TypeAdapter, ValidationError

# How the kit marks a deployment of its own, among its job variables: with the release that it runs from, and with its
# own name, so that a copy under another name does not count as the kit's.
DIRECTORY = "RELEASE_DIRECTORY"
MARK = "RELEASE_DEPLOYMENT"

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


def schedule_configs(entry: Mapping[str, Any]) -> list[Any]:
    """The schedules of a deployment's entry, in the older form `schedule:` too."""
    found = entry.get("schedules") or ([entry["schedule"]] if entry.get("schedule") else [])
    return list(found) if isinstance(found, list) else [found]


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


# --- whose a deployment is -------------------------------------------------------------------------------------------


def release_of(deployment: Mapping[str, Any], releases: Path) -> Path | None:
    """The release below `releases` that runs of the deployment work in."""
    paths = [((deployment.get("job_variables") or {}).get("env") or {}).get(DIRECTORY)]
    for step in deployment.get("pull_steps") or []:
        paths += [values.get("directory") for values in step.values() if isinstance(values, Mapping)]
    for path in paths:
        if isinstance(path, str) and Path(path).parent == releases:
            return Path(path)
    return None


def entry_of(release: Path | None, name: str, entrypoint: str | None) -> dict[str, Any]:
    """The entry by which a release has made a deployment; empty when there is none, or it cannot be read any more."""
    if release is None:
        return {}
    try:
        content = yaml.safe_load((release / "prefect.yaml").read_text())
        entries = [entry for entry in content["deployments"] if entry.get("name") == name]
    except (OSError, yaml.YAMLError, TypeError, KeyError, AttributeError):
        return {}
    return next((entry for entry in entries if entry.get("entrypoint") == entrypoint), {})


def made_by_kit(deployment: Mapping[str, Any], full_name: str, releases: Path) -> bool:
    """Whether a deploy of the kit made the deployment.

    The mark says so. Earlier versions of the kit set none: they gave a deployment its release's name as version.
    """
    mark = ((deployment.get("job_variables") or {}).get("env") or {}).get(MARK)
    if mark is not None:
        return bool(mark == full_name)
    release = release_of(deployment, releases)
    if release is None or release.name != deployment.get("version"):
        return False
    return bool(entry_of(release, str(deployment.get("name")), deployment.get("entrypoint")))


@dataclass
class Plan:
    """What a deploy would do to the deployments that are there."""

    removed: list[str]
    replaced: list[str]
    stay: list[str]

    def refusals(self, brings: int, may_remove: bool, may_replace: bool) -> list[str]:
        """Why it must not be done without somebody's word."""
        errors = []
        if self.removed and not may_remove and (not self.stay or len(self.removed) > brings):
            errors.append(
                f"prefect.yaml has {brings} {'deployment' if brings == 1 else 'deployments'}, and deploying it would remove "
                f"{'' if self.stay else 'all '}{len(self.removed)} that earlier releases made: {', '.join(self.removed)}. "
                "To remove them: -e flows_remove_deployments=true"
            )
        if self.replaced and not may_replace:
            errors.append(
                f"deploying it would replace what somebody else has made or changed: {', '.join(self.replaced)}. Give other "
                "names to the deployments of prefect.yaml, or, to replace those: -e flows_replace_deployments=true"
            )
        return errors


def plan(wanted: Iterable[str], ours: Iterable[str], others: Iterable[str]) -> Plan:
    """What deploying `wanted` means, where the kit has made `ours` and other people have made `others`."""
    wanted, ours, others = set(wanted), set(ours), set(others)
    return Plan(removed=sorted(ours - wanted), replaced=sorted(others & wanted), stay=sorted(ours & wanted))


# --- schedules -------------------------------------------------------------------------------------------------------


def shown(schedule: Any) -> str:
    """A schedule in words."""
    zone = f" {schedule.timezone}" if schedule.timezone and schedule.timezone != "UTC" else ""
    if isinstance(schedule, CronSchedule):
        return f'cron "{schedule.cron}"{zone}'
    if isinstance(schedule, IntervalSchedule):
        return f"every {schedule.interval.total_seconds():g} s{zone}"
    return f'rrule "{schedule.rrule}"{zone}'


def content_of(schedule: Any, with_anchor: bool) -> list[Any]:
    """What makes a schedule itself, whoever made it."""
    zone = schedule.timezone or "UTC"
    if isinstance(schedule, CronSchedule):
        return ["cron", schedule.cron, zone, schedule.day_or is not False]
    if isinstance(schedule, IntervalSchedule):
        anchor = [schedule.anchor_date.isoformat()] if with_anchor else []
        return ["interval", schedule.interval.total_seconds(), zone, *anchor]
    return ["rrule", schedule.rrule, zone]


@dataclass
class Wanted:
    """A schedule of prefect.yaml. One without a slug gets one from its content, by which it is found again."""

    schedule: Any
    slug: str
    named: bool
    active: bool | None
    parameters: dict[str, Any]
    replaces: str | None

    @classmethod
    def of(cls, made: Mapping[str, Any]) -> Wanted:
        """From what Prefect makes of an entry of `schedules`."""
        schedule, slug = made["schedule"], made.get("slug")
        anchored = "anchor_date" in schedule.model_fields_set
        text = json.dumps([content_of(schedule, anchored), made.get("parameters") or {}], sort_keys=True, default=str)
        return cls(
            schedule=schedule,
            slug=slug or f"file-{hashlib.sha256(text.encode()).hexdigest()[:8]}",
            named=bool(slug),
            active=made.get("active"),
            parameters=dict(made.get("parameters") or {}),
            replaces=made.get("replaces"),
        )

    def is_like(self, there: Any) -> bool:
        """Whether a schedule of the server, which may have another slug or none, is the same one."""
        anchored = "anchor_date" in self.schedule.model_fields_set
        if type(there.schedule) is not type(self.schedule) or (there.parameters or {}) != self.parameters:
            return False
        return content_of(there.schedule, anchored) == content_of(self.schedule, anchored)

    def name(self) -> str:
        return f'"{self.slug}" ({shown(self.schedule)})' if self.named else shown(self.schedule)


def wanted_of(entry: Mapping[str, Any], environment: Mapping[str, str]) -> list[Wanted]:
    """The schedules of an entry of an earlier release; what cannot be read any more is left out."""
    found = []
    filled = apply_values({"schedules": schedule_configs(entry)}, dict(environment), remove_notset=False)
    for config in filled["schedules"]:
        try:
            found.append(Wanted.of(schedule_of_entry(config)))
        except Exception:  # noqa: S112  a file of an earlier release; each library has exceptions of its own
            continue
    return found


@dataclass
class ScheduleChanges:
    """What brings a deployment's schedules to what the file says, and leaves those of other people alone."""

    delete: list[Any] = field(default_factory=list)
    update: list[tuple[Any, Wanted]] = field(default_factory=list)
    create: list[Wanted] = field(default_factory=list)
    others: list[Any] = field(default_factory=list)


def schedule_changes(there: list[Any], before: list[Wanted], wanted: list[Wanted]) -> ScheduleChanges:
    """Decide about the schedules that are `there`, of which the deploy `before` made some.

    A schedule keeps its identity, and so whether somebody has paused it, by its slug, else by its content, else (with
    no slug in the file) because one took the place of one.
    """
    changes = ScheduleChanges()
    left = list(there)

    def take(matches: Callable[[Any], bool]) -> Any:
        found = next((schedule for schedule in left if matches(schedule)), None)
        if found is not None:
            left.remove(found)
        return found

    # What the deploy before has made. Earlier versions of the kit gave no slug to what had none.
    ours: list[tuple[Any, Wanted]] = []
    for old in before:
        made = take(lambda one, old=old: one.slug == old.slug)
        if made is None and not old.named:
            made = take(lambda one, old=old: not one.slug and old.is_like(one))
        if made is not None:
            ours.append((made, old))

    def claim(matches: Callable[[Any, Wanted], bool]) -> Any:
        found = next((pair for pair in ours if matches(*pair)), None)
        if found is not None:
            ours.remove(found)
            return found[0]
        return None

    open_: list[Wanted] = []
    for new in wanted:
        made = claim(lambda one, _, new=new: one.slug in (new.replaces, new.slug)) if new.named else None
        made = made or claim(lambda one, old, new=new: new.slug == old.slug)
        # Whoever made it: two of one slug cannot be, and two alike would run everything twice.
        made = made or take(lambda one, new=new: one.slug in (new.replaces, new.slug) and one.slug is not None)
        if made is not None:
            changes.update.append((made, new))
        else:
            open_.append(new)
    for new in list(open_):
        made = claim(lambda one, _, new=new: new.is_like(one)) or take(
            lambda one, new=new: not one.slug and new.is_like(one)
        )
        made = made or (claim(lambda _, old: not old.named) if not new.named else None)
        if made is not None:
            changes.update.append((made, new))
            open_.remove(new)
    changes.create = open_
    changes.delete = [made for made, _ in ours]
    changes.others = left
    return changes


def schedule_notes(full_name: str, changes: ScheduleChanges) -> list[str]:
    """What a person would want to know of it."""
    notes = []
    for one in changes.delete:
        paused = ", which was paused" if not one.active else ""
        name = f'"{one.slug}" ({shown(one.schedule)})' if one.slug and not one.slug.startswith("file-") else shown(
            one.schedule
        )  # fmt: skip
        notes.append(f"Removed the schedule {name} of {full_name}{paused}: prefect.yaml no longer has it.")
    for one, new in changes.update:
        if new.active is None and not one.active:
            notes.append(f"The schedule {new.name()} of {full_name} stays paused.")
        elif new.active is not None and new.active != one.active:
            how = "active" if new.active else "paused"
            notes.append(f"The schedule {new.name()} of {full_name} is {how} now: prefect.yaml says so.")
    for one in changes.others:
        name = f'"{one.slug}" ({shown(one.schedule)})' if one.slug else shown(one.schedule)
        notes.append(f"The schedule {name} of {full_name} was not made from prefect.yaml, and stays as it is.")
    return notes
