"""What can go wrong, each with an exit code of its own: a script, a timer or a tired person can tell them apart."""

from __future__ import annotations

from enum import IntEnum


class Code(IntEnum):
    """Exit codes of prefect-backup, prefect-restore and prefect-upgrade. 1 is a bug of ours, 2 a wrong command line (argparse)."""

    SETTINGS = 10  # /etc/prefect/backups is missing or wrong
    BUSY = 11  # another backup, verification or restore is at work
    WRONG_KEY = 12  # the repository does not open with our password
    NO_REPOSITORY = 13  # there is no repository at that address
    DAMAGED = 14  # the repository, or a backup in it, is not whole
    NO_ROOM = 15  # the disk would be full
    NO_DATABASE = 16  # Postgres does not answer
    DUMP = 17  # pg_dump failed
    OFFSITE = 18  # the local backup is good; a copy off-site failed
    MISMATCH = 19  # what came back is not what the manifest says
    INCOMPATIBLE = 20  # a backup of a newer Prefect or Postgres
    NOT_FOUND = 21  # no such backup, or none at all
    SAFETY_BACKUP = 22  # what is there now cannot be backed up first
    RESTORE = 23  # pg_restore or the migrations failed; the data of before go on serving
    NOT_READY = 24  # the server or a worker does not come back, or an unfinished restore waits for a decision
    SMOKE = 25  # everything runs, but the smoke flow through the reverse proxy failed
    OVERDUE = 26  # the newest backup, copy or verification is too old
    NO_UNDO = 27  # there is no restore to undo
    DECLINED = 28  # the person said no
    NOTIFY = 29  # a person could not be told
    FILES = 30  # a file that belongs into the backup cannot be read
    FOREIGN = 31  # a database of a person's has a name that a restore needs
    REHEARSAL = 32  # the rehearsal of an upgrade failed, or there is none; nothing has changed
    UPGRADE = 33  # an upgrade failed, and was taken back: what served before serves


class Failure(Exception):
    """An expected failure: the fact with its values quoted, a hint (usually a command), and an exit code."""

    def __init__(self, code: Code, fact: str, hint: str = "") -> None:
        super().__init__(fact)
        self.code = code
        self.fact = fact
        self.hint = hint

    def __str__(self) -> str:
        return f"ERROR: {self.fact}" + (f"\nHINT: {self.hint}" if self.hint else "")
