"""Names and types: what the roles' argument specs say of a setting, and the value in the type that they name.

It is looked at here and not by Ansible's own check, because that prints a hundred lines around one fact, and stops at
the first role.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from .words import given, listed, quoted

# Inventories have variables host_…, docker_… and the like of their own: of those only what is nearly one of ours counts
# as a mistake.
STRICT_PREFIXES = ("prefect_", "preflight_")
#: Settings that have another name since a version of the kit, and their name of today.
RENAMED = {
    "backups_notify_urls": "watch_notify_urls",
    "backups_notify_again_hours": "watch_again_hours",
}
LIKENESS = {"strict": 0.8, "loose": 0.9}
TYPE_WORDS = {
    "str": "text",
    "path": "text",
    "int": "a whole number",
    "bool": "true or false",
    "list": "a list",
    "dict": "a mapping",
}
# Under this name the lookup prefect_values tells of settings whose expression fails.
FAILED = "__failed"
BOOLEANS = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}


class Unread(Exception):
    """A setting that could not be read, so that what depends on it cannot be judged."""


class Settings(dict[str, Any]):
    """The settings that are of the right types."""

    def __missing__(self, name: str) -> Any:
        raise Unread(name)


@cache
def _read_options(files: tuple[str, ...]) -> dict[str, Any]:
    """What the entry points main of these argument_specs.yml say, read once however often it is asked for."""
    options: dict[str, Any] = {}
    for file in files:
        options |= yaml.safe_load(Path(file).read_text())["argument_specs"]["main"].get("options") or {}
    return options


def prefect_options(files: list[str]) -> dict[str, Any]:
    """What the roles' argument specs say of each setting."""
    return _read_options(tuple(map(str, files)))


def unknown_problems(variables: Iterable[str], options: dict[str, Any]) -> list[str]:
    """Variables that look like settings of the kit and are none: mistyped, most likely."""
    problems = []
    for name in sorted(set(variables) - set(options)):
        if name in RENAMED:
            problems.append(f"the setting {quoted(name)} is called {quoted(RENAMED[name])} now: rename it")
            continue
        strict = name.startswith(STRICT_PREFIXES)
        near = difflib.get_close_matches(name, options, n=1, cutoff=LIKENESS["strict" if strict else "loose"])
        if near:
            problems.append(f"there is no setting {quoted(name)}; did you mean {quoted(near[0])}?")
        elif strict:
            problems.append(f"there is no setting {quoted(name)}; docs/settings.md lists what there is")
    return problems


def typed(where: str, value: Any, option: dict[str, Any], problems: list[str]) -> Any:
    """The value in the type that its option names; what is wrong with it is appended to `problems`.

    Text that reads as a number or a truth value is taken for one: `-e name=value` gives nothing but text.
    """
    kind = option["type"]
    if value is None:
        problems.append(f"{where} is not set; it must be {TYPE_WORDS[kind]}")
        return None
    if kind in ("str", "path") and isinstance(value, str):
        if value not in option.get("choices", [value]):
            problems.append(f"{given(where, value)}; allowed are {listed(option['choices'])}")
        return value
    if kind in ("str", "path") and isinstance(value, bool | int | float):
        # YAML has made 3.10 the number 3.1, and 13:30 the number 810: what was meant is lost.
        problems.append(f"{where} is the value {quoted(value)} without quotes; it must be text, so write it in quotes")
        return None
    if kind == "int" and not isinstance(value, bool) and re.fullmatch(r"-?[0-9]+", str(value)):
        return int(value)
    if kind == "bool" and str(value).lower() in BOOLEANS:
        return BOOLEANS[str(value).lower()]
    if kind == "list" and isinstance(value, list):
        element = {**option, "type": option["elements"]}
        return [typed(f"{where}, entry {number}", entry, element, problems) for number, entry in enumerate(value, 1)]
    if kind == "dict" and isinstance(value, dict):
        return typed_keys(where, value, option["options"], problems) if "options" in option else value
    problems.append(f"{given(where, value)}; it must be {TYPE_WORDS[kind]}")
    return None


def typed_keys(where: str, mapping: dict[str, Any], options: dict[str, Any], problems: list[str]) -> dict[str, Any]:
    """The same for each key of a mapping; a key that may be left out may also be empty, and is then left out."""
    for name in mapping:
        if name not in options:
            problems.append(f"{where}: there is no key {quoted(name)}; allowed are {listed(options)}")
    for name, option in options.items():
        if option.get("required") and mapping.get(name) is None:
            problems.append(f"{where}: the key {quoted(name)} is missing")
    return {
        name: typed(f"{where}: {name}", mapping[name], option, problems)
        for name, option in options.items()
        if mapping.get(name) is not None
    }


def read(values: dict[str, Any], options: dict[str, Any], problems: list[str]) -> Settings:
    """The settings of the right types; what is wrong with the others is appended to `problems`."""
    settings = Settings()
    failed = values.get(FAILED, {})
    for name, option in options.items():
        if name in failed:
            problems.append(f"{name} cannot be computed from what it is set to: {failed[name]}")
            continue
        wrong: list[str] = []
        value = typed(name, values[name], option, wrong)
        if not wrong:
            settings[name] = value
        problems += wrong
    return settings
