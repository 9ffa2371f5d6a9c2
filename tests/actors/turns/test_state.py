"""State: mutated in place, rolled back when a turn fails, written when it changed (section 5.2, promise 2)."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
import pytest

from tests.actors.turns.conftest import Open
from tests.actors.turns.world import World, world
from understudy import (
    Actor,
    ActorSuspended,
    Backoff,
    EncodingFailed,
    Policy,
    handler,
    on,
    query,
    restart,
    retry,
)

pytestmark = pytest.mark.anyio

AT_ONCE = Backoff(0.0, max_s=0.0)


class Refused(Exception):
    pass


class Totals(msgspec.Struct):
    cents: int = 0
    lines: list[str] = []


class Ages(msgspec.Struct):
    cents: dict[str, int] = {}


class Entry(msgspec.Struct):
    cents: int
    text: str = ""


class Book(Actor[Totals], kind="book"):
    policy = Policy(on(OSError, retry(times=1, backoff=AT_ONCE)), on(RuntimeError, restart(times=1, backoff=AT_ONCE)))

    @handler(raises=[Refused])
    async def add(self, cents: int, fails: str = "") -> int:
        self.state.cents += cents
        self.state.lines.append(fails)
        self.cache = getattr(self, "cache", 0) + 1
        world().did.append(self.cache)
        if fails == "refused":
            raise Refused("no")
        if fails and self.turn.attempt == 1:
            raise OSError("again") if fails == "retry" else RuntimeError("again")
        return self.state.cents

    @handler
    async def replace(self, cents: Any) -> None:
        self.state.cents = cents

    @query
    async def cents(self) -> int:
        return self.state.cents


class Ledger(Actor[Totals, Entry], kind="ledger"):
    snapshot_every = 3
    policy = Policy(on(OSError, retry(times=1, backoff=AT_ONCE)), on(RuntimeError, restart(times=1, backoff=AT_ONCE)))

    def apply(self, event: Entry) -> None:
        if event.text == world_says_break.get("text"):
            raise ZeroDivisionError("cannot apply")
        self.state.cents += event.cents
        self.state.lines.append(event.text)

    @handler(raises=[Refused])
    async def add(self, cents: int, fails: str = "") -> int:
        self.record(Entry(cents, fails))
        self.record(Entry(0, "fee"))
        if fails == "refused":
            raise Refused("no")
        if fails and self.turn.attempt == 1:
            raise OSError("again") if fails == "retry" else RuntimeError("again")
        return self.state.cents

    @handler
    async def one(self, cents: int) -> int:
        self.record(Entry(cents))
        return self.state.cents

    @query
    async def cents(self) -> int:
        return self.state.cents

    @query
    async def count(self) -> int:
        return len(self.state.lines)

    @query
    async def lines(self) -> list[str]:
        return self.state.lines


world_says_break: dict[str, str] = {}


@pytest.mark.parametrize("cls", [Book, Ledger])
async def test_declared_refusal_leaves_no_trace_in_the_state(open_system: Open, cls: Any) -> None:
    async with open_system(cls) as system:
        actor = system.actor(cls, "a")
        await actor.add(5)

        with pytest.raises(Refused):
            await actor.add(100, "refused")

        assert (await actor.cents(), await actor.add(1)) == (5, 6)
    async with open_system(cls) as again:
        assert await again.actor(cls, "a").cents() == 6


@pytest.mark.parametrize("cls", [Book, Ledger])
@pytest.mark.parametrize("fails", ["retry", "restart"])
async def test_failed_attempt_leaves_no_trace_in_the_state_of_the_next(open_system: Open, cls: Any, fails: str) -> None:
    async with open_system(cls) as system:
        await system.actor(cls, "a").add(5)

        assert await system.actor(cls, "a").add(1, fails) == 6
    async with open_system(cls) as again:
        assert await again.actor(cls, "a").cents() == 6


async def test_retry_keeps_the_object_and_restart_makes_a_new_one(open_system: Open, outside: World) -> None:
    async with open_system(Book) as system:
        await system.actor(Book, "retried").add(1, "retry")
        await system.actor(Book, "restarted").add(1, "restart")

    assert outside.did == [1, 2, 1, 1]


async def test_events_are_appended_and_a_snapshot_is_taken_every_few(open_system: Open) -> None:
    written: list[Any] = []

    async with open_system(Ledger) as system:
        system.store.before_commit = lambda batch: written.append((list(batch.events), dict(batch.snapshots)))
        for cents in range(1, 8):
            await system.actor(Ledger, "l").one(cents)
        system.store.before_commit = None

    events = [seq for each, _ in written for _, seq, _ in each]
    snapshots = [each.seq for _, made in written for each in made.values()]
    assert (events, snapshots) == ([1, 2, 3, 4, 5, 6, 7], [3, 6])
    async with open_system(Ledger) as again:
        assert (await again.actor(Ledger, "l").cents(), await again.actor(Ledger, "l").count()) == (28, 7)


async def test_reply_of_a_query_is_a_copy_of_what_later_queries_read(open_system: Open) -> None:
    async with open_system(Ledger) as system:
        await system.actor(Ledger, "l").one(1)

        lines = await system.actor(Ledger, "l").lines()
        lines.append("never recorded")

        assert await system.actor(Ledger, "l").lines() == [""]


async def test_events_of_a_failed_attempt_are_not_stored(open_system: Open) -> None:
    async with open_system(Ledger) as system:
        await system.actor(Ledger, "l").add(1, "restart")
        with pytest.raises(Refused):
            await system.actor(Ledger, "l").add(1, "refused")

    async with open_system(Ledger) as again:
        assert await again.actor(Ledger, "l").count() == 2


async def test_state_that_no_longer_decodes_suspends_the_actor_and_not_the_system(open_system: Open) -> None:
    class OtherBook(Actor[Ages], kind="book"):
        @handler
        async def add(self, cents: int) -> int:
            return cents

    async with open_system(Book) as system:
        await system.actor(Book, "b").add(1)

    async with open_system(OtherBook) as again:
        with pytest.raises(ActorSuspended, match="the state of book/b does not decode"):
            await again.actor(OtherBook, "b").add(1)

        assert await again.actor(OtherBook, "other").add(1) == 1


async def test_turn_that_leaves_state_of_a_wrong_type_is_rolled_back(open_system: Open) -> None:
    async with open_system(Book) as system:
        book = system.actor(Book, "b")
        await book.add(1)

        with pytest.raises(EncodingFailed, match="the state of book is not the annotated"):
            await book.replace("not a number")

        assert await book.add(1) == 2


async def test_roll_back_that_fails_suspends_the_actor_and_not_the_system(open_system: Open) -> None:
    async with open_system(Ledger) as system:
        ledger = system.actor(Ledger, "l")
        await ledger.add(1)
        world_says_break["text"] = "fee"
        try:
            with pytest.raises(ActorSuspended, match="cannot apply"):
                await ledger.add(1)
            with pytest.raises(ActorSuspended, match="cannot apply"):
                await ledger.one(1)
        finally:
            world_says_break.clear()

        assert await system.actor(Ledger, "other").one(1) == 1


async def test_event_that_no_longer_applies_suspends_the_actor_and_not_the_system(open_system: Open) -> None:
    async with open_system(Ledger) as system:
        await system.actor(Ledger, "l").add(1)

    world_says_break["text"] = "fee"
    try:
        async with open_system(Ledger) as again:
            with pytest.raises(ActorSuspended, match=r"apply\(\) raised ZeroDivisionError: cannot apply"):
                await again.actor(Ledger, "l").cents()
            assert await again.actor(Ledger, "other").one(1) == 1
            world_says_break.clear()
            await again.resume(again.actor(Ledger, "l"))
            assert await again.actor(Ledger, "l").cents() == 1
    finally:
        world_says_break.clear()


# --- one turn at a time, several only without state ---------------------------------------------------------------------


class Single(Actor[Totals], kind="single"):
    @handler
    async def work(self, name: str) -> None:
        self.state.lines.append(f"{name} in")
        await asyncio.sleep(1)
        self.state.lines.append(f"{name} out")

    @query
    async def lines(self) -> list[str]:
        return self.state.lines


class Pool(Actor, kind="pool"):
    concurrency = 3

    @handler
    async def work(self) -> int:
        outside = world()
        outside.seen["now"] = outside.seen.get("now", 0) + 1
        outside.seen["peak"] = max(outside.seen["now"], outside.seen.get("peak", 0))
        await asyncio.sleep(1)
        outside.seen["now"] -= 1
        self.seen = getattr(self, "seen", 0) + 1
        return self.seen


async def test_turns_of_one_actor_run_one_at_a_time_in_the_order_of_acceptance(open_system: Open) -> None:
    async with open_system(Single) as system:
        single = system.actor(Single, "s")

        await asyncio.gather(*(single.work(name) for name in "abc"))

        assert await single.lines() == [f"{name} {way}" for name in "abc" for way in ("in", "out")]


async def test_query_beside_a_running_turn_sees_the_last_finished_one(open_system: Open) -> None:
    async with open_system(Single) as system:
        single = system.actor(Single, "s")
        await single.work("a")
        running = asyncio.ensure_future(single.work("b"))
        await asyncio.sleep(0.5)

        assert await single.lines() == ["a in", "a out"]
        await running


async def test_actor_without_state_runs_as_many_turns_at_a_time_as_it_says(open_system: Open, outside: World) -> None:
    async with open_system(Pool) as system:
        results = await asyncio.gather(*(system.actor(Pool, "p").work() for _ in range(10)))

    assert outside.seen["peak"] == 3
    assert results == [1] * 10
