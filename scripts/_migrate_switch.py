"""Schedules and automations off at the source and on at the destination, in one step; and back.

What is to be turned is written to a file before the first of it is turned, so that whatever ends this program, the next
`switch` goes on, and `switch --back` restores exactly what was active before.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from _migrate_inventory import Inventory, active_schedules
from _migrate_side import Api, ApiError, Refused
from prefect_backups.files import write_whole

FORMAT = 1


@dataclass(frozen=True)
class Pair:
    """A schedule or automation: active at the source, and its like at the destination."""

    # "schedule" or "automation".
    kind: str
    # FLOW/DEPLOYMENT, or the automation's name; and the schedule in words.
    name: str
    shown: str
    # Paths of both in their APIs.
    source: str
    destination: str
    # Whether it was off at the destination; one that was on there stays on.
    turn_on: bool


@dataclass
class State:
    """What was turned, as the file beside has it."""

    source: str
    destination: str
    # "switching", "switched" or "going back".
    phase: str = ""
    pairs: list[Pair] = field(default_factory=list)

    def save(self, path: Path) -> None:
        """Whole, or not at all."""
        write_whole(path, json.dumps({"format": FORMAT, **asdict(self)}, indent=2) + "\n", mode=0o600)


def load(path: Path, source: str, destination: str) -> State:
    """The state of this migration; a new one where there is none. Raises Refused for another migration's."""
    try:
        values = json.loads(path.read_text())
    except FileNotFoundError:
        return State(source, destination)
    except (OSError, ValueError) as error:
        raise Refused(
            f'the state "{path}" cannot be read: {error}', "it says which schedules were active: restore the file"
        ) from error
    if values.get("format") != FORMAT:
        raise Refused(f'the state "{path}" is of another version of this program', "use that version")
    if (values["source"], values["destination"]) != (source, destination):
        raise Refused(
            f'the state "{path}" is of a migration from {values["source"]} to {values["destination"]}',
            "--state FILE, with another file for this one; or the --from and --to of that one",
        )
    pairs = [Pair(**one) for one in values["pairs"]]
    return State(source, destination, values["phase"], pairs)


def words_of(schedule: Mapping[str, Any]) -> str:
    """A schedule in words."""
    content = schedule["schedule"]
    zone = f" {content['timezone']}" if content.get("timezone") not in (None, "UTC") else ""
    if "cron" in content:
        return f'cron "{content["cron"]}"{zone}'
    if "interval" in content:
        return f"every {float(content['interval']):g} s{zone}"
    return f'rrule "{content.get("rrule")}"{zone}'


def like(schedule: Mapping[str, Any], there: Sequence[Mapping[str, Any]], taken: set[str]) -> Mapping[str, Any] | None:
    """The schedule of the destination that is the same as one of the source: by slug, or by what it says."""
    free = [one for one in there if one["id"] not in taken]
    if schedule.get("slug"):
        found = next((one for one in free if one.get("slug") == schedule["slug"]), None)
        if found is not None:
            return found
    same = [
        one
        for one in free
        if words_of(one) == words_of(schedule) and (one.get("parameters") or {}) == (schedule.get("parameters") or {})
    ]
    anchor = schedule["schedule"].get("anchor_date")
    return next((one for one in same if one["schedule"].get("anchor_date") == anchor), same[0] if same else None)


def pairs_of(source: Inventory, destination: Inventory, left: Iterable[str]) -> tuple[list[Pair], list[str]]:
    """What is active at the source with its like at the destination; and in words what has none there.

    Args:
        left: names of deployments and automations that stay as they are, or patterns (such as etl/*) of them.
    """
    left = list(left)
    found: list[Pair] = []
    missing: list[str] = []
    for name, one in source.objects["deployment"].items():
        active = active_schedules(one)
        if not active or any(fnmatchcase(name, one) for one in left):
            continue
        there = destination.objects["deployment"].get(name)
        if there is None:
            missing.append(f'the deployment "{name}"')
            continue
        taken: set[str] = set()
        for schedule in active:
            same = like(schedule, there.get("schedules") or [], taken)
            if same is None:
                missing.append(f'of the deployment "{name}" the schedule {words_of(schedule)}')
                continue
            taken.add(same["id"])
            found.append(
                Pair(
                    "schedule",
                    name,
                    words_of(schedule),
                    f"/deployments/{one['id']}/schedules/{schedule['id']}",
                    f"/deployments/{there['id']}/schedules/{same['id']}",
                    not same["active"],
                )
            )
    for name, one in source.objects["automation"].items():
        if not one.get("enabled") or any(fnmatchcase(name, pattern) for pattern in left):
            continue
        there = destination.objects["automation"].get(name)
        if there is None:
            missing.append(f'the automation "{name}"')
            continue
        paths = (f"/automations/{one['id']}", f"/automations/{there['id']}")
        found.append(Pair("automation", name, "", *paths, turn_on=not there.get("enabled")))
    return found, missing


def without_worker(pairs: Iterable[Pair], destination: Inventory) -> list[str]:
    """Work pools of the destination that are to run schedules, and have no worker that answers."""
    names = {one.name for one in pairs if one.kind == "schedule"}
    pools = {destination.objects["deployment"][name].get("work_pool_name") for name in names}
    return sorted(
        pool for pool in pools if pool and destination.objects["work pool"][pool].get("status") == "NOT_READY"
    )


def merged(recorded: Sequence[Pair], found: Sequence[Pair]) -> list[Pair]:
    """What an earlier run has recorded, and what is active beside it."""
    known = {one.source for one in recorded}
    return [*recorded, *(one for one in found if one.source not in known)]


def set_active(api: Api, pair: Pair, path: str, active: bool) -> bool:
    """Turn one; gives whether it is still there. Raises ApiError."""
    try:
        api.patch(path, {"enabled" if pair.kind == "automation" else "active": active})
    except ApiError as error:
        if error.status != 404:
            raise
        return False
    return True


class NotUndone(Exception):
    """The switch failed, and so did taking it back."""


def switch(source: Api, destination: Api, state: State, pairs: Sequence[Pair], path: Path) -> None:
    """Off at the source, on at the destination. When that fails, all is as before.

    Args:
        state: of an earlier switch, which this one adds to, or goes on with where it was cut off.
        pairs: what is active at the source now.

    Raises:
        ApiError: what failed; all is as it was before. KeyboardInterrupt likewise.
        NotUndone: the way back failed, too; the state tells what is left, for another try.
    """
    before = State(state.source, state.destination, state.phase, list(state.pairs))
    settled = before.phase == "switched"
    state.phase, state.pairs = "switching", merged(before.pairs, pairs)
    todo = state.pairs[len(before.pairs) :] if settled else state.pairs
    state.save(path)
    try:
        # Off first: a minute without is better than a run of both.
        for one in todo:
            set_active(source, one, one.source, False)
        for one in todo:
            if one.turn_on and not set_active(destination, one, one.destination, True):
                raise ApiError(f'the {one.kind} of "{one.name}" is gone from the destination')
    except (ApiError, KeyboardInterrupt):
        try:
            _undo(source, destination, todo)
        except (ApiError, KeyboardInterrupt) as error:
            raise NotUndone(str(error) or "interrupted") from error
        if settled:
            before.save(path)
        else:
            path.unlink()
        raise
    state.phase = "switched"
    state.save(path)


def back(source: Api, destination: Api, state: State, path: Path) -> list[str]:
    """Off at the destination what was turned on there, on at the source what was on; gives what is gone from there.

    Raises ApiError; run it again then.
    """
    state.phase = "going back"
    state.save(path)
    gone = _undo(source, destination, state.pairs)
    path.unlink()
    return gone


def _undo(source: Api, destination: Api, pairs: Sequence[Pair]) -> list[str]:
    """All that can be turned back is; raises the first ApiError at the end."""
    errors: list[ApiError] = []
    gone = []
    for one in pairs:
        if one.turn_on:
            try:
                set_active(destination, one, one.destination, False)
            except ApiError as error:
                errors.append(error)
    if errors:
        # Not both at once.
        raise errors[0]
    for one in pairs:
        try:
            if not set_active(source, one, one.source, True):
                gone.append(one.name)
        except ApiError as error:
            errors.append(error)
    if errors:
        raise errors[0]
    return gone
