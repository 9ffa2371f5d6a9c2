"""The system: one store, the actors alive in memory, and what starts, stops and recovers them."""

from __future__ import annotations

import asyncio
import contextvars
import logging
import os
import threading
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from functools import partial
from os import PathLike
from types import TracebackType
from typing import Any, Literal, Self, TypeVar, cast, overload
from uuid import UUID

from understudy.actors import administration, closing, letters, parking
from understudy.actors.activation import Activation
from understudy.actors.actor import Actor
from understudy.actors.administration import ActorInfo, DeadLetterInfo
from understudy.actors.alarms import Alarms
from understudy.actors.approval import Approval
from understudy.actors.approvals import Decisions
from understudy.actors.control import ControlServer
from understudy.actors.handler import Handler
from understudy.actors.job import Job
from understudy.actors.jobs import Jobs
from understudy.actors.kinds import ActorType
from understudy.actors.ledgers import Ledgers
from understudy.actors.limits import Limits
from understudy.actors.open_ledger import WORKFLOW
from understudy.actors.outside import Waits, check_name
from understudy.actors.population import Population
from understudy.actors.ready import ReadyTurns
from understudy.actors.recorder import Recorder
from understudy.actors.recovery import Recovery
from understudy.actors.ref import Ref
from understudy.actors.registry import Registry
from understudy.actors.streaming import Streams
from understudy.actors.supervision import Supervision, below, root_of, template_of
from understudy.actors.supervisor_ref import SupervisorRef
from understudy.actors.target import ActorTarget
from understudy.actors.timers import Timers
from understudy.actors.tool import SHARED, Tool
from understudy.actors.turn import Turn
from understudy.actors.upkeep import Upkeep
from understudy.actors.waiters import Waiters
from understudy.actors.watching import Watching
from understudy.actors.withdrawals import Withdrawals
from understudy.actors.workflow import Workflow
from understudy.clock import wall_clock
from understudy.codec import text_bytes
from understudy.endpoint.budget import Budget
from understudy.endpoint.endpoint import Endpoint
from understudy.errors import (
    InvalidArguments,
    InvalidDefinition,
    LimitExceeded,
    NotFound,
    SystemClosed,
    SystemFailed,
    UnderstudyError,
    WrongLoop,
)
from understudy.events import (
    ActorChange,
    Event,
    SystemStarted,
)
from understudy.mailbox.commit import Batch, Committer
from understudy.mailbox.connection import settle_task
from understudy.mailbox.envelope import Envelope
from understudy.mailbox.journal import Journal, JournalEntry, Outcome
from understudy.mailbox.store import Opening, Store
from understudy.supervisor.intensity import RestartWindow
from understudy.supervisor.picture import Picture
from understudy.supervisor.specs import ROOT, Child, Supervisor
from understudy.trace.tree import Trace, build_trace

A = TypeVar("A", bound=Actor[Any, Any])
R = TypeVar("R")
T = TypeVar("T")

logger = logging.getLogger(__name__)


class System:
    """Durable actors on one SQLite file; use it as `async with System("agents.db", [MyActor]) as system:`.

    Opening takes the file's ownership, and unfinished work goes on at once. Leaving lets running turns finish within
    `Limits.grace_s`, ends the others (they go on at the next opening) and closes the file.

    Args:
        path: The SQLite file; made when it is not there. Or a `Store`.
        children: What the root supervisor starts, from left to right: actor classes, whose actors come to life on
            demand, `Child(...)` and `Supervisor(...)`. What the tools of a class reach is registered with it.
        endpoints: Where model calls of agents go.
        resources: Objects that tools and handlers find by type: `current_turn().resource(Index)`.
        limits: Sizes and times.
        trace: "all" stores the turns of plain actors too; "steps" counts them only.
        durability: "full" survives a power cut; "process" survives the death of the process only, and is faster.
        lock_wait_s: How long to wait for another owner of the file to go: a process that is being replaced.

    Raises:
        StoreLocked: Another process owns the file (on entering).
        StoreRefused: The file cannot be opened; it was not touched (on entering).
        InvalidDefinition: A class, resource or setting is wrong.
    """

    def __init__(
        self,
        path: str | PathLike[str] | Store,
        children: Sequence[type[Actor[Any, Any]] | Tool[..., Any] | Child | Supervisor] = (),
        *,
        endpoints: Sequence[Endpoint] = (),
        resources: Sequence[object] = (),
        limits: Limits | None = None,
        trace: Literal["steps", "all"] = "steps",
        durability: Literal["full", "process"] = "full",
        lock_wait_s: float = 5.0,
    ) -> None:
        if trace not in ("steps", "all"):
            raise InvalidDefinition(f"trace must be one of 'steps', 'all'; got {trace!r}.")
        if durability not in ("full", "process"):
            raise InvalidDefinition(f"durability must be one of 'full', 'process'; got {durability!r}.")
        self._new_store = (
            partial(_store_at, path, durability, lock_wait_s) if isinstance(path, (str, PathLike)) else None
        )
        self.store: Store = self._new_store() if self._new_store is not None else cast(Store, path)
        self.limits = limits or Limits()
        self.trace_all = trace == "all"
        self.jobs = Jobs(self)
        self._root = root_of(children)
        classes = [each for spec in below(self._root) if (each := template_of(spec)) is not None]
        self.registry = Registry(self, classes, endpoints, resources)
        self._failed = asyncio.Event()  # Also for who waits before the system is opened.
        self._begin()

    def _begin(self) -> None:
        """Set what belongs to one opening."""
        self.usable = False
        self.accepting = False
        self._ending = False  # the time for running turns is over: what was asked starts no more either
        self.failure: BaseException | None = None
        if self._failed.is_set():
            self._failed = asyncio.Event()
        self.last_message = 0
        self.life = 0
        self.turns: dict[int, Turn] = {}
        self.journals: dict[int, Journal] = {}
        self.recorder = Recorder(self)
        self.withdrawals = Withdrawals(self)
        self.recovery = Recovery(self)
        self.population = Population(self, 0)
        self.ledgers = Ledgers(self)
        self.unasked: set[int] = set()  # open asks of turns that ended without their reply
        self.parked: set[int] = set()  # messages whose turns are parked and have left memory in this life
        self.waits = Waits(self)
        self.decisions = Decisions(self)
        # Who waits for the reply of a message that is on disk only.
        self.asked = Waiters()
        self.open_jobs: dict[int, int] = {}  # kept messages accepted in this life and not finished -> their actor
        self.jobs.reset()
        self.watching = Watching(self)
        self.streams = Streams(self)
        self.failing: dict[int, RestartWindow] = {}  # actors on demand whose last messages ended badly
        self._unopened: BaseException | None = None  # why it could not be started
        self.collapsed: SystemFailed | None = None  # the root supervisor gave up
        self.leaked: set[asyncio.Task[Any]] = set()  # turns that were abandoned
        self.supervision = Supervision(self, self._root)
        self.control = ControlServer(self)
        self._tasks: set[asyncio.Task[Any]] = set()
        self._paused: list[Activation] = []
        self.deaf: list[Callable[[], None]] = []  # end the listening at the endpoints
        self._host: asyncio.Task[Any] | None = None

    # --- opening and closing ---------------------------------------------------------------------------------------

    async def __aenter__(self) -> Self:
        if self.usable:
            raise InvalidArguments("this system is open already; make a second System for a second use.")
        if self.life and self._new_store is not None:
            self.store = self._new_store()  # A store is opened once, a system as often as one likes.
        self._begin()
        self.loop = asyncio.get_running_loop()
        self.wall = wall_clock(self.loop)
        self.upkeep = Upkeep(self)
        self._thread = threading.get_ident()
        self.pid = os.getpid()
        self._context = contextvars.Context()
        self.ready = ReadyTurns(self.loop)
        self.turn_tasks = self.ready.tasks
        opening: Opening = await self.store.open()
        try:
            self.opening = opening
            self.life = opening.epoch
            self.last_message = opening.last_message
            self.population.last_actor = opening.last_actor
            self.namespace = UUID(opening.store_id)
            self._tag = opening.store_id.replace("-", "")[:6]
            self.committer = Committer(self.store, self._store_failed)
            self.committer.taking = self._taking
            self.committer.committed = self._committed
            self.committer.turns = self.turns
            self.committer.start()
            self._host = asyncio.current_task()
            self.timers = Timers(self)
            self.alarms = Alarms(self)
            self.usable = self.accepting = True
            self.recorder.emit(
                SystemStarted(
                    at=self.wall(),
                    correlation="system",
                    span=f"life {self.life}",
                    life=self.life,
                    pid=self.pid,
                    clean=opening.clean,
                )
            )
            self.deaf = [endpoint.on_change(self.recorder.emit_breaker) for endpoint in self.registry.endpoints]
            await self.ledgers.start()
            await self.timers.start()
            await self.alarms.start()
            await self.supervision.start()
            await self.supervision.store_picture()
            await self.control.start()
            self.spawn(self.recovery.run(), "recover")
            self.spawn(self.upkeep.run(), "sweep")
        except BaseException as error:  # Also a cancellation: the file must not stay owned.
            await settle_task(closing.close(self))
            self._unopened = error
            self._failed.set()
            self._raise_failure()
            raise
        return self

    async def __aexit__(
        self, error_type: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        # Closing is bounded, and a cancellation (of the body, or by our own fail-stop) must not cut it short.
        ending = self.loop.create_task(closing.close(self), name="understudy-close")
        cancelled: asyncio.CancelledError | None = None
        while not ending.done():
            try:
                await asyncio.wait([ending])
            except asyncio.CancelledError as error_:
                cancelled = error_
        ending.result()
        self._raise_failure()
        if cancelled is not None:
            raise cancelled

    def _raise_failure(self) -> None:
        """Raise why the system stopped itself, if it did, instead of the cancellation by which it ended its host."""
        if self.failure is None and self.collapsed is None:
            return
        host = self._host
        if host is not None and host.cancelling():
            host.uncancel()
        if self.failure is not None:
            raise SystemFailed(f"the system stopped itself: {self.failure}") from self.failure
        assert self.collapsed is not None
        raise self.collapsed

    def _store_failed(self, error: BaseException) -> None:
        """A commit failed: end every turn, refuse everybody, and cancel the body of `async with`."""
        if self.failure is not None:
            return
        self.failure = error
        self._failed.set()
        self.accepting = False
        for turn in list(self.turns.values()):
            turn.stop("store failed")
        closing.refuse_waiters(self)
        if self._host is not None and not self._host.done():
            self._host.cancel()

    def collapse(self, cause: BaseException | None) -> None:
        """Stop the system in good order: its root supervisor gave up and has stopped everything. Cancel the body."""
        if self.failure is not None or self.collapsed is not None:
            return
        self.collapsed = SystemFailed(f"the system stopped itself: {_with_causes(cause)}")
        self.collapsed.__cause__ = cause
        self._failed.set()
        self.usable = self.accepting = False
        closing.refuse_waiters(self)
        if self._host is not None and not self._host.done():
            self._host.cancel()

    async def failed(self) -> BaseException:
        """Wait until the system stops itself, or could not be started, and return why."""
        await self._failed.wait()
        failure = self.failure or self.collapsed or self._unopened
        assert failure is not None
        return failure

    def check_usable(self) -> None:
        """Refuse a call that cannot work: closed, another loop, a forked child."""
        if not self.usable or self.failure is not None:
            failure = self.failure or self.collapsed
            if failure is not None:
                raise failure
            raise SystemClosed("the system is not open: use it inside 'async with System(...) as system:'.")
        # Not `get_running_loop() is not self.loop`: CPython 3.11 asks for the process id there, 7 % of an ask.
        if threading.get_ident() != self._thread or not self.loop.is_running():
            raise WrongLoop("this system was opened on another event loop; call it from that one.")

    def check_accepting(self) -> None:
        """Refuse new work from outside while the system closes."""
        if not self.accepting:
            raise SystemClosed("the system is closing and takes no new messages; nothing was stored.")

    def spawn(self, work: Coroutine[Any, Any, None], name: str) -> None:
        """Run a task of the system's own; an error in it stops the system."""
        _ = self.begin(work, name)

    def begin(self, work: Coroutine[Any, Any, None], name: str) -> asyncio.Task[Any]:
        """Run a task of the system's own, and return it."""
        task = self.loop.create_task(work, name=f"understudy-{name}", context=self._context.copy())
        self._tasks.add(task)
        task.add_done_callback(self.watch_task)
        return task

    def keep_task(self, task: asyncio.Task[Any]) -> None:
        """Own a task whose end somebody else reads; it is cancelled when the system closes."""
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def watch_task(self, task: asyncio.Task[Any]) -> None:
        """Read the end of one of the system's own tasks."""
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None and self.failure is None:
            self._store_failed(cast(BaseException, task.exception()))

    # --- addresses -------------------------------------------------------------------------------------------------

    def tool_target(self, tool: Tool[..., Any]) -> ActorTarget:
        """Return the address of a tool's actor."""
        type = self.registry.add_tool(tool)
        if type.group is None:
            self.supervision.others.adopt(type)  # Nobody has listed it.
        return ActorTarget(self, type, SHARED)

    def target(self, type: ActorType, id: str) -> ActorTarget:
        """Return the address of an actor of a known type."""
        return ActorTarget(self, type, id)

    def actor(self, cls: type[A], id: str | None = None, /) -> A:
        """Return the address of an actor; it comes to life with its first message. Without an id it is a fresh one."""
        type = self.registry.type_of(cls)
        if id is None:
            id = os.urandom(8).hex()
        size = text_bytes(id, f"the id of a {type.kind}")
        if not 0 < size <= self.limits.id_bytes:
            raise LimitExceeded(
                f"the id of a {type.kind} is {size} bytes; expected 1 to Limits.id_bytes={self.limits.id_bytes}.",
                limit="id_bytes",
                value=size,
                value_max=self.limits.id_bytes,
            )
        return cast(A, self.ref(type, id))

    def ref(self, type: ActorType, id: str) -> Ref:
        """Return the address of one actor of a known type."""
        return type.ref(ActorTarget(self, type, id))

    @overload
    def job(self, id: str, /) -> Job[Any]: ...
    @overload
    def job(self, id: str, of: Handler[Callable[..., Coroutine[Any, Any, R]]], /) -> Job[R]: ...
    def job(self, id: str, of: Any = None, /) -> Any:
        """Return the handle of a submitted message, today or after a restart; *of* gives its result's type."""
        self.message_no(id)
        returns = Any if of is None else self.registry.type_of(of.owner).handlers[of.name].wire.signature.returns
        job: Job[Any] = Job(self.jobs, id, returns)
        return job

    def workflow(self, id: str, /, *, budget: Budget | None = None) -> Workflow:
        """Return the scope called *id*: one budget, trace and cancellation for everything that is sent through it.

        The same id is the same scope, today or after a restart. It keeps the budget that it was first used with, or
        what `workflow.raise_budget` has made of it: give the same again, or none.

        Raises:
            InvalidArguments: Its messages are sent with another budget than before (on sending).
        """
        return Workflow(self, id, budget)

    def job_id(self, no: int) -> str:
        """Return the public name of a message."""
        return f"{no}-{self._tag}"

    def message_no(self, id: str) -> int:
        """Return the number of the message called *id*; raises `NotFound` when no message can have that name."""
        number, _, tag = id.partition("-")
        if not (number.isascii() and number.isdigit() and len(number) < 19 and tag):  # numbers have 63 bits
            raise NotFound(f"{id!r} is no job id; expected one that submit() gave, like {self.job_id(17)!r}.")
        if tag != self._tag:
            raise NotFound(f"job {id} belongs to another store than this one.")
        return int(number)

    # --- messages --------------------------------------------------------------------------------------------------

    def next_message(self) -> int:
        """Return the number of a new message."""
        self.last_message += 1
        self.committer.open.last_message = self.last_message  # Also one that is elided is never given again.
        return self.last_message

    # --- turns -----------------------------------------------------------------------------------------------------

    def may_start(self, activation: Activation, envelope: Envelope) -> bool:
        """Whether a turn may start now: not while closing (asks of running turns go on), nor far ahead of the disk."""
        if not self.accepting and (envelope.caller is None or self._ending or self.failure is not None):
            return False
        if self.committer.behind():
            self._paused.append(activation)
            return False
        return True

    def is_ending(self) -> bool:
        """Whether the time of running turns is over, because the system closes."""
        return self._ending

    def forget_leaked(self, turn: Turn) -> None:
        """Note that an abandoned turn has come to its end after all."""
        if turn.task is not None:
            self.leaked.discard(turn.task)

    def turn_broke(self, error: BaseException) -> None:
        """Stop the system: an error in a turn is not its handler's but ours."""
        if self.failure is None:
            self._store_failed(error)

    def turn_ended(self, envelope: Envelope) -> None:
        """Note that a message's turn is over."""
        if self.withdrawals.deadlines:
            handle = self.withdrawals.deadlines.pop(envelope.no, None)
            if handle is not None:
                handle.cancel()
        if self.recovery.suspects:
            self.recovery.suspect_ended(envelope)
        if self.ledgers.of_messages:
            self.ledgers.turn_ended(envelope.no)

    def _taking(self, batch: Batch) -> None:
        # Also numbers of messages that never touch the table are given once only: job ids must not come back.
        batch.last_message = self.last_message

    def _committed(self, batch: Batch) -> None:
        if self._paused:
            paused, self._paused = self._paused, []
            for activation in paused:
                activation.pump()
        if batch.traces and self.recorder.listeners:
            for told in batch.traces:
                for event in told.events:
                    for listener in self.recorder.listeners:
                        listener.hear(event)

    def hand_back(self, batch: Batch, envelope: Envelope, outcome: Outcome) -> None:
        """Give a reply to the turn that asked: into its journal, and at once when it is in memory."""
        caller, key = envelope.caller, envelope.caller_key
        assert caller is not None
        assert key is not None
        journal = self.journals.get(caller)
        if journal is None and caller > self.opening.last_message and caller not in self.parked:
            return  # The turn that asked has ended without waiting for this.
        slot = journal.slots.get(key) if journal is not None else None
        entry = JournalEntry(caller, key, outcome, slot.after if slot is not None else None, envelope.no)
        batch.journal[(caller, key)] = entry
        batch.work += 1
        if journal is not None:
            journal.wrote(batch.number)
            if slot is not None:
                slot.settle(outcome)
            else:
                journal.remember(entry)  # It is being read back, and the disk does not tell of this answer yet.
        parking.wake_asker(self, batch, envelope)

    def journal_of(self, envelope: Envelope) -> Journal:
        """Return the journal of a running message."""
        journal = self.journals.get(envelope.no)
        if journal is None:
            journal = self.journals[envelope.no] = Journal(envelope.no)
            self.parked.discard(envelope.no)
        return journal

    # --- trace -----------------------------------------------------------------------------------------------------

    async def trace(self, id: str, /) -> Trace:
        """Return the tree of everything that the job, and what it caused, has done so far.

        Raises:
            NotFound: The trace knows nothing under this id.
        """
        self.check_usable()
        await self.committer.wait_durable()
        events = await self.recorder.events_of(id)
        if not events:
            # A job that a turn submitted lies in the tree of that turn; one of a workflow beside the others.
            job, id = id, await self.jobs.correlation(id)
            events = await self.recorder.events_of(id)
            if events and id.startswith(WORKFLOW):
                part = build_trace(id, events, seen_at=self.wall()).below(job, str(self.message_no(job)))
                if part is not None:
                    return part
                id, events = job, []
        if not events:
            raise NotFound(
                f"the trace has nothing under {id!r}; plain actors' turns are stored with System(trace='all')."
            )
        return build_trace(id, events, seen_at=self.wall())

    def events(self) -> AsyncIterator[Event]:
        """Stream events as they are committed, from this call on; ends when the system closes.

        Raises:
            LimitExceeded: The listener fell too far behind; what it has missed is in the store.
        """
        self.check_usable()
        return self.recorder.listen()

    def supervisor(self, name: str = ROOT, /) -> SupervisorRef:
        """Return a supervisor's address: by its name, or the root's, whose children the system was given.

        Raises:
            NotFound: No supervisor was ever started under this name.
        """
        self.check_usable()
        self.supervision.find(name)
        return SupervisorRef(self, name)

    def picture(self) -> Picture:
        """Return the tree of supervisors as it is now, as plain data."""
        return self.supervision.picture()

    # --- administration --------------------------------------------------------------------------------------------

    def actors(self, cls: type[Actor[Any, Any]] | None = None) -> AsyncIterator[ActorInfo]:
        """Stream the stored actors, of one class or all, in order of creation.

        Raises:
            NotRegistered: The class is not registered.
        """
        self.check_usable()
        return administration.actors(self, self.registry.type_of(cls) if cls is not None else None)

    def suspended(self) -> AsyncIterator[ActorInfo]:
        """Stream the suspended actors, in order of creation: mend the cause, then `await system.resume(info.ref)`."""
        self.check_usable()
        return administration.suspended(self)

    def watch(self, ref: Actor[Any, Any], /) -> AsyncIterator[ActorChange]:
        """Stream what becomes of one actor, from this call on, each change once it is on disk; ends with the system.

        Raises:
            LimitExceeded: The listener fell too far behind; what it has missed is in the trace.
        """
        self.check_usable()
        target = self._target_of(ref)
        return self.watching.watch(target.kind, target.id)

    def dead_letters(self) -> AsyncIterator[DeadLetterInfo]:
        """Stream the messages that were given up, oldest first."""
        self.check_usable()
        return administration.dead_letters(self)

    async def redeliver(self, id: str, /) -> None:
        """Try a dead letter again: back at the end of its actor's mailbox, its finished steps not repeated.

        *id* is what `HandlerFailed.dead_letter`, or the job's id, says. Returns once that is durable.

        Raises:
            NotFound: There is no such dead letter (any more).
            MailboxFull: Too many messages wait; nothing was changed.
            NotRegistered: Its actor's class is not registered.
        """
        self.check_usable()
        await letters.redeliver(self, id)

    async def discard(self, id: str, /) -> None:
        """Forget a dead letter for good; its key is free again. Raises `NotFound`."""
        self.check_usable()
        await letters.discard(self, id)

    async def deliver(self, id: str, name: str, value: object, /) -> None:
        """Give a handler the value that it waits for by `external(name, type)`; returns once that is durable.

        *id* is what `self.turn.id` says in that handler, or the id of its job. The value may come before the handler
        waits for it; so one under a name that it never waits for, such as a mistyped one, is kept without an error until
        its message has ended. Delivering the same again changes nothing.

        Raises:
            NotFound: The message has ended, or there never was one.
            KeyConflict: Another value was delivered under this name, and nothing waits for one now.
            InvalidArguments: It is not of the type that the handler waits for.
            EncodingFailed: It is not data.
            NotRegistered: The class of the message's actor is not registered.
        """
        self.check_usable()
        self.check_accepting()
        check_name(name)
        await self.waits.deliver(id, name, value)

    async def approvals(self) -> list[Approval]:
        """Return the calls of tools that wait for a person's approval, oldest first."""
        self.check_usable()
        return await self.decisions.pending()

    def approval(self, id: str, /) -> Approval:
        """Return the handle of one approval, to approve or reject it; raises `NotFound` when *id* can be none's."""
        self.check_usable()
        return self.decisions.handle(id)

    async def resume(self, ref: Actor[Any, Any], /) -> None:
        """Let a suspended actor go on, or one that its policy or a person stopped: its state is read again, then its mail.

        No finished step is repeated. Returns once that is durable; does nothing when the actor is neither.

        Raises:
            ActorSuspended: The cause is still there.
            StartFailed: It is a static child, and its `on_start` fails.
        """
        self.check_usable()
        await administration.resume(await self._entered(ref))

    async def erase(self, ref: Actor[Any, Any], /) -> None:
        """Delete everything stored about an actor; its bytes are gone from the file and its log when this returns.

        Raises:
            InvalidArguments: The actor has waiting messages or a running turn.
        """
        self.check_usable()
        activation = await self._entered(ref)
        # Half an erasure would be worse than none: it is not left to the mercy of its caller.
        await settle_task(administration.erase(self, activation))

    async def backup(self, path: str | PathLike[str], /) -> None:
        """Write a consistent copy of the store to *path* while work goes on; refuses an existing file."""
        self.check_usable()
        await self.store.backup(path)

    def _target_of(self, ref: Any) -> ActorTarget:
        target = ref._target if isinstance(ref, Ref) else None
        if not isinstance(target, ActorTarget) or target.system is not self:
            raise InvalidArguments(f"expected a ref of this system, made by system.actor(...); got {ref!r}.")
        return target

    async def _entered(self, ref: Any) -> Activation:
        return await self._target_of(ref).enter()


def _store_at(path: str | PathLike[str], durability: Literal["full", "process"], lock_wait_s: float) -> Store:
    from understudy.mailbox.sqlite import SQLiteStore

    return SQLiteStore(path, durability=durability, lock_wait_s=lock_wait_s)


def _with_causes(error: BaseException | None) -> str:
    """Return the texts of an error and of what caused it, down to the root cause."""
    texts: list[str] = []
    while error is not None and len(texts) < 10:
        texts.append(str(error) if isinstance(error, UnderstudyError) else f"{type(error).__name__}: {error}")
        error = error.__cause__
    return "; because: ".join(texts)
