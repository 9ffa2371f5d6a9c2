"""Rows by the million into a store, past the library: SQLite counts, and Python adds the checksums."""

from __future__ import annotations

import asyncio
import os
import shutil
import sqlite3
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from itertools import islice
from pathlib import Path
from typing import Any

from understudy import Actor, System

NUMBERS = "WITH RECURSIVE number(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM number WHERE n < {count})"
"""Begins a statement that selects from `number`: its `n` goes from 1 to the count."""

_CHUNK = 50_000


def made_once(
    path: Path, actors: Sequence[type[Actor[Any, Any]]], fill: Callable[[sqlite3.Connection], None], *resources: object
) -> Path:
    """Return the store at *path*, made and filled the first time, and closed in good order."""
    if not path.exists():
        draft = path.with_suffix(".draft.db")
        asyncio.run(_make(draft, actors, resources))
        with closing(sqlite3.connect(draft, isolation_level=None)) as connection:
            connection.execute("PRAGMA synchronous=OFF")
            connection.execute("BEGIN")
            fill(connection)
            connection.execute("COMMIT")
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
        draft.with_name(f"{draft.name}.lock").rename(path.with_name(f"{path.name}.lock"))
        draft.rename(path)
    return path


async def _make(path: Path, actors: Sequence[type[Actor[Any, Any]]], resources: Sequence[object]) -> None:
    async with System(path, actors, resources=resources):
        pass


def insert_actors(connection: sqlite3.Connection, kind: str, count: int) -> int:
    """Insert so many actors, called as `actor_id` calls them; return the number before their first."""
    (last,) = connection.execute("SELECT coalesce(max(no), 0) FROM actor").fetchone()
    connection.execute(
        f"INSERT INTO actor {NUMBERS.format(count=count)}"
        " SELECT ?2 + n, ?1, printf('%s-%07d', ?1, n - 1), 'active', '' FROM number",
        (kind, last),
    )
    return int(last)


def actor_id(kind: str, number: int) -> str:
    """Return the id of an inserted actor; they are numbered from 0."""
    return f"{kind}-{number:07}"


def insert(connection: sqlite3.Connection, sql: str, rows: Iterable[Sequence[Any]]) -> None:
    """Run one INSERT for every row."""
    iterator: Iterator[Sequence[Any]] = iter(rows)
    while chunk := list(islice(iterator, _CHUNK)):
        connection.executemany(sql, chunk)


def copied(path: Path, directory: Path) -> Path:
    """Return a copy of a closed store in *directory*, whose bytes have reached the disk: no flush of ours waits for them."""
    copy = directory / path.name
    for name in (path.name, f"{path.name}.lock"):
        shutil.copyfile(path.with_name(name), directory / name)
    with copy.open("rb+") as file:
        os.fsync(file.fileno())
    return copy
