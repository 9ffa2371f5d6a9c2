"""A running supervisor: OTP's, as one object with a mailbox of its own.

Whatever happens to it (an end of a child, an order, another attempt at a start that failed) is handled one after the
other, so a supervisor whose child cannot be started answers and can be stopped between two attempts. Knows nothing of
actors: what it starts and stops are members, which tell it when they end.
"""

from __future__ import annotations

import asyncio
import math
import re
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Sequence
from functools import partial
from typing import Any, Literal, NamedTuple, Protocol, TypeVar

import msgspec

from understudy.errors import (
    AlreadyPresent,
    AlreadyStarted,
    Ignore,
    InvalidDefinition,
    NotFound,
    Restarting,
    RestartIntensityExceeded,
    Running,
    StartFailed,
)
from understudy.events import ChildStartFailed, Escalated, SupervisorRestarted, SupervisorStopped, TraceEvent
from understudy.supervisor.intensity import RestartWindow
from understudy.supervisor.picture import ChildStatus, Picture, Role
from understudy.supervisor.specs import Child, RestartType, Spec, Supervisor, child_id, wrong_beside

T = TypeVar("T")
SlotState = Literal["stopped", "running", "restarting"]

_PAUSE_EVERY = 256  # starts or stops in a row before the event loop gets its turn
_NORMAL = re.compile(r"normal|shutdown(\(.*\))?", re.DOTALL)


def is_normal(reason: str) -> bool:
    """Whether an actor that ended by itself with *reason* ended as it should: a transient one is then not restarted."""
    return _NORMAL.fullmatch(reason) is not None


class Member(Protocol):
    """What a supervisor starts and stops. A coroutine is returned only when there is something to wait for."""

    child_id: str
    incarnation: int  # grows with each start: ends of earlier ones are told from the present one's

    def start(self) -> Coroutine[Any, Any, None] | None:
        """Start; raises what kept it from starting, or `Ignore`."""
        ...

    def stop(self, shutdown_s: float) -> Coroutine[Any, Any, None] | None:
        """End whatever runs within *shutdown_s*, and abandon what does not end; nothing new begins. Never fails."""
        ...

    def abandon(self) -> None:
        """End at once, without waiting for anything."""
        ...

    def retire(self, reason: str) -> None:
        """Note that it has been stopped and does not come back by itself, or that it is no child any more."""
        ...

    def revive(self) -> None:
        """Forget that it was stopped for good."""
        ...

    def restarted(self, reason: str) -> None:
        """Tell the trace that it was started again, and why."""
        ...

    def picture(self) -> Picture:
        """Return it as it can be drawn."""
        ...


class Stage(Protocol):
    """What supervisors stand on."""

    def now(self) -> float:
        """Return monotonic seconds."""
        ...

    def spawn(self, work: Coroutine[Any, Any, None], name: str) -> asyncio.Task[Any]:
        """Run a task; an error in it stops the system."""
        ...

    def make(self, spec: Spec, supervisor: RunningSupervisor) -> Member:
        """Return the member for a static child or a template."""
        ...

    async def prepare(self, members: Sequence[Member]) -> None:
        """Bring into memory what many members need, in few reads."""
        ...

    def check_new(self, spec: Spec) -> None:
        """Refuse a child whose actor, class or name is in the tree already; raises `InvalidDefinition`."""
        ...

    def enter(self, supervisor: RunningSupervisor) -> None:
        """Note the supervisor under its name."""
        ...

    def note(self, event: Callable[..., TraceEvent], supervisor: str, **facts: Any) -> None:
        """Put an event about a supervisor into the trace."""
        ...

    def ended(self, cause: BaseException | None) -> None:
        """Take notice that the root has ended: the system stops."""
        ...


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


class StoppedForGood(Ignore):
    """A member does not start, because its policy or a person stopped it; it is kept, whatever its restart type."""


class _Interrupted(Exception):
    """A start was given up, because the supervisor is being stopped."""


class _Starting(NamedTuple):
    """A child's start that is waited for."""

    slot: _Slot
    task: asyncio.Task[None]
    given_up: asyncio.Future[None]


class _Slot:
    """A child's place under its supervisor, in start order."""

    __slots__ = ("id", "member", "restart", "shutdown_s", "significant", "spec", "state")

    def __init__(self, spec: Spec, member: Member) -> None:
        self.spec = spec
        self.id = child_id(spec)
        self.member = member
        self.state: SlotState = "stopped"
        self.restart: RestartType = "permanent"
        self.shutdown_s = math.inf  # a template bounds its own
        self.significant = False
        if isinstance(spec, (Child, Supervisor)):
            self.restart, self.shutdown_s, self.significant = spec.restart, spec.shutdown_s, spec.significant


class RunningSupervisor:
    """One supervisor at work; a member of its own supervisor."""

    def __init__(self, spec: Supervisor, stage: Stage, parent: RunningSupervisor | None = None) -> None:
        self.spec = spec
        self.name = self.child_id = spec.name
        self.parent = parent
        self.incarnation = 0
        self.running = False
        self._stage = stage
        self._slots: dict[str, _Slot] = {}
        self._window = RestartWindow(spec.max_restarts, spec.within_s)
        self._inbox: deque[tuple[Callable[[], Awaitable[Any]], asyncio.Future[Any] | None]] = deque()
        self._worker: asyncio.Task[Any] | None = None
        self._starting: _Starting | None = None
        self._left_behind: set[asyncio.Task[None]] = set()  # starts that did not end when they were given up
        self._interrupted = False
        stage.enter(self)

    # --- its own start and stop ------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Start the children of its spec from left to right; raises `StartFailed`, and then none of them runs."""
        done = self._post(self._start)
        try:
            await asyncio.wait([done])
        except asyncio.CancelledError:
            self._interrupt()
            await _settled(done)
            raise
        done.result()

    def stop(self, shutdown_s: float) -> Coroutine[Any, Any, None] | None:
        """Stop all children in reverse order; what has not ended within *shutdown_s* is abandoned."""
        if not self.running and self._worker is None:
            return None
        if shutdown_s == 0:
            self.abandon()
            return None
        return self._stop_within(shutdown_s)

    async def _stop_within(self, shutdown_s: float) -> None:
        done = self._post(partial(self._stop, "shutdown"))
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
            for slot in member._slots.values():
                slot.state = "stopped"
                todo.append(slot.member)  # Whatever its state was: one that is being started must not go on either.

    def retire(self, reason: str) -> None:
        """Let nothing below come back by itself."""
        todo: list[RunningSupervisor] = [self]
        while todo:
            supervisor = todo.pop()
            if not supervisor._slots:
                # It was made and never got so far; what ran under it before, in an earlier life of the tree, is down.
                supervisor._slots = supervisor._new_slots()
            for slot in supervisor._slots.values():
                if isinstance(slot.member, RunningSupervisor):
                    todo.append(slot.member)
                else:
                    slot.member.retire(reason)

    def revive(self) -> None:
        """Nothing: a supervisor is never stopped for good by its own policy."""

    def has(self, member: Member) -> bool:
        """Whether *member* is one of its children."""
        slot = self._slots.get(member.child_id)
        return slot is not None and slot.member is member

    def restarted(self, reason: str) -> None:
        """Tell the trace."""
        self._stage.note(SupervisorRestarted, self.name, reason=reason)

    # --- what its members tell it ----------------------------------------------------------------------------------

    def child_exited(self, member: Member, reason: str, cause: BaseException | None) -> None:
        """Take notice that a member has ended by itself, or failed."""
        self._post_own(partial(self._exited, member, member.incarnation, reason, cause))

    def child_escalated(self, member: Member, reason: str, cause: BaseException) -> None:
        """Fail in the place of a member whose policy says that this is not its own affair."""
        self._post_own(partial(self._escalated, member, member.incarnation, reason, cause))

    def child_stopped(self, member: Member) -> None:
        """Take notice that a member was stopped for good by its own policy: whatever its restart type, it stays so."""
        self._post_own(partial(self._stopped, member, member.incarnation))

    # --- orders ----------------------------------------------------------------------------------------------------

    async def start_child(self, spec: Spec) -> ChildInfo:
        """Add a child and start it; see `SupervisorRef.start_child`."""
        return await self._order(partial(self._start_new, spec))

    async def terminate_child(self, id: str) -> None:
        """Stop a child and keep its spec."""
        await self._order(partial(self._terminate, id))

    async def restart_child(self, id: str) -> None:
        """Start a child that was stopped."""
        await self._order(partial(self._restart_stopped, id))

    async def resume_child(self, id: str) -> None:
        """Start a child again that was held or stopped by its policy; no restart is counted."""
        await self._order(partial(self._resume, id))

    async def delete_child(self, id: str) -> None:
        """Forget a child that was stopped."""
        await self._order(partial(self._delete, id))

    async def which_children(self) -> list[ChildInfo]:
        """Return the children in start order."""
        return await self._order(self._which)

    async def count_children(self) -> ChildCounts:
        """Return how many there are."""
        return await self._order(self._count)

    # --- the mailbox -----------------------------------------------------------------------------------------------

    def _post(self, work: Callable[[], Awaitable[Any]]) -> asyncio.Future[Any]:
        done: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._inbox.append((work, done))
        self._wake()
        return done

    def _post_own(self, work: Callable[[], Awaitable[Any]]) -> None:
        self._inbox.append((work, None))
        self._wake()

    def _wake(self) -> None:
        if self._worker is None:
            self._worker = self._stage.spawn(self._work(), f"supervisor {self.name}")
            self._worker.add_done_callback(self._worker_ended)

    def _worker_ended(self, worker: asyncio.Task[Any]) -> None:
        if self._worker is worker:  # It was ended from outside, with the system: nobody handles what is left.
            self._worker = None
            self._refuse_waiting()

    async def _work(self) -> None:
        """Handle what has come, one after the other; an error in its own affairs is ours and stops the system."""
        while self._inbox:
            work, done = self._inbox.popleft()
            if done is None:
                await work()
                continue
            try:
                result = await work()
            except asyncio.CancelledError:
                done.cancel()
                raise
            except Exception as error:
                if not done.done():
                    done.set_exception(error)
                    done.exception()  # Seen: who asked may be gone.
            else:
                if not done.done():
                    done.set_result(result)
        self._worker = None

    async def _order(self, work: Callable[[], Awaitable[T]]) -> T:
        async def checked() -> T:
            self._check_running()
            return await work()

        self._check_running()
        done = self._post(checked)
        await asyncio.wait([done])  # Who is cancelled here leaves the order to be carried out.
        if done.cancelled():
            raise NotFound(f"supervisor {self.name!r} was abandoned before it had carried out the order.")
        result: T = done.result()
        return result

    def _check_running(self) -> None:
        if not self.running:
            raise NotFound(f"supervisor {self.name!r} is not running: it was stopped, or it has given up.")

    def _drop_work(self) -> None:
        self.running = False
        self._refuse_waiting()
        if self._starting is not None:
            self._leave_behind(self._starting.task)
        if self._worker is not None:
            self._worker.cancel()
            self._worker = None

    def _refuse_waiting(self) -> None:
        inbox, self._inbox = self._inbox, deque()
        for _, done in inbox:
            if done is not None and not done.done():
                done.cancel()

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
        self._slots = self._new_slots()
        await self._stage.prepare([slot.member for slot in self._slots.values()])
        for number, slot in enumerate(list(self._slots.values())):
            try:
                await self._start_slot(slot)
            except Exception as error:
                await self._stop_slots(self._slots.values())
                raise self._start_failed(slot, error) from error
            await _pause(number)
        self.running = True

    def _retire_added(self) -> None:
        todo: list[RunningSupervisor] = [self]
        while todo:
            supervisor = todo.pop()
            static = {child_id(spec) for spec in supervisor.spec.children}
            for slot in list(supervisor._slots.values()):
                if slot.id not in static:
                    del supervisor._slots[slot.id]
                    slot.member.retire("its supervisor was started again, with its static children only")
                elif isinstance(slot.member, RunningSupervisor):
                    todo.append(slot.member)

    def _new_slots(self) -> dict[str, _Slot]:
        return {slot.id: slot for slot in map(self._slot_for, self.spec.children)}

    def _slot_for(self, spec: Spec) -> _Slot:
        if isinstance(spec, Supervisor):
            return _Slot(spec, RunningSupervisor(spec, self._stage, self))
        return _Slot(spec, self._stage.make(spec, self))

    async def _start_slot(self, slot: _Slot) -> None:
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
            if slot.restart == "temporary":
                del self._slots[slot.id]
            slot.member.retire("its on_start raised Ignore")
            return
        slot.state = "running"

    async def _interruptible(self, slot: _Slot, pending: Coroutine[Any, Any, None]) -> None:
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

    def _start_failed(self, slot: _Slot, error: Exception) -> StartFailed:
        why = "it was stopped meanwhile" if isinstance(error, _Interrupted) else f"{type(error).__name__}: {error}"
        if not isinstance(error, _Interrupted):
            self._note_start_failed(slot, error)
        return StartFailed(
            f"child {slot.id!r} of supervisor {self.name!r} could not be started: {why}",
            child=slot.id,
            supervisor=self.name,
        )

    def _note_start_failed(self, slot: _Slot, error: Exception) -> None:
        self._stage.note(
            ChildStartFailed, self.name, child=slot.id, error=type(error).__name__, message=str(error)[:2_000]
        )

    async def _stop_slots(self, slots: Iterable[_Slot]) -> None:
        """Stop children in reverse order; a temporary one is forgotten."""
        for number, slot in enumerate(reversed(list(slots))):
            if slot.state == "running":
                pending = slot.member.stop(slot.shutdown_s)
                if pending is not None:
                    await pending
            slot.state = "stopped"
            if slot.restart == "temporary":
                del self._slots[slot.id]
                slot.member.retire("it is temporary, and was stopped by its supervisor")
            await _pause(number)

    async def _stop(self, reason: str) -> None:
        if not self.running:
            return
        self.running = False
        await self._stop_slots(self._slots.values())
        self._stage.note(SupervisorStopped, self.name, reason=reason)

    async def _end(self, reason: str, cause: BaseException | None) -> None:
        """Stop by itself, and leave the rest to the supervisor above."""
        await self._stop(reason)
        if self.parent is not None:
            self.parent.child_exited(self, reason, cause)
        else:
            self._stage.ended(cause)

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
        if slot.restart == "temporary":
            del self._slots[slot.id]
        slot.member.retire(reason)
        if slot.significant and self._shuts_down():
            await self._end("shutdown", None)

    async def _stopped(self, member: Member, incarnation: int) -> None:
        slot = self._slot_of(member, incarnation)
        if slot is None:
            return
        pending = slot.member.stop(slot.shutdown_s)
        if pending is not None:
            await pending
        slot.state = "stopped"  # A temporary one keeps its spec too: a person may let it go on.

    def _slot_of(self, member: Member, incarnation: int) -> _Slot | None:
        """Return the slot of a member that still runs as that incarnation; what others did has been dealt with."""
        slot = self._slots.get(member.child_id)
        alive = slot is not None and slot.member is member and slot.state == "running"
        return slot if alive and member.incarnation == incarnation else None

    def _shuts_down(self) -> bool:
        """Whether the end of a significant child ends this supervisor."""
        if self.spec.auto_shutdown == "all_significant":
            return not any(slot.significant and slot.state != "stopped" for slot in self._slots.values())
        return self.spec.auto_shutdown == "any_significant"

    async def _escalated(self, member: Member, incarnation: int, reason: str, cause: BaseException) -> None:
        slot = self._slot_of(member, incarnation)
        if slot is not None and self.running:
            self._stage.note(Escalated, self.name, child=slot.id, reason=reason)
            await self._end("shutdown", cause)

    # --- what is handled: restarts ---------------------------------------------------------------------------------

    async def _restart(self, slot: _Slot, reason: str, cause: BaseException | None) -> None:
        """Restart a child and those that the strategy names; one entry in the window, whatever it takes along."""
        if not self._window.note(self._stage.now()):
            limit = f"more than {self.spec.max_restarts} restarts within {self.spec.within_s:g} s"
            error = RestartIntensityExceeded(
                f"supervisor {self.name!r} gave up: {limit}, the last one for {slot.id!r} ({reason})",
                supervisor=self.name,
                max_restarts=self.spec.max_restarts,
                within_s=self.spec.within_s,
            )
            error.__cause__ = cause
            self._stage.note(Escalated, self.name, child=slot.id, reason=f"{limit}; the last one: {reason}")
            await self._end("shutdown", error)
            return
        affected = self._affected(slot)
        await self._stop_slots(each for each in affected if each is not slot)
        for number, each in enumerate(affected):
            if self._slots.get(each.id) is not each:
                continue  # It was temporary.
            try:
                await self._start_slot(each)
            except _Interrupted:
                return
            except Exception as error:
                self._note_start_failed(each, error)
                each.state = "restarting"
                self._post_own(partial(self._try_again, each, error))
                return
            if each.state == "running":
                each.member.restarted(reason if each is slot else f"{self.spec.strategy}: {slot.id} {reason}")
            await _pause(number)

    def _affected(self, slot: _Slot) -> list[_Slot]:
        if self.spec.strategy == "one_for_one":
            return [slot]
        slots = list(self._slots.values())
        return slots if self.spec.strategy == "one_for_all" else slots[slots.index(slot) :]

    async def _try_again(self, slot: _Slot, error: Exception) -> None:
        await asyncio.sleep(0)  # A start that fails at once must not keep everybody else waiting.
        if self._slots.get(slot.id) is slot and slot.state == "restarting":
            slot.state = "stopped"
            await self._restart(slot, f"its start failed: {type(error).__name__}: {error}", error)

    # --- what is handled: orders -----------------------------------------------------------------------------------

    async def _start_new(self, spec: Spec) -> ChildInfo:
        wrong = list(wrong_beside(self.spec, spec))
        if wrong:
            raise InvalidDefinition(f"Supervisor {self.name!r} cannot take it: {'; '.join(wrong)}.")
        known = self._slots.get(child_id(spec))
        if known is not None and known.state != "running":
            raise AlreadyPresent(
                f"child {known.id!r} of supervisor {self.name!r} is there, not running; restart_child or delete_child it.",
                child=known.id,
            )
        if known is not None:
            raise AlreadyStarted(f"child {known.id!r} of supervisor {self.name!r} runs already.", child=known.id)
        self._stage.check_new(spec)
        slot = self._slot_for(spec)
        self._slots[slot.id] = slot
        try:
            await self._stage.prepare([slot.member])
            await self._start_slot(slot)
        except Exception as error:
            del self._slots[slot.id]
            slot.member.retire("it could not be started")
            raise self._start_failed(slot, error) from error
        return _info(slot)

    async def _terminate(self, id: str) -> None:
        slot = self._slot(id)
        was = slot.state
        await self._stop_slots([slot])
        if was != "stopped":
            slot.member.retire("terminate_child")
        if was == "restarting" and self.spec.strategy != "one_for_one":
            # As in OTP those stay down that were stopped for its restart; they must say so, and not let callers wait.
            for other in self._slots.values():
                if other.state == "stopped" and other is not slot:
                    other.member.retire(f"it was stopped for the restart of {id!r}, which was terminated meanwhile")

    async def _restart_stopped(self, id: str) -> None:
        slot = self._slot(id)
        self._refuse_alive(slot, "restart_child starts one that was stopped")
        slot.member.revive()
        try:
            await self._start_slot(slot)
        except Exception as error:
            slot.member.retire("it could not be started")
            raise self._start_failed(slot, error) from error
        if slot.state == "running":
            slot.member.restarted("restart_child")

    async def _resume(self, id: str) -> None:
        slot = self._slot(id)
        slot.member.revive()
        slot.state = "stopped"
        try:
            await self._start_slot(slot)
        except Exception as error:
            slot.member.retire("it could not be started")
            raise self._start_failed(slot, error) from error

    async def _delete(self, id: str) -> None:
        slot = self._slot(id)
        self._refuse_alive(slot, "terminate_child it first")
        del self._slots[id]
        slot.member.retire("delete_child")

    async def _which(self) -> list[ChildInfo]:
        return [_info(slot) for slot in self._slots.values()]

    async def _count(self) -> ChildCounts:
        active = workers = supervisors = 0
        for slot in self._slots.values():
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
        return ChildCounts(len(self._slots), active, supervisors, workers)

    def _slot(self, id: str) -> _Slot:
        slot = self._slots.get(id)
        if slot is None:
            known = ", ".join(map(repr, list(self._slots)[:10])) or "none"
            raise NotFound(f"supervisor {self.name!r} has no child {id!r}; it has: {known}.")
        return slot

    def _refuse_alive(self, slot: _Slot, what: str) -> None:
        if slot.state == "running":
            raise Running(f"child {slot.id!r} of supervisor {self.name!r} runs; {what}.", child=slot.id)
        if slot.state == "restarting":
            raise Restarting(
                f"child {slot.id!r} of supervisor {self.name!r} is being restarted; {what}.", child=slot.id
            )

    # --- as it can be drawn ----------------------------------------------------------------------------------------

    def picture(self) -> Picture:
        """Return this supervisor and everything below it."""
        return Picture(
            role="supervisor",
            name=self.name,
            kind=self.spec.strategy,
            status="running" if self.running else "stopped",
            restart=self.spec.restart,
            restarts=self._window.count(self._stage.now()),
            max_restarts=self.spec.max_restarts,
            within_s=self.spec.within_s,
            children=tuple(_picture(slot) for slot in self._slots.values()),
        )


def _picture(slot: _Slot) -> Picture:
    picture = slot.member.picture()
    return picture if slot.state == "running" else msgspec.structs.replace(picture, status=slot.state)


def _info(slot: _Slot) -> ChildInfo:
    if isinstance(slot.spec, Supervisor):
        return ChildInfo(slot.id, "supervisor", slot.spec.strategy, slot.state, slot.restart)
    picture = _picture(slot)
    return ChildInfo(slot.id, picture.role, picture.kind, picture.status, slot.restart)


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
