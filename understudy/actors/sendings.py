"""How often one model call was sent: an endpoint's retry budget wants to know which of its calls are repeated ones.

What a breaker held back was not sent: after an outage, the agents that met a closed door are not a crowd of retries.
"""

from __future__ import annotations

from collections.abc import Callable

from understudy.endpoint.endpoint import Endpoint
from understudy.endpoint.model import ModelAnswer, ModelRequest
from understudy.errors import EndpointUnavailable, MalformedOutput, ModelFailure, Overloaded, RateLimited
from understudy.supervisor.policy import Past

_SERVICE_FAILURES = (RateLimited, Overloaded, EndpointUnavailable)
_NAMES = frozenset(each.__name__ for each in _SERVICE_FAILURES)


class Sendings:
    """The sendings of one call; *history* is what its ladder knows of attempts before."""

    def __init__(self, history: tuple[Past, ...] = ()) -> None:
        self.failed = 0  # at the endpoint that was asked last
        self._endpoint: Endpoint | None = None
        for past in history:
            if past.error in _NAMES:
                self.failed += past.made
            elif past.error == MalformedOutput.__name__:
                self.failed = 0  # It was answered; what follows is another request on the same ladder.

    async def send(
        self, endpoint: Endpoint, request: ModelRequest, on_text: Callable[[str], None] | None = None
    ) -> ModelAnswer:
        """Make one attempt at *endpoint*; raises what it raises."""
        if self._endpoint is not None and self._endpoint is not endpoint:
            self.failed = 0  # Another service has had no part in the trouble: there it is a first attempt.
        self._endpoint = endpoint
        try:
            return await endpoint.call(request, on_text, attempt=self.failed + 1)
        except ModelFailure as error:
            if isinstance(error, _SERVICE_FAILURES) and not error.held_back:
                self.failed += 1
            raise
