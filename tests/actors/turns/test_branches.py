"""What parallel branches of one turn get, and what ends with the turn."""

from __future__ import annotations

import asyncio

import msgspec
import pytest

from tests.actors.turns.conftest import Open
from tests.actors.turns.world import World, world
from understudy import (
    Actor,
    ActorSuspended,
    Backoff,
    HandlerFailed,
    InvalidArguments,
    Limits,
    Policy,
    Rate,
    current_turn,
    handler,
    on,
    query,
    retry,
    step,
    tool,
)
from understudy.actors import standing

pytestmark = pytest.mark.anyio


class Odd(BaseException):
    """No Exception, as some test tools raise."""


@step
async def fetch(what: str) -> str:
    await asyncio.sleep(5 if what == "a" else 1)
    return what


@step
async def charge(what: str, key: str) -> str:
    world().did.append((what, key))
    return what


@step(policy=Policy(on(ConnectionError, retry(times=2, backoff=Backoff(0.1)))))
async def pay(cents: int) -> str:
    """Pay with an idempotency key of its own."""
    world().did.append((cents, str(current_turn().uuid())))
    if world().should_fail("pay"):
        raise ConnectionError
    return "paid"


@tool(rate=Rate(1, per_s=30.0), timeout_s=1, interrupted="fail")
async def slow_rate() -> str:
    """Is called rarely."""
    return "called"


class Sum(Actor):
    @handler
    async def run(self, text: str) -> str:
        world().did.append(("sum", self.id))
        return text


class Items(msgspec.Struct):
    got: list[int] = []


class Box(Actor[Items]):
    @handler
    async def put(self, item: int) -> int:
        if item < 0:
            await world().stop_at("putting")
        self.state.got.append(item)
        return item

    @query
    async def items(self) -> list[int]:
        return self.state.got


class Desk(Actor):
    policy = Policy(on(RuntimeError, retry(times=2, backoff=Backoff(0.1))))

    @handler
    async def branches(self) -> None:
        async def one(what: str) -> None:
            got = await fetch(what)
            await charge(got, str(self.turn.uuid()))
            await self.actor(Sum).run(got)

        await asyncio.gather(one("a"), one("b"))
        if self.turn.attempt == 1:
            raise RuntimeError("once")

    @handler
    async def pays(self) -> list[str]:
        first = str(self.turn.uuid())
        await pay(1)
        await pay(2)
        return [first, str(self.turn.uuid())]

    @handler
    async def calls_twice(self) -> list[str]:
        return list(await asyncio.gather(slow_rate(), slow_rate()))

    @handler
    async def tells_then_submits(self) -> None:
        box = self.actor(Box, "b")
        await box.put.tell(1)
        await box.put.submit(2)

    @handler
    async def raises_odd(self) -> None:
        raise Odd("odd")

    @handler
    async def leaves_an_ask(self) -> None:
        task = asyncio.ensure_future(self.actor(Box, "b").put(-1))
        await asyncio.sleep(0)
        await world().stop_at("asked")
        world().seen["task"] = task
        raise LookupError("gives up")

    @handler
    async def asks(self) -> int:
        return await self.actor(Box, "b").put(7)


class Stubborn(Actor):
    @handler
    async def stay(self) -> None:
        world().reach("staying")
        while True:
            try:
                await asyncio.sleep(3600)
            except asyncio.CancelledError:
                if world().reached("let go"):
                    raise


class Held(Actor):
    async def on_start(self) -> None:
        self.world = world()
        self.world.did.append("start")

    async def on_stop(self) -> None:
        self.world.did.append("stop")

    @handler
    async def wait(self) -> None:
        await world().stop_at("waiting")


async def test_branches_keep_their_uuids_and_fresh_actors_when_the_turn_is_tried_again(
    open_system: Open, outside: World
) -> None:
    async with open_system(Desk, Sum) as system:
        await system.actor(Desk, "d").branches()

    charged = [each for each in outside.did if each[0] in ("a", "b")]
    summed = [each for each in outside.did if each[0] == "sum"]
    assert sorted(what for what, _ in charged) == ["a", "b"]
    assert len(summed) == len(set(summed)) == 2


async def test_uuids_of_step_bodies_differ_from_all_others_and_stay_the_same_on_a_retry(
    open_system: Open, outside: World
) -> None:
    outside.fails["pay"] = 1

    async with open_system(Desk) as system:
        of_the_turn = await system.actor(Desk, "d").pays()

    first, again, second = [key for _, key in outside.did]
    assert first == again
    assert len({first, second, *of_the_turn}) == 4


async def test_wait_for_a_tools_rate_counts_neither_as_its_time_nor_as_its_start(open_system: Open) -> None:
    async with open_system(Desk, slow_rate_user) as system:
        assert await system.actor(Desk, "d").calls_twice() == ["called", "called"]


class slow_rate_user(Actor):  # noqa: N801 - reads as what it is: it makes the system know the tool
    @handler
    async def use(self) -> str:
        return await slow_rate()


async def test_submit_does_not_overtake_what_the_turn_told_before(open_system: Open) -> None:
    async with open_system(Desk, Box) as system:
        with pytest.raises(InvalidArguments, match="would overtake it"):
            await system.actor(Desk, "d").tells_then_submits()
        assert await system.actor(Box, "b").items() == []


async def test_handler_that_raises_no_exception_ends_as_a_failure(open_system: Open) -> None:
    async with open_system(Desk) as system:
        with pytest.raises(HandlerFailed, match="Odd"):
            await system.actor(Desk, "d").raises_odd()


async def test_ask_that_is_left_open_ends_with_its_turn(open_system: Open, outside: World) -> None:
    async with open_system(Desk, Box) as system:
        job = await system.actor(Desk, "d").leaves_an_ask.submit()
        await outside.wait("putting")
        outside.open("asked")
        with pytest.raises(HandlerFailed, match="gives up"):
            await job
        assert outside.seen["task"].cancelled()
        outside.open("putting")
        assert await system.actor(Box, "b").put(5) == 5  # Nobody waits for anybody any more.


async def test_turn_that_asked_an_actor_which_is_then_suspended_is_told(open_system: Open, outside: World) -> None:
    async with open_system(Desk, Box) as system:
        await system.actor(Box, "b").put.tell(-1)
        await outside.wait("putting")
        asking = asyncio.ensure_future(system.actor(Desk, "d").asks())
        box = system.registry.types["Box"].live["b"]
        while not box.inbox:
            await asyncio.sleep(0.01)
        standing.suspend(box, "for a test")

        with pytest.raises((ActorSuspended, HandlerFailed)):
            await asking
        outside.open("putting")


async def test_closing_does_not_wait_for_ever_for_a_handler_that_swallows_its_cancellation(
    open_system: Open, outside: World
) -> None:
    loop = asyncio.get_running_loop()

    async with open_system(Stubborn, limits=Limits(grace_s=2.0)) as system:
        await system.actor(Stubborn, "s").stay.tell()
        await outside.wait("staying")
        left = loop.time()

    assert loop.time() - left < 10
    outside.reach("let go")
    left_over = [task for task in asyncio.all_tasks() if task.get_name() == "understudy-turn"]
    for task in left_over:
        task.cancel()
    await asyncio.gather(*left_over, return_exceptions=True)


async def test_object_of_a_cancelled_turn_releases_what_it_took(open_system: Open, outside: World) -> None:
    async with open_system(Held) as system:
        job = await system.actor(Held, "h").wait.submit()
        await outside.wait("waiting")
        await job.cancel()

    assert outside.did == ["start", "stop"]
