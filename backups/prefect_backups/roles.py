"""Who connects to a database: its owner, which is the server's role, and the superuser where it has to be.

Both are made, and a database is given to the server's role, by compose/postgres. Whoever connects as the superuser to a
database of somebody else's runs with all rights what that one has put there; so only pg_dump does, which is made for that,
and what concerns the whole cluster, in a database in which nobody else has anything.
"""

from __future__ import annotations

from pathlib import Path

import psycopg

#: initdb's superuser, who gets in over the socket alone.
SUPERUSER = "prefect"
#: The role by which the server connects.
SERVER = "prefect_server"
#: The database in which nobody but the superuser has anything.
CLUSTER = "postgres"

OWNED = "SELECT 1 FROM pg_database WHERE datname = %s AND pg_get_userbyid(datdba) = %s"


def connect(
    socket: str, database: str, user: str, application: str, autocommit: bool = True, patience: float = 0.0
) -> psycopg.Connection:
    """A connection over the socket in a directory. Raises psycopg.OperationalError, after 10 s where nobody answers.

    Args:
        patience: seconds that a statement may take, waiting for locks included; 0: any.
    """
    return psycopg.connect(
        host=socket,
        user=user,
        dbname=database,
        application_name=application,
        connect_timeout=10,
        autocommit=autocommit,
        options=f"-c statement_timeout={patience * 1000:.0f}" if patience else "",
    )


def owner(socket: str, database: str, application: str, patience: float = 0.0) -> str:
    """Whom to connect to a database as: the server's role where it owns it, else the superuser, as before there was that role.

    Raises psycopg.OperationalError.
    """
    if database == CLUSTER:
        return SUPERUSER
    with connect(socket, CLUSTER, SUPERUSER, application, patience=patience) as connection:
        return SERVER if connection.execute(OWNED, [database, SERVER]).fetchone() else SUPERUSER


def hand_over(socket: str, database: str, application: str, script: Path) -> None:
    """Run the SQL that gives a database to the server's role. Raises psycopg.Error."""
    # It begins by setting a search path that nobody but the superuser could have filled.
    with connect(socket, database, SUPERUSER, application) as connection:
        connection.execute(script.read_bytes())
