"""The lines of the audit in the journal, and in the files that they are kept in."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from prefect_backups.errors import Code, Failure

#: Any process can write CONTAINER_NAME, CONTAINER_TAG and PRIORITY into the journal; a field that begins with an underscore is
#: journald's own. So this takes what the Docker engine alone writes (caddy/fail2ban/filter.d/prefect.conf does the same), of the
#: server's container what went to stdout, and there are nothing but these lines (compose/server/access/lines.py). The tag is
#: compose.yml's: another container that takes the name while the server's is away has it not.
MATCHES = (
    "_SYSTEMD_UNIT=docker.service",
    "_UID=0",
    "CONTAINER_NAME=prefect-server",
    "CONTAINER_TAG=prefect-server",
    "PRIORITY=6",
)
#: How each line begins.
FIRST = '{"audit": 1, '


@dataclass(frozen=True)
class Line:
    """One line of the audit."""

    #: Where it is in the journal: no two lines have the same.
    cursor: str
    #: As the server wrote it (compose/server/access/audit.py, Entry).
    entry: dict[str, Any]

    @property
    def time(self) -> str:
        """ISO 8601 in UTC, with milliseconds."""
        return str(self.entry["time"])

    def kept(self) -> str:
        """As it is kept in a file, with its end of line."""
        return json.dumps({**self.entry, "cursor": self.cursor}) + "\n"


def _entry(found: Any) -> dict[str, Any] | None:
    """What a line of the audit has at least; None: it is none."""
    return found if isinstance(found, dict) and found.get("audit") == 1 and isinstance(found.get("time"), str) else None


def of_journal(text: str) -> Line | None:
    """A line of `journalctl --output=json`; None where its message is none of the audit's."""
    try:
        found = json.loads(text)
        message, cursor = found["MESSAGE"], found["__CURSOR"]
        # What is no text comes as a list of numbers.
        if not isinstance(message, str) or not message.startswith(FIRST):
            return None
        entry = _entry(json.loads(message))
    except (ValueError, KeyError, TypeError):
        return None
    return Line(str(cursor), entry) if entry else None


def of_file(text: str) -> Line | None:
    """A line that was kept; None where it is damaged."""
    try:
        found = _entry(json.loads(text))
    except ValueError:
        return None
    if not found or not isinstance(found.get("cursor"), str):
        return None
    return Line(found.pop("cursor"), found)


def command(cursor: str) -> list[str]:
    """The journalctl that gives what there is from a cursor on, that one included; all, where it is empty.

    A cursor whose entry is gone stands for the moment that it was written.
    """
    start = [f"--cursor={cursor}"] if cursor else []
    fields = "--output-fields=MESSAGE"
    return ["journalctl", "--quiet", "--no-pager", "--output=json", fields, *start, *MATCHES]


def after(cursor: str, known: Iterable[str] = ()) -> Iterator[Line]:
    """The lines of the journal after a cursor, oldest first. Raises Failure where journalctl fails.

    Args:
        known: cursors of further lines that are left out.
    """
    left_out = {cursor, *known}
    environment = {"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C.UTF-8"}
    try:
        process = subprocess.Popen(
            command(cursor),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            env=environment,
        )
    except OSError as error:
        raise Failure(Code.FILES, f"journalctl cannot be started: {error.strerror}") from error
    with process:
        try:
            for text in process.stdout or ():
                line = of_journal(text)
                if line is not None and line.cursor not in left_out:
                    yield line
        except BaseException:
            # Nobody wants the rest.
            process.terminate()
            raise
        words = (process.stderr.read() if process.stderr else "").strip()
    if process.returncode:
        raise Failure(Code.FILES, f'the journal cannot be read: "{words}"', "see: journalctl --verify")
