"""autogen-core: routed agents of one runtime in this process; tells are published to a topic with one subscriber."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import AsyncIterator, Awaitable, Callable
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
from benchmarks.peers.programs.asyncio_actors import Touch, measure_memory, measure_spawn, measure_tells
from benchmarks.peers.task import Job, serve
from benchmarks.sample import Sample

_TYPE = "counter"


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

        async def publish() -> int:
            await runtime.publish_message(Added(1), topic)
            return 1

        async def counted() -> int:
            return int((await runtime.send_message(Add(0), counter)).number)

        return await measure_tells(publish, counted, senders, job.seconds)


def spawn(job: Job) -> list[Sample]:
    return asyncio.run(_with_touch(measure_spawn, job.count))


def memory(job: Job) -> list[Sample]:
    return asyncio.run(_with_touch(measure_memory, job.count))


async def _with_touch(measure_: Callable[[Touch, int], Awaitable[list[Sample]]], count: int) -> list[Sample]:
    async with _runtime() as runtime:  # An agent that does not exist is made by the first message to it.
        return await measure_(lambda name: runtime.send_message(Add(1), AgentId(_TYPE, name)), count)


if __name__ == "__main__":
    serve({"asks": asks, "tells": tells, "fan-in": fan_in, "spawn": spawn, "memory": memory})
