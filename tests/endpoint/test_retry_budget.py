"""The retry budget: how many retries may be sent, in which order, and that none waits for ever."""

from __future__ import annotations

import asyncio
import random

import pytest
from hypothesis import given, settings, strategies as st

from understudy import RetryBudget
from understudy.endpoint.retry_budget import Retries
from understudy.errors import InvalidDefinition
from understudy.testing import VirtualTimeLoop

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend():
    return "asyncio", {"loop_factory": VirtualTimeLoop}


def retries_of(**facts) -> Retries:
    return Retries(RetryBudget(**facts), asyncio.get_running_loop())


async def settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


def now() -> float:
    return asyncio.get_running_loop().time()


async def test_what_is_kept_goes_at_once_and_the_rest_at_the_rate():
    retries = retries_of(per_s=2.0, burst=3)
    began, times = now(), []

    async def retry() -> None:
        await retries.take()
        times.append(round(now() - began, 3))

    await asyncio.gather(*(retry() for _ in range(6)))

    assert times == [0, 0, 0, 0.5, 1.0, 1.5]


async def test_first_attempts_add_their_share_and_let_the_waiting_go():
    retries = retries_of(ratio=0.2, per_s=0.001, burst=1)
    await retries.take()
    waits = [asyncio.create_task(retries.take()) for _ in range(2)]
    await settle()

    for _ in range(5):
        retries.first_sent()
    await settle()

    assert [wait.done() for wait in waits] == [True, False]
    waits[1].cancel()


async def test_no_more_than_the_burst_is_kept_of_good_times():
    retries = retries_of(ratio=1.0, burst=4)

    for _ in range(1_000):
        retries.first_sent()
    await asyncio.sleep(3600)

    assert retries.left == 4


async def test_retries_go_in_the_order_they_came():
    retries = retries_of(per_s=1.0, burst=1)
    order = []

    async def retry(name) -> None:
        await retries.take()
        order.append(name)

    await asyncio.gather(*(retry(number) for number in range(20)))

    assert order == list(range(20))


async def test_who_comes_later_does_not_pass_those_who_wait():
    retries = retries_of(per_s=1.0, burst=1)
    await retries.take()
    first = asyncio.create_task(retries.take())
    await settle()
    await asyncio.sleep(1.0)  # There is one again, and the timer of the first is just about to fire.

    second = asyncio.create_task(retries.take())
    await asyncio.sleep(0.01)

    assert (first.done(), second.done()) == (True, False)
    await second


async def test_cancelled_wait_leaves_the_queue_and_takes_nothing():
    retries = retries_of(per_s=1.0, burst=1)
    await retries.take()
    waits = [asyncio.create_task(retries.take()) for _ in range(3)]
    await settle()
    began = now()

    waits[0].cancel()
    waits[1].cancel()
    await waits[2]

    assert now() - began == pytest.approx(1.0, abs=0.01)
    assert retries.waiting == 0


async def test_wait_that_is_cancelled_as_its_turn_comes_passes_it_on():
    retries = retries_of(per_s=0.001, burst=1)
    await retries.take()
    waits = [asyncio.create_task(retries.take()) for _ in range(2)]
    await settle()

    retries.give_back()  # The first has it, and has not run yet.
    waits[0].cancel()
    await settle()

    assert waits[0].cancelled()
    assert waits[1].done()


async def test_alone_an_agent_is_never_stuck():
    retries = retries_of(ratio=0.0, per_s=0.01, burst=1)
    began = now()

    for _ in range(3):
        await retries.take()

    assert now() - began == pytest.approx(200, abs=0.1)


async def test_a_budget_that_nobody_waits_for_leaves_no_timer_behind():
    retries = retries_of(per_s=1.0, burst=1)
    await retries.take()
    wait = asyncio.create_task(retries.take())
    await settle()

    wait.cancel()
    await settle()

    assert retries._timer is None


@given(
    seed=st.integers(0, 2**32),
    ratio=st.sampled_from([0.0, 0.1, 0.2, 1 / 3, 1.0]),
    per_s=st.sampled_from([0.05, 1.0, 3.0, 50.0]),
    burst=st.sampled_from([1, 2.5, 10]),
)
@settings(max_examples=60)
def test_retries_never_exceed_what_calls_and_time_allow(seed, ratio, per_s, burst):
    dice = random.Random(seed)

    async def traffic() -> None:
        retries = retries_of(ratio=ratio, per_s=per_s, burst=burst)
        began, firsts, sent = now(), 0, 0

        async def retry() -> None:
            nonlocal sent
            await retries.take()
            if dice.random() < 0.2:
                await asyncio.sleep(dice.random())
                retries.give_back()
                return
            sent += 1
            assert sent <= ratio * firsts + per_s * (now() - began) + burst + 1e-6

        tasks = []
        for _ in range(60):
            for _ in range(dice.randrange(4)):
                firsts += 1
                retries.first_sent()
            tasks += [asyncio.create_task(retry()) for _ in range(dice.randrange(4))]
            if tasks and dice.random() < 0.3:
                dice.choice(tasks).cancel()
            await asyncio.sleep(dice.choice([0, 0.01, 0.3, 2]))
        done, _ = await asyncio.wait(tasks or [asyncio.create_task(retry())])
        assert retries.waiting == 0
        assert not [task for task in done if not task.cancelled() and task.exception()]
        # What it could still send shows that no cancelled wait has kept anything.
        assert retries.left <= burst
        await asyncio.sleep(burst / per_s + 1)
        assert retries.left == pytest.approx(burst)

    with asyncio.Runner(loop_factory=VirtualTimeLoop) as runner:
        runner.run(traffic())


@pytest.mark.parametrize(
    ("facts", "said"),
    [
        ({"ratio": -0.1}, "ratio=-0.1"),
        ({"per_s": 0}, "per_s=0 .expected retries per second, more than 0"),
        ({"per_s": float("inf")}, "per_s=inf"),
        ({"burst": 0.5}, "burst=0.5"),
        ({"burst": True}, "burst=True"),
        ({"ratio": "half"}, "ratio='half'"),
        ({"ratio": float("nan")}, "ratio=nan"),
    ],
)
def test_settings_that_cannot_work_are_refused(facts, said):
    with pytest.raises(InvalidDefinition, match=said):
        RetryBudget(**facts)
