"""What a prompt is made of besides plain text: blocks of text, images and documents.

A block is checked when it is made, so that a wrong one is refused before anything is stored or paid for.
"""

from __future__ import annotations

from typing import Final, Literal

import msgspec

from understudy.endpoint.model import Block, Media, Text
from understudy.errors import InvalidArguments

_IMAGES: Final = ("image/jpeg", "image/png", "image/gif", "image/webp")
_PDF: Final = "application/pdf"


class Content(msgspec.Struct, frozen=True, omit_defaults=True):
    """One block of a prompt: text, or an image or a document by its bytes or its address.

    `Content(text="...")`, `Content(type="image", media_type="image/png", data=...)`, `Content(type="document", url="...")`;
    a plain document may also be given as `text`. Bytes have a `media_type`, addresses have none.

    Raises:
        InvalidArguments: The block lacks what its type needs, or has too much.
    """

    type: Literal["text", "image", "document"] = "text"
    text: str = ""
    media_type: str = ""
    data: bytes = b""
    url: str = ""

    def __post_init__(self) -> None:
        """Check it as a whole."""
        wrong = _wrong(self)
        if wrong:
            raise InvalidArguments(f"Content(type={self.type!r}): {wrong}")

    @property
    def block(self) -> Block:
        """The block as it goes into a conversation."""
        if self.type == "text":
            return Text(self.text)
        return Media(self.type, self.media_type, self.data, self.url, self.text)


def _wrong(content: Content) -> str:
    """Return what is wrong, and what to do."""
    given: object = content.data
    if not isinstance(given, bytes):
        return f"data must be bytes; got {type(given).__qualname__}. Read the file in binary mode."
    sources = [name for name in ("text", "data", "url") if getattr(content, name)]
    fitting = {"text": ("text",), "image": ("data", "url"), "document": ("data", "url", "text")}
    kinds: object = fitting.get(content.type)
    if not isinstance(kinds, tuple):
        return f"expected one of {', '.join(map(repr, fitting))}."
    if len(sources) != 1 or sources[0] not in kinds:
        has = " and ".join(sources) or "nothing"
        return f"it takes {'exactly one of ' if len(kinds) > 1 else ''}{', '.join(map(str, kinds))}; got {has}."
    if sources == ["url"] and not content.url.startswith(("https://", "http://")):
        return f"url must begin with https:// or http://; got {content.url!r}."
    return _wrong_media_type(content, sources[0])


def _wrong_media_type(content: Content, source: str) -> str:
    allowed: tuple[str, ...] = ("",)
    if source == "data":
        allowed = _IMAGES if content.type == "image" else (_PDF,)
    elif content.type == "document" and source == "text":
        allowed = ("", "text/plain")
    if content.media_type in allowed:
        return ""
    if allowed == ("",):
        return f"media_type belongs to data only; got {content.media_type!r} with {source}. Leave it out."
    return f"media_type must be one of {', '.join(repr(each) for each in allowed if each)}; got {content.media_type!r}."
