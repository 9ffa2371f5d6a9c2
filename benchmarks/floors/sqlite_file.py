"""The file under the durable floors: what any program that wants durable rows from SQLite would set."""

from __future__ import annotations

import os
import sqlite3

PRAGMAS = ("journal_mode=WAL", "synchronous=FULL", "cache_size=-16000")
TABLE = "CREATE TABLE row (no INTEGER PRIMARY KEY, actor TEXT NOT NULL, body BLOB NOT NULL) STRICT"
INSERT = "INSERT INTO row (actor, body) VALUES (?, ?)"
BODY = os.urandom(100)  # as large as the state of the actor that we measure


def set_up(connection: sqlite3.Connection) -> None:
    """Apply the settings and make the table."""
    for pragma in PRAGMAS:
        connection.execute(f"PRAGMA {pragma}").fetchall()
    connection.execute(TABLE)
