"""The ledgers of one system: what runs and workflows have spent, on disk before and after each call.

A call sets aside what it may cost at most in every ledger of its chain, in one record that is on disk before the call
is sent; when it has ended, what it cost is booked in the commit that also deletes that record. A record that is found
when the store is opened belongs to a call that a crash cut off: it is booked whole. So no ledger ever tells less than
was spent. A call that does not fit beside those under way waits, in order of arrival; only what is spent refuses one.
"""

from __future__ import annotations

import asyncio
import bisect
import itertools
import logging
from collections.abc import Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import msgspec

from understudy.actors.holding import HELD, exceeded, held_id
from understudy.actors.open_ledger import (
    LEDGER,
    RESERVATION,
    WORKFLOW,
    WORKFLOWS,
    OpenLedger,
    Reservation,
    Reserved,
    Waiting,
    decode_ledger,
    decode_reserved,
    ledgers_of,
    run_ledger,
)
from understudy.actors.sent import SENT, sent_ended
from understudy.codec import decode_or_suspend, encode
from understudy.endpoint.budget import Budget
from understudy.endpoint.ledger import NOTHING, Amount, Ledger, Standing
from understudy.errors import BudgetExceeded, StateUndecodable
from understudy.events import BudgetWarned
from understudy.mailbox.commit import Batch, Record

if TYPE_CHECKING:
    from collections.abc import Generator

    from understudy.actors.activation import Activation
    from understudy.actors.system import System
    from understudy.mailbox.envelope import Envelope

logger = logging.getLogger(__name__)
_PAGE = 500
_TOUCH_S = 600.0


class Ledgers:
    """The ledgers of one system."""

    def __init__(self, system: System) -> None:
        self._system = system
        self._open: dict[str, OpenLedger] = {}
        self._reading: dict[str, int] = {}
        self.of_messages: dict[int, list[OpenLedger]] = {}  # those of their runs
        self.letting_go: dict[int, tuple[str, str]] = {}  # actors that a raised budget lets go on -> the record of it
        self._tickets = itertools.count(1)
        self._numbers = itertools.count(1)

    # --- opening ---------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Book what the calls of an earlier life had set aside that a crash cut off; before anything runs."""
        after, size = "", _PAGE
        while True:
            try:
                page = await self._system.store.records(RESERVATION, None, after, size)
            except StateUndecodable as error:
                if size == 1:  # A damaged row must not keep the others from their ledgers, nor the store shut.
                    logger.exception("system.reservation_damaged")
                    after = str(getattr(error, "row", "")).removeprefix(f"{RESERVATION} ")
                    if not after:
                        return
                size = 1  # One by one: a page with such a row is not read.
                continue
            if not page:
                break
            after = page[-1].id
            for record in page:
                try:
                    reserved = decode_reserved(record.body)
                except msgspec.MsgspecError:
                    logger.exception("system.reservation_damaged", extra={"row": record.id})
                else:
                    await self._book(record.id, reserved)
            await self._system.committer.wait_durable()

    async def _book(self, id: str, reserved: Reserved) -> None:
        found: list[OpenLedger] = []
        for name in reserved.ledgers:
            try:
                ledger = await self.find(name)
            except StateUndecodable:  # Its runs are held for it when they go on.
                logger.exception("system.ledger_damaged", extra={"ledger": name})
            else:
                if ledger is not None:
                    self.keep(ledger)
                    found.append(ledger)
        # In one stretch, and so in one commit: half of it would be booked twice after another crash.
        self._system.committer.touch().drop(RESERVATION, id)
        for ledger in found:
            ledger.state = ledger.state.settle(NOTHING, reserved.amount, reserved.amount)
            self._write(ledger)
            self.release(ledger)

    async def find(self, id: str) -> OpenLedger | None:
        """Return the ledger, read from disk if it is not in memory; None when there is none (any more).

        It may leave memory at the next await unless somebody `keeps` it.
        """
        known = self._open.get(id)
        if known is not None:
            return known
        self._reading[id] = self._reading.get(id, 0) + 1  # What others bring in meanwhile stays until this is read.
        try:
            record = await self._system.store.record(LEDGER, id)
        finally:
            self._reading[id] -= 1
            if not self._reading[id]:
                del self._reading[id]
        known = self._open.get(id)
        if known is None and record is not None:
            state = decode_or_suspend(decode_ledger, record.body, f"the ledger {id}")
            # What was set aside in an earlier life was booked; in this one it would be in memory.
            state = msgspec.structs.replace(state, reserved=NOTHING)
            known = self._open[id] = OpenLedger(id, record.owner, state, record.expires_at)
            self._leave_later(known)
        return known

    def make(self, id: str, owner: str, budget: Budget) -> OpenLedger:
        """Return a new ledger, in the open batch."""
        now = self._system.wall()
        ledger = self._open[id] = OpenLedger(id, owner, Ledger(budget, budget, opened_at=now, used_at=now))
        self._write(ledger)
        self._leave_later(ledger)
        return ledger

    async def workflow(self, name: str, budget: Budget | None) -> OpenLedger:
        """Return the ledger of a workflow, made when it is not there."""
        id = WORKFLOW + name
        return await self.find(id) or self._open.get(id) or self.make(id, WORKFLOWS, budget or Budget())

    # --- memory ----------------------------------------------------------------------------------------------------

    def keep(self, ledger: OpenLedger) -> None:
        """Keep a ledger in memory until `release`."""
        ledger.users += 1

    def release(self, ledger: OpenLedger) -> None:
        """Let it leave memory, unless others keep it, when it is on disk."""
        ledger.users -= 1
        if not ledger.users:
            self._leave_later(ledger)

    def _leave_later(self, ledger: OpenLedger) -> None:
        committer = self._system.committer
        if ledger.written_in <= committer.durable:
            # At the end of this stretch: who has just found it may want to keep it.
            self._system.loop.call_soon(self._leave, ledger)
        else:
            committer.touch().after.append(lambda: self._leave(ledger))

    def _leave(self, ledger: OpenLedger) -> None:
        if ledger.users or ledger.id in self._reading or self._open.get(ledger.id) is not ledger:
            return
        if ledger.written_in > self._system.committer.durable:
            self._leave_later(ledger)
        else:
            del self._open[ledger.id]

    def _write(self, ledger: OpenLedger) -> None:
        """Put the ledger into the open batch, as every change of it does."""
        system = self._system
        batch = system.committer.touch()
        state = ledger.state = msgspec.structs.replace(ledger.state, used_at=system.wall())
        if ledger.runs:
            state = msgspec.structs.replace(state, elapsed_s=self.elapsed_s(ledger))
        batch.put(Record(LEDGER, ledger.id, encode(state), ledger.owner, ledger.expires_at))
        ledger.written_in = batch.number
        self.changed(ledger)

    def touch(self, ledger: OpenLedger) -> None:
        """Note that a ledger is used, so that it stays; not at every use of one that was used just now."""
        if self._system.wall() - ledger.state.used_at > _TOUCH_S:
            self._write(ledger)

    def change(self, ledger: OpenLedger, state: Ledger) -> None:
        """Give a ledger other limits: calls that wait may go on, and what is nearly spent is told anew."""
        ledger.state = state
        ledger.state = state.warn(state.warned & self._reached(ledger))
        self._write(ledger)
        self._go_on([ledger])

    def changed(self, ledger: OpenLedger) -> None:
        """Called after every change of a ledger; tests look at it here."""

    # --- time ------------------------------------------------------------------------------------------------------

    def elapsed_s(self, ledger: OpenLedger) -> float:
        """Return the time that counts: of a workflow since it was opened, of a run that in which it ran."""
        if ledger.is_workflow:
            return max(0.0, self._system.wall() - ledger.state.opened_at)
        if not ledger.runs or ledger.paused:
            return ledger.state.elapsed_s
        return ledger.state.elapsed_s + self._system.loop.time() - ledger.active_since

    def pause(self, message: int) -> None:
        """Stop counting the time of the message's runs: its turn waits for the outside."""
        for ledger in self.of_messages.get(message, ()):
            ledger.state = msgspec.structs.replace(ledger.state, elapsed_s=self.elapsed_s(ledger))
            ledger.paused = True

    def go_on(self, message: int) -> None:
        """Count it again."""
        for ledger in self.of_messages.get(message, ()):
            if ledger.paused:
                ledger.paused = False
                ledger.active_since = self._system.loop.time()

    @contextmanager
    def running(self, ledger: OpenLedger) -> Generator[None]:
        """Count the time of a run."""
        if not ledger.runs:
            ledger.paused = False
            ledger.active_since = self._system.loop.time()
        ledger.runs += 1
        try:
            yield
        finally:
            elapsed_s = self.elapsed_s(ledger)
            ledger.runs -= 1
            if not ledger.runs:
                ledger.state = msgspec.structs.replace(ledger.state, elapsed_s=elapsed_s)
                self._write(ledger)

    # --- calls -----------------------------------------------------------------------------------------------------

    async def reserve(self, chain: Sequence[OpenLedger], amount: Amount) -> Reservation:
        """Set *amount* aside in every ledger of the chain, in the open batch; wait when calls under way take its place.

        Raises:
            BudgetExceeded: It does not fit beside what is spent; nothing was set aside.
        """
        refusal = self._refusal(chain, amount)
        if refusal is not None:
            raise refusal
        full = next((each for each in chain if each.queue or not each.state.has_room(amount)), None)
        if full is None:
            return self._grant(chain, amount)
        waiting = Waiting(next(self._tickets), chain, amount, self._system.loop.create_future())
        full.queue.append(waiting)
        try:
            return await waiting.future
        except asyncio.CancelledError:
            future = waiting.future
            if future.done() and not future.cancelled() and future.exception() is None:
                self.settle(future.result(), NOTHING)
            for ledger in chain:
                if waiting in ledger.queue:
                    ledger.queue.remove(waiting)
            self._go_on(chain)
            raise

    def settle(self, reservation: Reservation, spent: Amount, unknown: Amount = NOTHING) -> list[OpenLedger]:
        """Give back what was set aside and book what was used, in the open batch; once.

        Returns the ledgers of which it is to be told now that they are nearly spent.
        """
        if not reservation.open:
            return []
        reservation.open = False
        self._system.committer.touch().drop(RESERVATION, reservation.id)
        nearly: list[OpenLedger] = []
        for ledger in reservation.chain:
            ledger.state = ledger.state.settle(reservation.amount, spent, unknown)
            self._write(ledger)
            self.release(ledger)
            if self._reached(ledger) - ledger.state.warned:
                nearly.append(ledger)
        self._go_on(reservation.chain)
        return nearly

    def _grant(self, chain: Sequence[OpenLedger], amount: Amount) -> Reservation:
        batch = self._system.committer.touch()
        id = f"{self._system.life}.{next(self._numbers)}"
        for ledger in chain:
            ledger.state = ledger.state.reserve(amount)
            self.keep(ledger)
            self.changed(ledger)
        body = encode(Reserved([each.id for each in chain], amount))
        batch.put(Record(RESERVATION, id, body, chain[-1].id))
        return Reservation(id, chain, amount)

    def _refusal(self, chain: Sequence[OpenLedger], amount: Amount) -> BudgetExceeded | None:
        # The outermost first: raising one within it would not help.
        for ledger in chain:
            standing = ledger.state.refusal(amount, self.elapsed_s(ledger))
            if standing is not None:
                return exceeded(ledger.id, standing)
        return None

    def _go_on(self, chain: Sequence[OpenLedger]) -> None:
        """Let calls go on that wait in these ledgers, the first first, as far as they fit now."""
        for ledger in chain:
            while ledger.queue:
                waiting = ledger.queue[0]
                if waiting.future.done():
                    del ledger.queue[0]
                    continue
                refusal = self._refusal(waiting.chain, waiting.amount)
                full = None if refusal else self._full(waiting)
                if full is ledger:
                    break
                del ledger.queue[0]
                if refusal is not None:
                    waiting.future.set_exception(refusal)
                elif full is not None:
                    bisect.insort(full.queue, waiting, key=lambda each: each.ticket)
                else:
                    waiting.future.set_result(self._grant(waiting.chain, waiting.amount))

    def _full(self, waiting: Waiting) -> OpenLedger | None:
        """Return the ledger in which a call that waits has to wait on: no room, or others were there before it."""
        for ledger in waiting.chain:
            first = ledger.queue[0].ticket if ledger.queue else waiting.ticket
            if first < waiting.ticket or not ledger.state.has_room(waiting.amount):
                return ledger
        return None

    # --- warnings --------------------------------------------------------------------------------------------------

    def _reached(self, ledger: OpenLedger) -> frozenset[str]:
        return frozenset(each.limit for each in ledger.state.nearly_reached(self.elapsed_s(ledger)))

    def nearly_spent(self, chain: Sequence[OpenLedger]) -> list[tuple[OpenLedger, Standing]]:
        """Return the limits of a chain of which the models are to be told, the outermost ledger's first."""
        return [(each, row) for each in chain for row in each.state.nearly_reached(self.elapsed_s(each))]

    def warn(self, chain: Sequence[OpenLedger], envelope: Envelope) -> None:
        """Tell the trace, once, of each limit that is nearly reached."""
        for ledger in chain:
            rows = ledger.state.nearly_reached(self.elapsed_s(ledger))
            fresh = [each for each in rows if each.limit not in ledger.state.warned]
            if not fresh:
                continue
            ledger.state = ledger.state.warn(ledger.state.warned | {each.limit for each in fresh})
            self._write(ledger)
            for each in fresh:
                self._system.recorder.emit_for(
                    envelope,
                    BudgetWarned,
                    budget=ledger.id,
                    limit=each.limit,
                    spent=each.in_unit(each.used),
                    value_max=each.in_unit(each.most),
                )

    # --- messages --------------------------------------------------------------------------------------------------

    async def of_run(self, envelope: Envelope, number: int, budget: Budget, *, begun: bool) -> OpenLedger:
        """Return the ledger of a message's run, which goes on from disk when the run was *begun* before.

        What the code says counts, unless a person has raised what it said before.
        """
        id = run_ledger(self._system.job_id(envelope.no), number)
        ledger = self._open.get(id) or (await self.find(id) if begun else None)
        if ledger is None:
            around = ledgers_of(envelope.head.scope)
            ledger = self.make(id, around[-1] if around else "", budget)
        state = ledger.state
        if state.declared != budget and state.declared == state.budget:
            ledger.state = msgspec.structs.replace(state, declared=budget, budget=budget, warned=frozenset())
        ledger.expires_at = None
        self._write(ledger)
        self._adopt(envelope.no, ledger)
        return ledger

    def _adopt(self, no: int, ledger: OpenLedger) -> None:
        mine = self.of_messages.setdefault(no, [])
        if ledger not in mine:
            self.keep(ledger)
            mine.append(ledger)

    async def of_message(self, no: int) -> list[OpenLedger]:
        """Return the ledgers of the runs that the message's turn has made."""
        found: list[OpenLedger] = []
        while (ledger := await self.find(run_ledger(self._system.job_id(no), len(found)))) is not None:
            found.append(ledger)
        return found

    async def recall(self, no: int) -> None:
        """Keep the ledgers of a message of an earlier life in memory until it ends: then they are to expire."""
        for ledger in await self.of_message(no):
            self._adopt(no, ledger)

    def message_ended(self, batch: Batch, activation: Activation, envelope: Envelope) -> None:
        """Let what is kept of a message's runs, and of its place in a workflow, go with its outcome; in *batch*."""
        system = self._system
        head = envelope.head
        expires_at = system.wall() + system.limits.result_ttl_s
        for ledger in self.of_messages.get(envelope.no, ()):
            ledger.expires_at = expires_at
            self._write(ledger)
            batch.drop(HELD, held_id(ledger.id, activation.no))
        if head.scope is not None and envelope.attempts:
            for id in ledgers_of(head.scope):
                batch.drop(HELD, held_id(id, activation.no))
        if head.workflow is not None:
            sent_ended(batch, envelope, activation.type.kind, expires_at)
        if envelope.no not in system.turns:
            self.turn_ended(envelope.no)

    def turn_ended(self, no: int) -> None:
        """Let the ledgers of a message's runs leave memory: its turn is over."""
        for ledger in self.of_messages.pop(no, ()):
            self.release(ledger)

    # --- housekeeping ----------------------------------------------------------------------------------------------

    async def tidy(self) -> None:
        """Delete the ledgers of workflows that nothing was sent through or spent in for `result_ttl_s`."""
        after = ""
        try:
            while page := await self._system.store.records(LEDGER, WORKFLOWS, after, _PAGE):
                after = page[-1].id
                for record in page:
                    await self._tidy_workflow(record.id, decode_ledger(record.body))
        except (StateUndecodable, msgspec.MsgspecError):
            logger.exception("system.ledgers_damaged")

    async def _tidy_workflow(self, id: str, state: Ledger) -> None:
        system = self._system
        if state.used_at > system.wall() - system.limits.result_ttl_s:
            return
        for kind in (SENT, HELD):  # Something sent through it has not ended, or it holds an actor.
            if await system.store.records(kind, id, "", 1):
                return
        if id not in self._open and id not in self._reading:
            system.committer.touch().drop(LEDGER, id)
