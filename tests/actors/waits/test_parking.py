"""A turn that only waits for the outside leaves memory, with the whole chain of who asks it, and comes back whole."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from tests.actors.turns.world import World, dying, world
from tests.actors.waits.shop import (
    Order,
    Payment,
    in_memory,
    open_at,
    ship,
    until_gone,
    until_parked,
)
from understudy import (
    Actor,
    ActorStopped,
    ActorSuspended,
    CallCycle,
    Child,
    DeadlineExceeded,
    HandlerFailed,
    InvalidArguments,
    JobCancelled,
    KeyConflict,
    Limits,
    StepTimeout,
    Supervisor,
    external,
    handler,
    query,
    step,
)

pytestmark = pytest.mark.anyio


class Shop(Actor, kind="shop"):
    @handler
    async def buy(self, order: str) -> int:
        return await self.actor(Order, order).place(order) + 1


class Customer(Actor, kind="customer"):
    @handler(timeout_s=30)
    async def want(self, order: str) -> int:
        cents = await self.actor(Shop, order).buy(order)
        await ship(f"{order} to the customer")
        return cents + 1


async def test_waiting_turn_leaves_memory_and_its_actor_says_why(tmp_path: Path) -> None:
    outside = World()

    async with open_at(tmp_path, outside) as system:
        job = await system.actor(Order, "a").place.submit("o1")
        await until_parked()
        info = await anext(aiter(system.actors()))
        turns = dict(system.turns)
        await until_gone()
        gone, journals = in_memory(system), dict(system.journals)
        await system.deliver(job.id, "paid", Payment(5))
        paid = await job
        after = await anext(aiter(system.actors()))

    assert (info.status, info.reason, info.waiting) == ("waiting", "external paid", 1)
    assert turns == {}
    assert gone == []
    assert journals == {}
    assert paid == 5
    assert (after.status, after.reason) == ("active", "")
    assert outside.did == ["bill o1", "ship o1"]


async def test_reply_of_a_parked_turn_reaches_who_asked_from_outside(tmp_path: Path) -> None:
    outside = World()

    async with open_at(tmp_path, outside) as system:
        asked = asyncio.ensure_future(system.actor(Order, "a").place("o1"))
        await until_gone()
        assert in_memory(system) == []
        await system.deliver(outside.seen["o1"], "paid", Payment(5))

        assert await asked == 5


async def test_chain_of_askers_is_parked_whole_and_freed_whole(tmp_path: Path) -> None:
    outside = World()

    async with open_at(tmp_path, outside, Customer, Shop, Order) as system:
        job = await system.actor(Customer, "c").want.submit("o1")
        await until_parked()
        standings = {each.kind: (each.status, each.reason) async for each in system.actors()}
        status = await job.status()
        await until_gone()
        gone = in_memory(system)
        await system.deliver(outside.seen["o1"], "paid", Payment(5))
        paid = await job
        await system.committer.wait_durable()
        after = {each.status async for each in system.actors()}

    assert standings == {
        "customer": ("waiting", "external paid of actor order/o1"),
        "shop": ("waiting", "external paid of actor order/o1"),
        "order": ("waiting", "external paid"),
    }
    assert (status.state, status.reason) == ("waiting", "external paid of actor order/o1")
    assert gone == []
    assert paid == 7
    assert after == {"active"}
    assert outside.did == ["bill o1", "ship o1", "ship o1 to the customer"]


@pytest.mark.parametrize("crashes", [False, True])
@pytest.mark.parametrize("lives", [1, 3])
async def test_parked_chain_is_not_loaded_at_opening_and_goes_on_when_it_is_freed(
    tmp_path: Path, crashes: bool, lives: int
) -> None:
    outside = World()
    opened = dying if crashes else (lambda system: system)

    async with opened(open_at(tmp_path, outside, Customer, Shop, Order)) as system:
        job = await system.actor(Customer, "c").want.submit("o1")
        await until_parked()
    for _ in range(lives):
        async with opened(open_at(tmp_path, outside, Customer, Shop, Order)) as system:
            await asyncio.sleep(3 * 86_400)
            assert in_memory(system) == []
    async with open_at(tmp_path, outside, Customer, Shop, Order) as system:
        await system.deliver(outside.seen["o1"], "paid", Payment(5))

        assert await system.job(job.id) == 7
        await system.committer.wait_durable()
        assert {each.status async for each in system.actors()} == {"active"}

    assert outside.did == ["bill o1", "ship o1", "ship o1 to the customer"]


async def test_closing_parks_at_once_what_only_waits(tmp_path: Path) -> None:
    outside = World()
    loop = asyncio.get_running_loop()

    async with open_at(tmp_path, outside, Customer, Shop, Order, limits=Limits(grace_s=30)) as system:
        job = await system.actor(Customer, "c").want.submit("o1")
        while (await job.status()).state != "waiting":
            await asyncio.sleep(0.01)
        began_s = loop.time()
    took_s = loop.time() - began_s
    async with open_at(tmp_path, outside, Customer, Shop, Order) as system:
        await asyncio.sleep(1)
        loaded = in_memory(system)
        await system.deliver(outside.seen["o1"], "paid", Payment(5))
        assert await system.job(job.id) == 7

    assert took_s < 1
    assert loaded == []


async def test_a_thousand_waiting_jobs_cost_no_activations(tmp_path: Path) -> None:
    outside = World()

    async with open_at(tmp_path, outside) as system:
        jobs = [await system.actor(Order, f"a{number}").place.submit(f"o{number}") for number in range(1_000)]
        await until_gone()
        live, tasks, journals = system.population.live, len(asyncio.all_tasks()), len(system.journals)
        for number, job in enumerate(jobs):
            await system.deliver(job.id, "paid", Payment(number))
        paid = [await job for job in jobs]

    assert (live, journals) == (0, 0)
    assert tasks < 20
    assert paid == list(range(1_000))
    assert len(outside.did) == 2_000


async def test_mail_behind_a_parked_message_is_kept_in_order(tmp_path: Path) -> None:
    outside = World()

    async with open_at(tmp_path, outside, limits=Limits(grace_s=0.05, window_messages=4)) as system:
        order = system.actor(Order, "a")
        job = await order.place.submit("o1")
        await until_parked()
        for number in range(10):
            await order.note.tell(f"n{number}")
        await order.note.options(delay_s=10).tell("late")
        await until_gone()
        assert in_memory(system) == []
        asked = asyncio.ensure_future(order.note("last"))
        await asyncio.sleep(1)
        assert in_memory(system) == ["order/a"]
        await until_gone()
        assert in_memory(system) == []
        await system.deliver(job.id, "paid", Payment(1))

        assert await asked == ["o1", *[f"n{number}" for number in range(10)], "late", "last"]


async def test_mail_that_came_to_a_parked_actor_is_there_when_it_has_left_and_come_back(tmp_path: Path) -> None:
    outside = World()

    async with open_at(tmp_path, outside) as system:
        order = system.actor(Order, "a")
        job = await order.place.submit("o1")
        await order.note.options(delay_s=500).tell("timer")
        await until_gone()
        await asyncio.sleep(400)
        activation = await system._entered(order)
        sent = asyncio.ensure_future(order.note.tell("just now"))
        await asyncio.sleep(0)
        assert activation.depth == 3
        assert not activation.may_leave()  # What it got is on its way to the disk.
        await sent
        assert activation.may_leave()
        system.population.passivate(activation)
        await system.deliver(job.id, "paid", Payment(1))

        assert await order.note("last") == ["o1", "timer", "just now", "last"]


async def test_key_of_a_parked_message_is_known_when_its_actor_has_left_memory(tmp_path: Path) -> None:
    outside = World()

    async with open_at(tmp_path, outside) as system:
        place = system.actor(Order, "a").place.options(key="k")
        job = await place.submit("o1")
        await until_gone()
        gone = in_memory(system)
        again = await place.submit("o1")
        with pytest.raises(KeyConflict):
            await place.submit("o2")
        await system.deliver(job.id, "paid", Payment(1))

        assert gone == []
        assert again.id == job.id
        assert await again == 1
    assert outside.did == ["bill o1", "ship o1"]


async def test_turn_is_not_parked_while_a_step_of_it_runs(tmp_path: Path) -> None:
    @step
    async def long() -> None:
        world().did.append("long begins")
        await asyncio.sleep(500)
        world().did.append("long ends")

    class Both(Actor, kind="both"):
        @handler
        async def go(self) -> int:
            number, _ = await asyncio.gather(external("number", int), long())
            return number

    outside = World()

    async with open_at(tmp_path, outside, Both) as system:
        job = await system.actor(Both, "a").go.submit()
        await asyncio.sleep(499)
        assert (await job.status()).state == "running"
        await asyncio.sleep(50)
        assert [each.status async for each in system.actors()] == ["active"]
        await asyncio.sleep(20)
        assert [each.status async for each in system.actors()] == ["waiting"]
        await system.deliver(job.id, "number", 1)

        assert await job == 1
    assert outside.did == ["long begins", "long ends"]


async def test_asker_that_does_something_beside_is_parked_when_that_has_ended(tmp_path: Path) -> None:
    @step
    async def long() -> None:
        await asyncio.sleep(1_000)

    class Both(Actor, kind="both"):
        @handler
        async def go(self) -> int:
            paid, _ = await asyncio.gather(self.actor(Order, "o").place("o"), long())
            return paid

    outside = World()

    async with open_at(tmp_path, outside, Both, Order) as system:
        job = await system.actor(Both, "a").go.submit()
        await asyncio.sleep(990)
        assert {each.kind: each.status async for each in system.actors()} == {"both": "active", "order": "waiting"}
        await asyncio.sleep(80)
        assert {each.status async for each in system.actors()} == {"waiting"}
        await until_gone()
        assert in_memory(system) == []
        await system.deliver(outside.seen["o"], "paid", Payment(3))

        assert await job == 3


@pytest.mark.parametrize("life_s", [1.0, 61.0])
async def test_turn_that_waits_takes_no_attempt_and_no_crash(tmp_path: Path, life_s: float) -> None:
    class Counting(Actor, kind="counting"):
        @handler
        async def go(self) -> int:
            world().seen.setdefault("attempts", []).append(self.turn.attempt)
            await external("number", int)
            return self.turn.attempt

    outside = World()

    for _ in range(7):  # More lives than crashes are allowed.
        async with dying(open_at(tmp_path, outside, Counting)) as system:
            if not outside.seen:
                job = await system.actor(Counting, "a").go.submit()
            await asyncio.sleep(life_s)
    async with open_at(tmp_path, outside, Counting) as system:
        await system.deliver(job.id, "number", 1)
        assert await system.job(job.id) == 1


async def test_outcome_that_comes_while_the_turn_is_being_parked_is_not_lost(tmp_path: Path) -> None:
    class Stubborn(Actor, kind="stubborn"):
        @handler
        async def go(self) -> int:
            try:
                return await external("number", int)
            finally:
                await asyncio.shield(asyncio.sleep(5))

    outside = World()

    async with open_at(tmp_path, outside, Stubborn) as system:
        job = await system.actor(Stubborn, "a").go.submit()
        await asyncio.sleep(62)
        assert [turn.stopped for turn in system.turns.values()] == ["parked"]
        await system.deliver(job.id, "number", 1)

        assert await job == 1


# --- time ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("park_after_s", [60.0, 1e9])
async def test_timeouts_of_handlers_up_the_chain_stand_still_while_it_waits(
    tmp_path: Path, park_after_s: float
) -> None:
    class Slow(Actor, kind="slow"):
        @handler(timeout_s=10)
        async def go(self) -> int:
            await asyncio.sleep(4)
            number = await external("number", int)
            await asyncio.sleep(4)
            return number

    class Asker(Actor, kind="asker"):
        @handler(timeout_s=10)
        async def go(self) -> int:
            return await self.actor(Slow, "s").go()

    outside = World()
    limits = Limits(grace_s=0.05, park_after_s=park_after_s)

    async with open_at(tmp_path, outside, Asker, Slow, limits=limits) as system:
        job = await system.actor(Asker, "a").go.submit()
        await asyncio.sleep(5)
        turn = next(each for each in system.turns.values() if each.activation.type.kind == "slow")
        await asyncio.sleep(86_400)
        await system.deliver(turn.id, "number", 1)

        assert await job == 1


async def test_time_that_is_left_after_a_wait_is_what_was_left_before(tmp_path: Path) -> None:
    class Slow(Actor, kind="slow"):
        @handler(timeout_s=10)
        async def go(self) -> int:
            await asyncio.sleep(4)
            await external("number", int)
            times = world().seen.setdefault("times", [])
            times.append(asyncio.get_running_loop().time())
            try:
                await asyncio.sleep(1e9)
            finally:
                times.append(asyncio.get_running_loop().time())
            return 1

    outside = World()

    async with open_at(tmp_path, outside, Slow, limits=Limits(grace_s=0.05, park_after_s=1e9)) as system:
        job = await system.actor(Slow, "a").go.submit()
        await asyncio.sleep(1_000)
        await system.deliver(job.id, "number", 1)
        with pytest.raises((HandlerFailed, StepTimeout)):
            await system.job(job.id)

    began_s, ended_s, *_ = outside.seen["times"]
    assert ended_s - began_s == pytest.approx(6, abs=0.1)


@pytest.mark.parametrize("restarts", [False, True])
@pytest.mark.parametrize("below", [False, True])
async def test_deadline_does_not_stand_still(tmp_path: Path, restarts: bool, below: bool) -> None:
    outside = World()
    classes = (Customer, Shop, Order)

    async with open_at(tmp_path, outside, *classes) as system:
        place = system.actor(Customer, "o1").want if below else system.actor(Order, "o1").place
        job = await place.options(deadline_s=3_600).submit("o1")
        await until_gone()
        assert in_memory(system) == []
        if not restarts:
            await asyncio.sleep(3_600)
            with pytest.raises(DeadlineExceeded):
                await job
            return
    async with open_at(tmp_path, outside, *classes) as system:
        await asyncio.sleep(3_600)
        with pytest.raises(DeadlineExceeded):
            await system.job(job.id)
        if not below:
            assert await system.actor(Order, "o1").note("on") == ["on"]
            assert await system.store.records("wait", None, "", 10) == []
        assert await system.store.records("alarm", None, "", 10) == []


# --- what a person does ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("restarts", [False, True])
async def test_parked_chain_is_cancelled_from_its_root_down(tmp_path: Path, restarts: bool) -> None:
    outside = World()
    classes = (Customer, Shop, Order)

    async with open_at(tmp_path, outside, *classes) as system:
        job = await system.actor(Customer, "c").want.submit("o1")
        await until_gone()
        if not restarts:
            await job.cancel()
            await check_cancelled(system, job.id)
            return
    async with open_at(tmp_path, outside, *classes) as system:
        await system.job(job.id).cancel()
        await check_cancelled(system, job.id)


async def check_cancelled(system: Any, id: str) -> None:
    with pytest.raises(JobCancelled):
        await system.job(id)
    assert await system.store.records("wait", None, "", 10) == []
    assert {(each.status, each.waiting) async for each in system.actors()} == {("active", 0)}
    assert await system.actor(Order, "o1").note("on") == ["on"]


async def test_cancelling_mail_behind_a_parked_message_leaves_it_alone(tmp_path: Path) -> None:
    outside = World()

    async with open_at(tmp_path, outside) as system:
        first = await system.actor(Order, "a").place.submit("o1")
        second = await system.actor(Order, "a").place.submit("o2")
        await until_gone()
        await second.cancel()
        assert [each.status async for each in system.actors()] == ["waiting"]
        await system.deliver(first.id, "paid", Payment(1))

        assert await first == 1
    assert outside.did == ["bill o1", "ship o1"]


async def test_turn_is_cancelled_while_it_is_being_parked(tmp_path: Path) -> None:
    class Stubborn(Actor, kind="stubborn"):
        @handler
        async def go(self) -> int:
            try:
                return await external("number", int)
            finally:
                await asyncio.shield(asyncio.sleep(5))

        @handler
        async def other(self) -> int:
            return 7

    async with open_at(tmp_path, World(), Stubborn) as system:
        job = await system.actor(Stubborn, "a").go.submit()
        await asyncio.sleep(62)
        assert [turn.stopped for turn in system.turns.values()] == ["parked"]
        await job.cancel()

        assert await system.actor(Stubborn, "a").other() == 7
        assert await system.store.records("wait", None, "", 10) == []


async def test_parked_actor_is_not_erased_and_not_resumed(tmp_path: Path) -> None:
    async with open_at(tmp_path, World()) as system:
        job = await system.actor(Order, "a").place.submit("o1")
        await until_gone()
        with pytest.raises(InvalidArguments, match="1 waiting messages; nothing was erased"):
            await system.erase(system.actor(Order, "a"))
        await system.resume(system.actor(Order, "a"))
        assert [each.status async for each in system.actors()] == ["waiting"]
        await job.cancel()
        await system.erase(system.actor(Order, "a"))

        assert [each.status async for each in system.actors()] == []
        assert await system.actor(Order, "a").note("new") == ["new"]


async def test_queries_read_a_parked_actor(tmp_path: Path) -> None:
    class Asked(Actor, kind="asked"):
        @handler
        async def go(self) -> int:
            return await external("number", int)

        @query
        async def read(self) -> str:
            return self.id

    async with open_at(tmp_path, World(), Asked) as system:
        await system.actor(Asked, "a").go.submit()
        await until_gone()

        assert await system.actor(Asked, "a").read() == "a"


async def test_asker_of_a_held_actor_is_told_although_it_is_parked(tmp_path: Path) -> None:
    """A parked turn asks an actor whose earlier message fails so often that the actor is suspended."""

    class Moody(Actor, kind="moody"):
        @handler
        async def wait(self) -> int:
            number = await external("number", int)
            if number == 0:
                raise OSError("moody")
            return number

    class Asker(Actor, kind="asker"):
        @handler(raises=[ActorSuspended])
        async def go(self) -> int:
            return await self.actor(Moody, "m").wait()

    from understudy import Policy, on, suspend

    Moody.policy = Policy(on(OSError, suspend()))

    async with open_at(tmp_path, World(), Asker, Moody) as system:
        first = await system.actor(Moody, "m").wait.submit()
        asker = await system.actor(Asker, "a").go.submit()
        await until_gone()
        assert in_memory(system) == []
        await system.deliver(first.id, "number", 0)

        with pytest.raises(ActorSuspended):
            await asker


# --- supervision -----------------------------------------------------------------------------------------------------------


async def test_class_with_a_parked_actor_is_terminated_and_restarted(tmp_path: Path) -> None:
    outside = World()

    async with open_at(tmp_path, outside, Supervisor("all", [Order])) as system:
        job = await system.actor(Order, "a").place.submit("o1")
        await until_parked()
        await system.supervisor("all").terminate_child("order")
        with pytest.raises(ActorStopped):
            await system.actor(Order, "a").note("no")
        await system.supervisor("all").restart_child("order")
        await system.deliver(job.id, "paid", Payment(1))

        assert await job == 1
    assert outside.did == ["bill o1", "ship o1"]


async def test_outcome_for_a_terminated_class_waits_until_it_is_started(tmp_path: Path) -> None:
    outside = World()

    async with open_at(tmp_path, outside, Supervisor("all", [Order])) as system:
        job = await system.actor(Order, "a").place.submit("o1")
        await until_parked()
        await system.supervisor("all").terminate_child("order")
        await system.deliver(job.id, "paid", Payment(1))
        await system.supervisor("all").restart_child("order")

        assert await job == 1
    assert outside.did == ["bill o1", "ship o1"]


async def test_static_child_waits_in_memory_and_survives_its_restart(tmp_path: Path) -> None:
    outside = World()

    async with open_at(tmp_path, outside, Order) as system:
        job = await system.actor(Order, "a").place.submit("o1")
        await until_gone()
    async with open_at(tmp_path, outside, Supervisor("all", [Child(Order, "a")])) as system:
        await until_gone()
        assert [each.status async for each in system.actors()] == ["active"]
        await system.supervisor("all").terminate_child("a")
        await system.supervisor("all").restart_child("a")
        await system.deliver(job.id, "paid", Payment(1))

        assert await system.job(job.id) == 1
    assert outside.did == ["bill o1", "ship o1"]


# --- circles ---------------------------------------------------------------------------------------------------------------


async def test_ask_back_at_a_parked_asker_is_a_call_cycle(tmp_path: Path) -> None:
    class Back(Actor, kind="back"):
        @handler
        async def call(self) -> str:
            await external("number", int)
            try:
                await self.actor(Asker, "a").hello()
            except CallCycle:
                return "cycle"
            return "none"

    class Asker(Actor, kind="asker"):
        @handler
        async def go(self) -> str:
            return await self.actor(Back, "b").call()

        @handler
        async def hello(self) -> None: ...

    async with open_at(tmp_path, World(), Asker, Back) as system:
        job = await system.actor(Asker, "a").go.submit()
        await until_gone()
        (record,) = await system.store.records("wait", None, "", 10)
        await system.deliver(system.job_id(int(record.owner)), "number", 1)

        assert await job == "cycle"
