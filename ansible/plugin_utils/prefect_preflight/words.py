"""Words and small questions that every part of the preflight of settings shares."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

# Also the instance of a systemd unit, a file name and a line in Caddy's users file.
NAME = re.compile(r"[a-z][a-z0-9-]{0,30}")
NAME_WORDS = "a lower-case letter, then up to 30 lower-case letters, digits and hyphens"


def quoted(value: Any) -> str:
    return f'"{value}"'


def given(name: str, value: Any) -> str:
    """The fact that a refusal begins with."""
    return f"{name} is not set" if value is None or value == "" else f"{name} is {quoted(value)}"


def listed(words: Iterable[Any]) -> str:
    """`a, b and c`."""
    *first, last = [str(word) for word in words]
    return f"{', '.join(first)} and {last}" if first else last


def duplicates(names: Iterable[Any]) -> list[Any]:
    return [name for name, count in Counter(names).items() if count > 1]


def bad_names(setting: str, names: list[str]) -> list[str]:
    problems = [
        f"{setting}: the name {quoted(name)} is not allowed; allowed is {NAME_WORDS}"
        for name in names
        if not NAME.fullmatch(name)
    ]
    return problems + [f"{setting}: the name {quoted(name)} stands twice" for name in duplicates(names)]


def is_file(path: str) -> bool:
    # A path that is not absolute means another file to each part of Ansible.
    return Path(path).is_absolute() and Path(path).is_file()
