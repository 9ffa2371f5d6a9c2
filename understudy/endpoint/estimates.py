"""Stand-in, replaced at the merge."""

from __future__ import annotations

import re

from understudy.endpoint.model import ModelRequest, Usage
from understudy.endpoint.rates import Need

_DATE = re.compile(r"(-\d{8}|@.*)$")


def family_of(model: str) -> str:
    """Return the model's name without its date."""
    return _DATE.sub("", model)


def counted_input(usage: Usage) -> int:
    """Return the input tokens that count for the rate limit."""
    return usage.input_tokens + usage.cache_write_5m_tokens + usage.cache_write_1h_tokens


class Estimator:
    """What calls need."""

    def need(self, request: ModelRequest) -> Need:
        """Return what to reserve."""
        return Need(0, request.max_tokens)

    def learn(self, request: ModelRequest, usage: Usage) -> None:
        """Learn from what a finished call used."""
