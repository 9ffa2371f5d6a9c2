"""What a person decides while no process runs: approvals, held actors, budgets. The next opening goes on from it.

Each writes in one commit what a running system would have: the outcome of a wait into the journal of its message, the
actor's status, the ledger with its new limits. Whether the actor's state still decodes is found when it is next loaded.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import msgspec

from understudy.actors.approvals import DECIDED, Decision, already_decided
from understudy.actors.holding import HELD, Held, decode_held, held_id, is_over, no_run
from understudy.actors.limits import Limits
from understudy.actors.open_ledger import LEDGER, WORKFLOW, decode_ledger, run_ledger
from understudy.actors.outside import KIND, decode_wait, no_approval, record_id
from understudy.codec import decode_or_suspend, encode
from understudy.endpoint.ledger import Ledger
from understudy.errors import NotFound
from understudy.events import ActorResumed, BudgetRaised, TraceEvent, WaitEnded
from understudy.mailbox.commit import Batch, Record
from understudy.mailbox.journal import JournalEntry, Outcome
from understudy.mailbox.letters import name_of, number_of
from understudy.mailbox.store import Opening, Store

_PAGE = 500


class _Whose(msgspec.Struct, frozen=True):
    """Where the trace is told of a budget, and whether what it belongs to has ended."""

    name: str
    correlation: str
    span: str
    parent: str | None
    is_over: bool


class Unattended:
    """A store that is open, and that no system runs on; every method is one commit. *at* is the wall time."""

    def __init__(self, store: Store, opening: Opening, at: float) -> None:
        self._store = store
        self._opening = opening
        self._at = at
        self._batches = 0

    def _batch(self) -> Batch:
        self._batches += 1
        return Batch(self._batches)

    async def decide(self, id: str, *, approved: bool, reason: str) -> None:
        """Decide about a call that waits for a person.

        Raises:
            AlreadyDecided: Somebody was quicker.
            NotFound: There is no such approval, or who called the tool has ended.
        """
        try:
            record = record_id(number_of(id, self._opening.store_id))
        except NotFound as error:
            raise no_approval(id) from error
        stored = await self._store.record(KIND, record)
        wait = None if stored is None else decode_or_suspend(decode_wait, stored.body, f"the wait {id}")
        envelope = None if wait is None else (await self._store.message(wait.message)).pending
        if wait is None or wait.kind != "approval" or envelope is None:
            raise already_decided(id, await self._store.record(DECIDED, record))
        batch = self._batch()
        decision = encode(Decision(approved, reason, self._at))
        batch.journal[wait.message, wait.key] = JournalEntry(
            wait.message, wait.key, Outcome(value=decision), wait.after
        )
        batch.drop(KIND, record)
        until = self._at + Limits().result_ttl_s  # Only the program knows its own.
        batch.put(Record(DECIDED, record, decision, record_id(wait.message), until))
        batch.woken.append(envelope.actor)
        batch.work += 2
        self._tell(
            batch,
            WaitEnded,
            wait.correlation,
            str(wait.message),
            envelope.head.parent,
            wait=name_of(int(record), self._opening.store_id),
            name=wait.name,
            outcome="approved" if approved else "rejected",
            reason=reason,
        )
        await self._store.commit(batch)

    async def resume(self, kind: str, id: str) -> None:
        """Let an actor go on that is suspended or has stopped; nothing is done with one that is neither.

        Raises:
            NotFound: There is no such actor.
        """
        (actor,) = await self._store.load([(kind, id)], 0)
        if actor is None:
            raise NotFound(f"there is no actor {kind}/{id} in this store.")
        if actor.status in ("suspended", "stopped"):
            batch = self._batch()
            self._revive(batch, actor.no, kind, id)
            await self._store.commit(batch)

    async def raise_budget(self, id: str, limits: dict[str, Any]) -> None:
        """Set higher limits of a job's runs, or of a workflow ("workflow:name"); who they hold goes on.

        Raises:
            InvalidArguments: A limit is lower than before, or there was none, or nothing can go on by it.
            NotFound: It has no budget, or what was kept of it has expired.
        """
        whose = _Whose(id, id, id, None, is_over=False) if id.startswith(WORKFLOW) else await self._job(id)
        records = await self._ledgers(whose.name)
        if not records:
            raise no_run(id)
        batch = self._batch()
        is_holding = False
        for record in records:
            state = decode_or_suspend(decode_ledger, record.body, f"the ledger {record.id}").raised(**limits)
            warned = state.warned & self._reached(record.id, state)
            state = msgspec.structs.replace(state, warned=warned, used_at=self._at)
            batch.put(Record(LEDGER, record.id, encode(state), record.owner, record.expires_at))
            self._tell(batch, BudgetRaised, whose.correlation, whose.span, whose.parent, budget=record.id)
            async for held in self._held_by(record.id):
                is_holding = True
                batch.drop(HELD, held_id(record.id, held.actor))
                (row,) = await self._store.actors(None, held.actor - 1, 1) or (None,)
                if row is not None and row.no == held.actor and (row.status, row.reason) == ("suspended", held.reason):
                    self._revive(batch, row.no, row.kind, row.id)
        if whose.is_over and not is_holding:
            raise is_over(id)
        await self._store.commit(batch)

    async def _job(self, id: str) -> _Whose:
        try:
            no = number_of(id, self._opening.store_id)
        except NotFound as error:
            example = name_of(17, self._opening.store_id)
            raise NotFound(f"{id!r} is no job of this store; expected an id like {example!r}.") from error
        where = await self._store.message(no)
        envelope = where.pending or (where.dead.envelope if where.dead is not None else None)
        head = envelope.head if envelope is not None else None
        known = where.result.correlation if where.result is not None else head.correlation if head is not None else ""
        name = name_of(no, self._opening.store_id)
        return _Whose(name, known or name, str(no), head.parent if head is not None else None, is_over=envelope is None)

    async def _ledgers(self, id: str) -> list[Record]:
        """Return the records of the ledgers of a workflow, or of the runs of a job."""
        found: list[Record] = []
        while (record := await self._store.record(LEDGER, run_ledger(id, len(found)))) is not None:
            found.append(record)
            if id.startswith(WORKFLOW):
                break
        return found

    def _reached(self, ledger: str, state: Ledger) -> frozenset[str]:
        elapsed_s = max(0.0, self._at - state.opened_at) if ledger.startswith(WORKFLOW) else state.elapsed_s
        return frozenset(each.limit for each in state.nearly_reached(elapsed_s))

    async def _held_by(self, ledger: str) -> AsyncIterator[Held]:
        after = ""
        while page := await self._store.records(HELD, ledger, after, _PAGE):
            after = page[-1].id
            for each in page:
                yield decode_held(each.body)

    def _revive(self, batch: Batch, no: int, kind: str, id: str) -> None:
        batch.statuses[no] = ("active", "")
        batch.work += 1
        name = f"actor {kind}/{id}"
        self._tell(batch, ActorResumed, name, name, None, kind=kind, actor=id)

    def _tell(
        self,
        batch: Batch,
        event: type[TraceEvent],
        correlation: str,
        span: str,
        parent: str | None,
        **facts: Any,
    ) -> None:
        told = event(at=self._at, correlation=correlation, span=span, parent=parent, life=self._opening.epoch, **facts)
        batch.tell(told.at, correlation, encode(told))
