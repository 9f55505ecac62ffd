"""Fixtures of several files of unit tests."""

from __future__ import annotations

import os
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture
def delegated() -> Iterator[Path]:
    """A group of this machine's own hierarchy, as systemd hands one over."""
    mounts = [Path("/sys/fs/cgroup/unified"), Path("/sys/fs/cgroup")]
    mount = next((path for path in mounts if (path / "cgroup.procs").exists()), None)
    if mount is None or not os.access(mount, os.W_OK):
        pytest.skip("no control groups (version 2) to write to here")
    path = mount / f"kit-test-{uuid.uuid4().hex[:8]}"
    path.mkdir()
    yield path
    if any(path.iterdir()):
        (path / "cgroup.kill").write_text("1")
        time.sleep(0.2)
        for inner in sorted((one for one in path.glob("**/*") if one.is_dir()), reverse=True):
            inner.rmdir()
    path.rmdir()
