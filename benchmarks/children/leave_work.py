"""Store a message for each of many actors, whose turns begin but cannot end, and wait to be killed."""

from __future__ import annotations

import asyncio
import sys

from benchmarks.actors import Gate, Worker
from understudy import System

_CALLERS = 256


async def leave_work(path: str, count: int) -> None:
    """Say `ready` once everything is on disk."""
    async with System(path, [Worker], resources=[Gate(expected=None)]) as system:
        for start in range(0, count, _CALLERS):
            numbers = range(start, min(start + _CALLERS, count))
            await asyncio.gather(*(system.actor(Worker, f"worker-{number}").work.tell() for number in numbers))
        print("ready", flush=True)
        await asyncio.get_running_loop().create_future()


if __name__ == "__main__":
    asyncio.run(leave_work(sys.argv[1], int(sys.argv[2])))
