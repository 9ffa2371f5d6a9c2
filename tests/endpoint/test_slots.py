"""Places for calls in flight: their order, their number, and who leaves the queue."""

from __future__ import annotations

import asyncio
import random

import pytest

from understudy.endpoint.slots import Slots
from understudy.testing import VirtualTimeLoop

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend():
    return "asyncio", {"loop_factory": VirtualTimeLoop}


async def settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def test_places_go_to_those_who_asked_first():
    slots = Slots(1)
    order = []

    async def work(name):
        await slots.acquire()
        order.append(name)
        await asyncio.sleep(1)
        slots.release()

    await asyncio.gather(*(work(name) for name in "abcd"))

    assert order == list("abcd")
    assert (slots.taken, slots.waiting) == (0, 0)


async def test_who_comes_later_does_not_pass_those_who_wait():
    slots = Slots(1)
    await slots.acquire()
    first = asyncio.create_task(slots.acquire())
    await settle()

    slots.release()  # Handed to the first, which has not run yet.
    second = asyncio.create_task(slots.acquire())
    await settle()

    assert first.done()
    assert not second.done()
    slots.release()
    await second


async def test_cancelled_wait_leaves_the_queue_and_a_place_handed_over_meanwhile_goes_on():
    slots = Slots(1)
    await slots.acquire()
    waits = [asyncio.create_task(slots.acquire()) for _ in range(3)]
    await settle()

    waits[0].cancel()
    slots.release()
    waits[1].cancel()  # It has the place, and has not run yet.
    await settle()

    assert [wait.cancelled() for wait in waits] == [True, True, False]
    assert waits[2].done()
    assert slots.taken == 1


async def test_an_overload_halves_the_places_and_successes_bring_them_back_one_by_one():
    slots = Slots(16)
    place = await slots.acquire()

    slots.overloaded(place)
    halved = slots.allowed
    for _ in range(8):
        slots.succeeded()
    after_a_round = slots.allowed
    for _ in range(200):
        slots.succeeded()

    assert (halved, after_a_round, slots.allowed) == (8, 8, 16)


async def test_as_many_successes_as_there_are_places_bring_one_more():
    slots = Slots(16)
    slots.overloaded(await slots.acquire())

    rounds = []
    for _ in range(3):
        for _ in range(slots.allowed + 1):  # One more than the round: the share of each is a little smaller.
            slots.succeeded()
        rounds.append(slots.allowed)

    assert rounds == [9, 10, 11]


async def test_one_overload_met_by_all_calls_in_flight_is_one_overload():
    slots = Slots(16)
    places = [await slots.acquire() for _ in range(16)]

    for place in places:
        slots.overloaded(place)
        slots.release()
    later = await slots.acquire()
    before = slots.allowed
    slots.overloaded(later)

    assert (before, slots.allowed) == (8, 4)


async def test_there_is_always_one_place():
    slots = Slots(4)

    for _ in range(20):
        slots.overloaded(await slots.acquire())
        slots.release()

    assert slots.allowed == 1
    await slots.acquire()


async def test_fewer_places_hold_newcomers_until_enough_are_free():
    slots = Slots(4)
    places = [await slots.acquire() for _ in range(4)]
    wait = asyncio.create_task(slots.acquire())
    slots.overloaded(places[0])

    slots.release()
    slots.release()
    await settle()
    at_two = wait.done()
    slots.release()
    await settle()

    assert not at_two
    assert wait.done()


async def test_random_traffic_never_exceeds_the_setting_and_gives_every_place_back(seed):
    dice = random.Random(seed)
    slots = Slots(7)
    peak = 0

    async def work() -> None:
        nonlocal peak
        await asyncio.sleep(dice.random() * 5)
        place = await slots.acquire()
        peak = max(peak, slots.taken)
        try:
            await asyncio.sleep(dice.random())
            slots.overloaded(place) if dice.random() < 0.2 else slots.succeeded()
        finally:
            slots.release()

    tasks = [asyncio.create_task(work()) for _ in range(500)]
    for task in tasks:
        if dice.random() < 0.3:
            asyncio.get_running_loop().call_later(dice.random() * 10, task.cancel)
    await asyncio.wait(tasks)

    assert peak <= 7
    assert (slots.taken, slots.waiting) == (0, 0)
    assert all(task.cancelled() or task.exception() is None for task in tasks)
