"""Write to Postgres so that doing it twice does no harm.

Teaches: a run may be repeated (a retry, a crash, a click), so a load is an upsert on a key that the data
itself has, in one transaction; secrets come from a block, never from a parameter, which everybody sees in the
UI.

The database is yours, not Prefect's own. Tell the flow where it is once, as a Secret block named
"example-database" that holds postgresql://USER:PASSWORD@HOST/NAME (UI: Blocks, Secret), or as DATABASE_URL in
the environment of the worker.
"""

import os
from datetime import date

import psycopg
from prefect import flow, get_run_logger, task
from prefect.blocks.system import Secret

TABLE = """
CREATE TABLE IF NOT EXISTS example_temperature (
    city text, day date, celsius numeric NOT NULL, PRIMARY KEY (city, day)
)
"""

# The key decides whether a row is new. WHERE spares rows that are already right: no write, no dead tuple.
UPSERT = """
INSERT INTO example_temperature AS old (city, day, celsius) VALUES (%s, %s, %s)
ON CONFLICT (city, day) DO UPDATE SET celsius = excluded.celsius
WHERE old.celsius IS DISTINCT FROM excluded.celsius
"""

Row = tuple[str, date, float]


def address(block: str) -> Secret:
    """Return the database's address from the Secret block, or else from DATABASE_URL.

    Raises:
        RuntimeError: if neither is there.
    """
    try:
        return Secret.load(block)
    except ValueError:  # what load() raises where there is no such block
        if url := os.environ.get("DATABASE_URL"):
            return Secret(value=url)
    raise RuntimeError(
        f"no database to write to: there is no Secret block {block!r} and DATABASE_URL is not set.\n"
        f"HINT: in the UI: Blocks, +, Secret; name {block!r}, value postgresql://USER:PASSWORD@HOST/NAME"
    )


# The task gets the block, which shows as stars wherever it is printed, and opens it at the last moment.
@task(retries=2, retry_delay_seconds=1)
def upsert(database: Secret, rows: list[Row]) -> tuple[int, int]:
    """Write the rows, all or none; return how many were written and how many the table has."""
    # Leaving the block commits, an exception rolls back.
    with psycopg.connect(database.get(), connect_timeout=10) as connection:
        cursor = connection.cursor()
        cursor.execute(TABLE)
        cursor.executemany(UPSERT, rows)
        written = cursor.rowcount
        total = cursor.execute("SELECT count(*) FROM example_temperature").fetchone()
    return written, total[0] if total else 0


@flow
def database(celsius: float = 21.5, block: str = "example-database") -> int:
    """Upsert three rows; run it twice, and the second run writes nothing."""
    day = date(2026, 1, 1)
    rows: list[Row] = [(city, day, celsius) for city in ("Berlin", "Lisbon", "Oslo")]
    written, total = upsert(address(block), rows)
    get_run_logger().info("%s rows written, %s in the table", written, total)
    return written


if __name__ == "__main__":
    database()
