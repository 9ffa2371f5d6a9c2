"""Start and stop many static children, or let one of many actors fail: `supervise plain|hooked|failure FILE COUNT`."""

from __future__ import annotations

import asyncio
import gc
import logging
import statistics
import sys
import time

import msgspec

from benchmarks.actors import Account
from benchmarks.machine import rss_bytes
from understudy import Actor, ActorSuspended, Child, HandlerFailed, Limits, Policy, System, handler, on
from understudy.supervisor.policy import suspend

_CALLERS = 256
_FAILURES = 300  # measured one by one; their median is not the noise of one


class Broken(Exception):
    """Holds the actor."""


class Plain(Actor[Account], kind="plain"):
    """Nothing is to be done when it starts or stops."""

    policy = Policy(on(Broken, suspend()))

    @handler
    async def add(self, number: int) -> int:
        self.state.count += number
        return self.state.count

    @handler
    async def fail(self, how: str) -> None:
        raise (ValueError if how == "dead letter" else Broken)(how)


class Hooked(Plain, kind="hooked"):
    """Takes something when it starts, and gives it back."""

    async def on_start(self) -> None:
        self.taken = True

    async def on_stop(self) -> None:
        self.taken = False


CLASSES = {"plain": Plain, "hooked": Hooked}


async def start_and_stop(path: str, count: int, cls: type[Plain]) -> dict[str, float]:
    """Return how long opening and closing took, in seconds, and what the process grew by for each child."""
    system = System(path, [Child(cls, f"child-{number}") for number in range(count)])
    gc.collect()
    before = rss_bytes()
    began = time.perf_counter()
    async with system:
        started = time.perf_counter()
        gc.collect()
        grown = rss_bytes() - before
        stopping = time.perf_counter()
    return {
        "start": started - began,
        "stop": time.perf_counter() - stopping,
        "memory": grown / count,
    }


async def fail_among(path: str, count: int) -> dict[str, float]:
    """Return how much work one failure is while so many actors on demand are in memory.

    In microseconds of this process, all threads, without waiting for the disk; the median of many.
    """
    limits = Limits(active_max=2 * count + 3 * _FAILURES, idle_s=3_600.0)
    async with System(path, [Plain], limits=limits, durability="process") as system:
        for start in range(0, count, _CALLERS):
            numbers = range(start, min(start + _CALLERS, count))
            await asyncio.gather(*(system.actor(Plain, f"actor-{number}").add(1) for number in numbers))
        found: dict[str, float] = {}
        for how in ("dead letter", "suspension"):
            failing = [system.actor(Plain, f"{how}-{number}") for number in range(_FAILURES)]
            await asyncio.gather(*(actor.add(1) for actor in failing))
            gc.collect()
            gc.freeze()  # A collection looks at everything in memory, whoever made it necessary.
            times: list[float] = []
            for actor in failing:
                began = time.process_time()
                try:
                    await actor.fail(how)
                except (HandlerFailed, ActorSuspended):
                    times.append((time.process_time() - began) * 1e6)
            found[how] = statistics.median(times)
        return found


if __name__ == "__main__":
    logging.disable(logging.CRITICAL)
    what, path, count = sys.argv[1], sys.argv[2], int(sys.argv[3])
    if what == "failure":
        result = asyncio.run(fail_among(path, count))
    else:
        result = asyncio.run(start_and_stop(path, count, CLASSES[what]))
    print(msgspec.json.encode(result).decode(), flush=True)
