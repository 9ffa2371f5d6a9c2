"""Ask scattered actors of a large file, and tell the most memory this ever took: `serve_scattered FILE COUNT DISTINCT`."""

from __future__ import annotations

import asyncio
import random
import sys

from benchmarks.actors import Counter
from benchmarks.machine import peak_rss_bytes
from benchmarks.stored_counters import counter_id
from understudy import System

_CALLERS = 256
_SEED = 1


async def serve(path: str, count: int, distinct: int) -> None:
    """Ask *distinct* of the *count* actors once each, with the limits that every system has."""
    async with System(path, [Counter]) as system:
        numbers = iter(random.Random(_SEED).sample(range(count), distinct))

        async def caller() -> None:
            for number in numbers:
                await system.actor(Counter, counter_id(number)).add(1)

        await asyncio.gather(*(caller() for _ in range(_CALLERS)))


if __name__ == "__main__":
    asyncio.run(serve(sys.argv[1], int(sys.argv[2]), int(sys.argv[3])))
    print(peak_rss_bytes(), flush=True)
