"""Each limit at one below, exactly, and one above; each error names the limit and the value."""

from __future__ import annotations

import asyncio
from pathlib import Path

import msgspec
import pytest

from understudy import (
    Actor,
    EncodingFailed,
    HandlerFailed,
    InvalidArguments,
    InvalidDefinition,
    LimitExceeded,
    Limits,
    MailboxFull,
    StepFailed,
    System,
    handler,
    query,
    step,
)

pytestmark = pytest.mark.anyio


class Text(msgspec.Struct):
    text: str = ""


class Keeper(Actor[Text], kind="keeper"):
    @handler
    async def keep(self, text: str) -> None:
        self.state.text = text

    @handler
    async def fill(self, size: int) -> None:
        self.state.text = "x" * size

    @handler
    async def length(self) -> int:
        return len(self.state.text)

    @handler
    async def make(self, size: int) -> str:
        return "x" * size

    @query
    async def read(self, size: int) -> str:
        return "x" * size

    @handler
    async def make_list(self, size: int) -> list[str]:
        return ["x" * size]

    @handler
    async def wait(self, seconds: float) -> None:
        await asyncio.sleep(seconds)


class Book(msgspec.Struct):
    lines: int = 0


class Ledger(Actor[Book, str], kind="ledger"):
    def apply(self, event: str) -> None:
        self.state.lines += 1

    @handler
    async def enter(self, size: int) -> int:
        self.record("x" * size)
        return self.state.lines


@step
async def produce(size: int) -> str:
    return "x" * size


@step
async def nothing(number: int) -> None:
    pass


class Busy(Actor, kind="busy"):
    @handler
    async def send(self, count: int) -> None:
        for _ in range(count):
            await self.actor(Keeper, "k").keep.tell("x")

    @handler
    async def steps(self, count: int) -> int:
        for number in range(count):
            await nothing(number)
        return count

    @handler
    async def step_of(self, size: int) -> int:
        return len(await produce(size))

    @handler
    async def go_down(self, level: int, depth: int) -> int:
        if level == depth:
            return level
        return await self.actor(Busy, f"level {level + 1}").go_down(level + 1, depth)

    @handler
    async def ask_for(self, size: int) -> int:
        return len(await self.actor(Keeper, "k").make(size))


def system_at(path: Path, **limits: float) -> System:
    return System(path, [Keeper, Busy, Ledger], limits=Limits(**limits))  # type: ignore[arg-type]


@pytest.mark.parametrize(("size", "fits"), [(0, False), (1, True), (254, True), (255, True), (256, False)])
async def test_id_has_one_to_255_bytes(path: Path, size: int, fits: bool) -> None:
    async with system_at(path) as system:
        if fits:
            await system.actor(Keeper, "x" * size).keep("a")
        else:
            with pytest.raises(LimitExceeded) as caught:
                system.actor(Keeper, "x" * size)
            assert (caught.value.limit, caught.value.value, caught.value.value_max) == ("id_bytes", size, 255)


async def test_id_is_measured_in_bytes(path: Path) -> None:
    async with system_at(path, id_bytes=10) as system:
        system.actor(Keeper, "ü" * 5)
        with pytest.raises(LimitExceeded, match="12 bytes"):
            system.actor(Keeper, "ü" * 6)


@pytest.mark.parametrize("id", ["\ud800", 5, b"x"])
async def test_id_that_is_no_text_is_refused_before_anything_is_stored(path: Path, id: str) -> None:
    async with system_at(path) as system:
        with pytest.raises(InvalidArguments):
            system.actor(Keeper, id)
        await system.actor(Keeper, "other").keep("works")


@pytest.mark.parametrize("id", ["\0", "a\0b", "a/b", " ", "' OR 1=1 --", "../../etc", "🎭", "a\nb"])
async def test_any_text_is_an_id(path: Path, id: str) -> None:
    async with system_at(path) as system:
        await system.actor(Keeper, id).keep("mine")
        await system.actor(Keeper, id + "x").keep("other")
    async with system_at(path) as system:
        assert await system.actor(Keeper, id).length() == 4


def overhead(field: str) -> int:
    """Bytes of a message around a text of a few hundred."""
    return len(msgspec.msgpack.encode({field: "x" * 500})) - 500


@pytest.mark.parametrize(("more", "fits"), [(-1, True), (0, True), (1, False)])
@pytest.mark.parametrize("how", ["ask", "tell", "submit"])
async def test_arguments_may_be_as_large_as_the_limit(path: Path, how: str, more: int, fits: bool) -> None:
    async with system_at(path, payload_bytes=1000) as system:
        text = "x" * (1000 - overhead("text") + more)
        keep = system.actor(Keeper, "k").keep
        call = {"ask": keep, "tell": keep.tell, "submit": keep.submit}[how]
        if fits:
            await call(text)
            assert await system.actor(Keeper, "k").length() == len(text)
        else:
            with pytest.raises(LimitExceeded) as caught:
                await call(text)
            assert (caught.value.limit, caught.value.value) == ("payload_bytes", 1001)
            assert [row async for row in system.actors()] == []


@pytest.mark.parametrize(("more", "fits"), [(-1, True), (0, True), (1, False)])
@pytest.mark.parametrize("how", ["ask", "submit", "ask in a turn"])
async def test_reply_may_be_as_large_as_the_limit_however_it_was_asked_for(
    path: Path, how: str, more: int, fits: bool
) -> None:
    async with system_at(path, payload_bytes=1000) as system:
        size = 1000 - 3 + more  # three bytes of msgpack before a text of that size
        keeper = system.actor(Keeper, "k")

        async def call() -> int:
            if how == "ask":
                return len(await keeper.make(size))
            if how == "submit":
                return len(await (await keeper.make.submit(size)))
            return await system.actor(Busy, "b").ask_for(size)

        if fits:
            assert await call() == size
        else:
            with pytest.raises(LimitExceeded, match="payload_bytes=1000"):
                await call()


@pytest.mark.parametrize(("more", "fits"), [(-1, True), (0, True), (1, False)])
async def test_reply_that_is_a_container_may_be_as_large_as_the_limit(path: Path, more: int, fits: bool) -> None:
    async with system_at(path, payload_bytes=1000) as system:
        keeper = system.actor(Keeper, "k")
        if fits:
            assert len((await keeper.make_list(1000 - 4 + more))[0]) == 996 + more
        else:
            with pytest.raises(LimitExceeded, match="payload_bytes=1000"):
                await keeper.make_list(1000 - 4 + more)


@pytest.mark.parametrize(("more", "fits"), [(-1, True), (0, True), (1, False)])
async def test_step_result_may_be_as_large_as_the_limit(path: Path, more: int, fits: bool) -> None:
    async with system_at(path, payload_bytes=1000) as system:
        size = 1000 - 3 + more
        if fits:
            assert await system.actor(Busy, "b").step_of(size) == size
        else:
            with pytest.raises((LimitExceeded, StepFailed, HandlerFailed), match="payload_bytes=1000"):
                await system.actor(Busy, "b").step_of(size)


@pytest.mark.parametrize(("more", "fits"), [(-1, True), (0, True), (1, False)])
async def test_event_may_be_as_large_as_the_limit(path: Path, more: int, fits: bool) -> None:
    async with system_at(path, payload_bytes=1000) as system:
        size = 1000 - 3 + more
        if fits:
            assert await system.actor(Ledger, "l").enter(size) == 1
        else:
            with pytest.raises(LimitExceeded, match="payload_bytes=1000"):
                await system.actor(Ledger, "l").enter(size)
            assert await system.actor(Ledger, "l").enter(1) == 1


@pytest.mark.parametrize(("more", "fits"), [(-1, True), (0, True), (1, False)])
async def test_state_may_be_as_large_as_the_limit(path: Path, more: int, fits: bool) -> None:
    async with system_at(path, state_bytes=1000) as system:
        keeper = system.actor(Keeper, "k")
        await keeper.keep("before")
        size = 1000 - overhead("text") + more
        if fits:
            await keeper.fill(size)
            assert await keeper.length() == size
        else:
            with pytest.raises(LimitExceeded) as caught:
                await keeper.fill(size)
            assert (caught.value.limit, caught.value.value) == ("state_bytes", 1001)
            assert await keeper.length() == len("before")


async def blocked(system: System, waiting: int) -> asyncio.Task[None]:
    """An actor that is busy, with so many messages behind the one that runs."""
    keeper = system.actor(Keeper, "k")
    running = asyncio.ensure_future(keeper.wait(100))
    await asyncio.sleep(1)
    for _ in range(waiting):
        await keeper.keep.tell("x")
    return running


@pytest.mark.parametrize("window", [4, 10, 256])
@pytest.mark.parametrize("how", ["ask", "tell", "submit", "delayed", "told in a turn"])
async def test_mailbox_takes_as_many_messages_as_the_limit(path: Path, window: int, how: str) -> None:
    async with system_at(path, mailbox_messages=10, window_messages=window) as system:
        keep = system.actor(Keeper, "k").keep
        running = await blocked(system, 8)
        await keep.tell("the tenth, with the one that runs")

        with pytest.raises(MailboxFull) as caught:  # noqa: PT012 - one call of several
            match how:
                case "ask":
                    await keep("no")
                case "tell":
                    await keep.tell("no")
                case "submit":
                    await keep.submit("no")
                case "delayed":
                    await keep.options(delay_s=5).tell("no")
                case _:
                    await system.actor(Busy, "b").send(1)

        assert (caught.value.depth, caught.value.depth_max) == (10, 10)
        (row,) = [row async for row in system.actors(Keeper)]
        assert row.waiting == 10
        await running
        await keep("there is room again")


async def test_mailbox_counts_what_a_restart_finds_on_disk(path: Path) -> None:
    async with system_at(path, mailbox_messages=10, window_messages=3) as system:
        for _ in range(10):
            await system.actor(Keeper, "k").keep.options(delay_s=1000).tell("x")
    async with system_at(path, mailbox_messages=10, window_messages=3) as system:
        with pytest.raises(MailboxFull):
            await system.actor(Keeper, "k").keep("no")
        await asyncio.sleep(1100)
        await system.actor(Keeper, "k").keep("yes")


async def test_turn_that_told_too_much_for_a_mailbox_sends_nothing(path: Path) -> None:
    async with system_at(path, mailbox_messages=10) as system:
        with pytest.raises(MailboxFull):
            await system.actor(Busy, "b").send(11)
        await system.actor(Busy, "b").send(10)

        assert system.registry.types["keeper"].live["k"].reserved == 0


@pytest.mark.parametrize(("count", "fits"), [(4, True), (5, True), (6, False)])
async def test_turn_sends_as_many_messages_as_the_limit(path: Path, count: int, fits: bool) -> None:
    async with system_at(path, sends_per_turn=5) as system:
        if fits:
            await system.actor(Busy, "b").send(count)
        else:
            with pytest.raises(LimitExceeded) as caught:
                await system.actor(Busy, "b").send(count)
            assert (caught.value.limit, caught.value.value, caught.value.value_max) == ("sends_per_turn", 6, 5)
            assert await system.actor(Keeper, "k").length() == 0


@pytest.mark.parametrize(("count", "fits"), [(4, True), (5, True), (6, False)])
async def test_turn_makes_as_many_steps_as_the_limit(path: Path, count: int, fits: bool) -> None:
    async with system_at(path, steps_per_turn=5) as system:
        if fits:
            assert await system.actor(Busy, "b").steps(count) == count
        else:
            with pytest.raises(LimitExceeded) as caught:
                await system.actor(Busy, "b").steps(count)
            assert (caught.value.limit, caught.value.value, caught.value.value_max) == ("steps_per_turn", 6, 5)


@pytest.mark.parametrize(("asks", "fits"), [(8, True), (9, True), (10, False)])
async def test_asks_nest_as_deep_as_the_limit(path: Path, asks: int, fits: bool) -> None:
    async with system_at(path, call_depth=10) as system:
        if fits:
            assert await system.actor(Busy, "top").go_down(0, asks) == asks
        else:
            with pytest.raises(LimitExceeded) as caught:
                await system.actor(Busy, "top").go_down(0, asks)
            assert (caught.value.limit, caught.value.value_max) == ("call_depth", 10)


async def test_limits_are_checked_when_they_are_made() -> None:
    with pytest.raises(InvalidDefinition, match="id_bytes=0, idle_s=-1"):
        Limits(id_bytes=0, idle_s=-1.0)


async def test_reply_that_cannot_be_stored_fails_alike_by_ask_and_submit(path: Path) -> None:
    class Huge(Actor, kind="huge"):
        @handler
        async def number(self) -> int:
            return 2**70

        @handler
        async def text(self) -> str:
            return "\ud800"

    async with System(path, [Huge]) as system:
        huge = system.actor(Huge, "h")
        for call in (huge.number, huge.text):
            with pytest.raises(EncodingFailed):
                await call()
            with pytest.raises(EncodingFailed):
                await (await call.submit())
