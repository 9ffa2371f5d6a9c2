"""One token bucket as plain arithmetic: it fills evenly, and what is taken may put it into debt.

Knows no clock and no queue: every question names the time it is asked at.
"""

from __future__ import annotations

# Sums of floats miss by less than this. One thousandth of a token or request is nobody's rate limit.
TOLERANCE = 1e-3


class Bucket:
    """Holds at most `capacity` and gains `per_s` each second; starts full.

    A wish above the capacity waits for the full bucket and then goes into debt, so that no wish is refused for ever.
    """

    __slots__ = ("_at", "_level", "capacity", "per_s")

    def __init__(self, capacity: float, per_s: float, now: float) -> None:
        self.capacity = capacity
        self.per_s = per_s
        self._level = capacity
        self._at = now

    def level(self, now: float) -> float:
        """Return what is there; below zero it is debt."""
        # A time before the last one (a pause, a clock that stepped back) adds nothing.
        return min(self.capacity, self._level + self.per_s * max(0.0, now - self._at))

    def take(self, amount: float, now: float) -> None:
        """Take *amount*, whether it is there or not."""
        self.put(self.level(now) - amount, now)

    def refund(self, amount: float, now: float) -> None:
        """Put *amount* back; a negative one is a further debit. What does not fit is lost, as refill is."""
        self.put(self.level(now) + amount, now)

    def put(self, level: float, now: float) -> None:
        """Set the level; what does not fit is lost."""
        self._level = level  # `level` caps it.
        self._at = max(self._at, now)

    def resize(self, capacity: float, per_s: float, now: float) -> None:
        """Change the size and the rate from now on; what is there stays, as far as it fits."""
        level = self.level(now)
        self.capacity, self.per_s = capacity, per_s
        self.put(level, now)

    def pause(self, until: float, now: float) -> None:
        """Gain nothing until then; the longest pause wins."""
        self.put(self.level(now), now)
        self._at = max(self._at, until)

    def wait_s(self, amount: float, now: float, *, ahead: float = 0.0) -> float:
        """Return the seconds until *amount* may be taken, once *ahead* was taken before it."""
        missing = min(amount, self.capacity) - (self.level(now) - ahead)
        return missing / self.per_s + max(0.0, self._at - now) if missing > TOLERANCE else 0.0
