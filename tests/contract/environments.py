"""An environment for each supported version of Prefect, made once per machine from its lock beside this file."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import yaml

HERE = Path(__file__).resolve().parent
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "prefect-kit" / "contract"
VERSIONS = HERE.parents[1] / "ansible" / "roles" / "prefect" / "vars" / "main.yml"
#: The versions of Prefect that the kit supports, the newest last. Each has prefect-VERSION.in and its lock here.
SUPPORTED = tuple(yaml.safe_load(VERSIONS.read_text())["__prefect_supported_versions"])


def lock_of(version: str) -> Path:
    """The lock of a version's environment."""
    return HERE / f"prefect-{version}.txt"


def place_of(lock: Path, cache: Path = CACHE) -> Path:
    """Where the environment of a lock lies: by the lock's content and the Python that it is made with."""
    made_of = lock.read_bytes() + f"{sys.base_prefix} {sys.version}".encode()
    return cache / hashlib.sha256(made_of).hexdigest()[:20]


def python_of(version: str) -> Path:
    """The Python of a version's environment, which is made where it is missing."""
    lock = lock_of(version)
    place = place_of(lock)
    if not place.is_dir():
        _make(lock, place)
    return place / "bin" / "python"


def _make(lock: Path, place: Path) -> None:
    uv = Path(sys.executable).with_name("uv")
    place.parent.mkdir(parents=True, exist_ok=True)
    # Beside its place, and renamed when it is whole: an interrupted one is never taken for an environment.
    new = Path(tempfile.mkdtemp(prefix=f".{place.name}-", dir=place.parent))
    try:
        subprocess.run([uv, "venv", "--quiet", "--allow-existing", "--python", sys.executable, new], check=True)
        words = [uv, "pip", "install", "--quiet", "--python", new / "bin" / "python", "--require-hashes", "-r", lock]
        # Compiled once here, and not in part by each process that imports it.
        subprocess.run([*words, "--compile-bytecode"], check=True)
        # Its programs name the old directory; only its Python is used.
        new.rename(place)
    except OSError:
        # Another process was faster.
        if not place.is_dir():
            raise
    finally:
        shutil.rmtree(new, ignore_errors=True)
