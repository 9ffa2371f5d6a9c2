"""Turns that do not wait share a task; each has a context of its own, and one that waits has its task to itself."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from contextvars import ContextVar
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import pytest

from tests.actors.turns.conftest import Open
from tests.actors.turns.world import World, world
from understudy import (
    Actor,
    ActorStopped,
    ActorSuspended,
    HandlerFailed,
    JobCancelled,
    Limits,
    Policy,
    System,
    dead_letter,
    handler,
    on,
    retry,
    stop,
    suspend,
)
from understudy.mailbox.commit import Batch
from understudy.testing import VirtualTimeLoop

pytestmark = pytest.mark.anyio

T = TypeVar("T")
MESSAGES = 500
tenant: ContextVar[str] = ContextVar("tenant", default="nobody")


class Total(msgspec.Struct):
    count: int = 0


class Counter(Actor[Total], kind="counter"):
    policy = Policy(on(Exception, dead_letter()))

    @handler
    async def add(self, number: int) -> int:
        self.state.count += number
        return self.state.count

    @handler
    async def note(self, number: int) -> None:
        world().did.append(number)

    @handler
    async def exit(self) -> None:
        raise SystemExit

    @handler
    async def become(self, name: str) -> str:
        before = tenant.get()
        tenant.set(name)
        return before

    @handler
    async def become_and_wait(self, name: str) -> list[str]:
        before = tenant.get()
        tenant.set(name)
        await world().stop_at("waiting")
        try:
            raise LookupError
        except LookupError:
            await asyncio.sleep(0)
        return [before, tenant.get(), await asyncio.create_task(_tenant())]

    @handler
    async def cancel_own_task(self) -> int:
        task = asyncio.current_task()
        assert task is not None
        task.cancel()
        return self.state.count

    @handler
    async def pause(self) -> str:
        await asyncio.sleep(0)
        return "paused"

    @handler
    async def wait_for(self, point: str) -> None:
        await world().stop_at(point)

    @handler
    async def open(self, point: str) -> None:
        world().open(point)

    @handler
    async def wait_and_fail(self) -> None:
        await asyncio.sleep(0)
        raise OSError("no paper")

    @handler
    async def measure(self) -> None:
        """Wait with a time limit, which cancels the task of the turn and nobody else's."""
        try:
            async with asyncio.timeout(1):
                await asyncio.Event().wait()
        except TimeoutError:
            world().did.append("timed out")


async def _tenant() -> str:
    return tenant.get()


async def test_messages_of_one_actor_are_handled_in_few_commits_and_never_touch_the_table(
    open_system: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with open_system(Counter, limits=Limits(window_messages=2 * MESSAGES)) as system:
        counter = system.actor(Counter, "c")
        await counter.add(0)
        batches: list[Batch] = []
        monkeypatch.setattr(system.committer, "taking", batches.append)

        await asyncio.gather(*(counter.add.tell(1) for _ in range(MESSAGES)))

        assert await counter.add(0) == MESSAGES
        assert len(batches) <= 3
        assert sum(len(batch.finished) for batch in batches) == 0


async def test_turns_begin_in_the_order_in_which_they_became_ready(open_system: Open, outside: World) -> None:
    async with open_system(Counter) as system:
        counters = [system.actor(Counter, str(number)) for number in range(100)]
        await asyncio.gather(*(counter.add(0) for counter in counters))

        await asyncio.gather(*(counter.note(number) for number, counter in enumerate(counters)))

    assert outside.did == list(range(100))


async def test_other_tasks_run_between_the_turns_of_a_long_mailbox(open_system: Open) -> None:
    async with open_system(Counter, limits=Limits(window_messages=2 * MESSAGES)) as system:
        counter = system.actor(Counter, "c")
        await counter.add(0)
        rounds = 0

        async def look() -> None:
            nonlocal rounds
            while True:
                await asyncio.sleep(0)
                rounds += system.ready.tasks != set()

        looking = asyncio.create_task(look())
        sent = [asyncio.create_task(counter.add.tell(1)) for _ in range(MESSAGES)]
        await asyncio.gather(*sent)
        looking.cancel()

        assert rounds >= MESSAGES // 64


async def test_turn_sees_no_context_variable_of_another_turn_or_of_its_sender(open_system: Open) -> None:
    async with open_system(Counter) as system:
        counters = [system.actor(Counter, f"c{number}") for number in range(3)]
        tenant.set("the sender")

        before = await asyncio.gather(*(each.become(str(n)) for n, each in enumerate(counters * 3)))

        assert set(before) == {"nobody"}
        assert tenant.get() == "the sender"


async def test_turn_that_waits_keeps_its_context(open_system: Open, outside: World) -> None:
    async with open_system(Counter) as system:
        waiting = [asyncio.create_task(system.actor(Counter, n).become_and_wait(n)) for n in ("a", "b", "c")]
        await outside.wait("waiting")
        await system.actor(Counter, "d").become("d")
        outside.open("waiting")

        seen = await asyncio.gather(*waiting)

        assert seen == [["nobody", n, n] for n in ("a", "b", "c")]


async def test_turn_that_waits_does_not_hold_those_behind_it(open_system: Open) -> None:
    async with open_system(Counter) as system:
        counters = [system.actor(Counter, f"c{number}") for number in range(8)]

        async with asyncio.timeout(1):
            await asyncio.gather(
                *(each.wait_for(str(n)) for n, each in enumerate(counters)),
                *(system.actor(Counter, f"o{number}").open(str(number)) for number in range(8)),
            )


async def test_handler_that_cancels_its_own_task_does_not_cancel_the_next_turn(open_system: Open) -> None:
    async with open_system(Counter) as system:
        counters = [system.actor(Counter, f"c{number}") for number in range(4)]

        replies = await asyncio.gather(counters[0].cancel_own_task(), counters[1].pause(), counters[2].add(2))

        assert replies == [0, "paused", 2]


async def test_time_limits_of_turns_that_began_together_end_each_its_own(open_system: Open, outside: World) -> None:
    async with open_system(Counter) as system:
        timed = [system.actor(Counter, f"c{number}").measure() for number in range(4)]
        others = [system.actor(Counter, f"o{number}").wait_for("end") for number in range(4)]
        waiting = asyncio.gather(*others)

        await asyncio.gather(*timed)
        outside.open("end")
        await waiting

        assert outside.did == ["timed out"] * 4


async def test_error_after_a_wait_is_the_turns_own(open_system: Open) -> None:
    async with open_system(Counter) as system:
        failing, well = system.actor(Counter, "f"), system.actor(Counter, "w")

        outcomes: list[Any] = await asyncio.gather(failing.wait_and_fail(), well.add(1), return_exceptions=True)

        assert isinstance(outcomes[0], HandlerFailed)
        assert outcomes[1] == 1


async def test_job_is_cancelled_whether_its_turn_has_begun_or_is_ready(open_system: Open, outside: World) -> None:
    async with open_system(Counter) as system:
        for rounds in range(30):
            counter = system.actor(Counter, f"c{rounds}")
            blocking = asyncio.create_task(counter.wait_for(f"end {rounds}"))
            await outside.wait(f"end {rounds}")
            job = await counter.wait_for.submit(f"never {rounds}")
            outside.open(f"end {rounds}")
            for _ in range(rounds):
                await asyncio.sleep(0)

            await job.cancel()

            with pytest.raises(JobCancelled):
                await job
            await blocking
            assert await counter.add(1) == 1


def test_turns_behind_one_that_ends_the_loop_run_when_the_loop_goes_on(tmp_path: Path) -> None:
    loop = VirtualTimeLoop()
    system = System(tmp_path / "a.db", [Counter])

    async def work() -> tuple[asyncio.Task[Any], list[asyncio.Task[int]]]:
        await system.__aenter__()
        for id in ("1", "2", "3"):
            await system.actor(Counter, id).add(1)
        breaking = asyncio.create_task(_ask(system.actor(Counter, "1").exit()))
        return breaking, [asyncio.create_task(_ask(system.actor(Counter, id).add(1))) for id in ("2", "3")]

    breaking, others = loop.run_until_complete(work())
    with pytest.raises(SystemExit):
        loop.run_until_complete(asyncio.wait(others))
    try:
        loop.run_until_complete(asyncio.wait_for(asyncio.wait(others), 60))
        answers = [each.result() for each in others]
    finally:
        breaking.cancel()
        loop.run_until_complete(system.__aexit__(None, None, None))
        loop.run_until_complete(asyncio.wait([breaking]))
        loop.run_until_complete(loop.shutdown_default_executor())
        loop.close()

    assert answers == [2, 2]


async def _ask(call: Awaitable[T]) -> T:
    return await call


class Refuser(Actor, kind="refuser"):
    concurrency = 3
    policy = Policy(
        on(ValueError, suspend()),
        on(LookupError, stop()),
        on(OSError, retry(times=5)),
    )

    @handler
    async def work(self, what: str) -> str:
        if what == "wait":
            await world().stop_at("waiting")
            raise OSError("once more")
        if what == "hold":
            raise ValueError("not today")
        if what == "stop":
            raise LookupError("never again")
        world().did.append(what)
        return what


@pytest.mark.parametrize(("ending", "told"), [("hold", ActorSuspended), ("stop", ActorStopped)])
async def test_who_asks_is_told_when_the_actor_ends_between_the_message_and_its_turn(
    open_system: Open, outside: World, ending: str, told: type[Exception]
) -> None:
    async with open_system(Refuser) as system:
        refuser = system.actor(Refuser, "r")
        _ = await refuser.work("first")

        ended, ready = await asyncio.gather(refuser.work(ending), refuser.work("ready"), return_exceptions=True)

        assert isinstance(ready, told), ready
        assert "mail is kept" in str(ready)
        assert "system.resume(ref)" in str(ready)
        assert isinstance(ended, Exception)
        assert outside.did == ["first"]
        with pytest.raises(told, match="This message was refused and not stored"):
            await refuser.work("late")


async def test_message_whose_asker_was_told_that_the_actor_has_stopped_is_handled_when_it_goes_on(
    open_system: Open, outside: World
) -> None:
    async with open_system(Refuser) as system:
        refuser = system.actor(Refuser, "r")
        _ = await refuser.work("first")
        _ = await asyncio.gather(refuser.work("stop"), refuser.work("ready"), return_exceptions=True)

        await system.resume(refuser)
        _ = await refuser.work("last")

        assert outside.did == ["first", "ready", "last"]


@pytest.mark.parametrize(("ending", "told"), [("hold", ActorSuspended), ("stop", ActorStopped)])
async def test_who_asks_is_told_when_the_actor_ended_while_an_attempt_ran_that_another_is_to_follow(
    open_system: Open, outside: World, ending: str, told: type[Exception]
) -> None:
    async with open_system(Refuser) as system:
        refuser = system.actor(Refuser, "r")
        running = asyncio.create_task(refuser.work("wait"))
        await outside.wait("waiting")
        with pytest.raises(Exception):  # noqa: B017 - what it says is not the question
            await refuser.work(ending)
        outside.open("waiting")

        with pytest.raises(told):
            await running
