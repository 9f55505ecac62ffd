"""The cutting of a dump into small files: nothing is lost, and few files change when few rows do."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from prefect_backups import parts

RANDOM = random.Random(7)
ROWS = [f"{number}\t{RANDOM.randbytes(RANDOM.randrange(20, 400)).hex()}\n".encode() for number in range(12_000)]


def write(directory: Path, rows: list[bytes]) -> Path:
    directory.mkdir()
    (directory / "4242.dat").write_bytes(b"".join(rows))
    (directory / "4243.dat").write_bytes(b"small\n\\.\n")
    (directory / "toc.dat").write_bytes(b"\0" * 900_000)
    return directory


def contents(directory: Path) -> dict[str, bytes]:
    return {str(path.relative_to(directory)): path.read_bytes() for path in directory.rglob("*") if path.is_file()}


def pieces(directory: Path, rows: list[bytes]) -> set[bytes]:
    parts.split(write(directory, rows))
    return set(contents(directory / "4242.dat.parts").values())


@pytest.mark.parametrize("rows", [ROWS, [b"x" * 3_000_000 + b"\n"], [b"\n"] * 700_000, [b"z" * 600_000]])
def test_what_was_split_is_joined_again(tmp_path: Path, rows: list[bytes]) -> None:
    dump = write(tmp_path / "dump", rows)
    before = contents(dump)
    parts.split(dump)
    assert not (dump / "4242.dat").exists()
    assert (dump / "4243.dat").exists()
    # Anything else that pg_dump writes is left alone.
    assert contents(dump)["toc.dat"] == before["toc.dat"]
    parts.join(dump)
    assert contents(dump) == before


def test_a_whole_dump_is_left_alone(tmp_path: Path) -> None:
    dump = write(tmp_path / "dump", ROWS[:10])
    before = contents(dump)
    parts.split(dump)
    parts.join(dump)
    assert contents(dump) == before


def test_files_are_of_a_size_that_restic_does_not_cut(tmp_path: Path) -> None:
    sizes = [len(piece) for piece in pieces(tmp_path / "dump", ROWS)]
    assert max(sizes) <= 512 * 1024
    assert 150 * 1024 < sum(sizes) / len(sizes) < 450 * 1024


def test_rows_are_never_cut_in_two(tmp_path: Path) -> None:
    assert all(piece.endswith(b"\n") for piece in pieces(tmp_path / "dump", ROWS))


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda rows: [*rows, b"new\n"], id="a row at the end"),
        pytest.param(lambda rows: [b"new\n", *rows], id="a row at the beginning"),
        pytest.param(lambda rows: [*rows[:6000], b"changed\n", *rows[6001:]], id="another row in the middle"),
        pytest.param(lambda rows: [*rows[:3000], *rows[3001:]], id="a row that is gone"),
    ],
)
def test_a_changed_row_changes_at_most_two_files(tmp_path: Path, change) -> None:
    assert len(pieces(tmp_path / "new", change(ROWS)) - pieces(tmp_path / "old", ROWS)) <= 2
