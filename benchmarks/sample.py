"""What a measurement gives. Nothing here, in `load` and in `flushes` needs more than Python: peers run them as well."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

# Where the times of single calls are kept; fine enough to draw a distribution, and a few hundred bytes per sample.
QUANTILES = (*(percent / 40 for percent in range(40)), 0.99, 0.995, 0.999, 1.0)


class Sample(NamedTuple):
    """One measured value of one contender."""

    figure: str
    unit: str
    value: float
    quantiles: Sequence[float] = ()  # of the times that *value* stands for, at QUANTILES


class NotMeasured(Exception):
    """A contender that cannot be measured here; the text is the reason that the report gives."""


def quantiles(times: list[float]) -> list[float]:
    """Return the values of the sorted *times* at QUANTILES, to four digits."""
    last = len(times) - 1
    return [float(f"{times[round(at * last)]:.4g}") for at in QUANTILES]
