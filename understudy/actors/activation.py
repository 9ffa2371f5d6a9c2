"""One actor alive in memory: its object, its mailbox's window, its turns.

An idle actor is an object and no task; a task exists only while a message is handled. A turn is finished in one
synchronous stretch: everything that can be refused is checked first, then all effects go into one batch.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TYPE_CHECKING, Any

import msgspec

from understudy.actors.failures import declared_as, to_error, to_failure
from understudy.actors.handler import PLAIN, Options
from understudy.actors.turn import Send, Turn, _lineage, scope
from understudy.codec import encode
from understudy.errors import (
    ActorStopped,
    ActorSuspended,
    DeadlineExceeded,
    JobCancelled,
    KeyConflict,
    LimitExceeded,
    MailboxFull,
    StateUndecodable,
    StepTimeout,
    SystemClosed,
    TurnEnded,
)
from understudy.events import (
    ActorRestarted,
    ActorSuspended as ActorSuspendedEvent,
    MessageCancelled,
    MessageDeadLettered,
    MessageExpired,
    TurnEndedBySystem,
    TurnFailed,
    TurnFinished,
)
from understudy.mailbox.commit import Batch, DeadLetter, Snapshot
from understudy.mailbox.envelope import Envelope, Head
from understudy.mailbox.journal import Failure, JournalEntry, Outcome
from understudy.supervisor.policy import Past, decide, deciding_rule

if TYPE_CHECKING:
    from understudy.actors.kinds import ActorType, BoundHandler
    from understudy.actors.system import System
    from understudy.mailbox.journal import Slot
    from understudy.mailbox.store import Loaded

_astuple = msgspec.structs.astuple
_decode_history = msgspec.msgpack.Decoder(list[Past]).decode
_VOID = Outcome()


class Activation:
    """One actor in memory."""

    __slots__ = (
        "_door",
        "_waits",
        "arriving",
        "depth",
        "door_held",
        "event_no",
        "finished_in",
        "fold",
        "id",
        "inbox",
        "key_holds",
        "keys",
        "last_position",
        "log",
        "no",
        "object",
        "on_disk",
        "passing",
        "ready",
        "reason",
        "recent",
        "refilling",
        "reserved",
        "running",
        "snapshot",
        "status",
        "system",
        "tail",
        "tail_seen",
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
        self.status = "active"
        self.reason = ""
        self.ready = False  # loaded
        self.object: Any = None
        self.snapshot: Snapshot | None = None  # state of the last finished turn; of event-sourced actors the newest one
        self.recent: list[bytes] | None = None  # events since that snapshot
        self.fold: tuple[int, Snapshot | None] | None = None  # event-sourced: (events, their fold) for queries
        self.log: list[Any] | None = None  # an agent's conversation
        self.event_no = 0
        self.inbox: deque[Envelope] | None = None
        self.tail = False  # more messages wait on disk than in the inbox
        self.tail_seen = 0  # messages that went to disk only
        self.last_position = 0  # of the newest message that is or was in the inbox
        self.refilling = False
        self.depth = 0
        self.reserved = 0
        self.running = 0
        self.waiting = 0  # of the running turns, those that wait for other actors
        self.waits_unknown = 0  # jobs of earlier lives that turns wait for: nobody looked up whose they are
        self.keys: dict[tuple[str, str], tuple[int, bytes]] | None = None
        self.key_holds = 0  # running turns that are going to tell a keyed message
        self.on_disk = False  # it was on disk when it was loaded: keys must be looked up there
        self.finished_in = 0
        self.used_at = 0.0
        self.door_held = False
        self.passing = False  # somebody was let in and has not run yet
        self.arriving = 0  # senders that wait at the door, or were let in and have not run yet
        self._door: deque[asyncio.Future[None]] | None = None
        self._waits: dict[Activation, int] | None = None

    @property
    def name(self) -> str:
        """How errors and logs call it."""
        return f"{self.type.kind}/{self.id}"

    # --- coming in -------------------------------------------------------------------------------------------------

    def is_open(self) -> bool:
        """Whether a sender may go on at once: loaded, and nobody waits before it."""
        return self.ready and not self.door_held and not self.arriving

    async def enter(self) -> None:
        """Wait for one's turn at the door, in order of arrival; go on without an await after it."""
        waiter: asyncio.Future[None] = self.system.loop.create_future()
        if self._door is None:
            self._door = deque()
        self._door.append(waiter)
        if self.ready and not self.door_held:
            self.system.loop.call_soon(self.let_in)
        self.arriving += 1
        try:
            await waiter
        except asyncio.CancelledError:
            door: deque[asyncio.Future[None]] | None = self._door  # None when the actor could not be loaded
            if door and waiter in door:
                door.remove(waiter)
            raise
        finally:
            self.arriving -= 1
            if waiter.done() and not waiter.cancelled() and waiter.exception() is None:
                self.passing = False
                self.system.loop.call_soon(self.let_in)

    def let_in(self) -> None:
        """Let the first who waits come in; the next one follows when it has passed, unless it holds the door."""
        door = self._door
        while door and not self.door_held and not self.passing:
            waiter = door.popleft()
            if not waiter.done():
                # It may hold the door when it runs, so nobody follows before.
                self.passing = True
                waiter.set_result(None)
                return
        if not door:
            self._door = None

    def refuse_all(self, error: BaseException) -> None:
        """Turn away everybody at the door: the actor could not be loaded."""
        for waiter in self._door or ():
            if not waiter.done():
                waiter.set_exception(error)
        self._door = None

    def check_room(self, handler: BoundHandler) -> None:
        """Refuse a message that the actor cannot take.

        Raises:
            MailboxFull: Too many wait.
            ActorStopped: It has stopped for good.
        """
        if self.status == "stopped":
            raise ActorStopped(f"{self.name} has stopped ({self.reason}); nothing was stored.")
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
    ) -> Envelope:
        """Accept a message: from here on it is never refused. With *slot* the sending turn asks.

        Raises:
            MailboxFull: Too many wait; nothing was stored.
            ActorStopped: It has stopped for good; nothing was stored.
            ActorSuspended: An ask to an actor that is held; nothing was stored.
        """
        system = self.system
        if not reserved:
            self.check_room(handler)
            if self.status == "suspended" and (waiter is not None or slot is not None):
                raise self._suspended()
        if self.no == 0:
            self._create()
        no = system.next_message()
        now = system.wall()
        due_at = deadline_at = None
        if options is not PLAIN:
            if options.delay_s is not None:
                due_at = now + options.delay_s
            elif options.at is not None:
                due_at = options.at.timestamp()
            if options.deadline_s is not None:
                deadline_at = now + options.deadline_s
        if sender is None:
            head = (
                Head(now, "") if not keep and deadline_at is None else Head(now, "", None, None, (), deadline_at, keep)
            )
            envelope = Envelope(no, self.no, no, handler.name, body, head, options.key)
        else:
            asked = sender.envelope
            traced = sender.traced
            head = Head(
                now,
                system.correlation_of(asked),
                sender.span if traced else None,
                sender.id,
                (*asked.head.chain, asked.actor) if slot is not None else (),
                deadline_at,
                keep,
                traced,
            )
            envelope = Envelope(no, self.no, no, handler.name, body, head, options.key)
            if slot is not None:
                slot.child = no
                envelope.caller = asked.no
                envelope.caller_key = slot.key
        envelope.arguments = arguments
        envelope.waiter = waiter
        if keep:
            envelope.hold = "disk"  # so that the same submission after a crash joins this one
            system.open_jobs[no] = self.no
        if deadline_at is not None:
            system.watch_deadline(envelope, self)
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

    async def send_keyed(
        self,
        handler: BoundHandler,
        options: Options,
        body: bytes,
        arguments: Any,
        *,
        sender: Turn | None = None,
        slot: Slot | None = None,
    ) -> int:
        """Accept a message unless one with its key was accepted before; return the number of the one that counts.

        Raises:
            KeyConflict: The key was used with other arguments.
        """
        assert options.key is not None
        taken = await self.find_key(handler, options.key, handler.wire.digest(arguments))
        try:
            if sender is not None:
                sender.check(handler.where)
            if taken is not None:
                return taken
            envelope = self.send(handler, options, body, arguments, sender=sender, slot=slot, keep=True)
            self.note_key(handler.name, options.key, envelope.no, handler.wire.digest(arguments))
            return envelope.no
        finally:
            self.release_door()

    async def find_key(self, handler: BoundHandler, key: str, arguments: bytes) -> int | None:
        """Return the number of the message with this key, or None; the door is held when it returns."""
        self.door_held = True
        try:
            known = (self.keys or {}).get((handler.name, key))
            if known is None and self.on_disk:
                where = await self.system.store.keyed(self.no, handler.name, key)
                found = where.pending or (where.dead.envelope if where.dead else None)
                if where.result is not None:
                    known = (where.result.no, where.result.digest)
                elif found is not None:
                    known = (found.no, handler.wire.digest(handler.wire.decode(found.body)))
                known = (self.keys or {}).get((handler.name, key)) or known
            if known is not None and known[1] != arguments:
                raise self.key_conflict(handler, Options(key))
            return known[0] if known is not None else None
        except BaseException:
            self.release_door()
            raise

    def key_conflict(self, handler: BoundHandler, options: Options) -> KeyConflict:
        """Return the error of a key that was used with other arguments."""
        return KeyConflict(
            f"key {options.key!r} of {self.name}.{handler.name} was used before with other arguments; nothing was "
            "stored. Use a new key for a new message.",
            key=options.key,
        )

    def note_key(self, handler: str, key: str, no: int, arguments: bytes) -> None:
        """Remember the key until the message's outcome is on disk."""
        if self.keys is None:
            self.keys = {}
        self.keys[(handler, key)] = (no, arguments)

    def purge_keys(self) -> None:
        """Forget keys whose outcome is on disk, unless a running turn counts on what it saw."""
        if self.key_holds or not self.keys:
            return
        pending = self.system.open_jobs
        self.keys = {key: held for key, held in self.keys.items() if held[0] in pending} or None

    def release_door(self) -> None:
        """Let the next sender in."""
        self.door_held = False
        self.let_in()

    def _create(self) -> None:
        self.no = self.system.next_actor(self)
        batch = self.system.committer.touch()
        batch.actors[self.no] = (self.type.kind, self.id)
        self.finished_in = batch.number  # It stays in memory until then: read back from disk, it would be made twice.

    def accept(self, envelope: Envelope) -> None:
        """Put a message at the end of the mailbox, and into the next commit."""
        batch = self.system.committer.touch()
        batch.envelopes[envelope.no] = envelope
        batch.work += 1 + (len(envelope.body) >> 10)
        self.arrive(envelope)

    def arrive(self, envelope: Envelope) -> None:
        """Put a message that is stored, or about to be, at the end of the mailbox."""
        inbox = self.inbox
        if inbox is None:
            inbox = self.inbox = deque()
        if self.tail or len(inbox) >= self.system.limits.window_messages:
            self.tail = True
            self.tail_seen += 1
            if envelope.due_at is not None:
                # A due timer goes behind those that wait on disk.
                envelope.due_at = None
                envelope.position = self.system.next_message()
                self.system.committer.touch().note_progress(envelope)
            if envelope.waiter is not None:
                self.system.asked[envelope.no] = envelope.waiter
            return
        inbox.append(envelope)
        self.last_position = max(self.last_position, envelope.position)
        if self.running < self.type.slots:
            self.pump()

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
            system.start_turn(self._run(envelope))
        if not inbox:
            self.inbox = None
            if self.tail and not self.refilling and self.status == "active":
                self.refilling = True
                system.spawn(self._refill(), "refill")

    async def _refill(self) -> None:
        system = self.system
        try:
            seen = self.tail_seen
            await system.committer.wait_durable()
            limit = system.limits.window_messages
            rows = await system.store.mailbox(self.no, self.last_position, limit)
        except StateUndecodable as error:
            self.suspend(str(error))
            return
        finally:
            self.refilling = False
        # What was accepted since, perhaps after the commit that was waited for, lies behind what was read.
        self.tail = len(rows) == limit or self.tail_seen != seen
        for envelope in rows:
            envelope.waiter = system.asked.pop(envelope.no, None)
        self.take_window(rows)
        self.pump()

    def take_window(self, rows: list[Envelope]) -> None:
        """Put messages from disk into the inbox; those of an earlier life wait for their start mark."""
        system = self.system
        if not rows:
            return
        if self.inbox is None:
            self.inbox = deque()
        for envelope in rows:
            if envelope.no in system.withdrawn:
                continue
            system.hold_if_recovered(envelope, self)
            self.inbox.append(envelope)
            self.last_position = max(self.last_position, envelope.position)

    async def _prepare(self, envelope: Envelope, hold: str) -> None:
        """Wait until the first message may start."""
        system = self.system
        if hold == "recovered":
            if envelope.crashes >= system.limits.crashes_max:
                self._forget_from_inbox(envelope)
                self._give_up(
                    envelope,
                    Failure("failed", "Crash", f"the process died {envelope.crashes} times while its turn ran"),
                    f"crashed {envelope.crashes} times, the most allowed (Limits.crashes_max)",
                )
                self.pump()
                return
            await system.begin_recovered(envelope, self)
            if envelope not in (self.inbox or ()):  # It was cancelled or expired meanwhile.
                system.turn_ended(envelope)
                return
        await system.committer.wait_durable()
        if envelope.not_before is not None:
            await asyncio.sleep(max(0.0, envelope.not_before - system.wall()))
        envelope.hold = None
        self.pump()

    def _forget_from_inbox(self, envelope: Envelope) -> None:
        if self.inbox and envelope in self.inbox:
            self.inbox.remove(envelope)

    def _new_turn(self, envelope: Envelope) -> Turn:
        made = self.object
        if made is None:
            made = self.new_object(self._state())
            if self.type.slots == 1:
                self.object = made
        turn = Turn(self, envelope, made)
        turn.began_s = self.system.wall()
        turn.task = asyncio.current_task(self.system.loop)
        turn.journal = self.system.journals.get(envelope.no)
        scope.set(turn)
        _lineage.set(None)
        self.system.turns[envelope.no] = turn
        return turn

    def new_object(self, state: Any) -> Any:
        """Return a new object of the user's class with this state."""
        made = self.type.new_object(self.id, state)
        made._ref = self.system.ref(self.type, self.id)
        made._log = self.log
        return made

    async def _run(self, envelope: Envelope) -> None:
        system = self.system
        again = True
        turn: Turn | None = None
        ours: BaseException | None = None  # an error outside the handler: the library's own
        try:
            while again:
                try:
                    turn = self._new_turn(envelope)
                except StateUndecodable as error:
                    self._hold(envelope, error)
                    return
                handler: BoundHandler | None = None
                try:
                    handler = self.type.handlers.get(envelope.handler)
                    if handler is None:
                        raise StateUndecodable(f"{self.type.kind} has no handler '{envelope.handler}' any more.")
                    if envelope.head.traced or system.trace_all or self.type.role != "actor":
                        turn.trace()
                    if envelope.head.deadline_at is not None and system.wall() >= envelope.head.deadline_at:
                        turn.stop("deadline")
                        again = await self._failed(turn, handler, TurnEnded())
                        continue
                    arguments = envelope.arguments
                    if arguments is None:
                        arguments = self._decode_arguments(handler, envelope)
                    elif turn.envelope.attempts:
                        arguments = handler.wire.decode(envelope.body)
                    if self.type.starts and not turn.actor_object.__dict__.get("_started"):
                        await turn.actor_object.on_start()
                        turn.actor_object.__dict__["_started"] = True
                    if handler.timeout_s is None:
                        result = await handler.function(turn.actor_object, *_astuple(arguments))
                    else:
                        result = await self._run_limited(turn, handler, arguments)
                    if turn.open:
                        await turn.close_steps()
                    if turn.ended is not None:
                        raise TurnEnded(f"{handler.where}: its turn has ended ({turn.ended}).")
                    self._finish(turn, handler, result)
                    return
                except (Exception, asyncio.CancelledError, TurnEnded, BaseExceptionGroup) as error:
                    again = await self._failed(turn, handler, error)
        except Exception as error:
            ours = error
        finally:
            system.turns.pop(envelope.no, None)
            system.end_turn(turn, ours)
            self.running -= 1
            self.used_at = system.loop.time()
            system.turn_ended(envelope)
            if self.inbox or self.tail:
                self.pump()

    def _decode_arguments(self, handler: BoundHandler, envelope: Envelope) -> Any:
        try:
            return handler.wire.decode(envelope.body)
        except (msgspec.MsgspecError, ValueError, TypeError, NotImplementedError) as error:
            raise StateUndecodable(f"the arguments of {handler.where} do not decode: {error}") from error

    async def _run_limited(self, turn: Turn, handler: BoundHandler, arguments: Any) -> Any:
        limit = asyncio.timeout(handler.timeout_s)
        try:
            async with limit:
                return await handler.function(turn.actor_object, *_astuple(arguments))
        except TimeoutError:
            if limit.expired():
                raise StepTimeout(
                    f"{handler.where} took longer than timeout_s={handler.timeout_s}.", timeout_s=handler.timeout_s
                ) from None
            raise

    # --- ends of turns ---------------------------------------------------------------------------------------------

    def _finish(self, turn: Turn, handler: BoundHandler, result: Any) -> None:
        """Commit the turn: all that can be refused first, then every effect into one batch, without an await."""
        system = self.system
        limits = system.limits
        envelope = turn.envelope
        type = self.type
        head = envelope.head
        state_body: bytes | None = None
        if type.has_state and not type.has_events:
            state_body = encode(turn.actor_object.state)
            if self.snapshot is not None and state_body == self.snapshot.body:
                state_body = None
            elif len(state_body) > limits.state_bytes:
                raise self._too_large("state_bytes", "state", len(state_body))
            else:
                type.check_state(state_body)
        value_body: bytes | None = None
        if envelope.caller is not None or head.keep:
            value_body = handler.wire.encode_result(result)
            if len(value_body) > limits.payload_bytes:
                raise self._too_large("payload_bytes", f"reply of {handler.name}", len(value_body))
        waiter = envelope.waiter
        reply = result
        if waiter is not None and not handler.wire.is_plain(result):
            copied = value_body if value_body is not None else handler.wire.encode_result(result)
            if len(copied) > limits.payload_bytes:
                raise self._too_large("payload_bytes", f"reply of {handler.name}", len(copied))
            reply = handler.wire.decode_result(copied)
        snapshot = self._next_snapshot(turn) if turn.records and type.has_events else None

        if turn.sends:
            self._check_keys(turn.sends)

        turn.ended = "finished"
        batch = system.committer.touch()
        batch.work += 1
        if state_body is not None:
            self.snapshot = batch.snapshots[self.no] = Snapshot(type.version, 0, state_body)
        if turn.records:
            self._append(batch, turn.records, snapshot)
        if turn.sends:
            for send in turn.sends:
                self._leave(send, turn)
        if turn.journal is not None:
            self._close_journal(batch, turn)
        batch.finish(envelope)
        self.depth -= 1
        if waiter is not None:
            system.committer.release(waiter, reply)
        if value_body is not None:
            self._settle(batch, envelope, Outcome(value=value_body), "done")
        counter = batch.turns.get((type.kind, handler.name))
        if counter is None:
            counter = batch.turns[(type.kind, handler.name)] = [0, 0]
        counter[0] += 1
        if turn.traced:
            turn.emit(TurnFinished, duration_s=system.wall() - turn.began_s)
        self.finished_in = batch.number

    def _leave(self, send: Send, turn: Turn) -> None:
        receiver = send.activation
        receiver.reserved -= 1
        if send.options.key is not None:
            receiver.key_holds -= 1
            if (send.handler.name, send.options.key) in (receiver.keys or {}):
                return  # Somebody else sent it while this turn ran: once is enough.
        envelope = receiver.send(
            send.handler,
            send.options,
            send.body,
            send.arguments,
            sender=turn,
            reserved=True,
            keep=send.options.key is not None,
        )
        if send.options.key is not None:
            receiver.note_key(
                send.handler.name, send.options.key, envelope.no, send.handler.wire.digest(send.arguments)
            )

    def _check_keys(self, sends: list[Send]) -> None:
        """Refuse to leave a message whose key was taken, since it was told, by one with other arguments."""
        for send in sends:
            key = send.options.key
            known = (send.activation.keys or {}).get((send.handler.name, key)) if key is not None else None
            if known is not None and known[1] != send.handler.wire.digest(send.arguments):
                raise send.activation.key_conflict(send.handler, send.options)

    def _next_snapshot(self, turn: Turn) -> Snapshot | None:
        assert turn.records is not None
        number = self.event_no + len(turn.records)
        if number - (self.snapshot.seq if self.snapshot else 0) < self.type.snapshot_every:
            return None
        body = encode(turn.actor_object.state)
        if len(body) > self.system.limits.state_bytes:
            raise self._too_large("state_bytes", "state", len(body))
        self.type.check_state(body)
        return Snapshot(self.type.version, number, body)

    def _append(self, batch: Batch, records: list[tuple[Any, bytes]], snapshot: Snapshot | None) -> None:
        for event, body in records:
            self.event_no += 1
            batch.events.append((self.no, self.event_no, body))
            if self.log is not None:
                self.log.append(event)
            elif self.recent is not None:
                self.recent.append(body)
        if snapshot is not None:
            if self.fold is not None:
                self._fold_up()
            self.snapshot = batch.snapshots[self.no] = snapshot
            self.recent = []

    def _close_journal(self, batch: Batch, turn: Turn) -> None:
        journal = turn.journal
        assert journal is not None
        self.system.journals.pop(journal.message, None)
        for key, slot in journal.slots.items():
            batch.journal.pop((journal.message, key), None)
            if slot.child is not None and slot.outcome is None:
                self.system.unasked.add(slot.child)  # Its reply has no reader any more.
        if journal.stored or journal.batch not in (0, batch.number):
            batch.forgotten.append(journal.message)

    def _close_log(self, batch: Batch, turn: Turn | None, why: str) -> None:
        """Keep what a run that ends without an answer has done: the agent remembers it."""
        if turn is None or not turn.records or not self.type.has_log:
            return
        ended = self.type.cls.log_closing([entry for entry, _ in turn.records], why)
        self._append(batch, [*turn.records, *((entry, encode(entry)) for entry in ended)], None)

    def _too_large(self, limit: str, what: str, size: int) -> LimitExceeded:
        value_max = getattr(self.system.limits, limit)
        return LimitExceeded(
            f"the {what} of {self.name} is {size} bytes, more than Limits.{limit}={value_max}; the turn was rolled back.",
            limit=limit,
            value=size,
            value_max=value_max,
        )

    def _settle(self, batch: Batch, envelope: Envelope, outcome: Outcome, state: str) -> None:
        """Give the outcome to the turn that asked, and keep it when it is to be kept."""
        system = self.system
        if envelope.caller is not None:
            assert envelope.caller_key is not None
            if envelope.no in system.unasked:
                system.unasked.discard(envelope.no)
            else:
                system.deliver(batch, envelope.caller, envelope.caller_key, outcome)
        if envelope.head.keep:
            system.jobs.keep(batch, self, envelope, outcome, state)

    async def _failed(self, turn: Turn, handler: BoundHandler | None, error: BaseException) -> bool:
        """Decide about an attempt that did not finish; return whether to try again now."""
        system = self.system
        stopped = turn.stopped
        if turn.ended == "finished":
            raise error  # It failed half-way through its own commit.
        turn.ended = turn.ended or "failed"
        while True:
            try:
                await turn.close_steps()
                break
            except asyncio.CancelledError:
                pass  # By the system, which has said why in `turn.stopped`; the steps are closed first all the same.
        stopped = stopped or turn.stopped
        for send in turn.sends or ():
            send.activation.reserved -= 1
            if send.options.key is not None:
                send.activation.key_holds -= 1
        if system.failure is not None:
            return False
        envelope = turn.envelope
        if stopped is not None:
            self._roll_back(new_object=True)
            self._stopped(turn, stopped)
            return False
        if turn.journal is not None and turn.journal.undecodable is not None:
            reason = str(turn.journal.undecodable)
            self._stopped(turn, "suspended")
            self.suspend(reason)
            return False
        if not isinstance(error, Exception):
            error = RuntimeError(f"the turn's own code cancelled it ({type(error).__name__})")
        if handler is None:
            self._roll_back(new_object=False)
            self._give_up(envelope, to_failure(error), "its handler is gone", turn)
            return False
        if declared_as(error, handler.raises):
            self._roll_back(new_object=False)
            self._answer(turn, to_failure(error, handler.raises), handler)
            return False
        history = tuple(_decode_history(envelope.history)) if envelope.history else ()
        decision = decide(self.type.policy, error, history)
        self._roll_back(new_object=decision.verb != "retry")
        if decision.verb == "answer":
            self._answer(turn, to_failure(error), handler)
            return False
        failure = to_failure(error)
        turn.emit(
            TurnFailed,
            kind=self.type.kind,
            actor=self.id,
            handler=envelope.handler,
            attempt=turn.attempt,
            error=failure.type,
            message=failure.message,
            decision=decision.verb,
            reason=decision.reason,
            delay_s=decision.delay_s,
            duration_s=system.wall() - turn.began_s,
        )
        if decision.verb == "dead_letter":
            self._give_up(envelope, failure, decision.reason, turn)
            return False
        envelope.attempts += 1
        envelope.history = encode([*history, Past(type(error).__name__, deciding_rule(self.type.policy, error))])
        envelope.not_before = system.wall() + decision.delay_s
        batch = system.committer.touch()
        batch.note_progress(envelope)
        if turn.journal is not None:
            for slot in turn.journal.start_attempt(forget_failures=True):
                batch.journal[(envelope.no, slot.key)] = JournalEntry(envelope.no, slot.key, _VOID, slot.after)
                turn.journal.wrote(batch.number)
        if decision.verb == "restart":
            turn.emit(ActorRestarted, kind=self.type.kind, actor=self.id, reason=decision.reason)
        try:
            await asyncio.sleep(decision.delay_s)
        except asyncio.CancelledError:
            if turn.stopped is not None and system.failure is None:
                self._stopped(turn, turn.stopped)
            return False
        return True

    def _stopped(self, turn: Turn, reason: str) -> None:
        """The system ended the turn: no attempt, no crash."""
        envelope = turn.envelope
        if reason == "cancelled":
            return  # What became of the message was decided with the cancellation.
        if reason == "deadline":
            self.expire(envelope)
            return
        if turn.journal is not None:
            turn.journal.start_attempt(forget_failures=False)
        if envelope.started > 0:
            envelope.started = -1
            self.system.committer.touch().note_progress(envelope)
        if turn.traced:
            turn.emit(TurnEndedBySystem, reason=reason)
        if self.inbox is None:
            self.inbox = deque()
        self.inbox.appendleft(envelope)

    def _roll_back(self, *, new_object: bool) -> None:
        """Go back to the state of the last finished turn."""
        if self.object is None:
            return
        if not new_object:
            try:
                self.object.state = self._state()
                return
            except StateUndecodable:
                pass  # The next turn finds out and suspends the actor.
        self.object = None

    def _hold(self, envelope: Envelope, error: StateUndecodable) -> None:
        """Put the message back and suspend the actor: no object can be made of its state."""
        if self.inbox is None:
            self.inbox = deque()
        self.inbox.appendleft(envelope)
        self.suspend(str(error))

    def _answer(self, turn: Turn, failure: Failure, handler: BoundHandler) -> None:
        """Finish the message with an error that is its answer; nothing else of the turn stays."""
        system = self.system
        envelope = turn.envelope
        batch = system.committer.touch()
        if turn.journal is not None:
            self._close_journal(batch, turn)
        batch.finish(envelope)
        self.depth -= 1
        self._release_failure(batch, envelope, failure, handler)
        counter = batch.turns.setdefault((self.type.kind, envelope.handler), [0, 0])
        counter[1] += 1
        turn.trace()
        turn.emit(TurnFinished, duration_s=system.wall() - turn.began_s, answered=failure.type)
        self.finished_in = batch.number

    def _give_up(self, envelope: Envelope, failure: Failure, reason: str, turn: Turn | None = None) -> None:
        """Make the message a dead letter; its journal stays with it."""
        system = self.system
        batch = system.committer.touch()
        failure = msgspec.structs.replace(failure, dead_letter=system.job_id(envelope.no))
        batch.finish(envelope)
        batch.dead[envelope.no] = DeadLetter(envelope, failure, system.wall())
        batch.work += 1
        self.depth -= 1
        system.journals.pop(envelope.no, None)
        counter = batch.turns.setdefault((self.type.kind, envelope.handler), [0, 0])
        counter[1] += 1
        self._release_failure(batch, envelope, failure, self.type.handlers.get(envelope.handler))
        if turn is not None:
            turn.trace()
        self._close_log(batch, turn, f"{failure.type}: {failure.message}")
        system.emit_for(
            envelope,
            MessageDeadLettered,
            kind=self.type.kind,
            actor=self.id,
            handler=envelope.handler,
            error=failure.type,
            message=failure.message,
            attempts=envelope.attempts + 1,
            crashes=envelope.crashes,
            reason=reason,
        )
        self.finished_in = batch.number

    def _release_failure(
        self, batch: Batch, envelope: Envelope, failure: Failure, handler: BoundHandler | None, state: str = "failed"
    ) -> None:
        if envelope.waiter is not None:
            raises = handler.raises if handler is not None else ()
            error = to_error(failure, f"{self.type.kind}.{envelope.handler}", raises)
            self.system.committer.release(envelope.waiter, error)
        self._settle(batch, envelope, Outcome(failure=failure), state)

    def expire(self, envelope: Envelope) -> None:
        """Finish a message whose deadline has passed."""
        self._withdraw(envelope, DeadlineExceeded, "its deadline passed before its turn committed", MessageExpired)

    def cancel(self, envelope: Envelope) -> None:
        """Finish a message that was cancelled."""
        self._withdraw(envelope, JobCancelled, "it was cancelled", MessageCancelled)

    def _withdraw(self, envelope: Envelope, error: type[Exception], why: str, event: Any) -> None:
        system = self.system
        batch = system.committer.touch()
        journal = system.journals.pop(envelope.no, None)
        if journal is not None:
            for key in journal.slots:
                batch.journal.pop((journal.message, key), None)
        batch.forgotten.append(envelope.no)
        batch.finish(envelope)
        self.depth -= 1
        self._close_log(batch, system.turns.get(envelope.no), why)
        failure = Failure("own", error.__name__, f"{self.name}.{envelope.handler}: {why}.")
        self._release_failure(batch, envelope, failure, None, "cancelled")
        system.emit_for(envelope, event, kind=self.type.kind, actor=self.id, handler=envelope.handler)
        if self.keys and envelope.key is not None:
            self.keys.pop((envelope.handler, envelope.key), None)  # A cancelled key is free again.
        self.finished_in = batch.number

    # --- state -----------------------------------------------------------------------------------------------------

    def _state(self) -> Any:
        """Return the state of the last finished turn, decoded anew."""
        state = self.type.state_of(self.snapshot, self.name)
        if self.recent:
            return self._apply(state, self.recent)
        return state

    def _apply(self, state: Any, bodies: list[bytes]) -> Any:
        folder = self.type.new_object(self.id, state)
        for body in bodies:
            event = self.type.event_of(body, self.name)
            try:
                folder.apply(event)
            except Exception as error:
                raise StateUndecodable(
                    f"{self.name}: apply() raised {type(error).__name__}: {error}, for the stored event {event!r}."
                ) from error
        return folder.state

    def _fold_up(self) -> Any:
        """Return the fold of all finished events, for one query: neither turns nor other queries see this object."""
        start = self.snapshot.seq if self.snapshot else 0
        if self.fold is not None and self.fold[0] == self.event_no:
            return self.type.state_of(self.fold[1], self.name)
        if self.fold is None or self.fold[0] < start:
            self.fold = (start, self.snapshot)
        seen, before = self.fold
        state = self._apply(self.type.state_of(before, self.name), (self.recent or [])[seen - start :])
        self.fold = (self.event_no, Snapshot(self.type.version, self.event_no, encode(state)))
        return state

    async def loaded(self, record: Loaded | None) -> None:
        """Take over what is on disk; an actor whose bytes are not to be trusted is suspended."""
        if record is None:
            self.recent = [] if self.type.has_events else None
            self.log = [] if self.type.has_log else None
            return
        self.no = record.no
        self.on_disk = True
        self.status, self.reason = record.status, record.reason
        self.snapshot = record.snapshot
        self.event_no = record.last_event
        self.depth = record.depth
        self.tail = len(record.window) >= self.system.limits.window_messages
        try:
            if record.damage is not None:
                raise StateUndecodable(record.damage)
            await self._load_events()
            if self.status == "active":
                self._check_state()
        except StateUndecodable as error:
            self.suspend(str(error))
        self.take_window(record.window)

    async def reload(self) -> None:
        """Read a held actor's state again; raises `StateUndecodable` when it is still not to be trusted."""
        await self.system.committer.wait_durable()
        (record,) = await self.system.store.load([self.no], self.system.limits.window_messages)
        if record is not None:
            if record.damage is not None:
                raise StateUndecodable(record.damage)
            self.snapshot = record.snapshot
            self.event_no = record.last_event
            self.fold = None
            await self._load_events()
        self._check_state()

    def forget(self) -> None:
        """Become a new actor: every row of this one was deleted."""
        self.no = 0
        self.status, self.reason = "active", ""
        self.object = self.snapshot = self.fold = self.keys = None
        self.recent = [] if self.type.has_events else None
        self.log = [] if self.type.has_log else None
        self.event_no = self.last_position = 0
        self.on_disk = False

    async def _load_events(self) -> None:
        if not (self.type.has_events or self.type.has_log):
            return
        bodies: list[bytes] = []
        after = 0 if self.type.has_log or self.snapshot is None else self.snapshot.seq
        while after < self.event_no:
            page = await self.system.store.events(self.no, after, 1_000)
            if not page or page[-1][0] != after + len(page):
                raise StateUndecodable(
                    f"of the events {after + 1} to {self.event_no} of {self.name}, some are missing."
                )
            bodies.extend(body for _, body in page)
            after = page[-1][0]
        if self.type.has_log:
            self.log = [self.type.log_entry_of(body, self.name) for body in bodies]
        else:
            self.recent = bodies

    def _check_state(self) -> None:
        if self.type.slots == 1:
            self.object = self.new_object(self._state())

    def suspend(self, reason: str) -> None:
        """Hold the actor: its mail is kept, callers get `ActorSuspended`."""
        if self.status == "suspended":
            self.reason = reason
            return
        system = self.system
        self.status, self.reason = "suspended", reason
        self.object = None
        if self.no == 0:
            self._create()
        batch = system.committer.touch()
        batch.statuses[self.no] = ("suspended", reason)
        batch.work += 1
        for envelope in self.inbox or ():
            if envelope.waiter is not None:
                system.committer.release(envelope.waiter, self._suspended())
                envelope.waiter = None
        system.jobs.actor_suspended(self, self._suspended())
        system.emit_actor(ActorSuspendedEvent, self, reason=reason)

    def _suspended(self) -> ActorSuspended:
        return ActorSuspended(
            f"{self.name} is suspended: {self.reason} Its mail is kept; mend the cause, then system.resume(ref).",
            reason=self.reason,
        )

    # --- queries, waiting, leaving ---------------------------------------------------------------------------------

    async def query(self, handler: BoundHandler, arguments: Any, caller: Turn | None) -> Any:
        """Run a query on a copy of the last finished state; inside a turn its result may be ahead of the disk."""
        if self.status == "suspended":
            raise self._suspended()
        state = self._fold_up() if self.type.has_events else self._state()
        reader = self.new_object(state)
        finished_in = self.finished_in
        view = self.system.query_view(self, reader, handler.where)
        token = scope.set(view)
        try:
            result = await handler.function(reader, *_astuple(arguments))
        except Exception as error:
            raise to_error(to_failure(error, handler.raises), handler.where, handler.raises) from error
        finally:
            scope.reset(token)
        reply = handler.wire.copy_result(result)
        if caller is None and finished_in > self.system.committer.durable:
            await self.system.committer.wait_durable()
        return reply

    def free_slots(self) -> int:
        """How many turns could start now."""
        return self.type.slots - self.running

    @property
    def waits(self) -> dict[Activation, int]:
        """Actors that turns of this one wait for, with how many asks."""
        if self._waits is None:
            self._waits = {}
        return self._waits

    def waits_for(self, other: Activation) -> bool:
        """Whether this actor, directly or through others, waits for *other*; with a slot that does not wait, it waits for nobody."""
        seen: set[int] = set()
        stack = [self]
        while stack:
            one = stack.pop()
            if id(one) in seen:
                continue
            seen.add(id(one))
            if one is other:
                return True
            if one.waiting >= one.type.slots:
                stack.extend(one._waits or ())
        return False

    def may_need(self, other: Activation) -> bool:
        """Whether a turn of this actor perhaps cannot go on before *other* does, directly or through others."""
        seen: set[int] = set()
        stack = [self]
        while stack:
            one = stack.pop()
            if one is other or one.waits_unknown:
                return True
            if id(one) not in seen:
                seen.add(id(one))
                stack.extend(one._waits or ())
        return False

    def may_leave(self) -> bool:
        """Whether nothing is lost when it leaves memory: no mail, no turn, and its last turn is on disk."""
        return (
            self.ready
            and not self.running
            and not self.inbox
            and not self.tail
            and not self.reserved
            and not self.door_held
            and not self.arriving
            and not self.keys
            and not self.key_holds
            and self.finished_in <= self.system.committer.durable
        )


def closed_error() -> SystemClosed:
    """Return what callers get that still wait when the system closes."""
    return SystemClosed("the system was closed while this message waited; it is stored and goes on at the next start.")
