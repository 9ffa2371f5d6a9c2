"""A model endpoint: which models a provider serves, and under which limits.

Calls wait in the order they came; a cancelled wait leaves the queue, a finished, failed or cancelled call gives back
what it took (see `guard`). Makes one attempt per call and retries nothing: recovery is the caller's policy.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from fnmatch import fnmatchcase
from typing import cast

from understudy.endpoint.breaker import Breaker
from understudy.endpoint.guard import EndpointStatus, Guard, GuardSettings, Listener
from understudy.endpoint.model import Media, ModelAnswer, ModelRequest, Provider
from understudy.endpoint.rates import RateLimits
from understudy.endpoint.retry_budget import RetryBudget
from understudy.endpoint.sizes import size_of
from understudy.errors import InvalidDefinition, RequestRejected


class Endpoint:
    """A provider with limits; give it to `System(endpoints=[...])`.

    `models` are the names it serves, with `*` and `?` as in file names. `concurrency` bounds its calls in flight;
    fewer are allowed while the service says that it is too much. `rates` are the account's limits per model, `breaker`
    says when calls to a model that fails are held back, and `retry_budget` how many retries may be sent.
    """

    def __init__(
        self,
        provider: Provider,
        *,
        models: Sequence[str] = ("*",),
        rates: RateLimits | None = None,
        concurrency: int = 16,
        breaker: Breaker | None = None,
        retry_budget: RetryBudget | None = None,
    ) -> None:
        if not callable(getattr(cast(object, provider), "call", None)):
            raise InvalidDefinition(
                f"Endpoint needs a provider with an async `call`; got {provider!r}. Pass AnthropicProvider() or your own."
            )
        if isinstance(models, str):
            raise InvalidDefinition(
                f"Endpoint models must be a list of patterns; got the string {models!r}. Write [{models!r}]."
            )
        patterns = cast(tuple[object, ...], tuple(models))
        if not patterns or not all(isinstance(pattern, str) and pattern for pattern in patterns):
            raise InvalidDefinition(
                f"Endpoint models must name at least one model or pattern, such as 'claude-*'; got {models!r}. "
                "Leave it out to serve every model."
            )
        if type(cast(object, concurrency)) is not int or concurrency < 1:
            raise InvalidDefinition(
                f"Endpoint concurrency must be a whole number of calls, at least 1; got {concurrency!r}. "
                "The default is 16."
            )
        for name, setting, expected in (
            ("rates", rates, RateLimits),
            ("breaker", breaker, Breaker),
            ("retry_budget", retry_budget, RetryBudget),
        ):
            if setting is not None and not isinstance(cast(object, setting), expected):
                raise InvalidDefinition(
                    f"Endpoint {name} must be {expected.__name__}(...); got {setting!r}. Leave it out for the default."
                )
        self.models: tuple[str, ...] = tuple(models)
        self.concurrency = concurrency
        self._provider = provider
        self._settings = GuardSettings(
            concurrency=concurrency,
            rates=rates or RateLimits(),
            breaker=breaker or Breaker(),
            retry_budget=retry_budget or RetryBudget(),
        )
        # By loop: what waits belongs to the loop it waits on, and one endpoint may serve several systems.
        self._guards: dict[asyncio.AbstractEventLoop, Guard] = {}

    def __repr__(self) -> str:
        return f"Endpoint({self._provider!r}, models={list(self.models)!r}, concurrency={self.concurrency})"

    def serves(self, model: str) -> bool:
        """Tell whether calls for *model* may go here."""
        return any(fnmatchcase(model, pattern) for pattern in self.models)

    async def call(
        self, request: ModelRequest, on_text: Callable[[str], None] | None = None, *, attempt: int = 1
    ) -> ModelAnswer:
        """Wait until the limits allow it, make one attempt, return the complete answer.

        `attempt` says how often this call is being sent; from 2 on it counts against the retry budget. While the service
        fails it is not sent: `EndpointUnavailable` with `sent=False`, and `retry_after_s` says when to come back.

        Raises:
            RequestRejected: This endpoint does not serve the model; nothing was sent.
            ModelFailure: No usable answer; `sent`, `billed` and `usage` tell what the attempt may have cost.
        """
        if not self.serves(request.model):
            raise RequestRejected(
                f"model {request.model!r} is not served by this endpoint, only {', '.join(self.models)}; nothing was sent. "
                "Correct the name or the endpoint's models.",
                sent=False,
            )
        _refuse_media(self._provider, request)
        return await self._guard().call(request, on_text, is_retry=attempt > 1)

    def blocked_until(self, model: str) -> float | None:
        """Return the wall time until which the breaker holds calls for *model* back, or None when one may go.

        The present time while a probe is under way: a call would wait for what becomes of it.
        """
        guard = self._guards.get(asyncio.get_running_loop())
        return guard.blocked_until(model) if guard is not None else None

    def status(self) -> tuple[EndpointStatus, ...]:
        """Return how each model that was asked for on the running loop stands."""
        guard = self._guards.get(asyncio.get_running_loop())
        return guard.status() if guard is not None else ()

    def on_change(self, listener: Listener) -> Callable[[], None]:
        """Tell *listener* of each change of a breaker on the running loop; call what is returned to end that."""
        listeners = self._guard().listeners
        listeners.append(listener)

        def end() -> None:
            if listener in listeners:
                listeners.remove(listener)

        return end

    async def close(self) -> None:
        """Close the provider's connections of the running loop; a later call opens new ones."""
        loop = asyncio.get_running_loop()
        guard = self._guards.get(loop)
        if guard is not None and guard.is_idle:  # Another system of the loop keeps what it knows of the service.
            del self._guards[loop]
        await self._provider.close()

    def _guard(self) -> Guard:
        loop = asyncio.get_running_loop()
        guard = self._guards.get(loop)
        if guard is None:
            self._guards = {known: guards for known, guards in self._guards.items() if not known.is_closed()}
            guard = self._guards[loop] = Guard(self._provider, self._settings)
        return guard


def _refuse_media(provider: object, request: ModelRequest) -> None:
    """Refuse a request with images or documents for a provider that does not say that it takes them.

    Raises:
        RequestRejected: Nothing was sent.
    """
    size = size_of(request.messages)
    if not size.images and not size.documents:
        return
    takes: frozenset[str] = getattr(provider, "media", frozenset())
    for message in request.messages:
        for block in message.content:
            if isinstance(block, Media) and block.kind not in takes:
                raise RequestRejected(
                    f"the conversation holds {block}, and {type(provider).__name__} takes "
                    f"{' and '.join(['text', *sorted(takes)])} only; nothing was sent. Ask a model of another provider, "
                    "or give the agent the text of it.",
                    sent=False,
                )
