"""What belongs to one model family on one event loop: its breaker and its rates.

A service is overloaded model by model, and counts its limits model by model, so a family's trouble is its own.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import UTC, datetime

from understudy.clock import wall_clock
from understudy.endpoint.breaker import Breaker, BreakerState, Change, Pass
from understudy.endpoint.estimates import Estimator
from understudy.endpoint.rates import Buckets, RateLimits
from understudy.errors import EndpointUnavailable


class Lane:
    """The breaker and the rate buckets of one model family; *changed* hears of the breaker."""

    def __init__(
        self,
        model: str,
        breaker: Breaker,
        rates: RateLimits,
        loop: asyncio.AbstractEventLoop,
        changed: Callable[[str, Change], None],
    ) -> None:
        self.model = model
        self.wall = wall_clock(loop)
        self.buckets = Buckets(rates, clock=loop.time, wall=self.wall)
        self.estimator = Estimator()
        self.breaker = BreakerState(breaker, loop.time, changed=self._breaker_changed)
        self.waiting = 0
        self.in_flight = 0
        self._tell = changed
        self._why = ""
        self._probe_ended = asyncio.Event()

    async def enter(self) -> Pass:
        """Return the permission for a call; while a probe is under way, wait for what becomes of it.

        Raises:
            EndpointUnavailable: The breaker is open; nothing was sent.
        """
        while True:
            permission = self.breaker.admit()
            if permission is not None:
                return permission
            if not self.breaker.is_probing:
                raise self._refusal()
            # A refusal would cost each of them an attempt, though the answer is only a call away.
            await self._probe_ended.wait()

    def leave(self, permission: Pass) -> None:
        """Take note that a call is over; one that told the breaker nothing leaves it as it is."""
        self.breaker.dropped(permission)
        if permission.is_probe:
            ended, self._probe_ended = self._probe_ended, asyncio.Event()
            ended.set()

    def blocked_until(self) -> float | None:
        """Return the wall time until which a call would not go at once, or None when it may go."""
        if self.breaker.is_probing:
            return self.wall()
        blocked_s = self.breaker.blocked_s
        return self.wall() + blocked_s if blocked_s > 0 else None

    def _breaker_changed(self, change: Change) -> None:
        if change.state == "open":
            self._why = change.reason
        self._tell(self.model, change)

    def _refusal(self) -> EndpointUnavailable:
        blocked_s = self.breaker.blocked_s
        until = datetime.fromtimestamp(self.wall() + blocked_s, UTC).isoformat(timespec="seconds")
        return EndpointUnavailable(
            f"calls to {self.model} are held back until {until} (for {blocked_s:.1f} s): {self._why}; nothing was sent. "
            "Try again then, or use another model.",
            status=None, request_id=None, retry_after_s=blocked_s, error_code=None, error_type=None, sent=False,
            held_back=True, billed=False, usage=None,
        )  # fmt: skip
