"""What a supervisor is told to start: children and their restart types. Checked as a whole before anything starts."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import ClassVar, Literal, Protocol, get_args

import msgspec

from understudy.errors import InvalidDefinition
from understudy.supervisor.policy import Policy

RestartType = Literal["permanent", "transient", "temporary"]
Strategy = Literal["one_for_one", "one_for_all", "rest_for_one"]
AutoShutdown = Literal["never", "any_significant", "all_significant"]
OnExceeded = Literal["suspend", "escalate"]

ROOT = "root"  # name of the supervisor of a system's list of children


class ActorClass(Protocol):
    """What the tree needs to know of an actor class."""

    kind: ClassVar[str]


class ToolLike(Protocol):
    """What the tree needs to know of a tool, which has a class of actors of its own."""

    kind: str


class _Named(msgspec.Struct, frozen=True):
    actor: type[ActorClass]
    id: str


class Child(_Named, frozen=True, kw_only=True):
    """A static child: one actor that its supervisor starts, keeps in memory and restarts.

    Args:
        actor: Its class.
        id: The actor's id, and the child's name within its supervisor.
        restart: "permanent" always; "transient" only when it ends abnormally; "temporary" never, and its spec is
            forgotten when it ends.
        shutdown_s: How long stopping waits for its running turn and `on_stop`; 0 abandons at once, inf waits.
        significant: Its end may end the supervisor: see `Supervisor(auto_shutdown=)`.

    Raises:
        InvalidDefinition: Names each field that is wrong, its value and what is allowed.
    """

    restart: RestartType = "permanent"
    shutdown_s: float = 5.0
    significant: bool = False

    def __post_init__(self) -> None:
        wrong = [*_wrong_child(self.restart, self.shutdown_s, significant=self.significant)]
        if not _is_text(self.id):
            wrong.insert(0, f"id={self.id!r}: expected a text that is not empty")
        if not (_has_kind(self.actor) and isinstance(self.actor, type)):
            wrong.insert(0, f"actor={self.actor!r}: expected an actor class")
        if wrong:
            raise InvalidDefinition(f"Child is wrong: {'; '.join(wrong)}.")


class _Group(msgspec.Struct, frozen=True):
    name: str
    children: Sequence[type[ActorClass] | ToolLike | Child | Supervisor]


class Supervisor(_Group, frozen=True, kw_only=True):
    """A supervisor: starts its children in order, restarts those that fail, gives up when that happens too often.

    Behaves as OTP's. A class among the children is a template: its actors come to life on demand, any number of them.
    A supervisor that has given up exits with `shutdown`, which is a normal end: one that is `restart="transient"` is
    then not restarted.

    Args:
        name: Unique within the system: `system.supervisor(name)`.
        children: Actor classes (templates), `Child(...)` and other supervisors, started from left to right.
        strategy: What else is restarted when a child is: "one_for_one" nothing, "one_for_all" all the others,
            "rest_for_one" those started after it.
        max_restarts: More restarts than this within `within_s` seconds, and it gives up: it stops its children and
            exits, and its own supervisor decides.
        within_s: The length of that window.
        auto_shutdown: Whether it exits when "any_significant" child ends by itself, or the last ("all_significant").
        policy: Rules for failures that the policies of its actors do not answer; then come its parents'.
        on_exceeded: What becomes of a template's actor whose messages ended badly more than `max_restarts` times within
            `within_s`: "suspend" (the default) holds that one; "escalate" counts all actors of the class together, and
            the class fails as one child.
        restart: What its own supervisor does when it exits.
        shutdown_s: How long its own supervisor waits for it to stop.
        significant: Its end may end its own supervisor.

    Raises:
        InvalidDefinition: Names each field that is wrong, its value and what is allowed.
    """

    strategy: Strategy = "one_for_one"
    max_restarts: int = 3
    within_s: float = 5.0
    auto_shutdown: AutoShutdown = "never"
    policy: Policy | None = None
    on_exceeded: OnExceeded | None = None
    restart: RestartType = "permanent"
    shutdown_s: float = math.inf
    significant: bool = False

    def __post_init__(self) -> None:
        wrong: list[str] = []
        if not _is_text(self.name):
            wrong.append(f"name={self.name!r}: expected a text that is not empty")
        wrong += _one_of("strategy", self.strategy, get_args(Strategy))
        if not _is_count(self.max_restarts):
            wrong.append(f"max_restarts={self.max_restarts!r}: expected a whole number, 0 or more")
        if not (_is_number(self.within_s) and 0 < self.within_s < math.inf):
            wrong.append(f"within_s={self.within_s!r}: expected seconds above 0, and finite")
        wrong += _one_of("auto_shutdown", self.auto_shutdown, get_args(AutoShutdown))
        if not _is_policy(self.policy):
            wrong.append(f"policy={self.policy!r}: expected Policy(on(...), ...)")
        if self.on_exceeded is not None:
            wrong += _one_of("on_exceeded", self.on_exceeded, get_args(OnExceeded))
        wrong += _wrong_child(self.restart, self.shutdown_s, significant=self.significant)
        if not _is_list(self.children):
            wrong.append(
                f"children={self.children!r}: expected a list of actor classes, Child(...) and Supervisor(...)"
            )
        else:
            msgspec.structs.force_setattr(self, "children", tuple(self.children))
            wrong += wrong_children(self)
        if wrong:
            raise InvalidDefinition(f"Supervisor {self.name!r} is wrong: {'; '.join(wrong)}.")


Spec = type[ActorClass] | ToolLike | Child | Supervisor


def child_id(spec: Spec) -> str:
    """Return the name of a child within its supervisor: an actor's id, a supervisor's name, a template's kind."""
    if isinstance(spec, Child):
        return spec.id
    return spec.name if isinstance(spec, Supervisor) else spec.kind


def wrong_children(parent: Supervisor) -> Iterator[str]:
    """Say what is wrong with the children of one supervisor, as they stand beside each other."""
    seen: dict[str, Spec] = {}
    for spec in parent.children:
        yield from wrong_beside(parent, spec)
        if not _is_spec(spec):
            continue
        id = child_id(spec)
        other = seen.get(id)
        if other is not None and other is not spec and isinstance(other, type) and isinstance(spec, type):
            yield (
                f"{spec.__qualname__} and {other.__qualname__} have one kind, {id!r}: give one of them another, class "
                "X(Actor, kind='...')"
            )
        elif other is not None:
            yield f"two children have the id {id!r}: give one of them another"
        seen[id] = spec


def wrong_beside(parent: Supervisor, spec: Spec) -> Iterator[str]:
    """Say what is wrong with *spec* as a child of *parent*."""
    if not _is_spec(spec):
        yield f"it takes actor classes, tools, Child(...) and Supervisor(...); got {spec!r}"
    if isinstance(spec, (Child, Supervisor)) and spec.significant and parent.auto_shutdown == "never":
        yield (
            f"child {child_id(spec)!r} is significant=True with auto_shutdown='never': set auto_shutdown to "
            "'any_significant' or 'all_significant', or significant=False"
        )


def wrong_tree(root: Supervisor) -> list[str]:
    """Say what is wrong with a whole tree: what one supervisor cannot see."""
    wrong: list[str] = []
    seen: dict[object, str] = {}
    todo = [root]
    while todo:
        parent = todo.pop()
        for spec in (parent, *parent.children):
            if isinstance(spec, Supervisor):
                if spec is not parent:
                    todo.append(spec)
                    continue
                key: object = ("supervisor", spec.name)
                what = f"supervisor {spec.name!r}"
            elif isinstance(spec, Child):
                key, what = (spec.actor.kind, spec.id), f"static child {spec.actor.kind}/{spec.id}"
            else:
                key, what = spec.kind, f"template {spec.kind!r}"
            if key in seen:
                wrong.append(f"{what} is in the tree twice, under {seen[key]!r} and {parent.name!r}")
            seen[key] = parent.name
    return wrong


def _wrong_child(restart: object, shutdown_s: object, *, significant: object) -> Iterator[str]:
    yield from _one_of("restart", restart, get_args(RestartType))
    if not (isinstance(shutdown_s, (int, float)) and _is_number(shutdown_s) and shutdown_s >= 0):
        yield f"shutdown_s={shutdown_s!r}: expected seconds, 0 to inf"
    if not isinstance(significant, bool):
        yield f"significant={significant!r}: expected True or False"
    elif significant and restart == "permanent":
        yield "significant=True with restart='permanent': one that always comes back never ends; make it transient or temporary"


def _one_of(field: str, value: object, allowed: tuple[str, ...]) -> Iterator[str]:
    if value not in allowed:
        yield f"{field} must be one of {', '.join(map(repr, allowed))}; got {value!r}"


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and not math.isnan(value)


def _is_spec(value: object) -> bool:
    return isinstance(value, (Child, Supervisor)) or _has_kind(value)


def _has_kind(value: object) -> bool:
    return isinstance(getattr(value, "kind", None), str)


def _is_text(value: object) -> bool:
    return isinstance(value, str) and bool(value)


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _is_policy(value: object) -> bool:
    return value is None or isinstance(value, Policy)


def _is_list(value: object) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str)
