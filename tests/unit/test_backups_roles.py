"""Who connects to a database, and what hands one over."""

from __future__ import annotations

import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psycopg
import pytest
from prefect_backups import verify
from prefect_backups.errors import Code, Failure
from prefect_backups.postgres import Postgres
from prefect_backups.settings import Endpoint, Settings

COMPOSE = Path(__file__).resolve().parents[2] / "compose"
ROLE = COMPOSE / "postgres" / "1-server-role.sql"
SUPERUSER_LAST = COMPOSE / "postgres" / "2-superuser-without-password.sql"
OWNERS = {
    "prefect": "prefect_server",
    "prefect_restore": "prefect_server",
    "prefect_previous": "prefect",
    "postgres": "prefect",
}


@pytest.fixture
def cluster(monkeypatch):
    """`cluster.seen`: user and database of each connection; `cluster.run`: what was run, or raised where it is an error."""
    played = SimpleNamespace(seen=[], run=[], fails=None)

    class Connection:
        def execute(self, text: Any, given: Any = None) -> SimpleNamespace:
            played.run.append(text)
            if played.fails:
                raise played.fails
            owned = given and OWNERS.get(given[0]) == given[-1]
            return SimpleNamespace(fetchone=lambda: (1,) if owned else None)

        def __enter__(self) -> Connection:
            return self

        def __exit__(self, *_: object) -> None: ...

    def connect(**options: Any) -> Any:
        played.seen.append((options["user"], options["dbname"]))
        return Connection()

    monkeypatch.setattr(psycopg, "connect", connect)
    return played


@pytest.mark.parametrize(("database", "user"), [*OWNERS.items(), ("gone", "prefect")])
def test_a_database_is_entered_as_its_owner(cluster, database, user):
    """Of another database only the cluster's own is asked, in which nobody else has put anything."""
    with Postgres("/socket", Path()).connect(database):
        pass
    assert cluster.seen[-1] == (user, database)
    assert set(cluster.seen[:-1]) <= {("prefect", "postgres")}


@pytest.mark.parametrize(("database", "handed"), [("prefect_previous", True), ("prefect_restore", False)])
def test_what_becomes_the_live_one_is_the_servers(cluster, monkeypatch, database, handed):
    """Such as one that a restore of an earlier kit has left for an undo."""
    monkeypatch.setattr(Postgres, "_mark", lambda *_: None)
    Postgres("/socket", Path(), role=ROLE).swap((database, "prefect"))
    assert (ROLE.read_bytes() in cluster.run) == handed


def test_a_host_without_the_role_has_nothing_to_hand_over(cluster, tmp_path):
    for role in (None, tmp_path / "none.sql"):
        Postgres("/socket", Path(), role=role).hand_over()
    assert cluster.seen == []


def test_what_cannot_be_handed_over_is_said(cluster):
    cluster.fails = psycopg.errors.RaiseException("public.log is in use")
    with pytest.raises(Failure) as failure:
        Postgres("/socket", Path(), role=ROLE).hand_over("prefect")
    assert failure.value.code is Code.NOT_READY
    assert failure.value.fact == (
        'the database "prefect" cannot be given to the role "prefect_server": public.log is in use'
    )


def test_a_verification_has_the_role_of_a_restore(tmp_path):
    """What a restore could not do without a superuser's rights fails there."""
    settings = Settings("1", Endpoint("https://x", "backups", "/p", "/c"), compose_file=str(COMPOSE / "compose.yml"))
    mounted = {mount["bind"]: (path, mount["mode"]) for path, mount in options(settings).items()}
    assert mounted["/docker-entrypoint-initdb.d"] == (str(COMPOSE / "postgres"), "ro")
    before = Settings("1", Endpoint("https://x", "backups", "/p", "/c"), compose_file=str(tmp_path / "compose.yml"))
    assert "/docker-entrypoint-initdb.d" not in {mount["bind"] for mount in options(before).values()}


def options(settings: Settings) -> dict[str, dict[str, str]]:
    return verify.container_options(settings, "sha256:1")["volumes"]


def test_the_handover_is_one_statement_that_trusts_no_name_of_the_database():
    """It commits in between, which nothing but a DO block by itself may; and a superuser runs it."""
    text = re.sub(r"^\s*--.*\n", "", ROLE.read_text(), flags=re.MULTILINE)
    assert text.startswith("DO $$") and text.endswith("END $$;\n") and text.count("$$") == 2
    declared, _, body = text.partition("BEGIN\n")
    assert set(re.findall(r"(\S+)(?: :=|;)", declared)) >= {"pg_catalog.text", "pg_catalog.record"}
    assert re.match(r"\s*SET search_path = pg_catalog;", body)


def test_the_superuser_loses_its_password_last():
    """A new cluster's entrypoint runs them in the order of their names."""
    assert sorted(path.name for path in ROLE.parent.iterdir()) == [ROLE.name, SUPERUSER_LAST.name]
    assert SUPERUSER_LAST.read_text().endswith("ALTER ROLE prefect PASSWORD NULL;\n")
