"""Stand-in, replaced at the merge."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import msgspec

from understudy.endpoint.model import Allowance


class RateLimits(msgspec.Struct, frozen=True, kw_only=True):
    """What one minute allows; None where nobody knows."""

    requests_per_min: int | None = None
    input_tokens_per_min: int | None = None
    output_tokens_per_min: int | None = None


class Need(msgspec.Struct, frozen=True):
    """What a call may take."""

    input_tokens: int
    output_tokens: int


class Grant:
    """What a call has taken."""

    def __init__(self, buckets: Buckets) -> None:
        self._buckets = buckets
        self._ended = False

    def settle(self, input_tokens: int, output_tokens: int) -> None:
        """Book what it has used."""
        if not self._ended:
            self._ended = True
            self._buckets.open_calls -= 1

    def give_back(self) -> None:
        """Book nothing."""
        self.settle(0, 0)


class Buckets:
    """Closed until some time, else open."""

    def __init__(self, limits: RateLimits, *, clock: Callable[[], float], wall: Callable[[], float]) -> None:
        self._clock = clock
        self._until = 0.0
        self.open_calls = 0

    async def acquire(self, need: Need) -> Grant:
        """Wait until it is open."""
        while (left_s := self._until - self._clock()) > 0:  # noqa: ASYNC110
            await asyncio.sleep(left_s)
        self.open_calls += 1
        return Grant(self)

    def learn(self, allowance: Allowance, *, grant: Grant | None = None) -> None:
        """Take note of what the service says."""

    def close_until(self, seconds: float) -> None:
        """Grant nothing for so long."""
        self._until = max(self._until, self._clock() + seconds)
