"""What the actors of these tests do outside, and where they wait: probes instead of sleeps.

A `World` is a resource of the system under test, so that handlers and step bodies find it by type. It outlives the
system, as the world does: a test opens the same file again and looks at what was done in both lives.
"""

from __future__ import annotations

import asyncio
import threading
from collections import Counter, defaultdict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from understudy import System, SystemFailed, current_turn
from understudy.testing import FaultyStore


class World:
    """Everything that was done outside, in order, and named points at which code stops until the test lets it go."""

    def __init__(self) -> None:
        self.did: list[Any] = []
        self.seen: dict[str, Any] = {}
        self.fails: Counter[str] = Counter()  # how often each thing is still to fail
        self._reached: defaultdict[str, asyncio.Event] = defaultdict(asyncio.Event)
        self._open: defaultdict[str, asyncio.Event] = defaultdict(asyncio.Event)
        self.threads: defaultdict[str, threading.Event] = defaultdict(threading.Event)

    async def stop_at(self, point: str) -> None:
        """Say that *point* was reached and wait until the test opens it."""
        self._reached[point].set()
        await self._open[point].wait()

    async def wait(self, point: str) -> None:
        """Return when *point* was reached."""
        await self._reached[point].wait()

    def open(self, point: str) -> None:
        """Let everybody go on who waits at *point*, or comes there later."""
        self._open[point].set()

    def reached(self, point: str) -> bool:
        """Whether *point* was reached."""
        return self._reached[point].is_set()

    def reach(self, point: str) -> None:
        """Say that *point* was reached, and go on."""
        self._reached[point].set()

    def should_fail(self, what: str) -> bool:
        """Whether *what* is to fail this time."""
        if not self.fails[what]:
            return False
        self.fails[what] -= 1
        return True


def world() -> World:
    """Return the world of the running turn, step or query."""
    return current_turn().resource(World)


@asynccontextmanager
async def dying(system: System) -> AsyncIterator[System]:
    """Open a system for a life that ends with the body: no commit after it happens, as if the process had died."""
    try:
        async with system:
            yield system
            await system.committer.wait_durable()  # What was done has had its moment to get there.
            store = system.store
            assert isinstance(store, FaultyStore)
            store.fail_before()
            system.committer.touch().work += 1
            await asyncio.Event().wait()  # for the system to cancel us
    except SystemFailed:
        pass
