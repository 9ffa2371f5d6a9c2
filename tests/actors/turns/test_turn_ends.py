"""How turns end: what a failed one leaves, and what one that is over can still do (rules 8, 10, 11, 12, 14, 15)."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
import pytest

from tests.actors.turns.conftest import Open
from tests.actors.turns.world import World, world
from understudy import (
    Actor,
    Backoff,
    DeadlineExceeded,
    HandlerFailed,
    InvalidArguments,
    Job,
    Limits,
    NoTurn,
    Policy,
    StepTimeout,
    TurnEnded,
    handler,
    on,
    query,
    restart,
    step,
)
from understudy.events import TurnEndedBySystem, TurnFailed
from understudy.mailbox.envelope import Envelope

pytestmark = pytest.mark.anyio

SOON = Backoff(5.0, max_s=5.0, jitter=0.0)


class Count(msgspec.Struct):
    numbers: list[int] = []


class Box(Actor[Count], kind="box"):
    @handler
    async def put(self, number: int) -> int:
        self.state.numbers.append(number)
        return len(self.state.numbers)

    @handler
    async def slow_put(self, number: int, at: str) -> int:
        await world().stop_at(at)
        self.state.numbers.append(number)
        return number

    @query
    async def numbers(self) -> list[int]:
        return self.state.numbers


@step
async def outside_work(what: str) -> str:
    world().did.append(what)
    return what


@step
async def slow_work(what: str) -> str:
    world().did.append(f"{what} began")
    try:
        await world().stop_at(what)
    finally:
        world().did.append(f"{what} ended")
    return what


class Sender(Actor[Count], kind="sender"):
    policy = Policy(on(OSError, restart(times=3, backoff=SOON)))

    @handler
    async def tell_then_fail(self, fails: int) -> None:
        await self.actor(Box, "b").put.tell(self.turn.attempt)
        self.state.numbers.append(self.turn.attempt)
        if self.turn.attempt <= fails:
            raise OSError(f"attempt {self.turn.attempt}")

    @handler
    async def ask_and_submit_then_fail(self) -> Job[int]:
        await self.actor(Box, "asked").put(1)
        job = await self.actor(Box, "submitted").put.submit(1)
        if self.turn.attempt == 1:
            raise OSError("once")
        return job

    @handler
    async def tell_then_ask(self, same: bool) -> int:
        await self.actor(Box, "b").put.tell(1)
        return await self.actor(Box, "b" if same else "c").put(2)

    @handler
    async def ask_then_tell(self) -> int:
        count = await self.actor(Box, "b").put(1)
        await self.actor(Box, "b").put.tell(2)
        return count

    @handler
    async def remind_then_ask(self) -> int:
        await self.actor(Box, "b").put.options(delay_s=60).tell(1)
        return await self.actor(Box, "b").put(2)

    @handler
    async def note(self, number: int) -> None:
        self.state.numbers.append(number)

    @handler
    async def ask_shortly(self, at: str) -> str:
        try:
            async with asyncio.timeout(1):
                await self.actor(Box, "b").slow_put(1, at)
        except TimeoutError:
            return "no answer yet"
        return "answered"

    @handler
    async def ask_with_deadline(self, at: str) -> int:
        return await self.actor(Box, "b").slow_put.options(deadline_s=10)(1, at)

    @query
    async def numbers(self) -> list[int]:
        return self.state.numbers


async def pending(system: Any, no: int) -> Envelope | None:
    envelope: Envelope | None = (await system.store.message(no)).pending
    return envelope


async def test_failed_turn_commits_its_failure_and_nothing_else_of_it(open_system: Open) -> None:
    async with open_system(Sender, Box) as system:
        job = await system.actor(Sender, "s").tell_then_fail.submit(1)
        while not (stored := await pending(system, system.message_no(job.id))) or not stored.attempts:
            await asyncio.sleep(0.01)

        assert (stored.attempts, stored.not_before is not None, stored.history is not None) == (1, True, True)
        assert await system.actor(Sender, "s").numbers() == []
        assert await system.actor(Box, "b").numbers() == []
        (failed,) = [each for each in (await system.trace(job.id)).events if isinstance(each, TurnFailed)]
        assert (failed.error, failed.message, failed.decision, failed.delay_s) == ("OSError", "attempt 1", "restart", 5)
        await job
        assert await system.actor(Sender, "s").numbers() == [2]
        assert await system.actor(Box, "b").numbers() == [2]


async def test_attempts_of_an_earlier_life_count(open_system: Open) -> None:
    async with open_system(Sender, Box) as system:
        job = await system.actor(Sender, "s").tell_then_fail.submit(2)
        while not (stored := await pending(system, system.message_no(job.id))) or not stored.attempts:
            await asyncio.sleep(0.01)

    async with open_system(Sender, Box) as again:
        await again.job(job.id)

        assert await again.actor(Box, "b").numbers() == [3]


async def test_place_that_a_failed_turns_tell_reserved_is_free_again(open_system: Open) -> None:
    async with open_system(Sender, Box, limits=Limits(mailbox_messages=1)) as system:
        await system.actor(Sender, "s").tell_then_fail(3)
        await system.actor(Box, "b").numbers()

        assert await system.actor(Box, "b").put(9) == 2


async def test_message_in_backoff_holds_its_actor_and_order_is_kept(open_system: Open) -> None:
    async with open_system(Sender, Box) as system:
        sender = system.actor(Sender, "s")

        await asyncio.gather(sender.tell_then_fail(1), sender.note(100))

        assert await sender.numbers() == [2, 100]


async def test_asks_and_submits_stay_when_their_turn_fails_and_are_not_repeated(open_system: Open) -> None:
    async with open_system(Sender, Box) as system:
        job = await system.actor(Sender, "s").ask_and_submit_then_fail()

        assert await job == 1
        assert await system.actor(Box, "asked").numbers() == [1]
        assert await system.actor(Box, "submitted").numbers() == [1]


async def test_ask_leaves_at_once_while_its_turn_runs(open_system: Open, outside: World) -> None:
    async with open_system(Sender, Box) as system:
        asking = asyncio.create_task(system.actor(Sender, "s").ask_with_deadline("asked"))

        await outside.wait("asked")

        assert not asking.done()
        outside.open("asked")
        assert await asking == 1


async def test_ask_to_an_actor_that_holds_an_unsent_tell_of_the_turn_is_refused(open_system: Open) -> None:
    async with open_system(Sender, Box) as system:
        with pytest.raises(InvalidArguments, match=r"would overtake it. Ask first, or tell from another turn"):
            await system.actor(Sender, "s").tell_then_ask(True)

        assert await system.actor(Box, "b").numbers() == []


async def test_ask_before_the_tell_or_to_another_actor_is_fine(open_system: Open) -> None:
    async with open_system(Sender, Box) as system:
        first, second = system.actor(Sender, "s"), system.actor(Sender, "t")

        await first.ask_then_tell()
        await second.tell_then_ask(False)

        assert await system.actor(Box, "b").put(3) == 4
        assert await system.actor(Box, "b").numbers() == [1, 2, 1, 3]


async def test_ask_may_overtake_a_delayed_tell(open_system: Open) -> None:
    async with open_system(Sender, Box) as system:
        assert await system.actor(Sender, "s").remind_then_ask() == 1


# --- turns that the system ends ------------------------------------------------------------------------------------


class Saga(Actor, kind="saga"):
    @handler
    async def book(self) -> None:
        await outside_work("reserve")
        try:
            await world().stop_at("booking")
        finally:
            await self._compensate()

    async def _compensate(self) -> None:
        try:
            await outside_work("release")
        except Exception:
            world().did.append("handled as a failure")
        except BaseException as ended:
            world().seen["in finally"] = ended
            raise

    @handler
    async def book_in_groups(self) -> None:
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._book_in_group())
                group.create_task(self._book_in_group())
        finally:
            await self._compensate()

    async def _book_in_group(self) -> None:
        try:
            await world().stop_at("booking")
        finally:
            await outside_work("release")

    @handler
    async def stubborn(self) -> str:
        try:
            await world().stop_at("booking")
        except asyncio.CancelledError:
            pass
        return "done all the same"


@pytest.mark.parametrize("method", ["book", "book_in_groups"])
async def test_compensation_does_not_run_because_of_a_deploy(open_system: Open, outside: World, method: str) -> None:
    async with open_system(Saga, trace="all", limits=Limits(grace_s=1)) as system:
        job = await getattr(system.actor(Saga, "s"), method).submit()
        await outside.wait("booking")

    assert "release" not in outside.did
    assert isinstance(outside.seen["in finally"], TurnEnded)
    outside.open("booking")
    async with open_system(Saga) as again:
        await again.job(job.id)
        events = (await again.trace(job.id)).events
    assert [each.reason for each in events if isinstance(each, TurnEndedBySystem)] == ["shutdown"]
    assert outside.did.count("reserve") <= 1
    assert "release" in outside.did


async def test_turn_that_a_shutdown_ends_is_no_attempt_and_no_crash(open_system: Open, outside: World) -> None:
    async with open_system(Saga, limits=Limits(grace_s=1)) as system:
        job = await system.actor(Saga, "s").book.submit()
        await outside.wait("booking")

    async with open_system(Saga, limits=Limits(grace_s=1)) as again:
        stored = await pending(again, again.message_no(job.id))

    assert stored is not None
    assert (stored.attempts, stored.crashes) == (0, 0)


async def test_turn_that_swallows_its_cancellation_cannot_commit(open_system: Open, outside: World) -> None:
    async with open_system(Saga, limits=Limits(grace_s=1)) as system:
        job = await system.actor(Saga, "s").stubborn.submit()
        await outside.wait("booking")

    async with open_system(Saga, limits=Limits(grace_s=1)) as again:
        assert (await again.job(job.id).status()).state in ("queued", "running")


# --- turns that are over, and places without a turn ------------------------------------------------------------------


class Leaky(Actor[Count], kind="leaky"):
    @handler
    async def leave_behind(self, what: str) -> None:
        loop = asyncio.get_running_loop()
        world().seen["task"] = loop.create_task(self._late(what, self.turn.resource(World)))

    async def _late(self, what: str, outside: World) -> None:
        await outside.stop_at("late")
        try:
            if what == "tell":
                await self.actor(Box, "b").put.tell(1)
            elif what == "ask":
                await self.actor(Box, "b").put(1)
            elif what == "submit":
                await self.actor(Box, "b").put.submit(1)
            elif what == "record":
                self.record(1)  # type: ignore[arg-type]
            else:
                await outside_work("late")
        except BaseException as error:
            outside.seen["late"] = error

    @handler
    async def in_a_step(self, what: str) -> None:
        await within_a_step(what)

    @query
    async def in_a_query(self, what: str) -> None:
        await do(what)


async def do(what: str) -> None:
    turn = world().seen["current_turn"]()
    if what == "tell":
        await turn.actor(Box, "b").put.tell(1)
    elif what == "ask":
        await turn.actor(Box, "b").put(1)
    elif what == "submit":
        await turn.actor(Box, "b").put.submit(1)
    elif what == "record":
        turn.record(1)
    else:
        await outside_work("inside")


@step(raises=[NoTurn])
async def within_a_step(what: str) -> None:
    await do(what)


@pytest.mark.parametrize("what", ["tell", "ask", "submit", "record", "step"])
async def test_task_that_outlives_its_turn_can_do_nothing_in_it(open_system: Open, outside: World, what: str) -> None:
    async with open_system(Leaky, Box) as system:
        await system.actor(Leaky, "l").leave_behind(what)
        outside.open("late")
        await asyncio.wait([outside.seen["task"]])

        assert isinstance(outside.seen["late"], TurnEnded)
        assert await system.actor(Box, "b").numbers() == []
        assert outside.did == []


@pytest.mark.parametrize("place", ["in_a_step", "in_a_query"])
@pytest.mark.parametrize("what", ["tell", "ask", "submit", "record", "step"])
async def test_step_bodies_and_queries_have_no_turn(open_system: Open, outside: World, place: str, what: str) -> None:
    from understudy import current_turn

    outside.seen["current_turn"] = current_turn
    async with open_system(Leaky, Box) as system:
        with pytest.raises(NoTurn, match="only the handler itself may do that"):
            await getattr(system.actor(Leaky, "l"), place)(what)

        assert await system.actor(Box, "b").numbers() == []
        assert outside.did == []


class Parallel(Actor, kind="parallel"):
    policy = Policy(on(OSError, restart(times=3, backoff=SOON)))

    @handler
    async def both(self) -> None:
        await asyncio.gather(slow_work("slow"), self._fails_first())

    async def _fails_first(self) -> None:
        await world().wait("slow")
        if self.turn.attempt == 1:
            raise OSError("the other branch")
        world().did.append("second attempt")
        world().open("slow")

    @handler
    async def forgets(self) -> None:
        world().seen["forgotten"] = asyncio.ensure_future(slow_work("slow"))
        await world().wait("slow")


async def test_failed_turn_closes_its_open_steps_before_the_next_attempt(open_system: Open, outside: World) -> None:
    async with open_system(Parallel) as system:
        await system.actor(Parallel, "p").both()

    assert outside.did[:2] == ["slow began", "slow ended"]
    assert sorted(outside.did[2:]) == ["second attempt", "slow began", "slow ended"]


async def test_finished_turn_closes_its_open_steps_before_it_commits(open_system: Open, outside: World) -> None:
    async with open_system(Parallel) as system:
        await system.actor(Parallel, "p").forgets()

        assert outside.did == ["slow began", "slow ended"]
        await asyncio.wait([outside.seen["forgotten"]])


# --- time, and errors of our own --------------------------------------------------------------------------------------


class Slow(Actor[Count], kind="slow"):
    @handler(timeout_s=3)
    async def limited(self) -> None:
        self.state.numbers.append(1)
        await asyncio.sleep(10)

    @handler(timeout_s=3)
    async def in_time(self) -> int:
        await asyncio.sleep(1)
        self.state.numbers.append(2)
        return len(self.state.numbers)

    @handler
    async def too_large(self) -> str:
        world().did.append("tried")
        return "x" * 5_000

    @handler
    async def not_data(self) -> Any:
        world().did.append("tried")
        return asyncio.current_task()

    @handler
    async def asks_itself(self) -> int:
        world().did.append("tried")
        return await self.in_time.options(deadline_s=100)()


async def test_handler_that_takes_longer_than_its_timeout_fails_and_is_rolled_back(open_system: Open) -> None:
    async with open_system(Slow) as system:
        slow = system.actor(Slow, "s")

        with pytest.raises(StepTimeout, match=r"slow.limited took longer than timeout_s=3"):
            await slow.limited()

        assert await slow.in_time() == 1


@pytest.mark.parametrize("method", ["too_large", "not_data", "asks_itself"])
async def test_our_own_deterministic_errors_are_never_retried(open_system: Open, outside: World, method: str) -> None:
    from understudy import ChangeCall

    async with open_system(Slow, limits=Limits(payload_bytes=1_000)) as system:
        with pytest.raises(ChangeCall):
            await (await getattr(system.actor(Slow, "s"), method).submit())

    assert outside.did == ["tried"]


async def test_message_that_does_not_decode_goes_to_the_dead_letters_at_once(open_system: Open) -> None:
    class Old(Actor, kind="changing"):
        @handler
        async def put(self, number: int) -> None: ...

    class New(Actor, kind="changing"):
        @handler
        async def put(self, number: dict[str, int]) -> None: ...

    async with open_system(Old) as system:
        job = await system.actor(Old, "c").put.options(delay_s=10).submit(5)

    async with open_system(New) as again:
        with pytest.raises(Exception, match="do not decode"):
            await again.job(job.id)
        (letter,) = [each async for each in again.dead_letters()]

    assert letter.error == "StateUndecodable"
    assert letter.attempts == 1


async def test_timeout_around_an_ask_is_no_outcome_of_it(open_system: Open, outside: World) -> None:
    async with open_system(Sender, Box) as system:
        answer = await system.actor(Sender, "s").ask_shortly("box")
        outside.open("box")

        assert answer == "no answer yet"
        assert await system.actor(Box, "b").put(2) == 2


async def test_reply_to_a_turn_that_is_over_leaves_no_row_behind(open_system: Open, outside: World) -> None:
    async with open_system(Sender, Box) as system:
        await system.actor(Sender, "s").ask_shortly("box")
        outside.open("box")
        await system.actor(Box, "b").put(2)

        assert await system.store.journal(1) == []
        assert system.unasked == set()


async def test_deadline_is_an_outcome_and_an_expired_message_never_starts(open_system: Open, outside: World) -> None:
    async with open_system(Sender, Box) as system:
        blocking = asyncio.create_task(system.actor(Box, "b").slow_put(0, "first"))
        await outside.wait("first")

        with pytest.raises(DeadlineExceeded):
            await system.actor(Sender, "s").ask_with_deadline("second")
        outside.open("first")
        await blocking

        assert not outside.reached("second")
        assert await system.actor(Box, "b").numbers() == [0]


async def test_error_that_no_policy_answers_arrives_with_its_cause(open_system: Open) -> None:
    async with open_system(Sender, Box) as system:
        with pytest.raises(HandlerFailed) as caught:
            await system.actor(Sender, "s").tell_then_fail(9)

        assert (caught.value.cause_type, caught.value.cause) == ("OSError", "attempt 4")
        assert await system.actor(Box, "b").numbers() == []


class Abrupt(Actor, kind="abrupt"):
    policy = Policy(on(OSError, restart(times=3, backoff=SOON)))

    @handler
    async def leave(self) -> None:
        raise GeneratorExit

    @handler
    async def fail_once(self) -> int:
        if self.turn.attempt == 1:
            raise OSError("once")
        return self.turn.attempt


async def test_handler_that_raises_what_python_closes_coroutines_with_has_failed(open_system: Open) -> None:
    async with open_system(Abrupt) as system:
        with pytest.raises(HandlerFailed, match="GeneratorExit"):
            await system.actor(Abrupt, "a").leave()

        assert [letter.handler async for letter in system.dead_letters()] == ["leave"]


async def test_good_end_after_a_failed_attempt_is_in_the_trace_too(open_system: Open) -> None:
    async with open_system(Abrupt) as system:
        job = await system.actor(Abrupt, "a").fail_once.submit()

        assert await job == 2
        trace = await system.trace(job.id)

    assert trace.status == "ok"
    assert len(trace.roots[0].attempts) == 2
