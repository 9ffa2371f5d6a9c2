"""The restart window against the sentence that defines it, written down a second time with a list, newest first."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, strategies as st

from understudy.supervisor.intensity import RestartWindow


class Sentence:
    """Keep the stamps with `stamp >= now - within_s`, prepend now; more than `max_restarts` entries: give up."""

    def __init__(self, max_restarts: int, within_s: float) -> None:
        self.max_restarts = max_restarts
        self.within_s = within_s
        self.stamps: list[float] = []

    def note(self, now: float) -> bool:
        self.stamps = [now, *(stamp for stamp in self.stamps if stamp >= now - self.within_s)]
        return len(self.stamps) <= self.max_restarts

    def count(self, now: float) -> int:
        return len([stamp for stamp in self.stamps if stamp >= now - self.within_s])


# Steps of quarters meet the bound exactly, again and again; the others come close to it from both sides.
QUARTERS = st.integers(0, 24).map(lambda quarters: quarters / 4)
STEPS = st.one_of(QUARTERS, st.floats(0.0, 6.0, allow_nan=False), st.just(math.ulp(5.0)))
WINDOWS = st.one_of(st.integers(1, 24).map(lambda quarters: quarters / 4), st.floats(1e-6, 10.0))
STARTS = st.one_of(st.just(0.0), st.floats(-1e6, 1e9))


@given(st.integers(0, 6), WINDOWS, STARTS, st.lists(st.tuples(STEPS, st.booleans()), max_size=60))
def test_window_decides_as_the_sentence_says(
    max_restarts: int, within_s: float, now: float, steps: list[tuple[float, bool]]
) -> None:
    window = RestartWindow(max_restarts, within_s)
    sentence = Sentence(max_restarts, within_s)

    for step, asks in steps:
        now += step
        if asks:  # Asking in between changes nothing.
            assert window.count(now) == sentence.count(now)
        assert window.note(now) == sentence.note(now)
        assert window.count(now) == sentence.count(now) == len(sentence.stamps)


@given(st.integers(0, 50), WINDOWS, STARTS)
def test_window_allows_max_restarts_at_one_moment_and_no_more(max_restarts: int, within_s: float, now: float) -> None:
    window = RestartWindow(max_restarts, within_s)

    assert [window.note(now) for _ in range(max_restarts + 2)] == [True] * max_restarts + [False, False]


@given(st.integers(1, 6), st.integers(1, 24), st.integers(0, 1000))
def test_bound_is_inclusive_at_exactly_within_s_and_not_a_moment_later(
    max_restarts: int, quarters: int, began: int
) -> None:
    within_s = quarters / 4
    at_the_bound, behind_it = (RestartWindow(max_restarts, within_s) for _ in range(2))
    for window in (at_the_bound, behind_it):
        assert all(window.note(float(began)) for _ in range(max_restarts))

    assert not at_the_bound.note(began + within_s)
    assert behind_it.note(math.nextafter(began + within_s, math.inf))


@given(WINDOWS, STARTS, st.lists(STEPS, max_size=20))
def test_zero_allows_no_restart_however_long_ago_the_last_one_was(
    within_s: float, now: float, steps: list[float]
) -> None:
    window = RestartWindow(0, within_s)

    assert not any(window.note(now + within_s * 10 * number + step) for number, step in enumerate(steps))


@given(st.integers(1, 5), st.integers(1, 24), st.integers(0, 50))
def test_entries_leave_one_after_the_other_and_the_window_never_grows_beyond_what_it_holds(
    max_restarts: int, quarters: int, rounds: int
) -> None:
    within_s = quarters / 4
    window = RestartWindow(max_restarts, within_s)
    gap = within_s / max_restarts * 1.01  # so many never lie within one window

    assert all(window.note(number * gap) for number in range(rounds))
    assert window.count(rounds * gap) <= max_restarts


@pytest.mark.parametrize("refused", [1, 5])
def test_entry_that_is_refused_is_an_entry_too(refused: int) -> None:
    window = RestartWindow(1, 5.0)
    assert window.note(0.0)

    assert not any(window.note(4.0 + number / 8) for number in range(refused))
    assert not window.note(8.0)  # the first has left, the refused ones have not
