"""Ansible inventory plugin: refuses an inventory whose YAML cannot be read, before anything of Ansible's reads it.

It gives no hosts. ansible.cfg names it first, so that it sees each inventory file before the plugin that does; by itself
Ansible would warn of a broken hosts.yml and go on without hosts, and stop at the first broken file of variables.
"""

from __future__ import annotations

DOCUMENTATION = r"""
name: prefect_readable
short_description: Refuse YAML that cannot be read
description:
  - Reads each inventory file and the files in C(group_vars) and C(host_vars) beside it, and ends the program with a line for
    each that is no YAML, that names something twice, or that has an unquoted C({{). It provides no hosts itself.
author:
  - the prefect self-hosting kit
"""

import re  # noqa: E402
import sys  # noqa: E402
from collections.abc import Iterator  # noqa: E402
from pathlib import Path  # noqa: E402

import yaml  # noqa: E402
from ansible.plugins.inventory import BaseInventoryPlugin  # noqa: E402

VARIABLES = ("group_vars", "host_vars")
# Of files without an ending Ansible takes those in group_vars and host_vars for YAML.
ENDINGS = {".yml", ".yaml", ".json"}
# PyYAML's words, and ours. `{before}` is the line in which what it was reading had begun.
WORDS = (
    (r"character '\\t'", "there is a tab; YAML is indented with blanks only"),
    (r"character '([%@`])'", "a value that begins with {found} must be in quotes"),
    (
        "mapping values are not allowed",
        "there is a colon too many, the line above has none (with a blank behind it), or this one is indented too far; a value "
        "with a colon and a blank in it must be in quotes",
    ),
    ("could not find expected ':'", "there is no colon behind the name in line {before}"),
    ("unexpected end of stream", "the quote or the bracket that opens in line {before} is not closed"),
    ("expected ',' or '[]}]'", "the bracket that opens in line {before} is not closed, or a comma is missing"),
    ("unknown escape character", 'a backslash in "…" is special; write it twice, or use single quotes'),
    ("undefined alias", "a value that begins with * must be in quotes"),
    (
        "expected <block end>|did not find expected|not allowed in this context|sequence entries",
        "the line does not fit those above it: they begin in line {before}; look at its indentation, and for a quote that "
        "closes too early",
    ),
)


def problem_of(error: yaml.MarkedYAMLError) -> tuple[int, str]:
    """The line where a file stops making sense, and why, in words."""
    mark = error.problem_mark or error.context_mark
    line = mark.line + 1 if mark else 1
    before = error.context_mark.line + 1 if error.context_mark else line
    for pattern, words in WORDS:
        found = re.search(pattern, error.problem or "")
        if found:
            return line, words.format(before=before, found=found[1] if found.groups() else "")
    return line, f"it is no YAML ({error.problem})"


def mistakes(node: yaml.Node) -> Iterator[tuple[int, str]]:
    """What YAML allows and nobody means: a name that is given twice, and {{ without quotes."""
    if isinstance(node, yaml.MappingNode):
        first: dict[str, int] = {}
        for key, value in node.value:
            line = key.start_mark.line + 1
            if not isinstance(key, yaml.ScalarNode):
                yield line, "a value that begins with {{ must be in quotes"
                continue
            if key.value != "<<" and first.setdefault(key.value, line) != line:
                yield (
                    line,
                    f'"{key.value}" stands twice, here and in line {first[key.value]}; only one of them would count',
                )
            yield from mistakes(value)
    elif isinstance(node, yaml.SequenceNode):
        for entry in node.value:
            yield from mistakes(entry)


def file_problems(path: Path) -> list[str]:
    """What is wrong with one file, each with its line; never a line itself, which may hold a secret."""
    try:
        text = path.read_text()
    except UnicodeDecodeError:
        return [f"{path}: it is not UTF-8"]
    except OSError as error:
        return [f"{path}: it cannot be read: {error.strerror}"]
    if text.startswith("$ANSIBLE_VAULT"):
        return []
    try:
        # Composed and not loaded: Ansible's own tags (!vault) are none of our business.
        node = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.MarkedYAMLError as error:
        found = [problem_of(error)]
    except yaml.YAMLError as error:
        found = [(1, f"it is no YAML ({' '.join(str(error).split())})")]
    else:
        found = list(mistakes(node)) if node is not None else []
        if node is not None and not isinstance(node, yaml.MappingNode) and node.value != "":
            found = [(1, "it must hold names with values, as in prefect_domain: prefect.example.org")]
    return [f"{path}, line {line}: {words}" for line, words in found]


def files_of(source: Path) -> list[Path]:
    """The inventory file, if it is YAML, and the files of variables beside it."""
    own = [source] if source.suffix in ENDINGS else []
    for folder in VARIABLES:
        below = sorted((source.parent / folder).rglob("*"))
        own += [
            path
            for path in below
            if path.is_file()
            and path.suffix in {*ENDINGS, ""}
            and not any(part.startswith(".") for part in path.relative_to(source.parent).parts)
            and not path.name.endswith("~")
        ]
    return own


def inventory_problems(source: Path) -> list[str]:
    """Everything that keeps an inventory from being read, one sentence each."""
    return [problem for path in files_of(source) for problem in file_problems(path)]


class InventoryModule(BaseInventoryPlugin):
    """Found by Ansible, and asked whether it wants a file: it never does, but it looks."""

    NAME = "prefect_readable"

    def verify_file(self, path: str) -> bool:
        source = Path(path)
        problems = inventory_problems(source) if source.is_file() else []
        if problems:
            lines = "".join(f"- {problem}\n" for problem in problems)
            print(
                f"Refusing to run, because the inventory cannot be read:\n{lines}Correct that, and run it again. Nothing has been "
                "changed.",
                file=sys.stderr,
            )
            # An error would only be a warning, and the next plugin would try.
            raise SystemExit(4)
        return False
