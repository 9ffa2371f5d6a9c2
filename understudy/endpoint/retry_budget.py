"""The retry budget: how much of what is sent to an endpoint may be a second attempt.

A thousand agents whose calls fail would send a thousand more, just when the service can bear least. Each first attempt
adds a share of a retry, and time adds a few, so that a lone agent is never stuck. A retry that finds nothing left waits
its turn; it is not refused, because a refusal would use up the caller's own patience.

Retries sent <= `ratio` * first attempts + `per_s` * seconds + `burst`, always.
"""

from __future__ import annotations

import asyncio
import math
from collections import OrderedDict

import msgspec

from understudy.errors import InvalidDefinition

_ROUNDING = 1e-9  # five times 0.2 are one


class RetryBudget(msgspec.Struct, frozen=True, kw_only=True):
    """How many retries an endpoint may send; give it to `Endpoint(retry_budget=...)`.

    Each first attempt allows `ratio` retries more, each second `per_s`; of what nobody uses, `burst` are kept.
    """

    ratio: float = 0.2
    per_s: float = 1.0
    burst: float = 16.0  # as many as an endpoint has in flight by default: one dropped connection may take them all

    def __post_init__(self) -> None:
        wrong = [
            f"{name}={value!r} (expected {expected})"
            for name, value, expected, least, ok in (
                ("ratio", self.ratio, "a share of the calls, 0 or more", 0.0, True),
                # Without it a retry could wait for ever.
                ("per_s", self.per_s, "retries per second, more than 0", 0.0, self.per_s != 0),
                ("burst", self.burst, "retries, 1 or more", 1.0, True),
            )
            if not (ok and _is_number(value) and least <= value < math.inf)
        ]
        if wrong:
            raise InvalidDefinition(f"RetryBudget is out of range: {', '.join(wrong)}.")


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


class Retries:
    """The retries that one endpoint may still send, on one event loop; `clock` is the loop's."""

    def __init__(self, settings: RetryBudget, loop: asyncio.AbstractEventLoop) -> None:
        self._settings = settings
        self._loop = loop
        self._tokens = float(settings.burst)
        self._filled_at = loop.time()
        self._queue: OrderedDict[asyncio.Future[None], None] = OrderedDict()
        self._timer: asyncio.TimerHandle | None = None

    @property
    def left(self) -> float:
        """How many may be sent at once now."""
        self._fill()
        return self._tokens

    @property
    def waiting(self) -> int:
        """How many callers wait for one."""
        return len(self._queue)

    def first_sent(self) -> None:
        """Take note of a first attempt."""
        self._add(self._settings.ratio)

    async def take(self) -> None:
        """Wait until one more retry may be sent, in the order of asking. One that was not sent: `give_back`."""
        self._fill()
        if not self._queue and self._pay():
            return
        turn: asyncio.Future[None] = self._loop.create_future()
        self._queue[turn] = None
        self._serve()
        try:
            await turn
        except asyncio.CancelledError:
            if turn in self._queue:
                del self._queue[turn]
                self._serve()
            elif not turn.cancelled():
                self.give_back()  # It was paid for in the same instant.
            raise

    def give_back(self) -> None:
        """Take note that a retry was not sent after all."""
        self._add(1.0)

    def _add(self, tokens: float) -> None:
        self._fill()
        self._tokens = min(self._tokens + tokens, float(self._settings.burst))
        self._serve()

    def _fill(self) -> None:
        now = self._loop.time()
        grown = (now - self._filled_at) * self._settings.per_s
        self._tokens = min(self._tokens + grown, float(self._settings.burst))
        self._filled_at = now

    def _pay(self) -> bool:
        if self._tokens < 1.0 - _ROUNDING:
            return False
        self._tokens = max(0.0, self._tokens - 1.0)
        return True

    def _serve(self) -> None:
        """Let those go who are first and can be paid for, and come back when the next one can."""
        while self._queue:
            turn = next(iter(self._queue))
            if turn.done():  # Cancelled; nobody waits there any more.
                self._queue.popitem(last=False)
                continue
            if not self._pay():
                break
            self._queue.popitem(last=False)
            turn.set_result(None)
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._queue:
            # A microsecond later than computed: a loop fires a little early, and must not find a part of a token missing.
            due_s = max(0.0, (1.0 - self._tokens) / self._settings.per_s) + 1e-6
            self._timer = self._loop.call_later(due_s, self._due)

    def _due(self) -> None:
        self._fill()
        self._serve()
