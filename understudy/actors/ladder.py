"""Retry ladders of what runs inside a turn: a step, a model call, a tool call.

Each failed attempt that another one follows is a rung: journaled before the next attempt starts, so that a crash goes
on at the same rung, waits no longer than was decided, and amends nothing twice. What decides are rules; a decision
about more than the step ends the turn. Knows nothing of what is attempted.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Sequence
from itertools import chain
from typing import Any, NoReturn, Protocol

import msgspec

from understudy.actors import parking
from understudy.actors.turn import Turn
from understudy.codec import encode
from understudy.errors import LimitExceeded
from understudy.events import Amended
from understudy.mailbox.journal import Failure, Journal, Slot, storable
from understudy.supervisor.policy import NO_RULES, Decision, Past, Policy, decide, deciding_rule, is_held_back

_IN_PLACE = frozenset({"retry", "amend"})


class Rungs(msgspec.Struct, frozen=True, array_like=True):
    """A ladder as it is stored. `not_before` is wall time; `amended` the newest changed input, as its `Input` wrote it.

    `final` says of a step with a value that this was found wrong afterwards, and ended what it was for.
    """

    history: tuple[Past, ...] = ()
    not_before: float = 0.0
    delay_s: float = 0.0
    amended: bytes | None = None
    final: bool = False


class Input(Protocol):
    """What an amendment changes: how it sees the input, and how the changed one is stored and used."""

    async def given(self) -> Any:
        """Return the input of the attempt that failed, as amendments take it."""
        ...

    def stored(self, changed: Any) -> bytes:
        """Return the bytes of what an amendment returned; raises when it cannot be used."""
        ...

    def use(self, body: bytes) -> None:
        """Let the next attempt have the stored input."""
        ...


class Verdict(msgspec.Struct, frozen=True):
    """What becomes of one failed attempt, and the failure as it is journaled if nothing follows.

    `decision` is None when no rule is about this failure.
    """

    failure: Failure
    decision: Decision | None

    @property
    def again(self) -> bool:
        """Whether another attempt follows in this turn."""
        return self.decision is not None and self.decision.verb in _IN_PLACE

    @property
    def ends_turn(self) -> bool:
        """Whether the decision is about the whole turn."""
        decision = self.decision
        return decision is not None and not self.again and not decision.used_up and decision.verb != "answer"

    @property
    def tries_again(self) -> bool:
        """Whether another attempt follows that counts, of this or of the turn."""
        return self.decision is not None and self.decision.tries_again

    @property
    def verb(self) -> str:
        """What the trace says was decided; empty when the failure is the outcome."""
        return self.decision.verb if self.decision is not None and (self.again or self.ends_turn) else ""

    @property
    def reason(self) -> str:
        """Why, in words."""
        return self.decision.reason if self.decision is not None else ""

    @property
    def delay_s(self) -> float:
        """How long the next attempt waits."""
        return self.decision.delay_s if self.decision is not None and self.verb else 0.0


_decode = msgspec.msgpack.Decoder(Rungs).decode
_NONE = Rungs()


def rungs_of(journal: Journal, slot: Slot) -> Rungs:
    """Return how far the ladder of a step is; rungs that do not decode are none: the ladder begins anew."""
    body = journal.ladder(slot)
    if body is None:
        return _NONE
    try:
        return _decode(body)
    except msgspec.MsgspecError:
        return _NONE


def _broken_off(decision: Decision, error: Exception, failure: Failure, broken: Exception) -> Verdict:
    """Return the verdict that the failure is the outcome, because its amendment has failed too."""
    name = getattr(decision.amendment, "__name__", "amendment")
    why = f"{type(broken).__name__}: {broken}"
    note = f"The amendment {name} failed with {why}"
    error.add_note(note)
    failure = msgspec.structs.replace(failure, message=storable(f"{failure.message} ({note})"))
    reason = f"{decision.reason}, but {name} failed: {why}"
    return Verdict(failure, msgspec.structs.replace(decision, verb="answer", delay_s=0.0, reason=reason))


class Ladder:
    """The attempts of one step of a turn, across the lives of the process.

    `policies` are asked in order; an error that none of them names is the handler's to deal with.
    """

    __slots__ = ("policies", "rungs", "slot", "turn")

    def __init__(self, turn: Turn, slot: Slot, policies: Sequence[Policy]) -> None:
        self.turn = turn
        self.slot = slot
        self.policies = policies
        self.rungs = rungs_of(turn.ensure_journal(), slot)

    @property
    def attempt(self) -> int:
        """The number of the next attempt, from 1."""
        return len(self.rungs.history) + 1

    async def wait(self) -> None:
        """Return when the time of the next attempt has come; what led to it may still be on its way to the disk."""
        rungs = self.rungs
        if not rungs.not_before:
            return
        turn = self.turn
        system = turn.activation.system
        # By the wall clock, which goes on between two lives; but a clock that was set back doubles no wait.
        delay_s = min(rungs.not_before - system.wall(), rungs.delay_s)
        if delay_s > 0:
            if turn.envelope.started == 1:  # It waits: a crash meanwhile is not charged to the message.
                turn.envelope.started = -1
                system.committer.touch().note_started(turn.envelope)
            with parking.busy(turn):
                await asyncio.sleep(delay_s)

    async def judge(self, error: Exception, failure: Failure, by: Input | None = None) -> Verdict:
        """Decide about a failed attempt, and journal the rung when another one follows.

        An amendment that fails, or whose result cannot be stored or used, leaves the failure as the outcome.
        """
        if failure.kind == "declared" or failure.type == "OutcomeUnknown":
            return Verdict(failure, None)
        rules = [*chain(*self.policies)]
        policy = Policy(*rules)
        rule = deciding_rule(policy, error)
        if not 0 <= rule < len(rules):
            return Verdict(failure, None)  # The handler deals with it.
        decision = decide(policy, error, self.rungs.history, default=NO_RULES)
        amended = self.rungs.amended
        if decision.amendment is not None:
            try:
                amended = await self._amend(decision, error, by)
            except Exception as broken:
                return _broken_off(decision, error, failure, broken)
        verdict = Verdict(failure, decision)
        if verdict.again or decision.tries_again:
            history = (*self.rungs.history, Past(failure.type, rule, made=not is_held_back(error)))
            # Of a new attempt of the turn the message itself knows when it starts.
            delay_s = decision.delay_s if verdict.again else 0.0
            until = self.turn.activation.system.wall() + delay_s if delay_s else 0.0
            self.climb(Rungs(history, until, delay_s, amended), decision.reason, lasts=not verdict.again)
        if by is not None and decision.amendment is not None:
            assert amended is not None
            by.use(amended)
        return verdict

    async def _amend(self, decision: Decision, error: Exception, by: Input | None) -> bytes:
        assert decision.amendment is not None
        if by is None:
            raise TypeError("there is no input that could be amended here")
        changed = decision.amendment(await by.given(), error)
        if inspect.isawaitable(changed):
            changed = await changed
        body = by.stored(changed)
        limit = self.turn.activation.system.limits.payload_bytes
        if len(body) > limit:
            raise LimitExceeded(
                f"the amended input is {len(body)} bytes, more than Limits.payload_bytes={limit}.",
                limit="payload_bytes",
                value=len(body),
                value_max=limit,
            )
        return body

    def climb(self, rungs: Rungs, why: str, *, lasts: bool = False) -> None:
        """Journal how far the ladder is, in the open batch."""
        self.rungs = rungs
        turn = self.turn
        if turn.is_fenced():
            return  # Abandoned: another attempt may climb the same ladder now.
        ladder = turn.ensure_journal().climb(self.slot, encode(rungs), why, lasts=lasts)
        assert ladder.outcome is not None
        turn.write(ladder, ladder.outcome)

    def keep(self) -> None:
        """Keep the ladder with the value that the step has now, in the open batch; later calls may count on it."""
        turn = self.turn
        if self.rungs == _NONE or turn.is_fenced():
            return
        ladder = turn.ensure_journal().keep_ladder(self.slot)
        if ladder is not None:
            assert ladder.outcome is not None
            turn.write(ladder, ladder.outcome)

    def tell_amended(self, verdict: Verdict, span: str | None = None) -> None:
        """Tell the trace that the next attempt has a changed input."""
        decision = verdict.decision
        if decision is not None and decision.verb == "amend":
            name = getattr(decision.amendment, "__name__", "amended")
            self.turn.emit(Amended, span=span, parent=self.turn.span, amendment=name, reason=decision.reason)

    def conclude(self, verdict: Verdict, error: Exception) -> NoReturn:
        """End the attempt of the whole turn, as was decided."""
        assert verdict.decision is not None
        self.turn.conclude(verdict.decision, error)
