"""The backups' pure decisions: command lines of restic, manifests, room, what is overdue, what a person is told."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import docker.errors
import pytest
from cryptography.fernet import Fernet
from prefect_backups import (
    backup,
    check,
    cli_backup,
    files,
    images,
    last,
    manifest,
    plan,
    space,
    stack,
    upkeep,
    verify,
)
from prefect_backups.command import why
from prefect_backups.errors import Code, Failure
from prefect_backups.host import Host
from prefect_backups.manifest import Manifest, Table
from prefect_backups.postgres import Postgres
from prefect_backups.progress import Report
from prefect_backups.restic import Backup, Repository
from prefect_backups.restic_output import (
    explained,
    hide_password,
    keep_options,
    last_words,
    old_backups,
    parse_snapshots,
    progress_of,
)
from prefect_backups.settings import Endpoint, Keep, Offsite, Settings
from prefect_backups.unit_names import UNITS
from prefect_backups.units import Units

ROOT = Path(__file__).resolve().parents[2]
NOW = datetime(2026, 11, 21, 5, 12, tzinfo=UTC)
ENDPOINT = Endpoint("https://prefect.example.org", "backups", "/p", "/c")
SETTINGS = Settings("1.0", ENDPOINT)
NAS = Offsite("nas", "sftp:b@nas:/r", {"AWS_SECRET_ACCESS_KEY": "hush"}, ["sftp.args=-i /k"])


def made(hours_ago: float = 0, added: int = 0, kind: str = "scheduled") -> Backup:
    """A backup of so many hours ago."""
    when = NOW - timedelta(hours=hours_ago)
    return Backup(when.strftime("%Y%m%dT%H%M%SZ"), "f" * 64, when, kind, "local", 9, added, "3.8.8", "17.12", "r", "1")


# --- restic ----------------------------------------------------------------------------------------------------------


def test_the_local_repository_needs_no_cache_and_dies_with_us():
    command = Repository.local(SETTINGS).command("backup", "--json")
    assert command == ["setpriv", "--pdeathsig", "TERM", "--", "restic", "--no-cache", "backup", "--json"]


def test_an_off_site_repository_gets_its_options_and_its_cache():
    (offsite,) = Repository.offsite(dataclasses.replace(SETTINGS, offsite=[NAS]))
    command = offsite.command("copy", source=Repository.local(SETTINGS))
    assert command[4:] == ["restic", "-o", "sftp.args=-i /k", "copy"]
    variables = offsite.variables({"PATH": "/bin", "RESTIC_PASSWORD": "other"}, Repository.local(SETTINGS))
    assert variables["RESTIC_REPOSITORY"] == "sftp:b@nas:/r"
    assert variables["RESTIC_FROM_REPOSITORY"] == SETTINGS.repository
    assert variables["RESTIC_PASSWORD_FILE"] == variables["RESTIC_FROM_PASSWORD_FILE"] == SETTINGS.password_file
    assert variables["AWS_SECRET_ACCESS_KEY"] == "hush"
    assert "RESTIC_PASSWORD" not in variables


def test_no_secret_is_in_a_command_line():
    repository = Repository("nas", "rest:https://u:hush@nas/", SETTINGS, {"AWS_SECRET_ACCESS_KEY": "hush"})
    assert "hush" not in " ".join(repository.command("backup", source=Repository.local(SETTINGS)))
    for status in (1, 10, 11, 12):
        assert "hush" not in str(repository.failure(status, "words", "be opened"))
    assert hide_password("rest:https://u:hush@nas:8000/x") == "rest:https://u:…@nas:8000/x"
    assert hide_password("sftp:b@nas:/r") == "sftp:b@nas:/r"


@pytest.mark.parametrize(
    ("name", "status", "words", "code"),
    [
        ("local", 12, "", Code.WRONG_KEY),
        ("local", 10, "", Code.NO_REPOSITORY),
        ("local", 11, "", Code.BUSY),
        ("local", 3, "lstat /etc/x: permission denied", Code.FILES),
        ("local", 1, "write /r/data/x: no space left on device", Code.NO_ROOM),
        ("local", 1, "ciphertext verification failed", Code.DAMAGED),
        ("nas", 12, "", Code.WRONG_KEY),
        ("nas", 10, "", Code.NO_REPOSITORY),
        ("nas", -1, "no answer within 60 s", Code.OFFSITE),
        ("nas", 1, "ssh: connect to host nas port 22: Connection refused", Code.OFFSITE),
        ("nas", 1, "Load(<data/1>): invalid data returned", Code.DAMAGED),
    ],
)
def test_what_restic_says_becomes_a_code(name, status, words, code):
    assert Repository(name, "/r", SETTINGS).failure(status, words, "be opened").code is code


def test_errors_of_a_repository_read_whole():
    local = Repository.local(SETTINGS)
    assert str(local.failure(12, "", "be opened")) == (
        'ERROR: the repository "local" (/var/backups/prefect/repository) does not open with the password in'
        " /etc/prefect/backups/password\n"
        "HINT: the right one is in the recovery kit (secrets/backup_password beside the inventory); put it there, then:"
        " ansible-playbook site.yml --tags backups"
    )
    assert str(local.failure(10, "", "be opened")) == (
        'ERROR: there is no repository at /var/backups/prefect/repository (the repository "local")\n'
        "HINT: is its disk mounted? If there has never been one: prefect-backup init"
    )


def test_snapshots_become_backups_newest_first_and_foreign_ones_are_left_out():
    def snapshot(identity: str, *tags: str) -> dict[str, Any]:
        return {"id": identity, "time": "2026-11-21T05:27:29.753135529Z", "tags": [*tags]}

    listed = [
        snapshot("a", "id=20261121T051200Z", "kind=manual", "prefect=3.8.8", "postgres=17.12", "revision=r", "kit=1"),
        snapshot("b", "foreign"),
        {**snapshot("c", "id=20261121T061200Z"), "summary": {"total_bytes_processed": 7, "data_added_packed": 3}},
        {"id": "d", "time": "2026-11-21T05:27:29.753135529Z", "tags": None},
    ]
    newest, oldest = parse_snapshots(json.dumps(listed), "nas")
    assert (newest.snapshot, newest.size, newest.added, newest.kind) == ("c", 7, 3, "?")
    assert oldest == Backup("20261121T051200Z", "a", NOW, "manual", "nas", 0, 0, "3.8.8", "17.12", "r", "1")
    assert parse_snapshots("null", "nas") == []


@pytest.mark.parametrize(
    "end", ["read |0: file already closed", "server unexpectedly closed connection: unexpected EOF"]
)
def test_what_is_left_of_a_failed_ssh_is_explained(end):
    said = f"Fatal: unable to start the sftp session, error: error receiving version packet from server: {end}"
    assert explained(said) == f"{said} (ssh ended before there was a session)"
    refused = "subprocess ssh: ssh: connect to host 127.0.0.1 port 9: Connection refused"
    assert explained(refused) == refused


def test_progress_and_last_words_are_read_from_json():
    status = '{"message_type":"status","percent_done":0.5,"total_bytes":20000000,"bytes_done":10000000}'
    assert progress_of(status) == (0.5, "10 MB of 20 MB")
    assert progress_of('{"message_type":"summary"}') is None
    assert progress_of("snapshot 1 saved") is None
    said = status + '\n{"message_type":"error","error":{"message":"no  such\\nfile"}}\n'
    assert last_words(said + '{"message_type":"exit_error","message":"Fatal: x"}\nplain') == (
        "no such file / Fatal: x / plain"
    )


def test_the_newest_backup_is_kept_by_every_policy():
    assert keep_options(Keep(24, 7, 0, 12)) == [
        "--keep-last=1",
        "--keep-hourly=24",
        "--keep-daily=7",
        "--keep-monthly=12",
    ]
    assert keep_options(Keep(0, 0, 0, 0)) == ["--keep-last=1"]


def test_only_backups_of_ours_are_forgotten():
    """What a person has put into the same repository stays, tagged like ours or not."""

    def snapshot(identity: str, *tags: str) -> dict[str, Any]:
        return {"id": identity, "tags": [*tags]}

    mine = [snapshot("a", "kind=manual"), snapshot("b", "id=before-the-move", "kind=manual"), {"id": "c", "tags": None}]
    ours = snapshot("d", "id=20261121T051200Z", "kind=manual")
    assert old_backups(json.dumps([{"remove": [*mine, ours]}, {"remove": None}])) == ["d"]
    assert old_backups("null") == []


def test_only_restics_own_half_written_files_are_removed(tmp_path):
    local = Repository.local(dataclasses.replace(SETTINGS, repository=str(tmp_path)))
    (tmp_path / "data/00").mkdir(parents=True)
    names = [f"data/00/{'0' * 64}-tmp-123", "data/00/mine-tmp-1", "notes-tmp-on-the-move.txt"]
    for name in names:
        (tmp_path / name).touch()
    local.remove_half_written()
    assert [(tmp_path / name).exists() for name in names] == [False, True, True]


# --- staging ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def staging(tmp_path, monkeypatch):
    """Postgres's staging directory; nobody here may give files away."""
    monkeypatch.setattr("prefect_backups.staging.shutil.chown", lambda *who: None)
    (tmp_path / "staging").mkdir()
    return Postgres("/socket", tmp_path / "staging")


def test_what_we_have_put_into_staging_goes(staging):
    made = staging.make_staging("backup")
    (made / "dump").mkdir()
    assert staging.is_ours("backup")
    assert staging.remove_staging("backup") is True
    assert list(staging.staging.parent.rglob("*")) == [staging.staging]
    made = staging.make_staging("backup")
    (made / "half").touch()
    assert list(staging.make_staging("backup").iterdir()) == []


def test_what_a_person_has_put_into_staging_stays(staging):
    """`restic restore --target /` brings a dump to that very place."""
    for name in ("backup", "mine"):
        (staging.staging / name).mkdir()
        (staging.staging / name / "toc.dat").write_text("mine")
    assert not staging.is_ours("backup")
    assert staging.remove_staging("backup") is False
    assert (staging.staging / "backup/toc.dat").read_text() == "mine"
    staging.make_staging("backup")
    staging.remove_staging("backup")
    (kept,) = staging.staging.glob("backup.kept-*")
    assert (kept / "toc.dat").read_text() == "mine"
    assert (staging.staging / "mine/toc.dat").read_text() == "mine"


# --- manifest --------------------------------------------------------------------------------------------------------

TABLES = {"flow_run": Table(3, "keys:12"), "variable": Table(1, "rows:5")}
MANIFEST = Manifest("i", "c", "manual", "1", "3.8.8", "17.12", "r", TABLES, 10, 20, 1.5, ["/etc/prefect"], "h")


def test_a_manifest_comes_back_as_it_was():
    assert Manifest.from_json(MANIFEST.to_json()) == MANIFEST
    assert MANIFEST.rows == 4
    # What a newer kit of the same format may add does not matter.
    assert Manifest.from_json(json.dumps({**json.loads(MANIFEST.to_json()), "more": 1})) == MANIFEST


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"tables": {}}', '{"tables": 5}', "{", b"\xff"])
def test_what_is_no_manifest_is_refused(text):
    with pytest.raises(Failure) as caught:
        Manifest.from_json(text)
    assert caught.value.code is Code.DAMAGED


def test_a_manifest_of_a_newer_format_is_refused():
    with pytest.raises(Failure) as caught:
        Manifest.from_json(json.dumps({**json.loads(MANIFEST.to_json()), "format": manifest.FORMAT + 1, "kit": "9"}))
    assert caught.value.code is Code.INCOMPATIBLE
    assert "9" in caught.value.hint


def test_differences_are_said_in_plain_words():
    assert manifest.compare(TABLES, TABLES) == []
    found = {"flow_run": Table(3, "keys:13"), "log": Table(0)}
    assert manifest.compare(TABLES, found) == [
        'the 3 rows of the table "flow_run" are not the ones of the backup',
        'there is a table "log" that the manifest does not know',
        'the table "variable" with 1 rows is missing',
    ]
    assert manifest.compare({"log": Table(2)}, {"log": Table(3, "rows:1")}) == [
        'the table "log" has 3 rows instead of 2'
    ]


def test_both_sides_compute_the_kinds_of_the_manifest():
    assert manifest._wanted("flow_run", 5, True, TABLES) == "keys"
    assert manifest._wanted("variable", 10**9, True, TABLES) == "rows"
    assert manifest._wanted("new", 5, True, TABLES) is None


# --- room ------------------------------------------------------------------------------------------------------------


def test_a_dump_is_estimated_from_the_last_one_or_else_from_the_tables():
    assert space.dump_bytes(1000, 5000, None) == 1500
    last = dataclasses.replace(MANIFEST, database_bytes=100, dump_bytes=40)
    assert space.dump_bytes(1000, 200, last) == 96


def test_growth_of_the_repository_is_estimated_from_earlier_backups():
    assert space.added_bytes(1000, []) == 400
    assert space.added_bytes(1000, [made(1, added=5), made(2, added=50)]) == 150
    assert space.added_bytes(1000, [made(1, added=1)]) == 100
    assert space.added_bytes(1000, [made(1, added=300)]) == 400


def test_no_room_is_refused_with_the_figures(tmp_path):
    needs = [(tmp_path / "staging", 3_000_000_000), (tmp_path / "repository", 500_000_000)]
    space.require("back up", needs, SETTINGS, free=lambda _: 4_600_000_000)
    with pytest.raises(Failure) as caught:
        space.require("back up", needs, SETTINGS, free=lambda _: 4_500_000_000)
    assert caught.value.code is Code.NO_ROOM
    assert caught.value.fact == (
        f"Refusing to back up: it needs about 3.5 GB (3.0 GB in {tmp_path}/staging, 500 MB in {tmp_path}/repository),"
        " and 1.1 GB must stay free (backups_reserve_mb), but 4.5 GB are free"
    )


def test_a_link_in_the_place_of_the_temporary_file_is_not_followed(tmp_path):
    """Whoever owns the directory would have root write, and open to all, what he names."""
    secret = tmp_path / "secret"
    secret.write_text("hush")
    secret.chmod(0o600)
    (tmp_path / ".figures.prom.new").symlink_to(secret)
    with pytest.raises(OSError, match="symbolic links"):
        files.write_whole(tmp_path / "figures.prom", "x", 0o644)
    assert secret.read_text() == "hush" and secret.stat().st_mode & 0o777 == 0o600


def test_each_file_system_is_asked_for_its_own_share(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    needs = [(tmp_path / "a", 10**9), (tmp_path / "b", 10**9)]
    space.require("x", needs, SETTINGS, free=lambda _: 2_200_000_000, device=lambda path: hash(path))
    with pytest.raises(Failure, match=r"2\.0 GB"):
        space.require("x", needs, SETTINGS, free=lambda _: 2_200_000_000, device=lambda path: 1)


# --- overdue ---------------------------------------------------------------------------------------------------------


def findings(backups: list[Backup], last: Any = None, verified: Any = None, offsite: bool = False) -> list[str]:
    settings = dataclasses.replace(SETTINGS, offsite=[NAS] if offsite else [])
    return check.findings(settings, NOW.timestamp(), backups, last or {}, verified or {})


def record(days_ago: float, ok: bool = True, **more: Any) -> dict[str, Any]:
    return {"backup": "b", "at": (NOW - timedelta(days=days_ago)).isoformat(), "ok": ok, **more}


def test_nothing_is_overdue():
    assert findings([made(1)]) == []
    assert findings([made(2.9), made(900)], {}, {"good": record(8.9), "last": record(8.9)}) == []


def test_an_overdue_backup():
    assert findings([]) == ["there is no backup: prefect-backup create"]
    (found,) = findings([made(3.1)])
    assert found == (
        f"the newest backup, {made(3.1).id}, is 3.1 hours old; 3.0 hours are allowed"
        " (backups_max_age_hours): journalctl -u prefect-backup -n 30"
    )


def test_an_overdue_copy():
    (found,) = findings([made(1), made(10)], offsite=True)
    assert found.startswith("there is no copy in nas; 3.0 hours are allowed")
    assert findings([made(1)], offsite=True) == []
    assert findings([made(1), made(10)], {"offsite": {"nas": {"ids": [made(10).id, made(2).id]}}}, offsite=True) == []
    (found,) = findings([made(1)], {"offsite": {"nas": {"ids": [made(9).id], "error": "no line"}}}, offsite=True)
    assert found.startswith(f"the newest copy in nas, {made(9).id}, is 9.0 hours old")
    assert found.endswith("the last attempt: no line")


def test_an_overdue_or_failed_verification():
    (found,) = findings([made(1), made(24 * 10)])
    assert found.startswith("no backup was ever verified; 9 days are allowed")
    (found,) = findings([made(1)], {}, {"good": record(10), "last": record(10)})
    assert found.startswith("the last good verification was 10 days ago")
    (found,) = findings([made(1)], {}, {"good": record(1), "last": record(0, ok=False, error="3 rows instead of 4")})
    assert found.startswith("the last verification, of b, failed: 3 rows instead of 4;")


# --- what runs -------------------------------------------------------------------------------------------------------


def unit(name: str, state: str = "failed", **more: str) -> dict[str, str]:
    return {"Id": name, "ActiveState": state, "Result": "exit-code", "ExecMainStatus": "16", "ended": "100", **more}


def host_findings(units: list[dict[str, str]] | None = None, **what: Any) -> list[str]:
    return check.host_findings(Units({one["Id"]: one for one in units or []}, **what))


def test_a_host_on_which_all_runs():
    assert host_findings(units=[unit(name, "inactive") for name in UNITS]) == []


def test_a_unit_that_has_failed():
    assert host_findings(units=[unit("prefect-backup.service")]) == [
        "prefect-backup.service has failed (result exit-code, exit code 16): journalctl -u prefect-backup -n 30"
    ]
    # A person has made a backup since.
    assert host_findings(units=[unit("prefect-backup.service")], newest=101.0) == []
    assert len(host_findings(units=[unit("prefect-restore.service")], newest=101.0)) == 1
    assert len(host_findings(units=[unit("prefect-backup.service", ended="")], newest=101.0)) == 0


def test_workers_that_are_down():
    assert host_findings(down=["prefect-worker@a.service", "prefect-worker@b.service"]) == [
        "prefect-worker@a.service, prefect-worker@b.service do not run:"
        " systemctl start prefect-worker@a.service prefect-worker@b.service"
    ]


def test_a_restore_that_did_not_end():
    assert host_findings(unfinished="the undo") == [
        "the undo did not end: prefect-restore --resume, --undo, or --latest"
    ]


# --- which Postgres -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("image", "major"),
    [
        ("postgres:17.12-trixie", 17),
        ("postgres:17", 17),
        ("registry.example.org:5000/tools/postgres:18-alpine", 18),
        (f"postgres:17.12-trixie@sha256:{'18' * 32}", 17),
        (f"postgres@sha256:{'18' * 32}", None),
        (f"registry.example.org:5000/postgres@sha256:{'18' * 32}", None),
        ("registry.example.org:5000/postgres", None),
        ("postgres:trixie", None),
        ("", None),
    ],
)
def test_the_version_of_postgres_is_read_of_its_tag(image, major):
    assert images.major_of(image) == major


class Engine:
    """Docker, with one image that says something when it is run, or none."""

    def __init__(self, *said: str) -> None:
        self.images = self.containers = self
        self.said, self.ran = said, []

    def get(self, image: str) -> Any:
        if not self.said:
            raise docker.errors.ImageNotFound("no such image")
        return SimpleNamespace(id="sha256:here")

    def run(self, image: str, command: list[str], **options: Any) -> bytes:
        self.ran.append((image, command, options["entrypoint"], options["network_mode"]))
        return self.said[0].encode()


def host_of(image: str, engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> stack.Stack:
    (tmp_path / "stack.env").write_text(f"POSTGRES_IMAGE={image}\n")
    monkeypatch.setattr(images.docker, "from_env", lambda: engine)
    return stack.Stack(dataclasses.replace(SETTINGS, compose_environment=str(tmp_path / "stack.env")))


DIGEST = f"postgres@sha256:{'0a' * 32}"


def test_an_image_whose_tag_does_not_tell_its_version_is_asked_itself(tmp_path, monkeypatch):
    engine = Engine("postgres (PostgreSQL) 16.4 (Debian 16.4-1.pgdg120+1)\n")
    assert host_of(DIGEST, engine, tmp_path, monkeypatch).postgres_major() == 16
    assert engine.ran == [("sha256:here", ["--version"], "postgres", "none")]
    tagged = Engine("postgres (PostgreSQL) 16.4")
    assert host_of("postgres:17.12", tagged, tmp_path, monkeypatch).postgres_major() == 17
    assert tagged.ran == []


@pytest.mark.parametrize(("engine", "words"), [(Engine(), "no such image"), (Engine("sh: what?\n"), "sh: what?")])
def test_an_image_that_does_not_tell_its_version_is_refused(engine, words, tmp_path, monkeypatch):
    with pytest.raises(Failure) as refused:
        host_of(DIGEST, engine, tmp_path, monkeypatch).postgres_major()
    assert refused.value.code is Code.INCOMPATIBLE
    assert refused.value.fact == (
        f'Refusing to restore: which Postgres "{DIGEST}" is, neither its tag nor the image itself tells: "{words}"'
    )
    assert "prefect_postgres_image: postgres:17@sha256:…" in refused.value.hint


def test_a_backup_of_a_newer_postgres_is_refused_whatever_pins_the_image(tmp_path, monkeypatch):
    for image in DIGEST, f"postgres:16@sha256:{'0a' * 32}":
        host = host_of(image, Engine("postgres (PostgreSQL) 16.4"), tmp_path, monkeypatch)
        account = dataclasses.replace(Manifest.from_json(MANIFEST.to_json()), postgres="17.12")
        made_of = plan.Plan(made(), account, None, account.prefect, "readable", None, None)
        with pytest.raises(Failure) as refused:
            plan.Planner(Host(SETTINGS, Report.silent(), host, None))._check_versions(made_of)
        assert refused.value.code is Code.INCOMPATIBLE
        assert refused.value.fact == (
            f"Refusing to restore {made().id}: it is of Postgres 17.12, and this host runs {image}, whose pg_restore"
            " cannot read it"
        )


# --- how long a start may take ----------------------------------------------------------------------------------------


class Container:
    """A container, by the states that it is seen in one after the other: status, health, restarts so far."""

    def __init__(self, *states: tuple[str, str, int]) -> None:
        self.states, self.looks = states, 0

    @property
    def now(self) -> tuple[str, str, int]:
        return self.states[min(self.looks, len(self.states) - 1)]

    status = property(lambda self: self.now[0])
    health = property(lambda self: self.now[1])
    attrs = property(lambda self: {"RestartCount": self.now[2]})

    def reload(self) -> None:
        self.looks += 1

    def logs(self, tail: int) -> bytes:
        return b"still\nrecovering\n"


STARTING, HEALTHY = ("running", "starting", 0), ("running", "healthy", 0)


@pytest.fixture
def starting(monkeypatch):
    """`starting(container, seconds)` is a host whose containers are that one, and whose clock is not waited for."""
    clock = [0.0]
    monkeypatch.setattr(stack.time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(stack.time, "sleep", lambda seconds: clock.__setitem__(0, clock[0] + seconds))
    monkeypatch.setattr(stack.Stack, "compose", lambda self, *words, **more: None)
    monkeypatch.setattr(stack.Stack, "volume", lambda self: Path("/volume"))

    def make(container: Container, seconds: int = 900) -> stack.Stack:
        engine = SimpleNamespace(containers=SimpleNamespace(get=lambda name: container))
        monkeypatch.setattr(stack.docker, "from_env", lambda: engine)
        return stack.Stack(dataclasses.replace(SETTINGS, start_seconds=seconds))

    return make


def test_a_start_is_waited_for_as_long_as_the_inventory_says(starting):
    """On a processor that is 15 times slower the server takes minutes."""
    slow = Container(*[STARTING] * 4000, HEALTHY)
    starting(slow).start_server()
    assert slow.health == "healthy"
    with pytest.raises(Failure) as late:
        starting(Container(*[STARTING] * 4000, HEALTHY), seconds=60).start_server()
    assert late.value.code is Code.NOT_READY
    assert late.value.fact == 'the server is not ready after 60 s (stack_start_timeout): "still / recovering"'
    assert late.value.hint == (
        "look at: docker logs --tail 50 prefect-server ; where the host is only slow: raise stack_start_timeout in the"
        " inventory, run site.yml --tags backups ; when that is solved: prefect-restore --resume ; or go back:"
        " prefect-restore --undo"
    )


def test_a_postgres_that_is_slow_is_not_taken_for_broken(starting):
    postgres = SimpleNamespace(wait=lambda seconds: None)
    starting(Container(*[STARTING] * 4000, HEALTHY)).start_postgres(postgres)
    with pytest.raises(Failure) as late:
        starting(Container(STARTING), seconds=60).start_postgres(postgres)
    assert late.value.code is Code.NO_DATABASE
    assert late.value.fact == 'Postgres does not start within 60 s (stack_start_timeout): "still / recovering"'
    assert late.value.hint.startswith("where the host is only slow: raise stack_start_timeout in the inventory")
    with pytest.raises(Failure) as broken:
        starting(Container(STARTING, ("restarting", "starting", 3))).start_postgres(postgres)
    assert broken.value.fact == 'Postgres does not start: "still / recovering"'


def test_a_server_that_ends_again_and_again_is_not_waited_for(starting):
    with pytest.raises(Failure) as broken:
        starting(Container(STARTING, ("restarting", "starting", 5))).start_server()
    assert broken.value.fact == 'the server does not start: it has ended 5 times: "still / recovering"'
    assert broken.value.code is Code.NOT_READY


# --- verification ----------------------------------------------------------------------------------------------------


def test_shares_of_the_repository_take_turns():
    assert verify.next_share({}) == 1
    assert [verify.next_share({"share": share}) for share in (1, 6, 7)] == [2, 7, 1]


def test_the_last_good_verification_is_remembered_beside_a_failed_one(tmp_path):
    known = verify.remembered({}, record(2, share=3))
    known = verify.remembered(known, record(1, ok=False, error="x") | {"backup": "c"})
    assert (known["good"]["backup"], known["last"]["backup"], known["share"]) == ("b", "c", 3)
    (tmp_path / "verified.json").write_text(json.dumps(known))
    words = verify.verified(tmp_path)
    assert words["b"].startswith("yes, 2026-11-") and words["c"].startswith("FAILED, 2026-11-")
    assert verify.verified(tmp_path / "none") == {}


def test_blocks_decrypt_with_the_key_of_the_backup_only():
    key, other = Fernet.generate_key(), Fernet.generate_key().decode()
    blocks = [("slack", Fernet(key).encrypt(b'{"a": 1}').decode())]
    assert verify.decrypt(blocks, key.decode()) == 1
    with pytest.raises(Failure, match='the block "slack" does not decrypt'):
        verify.decrypt(blocks, other)


def test_the_throwaway_postgres_is_shut_in():
    options = verify.container_options(SETTINGS, "sha256:1")
    assert options["network_mode"] == "none"
    assert options["read_only"] and options["cap_drop"] == ["ALL"]
    assert options["mem_limit"] == options["memswap_limit"] == "384m"
    assert "POSTGRES_PASSWORD" not in options["environment"]


# --- what is remembered of the last backup ------------------------------------------------------------------------------


def test_a_prune_does_not_write_over_what_another_has_written_meanwhile(tmp_path, monkeypatch):
    """A copy off-site prunes for minutes while the next backup prunes here: both are remembered."""
    settings = dataclasses.replace(SETTINGS, state=str(tmp_path), offsite=[NAS])
    local, (nas,) = Repository.local(settings), Repository.offsite(settings)
    monkeypatch.setattr(Repository, "forget", lambda self, keep: 0)

    def prune(self: Repository, thorough: bool = True) -> None:
        if not self.is_local:
            upkeep.tidy(settings, local, Report.silent())

    monkeypatch.setattr(Repository, "prune", prune)
    upkeep.tidy(settings, nas, Report.silent())
    assert set(last.read_last(settings)["pruned"]) == {"local", "nas"}


def test_two_that_remember_at_once_both_do(tmp_path):
    settings = dataclasses.replace(SETTINGS, state=str(tmp_path))
    with ThreadPoolExecutor(8) as pool:
        for done in [pool.submit(last.remember, settings, pruned={str(n): 1.0}) for n in range(40)]:
            done.result()
    assert len(last.read_last(settings)["pruned"]) == 40


def test_what_is_new_takes_the_place_of_what_was_known_by_its_name():
    known = {"id": "a", "offsite": {"nas": {"ids": ["a"], "error": "x"}, "s3": {"ids": []}}}
    assert last.merged(known, {"id": "b", "offsite": {"nas": {"error": None}}}) == {
        "id": "b",
        "offsite": {"nas": {"ids": ["a"], "error": None}, "s3": {"ids": []}},
    }


# --- command line and messages ---------------------------------------------------------------------------------------


def test_a_timer_waits_and_a_person_is_told_at_once():
    assert cli_backup.patience(None, terminal=True) == 0
    assert cli_backup.patience(None, terminal=False) == cli_backup.PATIENCE
    assert cli_backup.patience(5, terminal=True) == 5


def test_where_a_backup_is():
    last = {"offsite": {"nas": {"ids": [made(1).id]}, "s3": {"error": "x"}}}
    assert cli_backup.places(made(1), last) == ["local", "nas"]
    assert cli_backup.places(made(2), last) == ["local"]


@pytest.mark.parametrize("verb", ["init", "create", "list", "verify", "prune", "check", "clean"])
def test_every_verb_has_json(verb):
    assert cli_backup.parser().parse_args([verb, "--json"]).json


def test_kinds_of_backups_are_the_ones_that_retention_knows():
    from prefect_backups.restic import ADOPTED, OTHER_KINDS, SCHEDULED

    assert (*backup.KINDS, ADOPTED) == (SCHEDULED, *OTHER_KINDS)


@pytest.mark.parametrize(("end", "code"), [("outlived(3)", 3), ("outlived(0)", 0), ("0", 120)])
def test_a_terminal_that_is_gone_changes_no_exit_code(end, code):
    """The last row is what Python does by itself."""
    program = (
        "import sys; from prefect_backups.progress import Report, outlived, result\n"
        f"Report(sys.stderr).say('words'); result({{}}); raise SystemExit({end})"
    )
    reader, writer = os.pipe()
    os.close(reader)
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[2] / "backups")}
    environment.pop("PYTHONUNBUFFERED", None)
    done = subprocess.run([sys.executable, "-c", program], stdout=writer, stderr=writer, env=environment)
    os.close(writer)
    assert done.returncode == code


def test_enabled_workers_are_instances_and_not_their_template(tmp_path, monkeypatch):
    """`systemctl list-unit-files --state=enabled` lists no instance (seen with systemd 257), so a dead worker was well."""
    wants = tmp_path / "multi-user.target.wants"
    wants.mkdir()
    for name in ("prefect-worker@general-1.service", "prefect-docker-worker@c.service", "ssh.service"):
        (wants / name).symlink_to("/etc/systemd/system/x@.service")
    (tmp_path / "prefect-worker@.service").touch()
    monkeypatch.setattr(stack, "UNITS", tmp_path)
    found = stack.Stack(None).enabled_workers()
    assert found == ["prefect-docker-worker@c.service", "prefect-worker@general-1.service"]


@pytest.mark.parametrize(
    ("said", "words"),
    [
        ("a\nb\nc\nd\ne\n", "b / c / d / e"),
        ("no such Error: here\n", "no such Error: here"),
        (
            "Traceback (most recent call last):\n  File x\nasyncpg.DuplicateTableError: relation\n\nTraceback (most recent call "
            'last):\nsqlalchemy.exc.ProgrammingError: (asyncpg) <class>: relation "held" already exists\n[SQL:\nCREATE TABLE '
            "held (\n)\n]\n(Background on this error at: https://sqlalche.me/e/20/f405)\nAn exception occurred.\n",
            'sqlalchemy.exc.ProgrammingError: (asyncpg) <class>: relation "held" already exists',
        ),
        ("Traceback (most recent call last)\nx\n", "Traceback (most recent call last) / x"),
    ],
)
def test_why_a_program_has_failed(said, words):
    assert why(said) == words
