"""Postgres itself: room for connections, indexes that are never used, rows that are dead, transactions that hold all up, checksums,
and who could get in with all rights.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from prefect_backups.host import Host
from prefect_backups.postgres import LIVE, LOOK
from prefect_backups.progress import duration, size
from prefect_backups.roles import CLUSTER

from .finding import Finding, Level, graded

#: Share of max_connections.
CONNECTIONS_WARNING, CONNECTIONS_BAD = 0.7, 0.9
#: Seconds that a transaction may be open: it keeps dead rows of all tables.
TRANSACTION_WARNING, TRANSACTION_BAD = 900.0, 6 * 3600.0
#: A table with so many dead rows, and so many of a hundred: autovacuum, which begins at 20 of a hundred, does not keep up.
DEAD_ROWS, DEAD_SHARE = 100_000, 0.4

FIGURES = """
SELECT pg_database_size(live), (SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend'),
  current_setting('max_connections')::int, coalesce((SELECT sum(checksum_failures) FROM pg_stat_database), 0)::int,
  coalesce((SELECT max(extract(epoch FROM now() - xact_start)) FROM pg_stat_activity
            WHERE datname = live AND backend_type = 'client backend' AND pid <> pg_backend_pid()), 0)::float8
FROM (SELECT datname AS live FROM pg_database WHERE datname = %s)
"""
# Nobody without a password gets in by the network.
SUPERUSERS = "SELECT rolname FROM pg_authid WHERE rolsuper AND rolcanlogin AND rolpassword IS NOT NULL ORDER BY 1"
INVALID = """
SELECT indexrelid::regclass::text FROM pg_index WHERE NOT indisvalid
  AND indexrelid NOT IN (SELECT index_relid FROM pg_stat_progress_create_index) ORDER BY 1
"""
DEAD = """
SELECT relname, n_dead_tup::bigint, (n_dead_tup::float8 / greatest(n_dead_tup + n_live_tup, 1))::float8 FROM pg_stat_user_tables
WHERE n_dead_tup > %s AND n_dead_tup > %s * (n_dead_tup + n_live_tup) ORDER BY 2 DESC
"""


@dataclass(frozen=True)
class Database:
    """What Postgres says of itself."""

    #: Bytes of the database.
    size: int
    connections: int
    max_connections: int
    checksum_failures: int
    #: Seconds of the longest open transaction.
    transaction: float
    invalid: list[str] = field(default_factory=list)
    #: Name, dead rows, and their share, of tables that autovacuum does not keep up with.
    dead: list[tuple[str, int, float]] = field(default_factory=list)
    #: Superusers that have a password.
    superusers: list[str] = field(default_factory=list)


def look(host: Host) -> Database:
    """Raises Failure, psycopg.Error."""
    # What others do, nobody but a superuser sees.
    with host.postgres.connect(CLUSTER, patience=LOOK) as connection:
        figures: tuple[int, int, int, int, float] = connection.execute(FIGURES, [LIVE]).fetchall()[0]
        superusers = [row[0] for row in connection.execute(SUPERUSERS)]
    with host.postgres.connect(patience=LOOK) as connection:
        invalid = [row[0] for row in connection.execute(INVALID)]
        dead = connection.execute(DEAD, [DEAD_ROWS, DEAD_SHARE]).fetchall()
    return Database(*figures, invalid, dead, superusers)


def bytes_of(found: Database) -> Finding:
    """How large it is, for information; the check of the disk alerts when room runs out."""
    return Finding("database", Level.OK, size(found.size))


def connections(found: Database) -> Finding:
    """Whether there are connections left."""
    share = found.connections / max(found.max_connections, 1)
    level = graded(share, CONNECTIONS_WARNING, CONNECTIONS_BAD)
    mend = "docker exec prefect-postgres psql -U prefect -c 'SELECT application_name, count(*) FROM pg_stat_activity GROUP BY 1'"
    return Finding(
        "connections",
        level,
        f"{found.connections} of {found.max_connections}",
        f"less than {CONNECTIONS_WARNING:.0%}",
        mend if level else "",
    )


def transactions(found: Database) -> Finding:
    """Whether one holds up vacuum, and all that waits for its locks."""
    level = graded(found.transaction, TRANSACTION_WARNING, TRANSACTION_BAD)
    mend = (
        "docker exec prefect-postgres psql -U prefect -c 'SELECT pid, application_name, xact_start, left(query, 60) FROM"
        " pg_stat_activity ORDER BY xact_start LIMIT 3'"
    )
    return Finding(
        "open transactions",
        level,
        f"the longest {duration(found.transaction)}" if found.transaction >= 1 else "none for long",
        f"less than {duration(TRANSACTION_WARNING)}",
        mend if level else "",
    )


def indexes(found: Database) -> Finding:
    """Indexes whose build was cut off: they cost at each write, and are never used (PrefectHQ/prefect #23032)."""
    level = Level.WARNING if found.invalid else Level.OK
    mend = (
        f"docker exec prefect-postgres psql -U prefect -c 'REINDEX INDEX CONCURRENTLY {found.invalid[0]}'"
        if found.invalid
        else ""
    )
    return Finding(
        "indexes", level, f"not valid: {', '.join(found.invalid)}" if found.invalid else "all valid", "all valid", mend
    )


def dead_rows(found: Database) -> Finding:
    """Tables that are mostly dead rows."""
    limit = f"less than {DEAD_SHARE:.0%} of a table"
    if not found.dead:
        return Finding("dead rows", Level.OK, "vacuum keeps up", limit)
    words = ", ".join(f"{name}: {count:,} ({share:.0%})" for name, count, share in found.dead)
    mend = f"docker exec prefect-postgres psql -U prefect -c 'VACUUM (ANALYZE) {found.dead[0][0]}'"
    return Finding("dead rows", Level.WARNING, words, limit, mend)


def checksums(found: Database) -> Finding:
    """Pages that are not what was written: the disk."""
    bad = found.checksum_failures > 0
    mend = (
        "the disk may be failing: lsblk; smartctl -a /dev/DISK; then docs/move.md, or prefect-restore --list"
        if bad
        else ""
    )
    return Finding("checksum failures", Level.BAD if bad else Level.OK, str(found.checksum_failures), "0", mend)


def superusers(found: Database) -> Finding:
    """Whether the server's password, or another, could be a superuser's: who has that one has the container, too."""
    if not found.superusers:
        return Finding("superusers", Level.OK, "none with a password", "none with a password")
    ours = {"prefect", "prefect_server"} & set(found.superusers)
    mend = (
        "ansible-playbook site.yml --tags stack"
        if ours
        else f"docker exec prefect-postgres psql -U prefect -c 'ALTER ROLE {found.superusers[0]} PASSWORD NULL'"
    )
    words = f"{', '.join(found.superusers)} can connect to the database with a password"
    return Finding("superusers", Level.WARNING, words, "none with a password", mend)


def findings(found: Database) -> Sequence[Finding]:
    """All of them."""
    return [
        bytes_of(found),
        connections(found),
        transactions(found),
        indexes(found),
        dead_rows(found),
        checksums(found),
        superusers(found),
    ]
