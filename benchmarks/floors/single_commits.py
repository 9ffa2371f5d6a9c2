"""Floor: aiosqlite with one durable commit per row, the usual way to keep something from asyncio."""

from __future__ import annotations

import asyncio

import aiosqlite

from benchmarks.case import Place, Sample
from benchmarks.floors.sqlite_file import BODY, INSERT, PRAGMAS, TABLE
from benchmarks.load import measure as measure_load

NAME = "aiosqlite, a commit each"


def measure(place: Place, callers: int, rows: int = 1) -> list[Sample]:
    """Measure *callers* on one connection; a call is so many *rows*."""
    return asyncio.run(_measure(place, callers, rows))


async def _measure(place: Place, callers: int, rows: int) -> list[Sample]:
    # Without transactions of its own, so that a row costs one visit to the connection's thread instead of two.
    async with aiosqlite.connect(place.own / "single.db", isolation_level=None) as connection:
        for pragma in PRAGMAS:
            await connection.execute_fetchall(f"PRAGMA {pragma}")
        await connection.execute(TABLE)

        async def insert(number: int) -> None:
            for _ in range(rows):
                await connection.execute_insert(INSERT, (f"actor-{number}", BODY))

        return await measure_load(insert, callers, place.scale.seconds, place.own)
