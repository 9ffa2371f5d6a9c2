"""How many restarts are too many: OTP's sliding window, counted in the order of its reference implementation."""

from __future__ import annotations

from collections import deque


class RestartWindow:
    """The restarts of one supervisor, or the bad endings of one actor, within the last `within_s` seconds.

    As in OTP's supervisor: stamps of at least `now - within_s` are kept, so the bound is inclusive; one entry more than
    `max_restarts` means give up, so 0 allows none. Stamps come from a monotonic clock.
    """

    __slots__ = ("_stamps", "max_restarts", "within_s")

    def __init__(self, max_restarts: int, within_s: float) -> None:
        self.max_restarts = max_restarts
        self.within_s = within_s
        self._stamps: deque[float] = deque()  # oldest first

    def note(self, now_s: float) -> bool:
        """Count an entry; return whether that many are allowed."""
        self._forget(now_s)
        self._stamps.append(now_s)
        return len(self._stamps) <= self.max_restarts

    def count(self, now_s: float) -> int:
        """Return how many entries lie within the window."""
        self._forget(now_s)
        return len(self._stamps)

    def _forget(self, now_s: float) -> None:
        while self._stamps and not self._stamps[0] >= now_s - self.within_s:
            self._stamps.popleft()
