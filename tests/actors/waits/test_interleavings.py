"""Random orders of waiting, parking, deciding, delivering, cancelling and restarting: each approved call runs once."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.actors.turns.world import World, dying, world
from tests.actors.waits.shop import open_at
from understudy import (
    Actor,
    AlreadyDecided,
    ApprovalRejected,
    JobCancelled,
    KeyConflict,
    Limits,
    NotFound,
    System,
    external,
    handler,
    tool,
)

pytestmark = pytest.mark.anyio

JOBS = 4


@tool(approval="always")
async def act(what: str) -> str:
    """Act."""
    world().did.append(what)
    return f"{what} done"


async def tried(what: str) -> str:
    try:
        return await act(what)
    except ApprovalRejected:
        return f"{what} rejected"


class Leaf(Actor, kind="leaf"):
    @handler
    async def go(self, name: str) -> list[str]:
        world().seen[name] = self.turn.id
        branches = [tried(f"{name} a"), tried(f"{name} b"), external("word", str)]
        return [*await asyncio.gather(*branches), await tried(f"{name} c")]


class Middle(Actor, kind="middle"):
    @handler
    async def go(self, name: str) -> list[str]:
        return await self.actor(Leaf, name).go(name)


class Shared(Actor, kind="shared"):
    """Handles its mail one by one: some wait behind a parked one."""

    @handler
    async def go(self, name: str) -> str:
        return await tried(f"{name} shared")


class Root(Actor, kind="root"):
    @handler
    async def go(self, name: str) -> list[str]:
        below, own, shared = await asyncio.gather(
            self.actor(Middle, name).go(name), tried(f"{name} own"), self.actor(Shared, "one").go(name)
        )
        return [*below, own, shared]


class Run:
    """One random run over one file."""

    def __init__(self, path: Path, seed: int) -> None:
        self.dice = random.Random(seed)
        self.path = path
        self.outside = World()
        self.jobs: dict[str, str] = {}
        self.said: dict[str, bool] = {}  # what was decided, by the tool's argument
        self.words: dict[str, str] = {}
        self.cancelled: set[str] = set()

    def open(self) -> System:
        limits = Limits(grace_s=0.05, park_after_s=60.0, idle_s=100.0)
        return open_at(self.path, self.outside, Root, Middle, Leaf, Shared, limits=limits)

    async def life(self, system: System, steps: int) -> None:
        actions: list[Callable[[System], Any]] = [self.decide, self.decide, self.deliver, self.look, self.decide_both]
        for _ in range(steps):
            if len(self.jobs) < JOBS and self.dice.random() < 0.4:
                name = f"j{len(self.jobs)}"
                self.jobs[name] = (await system.actor(Root, name).go.submit(name)).id
            if self.dice.random() < 0.05 and self.jobs:
                await self.cancel(system)
            await self.dice.choice(actions)(system)
            await asyncio.sleep(self.dice.choice([0.0, 0.01, 1.0, 59.999, 60.001, 61.0, 300.0]))
        await asyncio.sleep(0.5)  # No tool is in flight when it ends.

    async def decide(self, system: System) -> None:
        approvals = await system.approvals()
        if not approvals:
            return
        approval = self.dice.choice(approvals)
        yes = self.dice.random() < 0.7
        try:
            await (approval.approve() if yes else approval.reject("no"))
        except (AlreadyDecided, NotFound):  # Its job was cancelled just now, or it was decided side by side.
            return
        assert approval.arguments["what"] not in self.said, "decided twice"
        self.said[approval.arguments["what"]] = yes

    async def decide_both(self, system: System) -> None:
        await asyncio.gather(self.decide(system), self.decide(system), self.deliver(system))

    async def deliver(self, system: System) -> None:
        waiting = [name for name in self.jobs if name in self.outside.seen and name not in self.words]
        if not waiting:
            return
        name = self.dice.choice(waiting)
        try:
            await system.deliver(self.outside.seen[name], "word", f"word for {name}")
        except NotFound:
            assert name in self.cancelled
        except KeyConflict:
            raise
        self.words[name] = f"word for {name}"

    async def look(self, system: System) -> None:
        for id in self.jobs.values():
            assert (await system.job(id).status()).state != "failed"

    async def cancel(self, system: System) -> None:
        name = self.dice.choice(list(self.jobs))
        if (await system.job(self.jobs[name]).status()).state not in ("done", "cancelled"):
            self.cancelled.add(name)
            await system.job(self.jobs[name]).cancel()

    async def finish(self, system: System) -> dict[str, Any]:
        results: dict[str, Any] = {}
        for _ in range(200):
            states = [(await system.job(id).status()).state for id in self.jobs.values()]
            if all(state in ("done", "cancelled") for state in states):
                break
            await self.decide_both(system)
            await asyncio.sleep(1.0)
        else:
            pytest.fail(f"it did not come to an end: {states}, {[each async for each in system.actors()]}")
        for name, id in self.jobs.items():
            try:
                results[name] = await system.job(id)
            except JobCancelled:
                results[name] = None
        await asyncio.sleep(1_000)
        await system.committer.wait_durable()
        assert await system.store.records("wait", None, "", 100) == []
        assert {(each.status, each.waiting) async for each in system.actors()} == {("active", 0)}
        assert system.population.live == 0
        assert not system.journals
        assert not system.parked
        return results


@pytest.mark.parametrize("number", range(24))
async def test_each_approved_call_runs_once_in_any_order_of_events(tmp_path: Path, number: int) -> None:
    await one_run(tmp_path, number)


@pytest.mark.soak
@pytest.mark.parametrize("number", range(100))
async def test_each_approved_call_runs_once_in_other_orders_of_events(tmp_path: Path, number: int, seed: int) -> None:
    await one_run(tmp_path, seed + number)


async def one_run(path: Path, seed: int) -> None:
    run = Run(path, seed)
    for _ in range(run.dice.randint(1, 5)):
        async with AsyncExitStack() as stack:
            system = run.open()
            await stack.enter_async_context(dying(system) if run.dice.random() < 0.5 else system)
            await run.life(system, run.dice.randint(1, 15))
    if not run.jobs:
        return
    async with run.open() as system:
        results = await run.finish(system)

    ran = Counter(run.outside.did)
    assert all(count == 1 for count in ran.values()), ran
    assert {what for what, yes in run.said.items() if yes} >= set(ran)
    for name, result in results.items():
        if result is None:
            assert name in run.cancelled
            continue
        expected = [f"{name} {what}" for what in ("a", "b", "c", "own", "shared")]
        told = [f"{what} {'done' if run.said[what] else 'rejected'}" for what in expected]
        assert result == [told[0], told[1], run.words[name], *told[2:]]
        assert {what for what in expected if run.said[what]} <= set(ran)
