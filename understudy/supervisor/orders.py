"""Orders to a running supervisor: OTP's start_child, terminate_child, restart_child, delete_child and its two questions.

They go through the supervisor's own mailbox: carried out in order, also when who gave them is cancelled meanwhile.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from functools import partial
from typing import TYPE_CHECKING, TypeVar

import msgspec

from understudy.errors import AlreadyPresent, AlreadyStarted, InvalidDefinition, NotFound, Restarting, Running
from understudy.supervisor.member import Slot
from understudy.supervisor.picture import ChildStatus, Picture, Role
from understudy.supervisor.specs import Child, RestartType, Spec, Supervisor, child_id, wrong_beside

if TYPE_CHECKING:
    from understudy.supervisor.tree import RunningSupervisor

T = TypeVar("T")


class ChildInfo(msgspec.Struct, frozen=True):
    """A child of a supervisor: its name there, what it is, and how it is. `kind` is a supervisor's strategy."""

    id: str
    role: Role
    kind: str
    status: ChildStatus
    restart: RestartType


class ChildCounts(msgspec.Struct, frozen=True):
    """How many children a supervisor has. A template counts the actors that are alive; restarting is not active."""

    specs: int
    active: int
    supervisors: int
    workers: int


class Orders:
    """What one running supervisor may be ordered to do."""

    def __init__(self, supervisor: RunningSupervisor) -> None:
        self._supervisor = supervisor

    async def start_child(self, spec: Spec) -> ChildInfo:
        """Add a child and start it."""
        return await self.carry_out(partial(self._start_new, spec))

    async def terminate_child(self, id: str) -> None:
        """Stop a child and keep its spec."""
        await self.carry_out(partial(self._terminate, id))

    async def restart_child(self, id: str) -> None:
        """Start a child that was stopped."""
        await self.carry_out(partial(self._restart_stopped, id))

    async def resume_child(self, id: str) -> None:
        """Start a child again that was held or stopped by its policy; no restart is counted."""
        # Also while the supervisor is being started: it may have passed this child already.
        await self.carry_out(partial(self._resume, id), waits_for_start=True)

    async def delete_child(self, id: str) -> None:
        """Forget a child that was stopped."""
        await self.carry_out(partial(self._delete, id))

    async def which_children(self) -> list[ChildInfo]:
        """Return the children in start order."""
        return await self.carry_out(self._which)

    async def count_children(self) -> ChildCounts:
        """Return how many there are."""
        return await self.carry_out(self._count)

    async def carry_out(self, work: Callable[[], Awaitable[T]], *, waits_for_start: bool = False) -> T:
        """Do *work* in the supervisor's turn; raises `NotFound` when it is not running then."""

        async def checked() -> T:
            self._check_running()
            return await work()

        if not waits_for_start or self._supervisor.inbox.is_idle():
            self._check_running()
        done = self._supervisor.inbox.post(checked)
        await asyncio.wait([done])  # Who is cancelled here leaves the order to be carried out.
        if done.cancelled():
            raise NotFound(f"supervisor {self._supervisor.name!r} was abandoned before it had carried out the order.")
        result: T = done.result()
        return result

    def _check_running(self) -> None:
        if not self._supervisor.running:
            raise NotFound(f"supervisor {self._supervisor.name!r} is not running: it was stopped, or it has given up.")

    async def _start_new(self, spec: Spec) -> ChildInfo:
        wrong = list(wrong_beside(self._supervisor.spec, spec))
        if wrong:
            raise InvalidDefinition(f"Supervisor {self._supervisor.name!r} cannot take it: {'; '.join(wrong)}.")
        known = self._supervisor.slots.get(child_id(spec))
        if known is not None and known.state != "running":
            raise AlreadyPresent(
                f"child {known.id!r} of supervisor {self._supervisor.name!r} is there, not running; restart_child or delete_child it.",
                child=known.id,
            )
        if known is not None:
            raise AlreadyStarted(
                f"child {known.id!r} of supervisor {self._supervisor.name!r} runs already.", child=known.id
            )
        self._supervisor.stage.check_new(spec)
        slot = self._supervisor.slot_for(spec)
        self._supervisor.slots[slot.id] = slot
        try:
            await self._supervisor.stage.prepare([slot.member])
            await self._supervisor.start_slot(slot)
        except Exception as error:
            del self._supervisor.slots[slot.id]
            slot.member.forget("it could not be started")
            raise self._supervisor.start_failed(slot, error) from error
        return _info(slot)

    async def _terminate(self, id: str) -> None:
        slot = self._slot(id)
        was = slot.state
        await self._supervisor.stop_slots([slot])
        if was != "stopped":
            slot.member.retire("terminate_child")
        if was == "restarting" and self._supervisor.spec.strategy != "one_for_one":
            # As in OTP those stay down that were stopped for its restart; they must say so, and not let callers wait.
            for other in self._supervisor.slots.values():
                if other.state == "stopped" and other is not slot:
                    other.member.retire(f"it was stopped for the restart of {id!r}, which was terminated meanwhile")

    async def _restart_stopped(self, id: str) -> None:
        slot = self._slot(id)
        self._refuse_alive(slot, "restart_child starts one that was stopped")
        await self._start_again(slot)
        if slot.state == "running":
            slot.member.restarted("restart_child")

    async def _resume(self, id: str) -> None:
        slot = self._slot(id)
        if not slot.member.is_held():
            return  # Somebody else was quicker.
        if slot.state == "running":
            pending = slot.member.stop(slot.shutdown_s)  # Other turns of it may still run.
            if pending is not None:
                await pending
        slot.state = "stopped"
        await self._start_again(slot)

    async def _start_again(self, slot: Slot) -> None:
        hold_again = slot.member.revive()
        try:
            await self._supervisor.start_slot(slot)
        except Exception as error:
            hold_again("it could not be started")
            raise self._supervisor.start_failed(slot, error) from error

    async def _delete(self, id: str) -> None:
        slot = self._slot(id)
        self._refuse_alive(slot, "terminate_child it first")
        del self._supervisor.slots[id]
        slot.member.forget("delete_child")

    async def _which(self) -> list[ChildInfo]:
        return [_info(slot) for slot in self._supervisor.slots.values()]

    async def _count(self) -> ChildCounts:
        active = workers = supervisors = 0
        for slot in self._supervisor.slots.values():
            if isinstance(slot.spec, Supervisor):
                supervisors += 1
                active += slot.state == "running"
            elif isinstance(slot.spec, Child):
                workers += 1
                active += slot.state == "running"
            else:
                alive = slot.member.picture().instances
                workers += alive
                active += alive
        return ChildCounts(len(self._supervisor.slots), active, supervisors, workers)

    def _slot(self, id: str) -> Slot:
        slot = self._supervisor.slots.get(id)
        if slot is None:
            known = ", ".join(map(repr, list(self._supervisor.slots)[:10])) or "none"
            raise NotFound(f"supervisor {self._supervisor.name!r} has no child {id!r}; it has: {known}.")
        return slot

    def _refuse_alive(self, slot: Slot, what: str) -> None:
        if slot.state == "running":
            raise Running(f"child {slot.id!r} of supervisor {self._supervisor.name!r} runs; {what}.", child=slot.id)
        if slot.state == "restarting":
            raise Restarting(
                f"child {slot.id!r} of supervisor {self._supervisor.name!r} is being restarted; {what}.", child=slot.id
            )


def picture_of(slot: Slot) -> Picture:
    """Return a child as it can be drawn."""
    picture = slot.member.picture()
    return picture if slot.state == "running" else msgspec.structs.replace(picture, status=slot.state)


def _info(slot: Slot) -> ChildInfo:
    if isinstance(slot.spec, Supervisor):
        return ChildInfo(slot.id, "supervisor", slot.spec.strategy, slot.state, slot.restart)
    picture = picture_of(slot)
    return ChildInfo(slot.id, picture.role, picture.kind, picture.status, slot.restart)
