"""How many tokens a model request will need, guessed before it is sent from the bytes of its text.

Guesses are a little high on purpose: the mean of what was seen and twice its usual miss. The limiter gives the
difference back when the answer is there; a guess that is too low lets calls through that the service refuses.
"""

from __future__ import annotations

import math
import re

import msgspec

from understudy.endpoint.meters import Need
from understudy.endpoint.model import ModelRequest, Usage
from understudy.endpoint.sizes import FRAMING_BYTES, size_of, text_size

_WEIGHT = 0.2  # of the newest call: a dozen calls are learnt from, and one odd call does little.
_DEVIATIONS = 2.0
_TOKENS_PER_BYTE = 1 / 3  # English is nearer 1/4, code and Chinese near 1/3.
# Beyond these the usage is not that of the text: a gateway that counts nothing, or a prompt added on the way.
_TOKENS_PER_BYTE_MIN, _TOKENS_PER_BYTE_MAX = 1 / 16, 1.0
_OUTPUT_TOKENS = 1_000.0  # A page; agents' answers are mostly shorter.
# An image costs up to about 1,600 tokens whatever its bytes are. Long documents cost more, and are learnt afterwards.
_BINARY_BYTES = 4_800

_DATED = re.compile(r"(-\d{8}|-latest)?(@.*)?$")


def family_of(model: str) -> str:
    """Return the name without its date: `claude-haiku-4-5-20251001` and `claude-haiku-4-5@20251001` share limits."""
    return _DATED.sub("", model, count=1)


def counted_input(usage: Usage) -> int:
    """Return the input tokens that count for the rate limit: uncached ones and cache writes, not cache reads."""
    return usage.input_tokens + usage.cache_write_5m_tokens + usage.cache_write_1h_tokens


class Estimator:
    """What calls of one model family need, learnt from what they used."""

    def __init__(self) -> None:
        self._tokens_per_byte = _Average(_TOKENS_PER_BYTE)
        self._counted_share = _Average(1.0)
        self._output = _Average(_OUTPUT_TOKENS)

    def need(self, request: ModelRequest) -> Need:
        """Return what to reserve at the rate limiter."""
        # Of a cached conversation most is not counted; reserving all of it would fill the bucket for nothing.
        counted = self.prompt_tokens(request) * min(1.0, self._counted_share.high())
        return Need(math.ceil(counted), self.output_tokens(request))

    def prompt_tokens(self, request: ModelRequest) -> int:
        """Return the length of the prompt, cached parts included."""
        ratio = min(max(self._tokens_per_byte.high(), _TOKENS_PER_BYTE_MIN), _TOKENS_PER_BYTE_MAX)
        return math.ceil(size_bytes(request) * ratio)

    def output_tokens(self, request: ModelRequest) -> int:
        """Return the length of the answer, at most the request's `max_tokens`.

        Most answers are far shorter than `max_tokens`, so reserving that would leave the limit unused. The service
        counts what is really written; the grant is settled with that, also when it is more than was guessed.
        """
        return max(1, min(request.max_tokens, math.ceil(self._output.high())))

    def learn(self, request: ModelRequest, usage: Usage) -> None:
        """Learn from what a finished call used."""
        if usage.prompt_tokens > 0:
            ratio = usage.prompt_tokens / max(1, size_bytes(request))
            self._tokens_per_byte.learn(min(max(ratio, _TOKENS_PER_BYTE_MIN), _TOKENS_PER_BYTE_MAX))
            self._counted_share.learn(counted_input(usage) / usage.prompt_tokens)
        if usage.output_tokens > 0:
            self._output.learn(float(usage.output_tokens))


def size_bytes(request: ModelRequest) -> int:
    """Return the bytes of the request's text, with a few for each message; files count as a fixed size.

    What is sealed is left out: how many tokens it is nobody tells, so a guess learns better without it.
    """
    size = text_size(request.system)
    if request.output_schema is not None:
        size += len(msgspec.json.encode(request.output_schema))
    for tool in request.tools:
        size += FRAMING_BYTES + text_size(tool.name) + text_size(tool.description)
        size += len(msgspec.json.encode(tool.schema))
    messages = size_of(request.messages)
    # Not by their size: an image costs a bounded number of tokens, whatever its bytes. What lies elsewhere is a guess.
    return size + messages.text_bytes + (messages.images + messages.documents + messages.files) * _BINARY_BYTES


class _Average:
    """A moving mean and how far values usually are from it."""

    def __init__(self, mean: float) -> None:
        self._mean = mean
        self._deviation = 0.0

    def learn(self, value: float) -> None:
        miss = value - self._mean
        self._mean += _WEIGHT * miss
        self._deviation += _WEIGHT * (abs(miss) - self._deviation)

    def high(self) -> float:
        return self._mean + _DEVIATIONS * self._deviation
