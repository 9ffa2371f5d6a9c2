"""Floor of growth: the same states written into a copy of the same file by plain SQL, without threads or asyncio."""

from __future__ import annotations

import gc
import shutil
import sqlite3
import time
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

import msgspec

from benchmarks.actors import Account
from benchmarks.case import Place, Sample
from benchmarks.floors.sqlite_file import PRAGMAS
from benchmarks.stored_counters import counters_file
from understudy.mailbox.commit import Snapshot
from understudy.mailbox.rows import snapshot_row

NAME = "raw upserts"

_UPSERT = """
    INSERT INTO snapshot (actor, version, seq, body, checksum) VALUES (?, ?, ?, ?, ?)
    ON CONFLICT (actor) DO UPDATE SET version = excluded.version, seq = excluded.seq, body = excluded.body,
        checksum = excluded.checksum
"""


def measure(place: Place, count: int, chosen: Sequence[int]) -> list[Sample]:
    """Write the states of the chosen counters again and again, all of them in each commit."""
    with closing(sqlite3.connect(_copy(place.shared, count), isolation_level=None)) as connection:
        for pragma in PRAGMAS:
            connection.execute(f"PRAGMA {pragma}").fetchall()
        (first,) = connection.execute("SELECT min(no) FROM actor WHERE kind = 'counter'").fetchone()
        written = 0
        gc.collect()
        began = time.perf_counter()
        while (elapsed := time.perf_counter() - began) < place.scale.seconds:
            body = msgspec.msgpack.encode(Account(count=written))
            snapshot = Snapshot(version=1, seq=0, body=body)
            connection.execute("BEGIN IMMEDIATE")
            connection.executemany(_UPSERT, [snapshot_row(first + number, snapshot) for number in chosen])
            connection.execute("COMMIT")
            written += len(chosen)
    return [Sample("rate", "/s", written / elapsed)]


def _copy(shared: Path, count: int) -> Path:
    path = shared / f"upserts-{count}.db"
    if not path.exists():
        shutil.copyfile(counters_file(shared, count), path)
    return path
