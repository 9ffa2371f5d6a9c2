"""A model endpoint: which models a provider serves, and how many calls it may have in flight.

Calls wait for a slot in the order they came; a cancelled wait leaves the queue, a finished, failed or cancelled call
frees its slot. Makes one attempt per call and retries nothing: recovery is the caller's policy.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from fnmatch import fnmatchcase
from typing import cast

from understudy.endpoint.model import ModelAnswer, ModelRequest, Provider
from understudy.errors import InvalidDefinition, RequestRejected


class Endpoint:
    """A provider with limits; give it to `System(endpoints=[...])`.

    `models` are the names it serves, with `*` and `?` as in file names. `concurrency` bounds its calls in flight.
    """

    def __init__(self, provider: Provider, *, models: Sequence[str] = ("*",), concurrency: int = 16) -> None:
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
        self.models: tuple[str, ...] = tuple(models)
        self.concurrency = concurrency
        self._provider = provider
        # By loop: a semaphore belongs to the loop it was first waited on, and one endpoint may serve several systems.
        self._slots: dict[asyncio.AbstractEventLoop, asyncio.Semaphore] = {}

    def __repr__(self) -> str:
        return f"Endpoint({self._provider!r}, models={list(self.models)!r}, concurrency={self.concurrency})"

    def serves(self, model: str) -> bool:
        """Tell whether calls for *model* may go here."""
        return any(fnmatchcase(model, pattern) for pattern in self.models)

    async def call(self, request: ModelRequest, on_text: Callable[[str], None] | None = None) -> ModelAnswer:
        """Wait for a slot, make one attempt, return the complete answer.

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
        async with self._slot():
            return await self._provider.call(request, on_text=on_text)

    async def close(self) -> None:
        """Close the provider's connections of the running loop; a later call opens new ones."""
        self._slots.pop(asyncio.get_running_loop(), None)
        await self._provider.close()

    def _slot(self) -> asyncio.Semaphore:
        loop = asyncio.get_running_loop()
        slot = self._slots.get(loop)
        if slot is None:
            self._slots = {known: slots for known, slots in self._slots.items() if not known.is_closed()}
            slot = self._slots[loop] = asyncio.Semaphore(self.concurrency)
        return slot
