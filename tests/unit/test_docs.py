"""The pages that a person reads: short enough, without dead links, and every command in them exists."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
DOCS = sorted((ROOT / "docs").glob("*.md"))
PAGES = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")]
PAGES += [ROOT / "flows/README.md", ROOT / "systemd/README.md", *DOCS]
LINK = re.compile(r"\]\(([^)\s]+)\)")
LINES_OF_README = 150


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


def without_code(text: str) -> str:
    return re.sub(r"^ *```.*?^ *```", "", text, flags=re.DOTALL | re.MULTILINE)


def anchors(text: str) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", without_code(text), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_the_readme_is_a_screen_and_a_half():
    assert len((ROOT / "README.md").read_text().splitlines()) <= LINES_OF_README


def test_the_readme_leads_to_every_page():
    linked = set(LINK.findall((ROOT / "README.md").read_text()))
    assert {name(page) for page in DOCS} <= linked


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_every_link_leads_somewhere(page):
    text = page.read_text()
    for target in LINK.findall(without_code(text)):
        if "://" in target:
            continue
        path, _, anchor = target.partition("#")
        there = (page.parent / path).resolve() if path else page
        assert there.exists(), f"{name(page)}: {target}"
        if anchor:
            assert anchor in anchors(there.read_text()), f"{name(page)}: {target}"


@pytest.mark.parametrize("page", DOCS, ids=name)
def test_a_page_begins_with_what_to_type_and_lists_what_it_has(page):
    text = page.read_text()
    assert re.match(r"# .+\n\n(From .+\n\n(\|.+\n)+|```)", text), "a title, and then what to type"
    headings = re.findall(r"^## (.+)$", without_code(text), re.MULTILINE)
    if len(headings) > 1:
        listed = re.findall(r"^- \[(.+)\]\(#", text, re.MULTILINE)
        assert listed == headings


CONTAINERS = {"prefect-postgres", "prefect-server", "prefect-caddy"}

# --- commands ----------------------------------------------------------------------------------------------------


def commands(text: str) -> str:
    """All that a page shows as something to type: its blocks and its `inline code`."""
    blocks = re.findall(r"^ *```\w*\n(.*?)^ *```", text, re.DOTALL | re.MULTILINE)
    return "\n".join([*blocks, *re.findall(r"`([^`\n]+)`", without_code(text))])


def programs_of_the_host() -> set[str]:
    """What the kit puts into the path of a server or of a worker's host."""
    found = {path.name for folder in ("backups", "systemd/worker") for path in (ROOT / folder).glob("prefect-*")}
    return found | {path.name for path in (ROOT / "ansible/roles").glob("*/files/prefect-*")}


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_every_command_exists(page):
    said = commands(page.read_text())
    for script in re.findall(r"(?:^|\s|/)scripts/([\w.-]+)", said):
        assert (ROOT / "scripts" / script).exists(), f"{name(page)}: scripts/{script}"
    for playbook in re.findall(r"\b([a-z]+\.yml)(?=[\s`]|$)", said):
        known = [
            ROOT / "ansible" / playbook,
            ROOT / "compose" / playbook,
            ROOT / "ansible/inventory/example" / playbook,
        ]
        known += [
            ROOT / "ansible/inventory/example/group_vars" / playbook,
            ROOT / "ansible/roles/workers/meta" / playbook,
        ]
        assert any(path.exists() for path in known) or playbook in {"prefect.yml"}, f"{name(page)}: {playbook}"
    units = {path.name for path in (ROOT / "systemd").glob("prefect-*.*")}
    for unit in re.findall(r"(?:systemctl \w+|journalctl -u) (prefect-[\w-]+@?)", said):
        assert {f"{unit}.service", f"{unit}.timer", f"{unit}.slice"} & units, f"{name(page)}: {unit}"
    for program in re.findall(r"^(?:sudo )?(prefect-[\w-]+)(?= |$)", said, re.MULTILINE):
        known = programs_of_the_host() | {Path(unit).stem.rstrip("@") for unit in units} | CONTAINERS
        assert program in known, f"{name(page)}: {program}"


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_every_tag_exists(page):
    said = re.findall(r"(?:(\S+[.]yml)[^\n`]*?)? --(?:skip-)?tags[ =]([a-z_,]+)", commands(page.read_text()))
    for playbook, given in said:
        tags = tags_of("upgrade.yml" if playbook == "upgrade.yml" else "site.yml")
        assert set(given.split(",")) <= tags, f"{name(page)}: --tags {given}"


def tags_of(playbook: str) -> set[str]:
    """The tags that a playbook knows."""
    tags = {"always"}
    for part in (
        part for play in yaml.safe_load((ROOT / "ansible" / playbook).read_text()) for part in (play, *play["tasks"])
    ):
        given = part.get("tags", [])
        tags |= {given} if isinstance(given, str) else set(given)
    return tags
