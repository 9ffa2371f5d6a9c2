"""The system: one store, the actors alive in memory, and what starts, stops and recovers them."""

from __future__ import annotations

import asyncio
import contextvars
import logging
import os
import threading
from collections.abc import AsyncIterator, Callable, Collection, Coroutine, Sequence
from functools import partial
from os import PathLike
from types import TracebackType
from typing import Any, Literal, Self, TypeVar, cast, overload
from uuid import UUID

import msgspec

from understudy.actors.activation import Activation, closed_error
from understudy.actors.actor import Actor
from understudy.actors.agent import Agent
from understudy.actors.handler import Handler
from understudy.actors.job import Job
from understudy.actors.jobs import Jobs
from understudy.actors.kinds import ActorType
from understudy.actors.limits import Limits
from understudy.actors.reach import reached
from understudy.actors.ref import Ref
from understudy.actors.target import ActorTarget
from understudy.actors.timers import Timers
from understudy.actors.tool import SHARED, Tool, ToolType
from understudy.actors.turn import Turn
from understudy.clock import wall_clock
from understudy.codec import Codec, encode, text_bytes
from understudy.endpoint.endpoint import Endpoint
from understudy.errors import (
    ActorSuspended,
    InvalidArguments,
    InvalidDefinition,
    LimitExceeded,
    NotFound,
    NotRegistered,
    StateUndecodable,
    StoreFailed,
    SystemClosed,
    SystemFailed,
    WrongLoop,
)
from understudy.events import (
    ActorErased,
    ActorResumed,
    Event,
    MessageCrashed,
    SystemStarted,
    SystemStopped,
    TraceEvent,
)
from understudy.mailbox.commit import Batch, Committer, DeadLetter
from understudy.mailbox.envelope import Envelope, Head
from understudy.mailbox.journal import Journal, JournalEntry, Outcome
from understudy.mailbox.store import ActorRow, Opening, Store
from understudy.trace.tree import Trace, build_trace

A = TypeVar("A", bound=Actor[Any, Any])
R = TypeVar("R")
T = TypeVar("T")

logger = logging.getLogger(__name__)

_TIDY_S = 60.0  # how often old rows are looked for
_DRIFT_MAX_S = 3600.0  # retention pauses while wall and monotonic clock disagree by more since the opening
_SUSPECTS_S = 0.02  # how often a suspect looks whether it may run; there are suspects after crashes only
_SWEEP_S = 30.0  # how often idle actors are looked for, at most


class System:
    """Durable actors on one SQLite file; use it as `async with System("agents.db", [MyActor]) as system:`.

    Opening takes the file's ownership, and unfinished work goes on at once. Leaving lets running turns finish within
    `Limits.grace_s`, ends the others (they go on at the next opening) and closes the file.

    Args:
        path: The SQLite file; made when it is not there. Or a `Store`.
        children: Actor classes whose actors may come to life. What their tools reach is registered with them.
        endpoints: Where model calls of agents go.
        resources: Objects that tools and handlers find by type: `current_turn().resource(Index)`.
        limits: Sizes and times.
        trace: "all" stores the turns of plain actors too; "steps" counts them only.
        durability: "full" survives a power cut; "process" survives the death of the process only, and is faster.

    Raises:
        StoreLocked: Another process owns the file (on entering).
        StoreRefused: The file cannot be opened; it was not touched (on entering).
        InvalidDefinition: A class, resource or setting is wrong.
    """

    def __init__(
        self,
        path: str | PathLike[str] | Store,
        children: Sequence[type[Actor[Any, Any]]] = (),
        *,
        endpoints: Sequence[Endpoint] = (),
        resources: Sequence[object] = (),
        limits: Limits | None = None,
        trace: Literal["steps", "all"] = "steps",
        durability: Literal["full", "process"] = "full",
    ) -> None:
        if trace not in ("steps", "all"):
            raise InvalidDefinition(f"trace must be one of 'steps', 'all'; got {trace!r}.")
        if durability not in ("full", "process"):
            raise InvalidDefinition(f"durability must be one of 'full', 'process'; got {durability!r}.")
        self._new_store = partial(_store_at, path, durability) if isinstance(path, (str, PathLike)) else None
        self.store: Store = self._new_store() if self._new_store is not None else cast(Store, path)
        self.limits = limits or Limits()
        self.endpoints = tuple(endpoints)
        self.trace_all = trace == "all"
        self._resources = tuple(resources)
        self._codec = Codec(self._revive)
        self._types: dict[str, ActorType] = {}
        self._decoders: dict[Any, Callable[[bytes], Any]] = {}
        self.jobs = Jobs(self)
        for each in reached(children):
            if isinstance(each, Tool):
                self._register_tool(each)
            else:
                self._register(each)
        self._begin()

    def _begin(self) -> None:
        """Set what belongs to one opening."""
        self.usable = False
        self.accepting = False
        self._ending = False  # the time for running turns is over: what was asked starts no more either
        self.failure: BaseException | None = None
        self._failed = asyncio.Event()
        self.last_message = 0
        self.life = 0
        self.withdrawn: set[int] = set()  # cancelled while they waited: a read under way must not bring them back
        self.turns: dict[int, Turn] = {}
        self.journals: dict[int, Journal] = {}
        self.unasked: set[int] = set()  # open asks of turns that ended without their reply
        self.asked: dict[int, asyncio.Future[Any]] = {}  # who waits for the reply of a message that is on disk only
        self.open_jobs: dict[int, int] = {}  # kept messages accepted in this life and not finished -> their actor
        self.jobs.reset()
        self._active: dict[int, Activation] = {}  # by number
        self._tasks: set[asyncio.Task[Any]] = set()
        self._turn_tasks: set[asyncio.Task[Any]] = set()
        self._to_load: list[Activation] = []
        self._loading = False
        self._paused: list[Activation] = []
        self._listeners: set[asyncio.Queue[bytes | None]] = set()
        self._deadlines: dict[int, asyncio.TimerHandle] = {}
        self._suspects: list[
            tuple[Envelope, Activation]
        ] = []  # the last one is charged with a crash, the others wait for it
        self._live = 0
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
        self._clock_offset_s = self.wall() - self.loop.time()
        self._thread = threading.get_ident()
        self.pid = os.getpid()
        self._context = contextvars.Context()
        opening: Opening = await self.store.open()
        try:
            self._opening = opening
            self.life = opening.epoch
            self.last_message = opening.last_message
            self._last_actor = opening.last_actor
            self.namespace = UUID(opening.store_id)
            self._tag = opening.store_id.replace("-", "")[:6]
            self.committer = Committer(self.store, self._store_failed)
            self.committer.taking = self._taking
            self.committer.committed = self._committed
            self.committer.start()
            self._host = asyncio.current_task()
            self.timers = Timers(self)
            self.usable = self.accepting = True
            self.emit(
                SystemStarted(
                    at=self.wall(),
                    correlation="system",
                    span=f"life {self.life}",
                    life=self.life,
                    pid=self.pid,
                    clean=opening.clean,
                )
            )
            await self.timers.start()
            self.spawn(self._recover(), "recover")
            self.spawn(self._sweep(), "sweep")
        except BaseException:
            self.usable = self.accepting = False
            for task in list(self._tasks):
                task.cancel()
            await self.committer.stop()
            await self.store.close(clean=False)
            raise
        return self

    async def __aexit__(
        self, error_type: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        # Closing is bounded, and a cancellation (of the body, or by our own fail-stop) must not cut it short.
        closing = self.loop.create_task(self._close(), name="understudy-close")
        cancelled: asyncio.CancelledError | None = None
        while not closing.done():
            try:
                await asyncio.wait([closing])
            except asyncio.CancelledError as error_:
                cancelled = error_
        closing.result()
        failure = self.failure
        if failure is not None:
            host = self._host
            if host is not None and host.cancelling():
                host.uncancel()
            raise SystemFailed(f"the system stopped itself: {failure}") from failure
        if cancelled is not None:
            raise cancelled

    async def _close(self) -> None:
        self.accepting = False
        interrupted = 0
        await self.timers.stop()
        if self.failure is None:
            await self._drain()
            self._ending = True
            for turn in list(self.turns.values()):
                if turn.ended != "finished":
                    interrupted += 1
                turn.stop("shutdown")
        await self._settle_turns()
        if self.failure is None:
            await self._stop_objects()
        self.usable = False
        self._refuse_waiters()
        for task in list(self._tasks):
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)
        if self.failure is None:
            self.emit(
                SystemStopped(
                    at=self.wall(),
                    correlation="system",
                    span=f"life {self.life}",
                    life=self.life,
                    interrupted=interrupted,
                )
            )
        await self.committer.stop()
        await self.store.close(clean=self.failure is None)
        for endpoint in self.endpoints:
            await endpoint.close()
        for queue in self._listeners:
            queue.put_nowait(None)
        for type in self._types.values():
            type.live.clear()
        self._active.clear()

    async def _drain(self) -> None:
        """Let running turns finish, within the grace period."""
        try:
            async with asyncio.timeout(self.limits.grace_s):
                while self._turn_tasks and any(not turn.ended for turn in self.turns.values()):
                    await asyncio.wait(self._turn_tasks, return_when=asyncio.FIRST_COMPLETED)
        except TimeoutError:
            pass

    async def _stop_objects(self) -> None:
        """Let the objects of actors in memory release what they took, within the grace period."""
        stops = [self._stop_object(each) for type in self._types.values() if type.stops for each in type.live.values()]
        try:
            async with asyncio.timeout(self.limits.grace_s):
                await asyncio.gather(*stops)
        except TimeoutError:
            logger.warning("system.on_stop_late", extra={"grace_s": self.limits.grace_s})

    async def _settle_turns(self) -> None:
        while self._turn_tasks:
            await asyncio.wait(self._turn_tasks)

    def _refuse_waiters(self) -> None:
        error = self.failure or closed_error()
        waiters = [*self.asked.values(), *self.timers.waiters()]
        for type in self._types.values():
            for activation in type.live.values():
                activation.refuse_all(error)
                waiters.extend(envelope.waiter for envelope in activation.inbox or () if envelope.waiter is not None)
        waiters.extend(turn.envelope.waiter for turn in self.turns.values() if turn.envelope.waiter is not None)
        for waiter in waiters:
            if not waiter.done():
                waiter.set_exception(error)
                waiter.exception()
        self.jobs.refuse_all(error)
        for handle in self._deadlines.values():
            handle.cancel()

    def _store_failed(self, error: BaseException) -> None:
        """A commit failed: end every turn, refuse everybody, and cancel the body of `async with`."""
        if self.failure is not None:
            return
        self.failure = error
        self._failed.set()
        self.accepting = False
        for turn in list(self.turns.values()):
            turn.stop("store failed")
        self._refuse_waiters()
        if self._host is not None and not self._host.done():
            self._host.cancel()

    async def failed(self) -> BaseException:
        """Wait until the system stops itself, and return why."""
        await self._failed.wait()
        assert self.failure is not None
        return self.failure

    def check_usable(self) -> None:
        """Refuse a call that cannot work: closed, another loop, a forked child."""
        if not self.usable or self.failure is not None:
            if self.failure is not None:
                raise self.failure
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
        task = self.loop.create_task(work, name=f"understudy-{name}", context=self._context.copy())
        self._tasks.add(task)
        task.add_done_callback(self.watch_task)

    def keep_task(self, task: asyncio.Task[Any]) -> None:
        """Own a task whose end somebody else reads; it is cancelled when the system closes."""
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def watch_task(self, task: asyncio.Task[Any]) -> None:
        """Read the end of one of the system's own tasks."""
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None and self.failure is None:
            self._store_failed(cast(BaseException, task.exception()))

    # --- what is registered ----------------------------------------------------------------------------------------

    def _register(self, cls: type[Actor[Any, Any]]) -> None:
        other = self._types.get(cls.kind)
        if other is not None:
            if other.cls is cls:
                return
            raise InvalidDefinition(
                f"{cls.__qualname__} and {other.cls.__qualname__} have one kind, {cls.kind!r}: give one of them "
                "another, class X(Actor, kind='...')."
            )
        self._types[cls.kind] = ActorType(cls, self._codec, "agent" if issubclass(cls, Agent) else "actor")

    def _register_tool(self, tool: Tool[..., Any]) -> ToolType:
        known = self._types.get(tool.kind)
        if isinstance(known, ToolType) and known.tool.function is tool.function:
            return known
        if known is not None:
            raise InvalidDefinition(f"two tools are called {tool.name!r}: give one of them a name=.")
        made = self._types[tool.kind] = ToolType(tool, self._codec)
        return made

    def type_of(self, cls: type[Any]) -> ActorType:
        """Return what this system knows of the class; raises `NotRegistered`."""
        type = self._types.get(getattr(cls, "kind", ""))
        if type is None or type.cls is not cls:
            known = ", ".join(sorted(each.cls.__name__ for each in self._types.values())) or "none"
            raise NotRegistered(
                f"{getattr(cls, '__name__', cls)} is not registered with this system; add it to System(..., [...]). "
                f"It has: {known}."
            )
        return type

    def tool_target(self, tool: Tool[..., Any]) -> ActorTarget:
        """Return the address of a tool's actor."""
        return ActorTarget(self, self._register_tool(tool), SHARED)

    def target(self, type: ActorType, id: str) -> ActorTarget:
        """Return the address of an actor of a known type."""
        return ActorTarget(self, type, id)

    def endpoint_for(self, model: str) -> Endpoint:
        """Return the endpoint that serves the model, the first in order; raises `NotRegistered`."""
        for endpoint in self.endpoints:
            if endpoint.serves(model):
                return endpoint
        raise NotRegistered(
            f"no endpoint serves model {model!r}; give one to System(..., endpoints=[Endpoint(AnthropicProvider())])."
        )

    def declared_errors(self) -> list[type[Exception]]:
        """Return every error that a handler of this system declares."""
        return [error for type in self._types.values() for each in type.handlers.values() for error in each.raises]

    def decoder(self, of: Any) -> Callable[[bytes], Any]:
        """Return the decoder for a type, made once."""
        try:
            found = self._decoders.get(of)
        except TypeError:
            return self._codec.decoder(of)
        if found is None:
            found = self._decoders[of] = self._codec.decoder(of)
        return found

    def _revive(self, cls: Any, data: Any) -> Any:
        origin = getattr(cls, "__origin__", cls)
        if origin is Job:
            returns = getattr(cls, "__args__", (Any,))[0]
            return Job(self.jobs, data, Any if isinstance(returns, TypeVar) else returns)
        if isinstance(origin, type) and issubclass(origin, Actor):
            kind, id = data
            type_ = self._types.get(kind)
            if type_ is None:
                raise NotRegistered(f"a stored ref names kind {kind!r}, which is not registered with this system.")
            if not issubclass(type_.cls, origin):
                raise ValueError(  # noqa: TRY004 - msgspec reports wrong data by this type
                    f"expected a ref to a {origin.__name__}, got one to {kind}/{id}"
                )
            return self.ref(type_, id)
        return NotImplemented

    def resource(self, kind: type[T]) -> T:
        """Return the resource of that type.

        Raises:
            NotRegistered: There is none, or more than one.
        """
        found = [each for each in self._resources if isinstance(each, kind)]
        if len(found) == 1:
            return found[0]
        what = "no resource" if not found else f"{len(found)} resources"
        raise NotRegistered(f"{what} of type {kind.__name__}; give exactly one to System(..., resources=[...]).")

    # --- addresses -------------------------------------------------------------------------------------------------

    def actor(self, cls: type[A], id: str | None = None, /) -> A:
        """Return the address of an actor; it comes to life with its first message. Without an id it is a fresh one."""
        type = self.type_of(cls)
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
        return Ref(ActorTarget(self, type, id))

    @overload
    def job(self, id: str, /) -> Job[Any]: ...
    @overload
    def job(self, id: str, of: Handler[Callable[..., Coroutine[Any, Any, R]]], /) -> Job[R]: ...
    def job(self, id: str, of: Any = None, /) -> Any:
        """Return the handle of a submitted message, today or after a restart; *of* gives its result's type."""
        self.message_no(id)
        if of is None:
            return Job(self.jobs, id)
        return Job(self.jobs, id, self.type_of(of.owner).handlers[of.name].wire.signature.returns)

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

    # --- activation ------------------------------------------------------------------------------------------------

    def activate(self, type: ActorType, id: str) -> Activation:
        """Return the actor, coming to life; its door opens when it has been loaded."""
        activation = type.live[id] = Activation(self, type, id)
        activation.used_at = self.loop.time()
        self._live += 1
        self._to_load.append(activation)
        if not self._loading:
            self._loading = True
            self.spawn(self._load(), "load")
        return activation

    async def _load(self) -> None:
        """Load actors, everyone that arrived meanwhile in one read."""
        try:
            while self._to_load:
                await asyncio.sleep(0)
                page, self._to_load = self._to_load[:512], self._to_load[512:]
                await self._load_page(page)
        finally:
            self._loading = False
        if self._live > self.limits.active_max:
            self._make_room()

    async def _load_page(self, page: list[Activation]) -> None:
        records = await self.store.load([(each.type.kind, each.id) for each in page], self.limits.window_messages)
        for activation, record in zip(page, records, strict=True):
            await activation.loaded(record)
            if activation.no:
                self._active[activation.no] = activation
            activation.ready = True
            activation.let_in()
            activation.pump()

    def next_actor(self, activation: Activation) -> int:
        """Return the number of a new actor."""
        self._last_actor += 1
        self._active[self._last_actor] = activation
        return self._last_actor

    def next_message(self) -> int:
        """Return the number of a new message."""
        self.last_message += 1
        self.committer.open.last_message = self.last_message  # Also one that is elided is never given again.
        return self.last_message

    def activation_by_no(self, no: int) -> Activation | None:
        """Return the actor with this number when it is in memory."""
        return self._active.get(no)

    async def activation_of(self, no: int) -> Activation | None:
        """Return the actor with this number, loaded; None when its class is not registered."""
        activation = self._active.get(no)
        if activation is None:
            (record,) = await self.store.load([no], 0)
            if record is None or record.kind not in self._types:
                return None
            type = self._types[record.kind]
            activation = type.live.get(record.id) or self.activate(type, record.id)
        if not activation.ready:
            await activation.enter()
        return activation

    def _make_room(self) -> None:
        """Let the actors that were unused for longest leave memory."""
        surplus = self._live - self.limits.active_max * 9 // 10
        idle = [each for type in self._types.values() for each in type.live.values() if each.may_leave()]
        idle.sort(key=lambda each: each.used_at)
        for activation in idle[:surplus]:
            self._passivate(activation)

    def _passivate(self, activation: Activation) -> None:
        if activation.type.live.pop(activation.id, None) is not None:
            self._live -= 1
        self._active.pop(activation.no, None)
        if activation.type.stops and activation.object is not None:
            self.spawn(self._stop_object(activation), "on_stop")

    async def _stop_object(self, activation: Activation) -> None:
        """Let the user's object release what it took; its error is told, and stops nobody."""
        made, type = activation.object, activation.type
        if made is None or not type.stops or (type.starts and not made.__dict__.get("_started")):
            return
        try:
            await made.on_stop()
        except Exception:
            logger.exception("actor.on_stop_failed", extra={"kind": type.kind, "actor_id": activation.id})

    async def _tidy(self) -> None:
        # One bad step of the wall clock must not delete every key: nothing is too old while the clocks disagree.
        drift_s = self.wall() - self.loop.time() - self._clock_offset_s
        if abs(drift_s) > _DRIFT_MAX_S:
            logger.warning("system.retention_paused", extra={"drift_s": drift_s})
            return
        try:
            await self.store.tidy(self.wall(), self.limits.trace_ttl_s, self.limits.trace_bytes)
        except StoreFailed as error:
            # Without space, or beside a reader that stays; if it is worse, the next commit finds out.
            logger.warning("system.tidy_failed", extra={"error": str(error)})

    async def _sweep(self) -> None:
        """Let idle actors leave memory, and old rows the file."""
        last_tidy = -_TIDY_S
        while True:
            await self._tidy()
            last_tidy = self.loop.time()
            while self.loop.time() - last_tidy < _TIDY_S:
                await asyncio.sleep(min(_SWEEP_S, self.limits.idle_s / 2))
                before = self.loop.time() - self.limits.idle_s
                for type in self._types.values():
                    for activation in [each for each in type.live.values() if each.used_at <= before]:
                        if activation.may_leave():
                            self._passivate(activation)

    # --- turns -----------------------------------------------------------------------------------------------------

    def may_start(self, activation: Activation, envelope: Envelope) -> bool:
        """Whether a turn may start now: not while closing (asks of running turns go on), nor far ahead of the disk."""
        if not self.accepting and (envelope.caller is None or self._ending or self.failure is not None):
            return False
        if self.committer.behind():
            self._paused.append(activation)
            return False
        return True

    def start_turn(self, work: Coroutine[Any, Any, None]) -> None:
        """Run a turn as a task of its own, in a context of its own."""
        # Not `loop.create_task`: its default names and the done callback that `end_turn` replaces cost 3 us a turn.
        task = asyncio.Task(work, loop=self.loop, name="understudy-turn", context=self._context.copy())
        self._turn_tasks.add(task)

    def end_turn(self, turn: Turn | None, error: BaseException | None) -> None:
        """Note that a turn's task ends; an error that is not the handler's is ours and stops the system."""
        task = turn.task if turn is not None else asyncio.current_task()
        if task is not None:
            self._turn_tasks.discard(task)
        if error is not None and self.failure is None:
            self._store_failed(error)

    def turn_ended(self, envelope: Envelope) -> None:
        """Note that a message's turn is over."""
        if self._deadlines:
            handle = self._deadlines.pop(envelope.no, None)
            if handle is not None:
                handle.cancel()
        if self._suspects:
            self._suspect_ended(envelope)

    def _taking(self, batch: Batch) -> None:
        # Also numbers of messages that never touch the table are given once only: job ids must not come back.
        batch.last_message = self.last_message

    def _committed(self, batch: Batch) -> None:
        if self._paused:
            paused, self._paused = self._paused, []
            for activation in paused:
                activation.pump()
        if batch.traces and self._listeners:
            for _, _, body in batch.traces:
                for queue in self._listeners:
                    queue.put_nowait(body)

    def deliver(self, batch: Batch, caller: int, key: bytes, outcome: Outcome) -> None:
        """Give a reply to the turn that asked: into its journal, and at once when it is in memory."""
        journal = self.journals.get(caller)
        if journal is None and caller > self._opening.last_message:
            return  # The turn that asked has ended without waiting for this.
        slot = journal.slots.get(key) if journal is not None else None
        entry = JournalEntry(caller, key, outcome, slot.after if slot is not None else None)
        batch.journal[(caller, key)] = entry
        batch.work += 1
        if journal is not None:
            journal.wrote(batch.number)
            if slot is not None:
                slot.settle(outcome)
            else:
                journal.remember(entry)  # It is being read back, and the disk does not tell of this answer yet.

    def journal_of(self, envelope: Envelope) -> Journal:
        """Return the journal of a running message."""
        journal = self.journals.get(envelope.no)
        if journal is None:
            journal = self.journals[envelope.no] = Journal(envelope.no)
        return journal

    def query_view(self, activation: Activation, reader: Any, where: str) -> Turn:
        """Return what a query sees of its surroundings: resources and addresses, but nothing that changes anything."""
        view = Turn(activation, Envelope(0, activation.no, 0, "", b"", Head(self.wall(), "")), reader)
        view.within = f"query {where}"
        return view

    def watch_deadline(self, envelope: Envelope, activation: Activation) -> None:
        """End the message when its deadline passes: its running turn, or its place in the mailbox."""
        assert envelope.head.deadline_at is not None

        def expire() -> None:
            self._deadlines.pop(envelope.no, None)
            turn = self.turns.get(envelope.no)
            if turn is not None:
                turn.stop("deadline")
            elif activation.inbox and envelope in activation.inbox:
                activation.inbox.remove(envelope)
                activation.expire(envelope)
                activation.pump()
            else:  # A timer, or in the part of a long mailbox that lies on disk.
                self.spawn(self._expire_waiting(envelope.no), "expire")

        delay_s = max(0.0, envelope.head.deadline_at - self.wall())
        self._deadlines[envelope.no] = self.loop.call_later(delay_s, expire)

    async def cancel(self, no: int) -> None:
        """Cancel a message wherever it is, and what its turn asked; nothing when it has ended."""
        journal = self.journals.get(no)
        children = (
            [slot.child for slot in journal.slots.values() if slot.child and slot.outcome is None] if journal else []
        )
        turn = self.turns.get(no)
        if turn is not None:
            if turn.ended in (None, "failed"):
                turn.activation.cancel(turn.envelope)
                turn.stop("cancelled")
        else:
            await self._cancel_waiting(no)
        for child in children:
            await self.cancel(child)

    async def _cancel_waiting(self, no: int) -> None:
        found = await self._take_waiting(no)
        if found is not None:
            activation, envelope = found
            # What its turn asked in an earlier life: its journal may not have been read back yet.
            children = await self.store.asked_by(no) if envelope.started or envelope.crashes else []
            activation.cancel(envelope)
            activation.pump()
            for child in children:
                await self.cancel(child.no)
        elif no in self.turns:
            await self.cancel(no)

    async def _expire_waiting(self, no: int) -> None:
        try:
            found = await self._take_waiting(no)
        except (NotRegistered, StateUndecodable):
            return  # It waits for its code, or for the mending of its actor, and expires then.
        if found is not None:
            activation, envelope = found
            activation.expire(envelope)
            activation.pump()
        elif (turn := self.turns.get(no)) is not None:
            turn.stop("deadline")

    async def _take_waiting(self, no: int) -> tuple[Activation, Envelope] | None:
        """Take a message that has not started out of its mailbox or from among the timers; None when there is none."""
        await self.committer.wait_durable()
        envelope = (await self.store.message(no)).pending
        if envelope is None:
            return None
        activation = await self.activation_of(envelope.actor)
        if activation is None:
            raise NotRegistered(f"job {self.job_id(no)} waits for code that is not registered; register it to cancel.")
        if no in self.turns or no in self.withdrawn:
            return None
        queued = next((each for each in activation.inbox or () if each.no == no), None)
        if queued is not None:
            assert activation.inbox is not None
            activation.inbox.remove(queued)
            return activation, queued
        delayed = self.timers.withdraw(no) if envelope.due_at is not None else None
        if delayed is not None:
            return activation, delayed
        # It lies on disk only, or it has ended since the read above. Nobody brings it in any more: look again.
        self.withdrawn.add(no)
        await self.committer.wait_durable()
        envelope = (await self.store.message(no)).pending
        if envelope is None:
            return None
        envelope.waiter = self.asked.pop(no, None)
        return activation, envelope

    # --- recovery --------------------------------------------------------------------------------------------------

    def hold_if_recovered(self, envelope: Envelope, activation: Activation) -> None:
        """Let a message of an earlier life wait for its start mark, so that one that kills the process is found out."""
        if envelope.no <= self._opening.last_message and envelope.hold is None:
            envelope.hold = "recovered"
        if envelope.head.deadline_at is not None and envelope.no not in self._deadlines:
            self.watch_deadline(envelope, activation)

    async def _recover(self) -> None:
        """Bring back actors with unfinished work, suspects first, some at a time."""
        for no in await self.store.suspects():
            await self.activation_of(no)
        after = 0
        page_max = self.limits.recoveries_max
        while page := await self.store.waiting(after, page_max):
            after = page[-1]
            await self.bring_back(page)
            await self.committer.wait_durable()
            while self._live > self.limits.active_max and self._turn_tasks:
                await asyncio.wait(self._turn_tasks, return_when=asyncio.FIRST_COMPLETED)
                self._make_room()

    async def bring_back(self, numbers: Collection[int]) -> None:
        """Bring actors to life, those whose class is registered, with few reads."""
        missing = [no for no in numbers if no not in self._active]
        woken: list[Activation] = []
        for record in await self.store.load(missing, 0) if missing else ():
            if record is not None and record.kind in self._types:
                type = self._types[record.kind]
                if record.id not in type.live:
                    woken.append(self.activate(type, record.id))
        for activation in woken:
            if not activation.ready:
                await activation.enter()

    async def begin_recovered(self, envelope: Envelope, activation: Activation) -> None:
        """Mark a message of an earlier life as started, and read its journal back.

        A message that crashed the process before runs as the only suspect: another crash is charged to it alone.
        """
        crashed = envelope.crashes > 0
        if crashed:
            self.emit_for(
                envelope,
                MessageCrashed,
                kind=activation.type.kind,
                actor=activation.id,
                handler=envelope.handler,
                crashes=envelope.crashes,
            )
        begun_before = envelope.started or envelope.crashes or envelope.attempts
        if envelope.crashes >= self.limits.crashes_alone:
            await self._become_suspect(envelope, activation)
        if begun_before:
            # A child may end at any moment: what it answered before this journal existed is on disk after the wait, and
            # what it answers from here on is given to the journal. Read in this order, no answer falls between.
            journal = self.journal_of(envelope)
            await self.committer.wait_durable()
            children = await self.store.asked_by(envelope.no)
            for entry in await self.store.journal(envelope.no):
                journal.remember(entry)
            for child in children:
                assert child.caller_key is not None
                journal.expect(child.caller_key, child.no)
        if envelope not in (activation.inbox or ()):  # It was cancelled or expired meanwhile, and its row goes.
            self.journals.pop(envelope.no, None)
            return
        envelope.started = 2 if self._suspects and self._suspects[-1][0] is envelope else 1
        self.committer.touch().note_progress(envelope)

    async def _become_suspect(self, envelope: Envelope, activation: Activation) -> None:
        """Wait until no other suspect runs, or the one that runs waits for this actor: it would wait for ever."""
        while True:
            # One that was cancelled before its turn began, or whose actor is held, keeps nobody waiting.
            for each, where in list(self._suspects):
                if each.no not in self.turns and (where.status != "active" or each not in (where.inbox or ())):
                    self._suspect_ended(each)
            if not self._suspects or self._suspects[-1][1].may_need(activation):
                break
            await asyncio.sleep(_SUSPECTS_S)
        if self._suspects:
            self._charge(self._suspects[-1][0], 1)
        self._suspects.append((envelope, activation))

    def _suspect_ended(self, envelope: Envelope) -> None:
        self._suspects = [each for each in self._suspects if each[0] is not envelope]
        if self._suspects:
            self._charge(self._suspects[-1][0], 2)

    def _charge(self, envelope: Envelope, started: int) -> None:
        """Change whether a crash is charged to a suspect that has not got on: only one of them is."""
        if envelope.started > 0 and envelope.started != started:
            envelope.started = started
            self.committer.touch().note_progress(envelope)

    # --- trace -----------------------------------------------------------------------------------------------------

    def correlation_of(self, envelope: Envelope) -> str:
        """Return the root of the tree that the message belongs to."""
        return envelope.head.correlation or self.job_id(envelope.no)

    def emit(self, event: TraceEvent) -> None:
        """Put an event into the next commit."""
        batch = self.committer.touch()
        if not event.correlation:
            event = msgspec.structs.replace(event, correlation=self.job_id(int(event.span.partition("/")[0])))
        batch.traces.append((event.at, event.correlation, encode(event)))
        batch.work += 1

    def emit_for(self, envelope: Envelope, event: type[TraceEvent], **facts: Any) -> None:
        """Put an event about a message into the next commit."""
        self.emit(
            event(
                at=self.wall(),
                correlation=self.correlation_of(envelope),
                span=str(envelope.no),
                parent=envelope.head.parent,
                life=self.life,
                **facts,
            )
        )

    def emit_actor(self, event: Callable[..., TraceEvent], activation: Activation, **facts: Any) -> None:
        """Put an event about an actor into the next commit."""
        self.emit(
            event(
                at=self.wall(),
                correlation=f"actor {activation.name}",
                span=f"actor {activation.name}",
                life=self.life,
                kind=activation.type.kind,
                actor=activation.id,
                **facts,
            )
        )

    async def trace(self, id: str, /) -> Trace:
        """Return the tree of everything that the job, and what it caused, has done so far.

        Raises:
            NotFound: The trace knows nothing under this id.
        """
        self.check_usable()
        await self.committer.wait_durable()
        events = await self._events_of(id)
        if not events:
            # A job that a turn submitted lies in the tree of that turn.
            id = await self.jobs.correlation(id)
            events = await self._events_of(id)
        if not events:
            raise NotFound(
                f"the trace has nothing under {id!r}; plain actors' turns are stored with System(trace='all')."
            )
        return build_trace(id, events)

    async def _events_of(self, correlation: str) -> list[TraceEvent]:
        events: list[TraceEvent] = []
        after = 0
        while rows := await self.store.traces(correlation, after, 1_000):
            after = rows[-1].no
            events.extend(self.decoder(Event)(row.body) for row in rows)
        return events

    async def events(self) -> AsyncIterator[Event]:
        """Stream events as they are committed, from now on; ends when the system closes."""
        self.check_usable()
        queue: asyncio.Queue[bytes | None] = asyncio.Queue()
        self._listeners.add(queue)
        try:
            while (body := await queue.get()) is not None:
                yield self.decoder(Event)(body)
        finally:
            self._listeners.discard(queue)

    # --- administration --------------------------------------------------------------------------------------------

    async def actors(self, cls: type[Actor[Any, Any]] | None = None) -> AsyncIterator[ActorRow]:
        """Stream the stored actors, of one class or all, in order of creation."""
        self.check_usable()
        await self.committer.wait_durable()
        after = 0
        while page := await self.store.actors(self.type_of(cls).kind if cls else None, after, 500):
            for row in page:
                yield row
            after = page[-1].no

    async def dead_letters(self) -> AsyncIterator[DeadLetter]:
        """Stream the messages that were given up, oldest first."""
        self.check_usable()
        await self.committer.wait_durable()
        after = 0
        while page := await self.store.dead_letters(after, 500):
            for letter in page:
                yield letter
            after = page[-1].envelope.no

    async def resume(self, ref: Actor[Any, Any], /) -> None:
        """Let a suspended actor go on: its state is read again, then its mail is handled.

        Raises:
            ActorSuspended: The cause is still there.
        """
        self.check_usable()
        activation = await self._entered(ref)
        if activation.status != "suspended":
            return
        try:
            await activation.reload()
        except StateUndecodable as error:
            activation.reason = str(error)
            raise ActorSuspended(f"{activation.name} stays suspended: {error}", reason=str(error)) from error
        if activation.status != "suspended":
            return  # Somebody else resumed it meanwhile.
        activation.status, activation.reason = "active", ""
        self.committer.touch().statuses[activation.no] = ("active", "")
        self.emit_actor(ActorResumed, activation)
        activation.pump()
        await self.committer.wait_durable()

    async def erase(self, ref: Actor[Any, Any], /) -> None:
        """Delete everything stored about an actor; its bytes are gone from the file and its log when this returns.

        Raises:
            InvalidArguments: The actor has waiting messages or a running turn.
        """
        self.check_usable()
        activation = await self._entered(ref)
        activation.door_held = True  # Who sends to it now finds a new actor.
        try:
            await self.committer.wait_durable()
            if activation.running or activation.depth or activation.reserved:
                raise InvalidArguments(
                    f"{activation.name} has {activation.depth} waiting messages; nothing was erased. Cancel them first."
                )
            no = activation.no
            if no:
                await self.store.erase(no)
                self._active.pop(no, None)
                await self._stop_object(activation)
                activation.forget()
        finally:
            activation.release_door()
        if no:
            self.emit(
                ActorErased(
                    at=self.wall(),
                    correlation="system",
                    span=f"life {self.life}",
                    life=self.life,
                    kind=activation.type.kind,
                    actor_no=no,
                )
            )
            await self.committer.wait_durable()

    async def backup(self, path: str | PathLike[str], /) -> None:
        """Write a consistent copy of the store to *path* while work goes on; refuses an existing file."""
        self.check_usable()
        await self.store.backup(path)

    async def _entered(self, ref: Any) -> Activation:
        target = ref._target if type(ref) is Ref else None
        if not isinstance(target, ActorTarget) or target.system is not self:
            raise InvalidArguments(f"expected a ref of this system, made by system.actor(...); got {ref!r}.")
        return await target.enter()


def _store_at(path: str | PathLike[str], durability: Literal["full", "process"]) -> Store:
    from understudy.mailbox.sqlite import SQLiteStore

    return SQLiteStore(path, durability=durability)
