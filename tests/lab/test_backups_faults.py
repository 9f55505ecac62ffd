"""What goes wrong with a backup: each has its own exit code and words, and earlier backups stay whole, here and elsewhere.

Repository and state are others than the host's, but for the faults that only the whole of it has. A table at the end
says for each death of a backup or a verification what there was after it.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import pytest

from tests.lab import backups, restores
from tests.lab.backups import (
    BACKUP,
    ETC,
    FLIP,
    SCRATCH,
    STATE,
    VERIFY,
    ids,
    leftovers,
    other_settings,
    restic,
)
from tests.lab.restores import STAGING, run, until
from tests.lab.seed import psql
from tests.lab.vps.vps import Vps

HERE = f"{SCRATCH}/repository"
# In their order; "NAME:end" is where a step ends. At "IN NAME" pg_dump or restic has just begun to write.
STEPS = ("checks", "dump", "IN dump", "store", "IN store", "store:end", "forget", "prune", "copy to disk")
MADE = STEPS[STEPS.index("store:end") :]
STEPS_OF_A_VERIFICATION = ("fetch", "load", "check")
NOISE = 30  # megabytes: two packs of restic's, so that it is still at work when it has written one
# True as soon as there is data of the step.
WRITTEN = {
    "dump": f"ls {STAGING}/backup/dump/*.dat > /dev/null 2>&1",
    "store": f'test -n "$(find {HERE}/data -newer {SCRATCH}/before -type f -print -quit)"',
}


@pytest.fixture(scope="module", autouse=True)
def no_timers(vps: Vps) -> Iterator[None]:
    with restores.no_timers(vps):
        yield


Others = Callable[..., dict[str, str]]


@pytest.fixture(scope="module")
def others(vps: Vps, no_timers: None) -> Iterator[Others]:
    """`others(reserve_mb=5)` is the environment with other settings; repository and state are others in any case."""

    def write(**more: Any) -> dict[str, str]:
        return other_settings(vps, **{"repository": HERE, "state": STATE, "files": [], **more})

    yield write
    backups.remove_others(vps)


@pytest.fixture(scope="module")
def earlier(vps: Vps, others: Others) -> str:
    """Two good backups in the other repository; gives the newest."""
    environment = others()
    for verb in ("init", "create", "create"):
        made = run(vps, "prefect-backup", verb, **environment)
        assert made.exit == 0, made.said
    return made.facts["id"]


@pytest.fixture
def nothing_left(vps: Vps, others: Others, earlier: str) -> Iterator[None]:
    """The same backups are there afterwards, and nothing else."""
    before = ids(vps, **others())
    yield
    assert ids(vps, **others()) == before
    assert leftovers(vps) == []


# --- deaths ------------------------------------------------------------------------------------------------------


@dataclass
class Row:
    """What was seen after a death."""

    death: str
    # Earlier backups that are whole, of how many; whether the one that died is one too.
    earlier: str
    made: str
    left: str
    # Seconds until nothing was left over.
    clean: float

    def __str__(self) -> str:
        return f"{self.death:<46}{self.earlier:>9}{self.made:>7}{self.left:>8}{self.clean:>8.1f}"


HEADING = f"{'death':<46}{'earlier':>9}{'made':>7}{'left':>8}{'in, s':>8}"


@pytest.fixture(scope="module")
def table(request: pytest.FixtureRequest) -> Iterator[list[Row]]:
    """The rows of the table that is printed after the last test."""
    rows: list[Row] = []
    yield rows
    with request.config.pluginmanager.getplugin("capturemanager").global_and_fixture_disabled():
        print("", HEADING, *rows, sep="\n")


@pytest.fixture(scope="module")
def copying(vps: Vps, others: Others, earlier: str) -> dict[str, str]:
    """Settings with a copy elsewhere."""
    environment = others(offsite=[{"name": "disk", "repository": f"{SCRATCH}/disk"}])
    assert run(vps, "prefect-backup", "init", **environment).exit == 0
    return environment


@pytest.fixture
def survived(vps: Vps, copying: dict[str, str], table: list[Row]) -> Callable[..., tuple[backups.Ended, bool]]:
    """`survived("name", unit, step)` lets a unit die at a step; gives how it ended, and whether there is a new backup."""
    snapshots = f"{restic(HERE)} snapshots --no-lock --json"

    def live_on(name: str, unit: str, step: str, signal: str = "KILL") -> tuple[backups.Ended, bool]:
        # Those of the deaths before are the old data that are to be freed.
        forget = f"{restic(HERE)} forget --quiet --tag kind=scheduled --unsafe-allow-remove-all"
        prepared = vps.ssh(f"rm -f {STATE}/last.json; touch {SCRATCH}/before; {forget}; {snapshots}").stdout
        before = {one["id"] for one in json.loads(prepared)}
        if step.startswith("IN "):
            kill, point = backups.when(WRITTEN[step.removeprefix("IN ")], f"kill -{signal} $pid"), {}
        else:
            kill, point = "true", {"PREFECT_BACKUPS_FAILPOINT": f"kill:{step}"}
        with backups.unit_environment(vps, unit, **copying, **point):
            ended = backups.start(vps, unit, kill)
        died = time.monotonic()
        until(f"the end of what {name} has left", lambda: leftovers(vps))
        seconds = time.monotonic() - died
        after = {one["id"] for one in json.loads(vps.ssh(snapshots).stdout)}
        kept = f"{len(before & after)}/{len(before)}"
        table.append(Row(name, kept, "yes" if after - before else "no", "nothing", seconds))
        assert after >= before
        return ended, after != before

    return live_on


@pytest.mark.parametrize("step", STEPS)
def test_a_backup_that_is_killed(vps: Vps, survived: Any, step: str) -> None:
    """By the kernel, or a power cut: systemd removes what is half-made, and no backup is half a one."""
    with backups.filled(vps, NOISE) if step.startswith("IN ") else nullcontext():
        ended, made = survived(f"backup, kill -9 at: {step}", BACKUP, step)
    assert (ended.result, ended.status) == ("signal", 9), ended.said
    assert made is (step in MADE)


@pytest.mark.parametrize("step", ["IN dump", "IN store"])
def test_a_backup_that_is_stopped(vps: Vps, survived: Any, step: str) -> None:
    with backups.filled(vps, NOISE):
        ended, made = survived(f"backup, SIGTERM at: {step}", BACKUP, step, "TERM")
    assert (ended.result, ended.status) == ("exit-code", 128 + 15), ended.said
    assert "Stopped by SIGTERM: nothing half-made is left, earlier backups are whole.\n" in ended.said
    assert not made


@pytest.mark.parametrize("step", STEPS_OF_A_VERIFICATION)
def test_a_verification_that_is_killed(vps: Vps, survived: Any, step: str) -> None:
    ended, _ = survived(f"verification, kill -9 at: {step}", VERIFY, step)
    assert (ended.result, ended.status) == ("signal", 9), ended.said


def test_after_all_that_a_backup_works(vps: Vps, copying: dict[str, str], table: list[Row]) -> None:
    """Every bit of what there is is whole, and what the dead did not copy elsewhere is copied now."""
    vps.ssh(f"{restic(HERE)} check --read-data --quiet")
    made = run(vps, "prefect-backup", "create", **copying)
    assert made.exit == 0, made.said
    copied = run(vps, "prefect-backup", "list", "--repository", "disk", **copying).facts["backups"]
    assert {one["id"] for one in copied} >= set(ids(vps, **copying))


# --- the repository ----------------------------------------------------------------------------------------------


def test_a_wrong_key(vps: Vps, others: Others, nothing_left: None) -> None:
    environment = others(password_file=f"{ETC}/password")
    vps.ssh(f"echo wrong > {ETC}/password")
    refused = run(vps, "prefect-backup", "create", **environment)
    assert (refused.exit, refused.facts["code"]) == (12, "WRONG_KEY")
    assert refused.facts["error"] == (
        f'the repository "local" ({HERE}) does not open with the password in {ETC}/password'
    )


def test_no_repository(vps: Vps, others: Others, nothing_left: None) -> None:
    refused = run(vps, "prefect-backup", "create", **others(repository=f"{SCRATCH}/none"))
    assert (refused.exit, refused.facts["code"]) == (13, "NO_REPOSITORY")
    assert refused.facts["error"] == f'there is no repository at {SCRATCH}/none (the repository "local")'
    assert refused.facts["hint"] == "is its disk mounted? If there has never been one: prefect-backup init"


def test_no_room_by_the_estimate(vps: Vps, others: Others, nothing_left: None) -> None:
    size = r"\d+(\.\d)? [MG]B"
    environment = others(reserve_mb=10_000_000)
    refused = run(vps, "prefect-backup", "create", **environment)
    assert (refused.exit, refused.facts["code"]) == (15, "NO_ROOM")
    assert re.fullmatch(
        rf"Refusing to back up: it needs about {size} \({size} in {STAGING}, {size} in {HERE}\), and 10485\.8 GB must"
        rf" stay free \(backups_reserve_mb\), but {size} are free",
        refused.facts["error"],
    )
    assert refused.facts["hint"] == (
        "make room: prefect-backup prune; docker system prune; journalctl --vacuum-size=100M"
    )
    refused = run(vps, "prefect-backup", "verify", **environment)
    assert refused.exit == 15
    assert refused.facts["error"].startswith("Refusing to verify 2")


def test_its_file_system_is_full_midway(vps: Vps, others: Others, nothing_left: None) -> None:
    """The estimate did not see it coming: the earlier backup stays whole, and the room is free again."""
    small = f"{SCRATCH}/small"
    vps.ssh(f"mkdir -p {small} && mount -t tmpfs -o size=24m none {small}")
    try:
        environment = others(repository=f"{small}/repository", reserve_mb=0, state=f"{STATE}/small")
        assert run(vps, "prefect-backup", "init", **environment).exit == 0
        before = run(vps, "prefect-backup", "create", **environment).facts["id"]
        used = f"df --output=used --block-size=1 {small} | tail -1"
        bytes_before = int(vps.ssh(used).stdout)
        with backups.filled(vps, NOISE):
            full = run(vps, "prefect-backup", "create", **environment)
        assert (full.exit, full.facts["code"]) == (15, "NO_ROOM")
        assert full.facts["error"].startswith(f'the repository "local" ({small}/repository) could not take a backup: "')
        assert "no space left on device" in full.facts["error"]
        assert full.facts["hint"] == "make room there, then: prefect-backup prune"
        assert int(vps.ssh(used).stdout) < bytes_before + 100_000
        assert ids(vps, **environment) == [before]
        vps.ssh(f"{restic(f'{small}/repository')} check --read-data --quiet")
        assert run(vps, "prefect-backup", "create", **environment).exit == 0
    finally:
        vps.ssh(f"umount {small}")


# --- elsewhere ---------------------------------------------------------------------------------------------------


def test_one_of_two_off_site_repositories_is_away(vps: Vps, others: Others, earlier: str) -> None:
    """The backup here is good, and the other one gets its copy."""
    # Nobody listens there.
    away = {"name": "away", "repository": "sftp:nobody@127.0.0.1:/r", "options": ["sftp.args=-p 9 -o BatchMode=yes"]}
    environment = others(offsite=[away, {"name": "near", "repository": f"{SCRATCH}/near"}])
    # Which makes what it reaches.
    assert run(vps, "prefect-backup", "init", **environment).exit == 18
    made = run(vps, "prefect-backup", "create", **environment)
    newest = ids(vps, **environment)[0]
    assert (made.exit, made.facts["code"]) == (18, "OFFSITE")
    start = (
        f'the backup {newest} is made, but 1 of 2 copies off-site failed: the repository "away" ({away["repository"]})'
    )
    assert made.facts["error"].startswith(f'{start} could not be opened: "')
    # restic has ended before it could pass on what ssh said, now and then.
    assert re.search("Connection refused|ssh ended before there was a session", made.facts["error"])
    assert made.facts["hint"].endswith("; the next backup copies what is missing")
    for name in ("local", "near"):
        known = run(vps, "prefect-backup", "list", "--repository", name, **environment).facts["backups"]
        assert known[0]["id"] == newest, name
    assert backups.listed(vps, **environment)[0]["where"] == ["local", "near"]
    assert leftovers(vps) == []


# --- another password --------------------------------------------------------------------------------------------


def test_another_password_locks_nobody_out(vps: Vps, others: Others) -> None:
    """Killed wherever it is: a repository opens with the password in use, and a further run ends what was begun."""
    used, old, new = f"{SCRATCH}/password", "the-old-one", "the-new-one"
    near = f"{SCRATCH}/near-rekeyed"
    environment = others(
        repository=f"{SCRATCH}/rekeyed", offsite=[{"name": "near", "repository": near}], password_file=used
    )
    vps.ssh(f"install -m 400 /dev/stdin {used}", text=old + "\n")
    assert run(vps, "prefect-backup", "init", **environment).exit == 0

    def change(failpoint: str = "") -> int:
        variables = environment | ({"PREFECT_BACKUPS_FAILPOINT": failpoint} if failpoint else {})
        words = " ".join(f"{name}='{value}'" for name, value in variables.items())
        return vps.ssh(f"{words} prefect-backup password --json", text=new + "\n", check=False).returncode

    def opens(repository: str, password: str) -> bool:
        command = f"RESTIC_PASSWORD={password} restic --no-cache --repo {repository} cat config"
        return vps.ssh(command, check=False).returncode == 0

    for failpoint in ("key of near", "old key of near"):
        assert change(f"kill:{failpoint}") == 255
        password = vps.ssh(f"cat {used}").stdout.strip()
        assert opens(f"{SCRATCH}/rekeyed", password)
        assert opens(near, password)
    assert password == new
    assert change() == 0
    for repository in (f"{SCRATCH}/rekeyed", near):
        assert opens(repository, new)
        assert not opens(repository, old)
    assert vps.ssh(f"ls {used}*").stdout.strip() == used
    assert json.loads(vps.ssh(f"PREFECT_BACKUPS_ETC={ETC} prefect-backup password --json", text=new).stdout) == {
        "changed": False,
        "removed": [],
    }
    # One that is away would be locked out: nothing is changed.
    vps.ssh(f"mv {near}/keys {near}/keys.away")
    assert vps.ssh(f"PREFECT_BACKUPS_ETC={ETC} prefect-backup password", text="x\n", check=False).returncode != 0
    assert vps.ssh(f"ls {used}*; cat {used}").stdout.split() == [used, new]


# --- Postgres ----------------------------------------------------------------------------------------------------


def test_a_page_that_is_corrupted(vps: Vps, others: Others, nothing_left: None) -> None:
    """Such a dump would be without rows that nobody misses until the bad night."""
    psql(vps, "CREATE TABLE victim AS SELECT row, md5(row::text) FROM generate_series(1, 20000) AS row; CHECKPOINT")
    try:
        path = psql(vps, "SELECT pg_relation_filepath('victim')")
        volume = "$(docker volume inspect --format '{{.Mountpoint}}' prefect_postgres)"
        vps.ssh(f"printf XXXXXXXX | dd of={volume}/{path} bs=1 seek=20000 conv=notrunc status=none")
        # Out of memory with it.
        psql(
            vps,
            "CREATE EXTENSION IF NOT EXISTS pg_buffercache;"
            " SELECT count(pg_buffercache_evict(bufferid)) FROM pg_buffercache"
            " WHERE relfilenode = pg_relation_filenode('victim'); DROP EXTENSION pg_buffercache",
        )
        refused = run(vps, "prefect-backup", "create", **others())
        found = json.loads(vps.ssh("prefect-doctor --json", check=False).stdout)["findings"]
    finally:
        psql(vps, "DROP TABLE victim")
    assert [one["level"] for one in found if one["check"] == "checksum failures"] == ["BAD"]
    assert (refused.exit, refused.facts["code"]) == (17, "DUMP")
    # Whoever of the two comes upon it first.
    assert re.match(r'(pg_dump ended with 1: "|the rows could not be counted: ")', refused.facts["error"])
    assert f"invalid page in block 2 of relation {path}" in refused.facts["error"]
    assert refused.facts["hint"].endswith("docker logs --tail 20 prefect-postgres")


def test_two_at_once(vps: Vps, others: Others, earlier: str) -> None:
    environment = others()
    before = ids(vps, **environment)
    with backups.unit_environment(vps, BACKUP, **environment, PREFECT_BACKUPS_FAILPOINT="stop:dump"):
        since = backups.cursor(vps)
        vps.ssh(f"systemctl start --no-block {BACKUP}")
        pid = vps.ssh(backups.when('test "$(cut -d " " -f 3 /proc/$pid/stat)" = T', "echo $pid")).stdout.strip()
        refused = run(vps, "prefect-backup", "create", "--wait", "0", **environment)
        vps.ssh(f"kill -CONT {pid}")
        first = backups.ended(vps, BACKUP, since)
    assert (refused.exit, refused.facts["code"]) == (11, "BUSY")
    busy = rf"Refusing to start: a backup \(process {pid}\) has been at work for \d+ (s|minutes)"
    assert re.fullmatch(busy, refused.facts["error"])
    assert refused.facts["hint"] == "wait until it has ended; see: systemctl list-units 'prefect-*'"
    assert (first.result, first.status) == ("success", 0)
    assert len(ids(vps, **environment)) == len(before) + 1


# --- what is not noticed at once ------------------------------------------------------------------------------------


def test_a_flipped_byte_is_found_by_the_verification(vps: Vps, others: Others, earlier: str) -> None:
    """And it is said by the check as long as nothing is done."""
    place = f"{SCRATCH}/flipped"
    environment = others(repository=place, state=f"{STATE}/flipped")
    assert run(vps, "prefect-backup", "init", **environment).exit == 0
    identity = run(vps, "prefect-backup", "create", **environment).facts["id"]
    pack = f"$(find {place}/data -type f -printf '%s %p\\n' | sort -n | tail -1 | cut -d ' ' -f 2)"
    vps.ssh(f'pack={pack}; chmod u+w $pack; python3 -c "{FLIP}" $pack')
    with backups.unit_environment(vps, VERIFY, **environment):
        failed = backups.start(vps, VERIFY)
    assert (failed.result, failed.status) == ("exit-code", 14)
    damaged = f'the repository "local" ({place}) could not give back {STAGING}/backup/dump of {identity}: "'
    assert f"ERROR: {damaged}" in failed.said
    assert "ciphertext verification failed" in failed.said
    assert backups.listed(vps, **environment)[0]["verified"].startswith("FAILED, ")
    check = run(vps, "prefect-backup", "check", **environment)
    assert check.exit == 26
    assert check.facts["error"].startswith(f"the last verification, of {identity}, failed: {damaged}")
    assert leftovers(vps) == []
