"""How large the messages of a request are: what guesses of tokens, of costs and of the room in a window begin with.

A conversation grows by a message or two per call and may hold ten thousand, so it keeps the sum instead of being walked.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final, cast

import msgspec

from understudy.endpoint.model import Block, ChatMessage, Media, Opaque, Text, ToolCall, ToolResult

FRAMING_BYTES: Final = 24  # Every message, block and tool costs a few tokens of its own.
_NO_TEXT: Final = frozenset({"signature", "encrypted_content"})  # base64 of the vendor's blocks


class Size(msgspec.Struct, frozen=True):
    """What messages come to; sums of each of their parts."""

    text_bytes: int = 0  # of all that is text, with a few for each message and block
    sealed_bytes: int = 0  # of what only the vendor reads, such as thinking in its signature; not in `text_bytes`
    images: int = 0
    documents: int = 0
    document_bytes: int = 0  # of those that are in the message itself
    files: int = 0  # that are inside the vendor's own blocks

    def __add__(self, other: Size) -> Size:
        return Size(
            self.text_bytes + other.text_bytes,
            self.sealed_bytes + other.sealed_bytes,
            self.images + other.images,
            self.documents + other.documents,
            self.document_bytes + other.document_bytes,
            self.files + other.files,
        )


_NOTHING: Final = Size()


class Messages(list[ChatMessage]):
    """Messages that know what they come to; they change by `append` and by assignment to a slice only."""

    __slots__ = ("size",)

    def __init__(self, messages: Iterable[ChatMessage] = ()) -> None:
        super().__init__(messages)
        self.size: Size = messages.size if isinstance(messages, Messages) else _walk(self)

    def __reduce__(self) -> tuple[Any, ...]:
        return Messages, (list(self),)  # Copies are made of the messages alone: their sizes are added up once.

    def append(self, message: ChatMessage, /) -> None:
        """Add a message."""
        super().append(message)
        self.size += size_of_message(message)

    def __setitem__(self, where: Any, what: Any) -> None:
        super().__setitem__(where, what)
        self.size = _walk(self)


def size_of(messages: list[ChatMessage]) -> Size:
    """Return what *messages* come to; known of `Messages`, else they are walked."""
    return messages.size if isinstance(messages, Messages) else _walk(messages)


def _walk(messages: list[ChatMessage]) -> Size:
    return sum(map(size_of_message, messages), _NOTHING)


def size_of_message(message: ChatMessage) -> Size:
    """Return what one message comes to.

    Nothing is encoded but tool arguments: the length of a plain string is known.
    """
    return sum(map(_block_size, message.content), Size(FRAMING_BYTES))


def _block_size(block: Block) -> Size:
    match block:
        case Text():
            return Size(text_size(block.text))
        case ToolResult():
            return Size(FRAMING_BYTES + text_size(block.content))
        case ToolCall():
            return Size(FRAMING_BYTES + text_size(block.name) + len(msgspec.json.encode(block.arguments)))
        case Opaque():
            text, files = _value_size(block.block)
            return Size(FRAMING_BYTES + text, _sealed_bytes(block.block), files=files)
        case Media():
            size = FRAMING_BYTES + text_size(block.text)
            if block.kind == "image":
                return Size(size, images=1)
            return Size(size, documents=1, document_bytes=len(block.data))


def _value_size(value: object) -> tuple[int, int]:
    """Return the bytes of the text in a vendor's block, and how many files are in it."""
    if isinstance(value, str):
        return text_size(value), 0
    if isinstance(value, list):
        parts = [_value_size(each) for each in cast(list[object], value)]
    elif isinstance(value, dict):
        fields = cast(dict[str, object], value)
        kind = fields.get("type")
        left_out = _NO_TEXT if kind == "text" else _NO_TEXT | {"data"}  # A document's `data` is base64 or plain text.
        parts = [_value_size(each) for name, each in fields.items() if name not in left_out]
        parts.append((0, 1 if kind == "base64" else 0))
    else:
        return 4, 0  # A number, a truth value, nothing.
    return sum(text for text, _ in parts), sum(files for _, files in parts)


def _sealed_bytes(value: object) -> int:
    if isinstance(value, list):
        return sum(_sealed_bytes(each) for each in cast(list[object], value))
    if not isinstance(value, dict):
        return 0
    fields = cast(dict[str, object], value)
    sealed = _NO_TEXT | {"data"} if fields.get("type") == "redacted_thinking" else _NO_TEXT
    return sum(
        text_size(each) if name in sealed and isinstance(each, str) else _sealed_bytes(each)
        for name, each in fields.items()
    )


def text_size(text: str) -> int:
    """Return the length of *text* in UTF-8."""
    return len(text) if text.isascii() else len(text.encode("utf-8", "surrogatepass"))
