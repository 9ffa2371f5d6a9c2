"""What a model call costs: dated list prices, and one pure function from raw token counts to micro-dollars.

A price depends on the model, the date and the length of the whole prompt, so it is computed per request and never
from sums. An unknown model costs None, not nothing. Batch, fast-mode and regional modifiers are not known here.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import UTC, datetime
from decimal import ROUND_HALF_UP, Decimal

import msgspec

from understudy.endpoint.model import Usage
from understudy.errors import InvalidArguments


class Price(msgspec.Struct, frozen=True, kw_only=True):
    """US dollars per million tokens of one model; that is micro-dollars per token.

    Counts from `since` on (None: always), for prompts of more than `prompt_above` tokens, cached ones included. Of
    several prices that fit, the latest wins, then the one for the longest prompts.
    """

    model: str
    input: float
    output: float
    cache_read: float
    cache_write_5m: float
    cache_write_1h: float
    since: datetime | None = None
    prompt_above: int = 0


def _price(
    model: str, row: tuple[float, float, float, float, float], *, since: datetime | None = None, prompt_above: int = 0
) -> Price:
    """In the order of a price list: input, output, cache read, 5-minute write, 1-hour write."""
    return Price(
        model=model, input=row[0], output=row[1], cache_read=row[2], cache_write_5m=row[3], cache_write_1h=row[4],
        since=since, prompt_above=prompt_above,
    )  # fmt: skip


# List prices as of 2026-10-24.
PRICES: tuple[Price, ...] = (
    _price("claude-fable-5-1", (10, 50, 0.25, 12.50, 20)),
    _price("claude-opus-5-5", (4, 20, 0.20, 5, 8)),
    *(
        _price(model, (5, 25, 0.50, 6.25, 10))
        for model in ("claude-opus-5", "claude-opus-4-8", "claude-opus-4-7", "claude-opus-4-6", "claude-opus-4-5")
    ),
    _price("claude-sonnet-5-5", (2, 10, 0.20, 2.50, 4)),
    _price("claude-sonnet-5-5", (2, 10, 0.10, 2.50, 4), since=datetime(2026, 10, 7, tzinfo=UTC)),
    _price("claude-sonnet-5", (2, 10, 0.20, 2.50, 4)),
    _price("claude-sonnet-4-6", (3, 15, 0.30, 3.75, 6)),
    _price("claude-haiku-5-5", (0.10, 0.50, 0.01, 0.125, 0.20)),
    _price("claude-haiku-5-5", (0.50, 2.50, 0.05, 0.625, 1.00), prompt_above=100_000),
    _price("claude-haiku-4-5", (1, 5, 0.10, 1.25, 2)),
)

_DATED = re.compile(r"[-@](\d{8}|latest)$")


def cost_micros(model: str, usage: Usage, at: datetime, *, prices: Sequence[Price] = PRICES) -> int | None:
    """Return what one request costs in micro-dollars, rounded half up once; None if the model's price is unknown.

    `model` may carry a date (`claude-haiku-4-5-20251001`). `at` is the time of the request, with a time zone.

    Raises:
        InvalidArguments: `at` has no time zone, so it names no moment.
    """
    price = price_of(model, at, usage.prompt_tokens, prices=prices)
    if price is None:
        return None
    cost = (
        usage.input_tokens * _exact(price.input)
        + usage.output_tokens * _exact(price.output)
        + usage.cache_read_tokens * _exact(price.cache_read)
        + usage.cache_write_5m_tokens * _exact(price.cache_write_5m)
        + usage.cache_write_1h_tokens * _exact(price.cache_write_1h)
    )
    return int(cost.quantize(Decimal(1), rounding=ROUND_HALF_UP))


def price_of(model: str, at: datetime, prompt_tokens: int = 0, *, prices: Sequence[Price] = PRICES) -> Price | None:
    """Return the price of *model* at that time for a prompt of that length, or None if it is unknown."""
    if at.tzinfo is None:
        raise InvalidArguments(f"the time of a price must have a time zone; got {at!r}. Use datetime.now(UTC).")
    names = {model, _DATED.sub("", model)}
    fitting = [
        price
        for price in prices
        if price.model in names
        and (price.since is None or price.since <= at)
        and (price.prompt_above == 0 or prompt_tokens > price.prompt_above)
    ]
    if not fitting:
        return None
    oldest = datetime.min.replace(tzinfo=UTC)
    # An exact name, dated as it may be, goes before the name without its date.
    return max(fitting, key=lambda price: (price.model == model, price.since or oldest, price.prompt_above))


def _exact(value: float) -> Decimal:
    """The decimal number that was written, not the binary one nearest to it."""
    return Decimal(repr(value))
