"""Queries read the state of the last finished turn, beside the running one, and change nothing."""

from __future__ import annotations

import asyncio
from pathlib import Path

import msgspec
import pytest

from understudy import Actor, EncodingFailed, HandlerFailed, InvalidArguments, NoTurn, System, handler, query

pytestmark = pytest.mark.anyio


class Basket(msgspec.Struct):
    items: list[str] = []


class Gate:
    def __init__(self) -> None:
        self.event = asyncio.Event()


class Cart(Actor[Basket], kind="cart"):
    @handler
    async def add(self, item: str) -> list[str]:
        self.state.items.append(item)
        return self.state.items

    @handler
    async def add_slowly(self, item: str) -> None:
        self.state.items.append(item)
        await asyncio.sleep(100)
        self.state.items.append("done")

    @handler
    async def fail(self, item: str) -> None:
        self.state.items.append(item)
        raise ValueError("no")

    @query
    async def items(self) -> list[str]:
        return self.state.items

    @query
    async def spoil(self) -> list[str]:
        self.state.items.append("spoilt")
        return self.state.items

    @query
    async def read_twice(self) -> tuple[int, int]:
        first = len(self.state.items)
        await self.turn.resource(Gate).event.wait()
        return first, len(self.state.items)

    @query
    async def tell(self) -> None:
        await self.actor(Cart, "other").add.tell("x")

    @query
    async def broken(self) -> int:
        return {}["missing"]  # type: ignore[no-any-return]

    @query
    async def count_from(self, start: int) -> int:
        return start + len(self.state.items)


class EventCart(Actor[Basket, str], kind="eventcart"):
    snapshot_every = 4

    def apply(self, event: str) -> None:
        self.state.items.append(event)

    @handler
    async def add(self, item: str) -> list[str]:
        self.record(item)
        return self.state.items

    @handler
    async def add_slowly(self, item: str) -> None:
        self.record(item)
        await asyncio.sleep(100)
        self.record("done")

    @handler
    async def fail(self, item: str) -> None:
        self.record(item)
        raise ValueError("no")

    @handler
    async def record_wrong(self) -> None:
        self.record(5)  # type: ignore[arg-type]

    @query
    async def items(self) -> list[str]:
        return self.state.items

    @query
    async def spoil(self) -> list[str]:
        self.state.items.append("spoilt")
        return self.state.items

    @query
    async def read_twice(self) -> tuple[int, int]:
        first = len(self.state.items)
        await self.turn.resource(Gate).event.wait()
        return first, len(self.state.items)

    @query
    async def record_one(self) -> None:
        self.record("x")


BOTH = pytest.mark.parametrize("cls", [Cart, EventCart])


def system_at(path: Path, gate: Gate | None = None) -> System:
    return System(path, [Cart, EventCart], resources=[gate or Gate()])


@BOTH
async def test_query_sees_every_finished_turn_and_none_that_runs(path: Path, cls: type[Cart]) -> None:
    async with system_at(path) as system:
        cart = system.actor(cls, "c")
        assert await cart.items() == []
        await cart.add("a")
        running = asyncio.ensure_future(cart.add_slowly("b"))
        await asyncio.sleep(1)

        assert await cart.items() == ["a"]
        await running
        assert await cart.items() == ["a", "b", "done"]


@BOTH
async def test_failed_turn_is_never_seen(path: Path, cls: type[Cart]) -> None:
    async with system_at(path) as system:
        cart = system.actor(cls, "c")
        await cart.add("a")
        with pytest.raises(HandlerFailed):
            await cart.fail("b")

        assert await cart.items() == ["a"]
        assert await cart.add("c") == ["a", "c"]


@BOTH
async def test_query_that_changes_its_state_changes_nothing(path: Path, cls: type[Cart]) -> None:
    async with system_at(path) as system:
        cart = system.actor(cls, "c")
        await cart.add("a")

        assert await cart.spoil() == ["a", "spoilt"]
        assert await cart.spoil() == ["a", "spoilt"]
        assert await cart.items() == ["a"]
        assert await cart.add("b") == ["a", "b"]
        assert await cart.items() == ["a", "b"]


@BOTH
async def test_query_sees_one_state_however_long_it_takes(path: Path, cls: type[Cart]) -> None:
    gate = Gate()
    async with system_at(path, gate) as system:
        cart = system.actor(cls, "c")
        await cart.add("a")
        reading = asyncio.ensure_future(cart.read_twice())
        await asyncio.sleep(1)
        await cart.add("b")
        await cart.items()
        gate.event.set()

        assert await reading == (1, 1)


@BOTH
async def test_reply_shares_nothing_with_the_state(path: Path, cls: type[Cart]) -> None:
    async with system_at(path) as system:
        cart = system.actor(cls, "c")
        (await cart.add("a")).append("mine")
        (await cart.items()).append("mine")

        assert await cart.items() == ["a"]


@BOTH
async def test_query_runs_after_a_restart_without_any_turn(path: Path, cls: type[Cart]) -> None:
    async with system_at(path) as system:
        for number in range(11):
            await system.actor(cls, "c").add(str(number))
    async with system_at(path) as system:
        assert await system.actor(cls, "c").items() == [str(number) for number in range(11)]
        await system.actor(cls, "c").add("more")
        assert len(await system.actor(cls, "c").items()) == 12


async def test_queries_and_snapshots_agree_at_every_event(path: Path) -> None:
    async with system_at(path) as system:
        cart = system.actor(EventCart, "c")
        for number in range(30):
            items = await cart.add(str(number))
            if number % 3 == 0:
                assert await cart.items() == items
            if number == 17:
                assert await cart.items() == items


async def test_query_changes_and_sends_nothing(path: Path) -> None:
    async with system_at(path) as system:
        with pytest.raises(NoTurn):
            await system.actor(Cart, "c").tell()
        with pytest.raises(NoTurn):
            await system.actor(EventCart, "c").record_one()
        assert [row async for row in system.actors()] == []


async def test_error_of_a_query_arrives_encoded(path: Path) -> None:
    async with system_at(path) as system:
        with pytest.raises(HandlerFailed, match="missing") as caught:
            await system.actor(Cart, "c").broken()
        assert caught.value.cause_type == "KeyError"


async def test_wrong_arguments_of_a_query_are_named(path: Path) -> None:
    async with system_at(path) as system:
        with pytest.raises(InvalidArguments, match="start"):
            await system.actor(Cart, "c").count_from("x")  # type: ignore[arg-type]


async def test_event_of_the_wrong_type_is_refused_before_it_is_applied(path: Path) -> None:
    async with system_at(path) as system:
        cart = system.actor(EventCart, "c")
        await cart.add("a")
        with pytest.raises(EncodingFailed):
            await cart.record_wrong()
        assert await cart.items() == ["a"]
    async with system_at(path) as system:
        assert await system.actor(EventCart, "c").items() == ["a"]
