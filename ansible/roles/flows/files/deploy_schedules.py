"""The schedules of a prefect.yaml, held against those that a deployment has. Asks no server."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from deploy_seam import schedule_of_entry
from prefect.client.schemas.schedules import CronSchedule, IntervalSchedule
from prefect.utilities.templating import apply_values


def schedule_configs(entry: Mapping[str, Any]) -> list[Any]:
    """The schedules of a deployment's entry, in the older form `schedule:` too."""
    found = entry.get("schedules") or ([entry["schedule"]] if entry.get("schedule") else [])
    return list(found) if isinstance(found, list) else [found]


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
