"""The tree of one system: built from what the system was given, started with it, stopped with it."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Coroutine, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import msgspec

from understudy.actors.members import Group, StaticActor
from understudy.actors.reach import reached
from understudy.codec import encode
from understudy.errors import InvalidDefinition, NotFound
from understudy.events import TraceEvent
from understudy.supervisor.member import Member
from understudy.supervisor.picture import Picture
from understudy.supervisor.specs import ROOT, Child, Spec, Supervisor, wrong_tree
from understudy.supervisor.tree import RunningSupervisor

if TYPE_CHECKING:
    from understudy.actors.kinds import ActorType
    from understudy.actors.system import System


def root_of(children: Sequence[Any]) -> Supervisor:
    """Return the supervisor of a system's list of children; raises `InvalidDefinition` for what is wrong anywhere in it."""
    root = Supervisor(ROOT, children)
    wrong = wrong_tree(root)
    if wrong:
        raise InvalidDefinition(f"the children of the system are wrong: {'; '.join(wrong)}.")
    return root


def below(spec: Spec) -> Iterator[Spec]:
    """Return a spec and every spec below it, in start order."""
    todo: list[Spec] = [spec]
    while todo:
        each = todo.pop()
        yield each
        if isinstance(each, Supervisor):
            todo.extend(reversed(each.children))


def template_of(spec: Spec) -> Any:
    """Return the actor class, or the tool, of a spec; None for a supervisor."""
    if isinstance(spec, Supervisor):
        return None
    return spec.actor if isinstance(spec, Child) else spec


class Supervision:
    """The supervisors of one opening of a system."""

    def __init__(self, system: System, spec: Supervisor) -> None:
        self._system = system
        self._running: dict[str, RunningSupervisor] = {}
        registry = system.registry
        for known in registry.types.values():
            known.group = None
            known.statics.clear()
        self._statics: set[tuple[str, str]] = set()
        self._templates: dict[Any, list[ActorType]] = {}  # and what only they reach, each in one of them
        for each in below(spec):
            if isinstance(each, Child):
                self._statics.add((each.actor.kind, each.id))
            elif not isinstance(each, Supervisor):
                self._templates[each] = [next(self._types_of(each))]
        taken = {each.kind for each in self._templates}
        self._kinds = frozenset(taken)
        for template, group in self._templates.items():
            group += [found for found in self._types_of(template) if found.kind not in taken]
            taken.update(found.kind for found in group)
        # What only static children reach, and tools that are called without being listed, has no supervisor.
        others: dict[str, ActorType] = {}
        for each in below(spec):
            if isinstance(each, Child):
                others |= {found.kind: found for found in self._types_of(each.actor) if found.cls is not each.actor}
        self.others = Group(system, [found for kind, found in others.items() if kind not in taken], None)
        self.root = RunningSupervisor(spec, self)

    def _types_of(self, template: Any) -> Iterator[ActorType]:
        return map(self._system.registry.take, reached([template]))

    async def start(self) -> None:
        """Start the tree; raises `StartFailed`, and then nothing of it runs."""
        self.others.start()
        await self.root.start()

    async def stop(self) -> None:
        """Stop the tree in reverse order, and then what stands beside it."""
        for member in (self.root, self.others):
            pending = member.stop(math.inf)
            if pending is not None:
                await pending

    def find(self, name: str) -> RunningSupervisor:
        """Return the supervisor called *name*; raises `NotFound`."""
        found = self._running.get(name)
        if found is None:
            known = ", ".join(map(repr, list(self._running)[:10]))
            raise NotFound(f"there is no supervisor {name!r}; there are: {known}.")
        return found

    def expects(self, type: ActorType, id: str) -> bool:
        """Whether the tree is going to have this actor, although it has not got to it yet."""
        return type.kind in self._kinds or (type.kind, id) in self._statics

    def expect_no_more(self, type: ActorType, id: str) -> None:
        """Note that a static child was forgotten, until its supervisor starts it anew."""
        self._statics.discard((type.kind, id))

    def picture(self) -> Picture:
        """Return the tree as it can be drawn."""
        return msgspec.structs.replace(self.root.picture(), also=self.others.kinds())

    async def store_picture(self) -> None:
        """Keep the tree's shape in the store, for who looks when no process runs."""
        body = encode(self.picture())
        if await self._system.store.picture() != body:
            batch = self._system.committer.touch()
            batch.picture = body
            batch.work += 1

    # --- what supervisors stand on ---------------------------------------------------------------------------------

    def now(self) -> float:
        """Return monotonic seconds."""
        return self._system.loop.time()

    def spawn(self, work: Coroutine[Any, Any, None], name: str) -> asyncio.Task[Any]:
        """Run a task of the system's."""
        return self._system.begin(work, name)

    def make(self, spec: Any, supervisor: RunningSupervisor) -> Member:
        """Return the member for a static child or a template."""
        if isinstance(spec, Child):
            return StaticActor(self._system, self._system.registry.type_of(spec.actor), spec, supervisor)
        types = self._templates.get(spec) or [
            found for found in self._types_of(spec) if found.kind == spec.kind or found.group is None
        ]
        return Group(self._system, types, supervisor)

    async def prepare(self, members: Sequence[Member]) -> None:
        """Read the static children among *members* from disk, many at a time."""
        activations = [member.call_up() for member in members if isinstance(member, StaticActor)]
        for activation in activations:
            if not activation.ready:
                await activation.door.enter()

    def check_new(self, spec: Spec) -> None:
        """Register the classes of a spec that is added to the tree; raises `InvalidDefinition` for what is there already."""
        wrong: list[str] = []
        if isinstance(spec, Supervisor):
            wrong += wrong_tree(spec)
        for each in below(spec):
            if isinstance(each, Supervisor):
                other: Member | None = self._running.get(each.name)
            else:
                type, *reached_too = map(self._system.registry.take, reached([template_of(each)]))
                if isinstance(each, Child):
                    for found in reached_too:
                        if found.group is None:
                            self.others.adopt(found)
                other = type.statics.get(each.id) if isinstance(each, Child) else type.group
            holder = self._holder_of(other)
            if holder is not None:
                wrong.append(f"{each!r} is in the tree already, under {holder!r}")
        if wrong:
            raise InvalidDefinition(f"the child is wrong: {'; '.join(wrong)}.")

    def _holder_of(self, member: Any) -> str | None:
        if member is self.root:
            return ROOT
        holder = above = getattr(member, "supervisor", None) or getattr(member, "parent", None)
        while above is not None:  # A supervisor that was deleted still has its children, but is no child itself.
            if not above.has(member):
                return None
            member, above = above, above.parent
        return holder.name if holder is not None else None

    def enter(self, supervisor: RunningSupervisor) -> None:
        """Note the supervisor under its name."""
        self._running[supervisor.name] = supervisor

    def leave(self, supervisor: RunningSupervisor) -> None:
        """Forget the supervisor, unless another one has its name by now."""
        if self._running.get(supervisor.name) is supervisor:
            del self._running[supervisor.name]

    def note(self, event: Callable[..., TraceEvent], supervisor: str, **facts: Any) -> None:
        """Put an event about a supervisor into the trace."""
        where = f"supervisor {supervisor}"
        system = self._system
        system.recorder.emit(
            event(at=system.wall(), correlation=where, span=where, life=system.life, supervisor=supervisor, **facts)
        )

    def ended(self, cause: BaseException | None) -> None:
        """Stop the system: its root has given up."""
        self._system.collapse(cause)
