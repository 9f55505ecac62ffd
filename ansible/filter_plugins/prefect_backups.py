"""Backups as an inventory describes them: what is wrong with that, and what the tools on the host make of it."""

from __future__ import annotations

import itertools
import re
from collections import Counter
from datetime import datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from cryptography.hazmat.primitives import serialization

NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,30}")
NAME_WORDS = "up to 31 lower-case letters, digits and hyphens"
# What --from and --repository take for something else.
RESERVED = ("local", "all", "off-site", "offsite")
BACKUP_ID = re.compile(r"[0-9]{8}T[0-9]{6}Z")
HOST = r"(?P<host>[A-Za-z0-9][A-Za-z0-9.-]*|\[[0-9A-Fa-f:]+\])"
WEB = rf"(?P<url>https?://([^\s/@:]*@)?{HOST}(:(?P<port>[0-9]+))?(/\S*)?)"
# How each kind of repository is written, and an example of it.
ADDRESSES = {
    "s3": (rf"s3:({WEB}|{HOST.replace('host', 'amazon')}/\S+)", "s3:https://s3.example.org/bucket"),
    "sftp": (
        rf"sftp:(//([^\s@/]+@)?{HOST}(:(?P<port>[0-9]+))?/\S+|([^\s@/]+@)?{HOST.replace('host', 'scp')}:\S+)",
        "sftp:user@backup.example.org:/prefect",
    ),
    "rest": (f"rest:{WEB}", "rest:https://backup.example.org:8000/prefect/"),
    "rclone": (r"rclone:(?P<remote>[A-Za-z0-9_-]+):\S*", "rclone:remote:prefect"),
    "b2": (r"b2:[^\s:]+(:\S+)?", "b2:bucket:prefect"),
    "azure": (r"azure:[^\s:]+:/\S*", "azure:container:/"),
    "gs": (r"gs:[^\s:]+:/\S*", "gs:bucket:/"),
    "swift": (r"swift:[^\s:]+:/\S*", "swift:container:/"),
    "path": (r"/\S+", "/mnt/nas/prefect"),
}
# What each kind needs in its environment: one of each row.
NEEDED: dict[str, list[tuple[str, ...]]] = {
    "s3": [("AWS_ACCESS_KEY_ID",), ("AWS_SECRET_ACCESS_KEY",)],
    "b2": [("B2_ACCOUNT_ID",), ("B2_ACCOUNT_KEY",)],
    "azure": [("AZURE_ACCOUNT_NAME",), ("AZURE_ACCOUNT_KEY", "AZURE_ACCOUNT_SAS")],
    "gs": [("GOOGLE_APPLICATION_CREDENTIALS", "GOOGLE_ACCESS_TOKEN")],
    "swift": [("OS_AUTH_URL", "ST_AUTH", "OS_STORAGE_URL")],
}
# Where the units may write to repositories on mounted disks (ReadWritePaths).
DISKS = ("/mnt", "/media", "/srv")
ELAPSE = re.compile(r"(\d{4}-\d\d-\d\d \d\d:\d\d:\d\d) UTC$", re.MULTILINE)


def _quoted(value: Any) -> str:
    return f'"{value}"'


def scheme(repository: str) -> str:
    """The kind of repository that an address is of, known or not."""
    return "path" if repository.startswith("/") else repository.partition(":")[0]


def _address(repository: str) -> re.Match[str] | None:
    pattern = ADDRESSES.get(scheme(repository))
    return re.fullmatch(pattern[0], repository) if pattern else None


def offsite_host(entry: dict[str, Any]) -> tuple[str, int] | None:
    """Host and TCP port of a repository whose address is right; none where that cannot be told from it."""
    found, environment = _address(entry["repository"]), entry.get("environment") or {}
    kind, parts = scheme(entry["repository"]), found.groupdict() if found else {}
    if any(name.lower() in ("https_proxy", "http_proxy", "all_proxy") for name in environment):
        return None
    host = parts.get("host") or parts.get("scp") or parts.get("amazon")
    if host:
        usual = {"sftp": 22}.get(kind, 80 if (parts.get("url") or "").startswith("http:") else 443)
        return host.strip("[]"), int(parts.get("port") or usual)
    if kind == "azure" and "AZURE_ACCOUNT_NAME" in environment:
        suffix = environment.get("AZURE_ENDPOINT_SUFFIX", "core.windows.net")
        return f"{environment['AZURE_ACCOUNT_NAME']}.blob.{suffix}", 443
    if kind == "swift" and urlsplit(environment.get("OS_AUTH_URL", "")).hostname:
        url = urlsplit(environment["OS_AUTH_URL"])
        return url.hostname, url.port or (80 if url.scheme == "http" else 443)
    return {"b2": ("api.backblazeb2.com", 443), "gs": ("storage.googleapis.com", 443)}.get(kind)


def offsite_problems(entry: dict[str, Any]) -> list[str]:
    """What is wrong with one off-site repository; never says a value of its environment."""
    where, repository = f"backups_offsite: {_quoted(entry['name'])}", entry["repository"]
    environment, kind = entry.get("environment", {}), scheme(entry["repository"])
    if not NAME.fullmatch(entry["name"]):
        return [f"backups_offsite: the name {_quoted(entry['name'])} is not allowed; allowed are {NAME_WORDS}"]
    if entry["name"] in RESERVED:
        return [
            f"backups_offsite: the name {_quoted(entry['name'])} is not allowed: prefect-restore --from {entry['name']} means"
            " something else; give it another name"
        ]
    if re.match(r"(rest|s3|sftp):(https?:)?/*[^\s/@]*:[^\s/@]*@", repository):
        return [
            f"{where}: its repository holds a password, which logs and the process list would show; take it out (rest: has "
            "RESTIC_REST_USERNAME and RESTIC_REST_PASSWORD in its environment)"
        ]
    found = _address(repository)
    if not found:
        allowed = f"such as {ADDRESSES[kind][1]}" if kind in ADDRESSES else ", ".join(x[1] for x in ADDRESSES.values())
        return [f"{where}: its repository is {_quoted(repository)}; it must be an address of restic's: {allowed}"]
    problems = [
        f"{where}: {name} in its environment must be a name and text in quotes"
        for name, value in environment.items()
        if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", str(name)) or not isinstance(value, str)
    ]
    needed = list(NEEDED.get(kind, []))
    if kind == "rclone":
        needed = [("RCLONE_CONFIG", f"RCLONE_CONFIG_{found['remote'].upper().replace('-', '_')}_TYPE")]
    problems += [
        f"{where}: a repository {kind}: needs {' or '.join(names)} in its environment"
        for names in needed
        if not set(names) & set(environment)
    ]
    if kind == "path" and (".." in Path(repository).parts or not repository.startswith(tuple(f"{x}/" for x in DISKS))):
        problems.append(
            f"{where}: its repository is {_quoted(repository)}; a path must be of another disk, which is mounted below "
            f"{', '.join(DISKS[:-1])} or {DISKS[-1]}"
        )
    return problems + (_ssh_problems(where, entry) if kind == "sftp" else [])


def _ssh_problems(where: str, entry: dict[str, Any]) -> list[str]:
    """What is wrong with how an SFTP server is known, and with the key for it."""
    problems = []
    host, port = offsite_host(entry) or ("", 22)
    known_as = host if port == 22 else f"[{host}]:{port}"
    lines = [line.split() for line in entry.get("known_hosts", "").splitlines() if line.strip()]
    # A hashed name says nothing to us; ssh will tell.
    if not any(len(line) > 2 and (line[0].startswith("|1|") or known_as in line[0].split(",")) for line in lines):
        scan = f"ssh-keyscan {host}" if port == 22 else f"ssh-keyscan -p {port} {host}"
        problems.append(
            f"{where}: its known_hosts has no line for {_quoted(known_as)}, so nobody could tell that server from another; "
            f"run: {scan}, compare the keys with those that its owner names (ssh-keygen -lf FILE), and set known_hosts to the lines"
        )
    key = entry.get("ssh_private_key")
    if key and not _is_private_key(key):
        problems.append(
            f"{where}: its ssh_private_key is {_quoted(key)}; it must be the absolute path on the control machine of a "
            "private key that is free of a passphrase"
        )
    return problems


def _is_private_key(path: str) -> bool:
    if not Path(path).is_absolute() or not Path(path).is_file():
        return False
    for load in (serialization.load_ssh_private_key, serialization.load_pem_private_key):
        try:
            load(Path(path).read_bytes(), None)
        except (ValueError, TypeError):
            continue
        return True
    return False


def prefect_backup_problems(settings: dict[str, Any]) -> list[str]:
    """What is wrong with the settings of backups and restores, one sentence each; `settings` are of the right types.

    Nothing is said where there are none: what cannot be read has been told already.
    """
    if not settings:
        return []
    problems = [problem for entry in settings["backups_offsite"] for problem in offsite_problems(entry)]
    names = Counter(entry["name"] for entry in settings["backups_offsite"])
    problems += [
        f"backups_offsite: the name {_quoted(name)} stands twice" for name, count in names.items() if count > 1
    ]
    keep = settings["backups_keep"]
    problems += [
        f"backups_keep: {period} is {_quoted(number)}; it must be {least} or more"
        for period, number in keep.items()
        if number < (least := 1 if period == "hourly" else 0)
    ]
    wanted = settings["prefect_restore_from"]
    if wanted and wanted != "latest" and not BACKUP_ID.fullmatch(wanted):
        problems.append(
            f"prefect_restore_from is {_quoted(wanted)}; it must be latest, or the id of a backup such as 20261121T051200Z"
        )
    return problems


def prefect_backup_host_problems(seen: dict[str, Any]) -> list[str]:
    """What keeps the host from backing up or from being restored, one sentence each.

    Args:
        seen: `calendars`: setting, expression, return code and output of systemd-analyze calendar (the next times, in
            UTC) for the backups and the verifications, as Ansible registers a loop; `delay_seconds` and
            `max_age_hours` of backups; `offsite`: what wait_for said of each host, the same way; `restore_from`, the
            setting; `restored_from`, what the host says it was made from, or empty; `flow_runs`, how many it has: a
            number, or empty where its database does not answer.
    """
    problems = [
        f"{calendar['item']} is {_quoted(calendar['cmd'][-1])}, which its systemd does not take; it must be a calendar "
        "expression such as hourly, *:0/30 or Sun 04:00 (man systemd.time)"
        for calendar in seen["calendars"]
        if calendar["rc"]
    ]
    times = [datetime.fromisoformat(time) for time in ELAPSE.findall(seen["calendars"][0]["stdout"])]
    gaps = [(later - earlier).total_seconds() for earlier, later in itertools.pairwise(times)]
    hours = (max(gaps, default=0) + seen["delay_seconds"]) / 3600
    if hours > seen["max_age_hours"]:
        problems.append(
            f"backups_schedule lets {hours:.1f} hours pass between two backups, and backups_max_age_hours is "
            f"{_quoted(seen['max_age_hours'])}, so each would be called overdue; set it to {int(hours) + 2} or more"
        )
    problems += [
        f"the off-site repository {_quoted(host['item']['name'])} (backups_offsite) does not answer: there is no way from it "
        f"to {host['item']['host']} port {host['item']['port']} (TCP); check that name, and the firewalls between"
        for host in seen["offsite"]
        if "state" not in host
    ]
    if (
        seen["restore_from"]
        and seen["restored_from"].split(" ")[0] != seen["restore_from"]
        and seen["flow_runs"] != "0"
    ):
        runs = (
            f"has {seen['flow_runs']} flow runs of its own"
            if seen["flow_runs"]
            else "has a database that does not answer"
        )
        problems.append(
            f"it {runs}, and prefect_restore_from is for a new server; to replace what is there, run: "
            f"ansible-playbook restore.yml -e restore_id={seen['restore_from']}"
        )
    return problems


def prefect_offsite_hosts(entries: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Name, host and port of the repositories that can be asked whether they answer."""
    found = ((entry["name"], offsite_host(entry)) for entry in entries)
    return [{"name": name, "host": host[0], "port": host[1]} for name, host in found if host]


def prefect_offsite(entries: list[dict[str, Any]], directory: str) -> list[dict[str, Any]]:
    """The repositories as settings.json has them; keys and known hosts of SFTP servers are in `directory`/offsite."""
    made = []
    for entry in entries:
        options = []
        if scheme(entry["repository"]) == "sftp":
            files = f"{directory}/offsite/{entry['name']}"
            options = [
                f"sftp.args=-F none -i {files}.key -o IdentitiesOnly=yes -o BatchMode=yes -o UserKnownHostsFile={files}.known_hosts"
                " -o StrictHostKeyChecking=yes -o ConnectTimeout=20 -o ServerAliveInterval=20 -o ServerAliveCountMax=6"
            ]
        made.append(
            {
                "name": entry["name"],
                "repository": entry["repository"],
                "environment": entry.get("environment") or {},
                "options": options,
                "prune": str(entry.get("prune", True)).lower() in ("true", "yes", "on", "1"),
            }
        )
    return made


def prefect_restore_arguments(given: dict[str, Any]) -> list[str]:
    """The arguments of prefect-restore for the variables of restore.yml; names without a value are left out.

    Raises:
        ValueError: not exactly one of what to restore is given.
    """
    flags = {"undo": "--undo", "dry_run": "--dry-run", "run_late": "--run-late"}
    flags["without_safety_backup"] = "--without-safety-backup"
    wanted = {name: str(value) for name, value in given.items() if str(value or "").lower() not in ("", "false", "no")}
    which = [name for name in ("id", "before", "undo") if name in wanted]
    if len(which) != 1:
        raise ValueError(
            "set exactly one of restore_id (latest, or the id of a backup), restore_before and restore_undo"
        )
    words = ["--yes"]
    for name, value in wanted.items():
        if name in flags:
            words.append(flags[name])
        elif (name, value) == ("id", "latest"):
            words.append("--latest")
        else:
            words += [f"--{name}", value]
    return words


class FilterModule:
    """Makes the filters known to Ansible."""

    def filters(self) -> dict[str, Any]:
        return {
            "prefect_backup_host_problems": prefect_backup_host_problems,
            "prefect_backup_problems": prefect_backup_problems,
            "prefect_offsite": prefect_offsite,
            "prefect_offsite_hosts": prefect_offsite_hosts,
            "prefect_restore_arguments": prefect_restore_arguments,
        }
