"""Who watches an actor: told what becomes of it, in order, and never before it is on disk."""

from __future__ import annotations

from typing import TYPE_CHECKING
from weakref import WeakSet, WeakValueDictionary

from understudy.actors.stream import Stream
from understudy.events import ActorChange, Change

if TYPE_CHECKING:
    from understudy.actors.activation import Activation
    from understudy.actors.system import System


class Watching:
    """The watchers of one system's actors."""

    def __init__(self, system: System) -> None:
        self._system = system
        # By kind and id. A stream keeps the set that it is in, so both go with the last reader.
        self.watchers: WeakValueDictionary[tuple[str, str], WeakSet[Stream[ActorChange]]] = WeakValueDictionary()

    def watch(self, kind: str, id: str) -> Stream[ActorChange]:
        """Return a stream of what becomes of an actor from now on."""
        together = self.watchers.get((kind, id))
        if together is None:
            together = self.watchers[(kind, id)] = WeakSet()
        return Stream(f"watch({kind}/{id})", _as_it_is, together)

    def notice(self, activation: Activation, change: Change, reason: str) -> None:
        """Tell those who watch the actor, once everything up to here is on disk."""
        if not self.watchers:
            return
        together = self.watchers.get((activation.type.kind, activation.id))
        streams = list(together or ())
        if not streams:
            return
        what = ActorChange(change, reason, self._system.wall())

        def tell() -> None:
            for stream in streams:
                stream.hear(what)

        batch = self._system.committer.touch()
        batch.after.append(tell)
        batch.work += 1

    def end(self) -> None:
        """End every stream: the system has closed."""
        for together in list(self.watchers.values()):
            for stream in list(together):
                stream.hear(None)


def _as_it_is(change: ActorChange) -> ActorChange:
    return change
