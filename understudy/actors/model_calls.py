"""The model calls of one run: each is a step, answered once and paid once, whatever crashes.

Calls are matched by their number in the run: a date in the instructions or an edited docstring re-buys nothing. What
`call_policy` says about a failed call, and about an answer that cannot be used, is a ladder of that call or the next.
"""

from __future__ import annotations

import functools
import itertools
from datetime import UTC, datetime
from typing import Any, cast

import msgspec

from understudy.actors import conversation
from understudy.actors.changes import Changes
from understudy.actors.conversation import Conversation
from understudy.actors.failures import to_failure
from understudy.actors.ladder import Ladder, Rungs, Verdict, rungs_of
from understudy.actors.performing import Spec, perform
from understudy.actors.requests import NextRequest, Requests
from understudy.actors.sendings import Sendings
from understudy.actors.turn import Turn
from understudy.actors.witness import Witness
from understudy.codec import encode
from understudy.endpoint.model import ModelAnswer, ModelRequest
from understudy.endpoint.prices import cost_micros
from understudy.errors import MalformedOutput, ModelFailure
from understudy.events import ModelCalled
from understudy.mailbox.journal import Slot
from understudy.supervisor.policy import Policy, Rule, on


class ModelCalls:
    """The model calls of run number *run* of a turn; `call_policy` decides about their failures."""

    def __init__(self, requests: Requests, run: int, call_policy: Policy) -> None:
        self._requests = requests
        self._conversation: Conversation = requests.conversation
        self._turn: Turn = requests.turn
        self._registry = requests.registry
        self._run = run
        self._policy = call_policy
        self._newest: _ModelCall | None = None
        self._span = ""  # of the newest call

    async def ask(self, number: int) -> ModelAnswer:
        """Return the model's answer to what it is asked next, which is call *number* of the run."""
        call = self._newest
        if call is None or call.begun:
            call = self._newest = await self._claim(number)
        call.begun = True
        rungs = rungs_of(self._turn.ensure_journal(), call.slot)
        if rungs.amended is not None:
            call.use(rungs.amended)
        key = conversation.answer_key(self._run, number)
        span = self._span = f"{self._turn.no}/model#{key.decode()}"
        spec = Spec(
            "model",
            functools.partial(self._answer, Sendings(rungs.history)),
            role="model",
            span=span,
            policies=(self._policy,),
            witness=_ModelWitness(self._turn, span, lambda: self._requests.model),
        )
        spec.input = lambda: call
        return await self._perform(spec, key, call.slot)

    async def mend(self, number: int, answer: ModelAnswer, error: MalformedOutput) -> None:
        """Decide about an answer that cannot be used; call *number* is its next attempt, on the same ladder.

        Raises:
            MalformedOutput: No attempt follows.
        """
        before = self._newest
        assert before is not None
        call = self._newest = await self._claim(number)
        ladder = Ladder(self._turn, call.slot, (self._policy,))
        if ladder.rungs.history:  # It was decided about before this turn was delivered again.
            if ladder.rungs.amended is None:
                self._drop_answer(call, ladder, "the turn began anew")
            call.drops = self._requests.stored_changes(ladder.rungs.amended).drops
            if not call.drops:
                self._conversation.append_unusable(answer)
            return
        ladder.rungs = Rungs(rungs_of(self._turn.ensure_journal(), before.slot).history)
        unusable = _UnusableAnswer(call, answer)
        verdict = await ladder.judge(error, to_failure(error), unusable)
        Witness(self._turn, "model", "model", self._span).ended(1, 0.0, verdict, None, error)
        if verdict.ends_turn:
            ladder.conclude(verdict, error)
        if not verdict.again:
            self._turn.ensure_journal().drop(call.slot)
            unusable.append()
            failed = sum(1 for past in ladder.rungs.history if past.error == MalformedOutput.__name__)
            more = f" (after {failed} reminders)" if failed else ""
            raise MalformedOutput(f"{verdict.failure.message}{more}")
        if not unusable.appended:
            self._drop_answer(call, ladder, verdict.reason)
        ladder.tell_amended(verdict)

    def _drop_answer(self, call: _ModelCall, ladder: Ladder, why: str) -> None:
        """Let the call be the same again, as if the one before it had not been answered."""
        call.drops = True
        dropped = msgspec.structs.replace(self._requests.changes, appended=[], drops=True)
        ladder.climb(msgspec.structs.replace(ladder.rungs, amended=encode(dropped)), why)

    async def ask_aside(self, request: ModelRequest) -> ModelAnswer:
        """Ask a model for an amendment; its answer is journaled, and waited for as `call_policy` retries."""
        assert self._newest is not None
        version = self._requests.changes.version
        span = f"{self._span}/{version}"
        spec = Spec(
            "amendment",
            functools.partial(Sendings().send, self._registry.endpoint_for(request.model), request),
            role="model",
            span=span,
            policies=(_retries_of(self._policy),),
            witness=_ModelWitness(self._turn, span, lambda: request.model),
        )
        return await self._perform(spec, b"%s/%d" % (self._newest.slot.key, version))

    async def _claim(self, number: int) -> _ModelCall:
        self._turn.check(f"{self._turn.activation.name}.run")
        slot = await self._turn.claim(conversation.ANSWER, conversation.answer_key(self._run, number))
        return _ModelCall(self, slot)

    async def _answer(self, sendings: Sendings) -> ModelAnswer:
        request = await self._requests.upcoming()
        return await sendings.send(self._registry.endpoint_for(request.model), request)

    async def _perform(self, spec: Spec, key: bytes, slot: Slot | None = None) -> ModelAnswer:
        return cast(ModelAnswer, await perform(self._turn, spec, key, self._registry.decoder(ModelAnswer), slot=slot))


class _ModelCall(NextRequest):
    """One model call: what it asks, as the amendments of a failure before its answer take and change it."""

    def __init__(self, calls: ModelCalls, slot: Slot) -> None:
        super().__init__(calls._requests, calls.ask_aside)
        self.slot = slot
        self.begun = False

    def append(self, stored: Changes) -> None:
        """Add what the amendment has appended to the conversation, but for what is there by earlier ones."""
        for message in stored.appended[len(self.appended) :]:
            self.appended.append(message)
            self.requests.conversation.append(message)


class _UnusableAnswer:
    """An answer that cannot be used, for amendments: what they change is the conversation with that answer in it."""

    def __init__(self, call: _ModelCall, answer: ModelAnswer) -> None:
        self.call = call
        self.answer = answer
        self.appended = False  # the answer to the conversation

    def append(self) -> None:
        """Add the answer to the conversation, once."""
        if not self.appended:
            self.appended = True
            self.call.requests.conversation.append_unusable(self.answer)

    async def given(self) -> ModelRequest:
        """Return the next request as it is."""
        self.append()
        return await self.call.given()

    def stored(self, changed: Any) -> bytes:
        """Return the bytes of what was changed; raises when it cannot be used."""
        return self.call.stored(changed)

    def use(self, body: bytes) -> None:
        """Let the calls to come be asked so."""
        self.call.use(body)


class _ModelWitness(Witness):
    """Tells the trace about model calls: what they used and cost, failed ones too. *model* names who is asked now."""

    __slots__ = ("model",)

    def __init__(self, turn: Turn, span: str, model: Any) -> None:
        super().__init__(turn, "", "model", span)
        self.model = model

    def began(self, attempt: int) -> None:
        """Tell that a call is made."""
        self.name = self.model()
        super().began(attempt)

    def ended(self, attempt: int, duration_s: float, verdict: Verdict | None, value: Any, error: Any) -> None:
        """Tell what it has used and cost."""
        if error is not None and not isinstance(error, ModelFailure):  # It was not made.
            super().ended(attempt, duration_s, verdict, value, error)
            return
        answer: ModelAnswer | None = value
        usage = answer.usage if answer is not None else getattr(error, "usage", None)
        now = datetime.fromtimestamp(self.turn.activation.system.wall(), UTC)
        not_billed = 0 if error is not None and not error.billed else None
        self.turn.emit(
            ModelCalled,
            span=self.span,
            parent=self.turn.span,
            decision=verdict.verb if verdict else "",
            delay_s=verdict.delay_s if verdict else 0.0,
            reason=verdict.reason if verdict else "",
            model=self.name,
            attempt=attempt,
            duration_s=duration_s,
            input_tokens=usage.input_tokens if usage else 0,
            output_tokens=usage.output_tokens if usage else 0,
            cache_read_tokens=usage.cache_read_tokens if usage else 0,
            cache_write_tokens=usage.cache_write_5m_tokens + usage.cache_write_1h_tokens if usage else 0,
            usd_micros=cost_micros(self.name, usage, now) if usage else not_billed,
            stop_reason=answer.stop_reason if answer else None,
            request_id=answer.request_id if answer else error.request_id if error else None,
            error=type(error).__name__ if error else None,
            message=str(error) if error else None,
        )


def _retries_of(policy: Policy) -> Policy:
    """Return the first retries of each rule: what a call within an amendment may do."""
    kept: list[Rule] = []
    for rule in policy:
        retries = list(itertools.takewhile(lambda reaction: reaction.verb == "retry", rule.reactions))
        if retries:
            kept.append(on(rule.errors, *retries))
    return Policy(*kept)
