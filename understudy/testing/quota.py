"""The rate limits of the fake service: token buckets that refill with the loop's time, and the headers about them.

Written apart from the library's own limiter, so that one mistake cannot hide in both.
"""

from __future__ import annotations

import asyncio
import math
from datetime import UTC, datetime
from typing import Final

from understudy.clock import wall_clock
from understudy.endpoint.estimates import family_of
from understudy.endpoint.rates import RateLimits

_SLACK: Final = 1e-6  # Sums of floats: a caller that waits exactly as long as it should is not refused.


class Quotas:
    """The limits of one key: each model family has its own buckets."""

    def __init__(self, limits: RateLimits | None, *, told: bool) -> None:
        self._limits = limits
        self._told = told
        self._families: dict[str, _Family] = {}

    def admit(self, model: str, input_tokens: int) -> float | None:
        """Count a request that arrives; or return after how many seconds it may come again, and count nothing."""
        family = self._family(model)
        return None if family is None else family.admit(input_tokens)

    def spend(self, model: str, input_tokens: int, output_tokens: int) -> None:
        """Count what an answer used beyond what was counted when its request arrived."""
        family = self._family(model)
        if family is not None:
            family.spend(input_tokens, output_tokens)

    def headers(self, model: str) -> dict[str, str]:
        """Return the headers of an answer that is sent now."""
        family = self._family(model) if self._told else None
        return {} if family is None else family.headers()

    def _family(self, model: str) -> _Family | None:
        if self._limits is None:
            return None
        name = family_of(model)
        if name not in self._families:
            self._families[name] = _Family(self._limits, asyncio.get_running_loop())
        return self._families[name]


class _Family:
    def __init__(self, limits: RateLimits, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._buckets = {
            name: _Bucket(per_min, per_min * limits.burst_s / 60.0)
            for name, per_min in (
                ("requests", limits.requests_per_min),
                ("input-tokens", limits.input_tokens_per_min),
                ("output-tokens", limits.output_tokens_per_min),
            )
            if per_min is not None
        }
        self._at = loop.time()

    def admit(self, input_tokens: int) -> float | None:
        self._refill()
        # Nobody knows yet how much will be written: whoever has any output left may begin.
        wanted = {"requests": 1.0, "input-tokens": float(input_tokens), "output-tokens": 1.0}
        wait_s = max((bucket.wait_s(wanted[name]) for name, bucket in self._buckets.items()), default=0.0)
        if wait_s > 0:
            return float(math.ceil(wait_s))
        self._take("requests", 1)
        self._take("input-tokens", input_tokens)
        return None

    def spend(self, input_tokens: int, output_tokens: int) -> None:
        self._refill()
        self._take("input-tokens", input_tokens)
        self._take("output-tokens", output_tokens)

    def headers(self) -> dict[str, str]:
        self._refill()
        told = dict(self._buckets)
        if "input-tokens" in told and "output-tokens" in told:
            told["tokens"] = _sum(told["input-tokens"], told["output-tokens"])
        wall = wall_clock(self._loop)()
        return {
            f"anthropic-ratelimit-{name}-{field}": value
            for name, bucket in told.items()
            for field, value in bucket.told(wall).items()
        }

    def _take(self, name: str, amount: float) -> None:
        if name in self._buckets:
            bucket = self._buckets[name]
            bucket.level = min(bucket.capacity, bucket.level - amount)

    def _refill(self) -> None:
        now = self._loop.time()
        for bucket in self._buckets.values():
            bucket.level = min(bucket.capacity, bucket.level + bucket.per_min / 60.0 * (now - self._at))
        self._at = now


class _Bucket:
    def __init__(self, per_min: float, capacity: float) -> None:
        self.per_min = per_min
        self.capacity = capacity
        self.level = capacity

    def wait_s(self, amount: float) -> float:
        """Seconds until *amount* is there; a request above the capacity waits for the full bucket."""
        missing = min(amount, self.capacity) - self.level
        return missing * 60.0 / self.per_min if missing > _SLACK else 0.0

    def told(self, wall: float) -> dict[str, str]:
        full_at = wall + (self.capacity - self.level) * 60.0 / self.per_min
        return {
            "limit": str(round(self.per_min)),
            "remaining": str(max(0, math.floor(self.level + _SLACK))),
            "reset": datetime.fromtimestamp(math.ceil(full_at), UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        }


def _sum(first: _Bucket, second: _Bucket) -> _Bucket:
    both = _Bucket(first.per_min + second.per_min, first.capacity + second.capacity)
    both.level = max(0.0, first.level) + max(0.0, second.level)
    return both
