"""The clock of a host beside that of the server it works for. Standard library only.

`timedatectl` says whether a clock is set by somebody; not whether it is right where nobody sets it. The server says its time in
each answer (the header Date, in whole seconds).
"""

from __future__ import annotations

import contextlib
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Iterable
from email.utils import parsedate_to_datetime
from pathlib import Path

from .finding import Finding, graded

#: Seconds between two clocks. A worker starts flow runs so much late, or early, and its states are so much wrong; at a minute the
#: server's windows for what is late and who is silent, of one to two minutes, mean nothing.
OFF_WARNING, OFF_BAD = 10.0, 60.0
#: Seconds for an answer.
PATIENCE = 5.0
CHECK = "clock beside the server's"
WORKERS = Path("/etc/prefect/workers")


def ahead(date: str | None, asked: float, answered: float) -> float | None:
    """Seconds by which this host's clock is ahead of a server's; negative: behind. None where its answer has no date.

    Args:
        date: the header Date of its answer.
        asked: when it was asked, by this host's clock, in seconds since 1970.
        answered: when it had answered.
    """
    try:
        # In whole seconds, cut off.
        at = parsedate_to_datetime(date or "").timestamp() + 0.5
    except ValueError:
        return None
    # The server wrote it somewhere in between: what is within proves nothing.
    return asked - at if asked > at else min(answered - at, 0.0)


def finding(server: str, seconds: float) -> Finding:
    """Whether two clocks say the same.

    Args:
        seconds: by which this host's is ahead.
    """
    limit = f"less than {OFF_WARNING:.0f} s apart"
    level = graded(abs(seconds), OFF_WARNING, OFF_BAD)
    if not level:
        return Finding(CHECK, level, f"the same as that of {server}", limit)
    words = f"{abs(seconds):,.0f} s {'ahead of' if seconds > 0 else 'behind'} that of {server}"
    return Finding(CHECK, level, words, limit, "on both hosts: timedatectl; timedatectl set-ntp true")


def configured(texts: Iterable[str]) -> tuple[str, str] | None:
    """The API that workers use and the file of its authority (empty: the system's), of their environment files; None: of none."""
    for text in texts:
        found = dict(line.split("=", 1) for line in text.splitlines() if "=" in line and not line.startswith("#"))
        if url := found.get("PREFECT_API_URL", ""):
            return url, found.get("PREFECT_API_SSL_CERT_FILE", "")
    return None


def look() -> list[Finding]:
    """Ask the server of this host's workers; none where there is none, or where it does not answer: that is told elsewhere."""
    texts = []
    for path in sorted(WORKERS.glob("*.env")):
        with contextlib.suppress(OSError, UnicodeError):
            texts.append(path.read_text())
    if (server := configured(texts)) is None:
        return []
    url, authority = server
    asked = time.time()
    try:
        context = ssl.create_default_context(cafile=authority or None) if url.startswith("https:") else None
        # Without an account: the refusal has the date, too.
        with urllib.request.urlopen(f"{url}/health", timeout=PATIENCE, context=context) as answer:
            date = answer.headers["Date"]
    except urllib.error.HTTPError as refused:
        date = refused.headers["Date"]
    except (OSError, ValueError):
        return []
    seconds = ahead(date, asked, time.time())
    return [] if seconds is None else [finding(url.split("://", 1)[-1].split("/", 1)[0], seconds)]
