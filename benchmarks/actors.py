"""The actors that are measured: as small as what their users would write."""

from __future__ import annotations

import asyncio

import msgspec

from understudy import Actor, handler, query, step


class Account(msgspec.Struct):
    """About 100 bytes, so that a turn writes as much as a row of the floors."""

    count: int = 0
    owner: str = "An account holder with a name, an address and whatever else a real state would hold"


class Counter(Actor[Account], kind="counter"):
    """Counts what it is asked to; each turn changes the state."""

    @handler
    async def add(self, number: int) -> int:
        self.state.count += number
        return self.state.count

    @query
    async def total(self) -> int:
        return self.state.count


@step
async def fetch(number: int) -> int:
    """Stand for something that reaches outside, and costs nothing itself."""
    return number + 1


class Workflow(Actor, kind="workflow"):
    """Five steps, one after the other."""

    @handler
    async def run(self, number: int) -> int:
        for _ in range(STEPS):
            number = await fetch(number)
        return number


STEPS = 5


class Gate:
    """Holds turns back for ever, or counts those that come through."""

    def __init__(self, *, expected: int | None) -> None:
        self.expected = expected  # None: closed
        self.passed = 0
        self.first = asyncio.Event()
        self.all = asyncio.Event()

    async def enter(self) -> None:
        if self.expected is None:
            await asyncio.get_running_loop().create_future()
        self.passed += 1
        self.first.set()
        if self.passed == self.expected:
            self.all.set()


class Worker(Actor[Account], kind="worker"):
    """Has work that a closed gate holds back."""

    @handler
    async def work(self) -> None:
        await self.turn.resource(Gate).enter()
        self.state.count += 1

    @query
    async def done(self) -> int:
        return self.state.count
