"""A running supervisor: OTP's, as one object with a mailbox of its own.

Whatever happens to it (an end of a child, an order, another attempt at a start that failed) is handled one after the
other, so a supervisor whose child cannot be started answers and can be stopped between two attempts. Knows nothing of
actors: what it starts and stops are members, which tell it when they end.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Coroutine, Iterable
from functools import partial
from typing import Any, NamedTuple

from understudy.errors import Ignore, RestartIntensityExceeded, StartFailed
from understudy.events import ChildStartFailed, Escalated, SupervisorRestarted, SupervisorStopped
from understudy.supervisor.inbox import Inbox
from understudy.supervisor.intensity import RestartWindow
from understudy.supervisor.member import Member, Slot, Stage, StoppedForGood, is_normal
from understudy.supervisor.orders import Orders, picture_of
from understudy.supervisor.picture import Picture
from understudy.supervisor.specs import Spec, Supervisor, child_id

_PAUSE_EVERY = 256  # starts or stops in a row before the event loop gets its turn


class _Interrupted(Exception):
    """A start was given up, because the supervisor is being stopped."""


class _Starting(NamedTuple):
    """A child's start that is waited for."""

    slot: Slot
    task: asyncio.Task[None]
    given_up: asyncio.Future[None]


class RunningSupervisor:
    """One supervisor at work; a member of its own supervisor."""

    def __init__(self, spec: Supervisor, stage: Stage, parent: RunningSupervisor | None = None) -> None:
        self.spec = spec
        self.name = self.child_id = spec.name
        self.parent = parent
        self.incarnation = 0
        self.running = False
        self.stage = stage
        self.slots: dict[str, Slot] = {}
        self._window = RestartWindow(spec.max_restarts, spec.within_s)
        self.inbox = Inbox(f"supervisor {self.name}", stage.spawn)
        self.orders = Orders(self)
        self._starting: _Starting | None = None
        self._left_behind: set[asyncio.Task[None]] = set()  # starts that did not end when they were given up
        self._interrupted = False
        self._was_started = False
        stage.enter(self)

    # --- its own start and stop ------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Start the children of its spec from left to right; raises `StartFailed`, and then none of them runs."""
        done = self.inbox.post(self._start)
        try:
            await asyncio.wait([done])
        except asyncio.CancelledError:
            self._interrupt()
            await _settled(done)
            pending = self.stop(self.spec.shutdown_s)  # It may have been too late: then all of it runs.
            if pending is not None:
                await pending
            raise
        done.result()

    def stop(self, shutdown_s: float) -> Coroutine[Any, Any, None] | None:
        """Stop all children in reverse order; what has not ended within *shutdown_s* is abandoned."""
        if not self.running and self.inbox.is_idle():
            return None
        if shutdown_s == 0:
            self.abandon()
            return None
        return self._stop_within(shutdown_s)

    async def _stop_within(self, shutdown_s: float) -> None:
        done = self.inbox.post(partial(self._stop, "shutdown"))
        self._interrupt()
        await asyncio.wait([done], timeout=None if shutdown_s == math.inf else shutdown_s)
        if not done.done():
            self.abandon()

    def abandon(self) -> None:
        """Stop everything below at once, and wait for nothing."""
        todo: list[Member] = [self]
        while todo:
            member = todo.pop()
            if not isinstance(member, RunningSupervisor):
                member.abandon()
                continue
            member._drop_work()
            for slot in member.slots.values():
                slot.state = "stopped"
                todo.append(slot.member)  # Whatever its state was: one that is being started must not go on either.

    def retire(self, reason: str) -> None:
        """Let nothing below come back by itself."""
        for member in self._below():
            member.retire(reason)

    def forget(self, reason: str) -> None:
        """Let nothing below be a child any more."""
        for member in self._below():
            member.forget(reason)
        todo: list[RunningSupervisor] = [self]
        while todo:
            supervisor = todo.pop()
            self.stage.leave(supervisor)
            todo.extend(slot.member for slot in supervisor.slots.values() if isinstance(slot.member, RunningSupervisor))

    def _below(self) -> list[Member]:
        """Return the actors and templates below, on every level."""
        found: list[Member] = []
        todo: list[RunningSupervisor] = [self]
        while todo:
            supervisor = todo.pop()
            if not supervisor._was_started:
                # It was made and never got so far; what ran under it before, in an earlier life of the tree, is down.
                supervisor.slots = supervisor._new_slots()
                supervisor._was_started = True
            for slot in supervisor.slots.values():
                if isinstance(slot.member, RunningSupervisor):
                    todo.append(slot.member)
                else:
                    found.append(slot.member)
        return found

    def is_held(self) -> bool:
        """Never: a supervisor has no policy of its own that stops it."""
        return False

    def revive(self) -> Callable[[str], None]:
        """Return what retires it again."""
        return self.retire

    def has(self, member: Member) -> bool:
        """Whether *member* is one of its children."""
        slot = self.slots.get(member.child_id)
        return slot is not None and slot.member is member

    def restarted(self, reason: str) -> None:
        """Tell the trace."""
        self.stage.note(SupervisorRestarted, self.name, reason=reason)

    # --- what its members tell it ----------------------------------------------------------------------------------

    def child_exited(self, member: Member, reason: str, cause: BaseException | None) -> None:
        """Take notice that a member has ended by itself, or failed."""
        self.inbox.post_own(partial(self._exited, member, member.incarnation, reason, cause))

    def child_escalated(self, member: Member, reason: str, cause: BaseException) -> None:
        """Fail in the place of a member whose policy says that this is not its own affair."""
        self.inbox.post_own(partial(self._escalated, member, member.incarnation, reason, cause))

    def child_stopped(self, member: Member) -> None:
        """Take notice that a member was stopped for good by its own policy: whatever its restart type, it stays so."""
        self.inbox.post_own(partial(self._stopped, member, member.incarnation))

    # --- the mailbox -----------------------------------------------------------------------------------------------

    def _drop_work(self) -> None:
        self.running = False
        if self._starting is not None:
            self._leave_behind(self._starting.task)
        self.inbox.drop()

    def _interrupt(self) -> None:
        """Give up the start of a child that is waited for: it may hang for ever."""
        self._interrupted = True
        if self._starting is not None and not self._starting.given_up.done():
            self._starting.given_up.set_result(None)

    # --- what is handled: start and stop ---------------------------------------------------------------------------

    async def _start(self) -> None:
        self._retire_added()
        self._window = RestartWindow(self.spec.max_restarts, self.spec.within_s)
        self._interrupted = False
        self._was_started = True
        self.slots = self._new_slots()
        await self.stage.prepare([slot.member for slot in self.slots.values()])
        for number, slot in enumerate(list(self.slots.values())):
            try:
                await self.start_slot(slot)
            except Exception as error:
                await self.stop_slots(self.slots.values())
                raise self.start_failed(slot, error) from error
            await _pause(number)
        self.running = True

    def _retire_added(self) -> None:
        todo: list[RunningSupervisor] = [self]
        while todo:
            supervisor = todo.pop()
            static = {child_id(spec) for spec in supervisor.spec.children}
            for slot in list(supervisor.slots.values()):
                if slot.id not in static:
                    del supervisor.slots[slot.id]
                    slot.member.forget("its supervisor was started again, with its static children only")
                elif isinstance(slot.member, RunningSupervisor):
                    todo.append(slot.member)

    def _new_slots(self) -> dict[str, Slot]:
        return {slot.id: slot for slot in map(self.slot_for, self.spec.children)}

    def slot_for(self, spec: Spec) -> Slot:
        """Return a new place for a child."""
        if isinstance(spec, Supervisor):
            return Slot(spec, RunningSupervisor(spec, self.stage, self))
        return Slot(spec, self.stage.make(spec, self))

    async def start_slot(self, slot: Slot) -> None:
        """Start one child; raises what kept it from starting."""
        if self._interrupted:
            raise _Interrupted
        slot.member.incarnation += 1
        try:
            pending = slot.member.start()
            if pending is not None:
                await self._interruptible(slot, pending)
        except StoppedForGood:
            return
        except Ignore:
            self._end_slot(slot, "its on_start raised Ignore")
            return
        slot.state = "running"

    async def _interruptible(self, slot: Slot, pending: Coroutine[Any, Any, None]) -> None:
        """Wait for a start; one that is given up gets the child's shutdown time to end, and is then left behind."""
        loop = asyncio.get_running_loop()
        starting = self._starting = _Starting(slot, loop.create_task(pending), loop.create_future())
        task = starting.task
        try:
            await asyncio.wait([task, starting.given_up], return_when=asyncio.FIRST_COMPLETED)
            if not task.done():
                task.cancel()
                await asyncio.wait([task], timeout=None if slot.shutdown_s == math.inf else slot.shutdown_s)
        finally:
            if self._starting is starting:
                self._starting = None
        if not task.done():
            slot.member.abandon()
            self._leave_behind(task)
            raise _Interrupted
        if task.cancelled() and starting.given_up.done():
            raise _Interrupted
        error = asyncio.CancelledError() if task.cancelled() else task.exception()
        if error is not None and not isinstance(error, Exception):
            raise RuntimeError(f"its own code ended its start by {type(error).__name__}: {error}") from error
        task.result()

    def _leave_behind(self, task: asyncio.Task[None]) -> None:
        """Cancel a start that nobody waits for any more."""
        task.cancel()
        self._left_behind.add(task)
        task.add_done_callback(self._forget_start)

    def _forget_start(self, task: asyncio.Task[None]) -> None:
        self._left_behind.discard(task)
        if not task.cancelled():
            task.exception()  # Seen: it is no start any more.

    def start_failed(self, slot: Slot, error: Exception) -> StartFailed:
        """Tell the trace that a child could not be started, and return what is raised for it."""
        why = "it was stopped meanwhile" if isinstance(error, _Interrupted) else f"{type(error).__name__}: {error}"
        if not isinstance(error, _Interrupted):
            self._note_start_failed(slot, error)
        return StartFailed(
            f"child {slot.id!r} of supervisor {self.name!r} could not be started: {why}",
            child=slot.id,
            supervisor=self.name,
        )

    def _note_start_failed(self, slot: Slot, error: Exception) -> None:
        self.stage.note(
            ChildStartFailed, self.name, child=slot.id, error=type(error).__name__, message=str(error)[:2_000]
        )

    async def stop_slots(self, slots: Iterable[Slot]) -> None:
        """Stop children in reverse order; a temporary one is forgotten."""
        for number, slot in enumerate(reversed(list(slots))):
            if slot.state == "running":
                pending = slot.member.stop(slot.shutdown_s)
                if pending is not None:
                    await pending
            slot.state = "stopped"
            if slot.restart == "temporary":
                self._end_slot(slot, "it is temporary, and was stopped by its supervisor")
            await _pause(number)

    async def _stop(self, reason: str) -> None:
        if not self.running:
            return
        self.running = False
        await self.stop_slots(self.slots.values())
        self.stage.note(SupervisorStopped, self.name, reason=reason)

    async def _end(self, reason: str, cause: BaseException | None) -> None:
        """Stop by itself, and leave the rest to the supervisor above."""
        await self._stop(reason)
        if self.parent is not None:
            self.parent.child_exited(self, reason, cause)
        else:
            self.stage.ended(cause)

    # --- what is handled: ends of children -------------------------------------------------------------------------

    async def _exited(self, member: Member, incarnation: int, reason: str, cause: BaseException | None) -> None:
        slot = self._slot_of(member, incarnation)
        if slot is None:
            return
        pending = slot.member.stop(slot.shutdown_s)  # What is left of it: other turns, on_stop.
        if pending is not None:
            await pending
        slot.state = "stopped"
        if slot.restart == "permanent" or (slot.restart == "transient" and not is_normal(reason)):
            await self._restart(slot, reason, cause)
            return
        self._end_slot(slot, reason)
        if slot.significant and self._shuts_down():
            await self._end("shutdown", None)

    def _end_slot(self, slot: Slot, reason: str) -> None:
        """Note that a child does not come back; the spec of a temporary one is forgotten."""
        if slot.restart == "temporary":
            del self.slots[slot.id]
            slot.member.forget(reason)
        else:
            slot.member.retire(reason)

    async def _stopped(self, member: Member, incarnation: int) -> None:
        slot = self._slot_of(member, incarnation)
        if slot is None:
            return
        pending = slot.member.stop(slot.shutdown_s)
        if pending is not None:
            await pending
        slot.state = "stopped"  # A temporary one keeps its spec too: a person may let it go on.

    def _slot_of(self, member: Member, incarnation: int) -> Slot | None:
        """Return the slot of a member that still runs as that incarnation; what others did has been dealt with."""
        slot = self.slots.get(member.child_id)
        alive = slot is not None and slot.member is member and slot.state == "running"
        return slot if alive and member.incarnation == incarnation else None

    def _shuts_down(self) -> bool:
        """Whether the end of a significant child ends this supervisor."""
        if self.spec.auto_shutdown == "all_significant":
            return not any(slot.significant and slot.state != "stopped" for slot in self.slots.values())
        return self.spec.auto_shutdown == "any_significant"

    async def _escalated(self, member: Member, incarnation: int, reason: str, cause: BaseException) -> None:
        slot = self._slot_of(member, incarnation)
        if slot is not None and self.running:
            self.stage.note(Escalated, self.name, child=slot.id, reason=reason)
            await self._end("shutdown", cause)

    # --- what is handled: restarts ---------------------------------------------------------------------------------

    async def _restart(self, slot: Slot, reason: str, cause: BaseException | None) -> None:
        """Restart a child and those that the strategy names; one entry in the window, whatever it takes along."""
        if not self._window.note(self.stage.now()):
            limit = f"more than {self.spec.max_restarts} restarts within {self.spec.within_s:g} s"
            error = RestartIntensityExceeded(
                f"supervisor {self.name!r} gave up: {limit}, the last one for {slot.id!r} ({reason})",
                supervisor=self.name,
                max_restarts=self.spec.max_restarts,
                within_s=self.spec.within_s,
            )
            error.__cause__ = cause
            self.stage.note(Escalated, self.name, child=slot.id, reason=f"{limit}; the last one: {reason}")
            await self._end("shutdown", error)
            return
        affected = self._affected(slot)
        await self.stop_slots(each for each in affected if each is not slot)
        for number, each in enumerate(affected):
            if self.slots.get(each.id) is not each:
                continue  # It was temporary.
            try:
                await self.start_slot(each)
            except _Interrupted:
                return
            except Exception as error:
                self._note_start_failed(each, error)
                each.state = "restarting"
                if not each.retrying:  # Else a strategy has restarted it meanwhile: one attempt waits already.
                    each.retrying = True
                    self.inbox.post_own(partial(self._try_again, each, error))
                return
            if each.state == "running":
                each.member.restarted(reason if each is slot else f"{self.spec.strategy}: {slot.id} {reason}")
            await _pause(number)

    def _affected(self, slot: Slot) -> list[Slot]:
        if self.spec.strategy == "one_for_one":
            return [slot]
        slots = list(self.slots.values())
        return slots if self.spec.strategy == "one_for_all" else slots[slots.index(slot) :]

    async def _try_again(self, slot: Slot, error: Exception) -> None:
        slot.retrying = False
        await asyncio.sleep(0)  # A start that fails at once must not keep everybody else waiting.
        if self.slots.get(slot.id) is slot and slot.state == "restarting":
            slot.state = "stopped"
            await self._restart(slot, f"its start failed: {type(error).__name__}: {error}", error)

    # --- as it can be drawn ----------------------------------------------------------------------------------------

    def picture(self) -> Picture:
        """Return this supervisor and everything below it."""
        return Picture(
            role="supervisor",
            name=self.name,
            kind=self.spec.strategy,
            status="running" if self.running else "stopped",
            restart=self.spec.restart,
            restarts=self._window.count(self.stage.now()),
            max_restarts=self.spec.max_restarts,
            within_s=self.spec.within_s,
            children=tuple(picture_of(slot) for slot in self.slots.values()),
        )


async def _pause(number: int) -> None:
    if number % _PAUSE_EVERY == _PAUSE_EVERY - 1:
        await asyncio.sleep(0)


async def _settled(done: asyncio.Future[Any]) -> None:
    """Wait until *done* has ended, however often this is cancelled."""
    while not done.done():
        try:
            await asyncio.wait([done])
        except asyncio.CancelledError:
            pass
