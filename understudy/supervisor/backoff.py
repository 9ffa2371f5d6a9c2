"""How long to wait before the next attempt."""

from __future__ import annotations

import random

import msgspec

from understudy.errors import InvalidDefinition

_HUGE_S = 1e300  # finite, so that the jitter can make it neither infinite nor NaN


class Backoff(msgspec.Struct, frozen=True):
    """Exponential backoff: `base_s * factor**n`, spread by `jitter` (a share, 0 to 1), never above `max_s`.

    The cap is applied after the jitter, so that `max_s` is a promise.
    """

    base_s: float
    max_s: float = 60.0
    factor: float = 2.0
    jitter: float = 0.1

    def __post_init__(self) -> None:
        wrong = [
            f"{name}={value} (expected {expected})"
            for name, value, expected, ok in (
                ("base_s", self.base_s, "0 or more", self.base_s >= 0),
                ("max_s", self.max_s, "0 or more", self.max_s >= 0),
                ("factor", self.factor, "1 or more", self.factor >= 1),
                ("jitter", self.jitter, "0 to 1", 0 <= self.jitter <= 1),
            )
            if not ok
        ]
        if wrong:
            raise InvalidDefinition(f"Backoff is out of range: {', '.join(wrong)}.")

    def delay_s(self, attempt: int, spread: float | None = None) -> float:
        """Return the wait after failed attempt number *attempt* (from 1); *spread* in -1..1 replaces the dice."""
        if spread is None:
            spread = random.uniform(-1.0, 1.0)
        try:
            grown_s = min(self.base_s * self.factor ** (attempt - 1), _HUGE_S)
        except OverflowError:
            grown_s = _HUGE_S if self.base_s else 0.0
        return max(0.0, min(self.max_s, grown_s * (1.0 + self.jitter * spread)))
