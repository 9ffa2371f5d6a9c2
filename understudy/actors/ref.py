"""Addresses of actors. A ref is typed as its actor, but only the actor's handlers and queries exist on it.

They are properties of a class of refs made for each actor class: looking for an attribute that is not there, to make it in
`__getattr__`, took a tenth of the time of an ask.
"""

from __future__ import annotations

import difflib
from typing import Any, Protocol

from understudy.actors.handler import Address, Bound, BoundQuery, Handler, Query
from understudy.errors import NoSuchHandler


class Target(Address, Protocol):
    """One actor of one system, as its refs see it."""

    kind: str
    id: str
    cls: type[Any]


class Ref:
    """The address of one actor; cheap to make, valid for ever. Can be stored in state and passed in messages."""

    __slots__ = ("_target",)
    _target: Target

    def __init__(self, target: Target) -> None:
        object.__setattr__(self, "_target", target)

    @property
    def id(self) -> str:
        """The actor's id."""
        return self._target.id

    def __getattr__(self, name: str) -> Any:
        target = self._target
        raise _no_such_handler(target, name, getattr(target.cls, name, None))

    def __setattr__(self, name: str, value: Any) -> None:
        raise NoSuchHandler(f"{self!r} is an address: '{name}' cannot be set from outside. Send a message instead.")

    # msgspec accepts a decoded ref only if it looks like an instance of its actor; nobody sets the class of a ref.
    @property  # type: ignore[misc]
    def __class__(self) -> type[Any]:  # pyright: ignore[reportIncompatibleMethodOverride]
        return self._target.cls

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Ref) and (other._target.kind, other._target.id) == (self._target.kind, self._target.id)

    def __hash__(self) -> int:
        return hash((self._target.kind, self._target.id))

    def __repr__(self) -> str:
        return f"<ref {self._target.kind}/{self._target.id}>"

    def __understudy_data__(self) -> tuple[str, str]:
        return self._target.kind, self._target.id


def ref_class(cls: type[Any]) -> type[Ref]:
    """Return the class of the refs to actors of *cls*."""
    exposed = {name: _exposed(getattr(cls, name, None)) for name in dir(cls) if not hasattr(Ref, name)}
    return type(Ref.__name__, (Ref,), {"__slots__": (), **{name: each for name, each in exposed.items() if each}})


def _exposed(exposed: Any) -> property | None:
    name: str = getattr(exposed, "name", "")

    def bound(ref: Ref) -> Bound[..., Any]:
        return Bound(ref._target, name)

    def bound_query(ref: Ref) -> BoundQuery[..., Any]:
        return BoundQuery(ref._target, name)

    if isinstance(exposed, Handler):
        return property(bound)
    return property(bound_query) if isinstance(exposed, Query) else None


def _no_such_handler(target: Target, name: str, exposed: Any) -> AttributeError:
    if name.startswith("__"):
        return AttributeError(name)
    cls = target.cls
    known = sorted(
        each for each in dir(cls) if isinstance(getattr(cls, each, None), (Handler, Query)) and not each.startswith("_")
    )
    if exposed is not None or name in ("state", "turn"):
        what = f"'{name}' of {target.kind}/{target.id} cannot be reached from outside: this is an address"
    else:
        close = difflib.get_close_matches(name, known, 1, cutoff=0.75)
        hint = f"; did you mean '{close[0]}'?" if close else "."
        return NoSuchHandler(
            f"{cls.__name__} has no handler or query '{name}'{hint} It has: {', '.join(known) or 'none'}."
        )
    return NoSuchHandler(f"{what}. It has: {', '.join(known) or 'none'}.")
