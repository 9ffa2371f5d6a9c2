"""xoscar: actors of a pool in this process; with the setting "batches", tells go as its batches of 100, awaited."""

from __future__ import annotations

import asyncio
import gc
import logging
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import xoscar
from xoscar.utils import get_next_port

from benchmarks.load import measure
from benchmarks.peers.programs.resident import resident_bytes
from benchmarks.peers.task import Job, serve
from benchmarks.sample import Sample

_BATCH = 100
_CALLERS = 256


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
        await counter.add(0)
        gc.collect()
        sent = 0
        began = time.perf_counter()

        async def sender() -> None:
            nonlocal sent
            while True:
                if job.setting == "batches":
                    await counter.add.batch(*(counter.add.delay(1) for _ in range(_BATCH)))
                    sent += _BATCH
                else:
                    await counter.add.tell(1)
                    sent += 1
                if time.perf_counter() >= began + job.seconds:
                    return

        await asyncio.gather(*(sender() for _ in range(senders)))
        while await counter.add(0) < sent:
            pass
        return [Sample("rate", "/s", sent / (time.perf_counter() - began))]


def spawn(job: Job) -> list[Sample]:
    return asyncio.run(_spawn(job))


async def _spawn(job: Job) -> list[Sample]:
    async with _pool() as address:
        await _touch(address, "warm", _CALLERS)
        gc.collect()
        began = time.perf_counter()
        await _touch(address, "fresh", job.count)
        return [Sample("rate", "/s", job.count / (time.perf_counter() - began))]


def memory(job: Job) -> list[Sample]:
    return asyncio.run(_memory(job))


async def _memory(job: Job) -> list[Sample]:
    async with _pool() as address:
        await _touch(address, "warm", min(job.count, 1_000))
        before = resident_bytes()
        await _touch(address, "idle", job.count)
        return [Sample("in memory", "bytes", (resident_bytes() - before) / job.count)]


async def _touch(address: str, name: str, count: int) -> None:
    """Make so many actors and ask each once, so many callers at a time as ours; the pool keeps them alive."""

    async def touch(number: int) -> None:
        counter = await xoscar.create_actor(Counter, address=address, uid=f"{name}-{number}")
        await counter.add(1)

    for start in range(0, count, _CALLERS):
        await asyncio.gather(*(touch(number) for number in range(start, min(start + _CALLERS, count))))


if __name__ == "__main__":
    serve({"asks": asks, "tells": tells, "fan-in": fan_in, "spawn": spawn, "memory": memory})
