"""prefect-backup adopt: which dumps it takes, what of them, of which Prefect they are, and that nothing chooses them by itself."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import pytest
from prefect_backups import adopt, check, choose
from prefect_backups.errors import Code, Failure
from prefect_backups.restic import ADOPTED, Backup

LIST = """;
; Archive created at 2026-11-27 16:00:00 UTC
;     dbname: prefect
;     Format: CUSTOM
;     Dumped from database version: 14.13 (Debian 14.13-1.pgdg120+1)
;     Dumped by pg_dump version: 14.13 (Debian 14.13-1.pgdg120+1)
;
; Selected TOC Entries:
;
2; 3079 16385 EXTENSION - pg_trgm
3799; 0 0 COMMENT - EXTENSION pg_trgm
7; 3079 20000 EXTENSION - pg_stat_statements
900; 1247 16540 TYPE public state_type prefect
210; 1259 16466 TABLE public alembic_version prefect
211; 1259 16467 TABLE public flow prefect
4000; 0 0 ACL public TABLE flow prefect
3700; 0 16466 TABLE DATA public alembic_version prefect
3701; 0 16467 TABLE DATA public flow prefect
3600; 2606 16470 CONSTRAINT public alembic_version alembic_version_pkc prefect
3500; 1259 16800 INDEX public ix_flow__name prefect
255; 1255 17000 FUNCTION public noticed() prefect
3650; 2620 17001 TRIGGER public flow noticed prefect
3660; 2606 16900 FK CONSTRAINT public flow fk_flow prefect
5; 2615 17100 SCHEMA - other prefect
300; 1259 17101 TABLE other flow prefect
"""
KNOWN = {"a": "-", "b": "a", "c": "b"}


def test_of_a_dump_only_what_prefect_has_comes():
    found = adopt.content(LIST)
    assert found.postgres == 14
    assert found.tables == {"alembic_version", "flow"}
    kinds = [line.split("; ", 1)[1].split(" ", 2)[2] for line in found.lines]
    assert kinds == [
        "EXTENSION - pg_trgm",
        "TYPE public state_type prefect",
        "TABLE public alembic_version prefect",
        "TABLE public flow prefect",
        "TABLE DATA public alembic_version prefect",
        "TABLE DATA public flow prefect",
        "CONSTRAINT public alembic_version alembic_version_pkc prefect",
        "INDEX public ix_flow__name prefect",
        "FK CONSTRAINT public flow fk_flow prefect",
    ]
    # The right, the function, the trigger, and the table of another schema.
    assert found.left == 4


def test_a_dump_of_something_else_or_of_a_newer_postgres_is_refused():
    with pytest.raises(
        Failure, match="no rows of the table block_document, configuration, deployment, flow_run"
    ) as wrong:
        adopt.check_content(Path("d"), adopt.content(LIST), 17)
    assert wrong.value.code is Code.INCOMPATIBLE
    needed = {"alembic_version", "flow", "flow_run", "deployment", "block_document", "configuration"}
    with pytest.raises(Failure, match="it is of Postgres 18, and this host runs 17"):
        adopt.check_content(Path("d"), adopt.Content(18, [], needed, 0), 17)
    adopt.check_content(Path("d"), adopt.Content(14, [], needed, 0), 17)


@pytest.mark.parametrize(
    ("head", "words"),
    [
        (b"--\n-- PostgreSQL database dump\n--\n", "plain SQL"),
        (b"\x1f\x8b\x08", "gzip"),
        (b"toc.dat\0\0\0", "tar format"),
        (b"SQLite format 3\0", "a database of SQLite"),
        (b"hello", "no dump of pg_dump"),
    ],
)
def test_other_files_are_refused_in_words(tmp_path, head, words):
    (tmp_path / "dump").write_bytes(head)
    with pytest.raises(Failure, match=words) as wrong:
        adopt.weigh(tmp_path / "dump")
    assert wrong.value.code is Code.INCOMPATIBLE


def test_both_formats_are_taken_and_only_their_files(tmp_path):
    (tmp_path / "dump").write_bytes(b"PGDMP" + b"x" * 95)
    assert adopt.weigh(tmp_path / "dump") == 100
    with pytest.raises(Failure, match=r"without toc\.dat"):
        adopt.weigh(tmp_path)
    for name in ("toc.dat", "3700.dat.gz", "notes.txt"):
        (tmp_path / name).write_bytes(b"x" * 10)
    assert adopt.weigh(tmp_path) == 20
    with pytest.raises(Failure, match="cannot be read: No such file"):
        adopt.weigh(tmp_path / "nothing")


def test_a_key_that_is_none_is_refused_and_not_quoted(tmp_path):
    (tmp_path / "key").write_text("hunter2\n")
    with pytest.raises(Failure, match="holds no key") as wrong:
        adopt.read_key(tmp_path / "key")
    assert "hunter2" not in str(wrong.value)
    (tmp_path / "key").write_text("Zq0rO3YkN2pXb1dVZ2hTcUx1YzVvQm1XeTdFdEprUm4=\n")
    assert adopt.read_key(tmp_path / "key").startswith("Zq0r")


def test_which_prefect_a_dump_is_of():
    assert adopt.version_of("c", KNOWN, "3.9.1") == "3.9.1"
    assert adopt.version_of("a", KNOWN, "3.9.1") == "<3.9.1"
    assert not choose.newer("<3.9.1", "3.9.1")
    assert choose.newer("<3.9.1", "3.8.8")
    with pytest.raises(Failure, match=r'the migration "z", which Prefect 3\.9\.1 of this host does not know'):
        adopt.version_of("z", KNOWN, "3.9.1")


def test_an_adopted_backup_is_chosen_by_its_id_only_and_is_no_backup_of_this_server():
    def made(minute: int, kind: str) -> Backup:
        when = datetime(2026, 11, 27, 16, minute, tzinfo=UTC)
        return Backup(f"20261127T16{minute:02}00Z", "f", when, kind, "local", 9, 0, "3.9.1", "17.12", "r", "1")

    ours, adopted = made(1, "scheduled"), made(5, ADOPTED)
    assert choose.pick([adopted, ours], None, None) == ours
    assert choose.pick([adopted, ours], None, adopted.time) == ours
    assert choose.pick([adopted, ours], adopted.id, None) == adopted
    assert check.own([adopted, ours]) == [ours]
    with pytest.raises(Failure, match="there are only adopted backups"):
        choose.pick([adopted], None, None)
