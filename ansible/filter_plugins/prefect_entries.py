"""Entries of the module prefect_files, made of plain files of this repository and of texts."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any


def prefect_entries(
    names: Iterable[str], source: str, destination: str, mode: str = "0644", owner: str = "root"
) -> list[dict[str, Any]]:
    """An entry for each file: copied from one directory of the control machine to one of the host.

    Args:
        names: names of files, or their paths, of which the last part counts.
        source: directory on the control machine. Raises OSError where it lacks a file.
        destination: directory on the host.
        mode: permissions, in octal.
        owner: owner, and group of the same name.
    """
    found = [Path(name).name for name in names]
    return [
        {
            "path": f"{destination}/{name}",
            "content": (Path(source) / name).read_text(),
            "mode": mode,
            "owner": owner,
            "group": owner,
        }
        for name in found
    ]


def prefect_dropins(texts: Mapping[str, str], file: str, comment: str) -> list[dict[str, Any]]:
    """Entries for drop-ins of systemd units, each with its directory.

    Args:
        texts: content of a drop-in, by the name of its unit (`prefect-backup.timer`).
        file: name of the drop-ins (`prefect.conf`).
        comment: first line of each, without the mark of a comment.
    """
    entries: list[dict[str, Any]] = []
    for unit, text in texts.items():
        directory = f"/etc/systemd/system/{unit}.d"
        entries.append({"path": directory, "state": "directory", "mode": "0755"})
        entries.append({"path": f"{directory}/{file}", "content": f"# {comment}\n{text.strip()}\n", "mode": "0644"})
    return entries


class FilterModule:
    """Makes them filters of Ansible."""

    def filters(self) -> dict[str, Any]:
        return {"prefect_entries": prefect_entries, "prefect_dropins": prefect_dropins}
