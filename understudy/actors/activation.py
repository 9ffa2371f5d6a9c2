"""One actor alive in memory: its object, its mailbox's window, its turns.

An idle actor is an object and no task; a task exists only while a message is handled. A turn is finished in one
synchronous stretch: everything that can be refused is checked first, then all effects go into one batch.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TYPE_CHECKING, Any

import msgspec

from understudy.actors import endings, parking, standing
from understudy.actors.door import Door
from understudy.actors.handler import PLAIN, Options
from understudy.actors.open_ledger import within
from understudy.actors.sent import sent_began
from understudy.actors.state import StateKeeper
from understudy.actors.turn import Turn, run_scope
from understudy.errors import (
    ActorStopped,
    ActorSuspended,
    MailboxFull,
    StateUndecodable,
    SystemClosed,
)
from understudy.mailbox.envelope import Envelope, Head
from understudy.mailbox.journal import Failure

if TYPE_CHECKING:
    from understudy.actors.kinds import ActorType, BoundHandler
    from understudy.actors.members import StaticActor
    from understudy.actors.system import System
    from understudy.mailbox.journal import Slot
    from understudy.mailbox.store import Loaded
    from understudy.supervisor.policy import Policy

_astuple = msgspec.structs.astuple
_REFUSING = frozenset({"stopped", "retired"})


class Activation:
    """One actor in memory."""

    __slots__ = (
        "_askers",
        "_waits",
        "depth",
        "door",
        "epoch",
        "finished_in",
        "id",
        "inbox",
        "key_holds",
        "keys",
        "last_position",
        "member",
        "no",
        "object",
        "on_disk",
        "outside",
        "passing",
        "ready",
        "reason",
        "refilling",
        "releasing",
        "reserved",
        "running",
        "state",
        "status",
        "system",
        "tail",
        "tail_seen",
        "turn",
        "type",
        "used_at",
        "waiting",
        "waits_unknown",
    )

    def __init__(self, system: System, type: ActorType, id: str) -> None:
        self.system = system
        self.type = type
        self.id = id
        self.no = 0  # 0: not stored yet
        # Stored: "active", "suspended", "stopped", and "waiting" while its first message waits for the outside. In memory only: "down" while its supervisor has not started it, so
        # that its mail waits, and "retired" when it does not come back by itself, so that its mail is refused.
        self.status = "active"
        self.reason = ""
        self.member: StaticActor | None = None  # it is a static child
        self.epoch = 0  # grows when its turns are abandoned
        self.turn: Turn | None = None  # the one that runs, of actors with one slot
        self.ready = False  # loaded
        self.door = Door(self)
        self.state = StateKeeper(self)
        self.object: Any = None
        self.inbox: deque[Envelope] | None = None
        self.tail = False  # more messages wait on disk than in the inbox
        self.tail_seen = 0  # messages that went to disk only
        self.last_position = 0  # of the newest message that is or was in the inbox
        self.refilling = False
        self.depth = 0
        self.reserved = 0
        self.running = 0
        self.waiting = 0  # of the running turns, those that wait for other actors
        self.outside = 0  # of the running turns, those that wait for the outside, directly or through others
        self.waits_unknown = 0  # jobs of earlier lives that turns wait for: nobody looked up whose they are
        self.keys: dict[tuple[str, str], tuple[int, bytes]] | None = None
        self.key_holds = 0  # running turns that are going to tell a keyed message
        self.on_disk = False  # it was on disk when it was loaded: keys must be looked up there
        self.finished_in = 0
        self.used_at = 0.0
        self.passing = False  # somebody was let in and has not run yet
        self.releasing: set[asyncio.Task[Any]] | None = None  # `on_stop` of objects that it has let go
        self._waits: dict[Activation, int] | None = None
        self._askers: set[tuple[Turn, Slot]] | None = None

    @property
    def name(self) -> str:
        """How errors and logs call it."""
        return f"{self.type.kind}/{self.id}"

    # --- coming in -------------------------------------------------------------------------------------------------

    def is_open(self) -> bool:
        """Whether a sender may go on at once: loaded, and nobody waits before it."""
        return self.ready and not self.door.held and not self.door.arriving

    def check_room(self) -> None:
        """Refuse a message that the actor cannot take.

        Raises:
            MailboxFull: Too many wait.
            ActorStopped: It has stopped.
        """
        if self.status in _REFUSING:
            raise self.stopped("This message was refused and not stored.")
        limit = self.system.limits.mailbox_messages
        if self.depth + self.reserved >= limit:
            raise MailboxFull(
                f"mailbox of {self.name} is full ({self.depth + self.reserved} of {limit} messages); nothing was stored. "
                "Slow the senders or raise Limits.mailbox_messages.",
                depth=self.depth + self.reserved,
                depth_max=limit,
            )

    def send(
        self,
        handler: BoundHandler,
        options: Options,
        body: bytes,
        arguments: Any,
        *,
        sender: Turn | None = None,
        slot: Slot | None = None,
        waiter: asyncio.Future[Any] | None = None,
        keep: bool = False,
        reserved: bool = False,
        scope: str | None = None,
    ) -> Envelope:
        """Accept a message: from here on it is never refused. With *slot* the sending turn asks.

        *scope* is that of the sending turn's run, if it is not the one of this context.

        Raises:
            MailboxFull: Too many wait; nothing was stored.
            ActorStopped: It has stopped; nothing was stored.
            ActorSuspended: An ask to an actor that is held; nothing was stored.
        """
        system = self.system
        if not reserved:
            self.check_room()
            if self.status == "suspended" and (waiter is not None or slot is not None):
                raise self.suspended("This message was refused and not stored; ")
        if self.no == 0:
            self.create()
        no = system.next_message()
        now = system.wall()
        due_at = deadline_at = workflow = None
        if options is not PLAIN:
            workflow = options.workflow
            if options.delay_s is not None:
                due_at = now + options.delay_s
            elif options.at is not None:
                due_at = options.at.timestamp()
            if options.deadline_s is not None:
                deadline_at = now + options.deadline_s
        if sender is None:
            if not keep and deadline_at is None and workflow is None:
                head = Head(now, "")
            else:  # What is sent through a workflow lies in its trace.
                head = Head(now, workflow or "", None, None, (), deadline_at, keep, False, workflow, workflow)
            envelope = Envelope(no, self.no, no, handler.name, body, head, options.key)
        else:
            asked = sender.envelope
            traced = sender.traced
            head = Head(
                now,
                system.recorder.correlation_of(asked),
                sender.span if traced else None,
                sender.id,
                (*asked.head.chain, asked.actor) if slot is not None else (),
                deadline_at,
                keep,
                traced,
                within(scope or run_scope.get() or asked.head.scope, workflow),
                workflow,
            )
            envelope = Envelope(no, self.no, no, handler.name, body, head, options.key)
            if slot is not None:
                slot.child = no
                envelope.caller = asked.no
                envelope.caller_key = slot.key
        if workflow is not None:
            sent_began(system.committer.touch(), envelope, self.type.kind)
        envelope.arguments = arguments
        envelope.waiter = waiter
        if keep:
            envelope.hold = "disk"  # so that the same submission after a crash joins this one
            system.open_jobs[no] = self.no
        if deadline_at is not None:
            system.withdrawals.watch_deadline(envelope, self)
        self.depth += 1
        if due_at is not None:
            envelope.due_at = due_at
            batch = system.committer.touch()
            batch.envelopes[no] = envelope
            batch.work += 1
            self.finished_in = batch.number
            system.timers.add(envelope)
        else:
            self.accept(envelope)
        return envelope

    def create(self) -> None:
        """Give the actor its number, and its row in the next commit."""
        self.no = self.system.population.next_actor(self)
        batch = self.system.committer.touch()
        batch.actors[self.no] = (self.type.kind, self.id)
        self.finished_in = batch.number  # It stays in memory until then: read back from disk, it would be made twice.

    def accept(self, envelope: Envelope) -> None:
        """Put a message at the end of the mailbox, and into the next commit."""
        batch = self.system.committer.touch()
        batch.envelopes[envelope.no] = envelope
        batch.work += 1 + (len(envelope.body) >> 10)
        if self.status == "waiting":
            self.finished_in = batch.number  # It may leave memory with mail, and must find that on disk.
        self.arrive(envelope)

    def arrive(self, envelope: Envelope) -> None:
        """Put a message that is stored, or about to be, at the end of the mailbox."""
        system = self.system
        inbox = self.inbox
        if inbox is None:
            if (  # The way of most messages: nothing waits before it, and nothing holds it.
                self.running < self.type.slots
                and not self.tail
                and envelope.hold is None
                and self.status == "active"
                and system.may_start(self, envelope)
            ):
                self.last_position = max(self.last_position, envelope.position)
                self.running += 1
                system.ready.add(self, envelope)
                return
            inbox = self.inbox = deque()
        self.refuse_asker(envelope)  # Of a delayed ask: when it was accepted, the actor was well.
        if self.tail or len(inbox) >= self.system.limits.window_messages:
            self.tail = True
            self.tail_seen += 1
            if envelope.due_at is not None:
                self._queue_due(envelope)  # behind those that wait on disk
            if envelope.waiter is not None:
                self.system.asked.add(envelope.no, envelope.waiter, self.no)
            return
        if self.status == "waiting" and envelope.due_at is not None:
            self._queue_due(envelope)
        inbox.append(envelope)
        self.last_position = max(self.last_position, envelope.position)
        if self.running < self.type.slots:
            self.pump()

    def _queue_due(self, envelope: Envelope) -> None:
        """Give a due timer a place in the mailbox on disk: it may be read back from there."""
        envelope.due_at = None
        envelope.position = self.system.next_message()
        batch = self.system.committer.touch()
        batch.note_progress(envelope)
        self.finished_in = batch.number

    # --- starting turns --------------------------------------------------------------------------------------------

    def pump(self) -> None:
        """Start turns while a slot is free and the first message may start."""
        system = self.system
        inbox = self.inbox
        while inbox and self.running < self.type.slots:
            envelope = inbox[0]
            if self.status != "active" or not system.may_start(self, envelope):
                return
            if envelope.hold is not None:
                if envelope.hold not in ("preparing", "key"):
                    envelope_hold, envelope.hold = envelope.hold, "preparing"
                    system.spawn(self._prepare(envelope, envelope_hold), "prepare")
                return
            inbox.popleft()
            self.running += 1
            system.ready.add(self, envelope)
        if not inbox:
            self.inbox = None
            if self.tail and not self.refilling and self.status == "active":
                self.refilling = True
                system.spawn(self._refill(), "refill")

    async def fill_window(self) -> None:
        """Read more of a mailbox of which only a part of the window was read at first."""
        if self.tail and not self.refilling:
            self.refilling = True
            await self._refill()

    async def _refill(self) -> None:
        system = self.system
        try:
            seen = self.tail_seen
            await system.committer.wait_durable()
            limit = system.limits.window_messages
            with system.withdrawals.reading():
                rows = await system.store.mailbox(self.no, self.last_position, limit)
                # What was accepted since, perhaps after the commit that was waited for, lies behind what was read.
                self.tail = len(rows) == limit or self.tail_seen != seen
                for envelope in rows:
                    envelope.waiter = system.asked.take_first(envelope.no)
                self.take_window(rows)
        except StateUndecodable as error:
            standing.suspend(self, str(error))
            return
        finally:
            self.refilling = False
        self.pump()

    def take_window(self, rows: list[Envelope]) -> None:
        """Put messages from disk into the inbox; those of an earlier life wait for their start mark."""
        system = self.system
        if not rows:
            return
        if self.inbox is None:
            self.inbox = deque()
        for envelope in rows:
            if envelope.no in system.withdrawals.withdrawn:
                continue
            system.recovery.hold_if_recovered(envelope, self)
            if envelope.waiter is None:
                envelope.waiter = system.asked.take_first(envelope.no)  # of an actor that was in memory before
            self.inbox.append(envelope)
            self.last_position = max(self.last_position, envelope.position)

    async def _prepare(self, envelope: Envelope, hold: str) -> None:
        """Wait until the first message may start."""
        system = self.system
        if hold == "recovered":
            try:
                if not await self._prepare_recovered(envelope):
                    return
            except StateUndecodable as error:  # Of its journal, or of what its turn asked.
                system.journals.pop(envelope.no, None)
                envelope.hold = hold
                standing.suspend(self, str(error))
                return
        await system.committer.wait_durable()
        if envelope.not_before is not None:
            await asyncio.sleep(max(0.0, envelope.not_before - system.wall()))
        envelope.hold = None
        self.pump()

    async def _prepare_recovered(self, envelope: Envelope) -> bool:
        """Bring back what an earlier life did with the message; return whether its turn may start."""
        system = self.system
        if envelope.crashes >= system.limits.crashes_max:
            await system.recovery.read_journal(envelope)
            if envelope not in (self.inbox or ()):  # It was cancelled or expired meanwhile.
                return False
            self._forget_from_inbox(envelope)
            endings.give_up(
                self,
                envelope,
                Failure("failed", "Crash", f"the process died {envelope.crashes} times while its turn ran"),
                f"crashed {envelope.crashes} times, the most allowed (Limits.crashes_max)",
            )
            self.pump()
            return False
        await system.recovery.begin(envelope, self)
        if envelope not in (self.inbox or ()):  # It was cancelled or expired meanwhile.
            system.turn_ended(envelope)
            return False
        return True

    def _forget_from_inbox(self, envelope: Envelope) -> None:
        if self.inbox and envelope in self.inbox:
            self.inbox.remove(envelope)

    def new_object(self, state: Any) -> Any:
        """Return a new object of the user's class with this state."""
        made = self.type.new_object(self.id, state)
        made._ref = self.system.ref(self.type, self.id)
        made._log = self.state.log
        return made

    # --- ends of turns ---------------------------------------------------------------------------------------------

    def _roll_back(self, *, new_object: bool) -> None:
        """Go back to the state of the last finished turn."""
        if self.object is None:
            return
        if not new_object:
            try:
                self.object.state = self.state.current()
                return
            except StateUndecodable:
                pass  # The next turn finds out and suspends the actor.
        self.drop_object()

    def drop_object(self) -> None:
        """Let go of the user's object; it releases what it took."""
        made, self.object = self.object, None
        if made is None or not self.type.stops:
            return
        if self.releasing is None:
            self.releasing = set()
        task = self.system.begin(self.system.population.stop_object(self, made), "on_stop")
        self.releasing.add(task)
        task.add_done_callback(self._released)

    def _released(self, task: asyncio.Task[Any]) -> None:
        if self.releasing is not None:
            self.releasing.discard(task)
            if not self.releasing:
                self.releasing = None

    # --- state -----------------------------------------------------------------------------------------------------

    async def loaded(self, record: Loaded | None, window: int) -> None:
        """Take over what is on disk, up to *window* messages; an actor whose bytes are not to be trusted is suspended."""
        if record is None:
            self.status, self.reason = self.find_standing()
            self.state.recent = [] if self.type.has_events else None
            self.state.log = self.type.cls.log_list() if self.type.has_log else None
            return
        self.no = record.no
        self.on_disk = True
        self.status, self.reason = record.status, record.reason
        if self.status == "active":
            self.status, self.reason = self.find_standing()
        self.state.snapshot = record.snapshot
        self.state.event_no = record.last_event
        self.depth = record.depth
        self.tail = len(record.window) >= window
        try:
            if record.damage is not None:
                raise StateUndecodable(record.damage)
            await self.state.load_events()
            if self.status == "active":
                self._check_state()
        except StateUndecodable as error:
            standing.suspend(self, str(error))
        self.take_window(record.window)

    async def reload(self) -> None:
        """Read a held actor's state again; raises `StateUndecodable` when it is still not to be trusted."""
        await self.system.committer.wait_durable()
        (record,) = await self.system.store.load([self.no], self.system.limits.window_messages)
        if record is not None:
            if record.damage is not None:
                raise StateUndecodable(record.damage)
            self.state.snapshot = record.snapshot
            self.state.event_no = record.last_event
            self.state.fold = None
            await self.state.load_events()
        self._check_state()

    def forget(self) -> None:
        """Become a new actor: every row of this one was deleted."""
        self.no = 0
        if self.status in standing.HELD:  # It has stored that; what the tree makes of it stays.
            self.status, self.reason = self.find_standing()
        self.object = self.state.snapshot = self.state.fold = self.keys = None
        self.state.recent = [] if self.type.has_events else None
        self.state.log = self.type.cls.log_list() if self.type.has_log else None
        self.state.event_no = self.last_position = 0
        self.on_disk = False

    def _check_state(self) -> None:
        if self.type.slots == 1:
            self.object = self.new_object(self.state.current())

    def find_standing(self) -> tuple[str, str]:
        """Return how it is in the tree, and why."""
        type = self.type
        member = self.member = type.statics.get(self.id)
        if member is not None:
            return ("retired", member.retired) if member.retired is not None else ("down", "")
        group = type.group
        if group is None:
            if self.system.supervision.expects(type, self.id):
                return "down", ""
            return "retired", "no supervisor has it as a child"
        if group.retired is not None:
            return "retired", group.retired
        return ("active", "") if group.up else ("down", "")

    @property
    def policy(self) -> Policy:
        """The rules for failures of its turns: its own, then its supervisors'."""
        return self.type.turn_policy if self.member is None else self.member.policy

    def unavailable(self) -> ActorSuspended | ActorStopped | None:
        """Return what callers get while the actor handles no mail and nothing is under way to change that."""
        if self.status == "suspended":
            return self.suspended()
        return self.stopped() if self.status in _REFUSING else None

    def refuse_asker(self, envelope: Envelope) -> None:
        """Tell who asked from outside, and whose message is to wait here, if the actor handles no mail for now."""
        if envelope.waiter is not None and (refusal := self.unavailable()) is not None:
            committer = self.system.committer
            committer.touch().work += 1
            committer.release(envelope.waiter, refusal)
            envelope.waiter = None

    def stopped(self, what: str = "Its mail is kept.") -> ActorStopped:
        """Return what callers get when the actor has stopped; *what* became of what they sent."""
        resumable = self.status == "stopped"
        mend = "system.resume(ref) lets it go on." if resumable else "It goes on when a supervisor starts it again."
        return ActorStopped(f"{self.name} has stopped ({self.reason}). {what} {mend}")

    def suspended(self, what: str = "Its mail is kept; ") -> ActorSuspended:
        """Return what callers get while the actor is held."""
        is_by_budget = self.reason.startswith("BudgetExceeded:")  # Raising it resumes the actor as well.
        mend = "it goes on when the budget is raised." if is_by_budget else "mend the cause, then system.resume(ref)."
        return ActorSuspended(
            f"{self.name} is suspended: {self.reason} {what}{mend}",
            reason=self.reason,
        )

    # --- queries, waiting, leaving ---------------------------------------------------------------------------------

    def turns(self) -> list[Turn]:
        """Return its running turns."""
        if not self.running:
            return []
        if self.type.slots == 1:
            turn = self.turn
            return [turn] if turn is not None and self.system.turns.get(turn.no) is turn else []
        return [turn for turn in self.system.turns.values() if turn.activation is self]

    def forget_waits(self) -> None:
        """Forget whom turns wait for that were abandoned."""
        self._waits = None
        self.waiting = 0

    def free_slots(self) -> int:
        """How many turns could start now."""
        return self.type.slots - self.running

    @property
    def waits(self) -> dict[Activation, int]:
        """Actors that turns of this one wait for, with how many asks."""
        if self._waits is None:
            self._waits = {}
        return self._waits

    @property
    def askers(self) -> set[tuple[Turn, Slot]]:
        """Turns that wait for replies of this one, and the steps that they ask in."""
        if self._askers is None:
            self._askers = set()
        return self._askers

    def may_leave(self) -> bool:
        """Whether nothing is lost when it leaves memory: no mail that could be handled, no turn, and all of it on disk."""
        return (
            self.ready
            and not self.running
            and (parking.may_leave(self) if self.status == "waiting" else not self.inbox and not self.tail)
            and not self.reserved
            and self.member is None
            and not self.releasing
            and not self.door.held
            and not self.door.arriving
            and (not self.keys or self.status == "waiting")  # Its mail is on disk, and each key with it.
            and not self.key_holds
            and self.finished_in <= self.system.committer.durable
        )


def closed_error() -> SystemClosed:
    """Return what callers get that still wait when the system closes."""
    return SystemClosed("the system was closed while this message waited; it is stored and goes on at the next start.")
