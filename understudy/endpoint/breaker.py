"""The circuit breaker before one model: it opens when calls fail, and lets one probe through to see whether they still do.

Looks at a window of time and not at a number of calls, so that a quiet night's failures do not close the day. Counts in
time buckets, so that its memory does not grow with the traffic. What began before the last change of state counts no
more. Decides only, by a clock that it is given: who waits, and what is sent, is the guard's business.
"""

from __future__ import annotations

import math
import random
from collections import deque
from collections.abc import Callable
from typing import Literal, TypeGuard

import msgspec

from understudy.errors import InvalidDefinition

State = Literal["closed", "open", "half_open"]

# The window moves on by a tenth of itself: finer says no more about an outage, coarser forgets in jerks.
_BUCKETS = 10
# Enough that a hundred processes that saw the same outage do not all probe in the same instant.
_JITTER = 0.1


class Breaker(msgspec.Struct, frozen=True, kw_only=True):
    """When calls to a model are held back, and for how long; give it to `Endpoint(breaker=...)`.

    Opens when at least `calls_min` calls of the last `window_s` seconds have ended and the share `failure_rate` of them
    failed, or the share `slow_rate` took `slow_s` or longer (None: however long they take, as an answer may be long).
    Stays open for `open_s`, twice as long each time that it opens again, at most `open_max_s`.
    """

    window_s: float = 30.0
    failure_rate: float = 0.5
    calls_min: int = 10  # fewer say little: two failures of three calls are bad luck
    slow_s: float | None = None
    slow_rate: float = 0.8
    open_s: float = 5.0
    open_max_s: float = 60.0

    def __post_init__(self) -> None:
        wrong = [
            f"{name}={value!r} (expected {expected})"
            for name, value, expected, ok in (
                ("window_s", self.window_s, "seconds, more than 0", _positive(self.window_s)),
                ("failure_rate", self.failure_rate, "a share, more than 0, at most 1", _share(self.failure_rate)),
                ("calls_min", self.calls_min, "a whole number of calls, 1 or more", _count(self.calls_min)),
                ("slow_s", self.slow_s, "seconds, more than 0, or None", self.slow_s is None or _positive(self.slow_s)),
                ("slow_rate", self.slow_rate, "a share, more than 0, at most 1", _share(self.slow_rate)),
                ("open_s", self.open_s, "seconds, more than 0", _positive(self.open_s)),
                ("open_max_s", self.open_max_s, "seconds, more than 0", _positive(self.open_max_s)),
            )
            if not ok
        ]
        if not wrong and self.open_max_s < self.open_s:
            wrong.append(f"open_max_s={self.open_max_s!r} (expected no less than open_s={self.open_s!r})")
        if wrong:
            raise InvalidDefinition(f"Breaker is out of range: {', '.join(wrong)}.")


class Pass:
    """The permission for one call, to be given back with how it ended. A probe's is its own, the others share one."""

    __slots__ = ("is_probe",)

    def __init__(self, *, is_probe: bool) -> None:
        self.is_probe = is_probe


class Change(msgspec.Struct, frozen=True):
    """A breaker has changed its state; `open_s` says for how long it lets nothing through."""

    state: State
    reason: str
    open_s: float = 0.0


class _Bucket:
    """What ended within one tenth of the window."""

    __slots__ = ("calls", "failures", "number", "slow")

    def __init__(self, number: int) -> None:
        self.number = number
        self.calls = self.failures = self.slow = 0


class BreakerState:
    """What one breaker knows. *clock* tells monotonic seconds, *dice* 0 to 1, *changed* hears of each change of state."""

    def __init__(
        self,
        settings: Breaker,
        clock: Callable[[], float],
        *,
        dice: Callable[[], float] = random.random,
        changed: Callable[[Change], None] = lambda _change: None,
    ) -> None:
        self.settings = settings
        self.state: State = "closed"
        self.until = 0.0  # when it is open: the time from which on a probe may go
        self.calls = self.failures = self.slow = 0  # of the window
        self._clock = clock
        self._dice = dice
        self._changed = changed
        self._buckets: deque[_Bucket] = deque()
        self._pass = Pass(is_probe=False)  # of everything sent since it closed
        self._probe: Pass | None = None  # under way
        self._openings = 0  # in a row, without a whole window closed in between
        self._closed_at = -math.inf

    @property
    def is_probing(self) -> bool:
        """Whether a probe is under way: its outcome is worth waiting for."""
        return self._probe is not None

    @property
    def blocked_s(self) -> float:
        """For how many seconds from now nothing is let through; 0 when a call or a probe may go."""
        return max(0.0, self.until - self._clock()) if self.state == "open" else 0.0

    def admit(self) -> Pass | None:
        """Return the permission for a call, or None: then it is open (see `blocked_s`) or a probe is under way."""
        if self.state == "closed":
            return self._pass
        if self._probe is not None or (self.state == "open" and self._clock() < self.until):
            return None
        self._probe = Pass(is_probe=True)
        if self.state == "open":
            self._change("half_open", "one probe goes")
        return self._probe

    def succeeded(self, permission: Pass, duration_s: float) -> None:
        """Take note that a call was answered, so long after it was sent."""
        is_slow = self._is_slow(duration_s)
        if permission is self._probe:
            self._probe = None
            if is_slow:
                self._open(f"the probe took {duration_s:.3g} s, no less than slow_s={self.settings.slow_s:g}")
            else:
                self._close()
        elif permission is self._pass and self.state == "closed":
            self._count(failed=False, slow=is_slow)

    def failed(self, permission: Pass, duration_s: float, why: str) -> None:
        """Take note that a call failed in a way that speaks against the service; *why* is for people."""
        if permission is self._probe:
            self._probe = None
            self._open(f"the probe failed: {why}")
        elif permission is self._pass and self.state == "closed":
            self._count(failed=True, slow=self._is_slow(duration_s))

    def dropped(self, permission: Pass) -> None:
        """Take note that a call says nothing: cancelled, never sent, or failed by its own fault. A probe's place is free."""
        if permission is self._probe:
            self._probe = None

    def expire(self) -> None:
        """Forget what lies outside the window, for who reads the counts."""
        self._expire(self._number())

    def _is_slow(self, duration_s: float) -> bool:
        return self.settings.slow_s is not None and duration_s >= self.settings.slow_s

    def _number(self) -> int:
        return int(self._clock() * _BUCKETS / self.settings.window_s)

    def _count(self, *, failed: bool, slow: bool) -> None:
        number = self._number()
        buckets = self._buckets
        if not buckets or buckets[-1].number != number:
            self._expire(number)
            buckets.append(_Bucket(number))
        bucket = buckets[-1]
        bucket.calls += 1
        self.calls += 1
        if failed:
            bucket.failures += 1
            self.failures += 1
        if slow:
            bucket.slow += 1
            self.slow += 1
        settings = self.settings
        if (failed or slow) and self.calls >= settings.calls_min:
            if _reaches(self.failures, settings.failure_rate, self.calls):
                self._open(f"{self.failures} of {self.calls} calls failed within {settings.window_s:g} s")
            elif _reaches(self.slow, settings.slow_rate, self.calls):
                self._open(f"{self.slow} of {self.calls} calls took {settings.slow_s:g} s or longer")

    def _expire(self, number: int) -> None:
        buckets = self._buckets
        while buckets and buckets[0].number <= number - _BUCKETS:
            old = buckets.popleft()
            self.calls -= old.calls
            self.failures -= old.failures
            self.slow -= old.slow

    def _open(self, reason: str) -> None:
        settings = self.settings
        if self.state == "closed" and self._clock() - self._closed_at >= settings.window_s:
            self._openings = 0  # It was well for a whole window: this is another outage.
        # The exponent is bounded: a week of probes must not overflow.
        open_s = min(settings.open_s * 2.0 ** min(self._openings, 1000), settings.open_max_s)
        self._openings += 1
        open_s *= 1.0 + _JITTER * (2.0 * self._dice() - 1.0)
        open_s = min(open_s, settings.open_max_s)
        self.until = self._clock() + open_s
        self._pass = Pass(is_probe=False)  # What was sent before says nothing about the time after.
        self._forget()
        self._change("open", reason, open_s)

    def _close(self) -> None:
        self._closed_at = self._clock()
        self._forget()
        self._change("closed", "the probe succeeded")

    def _forget(self) -> None:
        self._buckets.clear()
        self.calls = self.failures = self.slow = 0

    def _change(self, state: State, reason: str, open_s: float = 0.0) -> None:
        self.state = state
        self._changed(Change(state, reason, open_s))


def _reaches(part: int, share: float, whole: int) -> bool:
    return part >= share * whole - 1e-9  # 0.7 of 10 is 7, whatever the binary numbers say


def _positive(value: object) -> bool:
    return _is_number(value) and 0 < value < math.inf


def _share(value: object) -> bool:
    return _is_number(value) and 0 < value <= 1


def _count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def _is_number(value: object) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool)
