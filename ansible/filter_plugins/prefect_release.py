"""Releases, of flows or of tools: their name, which their content alone decides; and of flows, which one to go back
to and which ones stay.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import yaml

# What tools leave behind in such a directory; never part of a release.
LEFT_OUT = {
    "__pycache__",
    ".git",
    ".venv",
    ".ruff_cache",
    ".pytest_cache",
    ".mypy_cache",
    ".prefect",
    ".env",
    ".DS_Store",
}


def link_problem(link: Path, root: Path) -> str:
    """Why a link cannot be followed into a release; empty when it can."""
    name, target = link.relative_to(root).as_posix(), link.readlink()
    try:
        end = link.resolve(strict=True)
    except (OSError, RuntimeError):  # RuntimeError: a ring of links, up to Python 3.12
        return f'"{name}" is a link to "{target}", which is not there'
    if not end.is_relative_to(root.resolve()):
        return f'"{name}" is a link to "{target}", outside: put what it leads to into the directory itself'
    if end in link.parent.resolve().parents or end == link.parent.resolve():
        return f'"{name}" is a link to "{target}", a directory that it lies in itself'
    if end.is_file() and target.is_absolute():
        return f'"{name}" is a link to "{target}", which will not be there on the server: make it a relative one'
    return ""


def walk(directory: Path, root: Path, left_out: list[str], problems: list[str]) -> Iterator[str]:
    """The files below `directory` as paths relative to `root`, through links to directories too.

    Appends to `left_out` the directories that are projects of their own (with a prefect.yaml), and to `problems` the
    links that cannot be followed.
    """
    for path in sorted(directory.iterdir()):
        name = path.relative_to(root).as_posix()
        if path.name in LEFT_OUT:
            continue
        if path.is_symlink() and (problem := link_problem(path, root)):
            problems.append(problem)
        elif path.is_file():
            yield name
        elif path.is_dir() and (path / "prefect.yaml").is_file():
            left_out.append(name)
        elif path.is_dir():
            yield from walk(path, root, left_out, problems)


def release_files(directory: str) -> list[str]:
    """Paths, relative to `directory` and sorted, of the files that make a release."""
    return sorted(walk(Path(directory), Path(directory), [], []))


def prefect_release_left_out(directory: str) -> list[str]:
    """Directories below `directory` that are no part of the release, since they have a prefect.yaml of their own."""
    left_out: list[str] = []
    list(walk(Path(directory), Path(directory), left_out, []))
    return left_out


def prefect_release(directory: str) -> str:
    """Twelve hexadecimal digits of the SHA-256 of names, contents and executable bits of the files of a release.

    Raises:
        FileNotFoundError: the directory has no requirements.txt.
    """
    root = Path(directory)
    if not (root / "requirements.txt").is_file():
        raise FileNotFoundError(f'"{directory}" has no file "requirements.txt", which a release needs')
    digest = hashlib.sha256()
    for name in release_files(directory):
        content = (root / name).read_bytes()
        executable = "x" if (root / name).stat().st_mode & 0o111 else ""
        # With lengths, so that no two different directories give the same stream.
        digest.update(f"{executable}{len(name)}:{name}:{len(content)}:".encode() + content)
    return digest.hexdigest()[:12]


def lock_problems(lock: str) -> list[str]:
    """What keeps the text of a requirements.txt from being a lock: names without hashes, or no Prefect in it."""
    lines = re.sub(r"\\\n", " ", re.sub(r"(?m)^\s*#.*\n?", "", lock)).splitlines()
    wanted = [line.strip() for line in lines if line.strip() and not line.lstrip().startswith("-")]
    bare = [line.split()[0] for line in wanted if "--hash=" not in line]
    if bare:
        more = f" and {len(bare) - 1} more" if len(bare) > 1 else ""
        return [
            f'requirements.txt has no hashes for "{bare[0]}"{more}. '
            "Make it with: scripts/lock DIRECTORY, from a requirements.in"
        ]
    if not any(re.match(r"prefect\s*(\[[^]]*\]\s*)?==", line, re.IGNORECASE) for line in wanted):
        return ["requirements.txt does not name prefect, which runs the flows"]
    return []


def prefect_release_problems(directory: str) -> list[str]:
    """What keeps a directory of the control machine from being a release, in words; empty when all is well."""
    root = Path(directory)
    if not root.is_dir():
        return ["there is no such directory"]
    problems = []
    definition = root / "prefect.yaml"
    if not definition.is_file():
        below = sorted(path.parent.relative_to(root).as_posix() for path in root.glob("*/prefect.yaml"))
        hint = f"; there is one in {', '.join(below)} (of a git repository: flows_git_directory)" if below else ""
        problems.append(f"it has no prefect.yaml{hint}")
    else:
        try:
            content = yaml.safe_load(definition.read_text())
            deployments = content.get("deployments") if isinstance(content, dict) else None
            if not isinstance(deployments, list) or not all(isinstance(entry, dict) for entry in deployments):
                problems.append("its prefect.yaml has no list of deployments")
        except yaml.YAMLError as error:
            problems.append(f"its prefect.yaml is no YAML: {' '.join(str(error).split())}")
    lock = root / "requirements.txt"
    problems += (
        lock_problems(lock.read_text())
        if lock.is_file()
        else ["it has no requirements.txt (a lock with hashes): scripts/lock DIRECTORY makes it from a requirements.in"]
    )
    list(walk(root, root, [], problems))
    return problems


# --- history -----------------------------------------------------------------------------------------------------

History = list[dict[str, Any]]


def prefect_history(text: str) -> History:
    """The lines of the history file, oldest first; a line that was cut off is left out."""
    entries = []
    for line in text.splitlines():
        try:
            entry = json.loads(line)
        except ValueError:
            continue
        if isinstance(entry, dict) and entry.get("release"):
            entries.append(entry)
    return entries


def recent(history: History) -> list[str]:
    """Releases by the time they were last deployed, the newest first."""
    return list(dict.fromkeys(entry["release"] for entry in reversed(history)))


def prefect_releases_to_keep(history: History, count: int, deployed: str, named: Iterable[str] = ()) -> list[str]:
    """Releases that stay: the deployed one, the `count` that were deployed last before it, and those that a
    deployment names. What a process uses, and what is young, each host finds out for itself (prefect_flow_releases).
    """
    before = [release for release in recent(history) if release != deployed][: max(count, 0)]
    return sorted({deployed, *before, *named})


def described(history: History, present: Iterable[str]) -> list[str]:
    """A line for each release that is there: its name, when it was last deployed, and where it came from."""
    last = {entry["release"]: entry for entry in history}
    order = recent(history)
    names = sorted(present, key=lambda name: (order.index(name) if name in order else len(order), name))
    lines = [
        f"{name}  {last[name].get('time', '?')}  {last[name].get('source', '?')}"
        if name in last
        else f"{name}  never deployed"
        for name in names
    ]
    if lines and order and names[0] == order[0]:
        lines[0] += "  (deployed)"
    return lines


def prefect_rollback(history: History, present: dict[str, list[str]], wanted: str = "") -> dict[str, Any]:
    """Which release to go back to, or why not.

    Args:
        history: what was deployed when.
        present: the releases of each host, the server's first.
        wanted: a release's name; empty means the one that was deployed before.
    Returns:
        `release` (with its `source` and `commit`), which is empty when `problem` says why; `there`, lines that say what
        there is.
    """
    there = described(history, next(iter(present.values()), []))

    def no(problem: str) -> dict[str, Any]:
        return {"release": "", "problem": problem, "there": there}

    order = recent(history)
    if wanted and order and wanted == order[0]:
        return no(f'the release "{wanted}" is deployed already')
    if not wanted and len(order) < 2:
        return no("no other release was deployed before")
    release = wanted or order[1]
    lacking = [host for host, releases in present.items() if release not in releases]
    if lacking:
        known = "is no longer" if release in order else "is not"
        return no(f'the release "{release}" {known} on {", ".join(lacking)}')
    last = next((entry for entry in reversed(history) if entry["release"] == release), {})
    source, commit = last.get("source", "an unknown source"), last.get("commit", "")
    return {"release": release, "problem": "", "there": there, "source": source, "commit": commit}


def prefect_deployments_changed(before: dict[str, Any], after: dict[str, Any]) -> dict[str, int]:
    """How many deployments are new, changed and removed, of two answers of the module prefect_deployments."""
    old, new = before["deployments"], after["deployments"]
    return {
        "new": len(new.keys() - old.keys()),
        "changed": sum(old[name] != new[name] for name in old.keys() & new.keys()),
        "removed": len(old.keys() - new.keys()),
    }


class FilterModule:
    """Makes the filters known to Ansible."""

    def filters(self) -> dict[str, Any]:
        return {
            "prefect_release": prefect_release,
            "prefect_release_left_out": prefect_release_left_out,
            "prefect_release_problems": prefect_release_problems,
            "prefect_deployments_changed": prefect_deployments_changed,
            "prefect_history": prefect_history,
            "prefect_releases_to_keep": prefect_releases_to_keep,
            "prefect_rollback": prefect_rollback,
            "prefect_release_files": lambda directory: [f"{directory}/{name}" for name in release_files(directory)],
        }
