"""A store with very many counters, made by plain SQL in seconds instead of by turns in minutes."""

from __future__ import annotations

import sqlite3
from functools import partial
from pathlib import Path

import msgspec

from benchmarks.actors import Account, Counter
from benchmarks.stored_rows import NUMBERS, actor_id, insert_actors, made_once
from understudy.mailbox.commit import Snapshot
from understudy.mailbox.rows import snapshot_row


def counter_id(number: int) -> str:
    """Return the id of a stored counter; they are numbered from 0."""
    return actor_id("counter", number)


def counters_file(directory: Path, count: int) -> Path:
    """Return the file with *count* counters, made the first time."""
    return made_once(directory / f"counters-{count}.db", [Counter], partial(_fill, count=count))


def _fill(connection: sqlite3.Connection, count: int) -> None:
    last = insert_actors(connection, "counter", count)
    snapshot = Snapshot(version=1, seq=0, body=msgspec.msgpack.encode(Account()))
    connection.create_function("checksum", 1, lambda no: snapshot_row(no, snapshot)[-1])
    connection.execute(
        f"INSERT INTO snapshot {NUMBERS.format(count=count)} SELECT ?1 + n, 1, 0, ?2, checksum(?1 + n) FROM number",
        (last, snapshot.body),
    )
