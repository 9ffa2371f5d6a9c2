"""Unfinished work of earlier lives: brought back lazily, and a message that kills the process is found out."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from understudy.actors.activation import Activation
from understudy.actors.waits import may_need
from understudy.events import MessageCrashed
from understudy.mailbox.envelope import Envelope

if TYPE_CHECKING:
    from understudy.actors.system import System

_FIRST_PAGE = 8  # actors; each further page is twice as large
_SUSPECTS_S = 0.05  # how often a suspect looks whether another one has ended


def was_begun(envelope: Envelope) -> bool:
    """Whether a turn of the message was started before it was read from disk."""
    return bool(envelope.started or envelope.crashes or envelope.attempts)


class Recovery:
    """What one system found when it was opened."""

    def __init__(self, system: System) -> None:
        self._system = system
        # The last one is charged with a crash; the others wait for it.
        self.suspects: list[tuple[Envelope, Activation]] = []

    def hold_if_recovered(self, envelope: Envelope, activation: Activation) -> None:
        """Let a message of an earlier life wait for its start mark, so that one that kills the process is found out."""
        old = envelope.no <= self._system.opening.last_message or was_begun(envelope)  # begun in this life and parked
        if old and envelope.hold is None:
            envelope.hold = "recovered"
        if envelope.head.deadline_at is not None and envelope.no not in self._system.withdrawals.deadlines:
            self._system.withdrawals.watch_deadline(envelope, activation)

    async def run(self) -> None:
        """Bring back actors with unfinished work, suspects first, some at a time."""
        for no in await self._system.store.suspects():
            await self._system.population.of_no(no)
        after = 0
        # Few at first, so that the first answers do not wait until the mail of hundreds has been read.
        page_size, page_max = _FIRST_PAGE, self._system.limits.recoveries_max
        while page := await self._system.store.waiting(after, min(page_size, page_max)):
            after = page[-1]
            page_size *= 2
            await self._system.population.bring_back(page)
            await self._system.committer.wait_durable()
            while self._system.population.live > self._system.limits.active_max and self._system.turn_tasks:
                await asyncio.wait(self._system.turn_tasks, return_when=asyncio.FIRST_COMPLETED)
                self._system.population.make_room()

    async def begin(self, envelope: Envelope, activation: Activation) -> None:
        """Mark a message of an earlier life as started, and read its journal back.

        A message that crashed the process before runs as the only suspect: another crash is charged to it alone.
        """
        crashed = envelope.crashes > 0
        if crashed:
            self._system.recorder.emit_for(
                envelope,
                MessageCrashed,
                kind=activation.type.kind,
                actor=activation.id,
                handler=envelope.handler,
                crashes=envelope.crashes,
            )
        if envelope.crashes >= self._system.limits.crashes_alone:
            await self._become_suspect(envelope, activation)
        await self.read_journal(envelope)
        if envelope not in (activation.inbox or ()):  # It was cancelled or expired meanwhile, and its row goes.
            self._system.journals.pop(envelope.no, None)
            return
        envelope.started = 2 if self.suspects and self.suspects[-1][0] is envelope else 1
        self._system.committer.touch().note_started(envelope)

    async def read_journal(self, envelope: Envelope) -> None:
        """Read back what the message's turn did in an earlier life, if it was begun."""
        if not was_begun(envelope):
            return
        # A child may end at any moment: what it answered before this journal existed is on disk after the wait, and
        # what it answers from here on is given to the journal. Read in this order, no answer falls between.
        journal = self._system.journal_of(envelope)
        await self._system.committer.wait_durable()
        children = await self._system.store.asked_by(envelope.no)
        for entry in await self._system.store.journal(envelope.no):
            journal.remember(entry)
        for child in children:
            assert child.caller_key is not None
            journal.expect(child.caller_key, child.no)
        if journal.slots:
            await self._system.ledgers.recall(envelope.no)
        await self._system.waits.restore(journal)

    async def _become_suspect(self, envelope: Envelope, activation: Activation) -> None:
        """Wait until no other suspect runs, or the one that runs waits for this actor: it would wait for ever."""
        while True:
            # One that was cancelled before its turn began, or whose actor is held, keeps nobody waiting.
            for each, where in list(self.suspects):
                under_way = each.no in self._system.turns or self._system.ready.holds(each.no)
                if not under_way and (where.status != "active" or each not in (where.inbox or ())):
                    self.suspect_ended(each)
            if not self.suspects or may_need(self.suspects[-1][1], activation):
                break
            await asyncio.sleep(_SUSPECTS_S)
        if self.suspects:
            self._charge(self.suspects[-1][0], 1)
        self.suspects.append((envelope, activation))

    def suspect_ended(self, envelope: Envelope) -> None:
        """Note that a suspect is over: the one before it is charged again."""
        self.suspects = [each for each in self.suspects if each[0] is not envelope]
        if self.suspects:
            self._charge(self.suspects[-1][0], 2)

    def _charge(self, envelope: Envelope, started: int) -> None:
        """Change whether a crash is charged to a suspect that has not got on: only one of them is."""
        if envelope.started > 0 and envelope.started != started:
            envelope.started = started
            self._system.committer.touch().note_started(envelope)
