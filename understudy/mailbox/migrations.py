"""The schema and its versions: `user_version` counts the migrations that have run; each is one transaction.

Version 1 is schema.sql. A later version is a function appended to MIGRATIONS; released ones never change.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator, Sequence

# "UNDS" in the file's header: tells our files from other SQLite files.
APPLICATION_ID = 0x554E4453

Migration = Callable[[sqlite3.Connection], None]


def _create(connection: sqlite3.Connection) -> None:
    from importlib import resources  # Rarely needed, and slow to import.

    script = resources.files("understudy.mailbox").joinpath("schema.sql").read_text("utf-8")
    for statement in statements(script):
        connection.execute(statement)


def _hold_amend_picture(connection: sqlite3.Connection) -> None:
    # Held actors are few among a million: the index holds them only.
    connection.execute("CREATE INDEX actor_held ON actor (status, no) WHERE status <> 'active'")
    for table in ("message", "dead_letter"):
        connection.execute(f"ALTER TABLE {table} ADD COLUMN amended BLOB")
    connection.execute(
        "CREATE TABLE picture (one INTEGER PRIMARY KEY CHECK (one = 1), body BLOB NOT NULL, checksum INTEGER NOT NULL)"
        " STRICT"
    )


def _keep_records(connection: sqlite3.Connection) -> None:
    connection.execute(
        "CREATE TABLE record (kind TEXT NOT NULL, id TEXT NOT NULL, owner TEXT NOT NULL, body BLOB NOT NULL,"
        " expires_at REAL, checksum INTEGER NOT NULL, PRIMARY KEY (kind, id)) STRICT, WITHOUT ROWID"
    )
    connection.execute("CREATE INDEX record_owner ON record (kind, owner, id) WHERE owner <> ''")
    connection.execute("CREATE INDEX record_expiry ON record (expires_at) WHERE expires_at IS NOT NULL")


def _share_trace_rows(_connection: sqlite3.Connection) -> None:
    """Change nothing: a row of the trace may hold several events from here on, which earlier versions cannot read."""


MIGRATIONS: tuple[Migration, ...] = (_create, _hold_amend_picture, _keep_records, _share_trace_rows)


def upgrade(connection: sqlite3.Connection, migrations: Sequence[Migration] = MIGRATIONS) -> int:
    """Run the migrations that this file has not seen; return how many there were."""
    version: int = connection.execute("PRAGMA user_version").fetchone()[0]
    for number, migrate in enumerate(migrations[version:], version + 1):
        connection.execute("BEGIN IMMEDIATE")
        try:
            migrate(connection)
            connection.execute(f"PRAGMA user_version = {number}")
            connection.execute("COMMIT")
        except BaseException:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            raise
    return max(0, len(migrations) - version)


def statements(script: str) -> Iterator[str]:
    """Split a script into statements: `executescript` would commit the open transaction."""
    part = ""
    for line in script.splitlines(keepends=True):
        part += line
        if sqlite3.complete_statement(part):
            yield part
            part = ""
