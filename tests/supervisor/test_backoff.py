"""Waits between attempts: never negative, never above the cap, growing without jitter."""

from __future__ import annotations

import math

from hypothesis import given, strategies as st

from understudy import Backoff

seconds = st.floats(0, 1e6)
backoffs = st.builds(
    Backoff,
    base_s=seconds,
    max_s=seconds,
    factor=st.floats(1, 1e6),
    jitter=st.floats(0, 1),
)
attempts = st.integers(1, 10_000)


def test_wait_doubles_until_the_cap() -> None:
    backoff = Backoff(1.0, max_s=10.0, jitter=0.0)

    assert [backoff.delay_s(attempt) for attempt in range(1, 7)] == [1.0, 2.0, 4.0, 8.0, 10.0, 10.0]


def test_jitter_spreads_by_its_share_to_both_sides() -> None:
    backoff = Backoff(10.0, max_s=100.0, jitter=0.5)

    assert (backoff.delay_s(1, -1.0), backoff.delay_s(1, 0.0), backoff.delay_s(1, 1.0)) == (5.0, 10.0, 15.0)


@given(backoffs, attempts, st.one_of(st.none(), st.floats(-1, 1)))
def test_wait_is_never_negative_and_never_above_the_cap(backoff: Backoff, attempt: int, spread: float | None) -> None:
    delay_s = backoff.delay_s(attempt, spread)

    assert 0 <= delay_s <= backoff.max_s
    assert not math.isnan(delay_s)


@given(backoffs, attempts)
def test_wait_never_shrinks_without_jitter(backoff: Backoff, attempt: int) -> None:
    assert backoff.delay_s(attempt, 0.0) <= backoff.delay_s(attempt + 1, 0.0)
