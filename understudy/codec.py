"""Values to bytes and back: msgpack through msgspec, data only.

Nothing is revived into a type by name: the type that decodes is always given by our code (a handler's signature, a
state's annotation). Types that msgspec does not know are pydantic models (pydantic is looked at only when the program
has imported it) and objects that say how they are stored in `__understudy_data__`; `revive` turns those back.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from hashlib import blake2b
from typing import Any, TypeVar

import msgspec

from understudy.errors import EncodingFailed, InvalidArguments, StateUndecodable

T = TypeVar("T")
Revive = Callable[[Any, Any], Any]
"""`revive(type, data)`: the object of our own type *type*, or NotImplemented."""

# Values of these types cannot be changed by their receiver and are their own copies.
ATOMS = frozenset({int, str, bool, float, bytes, type(None)})


def _is_pydantic(cls: Any) -> bool:
    pydantic = sys.modules.get("pydantic")
    return pydantic is not None and isinstance(cls, type) and issubclass(cls, pydantic.BaseModel)


def _to_data(value: object) -> Any:
    kind = type(value)
    to_data = getattr(kind, "__understudy_data__", None)
    if to_data is not None:
        return to_data(value)
    if _is_pydantic(kind):
        model: Any = value  # pydantic is not imported here
        return model.model_dump(mode="json")
    raise NotImplementedError(f"a value of type {kind.__qualname__} cannot be stored")


_ENCODER = msgspec.msgpack.Encoder(enc_hook=_to_data)
# Sorted keys and sets: equal arguments have equal bytes in every process. Only for digests; data keeps its own order.
_CANONICAL = msgspec.msgpack.Encoder(enc_hook=_to_data, order="deterministic")


def encode(value: Any) -> bytes:
    """Return the bytes of *value*.

    Raises:
        EncodingFailed: It is not data: an unknown type, a lone surrogate, an integer beyond 64 bits, too deep.
    """
    try:
        return _ENCODER.encode(value)
    except (NotImplementedError, TypeError, ValueError, OverflowError, RecursionError) as error:
        raise _encoding_failed(value, error) from error


def digest(value: Any) -> bytes:
    """Return 16 bytes that are equal for equal values, in every process and Python version."""
    try:
        try:
            body = _CANONICAL.encode(value)
        except TypeError:  # A dict with other keys than text: they are sorted as text.
            plain = msgspec.to_builtins(value, str_keys=True, order="deterministic", enc_hook=_to_data)
            body = _CANONICAL.encode(plain)
        return blake2b(body, digest_size=16).digest()
    except (NotImplementedError, TypeError, ValueError, OverflowError, RecursionError) as error:
        raise _encoding_failed(value, error) from error


def text_bytes(text: str, what: str) -> int:
    """Return how many bytes a name takes on disk; *what* is what errors call it.

    Raises:
        InvalidArguments: It is no text, or holds a lone surrogate.
    """
    try:
        return len(text.encode())
    except (AttributeError, UnicodeEncodeError) as error:
        raise InvalidArguments(
            f"{what} is {text!r}; expected text without lone surrogates. Nothing was stored."
        ) from error


def _encoding_failed(value: Any, error: Exception) -> EncodingFailed:
    why = "it is nested too deeply" if isinstance(error, RecursionError) else str(error)
    return EncodingFailed(
        f"a value of type {type(value).__qualname__} cannot be stored: {why}. Expected msgspec Structs, dataclasses, "
        "attrs, TypedDicts, pydantic models, enums, dates, UUIDs, decimals, containers and plain values."
    )


class Codec:
    """Decoders of one system: its `revive` gives refs and jobs back their system."""

    def __init__(self, revive: Revive) -> None:
        def from_data(cls: Any, data: Any) -> Any:
            if _is_pydantic(cls):
                return cls.model_validate(data)
            value = revive(cls, data)
            if value is NotImplemented:
                raise NotImplementedError(f"data cannot become a {cls!r}")
            return value

        self._from_data = from_data

    def decoder(self, of: Any) -> Callable[[bytes], Any]:
        """Return the function that decodes bytes as type *of*; it raises what `msgspec` raises."""
        if of is Any or of is None:
            of = Any if of is Any else type(None)
        return msgspec.msgpack.Decoder(of, dec_hook=self._from_data).decode

    def from_json(self, text: str, of: Any) -> Any:
        """Return JSON as type *of*; raises what `msgspec` raises."""
        return msgspec.json.decode(text, type=of, dec_hook=self._from_data)

    def from_plain(self, value: Any, of: Any) -> Any:
        """Return decoded JSON as type *of*, numbers in text included; raises what `msgspec` raises."""
        return msgspec.convert(value, of, strict=False, dec_hook=self._from_data)


def decode_or_suspend(decode: Callable[[bytes], T], body: bytes, what: str) -> T:
    """Decode stored bytes; bytes that do not decode are an error that names *what* they are.

    Raises:
        StateUndecodable: They do not decode.
    """
    try:
        return decode(body)
    except Exception as error:  # also what hooks of users' types raise
        raise StateUndecodable(
            f"{what} does not decode: {error}. Give added fields defaults, or write a @migrate function."
        ) from error
