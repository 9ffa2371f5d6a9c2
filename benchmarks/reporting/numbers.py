"""Numbers as people read them: three digits that count, and units that fit the size."""

from __future__ import annotations

import math
import re

_SECONDS = {"ns": 1e-9, "µs": 1e-6, "ms": 1e-3, "s": 1.0}
_ZEROS = re.compile(r"\.0+(?!\d)|(\.\d*[1-9])0+(?!\d)")


def number(value: float, digits: int = 3) -> str:
    """Return *value* with so many significant digits; the whole part is never cut short of its size."""
    if not math.isfinite(value):
        return "–"
    if value == 0:
        return "0"
    size = math.floor(math.log10(abs(value)))
    rounded = round(value, digits - 1 - size)
    if abs(rounded) < 1e-5:
        return f"{rounded:.1e}"
    # Rounding may have made it a digit longer: 99.96 is 100, not 100.0.
    return f"{rounded:,.{max(0, digits - 1 - math.floor(math.log10(abs(rounded))))}f}"


def amount(value: float, unit: str) -> str:
    """Return *value* with its unit, e.g. 4.65 ms, 1,510 bytes, 43.3 MB, 26,500/s."""
    first, _, rest = unit.partition(" ")
    rest = f" {rest}" if rest else ""
    if first in _SECONDS:
        return _time(value * _SECONDS[first]) + rest
    if first in {"bytes", "B"}:
        return _size(value) + rest
    return f"{number(value)}{unit}" if unit.startswith("/") else f"{number(value)} {unit}".rstrip()


def tick(value: float, unit: str) -> str:
    """Return *value* for an axis: as `amount`, without zeros at the end."""
    return _ZEROS.sub(r"\1", amount(value, unit)) if value else "0"


def span(low: float, high: float, unit: str) -> str:
    """Return both ends with the unit once, where it is the same: 4.65..5.1 ms; one end, where there is but one."""
    if low == high:
        return amount(low, unit)
    first, last = amount(low, unit), amount(high, unit)
    if unit.startswith("/"):
        return f"{first.removesuffix(unit)}..{last}"
    shown, _, of_first = first.partition(" ")
    if of_first == last.partition(" ")[2]:
        return f"{shown}..{last}"
    return f"{first}..{last}"


def _time(seconds: float) -> str:
    for unit, size in (("s", 1.0), ("ms", 1e-3)):
        # The smaller unit is taken up to 999.5 of it, which would be shown as 1,000.
        if abs(seconds) >= size * 0.9995:
            return f"{number(seconds / size)} {unit}"
    return f"{number(seconds / 1e-6)} µs"


def _size(count: float) -> str:
    # Up to ten thousand the bytes themselves are what people compare.
    for unit, size, least in (("GB", 1e9, 1e9), ("MB", 1e6, 1e6), ("kB", 1e3, 1e4)):
        if abs(count) >= least:
            return f"{number(count / size)} {unit}"
    # Less than a byte each is what the measurement itself leaves or frees.
    return f"{number(count) if abs(count) >= 100 else round(count)} bytes"
