"""Delayed messages: once when they are due, late after an outage, never twice, whatever the wall clock does."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import msgspec
import pytest

from understudy import Actor, InvalidArguments, Limits, System, handler, query
from understudy.mailbox.envelope import Envelope
from understudy.mailbox.store import Timer, Whereabouts
from understudy.testing import InlineSQLiteStore, VirtualTimeLoop

pytestmark = pytest.mark.anyio


class Bells(msgspec.Struct):
    rung: list[tuple[int, float]] = []


class Bell(Actor[Bells], kind="bell"):
    @handler
    async def ring(self, number: int) -> int:
        self.state.rung.append((number, asyncio.get_running_loop().time()))
        return number

    @query
    async def rung(self) -> list[tuple[int, float]]:
        return self.state.rung


class Setter(Actor, kind="setter"):
    @handler
    async def set(self, number: int, delay_s: float) -> None:
        await self.actor(Bell, "b").ring.options(delay_s=delay_s).tell(number)

    @handler
    async def ask_later(self) -> int:
        return await self.actor(Bell, "b").ring.options(delay_s=5)(1)


def loop() -> VirtualTimeLoop:
    running: Any = asyncio.get_running_loop()
    return running


def system_at(path: Path, limits: Limits | None = None) -> System:
    return System(path, [Bell, Setter], limits=limits)


async def numbers(system: System, id: str = "b") -> list[int]:
    return [number for number, _ in await system.actor(Bell, id).rung()]


async def test_delayed_message_is_delivered_when_it_is_due(path: Path) -> None:
    async with system_at(path) as system:
        start = loop().time()
        await system.actor(Bell, "b").ring.options(delay_s=3600).tell(1)
        await asyncio.sleep(3599)
        assert await numbers(system) == []

        await asyncio.sleep(2)

        ((_, at),) = await system.actor(Bell, "b").rung()
        assert at - start == pytest.approx(3600, abs=0.1)


async def test_message_for_a_moment_is_delivered_then(path: Path) -> None:
    async with system_at(path) as system:
        at = datetime.fromtimestamp(loop().wall_time(), timezone(timedelta(hours=5))) + timedelta(seconds=100)
        start = loop().time()

        assert await system.actor(Bell, "b").ring.options(at=at)(1) == 1

        assert loop().time() - start == pytest.approx(100, abs=0.1)


async def test_message_for_a_moment_in_the_past_is_delivered_at_once(path: Path) -> None:
    async with system_at(path) as system:
        at = datetime(1999, 1, 1, tzinfo=UTC)

        assert await system.actor(Bell, "b").ring.options(at=at)(1) == 1


async def test_timers_fire_in_the_order_in_which_they_are_due(path: Path) -> None:
    async with system_at(path) as system:
        bell = system.actor(Bell, "b").ring
        for number, delay_s in enumerate([30.0, 10.0, 20.0, 10.0]):
            await bell.options(delay_s=delay_s).tell(number)
        await bell.tell(9)

        await asyncio.sleep(60)

        assert await numbers(system) == [9, 1, 3, 2, 0]


async def test_delayed_tell_of_a_turn_leaves_with_it(path: Path) -> None:
    async with system_at(path) as system:
        await system.actor(Setter, "s").set(7, 10)
        await asyncio.sleep(11)

        assert await numbers(system) == [7]


async def test_delayed_ask_inside_a_turn_is_refused(path: Path) -> None:
    async with system_at(path) as system:
        with pytest.raises(InvalidArguments, match="cannot be delayed"):
            await system.actor(Setter, "s").ask_later()


async def test_timer_that_was_due_during_an_outage_fires_late_and_once(path: Path) -> None:
    async with system_at(path) as system:
        await system.actor(Bell, "b").ring.options(delay_s=100).tell(1)
    await asyncio.sleep(10_000)

    async with system_at(path) as system:
        await asyncio.sleep(1)
        assert await numbers(system) == [1]
    async with system_at(path) as system:
        await asyncio.sleep(200)
        assert await numbers(system) == [1]


async def test_timer_outlives_a_restart(path: Path) -> None:
    async with system_at(path) as system:
        start = loop().time()
        await system.actor(Bell, "b").ring.options(delay_s=100).tell(1)
    async with system_at(path) as system:
        await asyncio.sleep(200)

        ((_, at),) = await system.actor(Bell, "b").rung()
        assert at - start == pytest.approx(100, abs=1)


@pytest.mark.parametrize("jump_s", [-7200.0, 3000.0, 86_400.0 * 365])
async def test_jump_of_the_wall_clock_neither_loses_nor_doubles_a_timer(path: Path, jump_s: float) -> None:
    async with system_at(path) as system:
        for number in range(5):
            await system.actor(Bell, "b").ring.options(delay_s=1000.0 * (number + 1)).tell(number)
        await asyncio.sleep(500)

        loop().jump_wall(jump_s)
        await asyncio.sleep(6000)
        loop().jump_wall(-jump_s)
        await asyncio.sleep(10_000)

        assert await numbers(system) == [0, 1, 2, 3, 4]


async def test_wall_clock_that_was_set_forward_is_noticed_within_half_a_minute(path: Path) -> None:
    async with system_at(path) as system:
        await system.actor(Bell, "b").ring.options(delay_s=3600).tell(1)

        loop().jump_wall(3600)
        await asyncio.sleep(31)

        assert await numbers(system) == [1]


async def test_three_thousand_timers_of_many_actors_all_fire_once(path: Path) -> None:
    async with system_at(path) as system:
        await asyncio.gather(
            *(system.actor(Bell, f"b{i % 300}").ring.options(delay_s=100 + i % 7).tell(i) for i in range(3000))
        )
        await asyncio.sleep(200)

        rung = sorted([number for i in range(300) for number in await numbers(system, f"b{i}")])
        assert rung == list(range(3000))


async def test_memory_holds_the_nearest_timers_only(path: Path) -> None:
    async with system_at(path, Limits(mailbox_messages=20_000)) as system:
        ring = system.actor(Bell, "b").ring
        await asyncio.gather(*(ring.options(delay_s=1000 + i).tell(i) for i in reversed(range(5000))))

        assert len(system.timers._heap) <= 2000
        assert len(system.timers._pending) <= 2000
        await asyncio.sleep(7000)

        assert await numbers(system) == list(range(5000))
        assert not system.timers._pending


async def test_caller_of_a_far_timer_gets_its_reply(path: Path) -> None:
    async with system_at(path, Limits(mailbox_messages=20_000)) as system:
        ring = system.actor(Bell, "b").ring
        await asyncio.gather(*(ring.options(delay_s=10).tell(i) for i in range(1500)))
    async with system_at(path, Limits(mailbox_messages=20_000)) as system:
        far = asyncio.ensure_future(system.actor(Bell, "b").ring.options(delay_s=5000)(77))
        nearer = asyncio.ensure_future(system.actor(Bell, "b").ring.options(delay_s=4000)(76))

        assert await asyncio.gather(far, nearer) == [77, 76]


async def test_thousands_of_timers_after_an_outage_are_read_in_pages(path: Path) -> None:
    async with system_at(path) as system:
        await asyncio.gather(
            *(system.actor(Bell, f"b{i}").ring.options(delay_s=100 + i / 100).tell(i) for i in range(2500))
        )
    await asyncio.sleep(86_400)
    limits = Limits(active_max=100)
    async with system_at(path, limits) as system:
        peak = 0
        for _ in range(2000):
            await asyncio.sleep(0.01)
            peak = max(peak, system.population.live)

        rung = [number for i in range(2500) for number in await numbers(system, f"b{i}")]
        assert rung == list(range(2500))
        assert peak < 1500


class CountedReads(InlineSQLiteStore):
    """A store that counts how often messages of timers are read."""

    reads = 0

    async def messages(self, numbers: Sequence[int]) -> list[Envelope]:
        self.reads += 1
        return await super().messages(numbers)

    async def message(self, no: int) -> Whereabouts:
        self.reads += 1
        return await super().message(no)


async def test_many_timers_that_are_due_are_read_many_at_a_time_and_the_first_before_the_others(path: Path) -> None:
    async with system_at(path) as system:
        await asyncio.gather(*(system.actor(Bell, f"b{i}").ring.options(delay_s=100 + i).tell(i) for i in range(500)))
    await asyncio.sleep(86_400)
    store = CountedReads(path)

    async with System(store, [Bell]) as system:
        while not await numbers(system, "b0"):
            await asyncio.sleep(0)
        at_first = system.population.live
        await asyncio.sleep(10)

        assert [await numbers(system, f"b{i}") for i in range(500)] == [[i] for i in range(500)]
        assert store.reads <= 10
        assert at_first < 250


async def test_timer_for_an_actor_with_a_long_queue_takes_its_place_at_the_end(path: Path) -> None:
    limits = Limits(window_messages=4)
    async with system_at(path, limits) as system:
        ring = system.actor(Bell, "b").ring
        early = asyncio.ensure_future(ring.options(delay_s=0)(100))
        await asyncio.gather(*(ring.tell(i) for i in range(20)), early)

        rung = await numbers(system)
        assert sorted(rung) == [*range(20), 100]
        assert [number for number in rung if number != 100] == list(range(20))


async def test_cancelled_timer_does_not_fire(path: Path) -> None:
    async with system_at(path) as system:
        ring = system.actor(Bell, "b").ring
        jobs = [await ring.options(delay_s=100).submit(i) for i in range(3)]
        await jobs[1].cancel()
        await asyncio.sleep(200)

        assert await numbers(system) == [0, 2]


@pytest.mark.parametrize("rounds", range(0, 30, 2))
async def test_timer_cancelled_at_the_moment_it_is_due_either_fires_or_does_not(path: Path, rounds: int) -> None:
    async with system_at(path) as system:
        job = await system.actor(Bell, "b").ring.options(delay_s=1000).submit(1)
    async with system_at(path) as system:
        await asyncio.sleep(999.5)
        while system.timers._heap:
            await asyncio.sleep(0.01)
        for _ in range(rounds):
            await asyncio.sleep(0)

        await system.job(job.id).cancel()
        await asyncio.sleep(100)

        state = (await system.job(job.id).status()).state
        assert (state, await numbers(system)) in [("done", [1]), ("cancelled", [])]
        ((depth,),) = [(row.waiting,) async for row in system.actors(Bell)] or [(0,)]
        assert depth == 0


@pytest.mark.parametrize("delay_s", [-1.0, float("nan"), float("inf"), 1e11])
async def test_delay_that_is_no_time_is_refused(path: Path, delay_s: float) -> None:
    async with system_at(path) as system:
        with pytest.raises(InvalidArguments, match="delay_s"):
            system.actor(Bell, "b").ring.options(delay_s=delay_s)


async def test_naive_moment_and_two_delays_are_refused(path: Path) -> None:
    async with system_at(path) as system:
        with pytest.raises(InvalidArguments, match="aware"):
            system.actor(Bell, "b").ring.options(at=datetime(2030, 1, 1))  # noqa: DTZ001
        with pytest.raises(InvalidArguments, match="give one"):
            system.actor(Bell, "b").ring.options(delay_s=1, at=datetime.now(UTC))


async def test_farthest_moment_is_accepted(path: Path) -> None:
    async with system_at(path) as system:
        job = await system.actor(Bell, "b").ring.options(at=datetime.max.replace(tzinfo=UTC)).submit(1)

        assert (await job.status()).state == "waiting"


class SlowRead(InlineSQLiteStore):
    """A store that delivers its next read of timers' messages when the test says."""

    gate: asyncio.Event | None = None
    reading: asyncio.Event

    async def messages(self, numbers: Sequence[int]) -> list[Envelope]:
        found = await super().messages(numbers)
        if self.gate is not None:
            gate, self.gate = self.gate, None
            self.reading.set()
            await gate.wait()
        return found


async def test_timer_cancelled_while_it_is_read_back_does_not_fire(path: Path) -> None:
    async with system_at(path) as system:
        job = await system.actor(Bell, "b").ring.options(delay_s=1000).submit(1)
    store = SlowRead(path)
    async with System(store, [Bell]) as system:
        await asyncio.sleep(500)
        gate = store.gate = asyncio.Event()
        store.reading = asyncio.Event()
        await store.reading.wait()

        await system.job(job.id).cancel()
        gate.set()
        await asyncio.sleep(10)

        assert await numbers(system) == []
        assert (await system.job(job.id).status()).state == "cancelled"


class SlowPage(InlineSQLiteStore):
    """A store that delivers a later page of timers when the test says."""

    gate: asyncio.Event | None = None
    short = False  # it is the last page
    reading: asyncio.Event

    async def timers(self, after: Timer | None, limit: int) -> list[Timer]:
        page = await super().timers(after, limit)
        if after is not None and self.gate is not None and (len(page) < limit) == self.short:
            self.reading.set()
            await self.gate.wait()
        return page


@pytest.mark.parametrize(
    ("far", "new"),
    [
        (3, [40.0]),  # behind a short page
        (20, [15.5, 60.0]),  # within a full page, and behind it
        (4, [0.1 * i for i in range(1, 12)]),  # so many nearer ones that the page is to be forgotten
        (4, [1.0, *(30.0 + i for i in range(12))]),
    ],
)
async def test_timer_set_while_a_page_is_read_fires(
    path: Path, monkeypatch: pytest.MonkeyPatch, far: int, new: list[float]
) -> None:
    monkeypatch.setattr("understudy.actors.timers._PAGE", 4)
    store = SlowPage(path)
    async with System(store, [Bell]) as system:
        bell = system.actor(Bell, "b").ring
        now = datetime.fromtimestamp(loop().wall_time(), UTC)
        due = [*(10.0 + i for i in range(8)), *(20.0 + i for i in range(far))]
        for number, at in enumerate(due):
            await bell.options(at=now + timedelta(seconds=at)).tell(number)
        gate = store.gate = asyncio.Event()
        store.short = far == 3
        store.reading = asyncio.Event()
        await store.reading.wait()
        start = datetime.fromtimestamp(loop().wall_time(), UTC)
        for number, at in enumerate(new):
            await bell.options(at=max(start, now + timedelta(seconds=at))).tell(100 + number)

        store.gate = None
        gate.set()
        await asyncio.sleep(100)

        rung = await numbers(system)
        assert sorted(rung) == sorted([*range(len(due)), *(100 + number for number in range(len(new)))])


async def test_cancelled_timers_are_forgotten(path: Path) -> None:
    async with system_at(path) as system:
        for number in range(50):
            job = await system.actor(Bell, "b").ring.options(delay_s=3600).submit(number)
            await job.cancel()

        assert not system.timers._heap
        assert not system.withdrawals.withdrawn
