"""The durable wait of a turn for the outside: what is stored of it, and how its outcome finds it, today or days later.

A pending wait is a record, written in the commit in which the wait begins and dropped in the one in which its outcome
is journaled or its message ends. The outcome is a row of the turn's journal, so a redelivered turn finds it, or goes on
waiting under the same id. Knows nothing of approvals.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from typing import TYPE_CHECKING, Any

import msgspec

from understudy.actors import asking, parking
from understudy.actors.readable import readable
from understudy.actors.recovery import was_begun
from understudy.codec import decode_or_suspend, encode
from understudy.errors import InvalidArguments, KeyConflict, LimitExceeded, NotFound, NotRegistered
from understudy.events import WaitBegan, WaitEnded
from understudy.mailbox.commit import Record
from understudy.mailbox.journal import Failure, Journal, JournalEntry, Outcome, Slot, group

if TYPE_CHECKING:
    from understudy.actors.activation import Activation
    from understudy.actors.system import System
    from understudy.actors.turn import Turn
    from understudy.mailbox.envelope import Envelope

logger = logging.getLogger(__name__)
KIND = "wait"  # of the records
_PAGE = 500
_SHOWN_MAX = 300  # characters of a call's arguments in the trace; the approval itself has them whole


class Wait(msgspec.Struct, frozen=True, omit_defaults=True):
    """One wait as it is stored. Evolves by added fields with defaults."""

    name: str
    kind: str  # "external" or "approval"
    message: int
    key: bytes  # of its step in the message's journal
    after: bytes | None
    asked_at: float
    correlation: str
    actor: str
    tool: str = ""
    arguments: bytes = b""
    timeout_s: float | None = None
    until: float | None = None


decode_wait = msgspec.msgpack.Decoder(Wait).decode


def record_id(no: int) -> str:
    """Return a number as records are ordered by."""
    return f"{no:020d}"


def step_name(name: str) -> str:
    """Return how the journal calls a wait for a value from outside."""
    return f"external {name}"


class Waits:
    """The waits for the outside of one system."""

    def __init__(self, system: System) -> None:
        self._system = system
        self._checks: dict[str, Callable[[bytes], Any]] = {}  # what reads the value, of the waits of turns in memory

    # --- called by turns -------------------------------------------------------------------------------------------

    async def wait(
        self,
        turn: Turn,
        slot: Slot,
        *,
        name: str,
        kind: str = "external",
        tool: str = "",
        arguments: bytes = b"",
        timeout_s: float | None = None,
        check: Callable[[bytes], Any] | None = None,
    ) -> Outcome:
        """Return the outcome of a claimed step that waits for the outside."""
        if slot.outcome is not None:
            return slot.outcome
        if slot.wait is None:
            self._begin(turn, slot, name, kind, tool, arguments, timeout_s)
        if turn.envelope.started != -1:
            # It waits: a crash meanwhile is not charged to it, and its journal is read back.
            turn.envelope.started = -1
            self._system.committer.touch().note_started(turn.envelope)
        id = slot.wait
        assert id is not None
        what = f"approval {self.public_id(id)} of tool {tool}" if kind == "approval" else f"external {name}"
        if check is not None:
            self._checks[id] = check
        if kind == "approval":
            self._system.streams.approval_requested(turn, self.public_id(id), tool)
        parking.wait_begins(turn, slot, what)
        try:
            with asking.open_branch(turn):
                outcome = await slot.wait_outcome()
        except asyncio.CancelledError:
            slot.claimed = turn.ended is not None  # Given up by its own branch: whoever waits again gets this one.
            raise
        finally:
            self._checks.pop(id, None)
            parking.wait_ends(turn, slot)
        turn.check(what)
        return outcome

    def _begin(
        self, turn: Turn, slot: Slot, name: str, kind: str, tool: str, arguments: bytes, timeout_s: float | None
    ) -> None:
        system = self._system
        envelope = turn.envelope
        turn.trace()
        no = system.next_message()
        id = slot.wait = record_id(no)
        now = system.wall()
        until = now + timeout_s if timeout_s is not None else None
        batch = system.committer.touch()
        wait = Wait(
            name=name,
            kind=kind,
            message=turn.no,
            key=slot.key,
            after=slot.after,
            asked_at=now,
            correlation=system.recorder.correlation_of(envelope),
            actor=turn.activation.name,
            tool=tool,
            arguments=arguments,
            timeout_s=timeout_s,
            until=until,
        )
        batch.put(Record(KIND, id, encode(wait), record_id(turn.no)))
        if until is not None:
            system.alarms.set(no, until, turn.no)
        turn.emit(WaitBegan, wait=self.public_id(id), name=name, tool=tool, arguments=_in_words(arguments))

    # --- called from outside -----------------------------------------------------------------------------------------

    async def deliver(self, id: str, name: str, value: Any) -> None:
        """Give the turn of a message the value that it waits for, or is going to wait for."""
        system = self._system
        body = encode(value)
        limit = system.limits.payload_bytes
        if len(body) > limit:
            raise LimitExceeded(
                f"the value for {name!r} is {len(body)} bytes, more than Limits.payload_bytes={limit}; nothing was "
                "stored. Store large data elsewhere and deliver its address.",
                limit="payload_bytes",
                value=len(body),
                value_max=limit,
            )
        activation, envelope, journal = await self._reach(system.message_no(id))
        steps = journal.steps(group(step_name(name), b""))
        slot = next((each for each in steps if each.wait is not None and each.is_open()), None)
        if slot is None:
            if any(_delivered(each) for each in steps):
                known = next(each.outcome for each in reversed(steps) if each.outcome is not None)
                if known.value != body:
                    raise KeyConflict(
                        f"{name!r} was delivered to {id} before, with another value, and nothing waits for it now; "
                        "nothing was changed. Give each value that a turn waits for a name of its own.",
                        key=name,
                    )
            else:
                slot = self._foresee(activation, envelope, journal, name)
        if slot is not None:
            if (check := self._checks.get(slot.wait or "")) is not None:
                check(body)
            self._settle(activation, envelope, journal, slot, Outcome(value=body), name, "delivered")
        await system.committer.wait_durable()

    def _foresee(self, activation: Activation, envelope: Envelope, journal: Journal, name: str) -> Slot:
        """Return the step that is going to wait: the value is there before it."""
        if envelope.started == 0:
            envelope.started = -1  # Its journal is to be read back.
            self._system.committer.touch().note_started(envelope)
        elif (turn := self._system.turns.get(envelope.no)) is not None:
            turn.journal = journal
        return journal.foresee(group(step_name(name), b""))

    async def decide(self, message: int, id: str, body: bytes, outcome: str, reason: str) -> bool:
        """Give a wait its outcome, by its id; return whether it was open. The caller waits until that is durable."""
        try:
            activation, envelope, journal = await self._reach(message)
        except NotFound:
            return False  # Its message has ended meanwhile.
        slot = next((each for each in journal.slots.values() if each.wait == id and each.is_open()), None)
        if slot is None:
            return False
        self._settle(activation, envelope, journal, slot, Outcome(value=body), "approval", outcome, reason)
        return True

    async def expire(self, message: int, no: int) -> None:
        """End a wait whose time is over, if it is open still."""
        id = record_id(no)
        wait = await self.find(id)
        if wait is None:
            return
        try:
            activation, envelope, journal = await self._reach(message)
        except NotFound:
            return
        slot = next((each for each in journal.slots.values() if each.wait == id and each.is_open()), None)
        if slot is None:
            return
        failure = Failure(
            "own",
            "StepTimeout",
            f"nobody delivered {wait.name!r} within timeout_s={wait.timeout_s}.",
            arguments=encode({"timeout_s": wait.timeout_s}),
        )
        self._settle(activation, envelope, journal, slot, Outcome(failure=failure), wait.name, "timed out")

    def _settle(
        self,
        activation: Activation,
        envelope: Envelope,
        journal: Journal,
        slot: Slot,
        outcome: Outcome,
        name: str,
        told: str,
        reason: str = "",
    ) -> None:
        """Journal the outcome of a wait, drop its record and wake who waits, all in one batch."""
        system = self._system
        batch = system.committer.touch()
        batch.journal[(journal.message, slot.key)] = JournalEntry(journal.message, slot.key, outcome, slot.after)
        batch.work += 1 + (len(outcome.value or b"") >> 10)
        journal.wrote(batch.number)
        journal.progressed = True  # It gets on: a crash after this is not counted against the message.
        if slot.wait is not None:
            batch.drop(KIND, slot.wait)
            system.alarms.clear(int(slot.wait))
            wait = self.public_id(slot.wait)
            system.recorder.emit_for(envelope, WaitEnded, wait=wait, name=name, outcome=told, reason=reason)
        slot.settle(outcome)
        parking.wake(activation)

    async def _reach(self, no: int) -> tuple[Activation, Envelope, Journal]:
        """Return a message that has not ended and its journal, wherever they are; go on without an await after it.

        Raises:
            NotFound: The message has ended, or there never was one.
            NotRegistered: Its actor's class is not registered.
        """
        system = self._system
        while True:
            turn = system.turns.get(no)
            if turn is not None and turn.ended != "finished" and turn.stopped not in ("cancelled", "deadline"):
                return turn.activation, turn.envelope, turn.ensure_journal()
            await system.committer.wait_durable()
            pending = (await system.store.message(no)).pending
            if pending is None:
                if no in system.turns:
                    continue
                raise NotFound(f"{system.job_id(no)} waits for nothing: its message has ended, or there never was one.")
            activation = await system.population.of_no(pending.actor)
            if activation is None:
                raise NotRegistered(f"{system.job_id(no)} waits for code that is not registered; register it first.")
            activation.reserved += 1  # It must not leave memory meanwhile.
            try:
                found = await self._journal_of(activation, pending)
            finally:
                activation.reserved -= 1
            if found is not None and no not in system.turns:
                return activation, *found

    async def _journal_of(self, activation: Activation, pending: Envelope) -> tuple[Envelope, Journal] | None:
        """Return the message as it is in memory, and its journal; None when it has moved on meanwhile."""
        system = self._system
        no = pending.no
        if was_begun(pending):  # Also when its journal is in memory: somebody may be reading it back just now.
            await system.recovery.read_journal(pending)
        envelope = next((each for each in activation.inbox or () if each.no == no), None) or system.timers.pending(no)
        if envelope is None and no not in system.turns:
            # It lies on disk only, or has ended since it was read.
            await system.committer.wait_durable()
            envelope = (await system.store.message(no)).pending
            if envelope is None or any(each.no == no for each in activation.inbox or ()):
                return None
        if envelope is None or no in system.turns:
            return None
        return envelope, system.journal_of(envelope)

    # --- lists -----------------------------------------------------------------------------------------------------

    async def find(self, id: str) -> Wait | None:
        """Return an open wait by the id of its record."""
        await self._system.committer.wait_durable()
        record = await self._system.store.record(KIND, id)
        return None if record is None else decode_or_suspend(decode_wait, record.body, f"the wait {self.public_id(id)}")

    async def open_waits(self) -> AsyncIterator[tuple[str, Wait]]:
        """Stream the open waits, oldest first, each with the id of its record; a damaged one is left out and logged."""
        await self._system.committer.wait_durable()
        async for record in readable(self._system.store, KIND):
            try:
                yield record.id, decode_wait(record.body)
            except msgspec.MsgspecError:
                logger.warning("system.record_damaged", extra={"row": f"{KIND} {record.id}"}, exc_info=True)

    async def of_message(self, no: int) -> list[tuple[str, Wait]]:
        """Return the open waits of one message, oldest first, each with the id of its record."""
        found: list[tuple[str, Wait]] = []
        after = ""
        while page := await self._system.store.records(KIND, record_id(no), after, _PAGE):
            after = page[-1].id
            found += [(record.id, decode_wait(record.body)) for record in page]
        return found

    async def restore(self, journal: Journal) -> None:
        """Let a journal that was read back know what its message waits for."""
        for id, wait in await self.of_message(journal.message):
            journal.expect_outside(wait.key, wait.after, id)

    def public_id(self, id: str) -> str:
        """Return the name of a wait as people see it."""
        return self._system.job_id(int(id))

    def given_id(self, id: str) -> str:
        """Return the id of the record of a wait; raises `NotFound` when none can have that name."""
        try:
            return record_id(self._system.message_no(id))
        except NotFound as error:
            raise no_approval(id) from error


def no_approval(id: str) -> NotFound:
    """Return the error of an id that no wait can have."""
    return NotFound(f"{id!r} is no approval of this store; system.approvals() lists those that wait.")


def _in_words(arguments: bytes) -> str:
    """Return the arguments of a call for people, as far as they fit on a line."""
    given: dict[str, Any] = msgspec.msgpack.decode(arguments) if arguments else {}
    told = ", ".join(f"{name}={value!r}" for name, value in given.items())
    return told if len(told) <= _SHOWN_MAX else told[: _SHOWN_MAX - 1] + "…"


def _delivered(slot: Slot) -> bool:
    return slot.outcome is not None and slot.outcome.value is not None


def check_name(name: Any) -> None:
    """Refuse a name by which nothing could be delivered."""
    text: object = name
    if not isinstance(text, str) or not 0 < len(text) <= 200 or "\0" in text or not text.isprintable():
        raise InvalidArguments(
            f"expected a name of 1 to 200 printable characters for what comes from outside; got {name!r}."
        )
