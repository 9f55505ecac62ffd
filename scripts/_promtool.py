"""promtool, which reads Prometheus' configuration and rules and runs their tests: the machine's own, or Debian's, kept in a cache.

No Python package has it. Debian has: in `promtool` (Debian 13, 16 MB), or in `prometheus` (Debian 12, 19 MB), of which this one
program is taken. Nothing is installed or started, and apt has checked where it comes from.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tarfile
import tempfile
from pathlib import Path

CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "prefect-kit" / "promtool"
PACKAGES = ("promtool", "prometheus")


def there(cache: Path = CACHE) -> str:
    """The path of promtool; empty where this machine has none."""
    kept = cache / "promtool"
    return shutil.which("promtool") or (str(kept) if kept.exists() else "")


def ensure(cache: Path = CACHE) -> str:
    """The same, after it was fetched where that is possible."""
    if found := there(cache):
        return found
    place = cache / "promtool"
    if not (shutil.which("apt-get") and shutil.which("dpkg-deb")):
        return ""
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache) as directory:
        package = _download(Path(directory))
        if package is None:
            return ""
        new = Path(directory) / "promtool"
        if not _extract(package, new):
            return ""
        new.chmod(0o755)
        new.rename(place)
    return str(place)


def _download(directory: Path) -> Path | None:
    """The package; the lists of packages are fetched where there are none yet."""
    attempts = [[], ["apt-get", "-qq", "update"]] if os.geteuid() == 0 else [[]]
    for before in attempts:
        if before:
            subprocess.run(before, capture_output=True)
        for package in PACKAGES:
            # Quiet: as root apt says that its own user cannot write there, which is no harm.
            subprocess.run(["apt-get", "-qq", "download", package], cwd=directory, capture_output=True)
            if found := list(directory.glob("*.deb")):
                return found[0]
    return None


def _extract(package: Path, target: Path) -> bool:
    """Write the one program; whether it was there."""
    with subprocess.Popen(["dpkg-deb", "--fsys-tarfile", package], stdout=subprocess.PIPE) as reader:
        assert reader.stdout is not None
        with tarfile.open(fileobj=reader.stdout, mode="r|") as archive:
            for member in archive:
                content = archive.extractfile(member) if member.name == "./usr/bin/promtool" else None
                if content is not None:
                    with target.open("wb") as file:
                        shutil.copyfileobj(content, file)
                    # The rest is not read: dpkg-deb ends by the closed pipe.
                    reader.kill()
                    return True
    return False
