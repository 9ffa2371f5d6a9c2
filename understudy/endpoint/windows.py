"""How much each model takes and gives: its context window, its longest answer, and what a request may come to.

A request is measured before it is sent, from its bytes: too roughly for money, well enough to shorten a conversation in
time. A model that is not listed has no known window: the service says when a prompt is too long.
"""

from __future__ import annotations

import re
from typing import Final

import msgspec

from understudy.endpoint.model import ModelRequest
from understudy.endpoint.sizes import size_of, text_size


class Window(msgspec.Struct, frozen=True):
    """Tokens of one model: prompt and answer together, and the answer alone."""

    context_tokens: int | None
    output_tokens: int


_MILLION: Final = Window(1_000_000, 128_000)
_OLDER: Final = Window(200_000, 64_000)

# The vendor's model pages as of 2026-10-24; of the models of 4.6 the window without beta features.
WINDOWS: Final[dict[str, Window]] = {
    **dict.fromkeys(
        (
            "claude-fable-5-1", "claude-opus-5-5", "claude-opus-5", "claude-opus-4-8", "claude-opus-4-7",
            "claude-sonnet-5-5", "claude-sonnet-5", "claude-haiku-5-5",
        ),
        _MILLION,
    ),
    **dict.fromkeys(("claude-opus-4-6", "claude-opus-4-5", "claude-sonnet-4-6", "claude-haiku-4-5"), _OLDER),
}  # fmt: skip

# Every model of the last two years writes so much; one that does not says so with a 400.
UNKNOWN: Final = Window(None, 16_384)

_DATED = re.compile(r"[-@](\d{8}|latest)$")
_BYTES_PER_TOKEN: Final = 3  # English has four, code and other languages fewer: the estimate is rather too high
_IMAGE_TOKENS: Final = 1_600  # of the largest image that is not scaled down
_DOCUMENT_BYTES_PER_TOKEN: Final = 20  # a PDF's pages are images and fonts, too


def window_of(model: str) -> Window:
    """Return what is known of *model*, whose name may carry a date."""
    return WINDOWS.get(model) or WINDOWS.get(_DATED.sub("", model), UNKNOWN)


def estimated_tokens(request: ModelRequest) -> int:
    """Return how long the prompt may be, in tokens."""
    messages = size_of(request.messages)
    size = text_size(request.system) + len(msgspec.msgpack.encode(request.tools))
    size += messages.text_bytes + messages.sealed_bytes
    documents = messages.documents * _IMAGE_TOKENS + messages.document_bytes // _DOCUMENT_BYTES_PER_TOKEN
    return size // _BYTES_PER_TOKEN + (messages.images + messages.files) * _IMAGE_TOKENS + documents


def is_near(request: ModelRequest, context_tokens: int | None) -> bool:
    """Whether prompt and answer together may not fit; never of a model whose window is unknown."""
    if context_tokens is None:
        return False
    # An answer of half the window is nothing to shorten a conversation for: the service ends it, and says so.
    room = max(context_tokens - request.max_tokens, context_tokens // 2)
    return estimated_tokens(request) > room
