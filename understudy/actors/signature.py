"""A function's signature as data: one struct for its arguments, one type for its result.

Arguments are stored by name and those equal to their default are left out, so that a parameter with a default can be
added without touching stored messages.
"""

from __future__ import annotations

import inspect
import sys
import typing
from collections.abc import Callable
from typing import Any

import msgspec
from typing_extensions import TypeVar

from understudy.codec import ATOMS, Codec, digest, encode
from understudy.errors import EncodingFailed, InvalidArguments, InvalidDefinition

_PLAIN_CHARS = 256  # longer texts are measured, and others looked through for lone surrogates


class Signature:
    """The parameters and the result of one function, resolved to types."""

    def __init__(self, function: Callable[..., Any], name: str, *, owner: type | None) -> None:
        """Resolve the annotations of *function*; with an *owner* its first parameter is `self`.

        Raises:
            InvalidDefinition: An annotation is missing or names nothing, or the function takes *args or **kwargs.
        """
        self.name = name
        self.doc = inspect.getdoc(function) or ""
        hints = _hints(function, name, owner)
        parameters = list(inspect.signature(function).parameters.values())
        if owner is not None:
            parameters = parameters[1:]
        self.parameters = [parameter.name for parameter in parameters]
        positional: list[Any] = []
        keyword: list[Any] = []
        for parameter in parameters:
            fields = keyword if parameter.kind is inspect.Parameter.KEYWORD_ONLY else positional
            annotation = hints[parameter.name]
            if parameter.default is inspect.Parameter.empty:
                fields.append((parameter.name, annotation))
            elif type(parameter.default) in ATOMS:
                fields.append((parameter.name, annotation, parameter.default))
            else:
                default = parameter.default
                fields.append((parameter.name, annotation, msgspec.field(default_factory=_constant(default))))
        self.arguments = msgspec.defstruct(
            name.replace(".", "_"), positional, omit_defaults=True, forbid_unknown_fields=True, eq=False
        )
        self.keywords = tuple(field[0] for field in keyword)
        if keyword:
            self.arguments = msgspec.defstruct(
                name.replace(".", "_"), keyword, bases=(self.arguments,), kw_only=True, omit_defaults=True, eq=False
            )
        self.returns: Any = hints["return"]


def _constant(value: Any) -> Callable[[], Any]:
    return lambda: value


def check_annotations(function: Callable[..., Any], name: str, *, method: bool) -> None:
    """Refuse a function whose message could not be typed end to end.

    Raises:
        InvalidDefinition: A parameter or the result has no annotation, or there are *args or **kwargs.
    """
    signature = inspect.signature(function)
    parameters = list(signature.parameters.values())[1 if method else 0 :]
    for parameter in parameters:
        if parameter.kind in (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD):
            raise InvalidDefinition(
                f"{name} takes {parameter}: name every parameter, so that it can be stored by name."
            )
        if parameter.annotation is inspect.Parameter.empty:
            raise InvalidDefinition(
                f"{name}: parameter '{parameter.name}' has no annotation; write its type, e.g. {parameter.name}: int."
            )
    if signature.return_annotation is inspect.Signature.empty:
        raise InvalidDefinition(f"{name} has no return annotation; write '-> None' if it returns nothing.")


def _hints(function: Callable[..., Any], name: str, owner: type | None) -> dict[str, Any]:
    names: dict[str, Any] = {}
    if owner is not None:
        for base in reversed(owner.__mro__):
            names[base.__name__] = base
    bindings: dict[Any, Any] = {}
    if owner is not None:
        for base in owner.__mro__:
            parameters = vars(base).get("__parameters__", ())
            if parameters and base is not owner:
                bindings.update(zip(parameters, type_arguments(owner, base), strict=True))
    try:
        # The defining module's names first; a class local to a function is found through its owner.
        module = sys.modules.get(function.__module__)
        hints = typing.get_type_hints(
            function,
            globalns={**names, **(vars(module) if module else {}), **getattr(function, "__globals__", {})},
            localns=names,
            include_extras=True,
        )
        return {key: _filled(hint, bindings) for key, hint in hints.items()}
    except NameError as error:
        raise InvalidDefinition(
            f"{name}: an annotation names {error.name!r}, which does not exist in module {function.__module__}; "
            "import it at run time (not under TYPE_CHECKING)."
        ) from error


def _filled(hint: Any, bindings: dict[Any, Any]) -> Any:
    """Return *hint* with the type parameters that a subclass has given filled in."""
    if isinstance(hint, (typing.TypeVar, TypeVar)):
        return bindings.get(hint, hint)
    parameters = getattr(hint, "__parameters__", ())
    if parameters and hasattr(hint, "__origin__"):
        return hint[tuple(bindings.get(parameter, parameter) for parameter in parameters)]
    return hint


def type_arguments(cls: type[Any], generic: Any) -> tuple[Any, ...]:
    """Return what *cls* gives for the type parameters of its base *generic*, defaults filled in."""
    parameters = generic.__parameters__
    if cls is generic:
        return tuple(_default(parameter) for parameter in parameters)
    for base in getattr(cls, "__orig_bases__", cls.__bases__) if "__orig_bases__" in vars(cls) else cls.__bases__:
        origin = typing.get_origin(base) or base
        if not (isinstance(origin, type) and issubclass(origin, generic)):
            continue
        given = typing.get_args(base)
        own = getattr(origin, "__parameters__", ())
        known = {
            parameter: given[number] if number < len(given) else _default(parameter)
            for number, parameter in enumerate(own)
        }
        if origin is generic:
            return tuple(known[parameter] for parameter in parameters)
        return tuple(_filled(each, known) for each in _raw_arguments(origin, generic))
    return tuple(_default(parameter) for parameter in parameters)


def _raw_arguments(cls: type[Any], generic: Any) -> tuple[Any, ...]:
    """Return what *cls* gives for the parameters of *generic*, its own parameters left open."""
    for base in vars(cls).get("__orig_bases__", cls.__bases__):
        origin = typing.get_origin(base) or base
        if isinstance(origin, type) and issubclass(origin, generic):
            given = typing.get_args(base)
            own = getattr(origin, "__parameters__", ())
            known = {
                parameter: given[number] if number < len(given) else _default(parameter)
                for number, parameter in enumerate(own)
            }
            if origin is generic:
                return tuple(known.values())
            return tuple(_filled(each, known) for each in _raw_arguments(origin, generic))
    return tuple(_default(parameter) for parameter in generic.__parameters__)


def _default(parameter: Any) -> Any:
    default = getattr(parameter, "__default__", None)
    return type(None) if default is None else default


class Wire:
    """A signature bound to one system's codec: what is sent, checked and received."""

    __slots__ = ("_arguments", "_atom", "_decode", "_decode_result", "name", "parameters", "signature")

    def __init__(self, signature: Signature, codec: Codec) -> None:
        self.signature = signature
        self.name = signature.name
        self.parameters = signature.parameters
        self._arguments = signature.arguments
        try:
            self._decode = codec.decoder(signature.arguments)
            self._decode_result = codec.decoder(signature.returns)
        except TypeError as error:
            raise InvalidDefinition(f"{signature.name}: a type in its signature cannot be stored: {error}") from error
        self._atom = signature.returns if signature.returns in ATOMS else None

    def encode(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[bytes, Any]:
        """Return the arguments' bytes and their decoded copy, as the receiver will see them.

        Raises:
            InvalidArguments: They do not fit the signature; the text names the argument.
            EncodingFailed: A value is not data.
        """
        try:
            body = encode(self._arguments(*args, **kwargs))
            return body, self._decode(body)
        except EncodingFailed as error:
            raise EncodingFailed(f"{self.name}: {error}") from error
        except (msgspec.ValidationError, TypeError, ValueError, NotImplementedError) as error:
            raise self._wrong(error) from error

    def decode(self, body: bytes) -> Any:
        """Return stored arguments; raises what `msgspec` raises."""
        return self._decode(body)

    def digest(self, arguments: Any) -> bytes:
        """Return 16 bytes that are equal for equal arguments, by name."""
        return digest(arguments)

    def encode_result(self, value: Any) -> bytes:
        """Return the result's bytes.

        Raises:
            EncodingFailed: It is not data, or not of the annotated type.
        """
        body = encode(value)
        try:
            self._decode_result(body)
        except (msgspec.ValidationError, TypeError, ValueError, NotImplementedError) as error:
            raise EncodingFailed(
                f"{self.name} returned a {type(value).__qualname__}, which is not the annotated "
                f"{self.signature.returns}: {error}"
            ) from error
        return body

    def is_plain(self, value: Any) -> bool:
        """Whether *value* is its own copy, of the annotated type, and small data for sure: no bytes need be made."""
        kind = type(value)  # pyright: ignore[reportUnknownVariableType] - a user's value; a cast would cost time here
        if kind is not self._atom:
            return False
        if kind is int:
            fits: bool = -(1 << 63) <= value < 1 << 64
            return fits
        if kind is str:
            ascii_text: bool = len(value) < _PLAIN_CHARS and value.isascii()
            return ascii_text
        return kind is not bytes or len(value) < _PLAIN_CHARS

    def copy_result(self, value: Any) -> Any:
        """Return what a receiver in another process would get: checked, and sharing nothing with *value*."""
        if self.is_plain(value):
            return value
        return self._decode_result(self.encode_result(value))

    def decode_result(self, body: bytes) -> Any:
        """Return a stored result; raises what `msgspec` raises."""
        return self._decode_result(body)

    def _wrong(self, error: Exception) -> InvalidArguments:
        what = str(error).replace("`$.", "`").replace("Object ", "")
        expected = ", ".join(self.parameters) or "no arguments"
        return InvalidArguments(
            f"{self.name} was called with wrong arguments: {what}. It takes: {expected}. Nothing was stored."
        )
