"""Backups as an inventory describes them: what the preflight says, and what the tools on the host are given."""

from __future__ import annotations

import importlib.util
from dataclasses import fields
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ed25519
from prefect_backups import settings as contract

ROOT = Path(__file__).resolve().parents[2]
ROLE = ROOT / "ansible/roles/backups"


def load(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


backups = load(ROOT / "ansible/filter_plugins/prefect_backups.py")
DEFAULTS = yaml.safe_load((ROLE / "defaults/main.yml").read_text()) | {"prefect_restore_from": ""}
KNOWN = "backup.example.org ssh-ed25519 AAAAC3Nza\n"
AWS = {"AWS_ACCESS_KEY_ID": "unsaid-1", "AWS_SECRET_ACCESS_KEY": "unsaid-2"}


def said(**changes: Any) -> list[str]:
    return backups.prefect_backup_problems({**DEFAULTS, **changes})


def said_of(repository: str, **more: Any) -> list[str]:
    return said(backups_offsite=[{"name": "far", "repository": repository, **more}])


def test_the_defaults_have_no_problem():
    assert said() == []


def test_nothing_is_said_of_settings_that_cannot_be_read():
    assert backups.prefect_backup_problems({}) == []


# --- off-site repositories ---------------------------------------------------------------------------------------

GOOD = [
    ("s3:https://s3.example.org/bucket/prefect", AWS, ("s3.example.org", 443)),
    ("s3:http://10.0.0.7:9000/bucket", AWS, ("10.0.0.7", 9000)),
    ("s3:s3.amazonaws.com/bucket", AWS, ("s3.amazonaws.com", 443)),
    ("rest:https://backup.example.org:8000/prefect/", {}, ("backup.example.org", 8000)),
    ("rest:http://backup.example.org/", {"RESTIC_REST_USERNAME": "a"}, ("backup.example.org", 80)),
    ("b2:bucket:prefect", {"B2_ACCOUNT_ID": "a", "B2_ACCOUNT_KEY": "b"}, ("api.backblazeb2.com", 443)),
    (
        "azure:prefect:/",
        {"AZURE_ACCOUNT_NAME": "ours", "AZURE_ACCOUNT_SAS": "b"},
        ("ours.blob.core.windows.net", 443),
    ),
    ("gs:bucket:/", {"GOOGLE_ACCESS_TOKEN": "a"}, ("storage.googleapis.com", 443)),
    ("swift:prefect:/", {"OS_AUTH_URL": "https://auth.example.org:5000/v3"}, ("auth.example.org", 5000)),
    ("swift:prefect:/", {"ST_AUTH": "a"}, None),
    ("rclone:my-drive:prefect", {"RCLONE_CONFIG_MY_DRIVE_TYPE": "drive"}, None),
    ("/mnt/nas/prefect", {}, None),
    ("s3:https://s3.example.org/bucket", AWS | {"HTTPS_PROXY": "http://proxy:3128"}, None),
]


@pytest.mark.parametrize(("repository", "environment", "host"), GOOD)
def test_a_repository_that_is_right(repository, environment, host):
    assert said_of(repository, environment=environment) == []
    assert backups.offsite_host({"repository": repository, "environment": environment}) == host


@pytest.mark.parametrize(
    ("repository", "known", "host"),
    [
        ("sftp:me@backup.example.org:/prefect", KNOWN, ("backup.example.org", 22)),
        ("sftp:backup.example.org:prefect", "backup.example.org,10.0.0.7 ssh-rsa AAAA", ("backup.example.org", 22)),
        ("sftp://me@backup.example.org:23//prefect", "[backup.example.org]:23 ssh-rsa A", ("backup.example.org", 23)),
        ("sftp://[fd00::7]/prefect", "|1|abc|def ssh-rsa AAAA", ("fd00::7", 22)),
    ],
)
def test_an_sftp_server_that_is_right(repository, known, host):
    assert said_of(repository, known_hosts=known) == []
    assert backups.prefect_offsite_hosts([{"name": "far", "repository": repository}]) == [
        {"name": "far", "host": host[0], "port": host[1]}
    ]


@pytest.mark.parametrize(
    ("repository", "words"),
    [
        ("s3:bucket", "such as s3:https://s3.example.org/bucket"),
        ("sftp:backup.example.org", "such as sftp:user@backup.example.org:/prefect"),
        ("rest:backup.example.org", "such as rest:https://backup.example.org:8000/prefect/"),
        ("rclone:prefect", "such as rclone:remote:prefect"),
        (
            "ftp://backup.example.org",
            "s3:https://s3.example.org/bucket, sftp:user@backup.example.org:/prefect, "
            "rest:https://backup.example.org:8000/prefect/, rclone:remote:prefect, b2:bucket:prefect, "
            "azure:container:/, gs:bucket:/, swift:container:/, /mnt/nas/prefect",
        ),
    ],
)
def test_an_address_that_is_none(repository, words):
    assert said_of(repository) == [
        f'backups_offsite: "far": its repository is "{repository}"; it must be an address of restic\'s: {words}'
    ]


@pytest.mark.parametrize(
    ("repository", "environment", "needed"),
    [
        ("s3:https://s3.example.org/bucket", {"AWS_ACCESS_KEY_ID": "a"}, ["AWS_SECRET_ACCESS_KEY"]),
        ("b2:bucket", {}, ["B2_ACCOUNT_ID", "B2_ACCOUNT_KEY"]),
        ("azure:a:/", {"AZURE_ACCOUNT_NAME": "a"}, ["AZURE_ACCOUNT_KEY or AZURE_ACCOUNT_SAS"]),
        ("gs:a:/", {}, ["GOOGLE_APPLICATION_CREDENTIALS or GOOGLE_ACCESS_TOKEN"]),
        ("swift:a:/", {}, ["OS_AUTH_URL or ST_AUTH or OS_STORAGE_URL"]),
        ("rclone:nas:x", {}, ["RCLONE_CONFIG or RCLONE_CONFIG_NAS_TYPE"]),
    ],
)
def test_an_environment_that_lacks_something(repository, environment, needed):
    kind = repository.split(":")[0]
    assert said_of(repository, environment=environment) == [
        f'backups_offsite: "far": a repository {kind}: needs {names} in its environment' for names in needed
    ]


def test_values_of_an_environment_are_never_said():
    problems = said_of("s3:https://s3.example.org/bucket", environment=AWS | {"A-B": "unsaid", "PORT": 12345})
    assert problems == [
        'backups_offsite: "far": A-B in its environment must be a name and text in quotes',
        'backups_offsite: "far": PORT in its environment must be a name and text in quotes',
    ]


@pytest.mark.parametrize("repository", ["rest:https://me:pw@h.org/", "s3:http://me:pw@h.org/b", "sftp:me:pw@h.org:/x"])
def test_a_password_in_an_address(repository):
    (problem,) = said_of(repository, environment=AWS)
    assert problem == (
        'backups_offsite: "far": its repository holds a password, which logs and the process list would show; take it out '
        "(rest: has RESTIC_REST_USERNAME and RESTIC_REST_PASSWORD in its environment)"
    )


@pytest.mark.parametrize("path", ["/var/backups/prefect/copy", "/home/ada/copy", "/mnt/../root/copy", "/mntx/y"])
def test_a_path_that_is_not_off_site(path):
    assert said_of(path) == [
        f'backups_offsite: "far": its repository is "{path}"; a path must be of another disk, which is mounted below /mnt, '
        "/media or /srv"
    ]


@pytest.mark.parametrize("known", ["", "other.example.org ssh-ed25519 AAAA", "backup.example.org"])
def test_an_sftp_server_that_nobody_knows(known):
    assert said_of("sftp:me@backup.example.org:/prefect", known_hosts=known) == [
        'backups_offsite: "far": its known_hosts has no line for "backup.example.org", so nobody could tell that server from '
        "another; run: ssh-keyscan backup.example.org, compare the keys with those that its owner names (ssh-keygen -lf "
        "FILE), and set known_hosts to the lines"
    ]


def test_an_sftp_server_at_another_port():
    (problem,) = said_of("sftp://me@backup.example.org:23//prefect", known_hosts=KNOWN)
    assert 'no line for "[backup.example.org]:23"' in problem and "ssh-keyscan -p 23 backup.example.org" in problem


def test_keys_of_ones_own(tmp_path):
    def write(name: str, encryption: serialization.KeySerializationEncryption) -> str:
        formats = serialization.Encoding.PEM, serialization.PrivateFormat.OpenSSH
        (tmp_path / name).write_bytes(ed25519.Ed25519PrivateKey.generate().private_bytes(*formats, encryption))
        return str(tmp_path / name)

    def problems(key: str) -> list[str]:
        return said_of("sftp:me@backup.example.org:/prefect", known_hosts=KNOWN, ssh_private_key=key)

    assert problems(write("good", serialization.NoEncryption())) == []
    for key in (write("locked", serialization.BestAvailableEncryption(b"x")), "good", str(ROOT / "README.md")):
        assert problems(key) == [
            f'backups_offsite: "far": its ssh_private_key is "{key}"; it must be the absolute path on the control machine of '
            "a private key that is free of a passphrase"
        ]


def test_names():
    entry = {"repository": "/mnt/nas/prefect"}
    assert said(backups_offsite=[{"name": "a", **entry}, {"name": "a", **entry}]) == [
        'backups_offsite: the name "a" stands twice'
    ]
    for name in ("Far", "a/b", "", "-a"):
        assert said(backups_offsite=[{"name": name, **entry}]) == [
            f'backups_offsite: the name "{name}" is not allowed; allowed are up to 31 lower-case letters, digits and hyphens'
        ]


@pytest.mark.parametrize("name", ["local", "all", "off-site", "offsite"])
def test_a_name_that_means_something_else(name):
    assert said(backups_offsite=[{"name": name, "repository": "/mnt/nas/prefect"}]) == [
        f'backups_offsite: the name "{name}" is not allowed: prefect-restore --from {name} means something else; give it '
        "another name"
    ]


# --- the other settings ------------------------------------------------------------------------------------------


def test_other_settings():
    assert said(backups_keep={"hourly": 0, "daily": -1, "weekly": 0}) == [
        'backups_keep: hourly is "0"; it must be 1 or more',
        'backups_keep: daily is "-1"; it must be 0 or more',
    ]
    assert said(prefect_restore_from="20261121T051200Z") == said(prefect_restore_from="latest") == []
    assert said(prefect_restore_from="newest") == [
        'prefect_restore_from is "newest"; it must be latest, or the id of a backup such as 20261121T051200Z'
    ]


# --- what is seen on the host ------------------------------------------------------------------------------------


def calendar(setting: str, expression: str, times: list[str], rc: int = 0) -> dict[str, Any]:
    lines = "".join(f"    Next elapse: Sat {time} UTC\n" for time in times)
    return {"item": setting, "cmd": ["systemd-analyze", "calendar", expression], "rc": rc, "stdout": lines}


SEEN = {
    "calendars": [
        calendar("backups_schedule", "hourly", ["2026-11-21 06:00:00", "2026-11-21 07:00:00"]),
        calendar("backups_verify_schedule", "Sun 04:00", ["2026-11-22 04:00:00", "2026-11-29 04:00:00"]),
    ],
    "delay_seconds": 300,
    "max_age_hours": 3,
    "offsite": [],
    "restore_from": "",
    "restored_from": "",
    "flow_runs": "0",
}


def seen(**changes: Any) -> list[str]:
    return backups.prefect_backup_host_problems({**SEEN, **changes})


def test_a_host_that_is_right():
    assert seen() == []
    assert seen(offsite=[{"item": {"name": "far", "host": "h.org", "port": 22}, "state": "started"}]) == []


def test_a_schedule_that_is_none():
    wrong = calendar("backups_verify_schedule", "sometimes", [], rc=1)
    assert seen(calendars=[SEEN["calendars"][0], wrong]) == [
        'backups_verify_schedule is "sometimes", which its systemd does not take; it must be a calendar expression such as '
        "hourly, *:0/30 or Sun 04:00 (man systemd.time)"
    ]


def test_a_schedule_that_would_always_be_overdue():
    daily = calendar("backups_schedule", "daily", ["2026-11-21 00:00:00", "2026-11-22 00:00:00"])
    assert seen(calendars=[daily]) == [
        'backups_schedule lets 24.1 hours pass between two backups, and backups_max_age_hours is "3", so each would be '
        "called overdue; set it to 26 or more"
    ]
    assert seen(calendars=[daily], max_age_hours=26) == []


def test_an_off_site_host_that_does_not_answer():
    assert seen(offsite=[{"item": {"name": "far", "host": "h.org", "port": 22}, "msg": "Timeout"}]) == [
        'the off-site repository "far" (backups_offsite) does not answer: there is no way from it to h.org port 22 (TCP); '
        "check that name, and the firewalls between"
    ]


def test_a_server_that_is_not_new():
    hint = (
        "and prefect_restore_from is for a new server; to replace what is there, run: ansible-playbook restore.yml -e "
        "restore_id=latest"
    )
    assert seen(restore_from="latest") == []
    assert seen(restore_from="latest", flow_runs="7") == [f"it has 7 flow runs of its own, {hint}"]
    assert seen(restore_from="latest", flow_runs="") == [f"it has a database that does not answer, {hint}"]
    # Begun or done before: gone on with, or left alone.
    assert seen(restore_from="latest", restored_from="latest begun", flow_runs="7") == []
    assert seen(restore_from="latest", restored_from="latest", flow_runs="7") == []
    assert len(seen(restore_from="latest", restored_from="20261121T051200Z", flow_runs="7")) == 1


# --- what the tools are given ------------------------------------------------------------------------------------


def test_repositories_as_the_tools_have_them():
    given = [
        {"name": "far", "repository": "sftp:me@h.org:/prefect", "known_hosts": KNOWN, "prune": "no"},
        {"name": "s", "repository": "s3:https://s3.example.org/bucket", "environment": AWS},
    ]
    far, s3 = backups.prefect_offsite(given, "/etc/prefect/backups")
    assert {field.name for field in fields(contract.Offsite)} == set(far) == set(s3)
    assert (far["prune"], s3["prune"], s3["environment"], s3["options"]) == (False, True, AWS, [])
    (option,) = far["options"]
    assert option.startswith("sftp.args=") and "-i /etc/prefect/backups/offsite/far.key " in option
    assert {"-o IdentitiesOnly=yes", "-o BatchMode=yes", "-o StrictHostKeyChecking=yes"} <= {
        f"-o {word}" for word in option.split(" -o ")
    }
    assert "-o UserKnownHostsFile=/etc/prefect/backups/offsite/far.known_hosts" in option


def test_the_role_writes_settings_that_the_tools_know():
    written = yaml.safe_load((ROLE / "vars/main.yml").read_text())["__backups_settings"]
    known = {field.name for field in fields(contract.Settings)}
    assert set(written) <= known
    assert {"kit", "endpoint"} <= set(written)
    assert set(written["endpoint"]) <= {field.name for field in fields(contract.Endpoint)}
    # Every setting of a person's gets there.
    own = {name.removeprefix("backups_") for name in DEFAULTS if name.startswith("backups_")} & known
    assert own <= set(written)


def test_defaults_of_role_and_tools_are_the_same():
    for field in fields(contract.Settings):
        if f"backups_{field.name}" in DEFAULTS and field.name not in ("offsite", "keep"):
            assert DEFAULTS[f"backups_{field.name}"] == field.default, field.name
    # A start takes as long after a restore as in the playbook.
    stack = yaml.safe_load((ROOT / "ansible/roles/stack/defaults/main.yml").read_text())
    written = yaml.safe_load((ROLE / "vars/main.yml").read_text())["__backups_settings"]
    assert contract.Settings("1", None).start_seconds == stack["stack_start_timeout"]
    assert written["start_seconds"] == "{{ stack_start_timeout | int }}"
    assert DEFAULTS["backups_keep"] == {field.name: field.default for field in fields(contract.Keep)}


# --- restore.yml -------------------------------------------------------------------------------------------------


def test_arguments_of_a_restore():
    arguments = backups.prefect_restore_arguments
    assert arguments({"id": "latest", "before": "", "undo": "", "dry_run": "true"}) == [
        "--yes",
        "--latest",
        "--dry-run",
    ]
    assert arguments({"id": "20261121T051200Z", "from": "far"}) == [
        "--yes", "--id", "20261121T051200Z", "--from", "far"
    ]  # fmt: skip
    assert arguments({"before": "2026-11-21 04:30", "run_late": True, "undo": False}) == [
        "--yes", "--before", "2026-11-21 04:30", "--run-late"
    ]  # fmt: skip
    assert arguments({"undo": "yes", "without_safety_backup": "true"}) == ["--yes", "--undo", "--without-safety-backup"]
    for wrong in ({}, {"id": "latest", "undo": "true"}, {"from": "far"}):
        with pytest.raises(ValueError, match="set exactly one of restore_id"):
            arguments(wrong)


# --- before a migration ----------------------------------------------------------------------------------------------


def test_no_migration_without_its_backup_where_backups_are_set_up():
    """A repository that cannot be read, or is not mounted, is a failure in words, and no reason to leave the backup out."""
    tasks = yaml.safe_load((ROOT / "ansible/roles/stack/tasks/run_migrations.yml").read_text())
    names = [task["name"] for task in tasks]
    look, make, refuse, none = (tasks[names.index(name)] for name in (
        "Look whether backups are set up",
        "Back it up first",
        "Refuse to migrate without a backup",
        "Tell that there is no backup",
    ))  # fmt: skip
    assert look["ansible.builtin.stat"]["path"] == "{{ __prefect_etc }}/backups/settings.json"
    assert make["when"] == ["__stack_migrated.content is defined", "__stack_backups.stat.exists"]
    assert refuse["when"] == "__stack_backup.rc | default(0) != 0"
    assert none["when"] == ["__stack_migrated.content is defined", "not __stack_backups.stat.exists"]
    assert (
        names.index("Refuse to migrate without a backup") < names.index("Stop it") < names.index("Run the migrations")
    )


def test_only_keys_that_an_earlier_run_has_written_are_removed():
    """A person keeps rclone's configuration, or a key of Google's, in that directory."""
    tasks = yaml.safe_load((ROLE / "tasks/settings.yml").read_text())
    (task,) = [task for task in tasks if task["name"].startswith("Remove the keys of repositories")]
    assert "__backups_before_settings" in task["vars"]["__backups_known"]
    assert "ansible.builtin.find" not in (ROLE / "tasks/settings.yml").read_text()
