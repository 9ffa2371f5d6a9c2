"""Outcomes that are kept: of `submit` and keyed messages. Waits for them, tells their status, cancels them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import TYPE_CHECKING, Any

import msgspec

from understudy.actors import asking, keys, parking
from understudy.actors.activation import closed_error
from understudy.actors.approval import Approval
from understudy.actors.failures import to_error
from understudy.actors.holding import holds_any, is_over, no_run, raise_limits
from understudy.actors.job import JobStatus
from understudy.actors.recovery import was_begun
from understudy.actors.turn import scope
from understudy.actors.waiters import Waiters
from understudy.actors.workflow import spent_of
from understudy.codec import decode_or_suspend
from understudy.errors import InvalidArguments, NotFound
from understudy.events import StreamEvent
from understudy.mailbox.commit import Batch, KeptResult
from understudy.mailbox.journal import Outcome

if TYPE_CHECKING:
    from understudy.actors.activation import Activation
    from understudy.actors.system import System
    from understudy.mailbox.envelope import Envelope


class Jobs:
    """The jobs of one system."""

    def __init__(self, system: System) -> None:
        self._system = system
        self.reset()

    def reset(self) -> None:
        """Forget everything: the system is opened anew."""
        self._fresh: dict[int, Outcome] = {}  # finished, not on disk yet
        self._waiters = Waiters()

    # --- called by turns -------------------------------------------------------------------------------------------

    def keep(self, batch: Batch, activation: Activation, envelope: Envelope, outcome: Outcome, state: str) -> None:
        """Store the outcome with the batch, and give it to those who wait once it is durable."""
        system = self._system
        no = envelope.no
        dead = outcome.failure is not None and outcome.failure.dead_letter is not None
        if not dead:  # A dead letter is its own record.
            now = system.wall()
            digest = b""
            key = envelope.key if state != "cancelled" else None  # A cancelled key is free again.
            if key is not None:
                wire = activation.type.handlers[envelope.handler].wire
                digest = wire.digest(wire.decode(envelope.body))
            batch.results[no] = KeptResult(
                no,
                envelope.actor,
                envelope.handler,
                key,
                digest,
                outcome,
                state,
                now,
                now + system.limits.result_ttl_s,
                system.recorder.correlation_of(envelope),
            )
        self._fresh[no] = outcome
        system.open_jobs.pop(no, None)
        for waiter in self._waiters.take(no):
            system.committer.release(waiter, outcome)

        def durable() -> None:
            self._fresh.pop(no, None)
            system.streams.finished(no)
            if envelope.key is not None:
                activation.on_disk = True
                keys.purge_keys(activation)

        batch.after.append(durable)

    def actor_suspended(self, activation: Activation, error: Exception) -> None:
        """Tell those who wait for a message of this actor that it is held."""
        for waiter in self._waiters.take_actor(activation.no):
            self._system.committer.release(waiter, error)
        self._system.streams.actor_held(activation.no, error)

    def has_ended(self, no: int) -> bool:
        """Whether the message has finished and its outcome is on its way to the disk."""
        return no in self._fresh

    def refuse_all(self, error: BaseException) -> None:
        """Give up every wait: the system ends."""
        for waiter in self._waiters.everybody():
            if not waiter.done():
                waiter.set_exception(error)
                waiter.exception()
        self._waiters = Waiters()

    # --- called by users -------------------------------------------------------------------------------------------

    async def wait_job(self, id: str, returns: Any) -> Any:
        """Return the job's decoded result, or raise its failure."""
        system = self._system
        system.check_usable()
        turn = scope.get()
        no = self._given(id)
        if turn is None or turn.activation.system is not system:
            return self._open(await self.outcome(no), id, returns)
        turn.check(f"waiting for job {id}")
        return self._open(await asking.wait_job(turn, id, no), id, returns)

    def _open(self, outcome: Outcome, id: str, returns: Any) -> Any:
        if outcome.value is not None:
            return decode_or_suspend(self._system.registry.decoder(returns), outcome.value, f"the result of job {id}")
        assert outcome.failure is not None
        raise to_error(outcome.failure, f"job {id}", self._system.registry.declared_errors())

    async def outcome(self, no: int) -> Outcome:
        """Return the outcome of a kept message once it is durable.

        Raises:
            ActorSuspended: Its actor is held.
            ActorStopped: Its actor has stopped; the message is kept.
            NotFound: Nothing is known of it (any more).
            SystemClosed: The system has ended; the outcome can be awaited in its next life.
        """
        waiter: asyncio.Future[Outcome] = self._system.loop.create_future()
        self._waiters.add(no, waiter)
        try:
            found = await self.find(no, lambda actor: self._waiters.locate(no, actor))
            return found if found is not None else await waiter
        finally:
            self._waiters.leave(no, waiter)

    async def find(self, no: int, locate: Callable[[int], None]) -> Outcome | None:
        """Return the durable outcome of a kept message; None while it is still to come.

        *locate* is told whose message it is; who waits is told the rest from then on. Raises as `outcome` does.
        """
        system = self._system
        if system.failure is not None:
            raise system.failure
        if not system.usable:  # Nobody would tell of the end a second time.
            raise closed_error()
        fresh = self._fresh.get(no)
        if fresh is not None:
            await system.committer.wait_durable()
            return fresh
        if no not in system.open_jobs:
            await system.committer.wait_durable()
            return await self._look_up(no, locate)
        actor = system.open_jobs[no]
        locate(actor)
        activation = system.population.by_no(actor)
        if activation is not None and (refusal := activation.unavailable()) is not None:
            raise refusal
        return None

    async def _look_up(self, no: int, locate: Callable[[int], None]) -> Outcome | None:
        system = self._system
        where = await system.store.message(no)
        if where.result is not None:
            return where.result.outcome
        if where.dead is not None:
            return Outcome(failure=where.dead.failure)
        if no in self._fresh:
            await system.committer.wait_durable()
            return self._fresh.get(no) or await self._look_up(no, locate)
        if where.pending is None:
            if no in system.open_jobs:
                locate(system.open_jobs[no])
                return None
            raise self._not_found(no)
        if not where.pending.head.keep:
            raise NotFound(
                f"job {system.job_id(no)} was no job: its message was told or asked without a key, and no outcome of it is "
                "kept; use submit()."
            )
        locate(where.pending.actor)
        activation = await system.population.of_no(where.pending.actor)
        if activation is not None and (refusal := activation.unavailable()) is not None:
            raise refusal
        return None

    def _given(self, id: str) -> int:
        no = self._system.message_no(id)
        if no > self._system.last_message:
            raise self._not_found(no)
        return no

    def _not_found(self, no: int) -> NotFound:
        system = self._system
        id = system.job_id(no)
        if no > system.last_message:
            return NotFound(f"job {id} was never given by this store.")
        return NotFound(
            f"job {id} has no outcome: it was no job, or it finished and its outcome expired "
            f"(Limits.result_ttl_s={system.limits.result_ttl_s:.0f})."
        )

    async def correlation(self, id: str) -> str:
        """Return the root of the tree that the message belongs to, or *id* when nothing is known of it."""
        try:
            where = await self._system.store.message(self._system.message_no(id))
        except NotFound:
            return id
        if where.result is not None:
            return where.result.correlation
        envelope = where.pending or (where.dead.envelope if where.dead is not None else None)
        return self._system.recorder.correlation_of(envelope) if envelope is not None else id

    async def job_status(self, id: str) -> JobStatus:
        """Return where the job is, and what it has cost."""
        self._system.check_usable()
        no = self._given(id)
        status = await self._status(no)
        runs = [each.state for each in await self._system.ledgers.of_message(no)]
        return msgspec.structs.replace(status, usd=spent_of(runs).usd) if runs else status

    async def raise_job(self, id: str, limits: dict[str, Any]) -> None:
        """Set higher limits of the budgets of the runs that the message's turn has made."""
        system = self._system
        system.check_usable()
        no = self._given(id)
        ledgers = await system.ledgers.of_message(no)
        if not ledgers:
            raise no_run(id)
        if await self._is_over(no) and not await holds_any(system, ledgers):
            raise is_over(id)
        for ledger in ledgers:
            system.ledgers.keep(ledger)
        try:
            await raise_limits(system, ledgers, await self.correlation(id), str(no), **limits)
        finally:
            for ledger in ledgers:
                system.ledgers.release(ledger)

    async def _is_over(self, no: int) -> bool:
        """Whether a message has ended for good; what a dead letter may spend counts when it is redelivered."""
        await self._system.committer.wait_durable()
        where = await self._system.store.message(no)
        return no not in self._system.turns and where.pending is None and where.dead is None

    async def _status(self, no: int) -> JobStatus:
        system = self._system
        fresh = self._fresh.get(no)
        if fresh is not None:
            await system.committer.wait_durable()
            return _ended(fresh, None)
        turn = system.turns.get(no)
        if turn is not None:
            reason = parking.reason_of(turn)
            return JobStatus("waiting" if turn.ended or reason is not None else "running", reason)
        await system.committer.wait_durable()
        where = await system.store.message(no)
        if where.result is not None:
            return _ended(where.result.outcome, where.result.state)
        if where.dead is not None:
            return _ended(Outcome(failure=where.dead.failure), None)
        if no in system.turns:
            return JobStatus("running")
        if where.pending is None:
            raise self._not_found(no)
        activation = system.population.by_no(where.pending.actor) or await system.population.of_no(where.pending.actor)
        if activation is not None and activation.status == "suspended":
            return JobStatus("suspended", activation.reason)
        if activation is not None and activation.status == "waiting" and was_begun(where.pending):
            return JobStatus("waiting", activation.reason)
        due_at = where.pending.due_at or where.pending.not_before
        if due_at is not None and due_at > system.wall():
            return JobStatus("waiting")
        return JobStatus("queued")

    def stream_job(self, id: str) -> AsyncIterator[StreamEvent]:
        """Return a stream of what the job does."""
        system = self._system
        system.check_usable()
        turn = scope.get()
        if turn is not None and turn.activation.system is system:
            raise InvalidArguments(
                f"job {id} cannot be streamed inside a turn: a stream is not durable, and a turn delivered again would see "
                "another one. Await the job."
            )
        return system.streams.listen(self._given(id))

    async def job_approvals(self, id: str) -> list[Approval]:
        """Return the approvals that the job, and what it caused, wait for."""
        system = self._system
        system.check_usable()
        no = self._given(id)
        await system.committer.wait_durable()
        correlation = await self.correlation(id)
        if correlation != id:  # It is not the root of its tree, which has others beside it: those of its workflow, say.
            return await system.decisions.below(no, correlation)
        return await system.decisions.pending(correlation)

    async def cancel_job(self, id: str) -> None:
        """Cancel a message that has not finished; returns once that is durable."""
        system = self._system
        system.check_usable()
        no = self._given(id)
        turn = scope.get()
        if turn is not None and turn.activation.system is system:
            turn.check(f"cancelling job {id}")
            if turn.no == no:
                raise InvalidArguments("a turn cannot cancel its own message; raise a declared error instead.")
        await system.withdrawals.cancel(no)
        if turn is None:
            await system.committer.wait_durable()


def _ended(outcome: Outcome, state: str | None) -> JobStatus:
    failure = outcome.failure
    if failure is None:
        return JobStatus("done")
    if state == "cancelled" or failure.type == "JobCancelled":
        return JobStatus("cancelled", failure.message)
    return JobStatus("failed", f"{failure.type}: {failure.message}")
