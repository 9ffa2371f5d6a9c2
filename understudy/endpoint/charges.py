"""What a model call may use at most, and what it has used: for budgets, which are never to be told too little.

Pure functions of a request, of what the service counted, and of how a call failed.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from decimal import ROUND_CEILING, Decimal

import msgspec

from understudy.endpoint.estimates import size_bytes
from understudy.endpoint.ledger import NOTHING, Amount
from understudy.endpoint.model import ModelRequest, Usage
from understudy.endpoint.prices import PRICES, Price, cost_micros, price_of
from understudy.endpoint.sizes import size_of
from understudy.errors import ModelFailure, Refused

_BYTES_PER_TOKEN = 2  # English has four, code and other languages two to three: the estimate is rather too high
_DOCUMENT_BYTES_PER_TOKEN = 10  # of a PDF, whose pages count as text and as images: densely printed ones
_OVERHEAD_TOKENS = 600  # what the service adds by itself: instructions for tools and for the form of the output
# What may have been written and not received when a connection broke: some seconds of a fast model.
SLACK_TOKENS = 512


def prompt_tokens(request: ModelRequest) -> int:
    """Return how many tokens the prompt has at most, as far as that can be told from its bytes."""
    # What is sealed counts in full: thinking that the service reads back is as long as it was.
    messages = size_of(request.messages)
    bytes_ = size_bytes(request) + messages.sealed_bytes
    documents = messages.document_bytes // _DOCUMENT_BYTES_PER_TOKEN
    return -(-bytes_ // _BYTES_PER_TOKEN) + documents + _OVERHEAD_TOKENS


def most(request: ModelRequest, at: datetime, *, prices: Sequence[Price] = PRICES) -> Amount:
    """Return the most that the call may use: each prompt token at the dearest price there is for it, the longest answer."""
    prompt = prompt_tokens(request)
    found = [price for each in (0, prompt) if (price := price_of(request.model, at, each, prices=prices)) is not None]
    if not found:
        return Amount(0, prompt + request.max_tokens, 1, 1)
    usd_micros = max(
        prompt * _exact(max(price.input, price.cache_read, price.cache_write_5m, price.cache_write_1h))
        + request.max_tokens * _exact(price.output)
        for price in found
    )
    return Amount(int(usd_micros.to_integral_value(ROUND_CEILING)), prompt + request.max_tokens, 1)


def used(model: str, usage: Usage, at: datetime, *, prices: Sequence[Price] = PRICES) -> Amount:
    """Return what a call used whose usage was told."""
    usd_micros = cost_micros(model, usage, at, prices=prices)
    return Amount(usd_micros or 0, usage.prompt_tokens + usage.output_tokens, 1, 1 if usd_micros is None else 0)


def used_by_answer(
    request: ModelRequest, usage: Usage, reserved: Amount, at: datetime, *, prices: Sequence[Price] = PRICES
) -> tuple[Amount, Amount]:
    """Return what an answered call has used, and the part of it that nobody told us: all, of a server that counts nothing."""
    if not usage.prompt_tokens:  # No prompt is empty.
        return reserved, reserved
    return used(request.model, usage, at, prices=prices), NOTHING


def used_by_failure(
    request: ModelRequest, failure: ModelFailure, reserved: Amount, at: datetime, *, prices: Sequence[Price] = PRICES
) -> tuple[Amount, Amount]:
    """Return what a failed call has used at most, and the part of it that nobody told us.

    What the answer's beginning says of the prompt is believed. When the connection broke, no more of the answer was
    written than was received, and a little that was under way; one that fell silent may have gone on unheard.
    """
    if not failure.sent or not failure.billed:
        return NOTHING, NOTHING
    usage = failure.usage
    if not isinstance(usage, Usage) or not usage.prompt_tokens:
        return reserved, reserved
    told = used(request.model, usage, at, prices=prices)
    if isinstance(failure, Refused):
        return told, NOTHING  # It came to its end.
    heard = max(usage.output_tokens, failure.received_bytes) + SLACK_TOKENS
    written = min(request.max_tokens, heard) if failure.received_bytes else request.max_tokens
    output = max(usage.output_tokens, written)
    bound = used(request.model, msgspec.structs.replace(usage, output_tokens=output), at, prices=prices)
    unknown = msgspec.structs.replace(bound - told, calls=0, unpriced=0)
    return bound, unknown


def _exact(value: float) -> Decimal:
    return Decimal(repr(value))
