"""The handlers that Restate's server calls, and the process that serves them: `restate_handlers.py PORT EXPECTED`."""

from __future__ import annotations

import asyncio
import sys

import restate
import uvloop
from hypercorn.asyncio import serve
from hypercorn.config import Config

from benchmarks.peers.programs.loopback import HOST

_STEPS = 5
_EVER = 2**31 - 1

counter = restate.VirtualObject("Counter")


@counter.handler()
async def add(ctx: restate.ObjectContext, number: int) -> int:
    count = (await ctx.get("count", type_hint=int) or 0) + number
    ctx.set("count", count)
    return count


workflows = restate.Service("Workflow")


async def fetch(number: int) -> int:
    """Stand for something that reaches outside, and costs nothing itself."""
    return number + 1


@workflows.handler()
async def run(ctx: restate.Context, number: int) -> int:
    for step in range(_STEPS):
        number = await ctx.run_typed(f"fetch-{step}", fetch, number=number)
    return number


worker = restate.VirtualObject("Worker")


class _Passed:
    """Says which object has worked first, and when all have; the server is about to store it then."""

    def __init__(self) -> None:
        self.expected = 0
        self._keys: set[str] = set()  # A handler may run twice.

    def add(self, key: str) -> None:
        self._keys.add(key)
        if len(self._keys) == 1:
            print(key, flush=True)
        if len(self._keys) == self.expected:
            print("all", flush=True)


_passed = _Passed()


@worker.handler()
async def handle(ctx: restate.ObjectContext, number: int) -> None:
    ctx.set("done", number)
    _passed.add(ctx.key())


def main(port: int, expected: int) -> None:
    """Serve them; print the key of the first object that worked, and a line once *expected* ones have."""
    _passed.expected = expected
    config = Config()
    config.bind = [f"{HOST}:{port}"]
    config.loglevel = "ERROR"
    # The server keeps few connections and many streams on each; the defaults would close them in between.
    config.h2_max_concurrent_streams = _EVER
    config.keep_alive_max_requests = _EVER
    config.keep_alive_timeout = _EVER
    application = restate.app([counter, workflows, worker])
    uvloop.run(serve(application, config, shutdown_trigger=asyncio.Event().wait))


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
