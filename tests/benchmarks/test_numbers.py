from __future__ import annotations

import pytest

from benchmarks.reporting.comparison import times
from benchmarks.reporting.numbers import amount, number, span, tick


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (123_456.7, "123,000"), (999.7, "1,000"), (99.96, "100"), (12.345, "12.3"), (1.0, "1.00"), (0.012345, "0.0123"),
        (0, "0"), (-0.27, "-0.270"), (3e-8, "3.0e-08"), (float("nan"), "–"),
    ],
)  # fmt: skip
def test_numbers_have_three_digits_that_count(value, text):
    assert number(value) == text


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (588.9, "µs", "589 µs"), (4_650, "µs", "4.65 ms"), (999.8, "µs", "1.00 ms"), (0.0071, "s", "7.10 ms"), (105, "s", "105 s"),
        (26_543, "/s", "26,500/s"), (1_509, "bytes", "1,510 bytes"), (-0.108, "bytes", "0 bytes"), (43.3e6, "bytes", "43.3 MB"), (0.5, "", "0.500"),
        (725.5, "µs of work", "726 µs of work"), (0, "s", "0 µs"), (7, "turns", "7.00 turns"),
    ],
)  # fmt: skip
def test_units_fit_the_size(value, unit, text):
    assert amount(value, unit) == text


@pytest.mark.parametrize(
    ("low", "high", "unit", "text"),
    [
        (4_650, 5_100, "µs", "4.65..5.10 ms"), (900, 1_200, "µs", "900 µs..1.20 ms"), (10_000, 20_000, "/s", "10,000..20,000/s"),
        (2, 2, "s", "2.00 s"),
    ],
)  # fmt: skip
def test_a_span_names_its_unit_once(low, high, unit, text):
    assert span(low, high, unit) == text


@pytest.mark.parametrize(("value", "text"), [(216.4, "216 ×"), (6.02, "6.0 ×"), (0.27, "0.27 ×"), (0.05, "1/20")])
def test_ratios_are_told_as_people_say_them(value, text):
    assert times(value) == text


@pytest.mark.parametrize(("value", "text"), [(0.01, "10 ms"), (0.0025, "2.5 ms"), (100, "100 s"), (0, "0")])
def test_axes_have_no_zeros_at_the_end(value, text):
    assert tick(value, "s") == text
