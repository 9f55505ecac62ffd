"""What the end of one of the kit's units means, for a person: what has happened, what to do now, and what is true of the backups."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from .errors import Code

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
    Code.NOTIFY: Meaning("a person could not be told of something", "prefect-watch test; see watch_notify_urls"),
    Code.FILES: Meaning("files that belong into the backup cannot be read", "prefect-backup create"),
    Code.FOREIGN: Meaning(
        "a database of yours has a name that a restore needs",
        "rename it, as the last log lines below say; then run it again",
    ),
    Code.REHEARSAL: Meaning(
        "an upgrade was not rehearsed, or its rehearsal failed; nothing has changed", "prefect-upgrade --rehearse IMAGE"
    ),
    Code.UPGRADE: Meaning("an upgrade failed, and was taken back", "journalctl -u 'prefect-upgrade*' -n 50"),
}
#: Results of a unit that systemd or the kernel has ended.
ENDED = ("signal", "core-dump", "oom-kill", "timeout", "watchdog")


def meaning_of(unit: str, shown: Mapping[str, str]) -> Meaning:
    """What the end of a unit means.

    Args:
        shown: what systemd says of it: Result, ExecMainStatus.
    """
    result, status = shown.get("Result", ""), shown.get("ExecMainStatus", "")
    if result in ENDED:
        return Meaning(f"it was ended ({result})", f"free -h; df -h; then start it again: systemctl start {unit}")
    if status.isdigit() and int(status) > 128:
        return Meaning(f"it was stopped by signal {int(status) - 128}", f"start it again: systemctl start {unit}")
    if status.isdigit() and int(status) in set(Code):
        return MEANINGS[Code(int(status))]
    return Meaning("an unknown error", "read its last log lines below", "Earlier backups were not touched.")
