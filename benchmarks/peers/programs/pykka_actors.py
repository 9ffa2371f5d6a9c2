"""pykka: a thread per actor, a thread per caller; `ask` and `tell` of its references, on one CPU."""

from __future__ import annotations

import gc
import os
import threading
import time

import pykka

from benchmarks.load import measure_blocking
from benchmarks.peers.programs.resident import resident_bytes
from benchmarks.peers.task import Job, serve
from benchmarks.sample import Sample

_ACTORS_MAX = 10_000  # threads; systems allow a process a few times as many
_ASKED_AT_ONCE = 256


class Counter(pykka.ThreadingActor):
    use_daemon_thread = True  # so that ten thousand of them need not be stopped one by one

    def __init__(self) -> None:
        super().__init__()
        self._count = 0

    def on_receive(self, message: int) -> int:
        self._count += message
        return self._count


def _pin() -> None:
    """Keep to one CPU: the interpreter runs one thread at a time, and handing over to another CPU takes longer."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})


def asks(job: Job) -> list[Sample]:
    _pin()
    counters = [Counter.start() for _ in range(job.callers)]
    return measure_blocking(lambda number: counters[number].ask(1), job.callers, job.seconds)


def tells(job: Job) -> list[Sample]:
    return _tells(job, senders=1)


def fan_in(job: Job) -> list[Sample]:
    return _tells(job, senders=job.callers)


def _tells(job: Job, senders: int) -> list[Sample]:
    _pin()
    counter = Counter.start()
    counter.ask(0)
    sent = [0] * senders
    start = threading.Event()
    until = 0.0

    def sender(number: int) -> None:
        start.wait()
        while True:
            counter.tell(1)
            sent[number] += 1
            if time.perf_counter() >= until:
                return

    threads = [threading.Thread(target=sender, args=(number,)) for number in range(senders)]
    for thread in threads:
        thread.start()
    gc.collect()
    began = time.perf_counter()
    until = began + job.seconds
    start.set()
    for thread in threads:
        thread.join()
    counted = counter.ask(0)
    took_s = time.perf_counter() - began
    if counted != sum(sent):
        raise AssertionError(f"{sum(sent)} tells were sent, {counted} were counted")
    return [Sample("rate", "/s", counted / took_s)]


def spawn(job: Job) -> list[Sample]:
    _pin()
    _touch(_ASKED_AT_ONCE)
    count = min(job.count, _ACTORS_MAX)
    gc.collect()
    began = time.perf_counter()
    _touch(count)
    return [Sample("rate", "/s", count / (time.perf_counter() - began))]


def memory(job: Job) -> list[Sample]:
    _pin()
    count = min(job.count, _ACTORS_MAX)
    _touch(min(count, 1_000))
    before = resident_bytes()
    _touch(count)
    return [Sample("in memory", "bytes", (resident_bytes() - before) / count)]


def _touch(count: int) -> None:
    """Make so many actors and ask each once; its registry keeps them alive."""
    for start in range(0, count, _ASKED_AT_ONCE):
        counters = [Counter.start() for _ in range(min(_ASKED_AT_ONCE, count - start))]
        pykka.get_all([counter.ask(1, block=False) for counter in counters])


if __name__ == "__main__":
    serve({"asks": asks, "tells": tells, "fan-in": fan_in, "spawn": spawn, "memory": memory})
