"""Floor: asyncio callers on one writing thread that commits all rows that wait, at once, durably."""

from __future__ import annotations

import asyncio
import queue
import sqlite3
import threading
from pathlib import Path

from benchmarks.case import Place, Sample
from benchmarks.floors.sqlite_file import BODY, INSERT, set_up
from benchmarks.load import measure as measure_load

NAME = "group commits"

_Item = tuple[tuple[str, bytes], asyncio.Future[None]]


class GroupWriter:
    """A thread that takes every row that waits, writes them in one transaction, and wakes all their callers in one go."""

    def __init__(self, path: Path) -> None:
        self._loop = asyncio.get_running_loop()
        self._waiting: queue.SimpleQueue[_Item | None] = queue.SimpleQueue()
        self._path = path
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def write(self, actor: str) -> asyncio.Future[None]:
        """Hand a row over; the future is done when it is on disk."""
        durable: asyncio.Future[None] = self._loop.create_future()
        self._waiting.put(((actor, BODY), durable))
        return durable

    def close(self) -> None:
        self._waiting.put(None)
        self._thread.join()

    def _run(self) -> None:
        connection = sqlite3.connect(self._path, isolation_level=None)
        set_up(connection)
        while (first := self._waiting.get()) is not None:
            items = [first]
            try:
                while (item := self._waiting.get_nowait()) is not None:
                    items.append(item)
            except queue.Empty:
                pass
            connection.execute("BEGIN IMMEDIATE")
            connection.executemany(INSERT, [row for row, _ in items])
            connection.execute("COMMIT")
            self._loop.call_soon_threadsafe(_wake, [durable for _, durable in items])
        connection.close()


def _wake(waiting: list[asyncio.Future[None]]) -> None:
    for durable in waiting:
        if not durable.done():
            durable.set_result(None)


def measure(place: Place, callers: int, rows: int = 1) -> list[Sample]:
    """Measure *callers* that each write one row at a time; a call is so many *rows*."""
    return asyncio.run(_measure(place, callers, rows))


async def _measure(place: Place, callers: int, rows: int) -> list[Sample]:
    writer = GroupWriter(place.own / "group.db")

    async def write(number: int) -> None:
        for _ in range(rows):
            await writer.write(f"actor-{number}")

    try:
        return await measure_load(write, callers, place.scale.seconds, place.own)
    finally:
        writer.close()
