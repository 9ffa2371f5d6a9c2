from __future__ import annotations

import asyncio
import threading
import time

import pytest

from benchmarks.load import measure, measure_blocking, summary
from benchmarks.sample import QUANTILES, NotMeasured, Sample


def _check(samples: list[Sample]) -> None:
    rate, middle, late = samples
    assert [(each.figure, each.unit) for each in samples] == [("rate", "/s"), ("p50", "µs"), ("p99", "µs")]
    assert 0 < middle.value <= late.value
    assert len(middle.quantiles) == len(QUANTILES)
    assert list(middle.quantiles) == sorted(middle.quantiles)
    assert rate.value > 0


def test_callers_each_repeat_their_own_call():
    called: set[int] = set()

    async def call(number: int) -> None:
        called.add(number)
        await asyncio.sleep(0)

    samples = asyncio.run(measure(call, callers=5, seconds=0.01))

    assert called == {0, 1, 2, 3, 4}
    _check(samples)


def test_blocking_callers_call_at_the_same_time_and_count_once_all_have_had_an_answer():
    together = threading.Barrier(5)
    called: set[int] = set()

    def call(number: int) -> None:
        if number not in called:
            called.add(number)
            together.wait(timeout=30)
            time.sleep(0.2)
        time.sleep(0.0001)

    samples = measure_blocking(call, callers=5, seconds=0.05)

    _check(samples)
    (latest,) = (each.value for each in samples if each.figure == "p99")
    assert latest < 200_000


def test_a_blocking_call_that_gets_no_turn_in_the_time_of_the_sample_is_its_slowest():
    calls: dict[int, int] = {0: 0, 1: 0}

    def call(number: int) -> None:
        calls[number] += 1
        time.sleep(0.4 if number == 0 and calls[number] > 10 else 0.001)

    samples = measure_blocking(call, callers=2, seconds=0.1)

    slowest = next(each for each in samples if each.figure == "p50").quantiles[-1]
    assert slowest >= 400_000


def test_a_sample_without_a_call_says_so():
    with pytest.raises(NotMeasured, match="no call"):
        summary([], 0.0)


@pytest.mark.parametrize("calls_before", [0, 30])
def test_an_error_of_a_blocking_call_ends_the_measurement(calls_before):
    calls = 0

    def call(_number: int) -> None:
        nonlocal calls
        calls += 1
        if calls > calls_before:
            raise ValueError("the call failed")

    with pytest.raises(ValueError, match="the call failed"):
        measure_blocking(call, callers=2, seconds=0.01)
