"""A store with very many counters, made by plain SQL in seconds instead of by turns in minutes."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import closing
from itertools import islice
from pathlib import Path
from typing import Any

import msgspec

from benchmarks.actors import Account, Counter
from understudy import System
from understudy.mailbox.commit import Snapshot
from understudy.mailbox.rows import snapshot_row

_CHUNK = 50_000


def counter_id(number: int) -> str:
    """Return the id of a stored counter; they are numbered from 0."""
    return f"counter-{number:07}"


def counters_file(directory: Path, count: int) -> Path:
    """Return the file with *count* counters, made the first time."""
    path = directory / f"counters-{count}.db"
    if not path.exists():
        draft = directory / f"counters-{count}.draft.db"
        asyncio.run(_make_store(draft))
        with closing(sqlite3.connect(draft, isolation_level=None)) as connection:
            _fill(connection, count)
        draft.with_name(f"{draft.name}.lock").rename(path.with_name(f"{path.name}.lock"))
        draft.rename(path)
    return path


async def _make_store(path: Path) -> None:
    async with System(path, [Counter]):
        pass


def _fill(connection: sqlite3.Connection, count: int) -> None:
    snapshot = Snapshot(version=1, seq=0, body=msgspec.msgpack.encode(Account()))
    connection.execute("PRAGMA synchronous=OFF")
    (last,) = connection.execute("SELECT coalesce(max(no), 0) FROM actor").fetchone()
    numbers = range(last + 1, last + 1 + count)
    actors = ((no, "counter", counter_id(no - last - 1), "active", "") for no in numbers)
    snapshots = (snapshot_row(no, snapshot) for no in numbers)
    connection.execute("BEGIN")
    _insert(connection, "INSERT INTO actor VALUES (?, ?, ?, ?, ?)", actors)
    _insert(connection, "INSERT INTO snapshot VALUES (?, ?, ?, ?, ?)", snapshots)
    connection.execute("COMMIT")
    connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()


def _insert(connection: sqlite3.Connection, sql: str, rows: Iterator[Sequence[Any]]) -> None:
    while chunk := list(islice(rows, _CHUNK)):
        connection.executemany(sql, chunk)
