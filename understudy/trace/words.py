"""How a trace says things: durations, money, tokens, errors, and text of strangers made fit for one line."""

from __future__ import annotations

import re
from typing import Final

from understudy import errors

_MINUTE_S: Final = 60
_HOUR_S: Final = 3600
_DAY_S: Final = 86400


def duration(seconds: float) -> str:
    """Return *seconds* as a person reads it: 45 ms, 2.4 s, 3 min 12 s, 2 h 5 min, 3 d 4 h."""
    seconds = max(seconds, 0.0)
    if seconds < 0.0095:
        return f"{seconds * 1000:.1f} ms" if seconds >= 0.00095 else "<1 ms"
    if seconds < 0.9995:
        return f"{seconds * 1000:.0f} ms"
    if seconds < 59.95:
        return f"{seconds:.3g} s"
    whole = round(seconds)
    if whole < _HOUR_S:
        return f"{whole // _MINUTE_S} min {whole % _MINUTE_S} s"
    if whole < _DAY_S:
        return f"{whole // _HOUR_S} h {whole % _HOUR_S // _MINUTE_S} min"
    return f"{whole // _DAY_S} d {whole % _DAY_S // _HOUR_S} h"


def money(usd_micros: int) -> str:
    """Return micro-dollars as dollars, with as many places as tell the amount: $12.50, $0.042, $0.00031."""
    if usd_micros == 0:
        return "$0"
    if abs(usd_micros) >= 999_500:
        return f"${usd_micros / 1e6:,.2f}"
    if abs(usd_micros) >= 9_995:
        return f"${usd_micros / 1e6:.3f}"
    # Two significant digits: a cheap call must not look free.
    return "$" + f"{usd_micros / 1e6:.{6 if abs(usd_micros) < 100 else 5 if abs(usd_micros) < 1000 else 4}f}".rstrip(
        "0"
    )


def cost(usd_micros: int, *, is_unknown: bool) -> str:
    """Return the known part of a cost and a question mark for the rest; nothing when nothing was spent."""
    if is_unknown:
        return f"{money(usd_micros)} + $?" if usd_micros else "$?"
    return money(usd_micros) if usd_micros else ""


def tokens(read: int, written: int) -> str:
    """Return 4,200 in / 890 out."""
    return f"{read:,} in / {written:,} out"


def count(number: int, noun: str, plural: str = "") -> str:
    """Return 1 retry, 2 retries."""
    return f"{number:,} {noun if number == 1 else plural or noun + 's'}"


def times(number: int) -> str:
    """Return once, twice, 3 times."""
    return {1: "once", 2: "twice"}.get(number, f"{number} times")


def error(name: str) -> str:
    """Return the name of an error as it is shown: failures of the model endpoint in plain words, others by their type."""
    short = name.rpartition(".")[2]
    known = getattr(errors, short, None)
    if isinstance(known, type) and issubclass(known, errors.ModelFailure):
        return re.sub(r"(?<!^)(?=[A-Z])", " ", short).lower()
    return short


def one_line(text: str, length_max: int = 400) -> str:
    """Return *text* on one line, without characters that would command the terminal."""
    # A message of an error may be a whole HTML page; the first part tells what it is.
    cut = text[: length_max * 4]
    line = " ".join("".join(each if each.isprintable() else " " for each in cut).split())
    return line if len(line) <= length_max else line[: length_max - 1].rstrip() + "…"
