"""What a backup says about itself, so that what comes back can be held against it.

Counts and checksums are taken in the very snapshot that pg_dump reads, and again in what was restored. Tables of up to
50,000 rows (configuration, deployments, blocks, variables, flow runs of small servers) get a checksum of their whole
rows; larger ones get one of their primary keys, which tells a lost, doubled or foreign row, but not a changed one: that
is left to Postgres's own page checksums on the way in, and to restic's hashes on the way out.

Measured on a lab VPS (1.06 million rows, 767 MB, 2 cores with other work): counts alone 0.2 s; with keys of all tables
0.6 s; as chosen 0.9 s; with whole rows of all tables 3.6 s, at each backup and each restore. `scripts/bench backup`
measures it again.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import psycopg
from psycopg import sql

from .errors import Code, Failure
from .settings import Settings

# 2: the key of the blocks is not in the dump, which a kit of before would not miss until somebody opens one.
FORMAT = 2
# Kinds of checksums: of each whole row, or of each row's primary key only.
ROWS = "rows"
KEYS = "keys"
# Tables of up to so many rows, by Postgres's own estimate, get a checksum of whole rows.
WHOLE_ROWS_UP_TO = 50_000

# How values become text depends on these; both sides must use the same.
SESSION = {
    "TimeZone": "UTC",
    "DateStyle": "ISO, MDY",
    "IntervalStyle": "postgres",
    "extra_float_digits": "1",
    "bytea_output": "hex",
    "xmlbinary": "base64",
    "search_path": "public",
}


@dataclass(frozen=True)
class Table:
    """What one table holds."""

    rows: int
    # KIND:NUMBER, the sum of the 64-bit hashes of all rows (or of their keys): their order does not matter to it.
    checksum: str | None = None

    @property
    def kind(self) -> str | None:
        """Which kind of checksum it is."""
        return self.checksum.split(":", 1)[0] if self.checksum else None


@dataclass(frozen=True)
class Manifest:
    """One backup's own account."""

    id: str
    # ISO 8601, UTC: the moment that the backup shows.
    created: str
    kind: str
    # Versions of this kit, Prefect and Postgres, and the migration of the schema.
    kit: str
    prefect: str
    postgres: str
    revision: str
    tables: dict[str, Table]
    # Bytes of the database with its indexes, and of the dump; seconds that dump and counting took.
    database_bytes: int
    dump_bytes: int
    dump_seconds: float
    # Configuration and certificates that are in the backup beside the database.
    files: list[str] = field(default_factory=list)
    host: str = ""
    # Which key encrypts its blocks (block_key.py); empty where it is in the dump.
    encryption_key: str = ""
    format: int = FORMAT

    @property
    def rows(self) -> int:
        """Rows of all tables."""
        return sum(table.rows for table in self.tables.values())

    def to_json(self) -> str:
        """For the file in the backup."""
        return json.dumps(dataclasses.asdict(self), indent=2, sort_keys=True) + "\n"

    @classmethod
    def from_json(cls, text: str | bytes) -> Manifest:
        """Raises Failure (DAMAGED) for what is no manifest, (INCOMPATIBLE) for one of a newer kit."""
        try:
            values = json.loads(text)
            if values.get("format", 0) > FORMAT:
                raise Failure(
                    Code.INCOMPATIBLE,
                    f"the backup's manifest is of format {values['format']}, and this kit knows up to {FORMAT}",
                    f"use the kit of version {values.get('kit', '?')} or newer",
                )
            known = {one.name for one in dataclasses.fields(cls)}
            values = {name: value for name, value in values.items() if name in known}
            return cls(**{**values, "tables": {name: Table(**table) for name, table in values["tables"].items()}})
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise Failure(
                Code.DAMAGED, f"the backup's manifest cannot be read: {error!r}", "take another: prefect-restore --list"
            ) from error


def path(settings: Settings) -> str:
    """Where the manifest is, on the host while a backup is made and in the backup for good."""
    return f"{settings.staging}/backup/manifest.json"


def dump_path(settings: Settings) -> str:
    """Where the dump is, likewise."""
    return f"{settings.staging}/backup/dump"


def take(connection: psycopg.Connection[Any], like: Mapping[str, Table] | None = None) -> dict[str, Table]:
    """Exact row counts, and checksums, of all tables of the schema `public`, as the connection's transaction sees them.

    Args:
        connection: in a transaction (not autocommit), which should be REPEATABLE READ; its settings are changed.
        like: compute the kinds of checksums that these have, to compare with them; by size without.
    """
    for name, value in SESSION.items():
        connection.execute("SELECT set_config(%s, %s, false)", [name, value])
    return {
        name: _table(connection, name, columns, _wanted(name, estimate, bool(columns), like))
        for name, columns, estimate in _tables(connection)
    }


def _tables(connection: psycopg.Connection[Any]) -> list[tuple[str, list[str], float]]:
    """Name, columns of the primary key and estimated rows of each table."""
    return connection.execute(
        "SELECT class.relname,"
        " coalesce(array_agg(column_.attname::text ORDER BY place.n) FILTER (WHERE column_.attname IS NOT NULL), '{}'),"
        " greatest(class.reltuples, 0)"
        " FROM pg_class AS class"
        " LEFT JOIN pg_index AS key ON key.indrelid = class.oid AND key.indisprimary"
        " LEFT JOIN LATERAL unnest(key.indkey::int2[]) WITH ORDINALITY AS place (number, n) ON true"
        " LEFT JOIN pg_attribute AS column_ ON column_.attrelid = class.oid AND column_.attnum = place.number"
        " WHERE class.relnamespace = 'public'::regnamespace AND class.relkind IN ('r', 'p') AND NOT class.relispartition"
        " GROUP BY class.oid ORDER BY class.relname"
    ).fetchall()


def _wanted(name: str, estimate: float, has_key: bool, like: Mapping[str, Table] | None) -> str | None:
    """Which kind of checksum a table gets."""
    if like is not None:
        return like[name].kind if name in like else None
    return ROWS if estimate <= WHOLE_ROWS_UP_TO or not has_key else KEYS


def _table(connection: psycopg.Connection[Any], name: str, key: list[str], kind: str | None) -> Table:
    """Count and checksum of one table."""
    query = _query(name, key, kind)
    rows, checksum = connection.execute(query).fetchone() or (0, None)
    return Table(rows, f"{kind}:{checksum}" if kind and checksum is not None else None)


def _query(name: str, key: list[str], kind: str | None) -> sql.Composed:
    table = sql.Identifier("public", name)
    if kind == ROWS:
        hashed: sql.Composable = sql.SQL("hashtextextended(one::text, 0)")
    elif kind == KEYS and key:
        columns = sql.SQL(", ").join(sql.SQL("one.{}").format(sql.Identifier(column)) for column in key)
        hashed = sql.SQL("hash_record_extended(ROW({}), 0)").format(columns)
    else:
        return sql.SQL("SELECT count(*), NULL FROM {}").format(table)
    # A sum of bigint is a numeric: it cannot overflow.
    return sql.SQL("SELECT count(*), coalesce(sum({}), 0)::text FROM {} AS one").format(hashed, table)


def compare(expected: Mapping[str, Table], found: Mapping[str, Table]) -> list[str]:
    """What is different, in plain language; empty when all is the same."""
    differences = []
    for name in sorted(expected.keys() | found.keys()):
        if name not in found:
            differences.append(f'the table "{name}" with {expected[name].rows} rows is missing')
        elif name not in expected:
            differences.append(f'there is a table "{name}" that the manifest does not know')
        elif found[name].rows != expected[name].rows:
            differences.append(f'the table "{name}" has {found[name].rows} rows instead of {expected[name].rows}')
        elif expected[name].checksum is not None and found[name].checksum != expected[name].checksum:
            differences.append(f'the {expected[name].rows} rows of the table "{name}" are not the ones of the backup')
    return differences
