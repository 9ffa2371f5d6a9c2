"""What the headers of an answer say about rate limits. What does not read as it should is left out."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from datetime import datetime

from understudy.endpoint.model import Allowance, Meter

_COUNT = re.compile(r"\d{1,15}", re.ASCII)
_SECONDS = re.compile(r"\d{1,12}(\.\d{1,9})?", re.ASCII)
_EPOCH_MIN = 1e9  # A plain number above is a time; below, so many seconds from now.


def allowance_of(headers: Mapping[str, str], now_wall: float) -> Allowance | None:
    """Return what `anthropic-ratelimit-*` says, None when it says nothing; names are looked up in lower case.

    `now_wall` (seconds since the epoch) is needed for gateways that write `reset` as seconds from now.
    """
    requests, input_tokens, output_tokens, tokens = (
        _meter(headers, name, now_wall) for name in ("requests", "input-tokens", "output-tokens", "tokens")
    )
    if requests is None and input_tokens is None and output_tokens is None and tokens is None:
        return None
    return Allowance(requests=requests, input_tokens=input_tokens, output_tokens=output_tokens, tokens=tokens)


def _meter(headers: Mapping[str, str], name: str, now_wall: float) -> Meter | None:
    limit, remaining, reset = (
        headers.get(f"anthropic-ratelimit-{name}-{field}", "").strip() for field in ("limit", "remaining", "reset")
    )
    # A limit of zero would be waited for without end; the service's own refusal says more than that.
    meter = Meter(limit=_count(limit) or None, remaining=_count(remaining), reset_at=_time(reset, now_wall))
    return None if meter == Meter() else meter


def _count(text: str) -> int | None:
    return int(text) if _COUNT.fullmatch(text) else None


def _time(text: str, now_wall: float) -> float | None:
    if _SECONDS.fullmatch(text):
        seconds = float(text)
        return seconds if seconds >= _EPOCH_MIN else now_wall + seconds
    try:
        parsed = datetime.fromisoformat(text)
        at = parsed.timestamp() if parsed.tzinfo is not None else math.nan
    except (ValueError, OverflowError):
        return None
    return at if math.isfinite(at) else None
