"""What stands between callers and a provider on one event loop: breaker, retry budget, slots, rates, in this order.

What a call takes on its way it gives back on every path. What it took before it is sent may have become pointless when
its turn comes, because the breaker has opened meanwhile; so it asks the breaker again last. Sends each call once:
what follows a failure is the caller's policy.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from functools import partial

import msgspec

from understudy.endpoint.breaker import Breaker, Change, Pass, State
from understudy.endpoint.estimates import counted_input, family_of
from understudy.endpoint.lane import Lane
from understudy.endpoint.model import ModelAnswer, ModelRequest, Provider
from understudy.endpoint.rates import Grant, Need, RateLimits
from understudy.endpoint.retry_budget import Retries, RetryBudget
from understudy.endpoint.sending import tell_sent
from understudy.endpoint.slots import Slots
from understudy.errors import EndpointUnavailable, ModelFailure, Overloaded, RateLimited, Refused

logger = logging.getLogger(__name__)

Listener = Callable[[str, Change], None]
_RAMP = "ramp_limit_exceeded"  # a 429 that means: too many at once, too suddenly


class EndpointStatus(msgspec.Struct, frozen=True, kw_only=True):
    """How calls for one model family stand at an endpoint now. `until` is the wall time of the next probe."""

    model: str
    breaker: State
    until: float | None
    calls: int  # ended within the breaker's window
    failures: int  # of these
    in_flight: int
    waiting: int
    concurrency: int  # of all models of the endpoint: how many may be in flight now
    retries_left: float  # of all models of the endpoint: how many may be sent at once


class GuardSettings(msgspec.Struct, frozen=True, kw_only=True):
    """What an endpoint was given."""

    concurrency: int
    rates: RateLimits
    breaker: Breaker
    retry_budget: RetryBudget


class Guard:
    """The guard of one endpoint on the running event loop."""

    def __init__(self, provider: Provider, settings: GuardSettings) -> None:
        self._provider = provider
        self._settings = settings
        self._loop = asyncio.get_running_loop()
        self._lanes: dict[str, Lane] = {}
        self.slots = Slots(settings.concurrency)
        self.retries = Retries(settings.retry_budget, self._loop)
        self.listeners: list[Listener] = []

    @property
    def is_idle(self) -> bool:
        """Whether nobody calls and nobody listens."""
        return not self.listeners and not any(lane.waiting or lane.in_flight for lane in self._lanes.values())

    async def call(
        self, request: ModelRequest, on_text: Callable[[str], None] | None, *, is_retry: bool
    ) -> ModelAnswer:
        """Wait for everything that the call needs, send it once, and return the complete answer."""
        lane = self._lane(request.model)
        lane.waiting += 1
        try:
            taken = await self._take(lane, request, is_retry=is_retry)
        finally:
            lane.waiting -= 1
        return await self._send(lane, taken, request, on_text)

    def blocked_until(self, model: str) -> float | None:
        """Return the wall time until which the breaker holds calls for *model* back, or None."""
        lane = self._lanes.get(family_of(model))
        return lane.blocked_until() if lane is not None else None

    def status(self) -> tuple[EndpointStatus, ...]:
        """Return how each model family stands."""
        return tuple(self._status(lane) for _, lane in sorted(self._lanes.items()))

    async def _take(self, lane: Lane, request: ModelRequest, *, is_retry: bool) -> _Taken:
        while True:
            taken = _Taken(self, lane, await lane.enter())
            try:
                if is_retry:
                    await self.retries.take()
                    taken.has_retry = True
                # Whoever waited for a retry behind an opened breaker makes room at once.
                if taken.may_still_go():
                    taken.place = await self.slots.acquire()
                    taken.need = lane.estimator.need(request)
                    taken.grant = await lane.buckets.acquire(taken.need)
                    if taken.may_still_go():
                        return taken
            except BaseException:  # A cancellation as well: who waits behind gets what was taken.
                taken.give_back()
                raise
            taken.give_back()

    async def _send(
        self, lane: Lane, taken: _Taken, request: ModelRequest, on_text: Callable[[str], None] | None
    ) -> ModelAnswer:
        grant, need = taken.grant, taken.need
        assert grant is not None
        assert need is not None
        if not taken.has_retry:
            self.retries.first_sent()
        lane.in_flight += 1
        began_s = self._loop.time()
        try:
            tell_sent()
            on_allowance = partial(lane.buckets.learn, grant=grant)
            answer = await self._provider.call(request, on_text=on_text, on_allowance=on_allowance)
            self.slots.succeeded()
            lane.breaker.succeeded(taken.permission, self._loop.time() - began_s)
            lane.estimator.learn(request, answer.usage)
            if answer.usage.prompt_tokens:  # Else the server counts nothing: the estimate stays.
                grant.settle(counted_input(answer.usage), answer.usage.output_tokens)
            return answer
        except ModelFailure as error:
            self._failed(lane, taken, error, self._loop.time() - began_s)
            raise
        finally:
            lane.in_flight -= 1
            # A cancellation, or an error of the code around a call, says nothing about the service, nor what was used.
            lane.leave(taken.permission)
            grant.settle(need.input_tokens, need.output_tokens)
            self.slots.release()

    def _failed(self, lane: Lane, taken: _Taken, error: ModelFailure, duration_s: float) -> None:
        """Tell breaker, slots and rates what a failure says about each of them."""
        assert taken.grant is not None
        assert taken.place is not None
        match error:
            case Overloaded() | EndpointUnavailable():
                lane.breaker.failed(taken.permission, duration_s, f"{type(error).__name__}: {error}")
            case Refused():
                lane.breaker.succeeded(taken.permission, duration_s)  # It answered, and was paid for it.
            case RateLimited() if error.retry_after_s is not None:
                lane.buckets.close_until(error.retry_after_s)
            case _:
                pass  # By the request's fault, or the account's: not the service's.
        if isinstance(error, Overloaded) or error.error_code == _RAMP:
            self.slots.overloaded(taken.place)
        if not error.sent:
            taken.grant.give_back()
        elif error.usage is not None:
            taken.grant.settle(counted_input(error.usage), error.usage.output_tokens)
        elif not error.billed:
            taken.grant.settle(0, 0)  # A request, and no token. Else nobody knows: the estimate stays.

    def _lane(self, model: str) -> Lane:
        family = family_of(model)
        lane = self._lanes.get(family)
        if lane is None:
            settings = self._settings
            lane = self._lanes[family] = Lane(family, settings.breaker, settings.rates, self._loop, self._changed)
        return lane

    def _changed(self, model: str, change: Change) -> None:
        logger.info("breaker.changed", extra={"model": model, "state": change.state, "reason": change.reason})
        for listener in [*self.listeners]:
            try:
                listener(model, change)
            except Exception:  # The call that happened to change the breaker is not to pay for it.
                logger.exception("breaker.listener_failed", extra={"model": model})

    def _status(self, lane: Lane) -> EndpointStatus:
        lane.breaker.expire()
        return EndpointStatus(
            model=lane.model,
            breaker=lane.breaker.state,
            until=lane.blocked_until(),
            calls=lane.breaker.calls,
            failures=lane.breaker.failures,
            in_flight=lane.in_flight,
            waiting=lane.waiting,
            concurrency=self.slots.allowed,
            retries_left=self.retries.left,
        )


class _Taken:
    """What one call has taken so far."""

    __slots__ = ("_guard", "_lane", "grant", "has_retry", "need", "permission", "place")

    def __init__(self, guard: Guard, lane: Lane, permission: Pass) -> None:
        self._guard = guard
        self._lane = lane
        self.permission = permission
        self.has_retry = False
        self.place: int | None = None
        self.need: Need | None = None
        self.grant: Grant | None = None

    def may_still_go(self) -> bool:
        """Whether the breaker still lets it through; a permission from before an outage is replaced by a new one."""
        if not self.permission.is_probe:
            permission = self._lane.breaker.admit()
            if permission is None:
                return False
            self.permission = permission
        return True

    def give_back(self) -> None:
        """Give everything back: nothing was sent."""
        if self.grant is not None:
            self.grant.give_back()
        if self.place is not None:
            self._guard.slots.release()
        if self.has_retry:
            self._guard.retries.give_back()
        self._lane.leave(self.permission)
