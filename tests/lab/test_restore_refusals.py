"""What prefect-restore refuses, each in its own words and with its own exit code, and that nothing has changed then.

Backups that nobody should restore are made of a good one with restic itself; broken repositories are copies, which
settings in another directory lead to.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.lab import restores
from tests.lab.restores import STAGING, back_up, databases, leftovers, mark, marker, restore, restored, until
from tests.lab.seed import psql
from tests.lab.shards import this_shard
from tests.lab.vps.vps import Vps

HERE = this_shard().prefect
ETC = "/run/restore-etc"
SCRATCH = "/var/backups/prefect/scratch"
RESTIC = "RESTIC_REPOSITORY=/var/backups/prefect/repository RESTIC_PASSWORD_FILE=/etc/prefect/backups/password restic"
COMPOSE = "docker compose --env-file /etc/prefect/stack.env -f /opt/prefect/compose/compose.yml"
TAKE = """
import json, sys
sys.path.insert(0, "/opt/prefect/backups/current")
from pathlib import Path
from prefect_backups import manifest
from prefect_backups.postgres import Postgres
with Postgres("/var/lib/prefect/postgres/socket", Path("/")).connect("prefect_old", autocommit=False) as connection:
    print(json.dumps({name: [one.rows, one.checksum] for name, one in manifest.take(connection).items()}))
"""


@pytest.fixture(scope="module", autouse=True)
def no_timers(vps: Vps) -> Iterator[None]:
    with restores.no_timers(vps):
        yield


@pytest.fixture(scope="module")
def backup(vps: Vps, endpoint: Any, no_timers: None) -> Iterator[str]:
    """A good backup; the world after it says so."""
    mark(endpoint, "backup")
    made = back_up(vps)
    mark(endpoint, "later")
    yield made
    vps.ssh(f"rm -rf {ETC} {SCRATCH}")


@pytest.fixture
def etc(vps: Vps, backup: str) -> Callable[..., dict[str, str]]:
    """`etc(reserve_mb=5)` is the environment in which the tools have other settings."""

    def write(**more: Any) -> dict[str, str]:
        settings = json.loads(vps.ssh("cat /etc/prefect/backups/settings.json").stdout) | more
        vps.ssh(f"install -d -m 700 {ETC} {SCRATCH}; cat > {ETC}/settings.json", text=json.dumps(settings))
        return {"PREFECT_BACKUPS_ETC": ETC}

    return write


Change = Callable[[dict[str, Any]], None]


@pytest.fixture(scope="module")
def doctored(vps: Vps, backup: str) -> Iterator[Callable[[str, Change], str]]:
    """`doctored(id, change)` stores the good backup again, with another id and `change` made to its manifest."""
    made: list[str] = []
    there = f"{STAGING}/backup"

    def store(identity: str, change: Change, more: str = "true") -> str:
        vps.ssh(f"{RESTIC} restore latest --tag id={backup} --target / --include {there}")
        try:
            facts = json.loads(vps.ssh(f"cat {there}/manifest.json").stdout)
            facts["id"] = identity
            change(facts)
            vps.ssh(f"cat > {there}/manifest.json", text=json.dumps(facts))
            tags = {"id": identity, "kind": "manual", **{name: facts[name] for name in ("prefect", "postgres", "kit")}}
            options = " ".join(f"--tag {name}={value}" for name, value in tags.items())
            said = vps.ssh(f"{more} && {RESTIC} backup --json --host prefect {options} {there} | tail -1").stdout
            made.append(json.loads(said)["snapshot_id"])
        finally:
            vps.ssh(f"rm -rf {there}")
        return identity

    yield store
    if made:
        vps.ssh(f"{RESTIC} forget --quiet {' '.join(made)}")


@pytest.fixture
def nothing_changed(vps: Vps, endpoint: Any, backup: str) -> Iterator[None]:
    """The same server serves the same world afterwards, and nothing is left over."""
    server = "docker inspect --format '{{.State.StartedAt}}' prefect-server"
    before = (vps.ssh(server).stdout, databases(vps))
    yield
    assert (vps.ssh(server).stdout, databases(vps)) == before
    assert marker(endpoint) == "later"
    until("nothing left over", lambda: leftovers(vps))


# --- the repository ----------------------------------------------------------------------------------------------


def test_a_wrong_key(vps: Vps, etc: Any, nothing_changed: None) -> None:
    environment = etc(password_file=f"{ETC}/password")
    vps.ssh(f"echo wrong > {ETC}/password")
    refused = restore(vps, "--latest", **environment)
    assert (refused.exit, refused.facts["code"]) == (12, "WRONG_KEY")
    assert refused.facts["error"] == (
        'the repository "local" (/var/backups/prefect/repository) does not open with the password in /run/restore-etc/password'
    )
    assert refused.facts["hint"] == (
        "the right one is in the recovery kit (secrets/backup_password beside the inventory); put it there, then:"
        " ansible-playbook site.yml --tags backups"
    )


def test_no_repository_and_an_empty_one(vps: Vps, etc: Any, nothing_changed: None) -> None:
    environment = etc(repository=f"{SCRATCH}/empty")
    refused = restore(vps, "--latest", **environment)
    assert (refused.exit, refused.facts["code"]) == (13, "NO_REPOSITORY")
    assert refused.facts["error"] == f'there is no repository at {SCRATCH}/empty (the repository "local")'
    assert refused.facts["hint"] == ("is its disk mounted? If there has never been one: prefect-backup init")
    assert restores.run(vps, "prefect-backup", "init", **environment).exit == 0
    refused = restore(vps, "--latest", **environment)
    assert (refused.exit, refused.facts["code"]) == (21, "NOT_FOUND")
    assert refused.facts["error"] == "there is no backup"
    assert refused.facts["hint"] == "another repository? prefect-restore --latest --from NAME"


def test_a_flipped_byte_and_another_repository(vps: Vps, endpoint: Any, etc: Any, backup: str) -> None:
    """One bit of the stored data is another one: refused, and another repository brings the same backup back."""
    place = f"{SCRATCH}/flipped"
    # With nothing in it but the database, so that the byte is one of it.
    lonely = etc(repository=place, files=[])
    assert restores.run(vps, "prefect-backup", "init", **lonely).exit == 0
    flipped = restores.run(vps, "prefect-backup", "create", **lonely).facts["id"]
    pack = f"$(find {place}/data -type f -printf '%s %p\\n' | sort -n | tail -1 | cut -d ' ' -f 2)"
    flip = (
        "import sys; file = open(sys.argv[1], 'r+b'); file.seek(0, 2); file.seek(file.tell() // 2); byte = file.read(1)[0];"
        " file.seek(-1, 1); file.write(bytes([byte ^ 1]))"
    )
    vps.ssh(f'pack={pack}; chmod u+w $pack; python3 -c "{flip}" $pack')
    offsite = [{"name": "elsewhere", "repository": "/var/backups/prefect/repository"}]
    environment = etc(repository=place, offsite=offsite)
    refused = restore(vps, "--id", flipped, "--without-safety-backup", **environment)
    assert (refused.exit, refused.facts["code"]) == (14, "DAMAGED")
    assert refused.facts["error"].startswith(
        f'the repository "local" ({place}) could not give back {STAGING}/backup/dump of {flipped}: "'
    )
    assert "ciphertext verification failed" in refused.facts["error"]
    assert refused.facts["hint"] == (
        "look at the whole of it: restic check --read-data; take another backup: prefect-restore --list"
    )
    assert marker(endpoint) == "later"
    until("nothing left over", lambda: leftovers(vps))

    outcome = restored(vps, "--id", backup, "--from", "off-site", "--without-safety-backup", **environment)
    assert outcome.facts["repository"] == "elsewhere"
    assert marker(endpoint) == "backup"
    mark(endpoint, "later")


# --- the backup --------------------------------------------------------------------------------------------------


def test_what_comes_back_is_not_what_the_manifest_says(
    vps: Vps, doctored: Any, nothing_changed: None, backup: str
) -> None:
    rows = 0

    def one_more(facts: dict[str, Any]) -> None:
        nonlocal rows
        rows = facts["tables"]["flow"]["rows"]
        facts["tables"]["flow"]["rows"] += 1

    wrong = doctored("20010101T000001Z", one_more)
    refused = restore(vps, "--id", wrong, "--without-safety-backup")
    assert (refused.exit, refused.facts["code"]) == (19, "MISMATCH")
    assert refused.facts["error"] == (
        f'the backup {wrong} came back different from its manifest: the table "flow" has {rows} rows instead of {rows + 1}'
    )
    assert refused.facts["hint"] == "nothing has changed; choose another backup: prefect-restore --list"


def test_versions_that_do_not_fit(vps: Vps, doctored: Any, backup: str) -> None:
    """A newer Prefect, a newer Postgres, a newer kit: what would solve it is said."""
    here = vps.ssh("sed -n 's/^POSTGRES_IMAGE=//p' /etc/prefect/stack.env").stdout.strip().strip("'\"")
    prefect = doctored("20010101T000002Z", lambda facts: facts.update(prefect="99.1.2"))
    refused = restore(vps, "--id", prefect)
    assert (refused.exit, refused.facts["code"]) == (20, "INCOMPATIBLE")
    assert refused.facts["error"] == (
        f"Refusing to restore {prefect}: it is of Prefect 99.1.2, and this host runs Prefect {HERE}, which cannot read it"
    )
    assert refused.facts["hint"] == (
        "upgrade first: ansible-playbook upgrade.yml -e prefect_version=99.1.2 (on a new server, before its first restore: the same "
        "site.yml with -e prefect_version=99.1.2);"
        " or choose an older backup: prefect-restore --list"
    )
    postgres = doctored("20010101T000003Z", lambda facts: facts.update(postgres="99.3"))
    refused = restore(vps, "--id", postgres)
    assert (refused.exit, refused.facts["code"]) == (20, "INCOMPATIBLE")
    assert refused.facts["error"] == (
        f"Refusing to restore {postgres}: it is of Postgres 99.3, and this host runs {here}, whose pg_restore cannot read it"
    )
    assert refused.facts["hint"] == (
        "upgrade first: ansible-playbook upgrade.yml --tags postgres -e prefect_postgres_image=postgres:99… (a new server, "
        "whose cluster is empty: systemctl stop prefect-stack; docker rm --force prefect-postgres; docker volume rm "
        "prefect_postgres; rm /var/lib/prefect/migrated; then the same site.yml with -e prefect_postgres_image=postgres:99…)"
    )
    kit = doctored("20010101T000004Z", lambda facts: facts.update(format=99, kit="9.9"))
    refused = restore(vps, "--id", kit)
    assert (refused.exit, refused.facts["code"]) == (20, "INCOMPATIBLE")
    assert refused.facts["error"] == "the backup's manifest is of format 99, and this kit knows up to 2"
    assert refused.facts["hint"] == "use the kit of version 9.9 or newer"


def test_no_room(vps: Vps, etc: Any, nothing_changed: None, backup: str) -> None:
    refused = restore(vps, "--id", backup, **etc(reserve_mb=10_000_000))
    assert (refused.exit, refused.facts["code"]) == (15, "NO_ROOM")
    assert refused.facts["error"].startswith(f"Refusing to restore {backup}: it needs ")
    assert " and 10485.8 GB must stay free (backups_reserve_mb), but " in refused.facts["error"]
    assert refused.facts["hint"] == (
        "make room: docker system prune; prefect-backup prune; prefect-restore --drop-previous, if nobody wants --undo"
    )


def test_a_database_of_a_persons(vps: Vps, nothing_changed: None, backup: str) -> None:
    """With a name that a restore would take, and remove at its end: it is left alone."""
    psql(vps, "CREATE DATABASE prefect_given_up", database="postgres")
    try:
        refused = restore(vps, "--id", backup)
        there = databases(vps)
    finally:
        psql(vps, "DROP DATABASE prefect_given_up", database="postgres")
    assert (refused.exit, refused.facts["code"]) == (31, "FOREIGN")
    assert refused.facts["error"] == (
        'Refusing to restore: the database "prefect_given_up" has a name that this kit uses, but was not made by it'
    )
    assert refused.facts["hint"] == (
        "give it another name: docker exec prefect-postgres psql -U prefect -d postgres"
        " -c 'ALTER DATABASE prefect_given_up RENAME TO mine'"
    )
    assert "prefect_given_up" in there


def test_a_backup_of_an_older_prefect(vps: Vps, endpoint: Any, doctored: Any, backup: str) -> None:
    """Its database is migrated beside the live one, before the swap; killed in that, the old data are served on."""
    mark(endpoint, "older")
    newest = psql(vps, "SELECT version_num FROM alembic_version")
    psql(vps, "DROP DATABASE IF EXISTS prefect_old WITH (FORCE)", database="postgres")
    psql(vps, "CREATE DATABASE prefect_old TEMPLATE template0", database="postgres")
    try:
        copy = "pg_dump -U prefect prefect | psql -U prefect --quiet --output /dev/null prefect_old"
        vps.ssh(f"docker exec prefect-postgres sh -c '{copy}'")
        vps.ssh(
            f"{COMPOSE} run --rm --no-TTY --no-deps --env PREFECT_SERVER_DATABASE_NAME=prefect_old migrate"
            " prefect server database downgrade -y -r -1"
        )
        older = psql(vps, "SELECT version_num FROM alembic_version", database="prefect_old")
        assert older != newest
        tables = json.loads(vps.ssh("/opt/prefect/backups/venv/bin/python -", text=TAKE).stdout)

        def age(facts: dict[str, Any]) -> None:
            named = {name: {"rows": rows, "checksum": checksum} for name, (rows, checksum) in tables.items()}
            facts.update(prefect="3.8.7", revision=older, tables=named)

        dump = (
            "pg_dump -U prefect --format directory --compress none --no-owner --file /staging/backup/dump prefect_old"
        )
        more = f"rm -r {STAGING}/backup/dump && docker exec --user postgres prefect-postgres {dump}"
        old = doctored("20010101T000005Z", age, more)
    finally:
        psql(vps, "DROP DATABASE IF EXISTS prefect_old WITH (FORCE)", database="postgres")

    mark(endpoint, "later")
    killed = restore(vps, "--id", old, "--without-safety-backup", PREFECT_BACKUPS_FAILPOINT="kill:migrate:end")
    assert killed.exit == 255, killed.said
    restores.until("what the killed one has left is taken back", lambda: leftovers(vps))
    assert marker(endpoint) == "later"

    outcome = restored(vps, "--id", old, "--without-safety-backup")
    assert f"migrations from Prefect 3.8.7 to {HERE}" in outcome.said
    assert outcome.facts["smoke"].startswith("flow run Completed with 3 task runs")
    assert marker(endpoint) == "older"
    assert psql(vps, "SELECT version_num FROM alembic_version") == newest
