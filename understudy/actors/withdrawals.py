"""Messages that end before their turn has committed: cancelled, or past their deadline, wherever they are."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Generator
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING

from understudy.actors import endings
from understudy.actors.activation import Activation
from understudy.actors.recovery import was_begun
from understudy.errors import NotRegistered, StateUndecodable, SystemClosed
from understudy.mailbox.connection import settle
from understudy.mailbox.envelope import Envelope

if TYPE_CHECKING:
    from understudy.actors.system import System


class Withdrawals:
    """Cancellations and deadlines of one system."""

    def __init__(self, system: System) -> None:
        self._system = system
        self.deadlines: dict[int, asyncio.TimerHandle] = {}
        self.withdrawn: set[int] = set()  # ended while they lay on disk: a read under way must not bring them back
        self._cancelling: dict[int, asyncio.Task[None]] = {}  # who cancels a message again joins
        self._reads: dict[int, None] = {}  # reads under way, oldest first
        self._read_last = 0
        self._unread: deque[tuple[int, int]] = deque()  # (last read begun before its row was gone, withdrawn message)

    def watch_deadline(self, envelope: Envelope, activation: Activation) -> None:
        """End the message when its deadline passes: its running turn, or its place in the mailbox."""
        assert envelope.head.deadline_at is not None

        def expire() -> None:
            self.deadlines.pop(envelope.no, None)
            turn = self._system.turns.get(envelope.no)
            if turn is not None:
                turn.stop("deadline")
            elif (
                activation.inbox
                and envelope in activation.inbox
                and not was_begun(envelope)  # Its journal is to be read first.
            ):
                activation.inbox.remove(envelope)
                endings.expire(activation, envelope)
                activation.pump()
            else:  # A timer, or in the part of a long mailbox that lies on disk.
                self._system.spawn(self._expire_waiting(envelope.no), "expire")

        delay_s = max(0.0, envelope.head.deadline_at - self._system.wall())
        self.deadlines[envelope.no] = self._system.loop.call_later(delay_s, expire)

    async def cancel(self, no: int) -> None:
        """Cancel a message wherever it is, and what its turn asked; nothing when it has ended.

        Goes to its end when its caller is cancelled: a message that was half withdrawn would be neither here nor there.

        Raises:
            NotRegistered: It waits for code that is not registered.
            SystemClosed: The system ended first; nothing was cancelled.
        """
        work = self._cancelling.get(no)
        if work is None:
            work = self._cancelling[no] = self._system.loop.create_task(self._cancel(no), name="understudy-cancel")
            work.add_done_callback(lambda _: self._cancelling.pop(no))
            self._system.keep_task(work)
        try:
            await settle(work)
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if work.cancelled() and not (task is not None and task.cancelling()):
                raise SystemClosed(
                    f"the system was closed before job {self._system.job_id(no)} was cancelled."
                ) from None
            raise

    async def _cancel(self, no: int) -> None:
        journal = self._system.journals.get(no)
        children = (
            [slot.child for slot in journal.slots.values() if slot.child and slot.outcome is None] if journal else []
        )
        turn = self._system.turns.get(no)
        if turn is not None:
            if turn.ended in (None, "failed", "parked"):
                if turn.stopped == "parked":
                    turn.stopped = None
                endings.cancel(turn.activation, turn.envelope)
                turn.stop("cancelled")
        elif (found := await self._take_waiting(no)) is not None:
            activation, envelope, asked = found
            endings.cancel(activation, envelope)
            activation.pump()
            children.extend(child for child in asked if child not in children)
        elif no in self._system.turns or self._system.ready.holds(no):
            await self._cancel(no)
            return
        for child in children:
            await self._cancel(child)

    async def _expire_waiting(self, no: int) -> None:
        try:
            await self.expire_waiting(no)
        except (NotRegistered, StateUndecodable):
            pass  # It waits for its code, or for the mending of its actor, and expires then.

    async def expire_waiting(self, no: int) -> None:
        """End a message whose deadline has passed, wherever it is; raises as `cancel` does."""
        found = await self._take_waiting(no)
        if found is not None:
            activation, envelope, _ = found
            endings.expire(activation, envelope)
            activation.pump()
        elif (turn := self._system.turns.get(no)) is not None:
            turn.stop("deadline")

    async def _take_waiting(self, no: int) -> tuple[Activation, Envelope, list[int]] | None:
        """Take a message whose turn does not run out of its mailbox or from among the timers, to be ended at once.

        Returns with it what its turn asked in an earlier life; None when there is no such message.
        """
        system = self._system
        await system.committer.wait_durable()
        envelope = (await system.store.message(no)).pending
        if envelope is None:
            return None
        activation = await system.population.of_no(envelope.actor)
        if activation is None:
            raise NotRegistered(
                f"job {system.job_id(no)} waits for code that is not registered; register it to cancel."
            )
        activation.reserved += 1  # It must not leave memory meanwhile.
        try:
            return await self._take_from(activation, envelope)
        finally:
            activation.reserved -= 1

    async def _take_from(
        self, activation: Activation, envelope: Envelope
    ) -> tuple[Activation, Envelope, list[int]] | None:
        system = self._system
        no = envelope.no
        # All reads come before the removal: who takes it ends it without an await between, so that nobody takes it twice.
        asked: list[int] = []
        if was_begun(envelope):
            asked = [child.no for child in await system.store.asked_by(no)]
            await system.recovery.read_journal(envelope)
        if no in system.turns or system.ready.holds(no) or no in self.withdrawn:
            return None
        queued = next((each for each in activation.inbox or () if each.no == no), None)
        if queued is not None:
            assert activation.inbox is not None
            activation.inbox.remove(queued)
            return activation, queued, asked
        # It lies among the timers or on disk only, or has ended since the read above. Nobody brings it in any more.
        self.withdrawn.add(no)
        taken = system.timers.withdraw(no) if envelope.due_at is not None else None
        if taken is None:
            waiter = system.asked.take_first(no)
            try:
                await system.committer.wait_durable()
                taken = (await system.store.message(no)).pending
            except BaseException:  # Also a cancellation: the message is to be found again.
                self.withdrawn.discard(no)
                if waiter is not None:
                    system.asked.add(no, waiter, envelope.actor)
                raise
            if taken is None:
                system.journals.pop(no, None)
                self._forget(no)
                return None
            taken.waiter = waiter
        system.committer.touch().after.append(partial(self._forget, no))  # The batch in which it ends.
        return activation, taken, asked

    @contextmanager
    def reading(self) -> Generator[None]:
        """Note that messages are read from disk and put into memory: until the end, none that was withdrawn comes in."""
        self._read_last += 1
        number = self._read_last
        self._reads[number] = None
        try:
            yield
        finally:
            del self._reads[number]
            self._forget_unread()

    def _forget(self, no: int) -> None:
        """Note that the row of a withdrawn message is gone: only reads that are under way may still have it."""
        self._unread.append((self._read_last, no))
        self._forget_unread()

    def _forget_unread(self) -> None:
        oldest = next(iter(self._reads), self._read_last + 1)
        while self._unread and self._unread[0][0] < oldest:
            self.withdrawn.discard(self._unread.popleft()[1])
