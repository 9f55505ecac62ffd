"""Tell a person that a unit has failed: started by OnFailure=prefect-notify@UNIT.service; or of crashed flow runs.

The same failure is told once in a while only, and told anew when it comes back after a success. The addresses are
secret: they are never printed, nor is what a service answers.
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import socket
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path

import apprise

from . import crashes
from . import settings as settings_module
from .errors import Code, Failure
from .postgres import Postgres
from .settings import Settings

LINES = 15

# For a person: what an exit code means, and what to do now.
MEANINGS = {
    Code.SETTINGS: ("the settings of the backups are missing or wrong", "ansible-playbook site.yml --tags backups"),
    Code.BUSY: ("something else was at work all the time", "systemctl list-units 'prefect-*' ; then run it again"),
    Code.WRONG_KEY: ("the repository does not open with our password", "put back the one from the recovery kit"),
    Code.NO_REPOSITORY: (
        "the repository is not there",
        "is its disk mounted, is its address right? ls /var/backups/prefect",
    ),
    Code.DAMAGED: (
        "the repository, or a backup in it, is not whole",
        "restic check --read-data; do not delete anything; copies off-site: prefect-backup list --repository all",
    ),
    Code.NO_ROOM: ("there is no room for it", "df -h; prefect-backup prune; docker system prune"),
    Code.NO_DATABASE: ("Postgres does not answer", "docker ps --all; docker logs --tail 50 prefect-postgres"),
    Code.DUMP: (
        "pg_dump failed: data may be damaged",
        "docker logs --tail 50 prefect-postgres; prefect-restore --list",
    ),
    Code.OFFSITE: ("the backup here is good, a copy off-site is not", "prefect-backup check --offsite"),
    Code.MISMATCH: ("a backup does not come back as it was made", "prefect-backup create && prefect-backup verify"),
    Code.OVERDUE: ("a backup, a copy or a verification is overdue", "prefect-backup check; systemctl list-timers"),
    Code.FILES: ("files that belong into the backup cannot be read", "prefect-backup create"),
}


def text(unit: str, shown: dict[str, str], lines: str, host: str) -> tuple[str, str]:
    """Title and body of the message.

    Args:
        shown: what systemd says of the unit: Result, ExecMainStatus.
        lines: the end of its journal.
    """
    status = shown.get("ExecMainStatus", "?")
    meaning, action = _meaning(unit, shown)
    body = (
        f"{unit} on {host} failed: {meaning} (result {shown.get('Result', '?')}, exit code {status}).\n"
        f"Earlier backups are whole.\n\nWhat to do now, on {host} as root:\n  {action}\n  journalctl -u {unit} -n 50\n\n"
        f"Its last words:\n{lines.strip() or '(none)'}\n"
    )
    return f"{host}: {unit} failed", body


def _meaning(unit: str, shown: dict[str, str]) -> tuple[str, str]:
    result = shown.get("Result", "")
    if result in ("signal", "core-dump", "oom-kill", "timeout", "watchdog"):
        return f"it was ended ({result})", f"free -h; df -h; then start it again: systemctl start {unit}"
    status = shown.get("ExecMainStatus", "")
    if status.isdigit() and int(status) > 128:
        return f"it was stopped by signal {int(status) - 128}", f"start it again: systemctl start {unit}"
    with contextlib.suppress(ValueError):
        return MEANINGS[Code(int(status))]
    return "an error that it does not know", "look at its last words below"


def stamp(state: Path, unit: str, shown: dict[str, str]) -> Path:
    """The file whose age says when a person was last told of this failure of this unit."""
    return state / "notified" / f"{unit}@{shown.get('Result', '')}-{shown.get('ExecMainStatus', '')}"


def told(stamped: float | None, now: float, again_hours: float) -> bool:
    """Whether a person has been told of it lately; `stamped` and `now` in seconds since 1970."""
    return stamped is not None and 0 <= now - stamped < again_hours * 3600


def forget(state: Path, unit: str) -> None:
    """The unit has succeeded: its next failure is news."""
    for path in (state / "notified").glob(f"{unit}@*"):
        path.unlink(missing_ok=True)


def send(urls: list[str], title: str, body: str) -> None:
    """Send to each address. Raises Failure (NOTIFY) that names those that failed by number and kind only."""
    failed = []
    for number, url in enumerate(urls, 1):
        target = apprise.Apprise()
        if not target.add(url) or not target.notify(body=body, title=title, body_format=apprise.NotifyFormat.TEXT):
            kind = url.split("://", 1)[0] if "://" in url else "not an address"
            failed.append(f"number {number} ({kind})")
    if failed:
        raise Failure(
            Code.NOTIFY,
            f"a person could not be told: of {len(urls)} addresses failed {', '.join(failed)}",
            "look at backups_notify_urls, and at whether this host gets there",
        )


def _show(unit: str) -> dict[str, str]:
    said = subprocess.run(
        ["systemctl", "show", unit, "--property=Result,ExecMainStatus"], capture_output=True, text=True, check=False
    )
    return dict(line.split("=", 1) for line in said.stdout.splitlines() if "=" in line)


def _journal(unit: str) -> str:
    command = ["journalctl", "--quiet", "--no-pager", "--output=cat", f"--lines={LINES}", f"--unit={unit}"]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout


def notify(settings: Settings, unit: str) -> str:
    """Tell a person, unless that was done lately; gives what was done, for the journal. Raises Failure."""
    if not settings.notify_urls:
        return f"{unit} failed, and nobody is told: backups_notify_urls is empty"
    shown = _show(unit)
    mark = stamp(Path(settings.state), unit, shown)
    when = mark.stat().st_mtime if mark.exists() else None
    if told(when, time.time(), settings.notify_again_hours):
        return f"{unit} failed again; told less than {settings.notify_again_hours:g} hours ago"
    title, body = text(unit, shown, _journal(unit), socket.gethostname())
    send(settings.notify_urls, title, body)
    mark.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    mark.touch()
    return f"{unit} failed; told {len(settings.notify_urls)} addresses"


def notify_crashes(settings: Settings) -> str:
    """Tell a person of the flow runs that crashed since the last look; gives what was done. Raises Failure."""
    path, now = Path(settings.state) / "notified" / "crashes.json", datetime.now(UTC)
    found = crashes.crashes(Postgres.live(settings), crashes.since(path, now), now)
    if found and settings.notify_urls:
        # Before it is noted: told twice is better than not told.
        send(settings.notify_urls, *crashes.text(found, socket.gethostname(), settings.door.url))
    crashes.note(path, now)
    return f"{len(found)} flow runs crashed; told {len(settings.notify_urls) if found else 0} addresses"


def main() -> int:
    """The command; gives the exit code."""
    parser = argparse.ArgumentParser(prog="prefect-notify", description="Tell a person what has failed.")
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("unit", nargs="?", help="a unit that failed, such as prefect-backup.service")
    what.add_argument("--crashes", action="store_true", help="the flow runs that crashed since the last time")
    options = parser.parse_args()
    # apprise logs addresses when it fails.
    logging.disable(logging.CRITICAL)
    try:
        settings = settings_module.load()
        if options.crashes:
            print(notify_crashes(settings))
        else:
            print(notify(settings, options.unit if "." in options.unit else f"{options.unit}.service"))
    except Failure as failure:
        print(failure, file=sys.stderr)
        return failure.code.value
    return 0
