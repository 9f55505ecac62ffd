"""Tell a person that a unit has failed: started by OnFailure=prefect-notify@UNIT.service; or of crashed flow runs.

The same failure is told once in a while only, and told at once when it comes back after a success. What cannot be
delivered is kept and tried again (outbox.py). The addresses are secret: they are never printed, nor is what a service
answers.
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import apprise

from . import crashes, outbox
from . import settings as settings_module
from .errors import Code, Failure
from .postgres import Postgres
from .settings import Settings

LINES = 15

# What is true of the backups that were made before, in each case.
WHOLE = "Earlier backups are whole."
LOCKED = "Earlier backups can be read again when the right password is back."
UNKNOWN = "Whether earlier backups are whole is not known as long as the repository is not reached."
DAMAGED = "Earlier backups may be damaged too: prove them before you need one."
DIFFERENT = "Other backups may have the same fault: prove them before you need one."


@dataclass(frozen=True)
class Meaning:
    """For a person: what an exit code means, what to do now, and what is true of earlier backups."""

    what: str
    do: str
    earlier: str = WHOLE


# Each code that there is, so that the worst night has words too; a unit test holds that.
MEANINGS = {
    Code.SETTINGS: Meaning(
        "the settings of the backups are missing or wrong", "ansible-playbook site.yml --tags backups"
    ),
    Code.BUSY: Meaning(
        "something else was at work all the time", "systemctl list-units 'prefect-*' ; then run it again"
    ),
    Code.WRONG_KEY: Meaning(
        "the repository does not open with our password", "put back the one from the recovery kit", LOCKED
    ),
    Code.NO_REPOSITORY: Meaning(
        "the repository is not there", "is its disk mounted, is its address right? ls /var/backups/prefect", UNKNOWN
    ),
    Code.DAMAGED: Meaning(
        "the repository, or a backup in it, is not whole",
        "restic check --read-data; do not delete anything; copies off-site: prefect-backup list --repository all",
        DAMAGED,
    ),
    Code.NO_ROOM: Meaning("there is no room for it", "df -h; prefect-backup prune; docker system prune"),
    Code.NO_DATABASE: Meaning("Postgres does not answer", "docker ps --all; docker logs --tail 50 prefect-postgres"),
    Code.DUMP: Meaning(
        "pg_dump failed: data may be damaged", "docker logs --tail 50 prefect-postgres; prefect-restore --list"
    ),
    Code.OFFSITE: Meaning("the backup here is good, a copy off-site is not", "prefect-backup check --offsite"),
    Code.MISMATCH: Meaning(
        "a backup does not come back as it was made", "prefect-backup create && prefect-backup verify", DIFFERENT
    ),
    Code.INCOMPATIBLE: Meaning(
        "the backup is of a newer Prefect, Postgres or kit",
        "prefect-restore --list; for a newer Prefect: ansible-playbook upgrade.yml",
    ),
    Code.NOT_FOUND: Meaning("there is no such backup", "prefect-restore --list --from all"),
    Code.SAFETY_BACKUP: Meaning(
        "what is there cannot be backed up before a restore", "prefect-restore --latest --without-safety-backup"
    ),
    Code.RESTORE: Meaning(
        "the restore failed, and the data of before are served", "prefect-restore --list; then another backup: --id ID"
    ),
    Code.NOT_READY: Meaning(
        "a restore did not end: the server or a worker does not come back, or a person has to decide",
        "docker logs --tail 50 prefect-server; then one of: prefect-restore --resume, --undo, --latest",
    ),
    Code.SMOKE: Meaning(
        "all is restored, but the smoke flow failed",
        "docker logs --tail 20 prefect-caddy; systemctl status 'prefect-worker@*'",
    ),
    Code.OVERDUE: Meaning(
        "a backup, a copy or a verification is overdue, or something does not run",
        "prefect-backup check; systemctl list-timers",
    ),
    Code.NO_UNDO: Meaning("there is no restore to undo", "prefect-restore --list"),
    Code.DECLINED: Meaning("nobody has said yes", "run it on a terminal, or with --yes"),
    Code.NOTIFY: Meaning(
        "a person could not be told of something", "see backups_notify_urls; journalctl -u 'prefect-notify@*' -n 50"
    ),
    Code.FILES: Meaning("files that belong into the backup cannot be read", "prefect-backup create"),
    Code.FOREIGN: Meaning(
        "a database of yours has a name that a restore needs", "rename it, as the last words below say; then again"
    ),
    Code.REHEARSAL: Meaning(
        "an upgrade was not rehearsed, or its rehearsal failed; nothing has changed", "prefect-upgrade --rehearse IMAGE"
    ),
    Code.UPGRADE: Meaning("an upgrade failed, and was taken back", "journalctl -u 'prefect-upgrade*' -n 50"),
}
ENDED = ("signal", "core-dump", "oom-kill", "timeout", "watchdog")


def text(unit: str, shown: dict[str, str], lines: str, host: str) -> tuple[str, str]:
    """Title and body of the message.

    Args:
        shown: what systemd says of the unit: Result, ExecMainStatus.
        lines: the end of its journal.
    """
    status = shown.get("ExecMainStatus", "?")
    meaning = meaning_of(unit, shown)
    body = (
        f"{unit} on {host} failed: {meaning.what} (result {shown.get('Result', '?')}, exit code {status}).\n"
        f"{meaning.earlier}\n\nWhat to do now, on {host} as root:\n  {meaning.do}\n  journalctl -u {unit} -n 50\n\n"
        f"Its last words:\n{lines.strip() or '(none)'}\n"
    )
    return f"{host}: {unit} failed", body


def meaning_of(unit: str, shown: dict[str, str]) -> Meaning:
    """What the end of a unit means."""
    result, status = shown.get("Result", ""), shown.get("ExecMainStatus", "")
    if result in ENDED:
        return Meaning(f"it was ended ({result})", f"free -h; df -h; then start it again: systemctl start {unit}")
    if status.isdigit() and int(status) > 128:
        return Meaning(f"it was stopped by signal {int(status) - 128}", f"start it again: systemctl start {unit}")
    if status.isdigit() and int(status) in set(Code):
        return MEANINGS[Code(int(status))]
    return Meaning(
        "an error that it does not know", "look at its last words below", "Earlier backups were not touched."
    )


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


def send(urls: Sequence[str], title: str, body: str) -> tuple[list[str], str]:
    """Send to each address; gives those that failed, and words about them that name them by number and kind only."""
    failed, words = [], []
    for number, url in enumerate(urls, 1):
        target = apprise.Apprise()
        if not target.add(url) or not target.notify(body=body, title=title, body_format=apprise.NotifyFormat.TEXT):
            kind = url.split("://", 1)[0] if "://" in url else "not an address"
            failed.append(url)
            words.append(f"number {number} ({kind})")
    return failed, f"of {len(urls)} addresses failed {', '.join(words)}" if failed else ""


def tell(settings: Settings, title: str, body: str, kept: Callable[[], None] = lambda: None) -> None:
    """Tell people. Raises Failure (NOTIFY) where one could not be told; the message is kept, and tried again."""
    error = outbox.deliver(Path(settings.state), settings.notify_urls, title, body, send, kept)
    if error:
        raise Failure(
            Code.NOTIFY,
            f"a person could not be told: {error}; the message is kept and tried again",
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

    def kept() -> None:
        # What could not be delivered waits, and needs no second message.
        with contextlib.suppress(OSError):
            mark.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            mark.touch()

    tell(settings, title, body, kept)
    return f"{unit} failed; told {len(settings.notify_urls)} addresses"


def notify_crashes(settings: Settings) -> str:
    """Deliver what waits, and tell a person of the flow runs that crashed since the last look. Raises Failure.

    Gives what was done, for the journal.
    """
    # First: it needs no database.
    delivered, left = outbox.again(Path(settings.state), settings.notify_urls, send) if settings.notify_urls else (0, 0)
    waited = f"; {delivered} earlier messages delivered, {left} wait" if delivered or left else ""
    path, now = Path(settings.state) / "notified" / "crashes.json", datetime.now(UTC)
    found = crashes.crashes(Postgres.live(settings), crashes.since(path, now), now)
    if found and settings.notify_urls:
        message = crashes.text(found, socket.gethostname(), settings.endpoint.url)
        tell(settings, *message, kept=lambda: crashes.note(path, now))
    else:
        crashes.note(path, now)
    return f"{len(found)} flow runs crashed; told {len(settings.notify_urls) if found else 0} addresses{waited}"


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
