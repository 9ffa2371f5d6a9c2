"""autogen-core: routed agents of one runtime in this process; tells are published to a topic with one subscriber."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from autogen_core import (
    AgentId,
    MessageContext,
    RoutedAgent,
    SingleThreadedAgentRuntime,
    TopicId,
    TypeSubscription,
    message_handler,
)

from benchmarks.load import measure
from benchmarks.peers.programs.resident import resident_bytes
from benchmarks.peers.task import Job, serve
from benchmarks.sample import Sample

_TYPE = "counter"
_CALLERS = 256


@dataclass
class Add:
    number: int


@dataclass
class Added:
    number: int


class Counter(RoutedAgent):
    """Answers `Add`, and counts `Added`."""

    def __init__(self) -> None:
        super().__init__("counts what it is sent")
        self.count = 0

    @message_handler
    async def add(self, message: Add, ctx: MessageContext) -> Add:  # the framework's signature
        self.count += message.number
        return Add(self.count)

    @message_handler
    async def added(self, message: Added, ctx: MessageContext) -> None:
        self.count += message.number


@asynccontextmanager
async def _runtime() -> AsyncIterator[SingleThreadedAgentRuntime]:
    # The documented switch; read by each runtime as it is made.
    os.environ["AUTOGEN_DISABLE_RUNTIME_TRACING"] = "true"
    logging.getLogger("autogen_core").setLevel(logging.CRITICAL)
    runtime = SingleThreadedAgentRuntime()
    await Counter.register(runtime, _TYPE, Counter)
    await runtime.add_subscription(TypeSubscription(_TYPE, _TYPE))
    runtime.start()
    try:
        yield runtime
    finally:
        await runtime.stop()


def asks(job: Job) -> list[Sample]:
    return asyncio.run(_asks(job))


async def _asks(job: Job) -> list[Sample]:
    async with _runtime() as runtime:
        ids = [AgentId(_TYPE, str(number)) for number in range(job.callers)]
        return await measure(lambda number: runtime.send_message(Add(1), ids[number]), job.callers, job.seconds)


def tells(job: Job) -> list[Sample]:
    return asyncio.run(_tells(job, senders=1))


def fan_in(job: Job) -> list[Sample]:
    return asyncio.run(_tells(job, senders=job.callers))


async def _tells(job: Job, senders: int) -> list[Sample]:
    async with _runtime() as runtime:
        topic = TopicId(_TYPE, "one")
        counter = AgentId(_TYPE, "one")
        await runtime.send_message(Add(0), counter)
        gc.collect()
        sent = 0
        began = time.perf_counter()

        async def sender() -> None:
            nonlocal sent
            while True:
                await runtime.publish_message(Added(1), topic)
                sent += 1
                if time.perf_counter() >= began + job.seconds:
                    return
                # Publishing never waits: without this, the first sender would keep all others from beginning.
                await asyncio.sleep(0)

        await asyncio.gather(*(sender() for _ in range(senders)))
        # An ask may overtake what was published before it, so one is rarely enough.
        while (await runtime.send_message(Add(0), counter)).number < sent:
            pass
        return [Sample("rate", "/s", sent / (time.perf_counter() - began))]


def spawn(job: Job) -> list[Sample]:
    return asyncio.run(_spawn(job))


async def _spawn(job: Job) -> list[Sample]:
    async with _runtime() as runtime:
        await _touch(runtime, "warm", _CALLERS)
        gc.collect()
        began = time.perf_counter()
        await _touch(runtime, "fresh", job.count)
        return [Sample("rate", "/s", job.count / (time.perf_counter() - began))]


def memory(job: Job) -> list[Sample]:
    return asyncio.run(_memory(job))


async def _memory(job: Job) -> list[Sample]:
    async with _runtime() as runtime:
        await _touch(runtime, "warm", min(job.count, 1_000))
        before = resident_bytes()
        await _touch(runtime, "idle", job.count)
        return [Sample("in memory", "bytes", (resident_bytes() - before) / job.count)]


async def _touch(runtime: SingleThreadedAgentRuntime, name: str, count: int) -> None:
    """Ask so many agents that do not exist yet, which makes them; so many callers at a time as ours."""
    for start in range(0, count, _CALLERS):
        numbers = range(start, min(start + _CALLERS, count))
        await asyncio.gather(*(runtime.send_message(Add(1), AgentId(_TYPE, f"{name}-{each}")) for each in numbers))


if __name__ == "__main__":
    serve({"asks": asks, "tells": tells, "fan-in": fan_in, "spawn": spawn, "memory": memory})
