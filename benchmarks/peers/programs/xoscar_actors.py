"""xoscar: actors of a pool in this process; with the setting "batches", tells go as its batches of 100, awaited."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import xoscar
from xoscar.utils import get_next_port

from benchmarks.load import measure
from benchmarks.peers.programs.asyncio_actors import Touch, measure_memory, measure_spawn, measure_tells
from benchmarks.peers.task import Job, serve
from benchmarks.sample import Sample

_BATCH = 100


class Counter(xoscar.Actor):
    """Its methods are its messages."""

    def __init__(self) -> None:
        self.count = 0

    @xoscar.extensible
    async def add(self, number: int) -> int:
        self.count += number
        return self.count


@asynccontextmanager
async def _pool() -> AsyncIterator[str]:
    """Give the address of a pool without processes of its own."""
    logging.getLogger("xoscar").setLevel(logging.CRITICAL)
    pool = await xoscar.create_actor_pool(f"127.0.0.1:{get_next_port()}", n_process=0)
    async with pool:
        yield pool.external_address


def asks(job: Job) -> list[Sample]:
    return asyncio.run(_asks(job))


async def _asks(job: Job) -> list[Sample]:
    async with _pool() as address:
        counters = [await xoscar.create_actor(Counter, address=address, uid=str(each)) for each in range(job.callers)]
        return await measure(lambda number: counters[number].add(1), job.callers, job.seconds)


def tells(job: Job) -> list[Sample]:
    return asyncio.run(_tells(job, senders=1))


def fan_in(job: Job) -> list[Sample]:
    return asyncio.run(_tells(job, senders=job.callers))


async def _tells(job: Job, senders: int) -> list[Sample]:
    async with _pool() as address:
        counter = await xoscar.create_actor(Counter, address=address, uid="one")

        async def tell() -> int:
            if job.setting == "batches":
                await counter.add.batch(*(counter.add.delay(1) for _ in range(_BATCH)))
                return _BATCH
            await counter.add.tell(1)
            return 1

        return await measure_tells(tell, lambda: counter.add(0), senders, job.seconds)


def spawn(job: Job) -> list[Sample]:
    return asyncio.run(_with_touch(measure_spawn, job.count))


def memory(job: Job) -> list[Sample]:
    return asyncio.run(_with_touch(measure_memory, job.count))


async def _with_touch(measure_: Callable[[Touch, int], Awaitable[list[Sample]]], count: int) -> list[Sample]:
    async with _pool() as address:  # It keeps its actors alive.

        async def touch(name: str) -> None:
            counter = await xoscar.create_actor(Counter, address=address, uid=name)
            await counter.add(1)

        return await measure_(touch, count)


if __name__ == "__main__":
    serve({"asks": asks, "tells": tells, "fan-in": fan_in, "spawn": spawn, "memory": memory})
