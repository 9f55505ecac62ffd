"""A newline in a template of the playbook: in double quotes YAML makes it one, elsewhere Ansible makes it two characters."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

ANSIBLE = Path(__file__).parents[2] / "ansible"
FILES = sorted(path for folder in ("roles", "inventory") for path in (ANSIBLE / folder).rglob("*.yml"))
FILES += sorted(ANSIBLE.glob("*.yml"))
#: Where it is meant to be one; a regular expression reads the two characters as one.
MEANT = re.compile(r"""(join|split)\('[^')]*\\n|~ '[^']*\\n'|: '[^']*\\n'""")


def strings(found: Any) -> Iterator[str]:
    if isinstance(found, str):
        yield found
    elif isinstance(found, dict):
        for value in found.values():
            yield from strings(value)
    elif isinstance(found, list):
        for value in found:
            yield from strings(value)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ANSIBLE)))
def test_a_newline_in_a_template_is_one(path: Path) -> None:
    class Loader(yaml.SafeLoader):
        """Takes !unsafe and !vault for what they hold."""

    Loader.add_multi_constructor("!", lambda loader, _, node: node.value)
    found = [text for text in strings(yaml.load(path.read_text(), Loader)) if "{{" in text]
    assert [text for text in found if MEANT.search(text)] == []
