"""One model call as data, the same for every provider: what is asked, what is answered, what was counted.

All of it encodes with msgspec, so that a request can be compared, an answer journaled and a conversation stored.
Knows nothing of any vendor: what only one vendor understands travels in `Opaque` and goes back to it unchanged.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, Protocol, TypeAlias

import msgspec


class Text(msgspec.Struct, frozen=True, tag="text"):
    """Plain text, from either side."""

    text: str


class ToolCall(msgspec.Struct, frozen=True, tag="tool_call"):
    """The model asks for a tool to be run.

    `malformed` holds the text of the arguments when it is not a JSON object (the model erred, or the answer was cut);
    `arguments` is empty then, and the tool must not be run.
    """

    id: str
    name: str
    arguments: dict[str, Any]  # JSON as the model wrote it; the tool's own types validate it
    malformed: str | None = None


class ToolResult(msgspec.Struct, frozen=True, tag="tool_result"):
    """What a tool answered to the `ToolCall` with the same id."""

    call_id: str
    content: str
    is_error: bool = False


class Opaque(msgspec.Struct, frozen=True, tag="opaque"):
    """A block that only `provider` understands, such as signed thinking; sent back to it exactly as it came.

    Such blocks are bound to model and conversation: leave them out before the conversation goes to another model.
    """

    provider: str
    block: dict[str, Any]  # the vendor's own shape
    model: str = ""  # the model that wrote it, as it was asked for


class Media(msgspec.Struct, frozen=True, tag="media", omit_defaults=True):
    """An image or a document in a prompt: its bytes, the text of a plain document, or the address of either."""

    kind: Literal["image", "document"]
    media_type: str = ""
    data: bytes = b""
    url: str = ""
    text: str = ""

    def __str__(self) -> str:
        """Return it as people read it."""
        where = self.url or f"{len(self.data) or len(self.text.encode())} bytes"
        return f"[{' '.join(filter(None, (self.kind, self.media_type)))}, {where}]"


Block: TypeAlias = Text | ToolCall | ToolResult | Opaque | Media


class ChatMessage(msgspec.Struct, frozen=True, omit_defaults=True):
    """One message of the conversation.

    One with `keeps` is a summary: from here on the conversation is so many of its first messages, this one, and so many
    of its last ones.
    """

    role: Literal["user", "assistant"]
    content: list[Block]
    keeps: tuple[int, int] | None = None


def append_message(messages: list[ChatMessage], message: ChatMessage) -> None:
    """Add a message to a conversation; a summary takes the place of what it stands for.

    A result is never parted from its tool call, whatever conversation the summary was made of.
    """
    if message.keeps is None:
        messages.append(message)
        return
    first = min(message.keeps[0], len(messages))
    rest = max(first, len(messages) - message.keeps[1])
    while first < rest < len(messages) and any(isinstance(block, ToolResult) for block in messages[rest].content):
        rest -= 1
    messages[first:rest] = [message]


class ToolSpec(msgspec.Struct, frozen=True):
    """A tool as the model sees it; `schema` is the JSON schema of its arguments, an object."""

    name: str
    description: str
    schema: dict[str, Any]


class Usage(msgspec.Struct, frozen=True):
    """The five raw token counts of one call. They do not overlap: the prompt's length is the sum of all but the output."""

    input_tokens: int = 0
    output_tokens: int = 0
    cache_read_tokens: int = 0
    cache_write_5m_tokens: int = 0
    cache_write_1h_tokens: int = 0

    @property
    def prompt_tokens(self) -> int:
        """Length of the prompt, cached parts included."""
        return self.input_tokens + self.cache_read_tokens + self.cache_write_5m_tokens + self.cache_write_1h_tokens


class ModelRequest(msgspec.Struct, frozen=True):
    """What the model is asked. With `output_schema`, its text is JSON of that schema."""

    model: str
    messages: list[ChatMessage]
    system: str = ""
    tools: list[ToolSpec] = []
    max_tokens: int = 8192
    output_schema: dict[str, Any] | None = None


class ModelAnswer(msgspec.Struct, frozen=True):
    """What the model answered, complete. `model` is the name the service reports, which may carry a date.

    `stop_reason` is the service's word: `end_turn`, `tool_use`, `max_tokens`, `stop_sequence`, `pause_turn`,
    `model_context_window_exceeded`. Tool calls of an answer cut by `max_tokens` must not be run.
    """

    id: str
    model: str
    content: list[Block]
    stop_reason: str
    usage: Usage
    request_id: str | None = None

    @property
    def text(self) -> str:
        """All text of the answer, joined."""
        return "".join(block.text for block in self.content if isinstance(block, Text))

    @property
    def tool_calls(self) -> list[ToolCall]:
        """All tool calls of the answer, in order, malformed ones included."""
        return [block for block in self.content if isinstance(block, ToolCall)]


class Meter(msgspec.Struct, frozen=True):
    """One of the service's own counters, as an answer's headers tell it; what they do not tell is None."""

    limit: int | None = None
    remaining: int | None = None
    reset_at: float | None = None  # wall time at which it is full again


class Allowance(msgspec.Struct, frozen=True):
    """What the service says may still be sent; None where it says nothing."""

    requests: Meter | None = None
    input_tokens: Meter | None = None
    output_tokens: Meter | None = None
    tokens: Meter | None = None  # both together


class Provider(Protocol):
    """One vendor's API: makes exactly one attempt per call, never retries by itself.

    One that takes more than text says so: `media = frozenset({"image", "document"})`.
    """

    async def call(
        self,
        request: ModelRequest,
        *,
        on_text: Callable[[str], None] | None = None,
        on_allowance: Callable[[Allowance], None] | None = None,
    ) -> ModelAnswer:
        """Return the complete answer; `on_text` sees its text as it arrives, `on_allowance` what its headers say.

        Raises:
            ModelFailure: No usable answer; `sent`, `billed` and `usage` tell what the attempt may have cost.
        """
        ...

    async def close(self) -> None:
        """Close the connections of the running loop; a later call opens new ones."""
        ...
