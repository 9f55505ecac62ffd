"""Backups as the timers make them: what is in one and what is not, the list, proof, retention, and silence or not.

Whatever is told to a person here is said by a real unit that fails, and received by a real listener.
"""

from __future__ import annotations

import json
import re
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from tests.lab import backups, restores
from tests.lab.backups import BACKUP, REPOSITORY, SCRATCH, VERIFY, ids, listed, other_settings, restic
from tests.lab.restores import STATE, mark, run
from tests.lab.seed import psql
from tests.lab.test_restore import BLOCK, make_block
from tests.lab.vps.vps import Vps

MINUTES = re.compile(r"\d+\.\d hours")


@dataclass
class Made:
    """The backup that the unit of the timer made, and what the database was like at that moment."""

    id: str
    snapshot: str
    said: str
    manifest: dict[str, Any]
    # Paths of all files in it.
    files: list[str]
    # Exact rows of each table.
    rows: dict[str, int]
    # What stands in the live database then.
    marker: str


@pytest.fixture(scope="module")
def no_timers(vps: Vps) -> Iterator[None]:
    """Not at once: the first test is about the timers."""
    with restores.no_timers(vps):
        yield


@pytest.fixture(scope="module")
def block(vps: Vps, endpoint: Any) -> Iterator[str]:
    """An encrypted block in the world that is backed up."""
    old = endpoint.get(f"/api/block_types/slug/secret/block_documents/name/{BLOCK}")
    if old.status_code == 200:
        endpoint.delete(f"/api/block_documents/{old.json()['id']}").raise_for_status()
    made = make_block(endpoint)
    yield made
    restores.until("all runs again", lambda: restores.leftovers(vps))
    endpoint.delete(f"/api/block_documents/{made}").raise_for_status()


def rows(vps: Vps) -> dict[str, int]:
    """Exact numbers of rows of all tables."""
    names = psql(vps, "SELECT tablename FROM pg_tables WHERE schemaname = 'public'").split()
    pairs = ", ".join(f"('{name}', (SELECT count(*) FROM public.\"{name}\"))" for name in names)
    return json.loads(psql(vps, f"SELECT json_object_agg(name, rows) FROM (VALUES {pairs}) AS counted (name, rows)"))


@pytest.fixture(scope="module")
def made(vps: Vps, endpoint: Any, no_timers: None, block: str) -> Made:
    """A backup, made by the unit that the timer starts, in a world that stands still meanwhile."""
    before, value = ids(vps), str(uuid.uuid4())
    mark(endpoint, value)
    vps.ssh("docker pause prefect-server")
    try:
        ended = backups.start(vps, BACKUP)
        counted = rows(vps)
    finally:
        vps.ssh("docker unpause prefect-server")
    assert (ended.result, ended.status) == ("success", 0), ended.said
    newest = listed(vps)[0]
    assert newest["id"] not in before
    said = vps.ssh(f"{restic()} dump {newest['snapshot']} {restores.STAGING}/backup/manifest.json").stdout
    lines = vps.ssh(f"{restic()} ls --json {newest['snapshot']}").stdout.splitlines()
    files = [entry["path"] for entry in map(json.loads, lines[1:]) if entry["type"] != "dir"]
    return Made(newest["id"], newest["snapshot"], ended.said, json.loads(said), files, counted, value)


# --- when --------------------------------------------------------------------------------------------------------


def test_the_timers_run_as_the_inventory_says(vps: Vps, inventory_variables: dict[str, Any]) -> None:
    schedules = {
        "prefect-backup": inventory_variables.get("backups_schedule", "hourly"),
        "prefect-backup-verify": inventory_variables.get("backups_verify_schedule", "Sun 04:00"),
    }
    names = "ActiveState,UnitFileState,Persistent,RandomizedDelayUSec,TimersCalendar,TimersMonotonic"
    for unit, schedule in schedules.items():
        shown = vps.ssh(f"systemctl show --property={names} {unit}.timer").stdout
        timer = dict(line.split("=", 1) for line in shown.splitlines())
        assert (timer["ActiveState"], timer["UnitFileState"]) == ("active", "enabled"), unit
        # What was missed while the host was off is made up for, and not all at the full hour.
        assert (timer["Persistent"], timer["RandomizedDelayUSec"]) == ("yes", "5min"), unit
        normal = vps.ssh(f"systemd-analyze calendar '{schedule}' | sed -n 's/.*Normalized form: //p'").stdout.strip()
        assert normal
        assert re.findall(r"OnCalendar=(.*?) ;", timer["TimersCalendar"]) == [normal], unit
    check = vps.ssh("systemctl show --property=ActiveState,UnitFileState,TimersMonotonic prefect-watch.timer")
    assert "OnUnitActiveUSec=1min ;" in check.stdout
    assert {"ActiveState=active", "UnitFileState=enabled"} <= set(check.stdout.splitlines())


# --- what is in it -----------------------------------------------------------------------------------------------


def test_a_backup_as_the_timer_makes_it(vps: Vps, made: Made) -> None:
    """Its manifest says what it is, with every row of the database counted."""
    kit = json.loads(vps.ssh("cat /etc/prefect/backups/settings.json").stdout)["kit"]
    version = "from importlib.metadata import version; print(version('prefect'))"
    manifest = made.manifest
    assert manifest["id"] == made.id
    assert (manifest["kind"], manifest["kit"]) == ("scheduled", kit)
    assert manifest["prefect"] == vps.ssh(f'docker exec prefect-server python -c "{version}"').stdout.strip()
    assert manifest["postgres"] == psql(vps, "SHOW server_version").split()[0]
    assert manifest["revision"] == psql(vps, "SELECT version_num FROM alembic_version")
    assert manifest["host"] == vps.ssh("hostname").stdout.strip()
    assert {name: table["rows"] for name, table in manifest["tables"].items()} == made.rows
    assert made.rows["variable"] > 0 and made.rows["alembic_version"] == 1
    assert all(re.fullmatch(r"(rows|keys):-?\d+", table["checksum"]) for table in manifest["tables"].values())
    assert min(manifest["dump_seconds"], manifest["dump_bytes"], manifest["database_bytes"]) > 0
    assert [line.split(":")[0].strip() for line in made.said.splitlines() if line.startswith("  ok ")][:3] == [
        "ok   checks that change nothing",
        "ok   dump of the database, and its rows counted",
        "ok   into the repository",
    ]


def test_what_else_is_needed_to_come_back_is_in_it(vps: Vps, made: Made, inventory_secrets: dict[str, str]) -> None:
    settings = json.loads(vps.ssh("cat /etc/prefect/backups/settings.json").stdout)
    there = vps.ssh(f"ls -d {' '.join(settings['files'])}", check=False).stdout.split()
    assert sorted(made.manifest["files"]) == sorted(there)
    wanted = (
        "/etc/prefect/stack.env",
        "/etc/prefect/workers/general-1.env",
        "/opt/prefect/caddy/Caddyfile",
        "/opt/prefect/compose/compose.yml",
        "/etc/systemd/system/prefect-backup.timer.d/prefect.conf",
        settings["endpoint"]["ca_file"],
    )
    assert set(wanted) <= set(made.files)
    assert any(re.match(r"/var/lib/prefect/caddy/.*root\.key$", path) for path in made.files)
    assert any(re.match(r"/opt/prefect/flows/.*\.py$", path) for path in made.files)


def test_what_protects_the_backups_is_not_in_it(vps: Vps, made: Made, inventory_secrets: dict[str, str]) -> None:
    assert [path for path in made.files if path.startswith("/etc/prefect/backups")] == []
    search = (
        f"exec 3<&0; {restic()} dump --archive tar {made.snapshot} / < /dev/null"
        " | grep --text --count --fixed-strings --file=/dev/fd/3"
    )
    for name in ("backup_password", "users/backups"):
        assert vps.ssh(search, text=inventory_secrets[name], check=False).stdout.strip() == "0", name
    # The search finds what is there.
    assert vps.ssh(search, text=made.marker).stdout.strip() != "0"
    # The key that encrypts the secrets in blocks is in it, and not in the dump.
    key = vps.ssh("cat /etc/prefect/secrets/encryption_key").stdout.strip()
    assert vps.ssh(search, text=key).stdout.strip() != "0"
    dump = search.replace(" / <", f" {restores.STAGING}/backup/dump <")
    assert vps.ssh(dump, text=made.marker).stdout.strip() != "0"
    assert vps.ssh(dump, text=key, check=False).stdout.strip() == "0"


def test_nobody_else_reads_it(vps: Vps, made: Made) -> None:
    assert vps.ssh(
        "stat --format '%a %U' /var/backups/prefect /var/lib/prefect/backups /etc/prefect/backups"
    ).stdout == ("700 root\n700 root\n700 root\n")
    assert vps.ssh(f"find {REPOSITORY} /etc/prefect/backups -perm /077").stdout == ""
    assert vps.ssh("runuser -u prefect_general-1 -- ls /var/backups/prefect", check=False).returncode != 0
    # Nor would the files alone help: what is in the dump in plain words is in none of them.
    assert vps.ssh(f"grep --recursive --text --fixed-strings {made.marker} {REPOSITORY}", check=False).returncode == 1
    assert run(vps, "prefect-backup", "list", **other_settings(vps, password_file="/etc/hostname")).exit == 12
    backups.remove_others(vps)


def test_the_list(vps: Vps, made: Made) -> None:
    newest = listed(vps)[0]
    told = {name: made.manifest[name] for name in ("id", "kind", "prefect", "postgres", "revision", "kit")}
    assert {name: newest[name] for name in told} == told
    assert (newest["where"], newest["verified"]) == (["local"], None)
    assert newest["size"] > made.manifest["dump_bytes"] and newest["added"] > 0
    heading, first = vps.ssh("prefect-backup list").stdout.splitlines()[:2]
    assert heading.split() == ["id", "age", "size", "added", "kind", "Prefect", "Postgres", "where", "verified"]
    words = first.split()
    assert words[0] == made.id
    assert words[-4:] == ["scheduled", made.manifest["prefect"], made.manifest["postgres"], "local"]


def test_a_further_backup_adds_little(vps: Vps, made: Made) -> None:
    """Of a world in which little has changed."""
    further = run(vps, "prefect-backup", "create").facts
    assert further["kind"] == "manual"
    assert further["added_bytes"] < further["dump_bytes"] / 10
    assert ids(vps)[:2] == [further["id"], made.id]


# --- proof -------------------------------------------------------------------------------------------------------


def test_the_newest_backup_proves_itself(vps: Vps, made: Made) -> None:
    """As the timer does it: brought back beside the live database, compared, and nothing of that stays."""
    newest = listed(vps)[0]
    known = json.loads(vps.ssh(f"cat {STATE}/verified.json", check=False).stdout or "{}")
    live = vps.ssh("docker inspect --format '{{.State.StartedAt}}' prefect-postgres").stdout
    ended = backups.start(vps, VERIFY)
    assert (ended.result, ended.status) == ("success", 0), ended.said
    verified = json.loads(vps.ssh(f"cat {STATE}/verified.json").stdout)
    good = verified["good"]
    assert good == verified["last"]
    assert (good["backup"], good["repository"], good["ok"]) == (newest["id"], "local", True)
    assert good["tables"] == len(made.rows)
    assert good["rows"] >= sum(made.rows.values()) > 0
    assert good["revision"] == made.manifest["revision"]
    assert good["blocks"] >= 1 and f"{good['blocks']} blocks decrypt" in ended.said
    assert good["restore_seconds"] > 0
    assert "a restore of everything takes about " in ended.said
    # Each time another share of the repository is read back.
    assert good["share"] == known.get("share", 0) % 7 + 1
    assert backups.leftovers(vps) == []
    assert vps.ssh("docker inspect --format '{{.State.StartedAt}}' prefect-postgres").stdout == live
    assert listed(vps)[0]["verified"].startswith("yes, ")
    well = run(vps, "prefect-backup", "check")
    assert well.exit == 0, well.said
    assert well.facts["newest"] == newest["id"]
    assert (well.facts["verified"], well.facts["restore_seconds"]) == (good["at"], good["restore_seconds"])


# --- how many ----------------------------------------------------------------------------------------------------


@pytest.fixture
def others(vps: Vps, no_timers: None) -> Iterator[Callable[..., dict[str, str]]]:
    """`others(reserve_mb=5)` is the environment with other settings; repository and state are others in any case."""

    def write(**more: Any) -> dict[str, str]:
        return other_settings(vps, **{"repository": f"{SCRATCH}/repository", "state": backups.STATE, **more})

    yield write
    backups.remove_others(vps)


def test_how_many_are_kept(vps: Vps, others: Any) -> None:
    """By the policy those of the timer; a week and three of the others. The room of what is not comes free."""
    keep = {"hourly": 2, "daily": 2, "weekly": 0, "monthly": 0}
    environment = others(keep=keep)
    assert run(vps, "prefect-backup", "init", **environment).exit == 0
    times = {
        # The last of each hour, the last of each day.
        "scheduled": ["11-03T05:00", "11-03T06:00", "11-04T05:10", "11-04T05:20", "11-04T06:10"],
        "manual": ["10-01T01:00", "10-10T01:00", "10-20T01:00", "11-01T01:00"],
    }
    commands = [
        f"date +%N > {SCRATCH}/file; head -c 300000 /dev/urandom >> {SCRATCH}/file;"
        f" {restic(f'{SCRATCH}/repository')} backup --quiet --host prefect --time '2026-{time.replace('T', ' ')}:00'"
        f" --tag kind={kind} --tag id=2026{re.sub('[-:]', '', time)}00Z {SCRATCH}/file"
        for kind in times
        for time in times[kind]
    ]
    vps.ssh(" && ".join(commands))
    size = f"du --summarize --bytes {SCRATCH}/repository | cut -f 1"
    before = int(vps.ssh(size).stdout)
    pruned = run(vps, "prefect-backup", "prune", **environment)
    assert pruned.exit == 0, pruned.said
    assert pruned.facts["local"]["forgotten"] == 3
    kept = {kind: [one["id"][4:13] for one in listed(vps, **environment) if one["kind"] == kind] for kind in times}
    assert kept == {
        "scheduled": ["1104T0610", "1104T0520", "1103T0600"],
        "manual": ["1101T0100", "1020T0100", "1010T0100"],
    }
    assert int(vps.ssh(size).stdout) < before - 3 * 290_000
    # What is left is whole.
    vps.ssh(f"{restic(f'{SCRATCH}/repository')} check --read-data --quiet")


# --- silence or not ----------------------------------------------------------------------------------------------


def test_what_is_overdue(vps: Vps, made: Made, others: Any) -> None:
    """A backup and its verification: each in plain words."""
    newest = ids(vps)[0]
    environment = others(repository=REPOSITORY, max_age_hours=0, verify_max_age_days=0)
    overdue = run(vps, "prefect-backup", "check", **environment)
    assert (overdue.exit, overdue.facts["code"]) == (26, "OVERDUE")
    assert MINUTES.sub("N hours", overdue.facts["error"]) == (
        f"the newest backup, {newest}, is N hours old; N hours are allowed (backups_max_age_hours):"
        " journalctl -u prefect-backup -n 30; no backup was ever verified; 0 s are allowed"
        " (backups_verify_max_age_days): systemctl start prefect-backup-verify"
    )
    assert overdue.facts["hint"] == "see: prefect-backup list"


def test_what_has_failed_and_what_does_not_run(vps: Vps, made: Made) -> None:
    """The newest backup is young; the last attempt failed, and a worker is down: that is not well."""
    with backups.unit_environment(vps, BACKUP, PREFECT_BACKUPS_ETC="/run/none"):
        assert backups.start(vps, BACKUP).status == 10
        vps.ssh(f"systemctl stop {restores.WORKER}")
        try:
            seen = run(vps, "prefect-backup", "check")
        finally:
            vps.ssh(f"systemctl start {restores.WORKER}")
    assert (seen.exit, seen.facts["code"]) == (26, "OVERDUE")
    assert seen.facts["error"] == (
        "prefect-backup.service has failed (result exit-code, exit code 10): journalctl -u prefect-backup -n 30;"
        f" {restores.WORKER} does not run: systemctl start {restores.WORKER}"
    )
