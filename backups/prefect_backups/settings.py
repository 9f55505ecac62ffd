"""The settings in /etc/prefect/backups/settings.json: written by the Ansible role `backups`, read by the tools here.

Every field is documented where it is declared. An unknown or missing field, or a value of another type, is refused
with its name: a misspelt setting must not be a backup that is not made.
"""

from __future__ import annotations

import dataclasses
import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast, get_args, get_origin, get_type_hints

from .errors import Code, Failure

# Another place for tests of the tools themselves.
DIRECTORY = Path(os.environ.get("PREFECT_BACKUPS_ETC", "/etc/prefect/backups"))
FILE = DIRECTORY / "settings.json"


@dataclass(frozen=True)
class Keep:
    """How many backups are kept, as restic counts them: the last of each of so many hours, days, weeks, months."""

    hourly: int = 24
    daily: int = 7
    weekly: int = 5
    monthly: int = 12


@dataclass(frozen=True)
class Offsite:
    """A further repository, of any kind that restic knows."""

    name: str
    # restic's address: s3:…, sftp:user@host:/path, rest:https://…, rclone:remote:path, or a path.
    repository: str
    # What that kind needs in its environment, such as AWS_ACCESS_KEY_ID. Secret.
    environment: dict[str, str] = field(default_factory=dict)
    # restic's extended options (-o), such as sftp.args=-i /etc/prefect/backups/offsite/NAME.key.
    options: list[str] = field(default_factory=list)
    # False for a repository that only takes (append-only): it is pruned by whoever owns it.
    prune: bool = True


@dataclass(frozen=True)
class Endpoint:
    """Where Prefect is reached from outside, for the smoke flow after a restore."""

    url: str
    user: str
    password_file: str
    # PEM file of the authority that its certificate comes from.
    ca_file: str
    # Deployment that proves that everything works, and the task runs that it must have made.
    deployment: str = "prefect-kit/smoke"
    task_runs: int = 3
    # Seconds until it must have ended: a worker that has just started polls, and starts a process.
    seconds: int = 180


@dataclass(frozen=True)
class Settings:
    """All that the tools know about this host."""

    # Version of this kit, for the manifest.
    kit: str
    endpoint: Endpoint
    # Path of the local repository, and the password of it and of the off-site ones.
    repository: str = "/var/backups/prefect/repository"
    password_file: str = "/etc/prefect/backups/password"
    offsite: list[Offsite] = field(default_factory=list)
    keep: Keep = field(default_factory=Keep)
    # Files and directories that go into each backup beside the database, and what of them does not.
    files: list[str] = field(default_factory=list)
    exclude: list[str] = field(default_factory=list)
    # Processes of pg_dump and pg_restore.
    jobs: int = 2
    # Free disk space in MiB that no backup, verification or restore may touch.
    reserve_mb: int = 1024
    # After how many hours without a backup, and days without a verification, somebody is told.
    max_age_hours: float = 3
    verify_max_age_days: float = 9
    # Most memory in MiB of the throwaway Postgres of a verification.
    verify_memory_mb: int = 384
    # Seconds that Postgres and the server may each take to start: stack_start_timeout of the inventory.
    start_seconds: int = 900
    # Days that the database of before a restore is kept for `prefect-restore --undo`.
    keep_previous_days: float = 7
    # Days that each line of the audit is kept at least.
    audit_keep_days: float = 365
    # Where things are on this host.
    staging: str = "/var/backups/prefect/staging"
    verify_directory: str = "/var/backups/prefect/verify"
    state: str = "/var/lib/prefect/backups"
    socket: str = "/var/lib/prefect/postgres/socket"
    audit: str = "/var/lib/prefect/audit"
    encryption_key: str = "/etc/prefect/secrets/encryption_key"
    compose_file: str = "/opt/prefect/compose/compose.yml"
    compose_environment: str = "/etc/prefect/stack.env"


def build(kind: Any, value: Any, where: str, file: Path, tag: str) -> Any:
    """`value` from JSON as `kind`, checked. Raises Failure.

    Args:
        where: its name in the file.
        file: for messages, like `tag`: that of the playbook that writes it.
    """

    def refuse(wanted: str) -> Failure:
        return Failure(
            Code.SETTINGS,
            f"{file}: {where or 'the whole'} is {json.dumps(value)}, but must be {wanted}",
            f"the file is written by: ansible-playbook site.yml --tags {tag}",
        )

    def inner(kind: Any, value: Any, where: str) -> Any:
        return build(kind, value, where, file, tag)

    if dataclasses.is_dataclass(kind):
        if not isinstance(value, dict):
            raise refuse("an object")
        hints = get_type_hints(kind)
        known = {one.name: one for one in dataclasses.fields(kind)}
        prefix = f"{where}." if where else ""
        for name in value.keys() - known.keys():
            raise Failure(Code.SETTINGS, f"{file}: {prefix}{name} is not a setting", f"settings: {', '.join(known)}")
        for name, one in known.items():
            missing = one.default is dataclasses.MISSING and one.default_factory is dataclasses.MISSING
            if missing and name not in value:
                raise Failure(Code.SETTINGS, f"{file}: {prefix}{name} is missing", f"run site.yml --tags {tag}")
        return cast(type, kind)(**{name: inner(hints[name], item, f"{prefix}{name}") for name, item in value.items()})
    origin, arguments = get_origin(kind), get_args(kind)
    if origin is list:
        if not isinstance(value, list):
            raise refuse("a list")
        return [inner(arguments[0], item, f"{where}[{index}]") for index, item in enumerate(value)]
    if origin is dict:
        if not isinstance(value, dict):
            raise refuse("an object")
        return {name: inner(arguments[1], item, f"{where}.{name}") for name, item in value.items()}
    if kind is bool or isinstance(value, bool):
        if kind is not bool or not isinstance(value, bool):
            raise refuse("true or false" if kind is bool else "a number" if kind in (int, float) else "text")
        return value
    if kind is float and isinstance(value, int | float) and value >= 0:
        return float(value)
    if kind is int and isinstance(value, int) and value >= 0:
        return value
    if kind is str and isinstance(value, str):
        return value
    raise refuse({int: "a whole number from 0 up", float: "a number from 0 up", str: "text"}[kind])


def parse(text: str) -> Settings:
    """Settings from the file's text. Raises Failure with the name of what is wrong."""
    value = as_json(text, FILE, "backups")
    # As it was called until 0.4: an upgrade of the kit may have been cut off before it wrote the settings.
    if isinstance(value, dict) and "door" in value and "endpoint" not in value:
        value["endpoint"] = value.pop("door")
    # Until 0.5 they were here; now they are prefect-watch's.
    if isinstance(value, dict):
        value.pop("notify_urls", None)
        value.pop("notify_again_hours", None)
    settings: Settings = build(Settings, value, "", FILE, "backups")
    return settings


def as_json(text: str, file: Path, tag: str) -> Any:
    """The value of a file of settings. Raises Failure."""
    try:
        return json.loads(text)
    except ValueError as error:
        raise Failure(Code.SETTINGS, f"{file} is not JSON: {error}", f"run site.yml --tags {tag}") from error


def text_of(file: Path, tag: str) -> str:
    """What a file of settings says. Raises Failure when it is missing or unreadable."""
    try:
        return file.read_text()
    except PermissionError as error:
        raise Failure(Code.SETTINGS, f"{file} cannot be read by this user", "run it as root: sudo …") from error
    except OSError as error:
        raise Failure(
            Code.SETTINGS, f"{file} cannot be read: {error.strerror}", f"run: ansible-playbook site.yml --tags {tag}"
        ) from error


def load() -> Settings:
    """The settings of this host. Raises Failure when they are missing, unreadable or wrong."""
    return parse(text_of(FILE, "backups"))
