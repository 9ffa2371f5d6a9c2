"""What the model calls of one run spend: set aside before each call, booked when it has ended.

A run draws on its own ledger and on all those of the scope in which its message was sent; what it sends draws on both.
Knows nothing of how a call is retried or journaled.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from datetime import UTC, datetime
from types import TracebackType
from typing import Self

import msgspec

from understudy.actors.holding import held_by, whose
from understudy.actors.ledgers import Ledgers
from understudy.actors.open_ledger import OpenLedger, Reservation, ledgers_of, scope_of
from understudy.actors.target import ActorTarget
from understudy.actors.turn import Turn, run_scope, scope
from understudy.endpoint import charges
from understudy.endpoint.budget import Budget
from understudy.endpoint.ledger import NOTHING, Amount
from understudy.endpoint.model import ChatMessage, ModelAnswer, ModelRequest, Text
from understudy.endpoint.sending import on_send
from understudy.errors import ActorSuspended, BudgetExceeded, ModelFailure, RequestRejected, StateUndecodable
from understudy.mailbox.journal import Journal

_NO_BUDGET = Budget()


class Spending:
    """What run number *number* of a turn spends; used as `async with`, while the run runs."""

    def __init__(self, turn: Turn, number: int, budget: Budget | None) -> None:
        self._turn = turn
        self._number = number
        self._budget = budget or _NO_BUDGET
        self._chain: list[OpenLedger] = []  # outermost first
        self._leaving = AsyncExitStack()

    @property
    def _ledgers(self) -> Ledgers:
        return self._turn.activation.system.ledgers

    async def __aenter__(self) -> Self:
        turn, ledgers = self._turn, self._ledgers
        around = ledgers_of(turn.envelope.head.scope)
        try:
            for id in around:
                # One that is gone was not used for as long as results are kept: what is left of its chain still counts.
                if (ledger := await ledgers.find(id)) is not None:
                    self._keep(ledger)
            journal: Journal = turn.ensure_journal()
            mine = await ledgers.of_run(turn.envelope, self._number, self._budget, begun=journal.replaying)
            self._keep(mine)
        except StateUndecodable as error:
            # Its actor is held: nobody knows what was spent, and a handler has no part in that.
            turn.ensure_journal().undecodable = error
            turn.ended = turn.ended or "suspended"
            await self._leaving.aclose()
            raise
        except BaseException:  # A cancellation as well: the ledgers that are held already are let go.
            await self._leaving.aclose()
            raise
        self._leaving.enter_context(ledgers.running(mine))
        token = run_scope.set(scope_of([*around, mine.id]))
        self._leaving.callback(run_scope.reset, token)
        return self

    async def __aexit__(
        self, error_type: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self._leaving.aclose()

    def _keep(self, ledger: OpenLedger) -> None:
        self._ledgers.keep(ledger)
        self._leaving.callback(self._ledgers.release, ledger)
        self._chain.append(ledger)

    def call(
        self,
        request: Callable[[], Awaitable[ModelRequest]],
        send: Callable[[ModelRequest], Awaitable[ModelAnswer]],
    ) -> PaidCall:
        """Return one model call of the run: its `gate` goes before an attempt, its `call` is the attempt's body."""
        return PaidCall(self, request, send)

    def noted(self, request: ModelRequest) -> ModelRequest:
        """Return the request with a note for the model when a limit is nearly reached; nobody stores that note."""
        rows = self._ledgers.nearly_spent(self._chain)
        if not rows:
            return request
        last = next((no for no in reversed(range(len(request.messages))) if request.messages[no].role == "user"), None)
        if last is None:
            return request
        left = "; ".join(f"{row.left} of the {whose(ledger.id)}" for ledger, row in rows)
        note = Text(
            f"[Budget: {left}. Finish now: give your final answer with what you have, and call no tool that you can do without.]"
        )
        asked = request.messages[last]
        messages = [*request.messages]
        messages[last] = ChatMessage(asked.role, [*asked.content, note])
        return msgspec.structs.replace(request, messages=messages)

    async def reserve(self, request: ModelRequest) -> Reservation:
        """Set aside what the call may cost at most, in the open batch; waits while calls under way take its place.

        Raises:
            BudgetExceeded: It does not fit beside what is spent.
            RequestRejected: Its price is not known, and a budget counts money.
        """
        amount = charges.most(request, self._now())
        if amount.unpriced and any(each.state.budget.usd is not None for each in self._chain):
            raise RequestRejected(
                f"nobody knows what model {request.model!r} costs, and a budget with usd= counts it; nothing was sent. "
                "Use a model whose price is known, or limit tokens= and model_calls= instead.",
                sent=False,
            )
        self._ledgers.warn(self._chain, self._turn.envelope)
        return await self._ledgers.reserve(self._chain, amount)

    def settle(self, reservation: Reservation, spent: Amount, unknown: Amount = NOTHING) -> None:
        """Book what a call has used instead of what was set aside for it, in the open batch; once."""
        nearly = self._ledgers.settle(reservation, spent, unknown)
        self._ledgers.warn(nearly, self._turn.envelope)

    def used_by_answer(
        self, request: ModelRequest, answer: ModelAnswer, reservation: Reservation
    ) -> tuple[Amount, Amount]:
        """Return what an answered call has used at most, and the part that nobody told."""
        return charges.used_by_answer(request, answer.usage, reservation.amount, self._now())

    def used_by_failure(
        self, request: ModelRequest, failure: ModelFailure, reservation: Reservation
    ) -> tuple[Amount, Amount]:
        """Return what a failed call has used at most, and the part that nobody told."""
        return charges.used_by_failure(request, failure, reservation.amount, self._now())

    async def held_below(self, target: ActorTarget, error: ActorSuspended) -> BudgetExceeded | None:
        """Return the error of this run when a ledger that it draws on too holds the actor that it has asked."""
        held = await held_by(self._turn.activation.system, target, [each.id for each in self._chain])
        if held is None:
            return None
        ledger, below = held
        return BudgetExceeded(
            f"{target.name} is held by a budget of this run too: {error.reason}", budget=ledger, below=below + 1
        )

    def _now(self) -> datetime:
        return datetime.fromtimestamp(self._turn.activation.system.wall(), UTC)


class PaidCall:
    """One model call, attempt by attempt."""

    def __init__(
        self,
        spending: Spending,
        request: Callable[[], Awaitable[ModelRequest]],
        send: Callable[[ModelRequest], Awaitable[ModelAnswer]],
    ) -> None:
        self._spending = spending
        self._make = request
        self._send = send
        self._request: ModelRequest | None = None
        self._reservation: Reservation | None = None
        self._sent = False
        self._refused: Exception | None = None

    async def gate(self) -> None:
        """Set aside what the attempt may cost, in the commit that the attempt waits for.

        What refuses it is raised by `call`: it is the attempt's failure, about which the policy decides.
        """
        self._sent = False
        self._refused = None
        if (view := scope.get()) is not None:
            view.places.clear()  # Each attempt gets the same names, also when the instructions are made here.
        try:
            request = self._request = await self._make()
            self._reservation = await self._spending.reserve(request)
        except Exception as error:
            self._refused = error

    async def call(self) -> ModelAnswer:
        """Make the attempt, and book what it has used in the batch in which its outcome is journaled."""
        if self._refused is not None:
            raise self._refused
        request, reservation = self._request, self._reservation
        assert request is not None
        assert reservation is not None
        if not reservation.open:
            raise RuntimeError("a model call is made whose reservation was given back")
        token = on_send.set(self._told_sent)
        try:
            answer = await self._send(request)
        except ModelFailure as failure:
            self._spending.settle(reservation, *self._spending.used_by_failure(request, failure, reservation))
            raise
        except BaseException:  # A cancellation as well: nobody else will book what was set aside.
            self.close()
            raise
        finally:
            on_send.reset(token)
        self._spending.settle(reservation, *self._spending.used_by_answer(request, answer, reservation))
        return answer

    def close(self) -> None:
        """Settle what is still set aside: nothing when the call never left, all when nobody knows what became of it."""
        reservation = self._reservation
        if reservation is not None and reservation.open:
            spent = reservation.amount if self._sent else NOTHING
            self._spending.settle(reservation, spent, spent)

    def _told_sent(self) -> None:
        self._sent = True
