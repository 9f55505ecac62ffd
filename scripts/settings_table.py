#!/usr/bin/env python3
"""The table of docs/settings.md, made of the roles' defaults and argument specs: printed, or put into docs/settings.md.

    ./scripts/settings_table.py            print it
    ./scripts/settings_table.py --write    replace what stands between the two markers in docs/settings.md

tests/unit/test_said_twice.py holds docs/settings.md equal to it.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))
import _env

if __name__ == "__main__":
    _env.run_in([_env.CONTROL])

import yaml

PAGE = _env.ROOT / "docs" / "settings.md"
ROLES = _env.ROOT / "ansible" / "roles"
BEGIN = "<!-- settings: begin -->"
END = "<!-- settings: end -->"


def _read(path: Path) -> dict[str, Any]:
    return yaml.safe_load(path.read_text()) or {}


def roles() -> list[str]:
    """The roles that have settings, in the order in which the preflight looks at them."""
    return _read(ROLES / "preflight" / "vars" / "main.yml")["__preflight_roles"]


def specs(role: str) -> dict[str, Any]:
    """What the role's argument specs say of its entry point main: `short_description`, `options`."""
    return _read(ROLES / role / "meta" / "argument_specs.yml")["argument_specs"]["main"]


def defaults(role: str) -> dict[str, Any]:
    """The role's defaults, as they are written."""
    return _read(ROLES / role / "defaults" / "main.yml")


def _code(text: str) -> str:
    return f"`{text}`".replace("|", "\\|")


def _value(value: Any) -> str:
    """A default as it would stand in group_vars; one that is computed from others is described, not shown."""
    if isinstance(value, str):
        if "{{" in value and "|" in value:
            return "computed"
        # In quotes where YAML could take it for something else than text.
        return _code(value if value[:1].isalpha() else f'"{value}"')
    flow = yaml.safe_dump(value, default_flow_style=True, sort_keys=False, width=10_000)
    return _code(flow.removesuffix("...\n").strip())


def _keys(name: str, parent: dict[str, Any]) -> list[str]:
    """Rows for the keys of a mapping, or of the entries of a list."""
    rows = []
    name += "[]" if parent["type"] == "list" else ""
    for key, option in parent.get("options", {}).items():
        default = (
            "required" if option.get("required") else _value(option["default"]) if "default" in option else "unset"
        )
        rows.append(f"| {_code(f'{name}.{key}')} | {default} | {option['description']} |")
        rows += _keys(f"{name}.{key}", option)
    return rows


def table() -> str:
    """The Markdown between the markers, which are not part of it."""
    parts = []
    for role in roles():
        spec, values = specs(role), defaults(role)
        rows = []
        for name, option in spec["options"].items():
            default = "required" if option.get("required") else _value(values[name])
            rows.append(f"| {_code(name)} | {default} | {option['description']} |")
            rows += _keys(name, option)
        head = [f"### `{role}`: {spec['short_description']}", "", "| Setting | Default | What it is |", "|---|---|---|"]
        parts.append("\n".join(head + rows))
    return "\n\n".join(parts)


def with_table(readme: str) -> str:
    """The text of docs/settings.md with the table as it is now between the markers.

    Raises ValueError where the page has not exactly one of each marker, in order.
    """
    before, begin, rest = readme.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end or BEGIN in after or END in before + after:
        raise ValueError(f'"{PAGE}" must hold "{BEGIN}" and then "{END}", once each')
    return f"{before}{BEGIN}\n\n{table()}\n\n{END}{after}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="put it into docs/settings.md")
    if not parser.parse_args().write:
        print(table())
        return 0
    try:
        text = with_table(PAGE.read_text())
    except (OSError, ValueError) as error:
        _env.fail(str(error), f'write the line "{BEGIN}" and below it "{END}" into docs/settings.md')
    temporary = PAGE.with_suffix(".tmp")
    temporary.write_text(text)
    temporary.rename(PAGE)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
