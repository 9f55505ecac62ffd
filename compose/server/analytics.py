"""Prefect's newer UI without analytics: it honours no setting of the server's, but is silent when it has no key for them.

The server copies the UI's files when it starts, to a directory of its own; there the key is taken out of them. Were it not found
in a version of Prefect's, the browser would still be kept at home by the proxy's Content-Security-Policy, with an error in its
console for each page.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

#: A function that gives the key of Amplitude, the same in 3.8.8, 3.9.0 and 3.9.1; and what the UI takes for none.
KEY = re.compile(rb"\breturn`[0-9a-f]{32}`")
NONE = b"return``"


def turn_off(files: Path | None = None) -> list[str]:
    """Take the key out of the UI's files. Gives the names of those that had one.

    Args:
        files: the UI's directory; when unset, where the server has copied it to.
    """
    directory = files or Path(os.environ.get("PREFECT_SERVER_UI_STATIC_DIRECTORY", "/run/prefect-ui")) / "v2"
    changed = []
    for path in sorted(directory.glob("assets/*.js")):
        text, found = KEY.subn(NONE, path.read_bytes())
        if found:
            new = path.with_suffix(".new")
            new.write_bytes(text)
            new.replace(path)
            changed.append(path.name)
    return changed
