"""`external()`: a handler waits for a value from outside, which comes late, early, twice, wrong, or never."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from tests.actors.turns.world import World, dying, world
from tests.actors.waits.shop import Order, Payment, bill, in_memory, open_at, ship, until_gone, until_parked
from understudy import (
    Actor,
    EncodingFailed,
    HandlerFailed,
    InvalidArguments,
    JobCancelled,
    JobStatus,
    KeyConflict,
    LimitExceeded,
    Limits,
    NotFound,
    NoTurn,
    StepTimeout,
    System,
    current_turn,
    external,
    handler,
    step,
)
from understudy.events import WaitBegan, WaitEnded

pytestmark = pytest.mark.anyio


async def waiting(job: Any) -> JobStatus:
    """Return the job's status once it waits."""
    while (status := await job.status()).state != "waiting":
        await asyncio.sleep(0.01)
    return status


async def records(system: System) -> int:
    await system.committer.wait_durable()
    return len(await system.store.records("wait", None, "", 100))


async def test_handler_gets_what_is_delivered(tmp_path: Path) -> None:
    outside = World()

    async with open_at(tmp_path, outside) as system:
        job = await system.actor(Order, "a").place.submit("o1")
        status = await waiting(job)
        await system.deliver(job.id, "paid", Payment(500))
        paid = await job
        left = await records(system)
        events = (await system.trace(job.id)).events

    assert status == JobStatus("waiting", "external paid")
    assert paid == 500
    assert outside.did == ["bill o1", "ship o1"]
    assert left == 0
    assert [type(each) for each in events if isinstance(each, (WaitBegan, WaitEnded))] == [WaitBegan, WaitEnded]


async def test_turn_knows_its_address_before_it_waits(tmp_path: Path) -> None:
    outside = World()

    async with open_at(tmp_path, outside) as system:
        asked = asyncio.ensure_future(system.actor(Order, "a").place("o1"))  # no job: an ask from outside
        while "bill o1" not in outside.did:
            await asyncio.sleep(0.01)
        await system.deliver(outside.seen["o1"], "paid", {"cents": 7})

        assert await asked == 7


async def test_early_delivery_is_found_by_the_turn_that_runs(tmp_path: Path) -> None:
    class Slow(Actor, kind="slow"):
        @handler
        async def go(self) -> int:
            await bill("o")
            await world().stop_at("before")
            return (await external("paid", Payment)).cents

    outside = World()

    async with open_at(tmp_path, outside, Slow) as system:
        job = await system.actor(Slow, "a").go.submit()
        await outside.wait("before")
        await system.deliver(job.id, "paid", Payment(3))
        outside.open("before")

        assert await job == 3
        assert await records(system) == 0


@pytest.mark.parametrize("crashes", [False, True])
async def test_early_delivery_is_found_by_a_turn_that_has_not_begun(tmp_path: Path, crashes: bool) -> None:
    outside = World()
    opened = dying if crashes else (lambda system: system)

    async with opened(open_at(tmp_path, outside)) as system:
        first = await system.actor(Order, "a").place.submit("o1")
        second = await system.actor(Order, "a").place.submit("o2")
        later = await system.actor(Order, "a").place.options(delay_s=86_400).submit("o3")
        await waiting(first)
        await system.deliver(second.id, "paid", Payment(2))
        await system.deliver(later.id, "paid", Payment(3))
    async with open_at(tmp_path, outside) as again:
        await again.deliver(first.id, "paid", Payment(1))

        assert [await again.job(each.id, Order.place) for each in (first, second, later)] == [1, 2, 3]
        assert outside.did == [f"{what} {order}" for order in ("o1", "o2", "o3") for what in ("bill", "ship")]


async def test_early_delivery_reaches_mail_that_waits_on_disk_only(tmp_path: Path) -> None:
    outside = World()
    limits = Limits(grace_s=0.05, window_messages=2)

    async with open_at(tmp_path, outside, limits=limits) as system:
        jobs = [await system.actor(Order, "a").place.submit(f"o{number}") for number in range(6)]
        for number, job in reversed(list(enumerate(jobs))):
            await system.deliver(job.id, "paid", Payment(number))

        assert [await job for job in jobs] == [0, 1, 2, 3, 4, 5]


async def test_second_delivery_of_the_same_changes_nothing_and_another_is_refused(tmp_path: Path) -> None:
    class Slow(Actor, kind="slow"):
        @handler
        async def go(self) -> int:
            payment = await external("paid", Payment)
            await world().stop_at("paid")
            return payment.cents

    outside = World()

    async with open_at(tmp_path, outside, Slow) as system:
        job = await system.actor(Slow, "a").go.submit()
        await system.deliver(job.id, "paid", Payment(1))
        await outside.wait("paid")
        await system.deliver(job.id, "paid", Payment(1))
        with pytest.raises(KeyConflict, match=r"'paid' was delivered to .* before, with another value"):
            await system.deliver(job.id, "paid", Payment(2))
        outside.open("paid")

        assert await job == 1


async def test_delivery_to_nobody_is_refused(tmp_path: Path) -> None:
    async with open_at(tmp_path, World()) as system:
        job = await system.actor(Order, "a").place.submit("o1")
        await system.deliver(job.id, "paid", Payment(1))
        await job

        with pytest.raises(NotFound, match="its message has ended"):
            await system.deliver(job.id, "paid", Payment(1))
        with pytest.raises(NotFound):
            await system.deliver(system.job_id(999), "paid", Payment(1))
        with pytest.raises(NotFound, match="expected one that submit"):
            await system.deliver("hello", "paid", Payment(1))
        with pytest.raises(InvalidArguments, match="expected a name"):
            await system.deliver(job.id, "", Payment(1))


async def test_value_of_the_wrong_type_is_refused_while_the_turn_is_known(tmp_path: Path) -> None:
    async with open_at(tmp_path, World()) as system:
        job = await system.actor(Order, "a").place.submit("o1")
        await waiting(job)

        with pytest.raises(InvalidArguments, match="delivered as 'paid' is not of the type Payment"):
            await system.deliver(job.id, "paid", "money")
        with pytest.raises(EncodingFailed):
            await system.deliver(job.id, "paid", object())
        with pytest.raises(LimitExceeded, match=r"Limits\.payload_bytes"):
            await system.deliver(job.id, "paid", "x" * (1 << 20))
        await system.deliver(job.id, "paid", Payment(4))

        assert await job == 4


async def test_early_value_of_the_wrong_type_fails_its_turn_and_holds_nobody(tmp_path: Path) -> None:
    async with open_at(tmp_path, World()) as system:
        job = await system.actor(Order, "a").place.submit("o1")
        await waiting(job)
        next_one = await system.actor(Order, "a").place.submit("o2")
        await system.deliver(next_one.id, "paid", "money")
        await system.deliver(job.id, "paid", Payment(1))

        with pytest.raises((HandlerFailed, InvalidArguments), match="not of the type Payment"):
            await next_one
        assert await system.actor(Order, "a").note("on") == ["o1", "on"]


async def test_waits_under_one_name_are_answered_in_order_each_once(tmp_path: Path) -> None:
    class Thrice(Actor, kind="thrice"):
        @handler
        async def go(self) -> list[int]:
            return [await external("number", int) for _ in range(3)]

    async with open_at(tmp_path, World(), Thrice) as system:
        job = await system.actor(Thrice, "a").go.submit()
        for number in range(3):
            await waiting(job)
            await until_parked()
            await system.deliver(job.id, "number", number)
            await asyncio.sleep(1)

        assert await job == [0, 1, 2]


async def test_branch_that_gave_up_waiting_finds_what_came_meanwhile(tmp_path: Path) -> None:
    class Reminding(Actor, kind="reminding"):
        @handler
        async def go(self) -> int:
            for _ in range(10):
                try:
                    async with asyncio.timeout(10):
                        return await external("number", int)
                except TimeoutError:
                    world().did.append("reminded")
            return -1

    outside = World()

    async with open_at(tmp_path, outside, Reminding) as system:
        job = await system.actor(Reminding, "a").go.submit()
        await asyncio.sleep(35)
        waits = await records(system)
        await system.deliver(job.id, "number", 5)

        assert await job == 5
        assert waits == 1
        assert outside.did == ["reminded"] * 3


async def test_wait_survives_a_restart_and_no_finished_step_is_repeated(tmp_path: Path) -> None:
    outside = World()

    async with open_at(tmp_path, outside) as system:
        job = await system.actor(Order, "a").place.submit("o1")
        await waiting(job)
        before = await system.store.records("wait", None, "", 10)
    async with open_at(tmp_path, outside) as system:
        assert await system.job(job.id).status() == JobStatus("waiting", "external paid")
        assert await system.store.records("wait", None, "", 10) == before
    async with open_at(tmp_path, outside) as system:
        await system.deliver(job.id, "paid", Payment(9))

        assert await system.job(job.id) == 9
        assert outside.did == ["bill o1", "ship o1"]
        assert (await system.trace(job.id)).status == "ok"


async def test_trace_tells_the_end_of_a_turn_that_did_nothing_but_wait_over_a_restart(tmp_path: Path) -> None:
    class Idle(Actor, kind="idle"):
        @handler
        async def go(self) -> int:
            return await external("number", int)

    async with open_at(tmp_path, World(), Idle) as system:
        job = await system.actor(Idle, "a").go.submit()
        await waiting(job)
    async with open_at(tmp_path, World(), Idle) as system:
        await system.deliver(job.id, "number", 7)

        assert await system.job(job.id) == 7
        assert (await system.trace(job.id)).status == "ok"


async def test_deliveries_side_by_side_to_a_parked_turn_find_what_it_waits_for(tmp_path: Path) -> None:
    class Several(Actor, kind="several"):
        @handler
        async def go(self) -> list[int]:
            return list(await asyncio.gather(*[external(name, int) for name in "abc"]))

    async with open_at(tmp_path, World(), Several) as system:
        job = await system.actor(Several, "a").go.submit()
        await until_gone()
        assert in_memory(system) == []
        await asyncio.gather(*[system.deliver(job.id, name, number) for number, name in enumerate("abc")])

        assert await job == [0, 1, 2]
        assert await records(system) == 0


async def test_wait_survives_a_crash(tmp_path: Path) -> None:
    outside = World()

    async with dying(open_at(tmp_path, outside)) as system:
        job = await system.actor(Order, "a").place.submit("o1")
        await waiting(job)
    async with dying(open_at(tmp_path, outside)) as system:
        assert await waiting(system.job(job.id)) == JobStatus("waiting", "external paid")
        await until_parked()
    async with dying(open_at(tmp_path, outside)) as system:
        assert await records(system) == 1
        await system.deliver(job.id, "paid", Payment(9))
    async with open_at(tmp_path, outside) as system:
        assert await system.job(job.id) == 9
        assert [info.status async for info in system.actors()] == ["active"]

    assert outside.did == ["bill o1", "ship o1"]


@pytest.mark.parametrize("parked", [False, True])
@pytest.mark.parametrize("restarts", [False, True])
async def test_time_of_a_wait_runs_out_wherever_it_is(tmp_path: Path, parked: bool, restarts: bool) -> None:
    class Patient(Actor, kind="patient"):
        @handler
        async def go(self) -> int:
            try:
                return await external("number", int, timeout_s=3_600)
            except StepTimeout:
                await ship("reminder")
                return await external("number", int)

    outside = World()

    async with open_at(tmp_path, outside, Patient) as system:
        job = await system.actor(Patient, "a").go.submit()
        await waiting(job)
        if parked:
            await until_gone()
            assert in_memory(system) == []
        if not restarts:
            await asyncio.sleep(3_700)
            assert outside.did == ["ship reminder"]
            await system.deliver(job.id, "number", 5)
            assert await job == 5
            return
    asyncio.get_running_loop().jump_wall(4_000)  # type: ignore[attr-defined]
    async with open_at(tmp_path, outside, Patient) as system:
        await asyncio.sleep(100)
        assert outside.did == ["ship reminder"]
        await system.deliver(job.id, "number", 5)
        assert await system.job(job.id) == 5
        assert await system.store.records("alarm", None, "", 10) == []


async def test_only_a_handler_waits_for_the_outside(tmp_path: Path) -> None:
    @step
    async def inner() -> int:
        return await external("number", int)

    class Wrong(Actor, kind="wrong"):
        @handler
        async def go(self) -> str:
            try:
                await inner()
            except Exception as error:
                return str(error)
            return ""

        @handler
        async def no_type(self) -> None:
            await external("number", dict[int, int] | dict[str, int])

        @handler
        async def no_name(self) -> None:
            await external("", int)

    async with open_at(tmp_path, World(), Wrong) as system:
        wrong = system.actor(Wrong, "a")
        assert "inside step inner" in await wrong.go()
        with pytest.raises(InvalidArguments, match="cannot be stored"):
            await wrong.no_type()
        with pytest.raises(InvalidArguments, match="expected a name"):
            await wrong.no_name()
    with pytest.raises(NoTurn):
        await external("number", int)
    with pytest.raises(NoTurn):
        current_turn()


async def test_failed_turn_gets_the_value_again_instead_of_waiting(tmp_path: Path) -> None:
    class Stumbling(Actor, kind="stumbling"):
        @handler
        async def go(self) -> int:
            number = await external("number", int)
            if world().should_fail("go"):
                raise OSError
            return number

    outside = World()
    outside.fails["go"] = 2

    async with open_at(tmp_path, outside, Stumbling) as system:
        job = await system.actor(Stumbling, "a").go.submit()
        await system.deliver(job.id, "number", 8)

        assert await job == 8


async def test_wait_of_a_dead_letter_goes_and_comes_back_with_it(tmp_path: Path) -> None:
    class Doomed(Actor, kind="doomed"):
        @handler
        async def go(self) -> int:
            waits = asyncio.ensure_future(external("number", int))
            await asyncio.sleep(1)
            if world().should_fail("go"):
                raise ValueError("doomed")
            return await waits

    outside = World()
    outside.fails["go"] = 1

    async with open_at(tmp_path, outside, Doomed) as system:
        job = await system.actor(Doomed, "a").go.submit()
        with pytest.raises(HandlerFailed):
            await job
        assert await records(system) == 0
        await system.redeliver(job.id)
        await asyncio.sleep(2)
        assert await records(system) == 1
        await system.deliver(job.id, "number", 4)
        assert await job == 4


async def test_wait_of_a_cancelled_job_goes_with_it(tmp_path: Path) -> None:
    async with open_at(tmp_path, World()) as system:
        job = await system.actor(Order, "a").place.submit("o1")
        await waiting(job)
        await job.cancel()

        with pytest.raises(JobCancelled):
            await job
        assert await records(system) == 0
        with pytest.raises(NotFound):
            await system.deliver(job.id, "paid", Payment(1))
        assert await system.actor(Order, "a").note("on") == ["on"]
