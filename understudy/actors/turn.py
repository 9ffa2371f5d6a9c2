"""One message being handled: what the handler may do, collected until it commits.

What a turn tells leaves with its commit. What it asks, submits and does in steps leaves at once and is journaled, so
that the turn, delivered again, gets the outcomes instead of doing it again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextvars import ContextVar
from datetime import UTC, datetime
from hashlib import blake2b
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar
from uuid import UUID, uuid5

from understudy.codec import decode_or_suspend, encode
from understudy.errors import (
    KeyConflict,
    LimitExceeded,
    NoTurn,
    OutcomeUnknown,
    StateUndecodable,
    TurnEnded,
)
from understudy.events import StepReplayed, TraceEvent, TurnDiverged, TurnStarted
from understudy.mailbox.journal import Journal, JournalEntry, Lineage, Outcome, Slot, group

if TYPE_CHECKING:
    from understudy.actors.activation import Activation
    from understudy.actors.actor import Actor
    from understudy.actors.handler import Options
    from understudy.actors.kinds import BoundHandler
    from understudy.actors.parking import Rest
    from understudy.mailbox.envelope import Envelope
    from understudy.supervisor.policy import Decision

A = TypeVar("A", bound="Actor[Any, Any]")
T = TypeVar("T")

scope: ContextVar[Turn | None] = ContextVar("understudy_turn", default=None)
# The ledgers that a run of an agent, which runs in this context, draws on: what it sends draws on them too.
run_scope: ContextVar[str | None] = ContextVar("understudy_run_scope", default=None)
_lineage: ContextVar[Lineage | None] = ContextVar("understudy_lineage", default=None)
_NO_PLACES: dict[tuple[str, bool, bytes], int] = {}  # of turns that have named nothing: most of them never do


def current_turn() -> Turn:
    """Return the turn that this code runs in; raises `NoTurn` outside one."""
    turn = scope.get()
    if turn is None:
        raise NoTurn("there is no running turn here; this works inside handlers, tools and what they call.")
    return turn


class Send:
    """A message that leaves when the turn commits; its place in the mailbox is reserved."""

    __slots__ = ("activation", "arguments", "body", "handler", "options", "scope")

    def __init__(
        self, activation: Activation, handler: BoundHandler, options: Options, body: bytes, arguments: Any
    ) -> None:
        self.activation = activation
        self.handler = handler
        self.options = options
        self.body = body
        self.arguments = arguments
        self.scope = run_scope.get()  # as of now: when the turn commits, the run has ended


class Turn:
    """The running turn, as handlers and tools see it: `self.turn`, `current_turn()`."""

    __slots__ = (
        "activation",
        "actor_object",
        "asks",
        "began_s",
        "busy",
        "closing",
        "ended",
        "envelope",
        "epoch",
        "exits",
        "journal",
        "limit",
        "open",
        "places",
        "records",
        "rest",
        "run_open",
        "runs",
        "sends",
        "stopped",
        "task",
        "traced",
        "verdict",
        "waiting",
        "within",
    )

    def __init__(self, activation: Activation, envelope: Envelope, actor_object: Any) -> None:
        self.activation = activation
        self.envelope = envelope
        self.epoch = activation.epoch
        self.actor_object = actor_object
        self.task: asyncio.Task[Any] | None = None
        self.journal: Journal | None = None
        self.ended: str | None = None  # why the system ended it, or "finished"
        self.within: str | None = None  # the step body or query that this view is for
        self.sends: list[Send] | None = None
        self.records: list[tuple[Any, bytes]] | None = None
        self.open: set[asyncio.Task[Any]] | None = None
        self.closing = False  # its branches are being ended, before it ends itself
        self.traced = False
        self.waiting = 0  # asks and jobs that it waits for now
        self.asks: dict[Slot, Activation] | None = None  # the asks among them, and who is asked
        self.busy = 0  # steps that run, and what else must not be broken off to let it rest
        self.rest: Rest | None = None  # what it waits for outside, directly or through others
        self.limit: asyncio.Timeout | None = None  # of its handler
        self.runs = 0  # of an agent, that it has begun
        self.run_open = False  # the newest of them has not ended
        self.began_s = 0.0
        self.exits: str | None = None  # the actor ends with this reason once the turn has committed
        self.stopped: str | None = None  # why the system stops it: "cancelled", "deadline", "shutdown", "parked"
        self.verdict: tuple[Decision, Exception] | None = None  # a step's policy has decided about the whole turn
        self.places = _NO_PLACES  # how many names were made at each

    # --- what users see -------------------------------------------------------------------------------------------

    @property
    def id(self) -> str:
        """Names this message for ever, in every process: pass it on as an idempotency key."""
        return self.activation.system.job_id(self.envelope.no)

    @property
    def caller_id(self) -> str | None:
        """The `id` of the turn that sent the message; None when it came from outside."""
        return self.envelope.head.sender

    @property
    def started_at(self) -> datetime:
        """When the message was accepted, or due if it was delayed (UTC): the same on every redelivery."""
        envelope = self.envelope
        return datetime.fromtimestamp(max(envelope.head.sent_at, envelope.due_at or 0.0), UTC)

    @property
    def attempt(self) -> int:
        """1, then one more after each failed attempt or crash."""
        return self.envelope.attempts + self.envelope.crashes + 1

    def uuid(self) -> UUID:
        """Return a UUID, the same on every redelivery: to pass on as an idempotency key.

        It is told by its place: the step before it in the same branch (or the step whose body calls it), and how many
        were taken there.
        """
        return uuid5(self.activation.system.namespace, f"{self.envelope.no}/{self._place('uuid')}")

    def actor(self, cls: type[A], id: str | None = None, /) -> A:
        """Return the address of an actor; without an id a fresh one, the same on every redelivery."""
        if id is None:
            id = f"{self.id}.{self._place('actor')}"
        return self.activation.system.actor(cls, id)

    def resource(self, kind: type[T], /) -> T:
        """Return the object of that type from `System(resources=[...])`."""
        return self.activation.system.registry.resource(kind)

    def _place(self, what: str) -> str:
        """Name this place of the turn, in its branch: equal on every redelivery, however branches interleave."""
        lineage = _lineage.get()
        place = (what, self.within is not None, lineage.key if lineage is not None else b"")
        if not self.places:
            self.places = {}
        number = self.places[place] = self.places.get(place, 0) + 1
        if lineage is None:
            return str(number)
        return f"{blake2b(lineage.key, digest_size=6).hexdigest()}{'i' if self.within is not None else '.'}{number}"

    # --- what the library does in it -------------------------------------------------------------------------------

    @property
    def no(self) -> int:
        """The number of its message."""
        return self.envelope.no

    @property
    def span(self) -> str:
        """Its name in the trace."""
        return str(self.envelope.no)

    def is_fenced(self) -> bool:
        """Whether the turn was abandoned: it may still run, and nothing it does counts."""
        return self.epoch != self.activation.epoch

    def check(self, action: str) -> None:
        """Refuse *action* when this turn may do nothing more, or this is a step body or a query."""
        if self.within is not None:
            raise NoTurn(f"{action} inside {self.within}: only the handler itself may do that; return a value instead.")
        if self.ended is not None:
            raise TurnEnded(f"{action} after its turn has ended ({self.ended}).")
        if self.closing and asyncio.current_task() is not self.task:
            # Not a cancellation: a branch that goes on after one would begin step after step.
            raise TurnEnded(f"{action} in a branch, after its handler has returned.")

    def record(self, event: Any) -> None:
        """Append an event and apply it."""
        self.check("record()")
        body = encode(event)
        limit = self.activation.system.limits.payload_bytes
        if len(body) > limit:
            raise LimitExceeded(
                f"an event of {self.activation.name} is {len(body)} bytes, more than Limits.payload_bytes={limit}.",
                limit="payload_bytes",
                value=len(body),
                value_max=limit,
            )
        event = self.activation.type.copy_event(body)
        if self.records is None:
            self.records = []
        self.records.append((event, body))
        self.actor_object.apply(event)

    def stop(self, reason: str) -> None:
        """End this turn: it starts nothing more, and its task is cancelled."""
        if self.ended == "finished" or self.stopped is not None:
            return
        self.stopped = reason
        self.ended = self.ended or reason
        if self.task is not None and self.task is not asyncio.current_task():
            self.task.cancel()

    def conclude(self, decision: Decision, error: Exception) -> NoReturn:
        """End this attempt at once: the policy of a step or call has decided about the whole turn.

        Raises:
            TurnEnded: Always; a handler's `except Exception` has no part in this.
        """
        if self.verdict is None:
            self.verdict = decision, error
            self.ended = self.ended or "failed"
            if self.task is not None and self.task is not asyncio.current_task():
                self.task.cancel()
        raise TurnEnded(f"the turn ends: {decision.reason}.")

    async def close_steps(self) -> None:
        """Cancel the steps that still run and wait until they have ended."""
        self.closing = True
        while self.open:
            running = list(self.open)
            for task in running:
                task.cancel()
            await asyncio.wait(running)

    def inside(self, what: str) -> Turn:
        """Return this turn as a step body or query sees it: the same facts, but nothing can be done in it."""
        view = Turn(self.activation, self.envelope, self.actor_object)
        view.within = what
        return view

    async def tell(
        self, activation: Activation, handler: BoundHandler, options: Options, body: bytes, arguments: Any
    ) -> None:
        """Keep the message until the turn commits; its place in the mailbox is reserved now."""
        limits = self.activation.system.limits
        sends = self.sends
        if sends is None:
            sends = self.sends = []
        if len(sends) >= limits.sends_per_turn:
            raise LimitExceeded(
                f"a turn of {self.activation.name} sends more than Limits.sends_per_turn={limits.sends_per_turn} messages.",
                limit="sends_per_turn",
                value=len(sends) + 1,
                value_max=limits.sends_per_turn,
            )
        if options.key is not None:
            for send in sends:
                if send.activation is activation and send.handler is handler and send.options.key == options.key:
                    if send.body != body:
                        raise KeyConflict(
                            f"key {options.key!r} of {activation.name}.{handler.name} was used earlier in this turn with "
                            "other arguments. Use a new key for a new message.",
                            key=options.key,
                        )
                    return
        activation.check_room()
        activation.reserved += 1
        if options.key is not None:
            activation.key_holds += 1
        sends.append(Send(activation, handler, options, body, arguments))

    def ensure_journal(self) -> Journal:
        """Return the journal of this turn's message."""
        journal = self.journal
        if journal is None:
            journal = self.journal = self.activation.system.journal_of(self.envelope)
        return journal

    async def claim(
        self, name: str, arguments_digest: bytes, *, repeatable: bool = True, key: str | None = None
    ) -> Slot:
        """Return the journal's slot for this step: with an outcome when an earlier attempt finished it.

        Raises:
            LimitExceeded: `Limits.steps_per_turn` steps were made already.
            OutcomeUnknown: The redelivered turn diverged, and the step must not be repeated by mistake.
            KeyConflict: *key*, which stands for the arguments, stood for others before.
        """
        journal = self.ensure_journal()
        lineage = _lineage.get()
        steps = group(name, arguments_digest, key)
        if key is not None and journal.conflicts(steps):
            raise KeyConflict(
                f"key {key!r} of {name} was used with other arguments earlier in this turn, or before it was delivered "
                "again; nothing was done. Use a new key for another call.",
                key=key,
            )
        slot = journal.claim(steps, lineage)
        if slot is None and journal.left_over(name.encode()):
            # Perhaps a parallel branch is about to claim what is left over: give each one its turn first.
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            self.check(name)
            slot = journal.claim(steps, lineage, guess=True)
            if slot is None and journal.left_over(name.encode()):
                self.emit(TurnDiverged, step=name)
                if not repeatable:
                    raise OutcomeUnknown(
                        f"step {name} has other arguments than before the turn was delivered again, and it is declared "
                        "interrupted='fail': it is not run, because an earlier one may stand for it.",
                        step=name,
                    )
        if slot is None:
            limit = self.activation.system.limits.steps_per_turn
            if journal.count >= limit:
                raise LimitExceeded(
                    f"a turn of {self.activation.name} makes more than Limits.steps_per_turn={limit} steps.",
                    limit="steps_per_turn",
                    value=journal.count + 1,
                    value_max=limit,
                )
            slot = journal.begin(steps, lineage)
        elif slot.outcome is not None:
            # Replays keep pace with each other, as the steps themselves did: branches claim in lockstep.
            await asyncio.sleep(0)
        _lineage.set(Lineage(slot.key, lineage))
        return slot

    def settle(self, slot: Slot, outcome: Outcome) -> None:
        """Journal a step's outcome and give it to whoever waits."""
        if self.is_fenced():
            return  # Abandoned: another attempt may run the same step now.
        self.write(slot, outcome)
        slot.settle(outcome)

    def settle_late(self, slot: Slot, outcome: Outcome) -> None:
        """Journal the outcome of a thread that this turn left behind, also when it was abandoned itself.

        What a thread has done is done: the next attempt gets its outcome instead of a second run.
        """
        if self.ensure_journal().slots.get(slot.key) is slot:
            self.write(slot, outcome)
            slot.settle(outcome)

    def write(self, slot: Slot, outcome: Outcome) -> None:
        """Journal a row: the turn gets on."""
        journal = self.ensure_journal()
        system = self.activation.system
        if system.journals.get(journal.message) is not journal:
            return  # The message has ended meanwhile: a row would never go away.
        batch = system.committer.touch()
        batch.journal[(journal.message, slot.key)] = JournalEntry(journal.message, slot.key, outcome, slot.after)
        batch.work += 1 + (len(outcome.value or b"") >> 10)
        journal.wrote(batch.number)
        if not journal.progressed:
            journal.progressed = True
            if self.envelope.started > 0:
                # It gets on: a crash after this is not counted against the message.
                self.envelope.started = -1
                batch.note_started(self.envelope)

    def mark_started(self) -> None:
        """Let the commit that the next step waits for say that this message was started."""
        envelope = self.envelope
        if envelope.started <= 0 and not self.ensure_journal().progressed:
            envelope.started = 1
            self.activation.system.committer.touch().note_started(envelope)

    def replayed(self, name: str, slot: Slot, role: str, span: str | None = None) -> None:
        """Tell the trace that *name* was not run again."""
        self.trace()
        self.emit(StepReplayed, span=span or self.step_span(slot), parent=self.span, step=name, role=role)

    def step_span(self, slot: Slot) -> str:
        """Return the step's name in the trace."""
        key = slot.key.decode()
        name = key.index("\0")
        return f"{self.envelope.no}/{key[:name]}#{key[name + 1 : name + 7]}{key[key.rindex('#') :]}"

    def _reply(self, handler: BoundHandler, outcome: Outcome) -> Any:
        if outcome.value is None:
            return handler.reply(outcome)  # raises
        return self.decode_stored(handler.wire.decode_result, outcome.value, f"the reply of {handler.where}")

    def decode_stored(self, decode: Callable[[bytes], Any], body: bytes, what: str) -> Any:
        """Decode a journaled value; one that does not decode ends the turn and suspends the actor.

        The step must not run again, and its absence is not the handler's to decide about.
        """
        try:
            return decode_or_suspend(decode, body, what)
        except StateUndecodable as error:
            self.ensure_journal().undecodable = error
            self.ended = self.ended or "suspended"
            raise

    # --- trace -----------------------------------------------------------------------------------------------------

    def trace(self) -> None:
        """Put this turn itself into the trace, once."""
        if self.traced or self.within is not None:
            return
        self.traced = True
        envelope, activation = self.envelope, self.activation
        activation.system.recorder.emit(
            TurnStarted(
                at=self.began_s,
                correlation=activation.system.recorder.correlation_of(envelope),
                span=self.span,
                parent=envelope.head.parent,
                life=activation.system.life,
                kind=activation.type.kind,
                actor=activation.id,
                handler=envelope.handler,
                attempt=self.attempt,
                crashes=envelope.crashes,
                role=activation.type.role,
            ),
            self.envelope.no,
        )

    def emit(
        self, event: type[TraceEvent], *, span: str | None = None, parent: str | None = None, **facts: Any
    ) -> None:
        """Put an event of this turn into the trace, in the next commit."""
        system = self.activation.system
        head = self.envelope.head
        self.put(
            event(
                at=system.wall(),
                correlation=system.recorder.correlation_of(self.envelope),
                span=span or self.span,
                parent=parent if parent is not None else (None if span else head.parent),
                life=system.life,
                **facts,
            )
        )

    def put(self, event: TraceEvent) -> None:
        """Put an event of this turn, as it is, into the trace, in the next commit; of an abandoned turn none counts."""
        if not self.is_fenced():
            self.activation.system.recorder.emit(event, self.envelope.no)
