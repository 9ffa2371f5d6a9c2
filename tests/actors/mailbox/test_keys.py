"""At most one message per key: joined while it runs, answered from its outcome afterwards, today or after a restart."""

from __future__ import annotations

import asyncio
from pathlib import Path

import msgspec
import pytest

from understudy import (
    Actor,
    HandlerFailed,
    InvalidArguments,
    JobCancelled,
    KeyConflict,
    Limits,
    NotFound,
    System,
    SystemClosed,
    handler,
)
from understudy.mailbox.store import Whereabouts
from understudy.testing import InlineSQLiteStore

pytestmark = pytest.mark.anyio


class Declined(Exception):
    pass


class Calls(msgspec.Struct):
    seen: list[str] = []


class Gate:
    """Holds handlers until the test lets them go."""

    def __init__(self) -> None:
        self.open = asyncio.Event()
        self.entered = asyncio.Event()


class Shop(Actor[Calls], kind="shop"):
    @handler(raises=[Declined])
    async def order(self, what: str) -> str:
        self.state.seen.append(what)
        if what == "gold":
            raise Declined("no gold")
        if what == "bug":
            raise ValueError("a bug")
        return f"{what} {len(self.state.seen)}"

    @handler
    async def wait(self, what: str) -> str:
        gate = self.turn.resource(Gate)
        gate.entered.set()
        await gate.open.wait()
        self.state.seen.append(what)
        return what

    @handler
    async def seen(self) -> list[str]:
        return self.state.seen


class Clerk(Actor, kind="clerk"):
    @handler
    async def tell_twice(self, first: str, second: str) -> None:
        order = self.actor(Shop, "one").order.options(key="k")
        await order.tell(first)
        await order.tell(second)

    @handler
    async def tell_and_wait(self, what: str) -> None:
        await self.actor(Shop, "one").order.options(key="k").tell(what)
        gate = self.turn.resource(Gate)
        gate.entered.set()
        await gate.open.wait()

    @handler
    async def tell_and_fail(self, what: str) -> None:
        await self.actor(Shop, "one").order.options(key="k").tell(what)
        raise ValueError("no")

    @handler
    async def ask(self, what: str) -> str:
        return await self.actor(Shop, "one").order.options(key="k")(what)

    @handler
    async def submit(self, what: str) -> str:
        return (await self.actor(Shop, "one").order.options(key="k").submit(what)).id


def system_at(path: Path, *, gate: Gate | None = None, limits: Limits | None = None) -> System:
    return System(path, [Shop, Clerk], resources=[gate or Gate()], limits=limits)


async def test_second_message_with_a_key_gets_the_outcome_of_the_first(path: Path) -> None:
    async with system_at(path) as system:
        shop = system.actor(Shop, "one")
        first = await shop.order.options(key="k")("tea")

        second = await shop.order.options(key="k")("tea")

        assert (first, second) == ("tea 1", "tea 1")
        assert await shop.seen() == ["tea"]


async def test_second_message_joins_the_one_that_runs(path: Path) -> None:
    gate = Gate()
    async with system_at(path, gate=gate) as system:
        shop = system.actor(Shop, "one")
        first = asyncio.ensure_future(shop.wait.options(key="k")("tea"))
        await gate.entered.wait()
        second = await shop.wait.options(key="k").submit("tea")
        gate.open.set()

        assert [await first, await second] == ["tea", "tea"]
        assert await shop.seen() == ["tea"]


async def test_fifty_senders_of_one_key_are_one_message(path: Path) -> None:
    async with system_at(path) as system:
        shop = system.actor(Shop, "one")

        replies = await asyncio.gather(*(shop.order.options(key="k")("tea") for _ in range(50)))

        assert set(replies) == {"tea 1"}
        assert await shop.seen() == ["tea"]


async def test_key_counts_after_a_restart(path: Path) -> None:
    async with system_at(path) as system:
        job = await system.actor(Shop, "one").order.options(key="k").submit("tea")
        await job

    async with system_at(path) as system:
        again = await system.actor(Shop, "one").order.options(key="k").submit("tea")

        assert again == job
        assert await again == "tea 1"
        assert await system.actor(Shop, "one").seen() == ["tea"]


async def test_key_of_a_message_that_waits_is_known_after_a_restart(path: Path) -> None:
    async with system_at(path) as system:
        job = await system.actor(Shop, "one").order.options(key="k", delay_s=3600).submit("tea")

    async with system_at(path) as system:
        again = await system.actor(Shop, "one").order.options(key="k").submit("tea")

        assert again == job
        assert await again == "tea 1"


@pytest.mark.parametrize("restart", [False, True])
async def test_key_with_other_arguments_is_refused(path: Path, restart: bool) -> None:
    async with system_at(path) as system:
        await system.actor(Shop, "one").order.options(key="k")("tea")
        if not restart:
            with pytest.raises(KeyConflict, match="'k'") as caught:
                await system.actor(Shop, "one").order.options(key="k")("coffee")
            assert caught.value.key == "k"
    if restart:
        async with system_at(path) as system:
            with pytest.raises(KeyConflict, match="'k'"):
                await system.actor(Shop, "one").order.options(key="k")("coffee")
            assert await system.actor(Shop, "one").seen() == ["tea"]


async def test_key_belongs_to_one_actor_and_one_handler(path: Path) -> None:
    gate = Gate()
    gate.open.set()
    async with system_at(path, gate=gate) as system:
        one, two = system.actor(Shop, "one"), system.actor(Shop, "two")

        await one.order.options(key="k")("tea")
        await two.order.options(key="k")("coffee")
        await one.wait.options(key="k")("milk")

        assert await one.seen() == ["tea", "milk"]
        assert await two.seen() == ["coffee"]


async def test_refusal_holds_the_key(path: Path) -> None:
    async with system_at(path) as system:
        order = system.actor(Shop, "one").order.options(key="k")
        for _ in range(2):
            with pytest.raises(Declined, match="no gold"):
                await order("gold")

    async with system_at(path) as system:
        with pytest.raises(Declined, match="no gold"):
            await system.actor(Shop, "one").order.options(key="k")("gold")


@pytest.mark.parametrize("restart", [False, True])
async def test_dead_letter_holds_the_key(path: Path, restart: bool) -> None:
    async with system_at(path) as system:
        with pytest.raises(HandlerFailed):
            await system.actor(Shop, "one").order.options(key="k")("bug")
        if not restart:
            with pytest.raises(HandlerFailed):
                await system.actor(Shop, "one").order.options(key="k")("bug")
            assert len([letter async for letter in system.dead_letters()]) == 1
    if restart:
        async with system_at(path) as system:
            with pytest.raises(HandlerFailed, match="a bug"):
                await system.actor(Shop, "one").order.options(key="k")("bug")
            with pytest.raises(KeyConflict):
                await system.actor(Shop, "one").order.options(key="k")("tea")


async def test_cancel_frees_the_key_and_the_job_stays_cancelled(path: Path) -> None:
    async with system_at(path) as system:
        order = system.actor(Shop, "one").order
        job = await order.options(key="k", delay_s=60).submit("tea")
        await job.cancel()

        again = await order.options(key="k").submit("coffee")

        assert again != job
        assert await again == "coffee 1"
        assert (await job.status()).state == "cancelled"
        with pytest.raises(JobCancelled):
            await job


async def test_key_that_was_cancelled_and_given_again_is_held_by_the_new_message(path: Path) -> None:
    gate = Gate()
    async with system_at(path, gate=gate) as system:
        wait = system.actor(Shop, "one").wait.options(key="k")
        first = await wait.submit("tea")
        await gate.entered.wait()

        cancelling = asyncio.ensure_future(first.cancel())
        await asyncio.sleep(0)
        second = asyncio.ensure_future(wait.submit("tea"))
        await cancelling
        third = await wait.submit("tea")
        gate.open.set()

        assert await second == third
        assert await third == "tea"
        assert await system.actor(Shop, "one").seen() == ["tea"]


async def test_key_is_forgotten_when_its_result_expires(path: Path) -> None:
    limits = Limits(result_ttl_s=1000)
    async with system_at(path, limits=limits) as system:
        job = await system.actor(Shop, "one").order.options(key="k").submit("tea")
        await job
        await asyncio.sleep(900)
        assert await system.actor(Shop, "one").order.options(key="k")("tea") == "tea 1"
        await asyncio.sleep(300)

        assert await system.actor(Shop, "one").order.options(key="k")("tea") == "tea 2"
        with pytest.raises(NotFound, match="expired"):
            await job


async def test_keyed_tells_of_one_turn_are_one_message(path: Path) -> None:
    async with system_at(path) as system:
        await system.actor(Clerk, "c").tell_twice("tea", "tea")

        assert await system.actor(Shop, "one").seen() == ["tea"]


async def test_keyed_tells_of_one_turn_with_other_arguments_conflict(path: Path) -> None:
    async with system_at(path) as system:
        with pytest.raises(KeyConflict):
            await system.actor(Clerk, "c").tell_twice("tea", "coffee")

        assert await system.actor(Shop, "one").seen() == []


async def test_keyed_tells_of_two_turns_at_once_are_one_message(path: Path) -> None:
    gate = Gate()
    async with system_at(path, gate=gate) as system:
        turns = [asyncio.ensure_future(system.actor(Clerk, name).tell_and_wait("tea")) for name in "ab"]
        await gate.entered.wait()
        await asyncio.sleep(1)
        await system.actor(Shop, "one").order.options(key="k")("tea")
        gate.open.set()
        await asyncio.gather(*turns)

        assert await system.actor(Shop, "one").seen() == ["tea"]


async def test_keyed_tell_of_a_failed_turn_leaves_the_key_free(path: Path) -> None:
    async with system_at(path) as system:
        with pytest.raises(HandlerFailed):
            await system.actor(Clerk, "c").tell_and_fail("tea")

        assert await system.actor(Shop, "one").order.options(key="k")("coffee") == "coffee 1"


async def test_key_joins_asks_and_submits_of_turns_too(path: Path) -> None:
    async with system_at(path) as system:
        clerk = system.actor(Clerk, "c")
        replies = [await clerk.ask("tea"), await system.actor(Clerk, "d").ask("tea")]

        id = await clerk.submit("tea")

        assert replies == ["tea 1", "tea 1"]
        assert await system.job(id, Shop.order) == "tea 1"


@pytest.mark.parametrize(("size", "fits"), [(0, False), (1, True), (254, True), (255, True), (256, False)])
async def test_key_has_one_to_255_bytes(path: Path, size: int, fits: bool) -> None:
    async with system_at(path) as system:
        order = system.actor(Shop, "one").order
        if fits:
            assert await order.options(key="k" * size)("tea") == "tea 1"
        else:
            with pytest.raises(InvalidArguments, match="1 to 255 bytes"):
                order.options(key="k" * size)


@pytest.mark.parametrize("key", ["\ud800", 5])
async def test_key_that_is_no_text_is_refused_before_anything_is_stored(path: Path, key: str) -> None:
    async with system_at(path) as system:
        with pytest.raises(InvalidArguments):
            system.actor(Shop, "one").order.options(key=key)

        assert await system.actor(Shop, "one").order("tea") == "tea 1"


@pytest.mark.parametrize("key", ["\0", "a\0b", "ü" * 127, "' OR 1=1 --", "%", "🗝"])
async def test_any_text_is_a_key(path: Path, key: str) -> None:
    async with system_at(path) as system:
        await system.actor(Shop, "one").order.options(key=key)("tea")
    async with system_at(path) as system:
        assert await system.actor(Shop, "one").order.options(key=key)("tea") == "tea 1"


class SlowKeys(InlineSQLiteStore):
    """A store that takes its time to look for keys."""

    async def keyed(self, actor: int, handler: str, key: str) -> Whereabouts:
        found = await super().keyed(actor, handler, key)
        await asyncio.sleep(1)
        return found


async def test_keyed_message_whose_key_is_looked_up_while_the_system_closes_is_refused(path: Path) -> None:
    async with System(path, [Shop], resources=[Gate()]) as system:
        await system.actor(Shop, "s").order("tea")
    async with System(SlowKeys(path), [Shop], resources=[Gate()]) as system:
        shop = system.actor(Shop, "s")
        asking = asyncio.ensure_future(shop.order.options(key="a")("milk"))
        telling = asyncio.ensure_future(system.actor(Shop, "s").order.options(key="b").tell("milk"))
        await asyncio.sleep(0.1)

    for sending in (asking, telling):
        with pytest.raises(SystemClosed):
            await asyncio.wait_for(sending, 10)


async def test_ask_that_joins_a_finished_one_while_the_system_closes_ends(path: Path) -> None:
    async with System(path, [Shop], resources=[Gate()]) as system:
        await system.actor(Shop, "s").order.options(key="a")("tea")
    async with System(SlowKeys(path), [Shop], resources=[Gate()]) as system:
        asking = asyncio.ensure_future(system.actor(Shop, "s").order.options(key="a")("tea"))
        await asyncio.sleep(0.1)

    with pytest.raises(SystemClosed):
        await asyncio.wait_for(asking, 10)
