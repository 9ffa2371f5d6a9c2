"""Ray: one node on this machine; an actor is a process, so callers share one async actor per CPU, as its advice is."""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager

import ray

from benchmarks.load import measure
from benchmarks.peers.programs.asyncio_actors import measure_tells
from benchmarks.peers.programs.resident import own_bytes
from benchmarks.peers.task import Job, serve
from benchmarks.sample import NotMeasured, Sample

_ACTORS_MAX = 16  # of those that have a process each: about 45 MB and a quarter of a second
_STORE_BYTES = 200 * 2**20  # for objects larger than any message here


class Counter:
    def __init__(self) -> None:
        self._count = 0

    def add(self, number: int) -> int:
        self._count += number
        return self._count

    def pid(self) -> int:
        return os.getpid()


class AsyncCounter:
    """Counts for many, each under a key of its own."""

    def __init__(self) -> None:
        self._counts: dict[int, int] = {}

    async def add(self, key: int, number: int) -> int:
        self._counts[key] = self._counts.get(key, 0) + number
        return self._counts[key]


@contextmanager
def _node(job: Job) -> Iterator[int]:
    """Give the number of CPUs of a node that ends with this program."""
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    try:
        ray.init(
            num_cpus=cpus,
            include_dashboard=False,
            logging_level=logging.ERROR,
            log_to_driver=False,
            object_store_memory=_STORE_BYTES,
            _temp_dir=str(job.sockets),
        )
        yield cpus
    except (ConnectionError, TimeoutError, ray.exceptions.RayError) as error:
        raise NotMeasured(f"its node failed: {error}") from error
    finally:
        ray.shutdown()


def asks(job: Job) -> list[Sample]:
    with _node(job) as cpus:
        # Actors without a CPU of their own in Ray's books: its default would leave none for the second one.
        actor = ray.remote(num_cpus=0, max_concurrency=max(1, job.callers))(AsyncCounter)
        counters = [actor.remote() for _ in range(min(cpus, job.callers))]
        shared = len(counters)
        return asyncio.run(
            measure(lambda number: counters[number % shared].add.remote(number, 1), job.callers, job.seconds)
        )


def tells(job: Job) -> list[Sample]:
    return _tells(job, senders=1)


def fan_in(job: Job) -> list[Sample]:
    return _tells(job, senders=job.callers)


def _tells(job: Job, senders: int) -> list[Sample]:
    with _node(job):
        counter = ray.remote(num_cpus=0)(Counter).remote()

        async def send() -> int:
            counter.add.remote(1)  # What would become the reply is not kept: as near to a tell as it comes.
            return 1

        async def counted() -> int:
            return int(await counter.add.remote(0))

        return asyncio.run(measure_tells(send, counted, senders, job.seconds))


def spawn(job: Job) -> list[Sample]:
    with _node(job):
        count = min(job.count, _ACTORS_MAX)
        ray.get(ray.remote(num_cpus=0)(Counter).remote().add.remote(1))
        began = time.perf_counter()
        _touched(count)
        return [Sample("rate", "/s", count / (time.perf_counter() - began))]


def memory(job: Job) -> list[Sample]:
    with _node(job):
        counters = _touched(min(job.count, _ACTORS_MAX))
        pids = ray.get([counter.pid.remote() for counter in counters])
        return [Sample("in memory", "bytes", sum(map(own_bytes, pids)) / len(pids))]


def _touched(count: int) -> list[ray.actor.ActorHandle]:
    counters = [ray.remote(num_cpus=0)(Counter).remote() for _ in range(count)]
    ray.get([counter.add.remote(1) for counter in counters])
    return counters


if __name__ == "__main__":
    serve({"asks": asks, "tells": tells, "fan-in": fan_in, "spawn": spawn, "memory": memory})
