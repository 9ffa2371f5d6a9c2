"""Which actors are in memory: they come with their first message, loaded many at a time, and leave when they are idle."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Collection
from typing import TYPE_CHECKING, Any

from understudy.actors import parking
from understudy.actors.activation import Activation
from understudy.actors.kinds import ActorType

if TYPE_CHECKING:
    from understudy.actors.system import System

logger = logging.getLogger(__name__)
_PAGE = 512  # actors read at a time
# Messages read at a time: some 40 ms of the reading thread, and who is read with actors that have much mail waits so long.
_MESSAGES = 4_096


class Population:
    """The actors of one system that are alive in memory."""

    def __init__(self, system: System, last_actor: int) -> None:
        self._system = system
        self.active: dict[int, Activation] = {}  # by number
        self.live = 0
        self.last_actor = last_actor
        self._to_load: list[Activation] = []
        self._loading = False
        self._short: list[Activation] = []  # of whose mailboxes a part of the window was read
        self._filling = False

    def activate(self, type: ActorType, id: str) -> Activation:
        """Return the actor, coming to life; its door opens when it has been loaded."""
        activation = type.live[id] = Activation(self._system, type, id)
        activation.used_at = self._system.loop.time()
        self.live += 1
        self._to_load.append(activation)
        if not self._loading:
            self._loading = True
            self._system.spawn(self._load(), "load")
        return activation

    async def _load(self) -> None:
        """Load actors, everyone that arrived meanwhile in one read."""
        try:
            while self._to_load:
                await asyncio.sleep(0)
                page, self._to_load = self._to_load[:_PAGE], self._to_load[_PAGE:]
                await self._load_page(page)
        finally:
            self._loading = False
        if self._on_demand() > self._system.limits.active_max:
            self.make_room()

    async def _load_page(self, page: list[Activation]) -> None:
        limit = self._system.limits.window_messages
        window = min(limit, max(1, _MESSAGES // len(page)))
        with self._system.withdrawals.reading():
            records = await self._system.store.load([(each.type.kind, each.id) for each in page], window)
            for activation, record in zip(page, records, strict=True):
                await activation.loaded(record, window)
                if activation.no:
                    self.active[activation.no] = activation
                activation.ready = True
                activation.door.let_in()
                activation.pump()
                if activation.tail and window < limit:
                    self._short.append(activation)
        if self._short and not self._filling:
            self._filling = True
            self._system.spawn(self._fill_windows(), "fill windows")

    async def _fill_windows(self) -> None:
        """Read the windows to their ends, one after the other: deadlines are watched of what is in memory only."""
        try:
            while self._short:
                short, self._short = self._short, []
                for activation in short:
                    if activation.type.live.get(activation.id) is activation:
                        await activation.fill_window()
        finally:
            self._filling = False

    def next_actor(self, activation: Activation) -> int:
        """Return the number of a new actor."""
        self.last_actor += 1
        self.active[self.last_actor] = activation
        return self.last_actor

    def by_no(self, no: int) -> Activation | None:
        """Return the actor with this number when it is in memory."""
        return self.active.get(no)

    async def of_no(self, no: int) -> Activation | None:
        """Return the actor with this number, loaded; None when its class is not registered."""
        activation = self.active.get(no)
        if activation is None:
            (record,) = await self._system.store.load([no], 0)
            if record is None or record.kind not in self._system.registry.types:
                return None
            type = self._system.registry.types[record.kind]
            activation = type.live.get(record.id) or self.activate(type, record.id)
        if not activation.ready:
            await activation.door.enter()
        return activation

    async def bring_back(self, numbers: Collection[int]) -> None:
        """Bring actors to life, those whose class is registered, with few reads."""
        missing = [no for no in numbers if no not in self.active]
        woken: list[Activation] = []
        for record in await self._system.store.load(missing, 0) if missing else ():
            if record is not None and record.kind in self._system.registry.types:
                type = self._system.registry.types[record.kind]
                if record.id not in type.live:
                    woken.append(self.activate(type, record.id))
        for activation in woken:
            if not activation.ready:
                await activation.door.enter()

    def _on_demand(self) -> int:
        # Static children stay in memory: they must not take the place of the others.
        return self.live - sum(len(type.statics) for type in self._system.registry.types.values())

    def make_room(self) -> None:
        """Let the actors that were unused for longest leave memory."""
        active_max = self._system.limits.active_max
        surplus = self._on_demand() - active_max * 9 // 10
        idle = [
            each for type in self._system.registry.types.values() for each in type.live.values() if each.may_leave()
        ]
        idle.sort(key=lambda each: each.used_at)
        for activation in idle[: max(0, surplus)]:
            self.passivate(activation)

    def passivate(self, activation: Activation) -> None:
        """Let an actor leave memory."""
        if activation.type.live.pop(activation.id, None) is not None:
            self.live -= 1
        self.active.pop(activation.no, None)
        if activation.status == "waiting":
            parking.leave(activation)
        if activation.type.stops and activation.object is not None:
            self._system.spawn(self.stop_object(activation, activation.object), "on_stop")

    async def stop_object(self, activation: Activation, made: Any) -> None:
        """Let the user's object release what it took; its error is told, and stops nobody."""
        type = activation.type
        if made is None or not type.stops or (type.starts and not made.__dict__.get("_started")):
            return
        try:
            await made.on_stop()
        except Exception:
            logger.exception("actor.on_stop_failed", extra={"kind": type.kind, "actor_id": activation.id})
