"""The name of a release, of flows or of tools: what its directory holds, and nothing else, decides it."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

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


def release_files(directory: str) -> list[str]:
    """Paths, relative to `directory` and sorted, of the files that make a release."""
    root = Path(directory)
    return sorted(
        path.relative_to(root).as_posix()
        for path in root.rglob("*")
        if path.is_file() and not LEFT_OUT & set(path.relative_to(root).parts)
    )


def prefect_release(directory: str) -> str:
    """Twelve hexadecimal digits of the SHA-256 of names and contents of the files of a release.

    Raises:
        FileNotFoundError: the directory has no requirements.txt.
    """
    root = Path(directory)
    if not (root / "requirements.txt").is_file():
        raise FileNotFoundError(f'"{directory}" has no file "requirements.txt", which a release needs')
    digest = hashlib.sha256()
    for name in release_files(directory):
        content = (root / name).read_bytes()
        # With lengths, so that no two different directories give the same stream.
        digest.update(f"{len(name)}:{name}:{len(content)}:".encode() + content)
    return digest.hexdigest()[:12]


class FilterModule:
    """Makes the filters known to Ansible."""

    def filters(self) -> dict[str, Any]:
        return {
            "prefect_release": prefect_release,
            "prefect_release_files": lambda directory: [f"{directory}/{name}" for name in release_files(directory)],
        }
