"""Errors as data, and back. No type is ever looked up by a name from data.

A declared error is rebuilt from its declaration; one of our own from the closed list in `errors.py`; any other arrives
as `HandlerFailed` or `StepFailed` with its type's name, its text and its traceback.
"""

from __future__ import annotations

import traceback
from collections.abc import Sequence
from typing import Any

import msgspec

from understudy import errors
from understudy.codec import encode
from understudy.errors import EncodingFailed, HandlerFailed, StepFailed, ToolFailed, UnderstudyError
from understudy.mailbox.journal import Failure

_OWN: dict[str, type[UnderstudyError]] = {
    name: each for name, each in vars(errors).items() if isinstance(each, type) and issubclass(each, UnderstudyError)
}
_TRACEBACK_CHARS = 20_000  # enough for a deep stack; a runaway recursion must not fill the store
_MESSAGE_CHARS = 10_000


def to_failure(error: BaseException, raises: Sequence[type[Exception]] = ()) -> Failure:
    """Return *error* as data; *raises* are the errors that its handler or step declares."""
    text = _text(error)
    declared = declared_as(error, raises)
    if declared is not None:
        facts = {"args": list(error.args), "attributes": _data(vars(error))}
        return Failure("declared", declared.__name__, text, "", _facts(facts) or _facts({**facts, "args": [text]}))
    if isinstance(error, UnderstudyError):
        return Failure("own", type(error).__name__, text, "", _facts(_plain(vars(error).get("_facts", {}))))
    stack = _printable("".join(traceback.format_exception(error)))
    return Failure("failed", _name(error), text, stack[-_TRACEBACK_CHARS:])


def declared_as(error: BaseException, raises: Sequence[type[Exception]]) -> type[Exception] | None:
    """Return the declared class that *error* is an instance of, the nearest first, or None."""
    for cls in type(error).__mro__:
        if cls in raises:
            return cls
    return None


def to_error(
    failure: Failure, what: str, raises: Sequence[type[Exception]] = (), *, role: str = "handler"
) -> Exception:
    """Return the exception that *failure* is at its receiver; *what* names the handler, step or tool that failed."""
    error = _error_of(failure, what, raises, role)
    if failure.traceback:
        error.add_note(f"Where it happened:\n{failure.traceback}")
    if failure.dead_letter:
        id = failure.dead_letter
        error.add_note(
            f"The message is kept as dead letter {id}, and holds its key: system.redeliver({id!r}) tries it again, "
            f"system.discard({id!r}) forgets it."
        )
    return error


def _error_of(failure: Failure, what: str, raises: Sequence[type[Exception]], role: str) -> Exception:
    if failure.kind == "declared":
        for cls in raises:
            if cls.__name__ == failure.type:
                return _rebuild(cls, failure)
    if failure.kind == "own" and failure.type in _OWN:
        facts: dict[str, Any] = msgspec.msgpack.decode(failure.arguments) if failure.arguments else {}
        if failure.dead_letter:
            facts = {**facts, "dead_letter": failure.dead_letter}
        return _OWN[failure.type](failure.message, **facts)
    cause = f"{failure.type}: {failure.message}"
    facts = {"cause_type": failure.type, "cause": failure.message, "traceback": failure.traceback}
    if role == "tool":
        return ToolFailed(f"tool {what} failed with {cause}", tool=what, step=what, **facts)
    if role == "step":
        return StepFailed(f"step {what} failed with {cause}", step=what, **facts)
    kept = f"; the message is kept as dead letter {failure.dead_letter}" if failure.dead_letter else ""
    return HandlerFailed(f"{what} failed with {cause}{kept}", dead_letter=failure.dead_letter or "", **facts)


def _rebuild(cls: type[Exception], failure: Failure) -> Exception:
    facts: dict[str, Any] = msgspec.msgpack.decode(failure.arguments) if failure.arguments else {}
    args = facts.get("args", [failure.message])
    try:
        error = cls(*args)
    except Exception:  # its constructor takes other arguments than it keeps in `args`
        error = cls.__new__(cls)
        error.args = tuple(args)
    for name, value in facts.get("attributes", {}).items():
        if name not in vars(error):
            try:
                setattr(error, name, value)
            except AttributeError:
                pass  # a property or a slot that the constructor sets
    return error


def _facts(value: Any) -> bytes | None:
    try:
        return encode(value)
    except EncodingFailed:
        return None


def _data(attributes: dict[str, Any]) -> dict[str, Any]:
    """Return those attributes that can be stored: an error is an answer also when it carries a connection."""
    return {name: value for name, value in attributes.items() if _facts(value) is not None}


def _text(error: BaseException) -> str:
    try:
        return _printable(str(error))[:_MESSAGE_CHARS]
    except Exception as broken:  # its own `__str__` fails
        return f"<{_name(error)} without text: its __str__ raised {type(broken).__name__}>"


def _plain(facts: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in facts.items() if isinstance(value, (str, int, float, bool, type(None)))}


def _name(error: BaseException) -> str:
    cls = type(error)
    return cls.__qualname__ if cls.__module__ == "builtins" else f"{cls.__module__}.{cls.__qualname__}"


def _printable(text: str) -> str:
    """Return *text* without lone surrogates, which cannot be stored."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")
