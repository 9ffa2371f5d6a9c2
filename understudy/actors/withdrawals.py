"""Messages that end before their turn has committed: cancelled, or past their deadline, wherever they are."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from understudy.actors import endings
from understudy.actors.activation import Activation
from understudy.errors import NotRegistered, StateUndecodable
from understudy.mailbox.envelope import Envelope

if TYPE_CHECKING:
    from understudy.actors.system import System


class Withdrawals:
    """Cancellations and deadlines of one system."""

    def __init__(self, system: System) -> None:
        self._system = system
        self.deadlines: dict[int, asyncio.TimerHandle] = {}
        self.withdrawn: set[int] = set()  # ended while they lay on disk: a read under way must not bring them back

    def watch_deadline(self, envelope: Envelope, activation: Activation) -> None:
        """End the message when its deadline passes: its running turn, or its place in the mailbox."""
        assert envelope.head.deadline_at is not None

        def expire() -> None:
            self.deadlines.pop(envelope.no, None)
            turn = self._system.turns.get(envelope.no)
            if turn is not None:
                turn.stop("deadline")
            elif activation.inbox and envelope in activation.inbox:
                activation.inbox.remove(envelope)
                endings.expire(activation, envelope)
                activation.pump()
            else:  # A timer, or in the part of a long mailbox that lies on disk.
                self._system.spawn(self._expire_waiting(envelope.no), "expire")

        delay_s = max(0.0, envelope.head.deadline_at - self._system.wall())
        self.deadlines[envelope.no] = self._system.loop.call_later(delay_s, expire)

    async def cancel(self, no: int) -> None:
        """Cancel a message wherever it is, and what its turn asked; nothing when it has ended."""
        journal = self._system.journals.get(no)
        children = (
            [slot.child for slot in journal.slots.values() if slot.child and slot.outcome is None] if journal else []
        )
        turn = self._system.turns.get(no)
        if turn is not None:
            if turn.ended in (None, "failed"):
                endings.cancel(turn.activation, turn.envelope)
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
            children = await self._system.store.asked_by(no) if envelope.started or envelope.crashes else []
            endings.cancel(activation, envelope)
            activation.pump()
            for child in children:
                await self.cancel(child.no)
        elif no in self._system.turns:
            await self.cancel(no)

    async def _expire_waiting(self, no: int) -> None:
        try:
            found = await self._take_waiting(no)
        except (NotRegistered, StateUndecodable):
            return  # It waits for its code, or for the mending of its actor, and expires then.
        if found is not None:
            activation, envelope = found
            endings.expire(activation, envelope)
            activation.pump()
        elif (turn := self._system.turns.get(no)) is not None:
            turn.stop("deadline")

    async def _take_waiting(self, no: int) -> tuple[Activation, Envelope] | None:
        """Take a message that has not started out of its mailbox or from among the timers; None when there is none."""
        await self._system.committer.wait_durable()
        envelope = (await self._system.store.message(no)).pending
        if envelope is None:
            return None
        activation = await self._system.population.of_no(envelope.actor)
        if activation is None:
            raise NotRegistered(
                f"job {self._system.job_id(no)} waits for code that is not registered; register it to cancel."
            )
        if no in self._system.turns or no in self.withdrawn:
            return None
        queued = next((each for each in activation.inbox or () if each.no == no), None)
        if queued is not None:
            assert activation.inbox is not None
            activation.inbox.remove(queued)
            return activation, queued
        delayed = self._system.timers.withdraw(no) if envelope.due_at is not None else None
        if delayed is not None:
            return activation, delayed
        # It lies on disk only, or it has ended since the read above. Nobody brings it in any more: look again.
        self.withdrawn.add(no)
        await self._system.committer.wait_durable()
        envelope = (await self._system.store.message(no)).pending
        if envelope is None:
            return None
        envelope.waiter = self._system.asked.pop(no, (0, None))[1]
        return activation, envelope
