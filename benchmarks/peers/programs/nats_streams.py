"""NATS JetStream: one server that keeps a stream in files; a call is a publish that waits until the server has stored it.

The server runs nobody's turn: a consumer would fetch the message, do the work and acknowledge it, each a hop of its own.
"""

from __future__ import annotations

import asyncio
import os
import sys
import time
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from pathlib import Path

import nats
from nats.js import JetStreamContext, api

from benchmarks.load import measure
from benchmarks.peers.programs.loopback import HOST, Server, free_port
from benchmarks.peers.task import Job, serve
from benchmarks.sample import Sample

_EXECUTABLE = Path(sys.executable).parent / "nats-server"
_STREAM = "messages"
_WORKER = "worker"
_BODY = os.urandom(100)  # as much as a turn of ours stores
_IN_FLIGHT = 200  # as many as our one sender has under way
_FILL = 1_000  # published at a time, to leave work
_FETCH = 500
_TIMEOUT_S = 60.0
_FETCH_S_MAX = 5.0


def _server(job: Job) -> Server:
    """Describe a server; the setting is its `sync_interval`, the time from a write to its flush, or `always`."""
    port = free_port()
    sync = f"  sync_interval: {job.setting}\n" if job.setting else ""
    configuration = job.directory / "nats.conf"
    configuration.write_text(
        f'host: "{HOST}"\nport: {port}\njetstream {{\n  store_dir: "{job.directory / "jetstream"}"\n{sync}}}\n',
        encoding="utf-8",
    )
    return Server([_EXECUTABLE, "-c", configuration], port, job.directory)


@asynccontextmanager
async def _jetstream(server: Server) -> AsyncIterator[JetStreamContext]:
    client = await nats.connect(f"nats://{HOST}:{server.port}", allow_reconnect=False)
    try:
        yield client.jetstream(timeout=_TIMEOUT_S)
    finally:
        await client.close()


async def _add_stream(jetstream: JetStreamContext) -> None:
    await jetstream.add_stream(api.StreamConfig(name=_STREAM, subjects=[f"{_STREAM}.>"], storage=api.StorageType.FILE))


def asks(job: Job) -> Iterable[Sample]:
    """Callers that each publish to a subject of their own and wait for the word that it is stored."""
    with _server(job) as server:
        return asyncio.run(_asks(job, server))


async def _asks(job: Job, server: Server) -> list[Sample]:
    async with _jetstream(server) as jetstream:
        await _add_stream(jetstream)
        return await measure(
            lambda number: jetstream.publish(f"{_STREAM}.counter-{number}", _BODY),
            job.callers,
            job.seconds,
            job.directory,
        )


def tells(job: Job) -> Iterable[Sample]:
    """One publisher that waits for many publishes at a time."""
    with _server(job) as server:
        return asyncio.run(_tells(job, server))


async def _tells(job: Job, server: Server) -> list[Sample]:
    async with _jetstream(server) as jetstream:
        await _add_stream(jetstream)
        sent = 0
        began = time.perf_counter()
        while sent == 0 or time.perf_counter() < began + job.seconds:
            await _publish(jetstream, [f"{_STREAM}.counter"] * _IN_FLIGHT)
            sent += _IN_FLIGHT
        return await _rate(jetstream, sent, began)


def fan_in(job: Job) -> Iterable[Sample]:
    """Publishers to one subject that each wait for each publish."""
    with _server(job) as server:
        return asyncio.run(_fan_in(job, server))


async def _fan_in(job: Job, server: Server) -> list[Sample]:
    async with _jetstream(server) as jetstream:
        await _add_stream(jetstream)
        sent = 0
        began = time.perf_counter()

        async def sender() -> None:
            nonlocal sent
            while True:
                await jetstream.publish(f"{_STREAM}.counter", _BODY)
                sent += 1
                if time.perf_counter() >= began + job.seconds:
                    return

        await asyncio.gather(*(sender() for _ in range(job.callers)))
        return await _rate(jetstream, sent, began)


async def _rate(jetstream: JetStreamContext, sent: int, began: float) -> list[Sample]:
    took_s = time.perf_counter() - began
    stored = (await jetstream.stream_info(_STREAM)).state.messages
    if stored != sent:
        raise AssertionError(f"{sent} messages were acknowledged, {stored} are stored")
    return [Sample("rate", "/s", sent / took_s)]


async def _publish(jetstream: JetStreamContext, subjects: Iterable[str]) -> None:
    """Publish to all *subjects*, one after the other, and wait until all is stored."""
    await asyncio.gather(*[await jetstream.publish_async(subject, _BODY) for subject in subjects])


def reopen(job: Job) -> Iterable[Sample]:
    """Messages that wait for their consumer when the server is killed, until all are fetched and acknowledged."""
    with _server(job) as server:
        asyncio.run(_leave(server, job.count))
        server.kill()
        began = time.perf_counter()
        server.start()
        return asyncio.run(_drain(server, job.count, began))


async def _leave(server: Server, count: int) -> None:
    async with _jetstream(server) as jetstream:
        await _add_stream(jetstream)
        configuration = api.ConsumerConfig(durable_name=_WORKER, max_ack_pending=count + 1)
        await jetstream.add_consumer(_STREAM, configuration)
        for start in range(0, count, _FILL):
            numbers = range(start, min(start + _FILL, count))
            await _publish(jetstream, [f"{_STREAM}.worker-{number}" for number in numbers])


async def _drain(server: Server, count: int, began: float) -> list[Sample]:
    async with _jetstream(server) as jetstream:
        worker = await jetstream.pull_subscribe_bind(_WORKER, _STREAM)
        (message,) = await worker.fetch(1, timeout=_FETCH_S_MAX)
        await message.ack_sync(timeout=_FETCH_S_MAX)
        first_s = time.perf_counter() - began
        done = 1
        while done < count:
            for message in await worker.fetch(_FETCH, timeout=_FETCH_S_MAX):
                done += 1
                # The server takes them in order: once it has confirmed the last one, it has all.
                await (message.ack_sync(timeout=_FETCH_S_MAX) if done == count else message.ack())
        all_s = time.perf_counter() - began
        left = await worker.consumer_info()
    if (left.num_pending, left.num_ack_pending) != (0, 0):
        raise AssertionError(
            f"(waiting, not acknowledged) of {count} messages: {left.num_pending, left.num_ack_pending}"
        )
    return [Sample("first answered", "s", first_s), Sample("all answered", "s", all_s)]


if __name__ == "__main__":
    serve({"asks": asks, "tells": tells, "fan-in": fan_in, "reopen": reopen})
