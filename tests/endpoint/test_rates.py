"""The rate limiter: the arithmetic of buckets, the two views of a limit, the queue before them."""

from __future__ import annotations

import asyncio
import pickle

import pytest
from hypothesis import given, strategies as st

from understudy import InvalidDefinition, RateLimits
from understudy.clock import wall_clock
from understudy.endpoint.bucket import TOLERANCE, Bucket
from understudy.endpoint.meters import Meters
from understudy.endpoint.model import Allowance, Meter
from understudy.endpoint.rates import Buckets, Need
from understudy.testing import VirtualTimeLoop

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend():
    return ("asyncio", {"loop_factory": VirtualTimeLoop})


ONE = Need(0, 0)


def buckets(**limits: float) -> Buckets:
    loop = asyncio.get_running_loop()
    return Buckets(RateLimits(**limits), clock=loop.time, wall=wall_clock(loop))


def now() -> float:
    return asyncio.get_running_loop().time()


async def quiet() -> None:
    """Let every task run until it waits; no time passes."""
    for _ in range(10):
        await asyncio.sleep(0)


def timers() -> int:
    return sum(not handle.cancelled() for handle in asyncio.get_running_loop()._scheduled)  # type: ignore[attr-defined]


def told(limit: int | None, remaining: int | None) -> Allowance:
    return Allowance(requests=Meter(limit, remaining))


# Settings --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "wrong",
    [
        {"requests_per_min": 0},
        {"requests_per_min": -1},
        {"input_tokens_per_min": float("nan")},
        {"output_tokens_per_min": float("inf")},
        {"output_tokens_per_min": "8000"},
        {"requests_per_min": True},
        {"burst_s": 0},
        {"burst_s": 61},
    ],
)
def test_limits_out_of_range_are_refused_by_name(wrong):
    with pytest.raises(InvalidDefinition, match=rf"RateLimits is out of range: {next(iter(wrong))}="):
        RateLimits(**wrong)


def test_all_wrong_limits_are_named_together():
    with pytest.raises(InvalidDefinition, match=r"requests_per_min=0 .*input_tokens_per_min=-1"):
        RateLimits(requests_per_min=0, input_tokens_per_min=-1)


def test_limits_are_frozen_named_and_survive_pickling():
    limits = RateLimits(requests_per_min=50)

    with pytest.raises(AttributeError):
        limits.requests_per_min = 5  # type: ignore[misc]
    with pytest.raises(TypeError):
        RateLimits(50)  # type: ignore[misc]
    assert pickle.loads(pickle.dumps(limits)) == limits


async def test_something_else_than_limits_is_refused():
    with pytest.raises(InvalidDefinition, match="rates must be RateLimits"):
        Buckets(50, clock=now, wall=now)  # type: ignore[arg-type]


# One bucket ------------------------------------------------------------------------------------------------------

ACTIONS = st.lists(
    st.tuples(st.sampled_from(["take", "refund", "pause", "resize"]), st.integers(0, 300), st.integers(0, 90)),
    max_size=40,
)


@given(ACTIONS)
def test_a_bucket_is_never_fuller_than_it_can_be_and_follows_the_plain_sum(actions):
    bucket, level, at, capacity = Bucket(100, 2, 0), 100.0, 0.0, 100.0
    time, paused = 0.0, 0.0

    for action, amount, seconds in actions:
        time += seconds
        level = min(capacity, level + 2 * max(0.0, time - max(at, paused)))
        at = max(time, at)
        match action:
            case "take":
                bucket.take(amount, time)
                level -= amount
            case "refund":
                bucket.refund(amount, time)
                level = min(capacity, level + amount)
            case "pause":
                bucket.pause(time + seconds, time)
                paused = max(paused, time + seconds)
            case _:
                capacity = float(amount + 1)
                bucket.resize(capacity, 2, time)
                level = min(capacity, level)

        assert bucket.level(time) <= bucket.capacity
        assert bucket.level(time) == pytest.approx(level)


@given(st.integers(1, 300), st.integers(0, 300), st.floats(0.01, 1e4), st.integers(0, 50))
def test_after_the_wait_that_a_bucket_names_there_is_enough_and_not_before(wanted, taken, per_s, ahead):
    bucket = Bucket(100, per_s, 0)
    bucket.take(taken, 0)

    wait_s = bucket.wait_s(wanted, 0)

    assert bucket.level(wait_s) >= min(wanted, 100) - 2 * TOLERANCE
    assert wait_s == 0 or bucket.level(wait_s * 0.99) < min(wanted, 100)
    assert bucket.wait_s(wanted, 0, ahead=ahead) >= wait_s


def test_a_clock_that_steps_back_adds_nothing():
    bucket = Bucket(100, 1, 1_000)
    bucket.take(100, 1_000)

    assert bucket.level(0) == 0
    bucket.take(5, 0)
    assert bucket.level(1_010) == 5


# The queue -------------------------------------------------------------------------------------------------------


async def test_without_any_limit_nothing_waits():
    open_to_all = buckets()

    for _ in range(10_000):
        (await open_to_all.acquire(Need(10**9, 10**9))).settle(10**9, 10**9)

    assert open_to_all.levels() == (None, None, None, None)
    assert open_to_all.wait_s(Need(10**9, 10**9)) == 0


async def test_a_minutes_worth_starts_at_once_and_then_calls_start_at_the_rate():
    limited = buckets(requests_per_min=60)
    began = now()

    times = []
    for _ in range(65):
        await limited.acquire(ONE)
        times.append(now() - began)

    assert times[:60] == [0.0] * 60
    assert times[60:] == pytest.approx([1, 2, 3, 4, 5], abs=0.01)


async def test_a_smaller_burst_starts_less_at_once_at_the_same_rate():
    limited = buckets(requests_per_min=60, burst_s=2)
    began = now()

    for _ in range(12):
        await limited.acquire(ONE)

    assert now() - began == pytest.approx(10, abs=0.01)


async def test_calls_start_in_the_order_they_came_and_a_large_one_is_not_passed_by_small_ones():
    limited = buckets(input_tokens_per_min=6_000)  # 100 a second
    await limited.acquire(Need(6_000, 0))
    began, order = now(), []

    async def call(name: str, tokens: int) -> None:
        grant = await limited.acquire(Need(tokens, 0))
        order.append((name, round(now() - began)))
        grant.settle(tokens, 0)

    async with asyncio.TaskGroup() as tasks:
        for name, tokens in [("a", 100), ("large", 5_400), ("b", 100), ("c", 300)]:
            tasks.create_task(call(name, tokens))

    # No later than the refill of everything that stood before it, and itself.
    assert order == [("a", 1), ("large", 55), ("b", 56), ("c", 59)]


async def test_a_small_call_that_comes_later_waits_behind_a_large_one_though_there_is_enough_for_it():
    limited = buckets(input_tokens_per_min=6_000)
    await limited.acquire(Need(6_000, 0))
    began = now()
    large = asyncio.create_task(limited.acquire(Need(5_000, 0)))
    await asyncio.sleep(20)

    await limited.acquire(Need(100, 0))

    assert large.done()
    assert now() - began == pytest.approx(51, abs=0.01)


async def test_a_large_prompt_in_a_stream_of_small_ones_waits_no_longer_than_its_turn():
    limited = buckets(input_tokens_per_min=6_000)
    small, large = Need(60, 0), Need(5_400, 0)

    async def stream() -> None:
        while True:
            (await limited.acquire(small)).settle(60, 0)

    streams = [asyncio.create_task(stream()) for _ in range(20)]
    await asyncio.sleep(30)
    level = limited.levels()[1]
    assert level is not None
    bound_s = (limited.waiting * 60 + 5_400 - level) / 100
    promised_s, began = limited.wait_s(large), now()
    await limited.acquire(large)

    assert now() - began <= bound_s + 0.01
    assert promised_s == pytest.approx(bound_s, abs=0.01)
    for task in streams:
        task.cancel()
    await asyncio.gather(*streams, return_exceptions=True)


async def test_a_call_larger_than_a_bucket_starts_alone_when_it_is_full_and_leaves_a_debt():
    limited = buckets(input_tokens_per_min=6_000)
    await limited.acquire(Need(1_000, 0))
    began = now()

    await limited.acquire(Need(9_000, 0))
    started_s = now() - began
    await limited.acquire(Need(100, 0))

    assert started_s == pytest.approx(10, abs=0.01)  # Full again.
    assert now() - began == pytest.approx(10 + 31, abs=0.02)  # 3,000 of debt, and its own 100.


@given(needs=st.lists(st.tuples(st.integers(0, 700), st.integers(0, 30), st.booleans()), min_size=1, max_size=25))
def test_in_any_time_no_more_starts_than_the_bucket_and_its_refill(needs):
    async def run() -> list[tuple[float, int]]:
        limited = buckets(input_tokens_per_min=600)
        started: list[tuple[float, int]] = []

        async def call(tokens: int) -> None:
            grant = await limited.acquire(Need(tokens, 0))
            started.append((now(), tokens))
            grant.settle(tokens, 0)

        async with asyncio.TaskGroup() as tasks:
            for tokens, pause_s, cancelled in needs:
                task = tasks.create_task(call(tokens))
                await asyncio.sleep(pause_s)
                if cancelled:
                    task.cancel()
        assert (limited.waiting, limited.open_calls, timers()) == (0, 0, 0)
        return started

    with asyncio.Runner(loop_factory=VirtualTimeLoop) as runner:
        started = runner.run(run())

    for first in range(len(started)):
        for last in range(first, len(started)):
            window = started[first : last + 1]
            seconds = window[-1][0] - window[0][0]
            # The last may be an oversized one: it starts on a full bucket and owes the rest.
            owed = max(0, window[-1][1] - 600)
            assert sum(tokens for _, tokens in window) - owed <= 600 + 10 * seconds + 0.1


async def test_a_cancelled_wait_leaves_the_queue_and_no_trace():
    limited = buckets(requests_per_min=60)
    for _ in range(60):
        await limited.acquire(ONE)
    before = limited.levels()
    head, middle, last = (asyncio.create_task(limited.acquire(ONE)) for _ in range(3))
    await quiet()

    middle.cancel()
    head.cancel()
    await quiet()

    assert limited.waiting == 1
    assert limited.levels() == before
    began = now()
    await last
    assert now() - began == pytest.approx(1, abs=0.01)
    assert (limited.open_calls, timers()) == (61, 0)


async def test_a_timeout_leaves_the_queue_and_the_one_behind_does_not_wait_for_it():
    limited = buckets(input_tokens_per_min=6_000)
    await limited.acquire(Need(6_000, 0))
    began = now()

    async def give_up() -> None:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(10):
                await limited.acquire(Need(5_000, 0))

    large = asyncio.create_task(give_up())
    await quiet()
    await limited.acquire(Need(100, 0))

    assert now() - began == pytest.approx(10, abs=0.01)
    await large
    assert timers() == 0


async def test_a_call_that_is_granted_and_cancelled_at_once_gives_everything_back():
    limited = buckets(requests_per_min=60)
    grants = [await limited.acquire(ONE) for _ in range(60)]
    waiting = asyncio.create_task(limited.acquire(ONE))
    await quiet()

    grants[0].give_back()  # Grants the waiting one, which has not run yet.
    waiting.cancel()
    await asyncio.wait([waiting])

    assert waiting.cancelled()
    assert limited.open_calls == 59
    assert limited.levels()[0] == pytest.approx(1)


@pytest.mark.parametrize("first", ["settle", "give_back"])
async def test_a_grant_ends_exactly_once(first):
    limited = buckets(requests_per_min=60, input_tokens_per_min=6_000, output_tokens_per_min=600)
    grant = await limited.acquire(Need(1_000, 100))
    assert limited.levels()[:3] == (59, 5_000, 500)

    ends = [lambda: grant.settle(3_000, 50), grant.give_back]
    for end in ends if first == "settle" else reversed(ends):
        end()
        end()

    assert limited.levels()[:3] == ((59, 3_000, 550) if first == "settle" else (60, 6_000, 600))


async def test_what_comes_back_starts_the_next_one_at_once():
    limited = buckets(output_tokens_per_min=600)
    grant = await limited.acquire(Need(0, 600))
    waiting = asyncio.create_task(limited.acquire(Need(0, 500)))
    await quiet()
    began = now()

    grant.settle(0, 100)
    await waiting

    assert now() == began


# A refusal -------------------------------------------------------------------------------------------------------


async def test_nothing_starts_until_the_service_allows_and_the_longest_time_wins():
    free = buckets()
    began = now()

    free.close_until(30)
    free.close_until(5)
    for nothing in (0, -1, float("nan")):
        free.close_until(nothing)
    assert free.wait_s(ONE) == 30
    assert free.reopens_at == pytest.approx(wall_clock(asyncio.get_running_loop())() + 30)
    await free.acquire(ONE)

    assert now() - began == pytest.approx(30, abs=0.01)
    assert free.reopens_at is None
    assert timers() == 0


async def test_a_refusal_is_waited_for_at_most_an_hour():
    free = buckets()
    began = now()

    free.close_until(1e9)
    await free.acquire(ONE)

    assert now() - began == pytest.approx(3_600)


async def test_after_a_refusal_without_headers_calls_start_at_the_rate_and_not_all_at_once():
    limited = buckets(requests_per_min=60)
    began = now()

    limited.close_until(10)
    for _ in range(3):
        await limited.acquire(ONE)

    assert now() - began == pytest.approx(13, abs=0.01)


# What the service tells ------------------------------------------------------------------------------------------


async def test_limits_are_learnt_from_headers_alone():
    learning = buckets()
    grant = await learning.acquire(ONE)

    learning.learn(told(60, 0))
    grant.settle(0, 0)
    began = now()
    for _ in range(3):
        await learning.acquire(ONE)

    assert now() - began == pytest.approx(3, abs=0.01)


@pytest.mark.parametrize(("configured", "service", "left"), [(60, 20, 20), (60, 60, 60), (20, 60, 20)])
async def test_the_lower_of_both_views_counts(configured, service, left):
    limited = buckets(requests_per_min=configured)

    limited.learn(told(service, service))

    assert limited.levels()[0] == left


async def test_a_lower_count_of_the_service_counts_also_without_its_limit():
    limited = buckets(requests_per_min=60)

    limited.learn(told(None, 5))

    assert limited.levels()[0] == 5
    await asyncio.sleep(10)
    assert limited.levels()[0] == pytest.approx(15)


async def test_headers_without_a_limit_teach_nothing_where_none_is_known():
    free = buckets()

    free.learn(told(None, 0))

    assert free.wait_s(ONE) == 0


async def test_headers_do_not_know_of_calls_that_started_after_theirs():
    limited = buckets(requests_per_min=100)
    first, second, third = [await limited.acquire(ONE) for _ in range(3)]

    limited.learn(told(100, 50), grant=second)

    assert limited.levels()[0] == 49  # The third call is still to be counted, the first two are.
    for grant in (first, second):
        grant.give_back()
    assert limited.levels()[0] == 49  # The service has counted them.
    third.give_back()
    assert limited.levels()[0] == 50


async def test_the_answered_call_is_that_of_the_running_task():
    limited = buckets(input_tokens_per_min=1_000)

    async def call() -> None:
        grant = await limited.acquire(Need(900, 0))
        await asyncio.sleep(1)
        limited.learn(Allowance(input_tokens=Meter(1_000, 117)))  # It is in there: 100, and a second's refill.
        assert limited.levels()[1] == pytest.approx(100 + 1000 / 60)
        grant.settle(900, 0)

    await asyncio.create_task(call())

    assert limited.levels()[1] == pytest.approx(100 + 1000 / 60)


async def test_headers_without_a_known_call_are_taken_to_know_no_young_one():
    limited = buckets(requests_per_min=100)
    await asyncio.create_task(limited.acquire(ONE))
    await asyncio.sleep(20)
    for _ in range(2):
        await asyncio.create_task(limited.acquire(ONE))

    limited.learn(told(100, 50))

    assert limited.levels()[0] == 48


async def test_newer_headers_mend_a_view_that_was_too_low_and_older_ones_do_not_raise_it():
    limited = buckets()
    first, second = await limited.acquire(ONE), await limited.acquire(ONE)

    limited.learn(told(100, 10), grant=first)
    assert limited.levels()[0] == 9
    limited.learn(told(100, 40), grant=second)
    assert limited.levels()[0] == 40
    limited.learn(told(100, 90), grant=first)  # Overtaken on the way.
    assert limited.levels()[0] == 40


async def test_output_that_is_still_to_be_written_stays_reserved():
    learning = buckets()
    grant = await learning.acquire(Need(0, 300))

    learning.learn(Allowance(output_tokens=Meter(1_000, 1_000)), grant=grant)
    assert learning.levels()[2] == 700
    grant.settle(0, 500)

    assert learning.levels()[2] == 500


async def test_a_debt_is_not_forgotten_because_headers_say_zero():
    learning = buckets()
    learning.learn(Allowance(input_tokens=Meter(6_000, 6_000)))
    grant = await learning.acquire(Need(9_000, 0))

    learning.learn(Allowance(input_tokens=Meter(6_000, 0)), grant=grant)
    grant.settle(9_000, 0)

    assert learning.levels()[1] == -3_000


async def test_a_common_limit_of_all_tokens_counts_both_kinds():
    learning = buckets()
    learning.learn(Allowance(tokens=Meter(1_000, 1_000)))

    grant = await learning.acquire(Need(300, 200))
    assert learning.levels()[3] == 500
    grant.settle(100, 50)

    assert learning.levels()[3] == 850


async def test_good_news_start_those_who_wait():
    limited = buckets()
    limited.learn(told(60, 0))
    waiting = asyncio.create_task(limited.acquire(ONE))
    await quiet()
    began = now()

    limited.learn(told(60, 30))
    await waiting

    assert now() == began


CALLS = st.lists(st.tuples(st.sampled_from(["start", "settle", "give_back", "learn", "wait"]), st.integers(0, 50),
                           st.integers(0, 400)), max_size=60)  # fmt: skip


@given(CALLS)
def test_however_calls_and_headers_mix_no_view_rises_above_its_limit_and_everything_comes_back(actions):
    meters, time, started = Meters(RateLimits(input_tokens_per_min=600), 0.0), 0.0, []

    for action, which, amount in actions:
        match action:
            case "start":
                started.append(meters.start(Need(amount, amount), time))
            case "wait":
                time += which
            case "learn":
                answered = started[which % len(started)] if started else None
                meters.learn(Allowance(input_tokens=Meter(600, amount)), answered, time)
            case _ if started:
                used = (1, amount, amount) if action == "settle" else (0, 0, 0)
                meters.end(started.pop(which % len(started)), *used, time)
        left = meters.levels(time)[1]
        assert left is not None
        assert left <= 600
    for reservation in started:
        meters.end(reservation, 0, 0, 0, time)

    assert meters.open_calls == 0
    assert meters.levels(time + 1e6)[1] == 600
