"""The model calls of one run: each is a step, answered once and paid once, whatever crashes.

Calls are matched by their number in the run: a date in the instructions or an edited docstring re-buys nothing. What
`call_policy` says about a failed call, and about an answer that cannot be used, is a ladder of that call or the next.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import logging
from datetime import UTC, datetime
from typing import Any, cast

import msgspec

from understudy.actors import conversation
from understudy.actors.changes import Changes
from understudy.actors.conversation import Conversation
from understudy.actors.failures import to_error, to_failure
from understudy.actors.fallbacks import CallRules
from understudy.actors.ladder import Ladder, Rungs, Verdict, rungs_of
from understudy.actors.performing import Spec, perform
from understudy.actors.requests import NextRequest, Requests
from understudy.actors.sendings import Sendings
from understudy.actors.spending import Spending
from understudy.actors.turn import Turn
from understudy.actors.witness import Witness, decided
from understudy.codec import encode
from understudy.endpoint.amendments import compact, older_half
from understudy.endpoint.model import ModelAnswer, ModelRequest
from understudy.endpoint.prices import cost_micros
from understudy.endpoint.windows import estimated_tokens, is_near, window_of
from understudy.errors import ContextOverflow, MalformedOutput, ModelFailure
from understudy.events import Amended, ModelCalled
from understudy.mailbox.journal import Outcome, Slot
from understudy.supervisor.policy import NO_RULES, Policy, Rule, decide, on

_MORE_TOKENS = 4  # times as many for an answer that was cut off: two or three attempts reach what a model gives
logger = logging.getLogger(__name__)


class ModelCalls:
    """The model calls of run number *run* of a turn; `call_policy` decides about their failures."""

    def __init__(self, requests: Requests, run: int, call_policy: Policy, spending: Spending) -> None:
        self._requests = requests
        self._conversation: Conversation = requests.conversation
        self._turn: Turn = requests.turn
        self._registry = requests.registry
        self._run = run
        self._policy = call_policy
        self._spending = spending
        self._newest: _ModelCall | None = None
        self._cannot_shorten = False  # what seemed too long: it was tried in vain
        self._span = ""  # of the newest call
        self.stream = self._turn.activation.system.streams.of_run(self._turn, run)

    async def ask(self, number: int) -> ModelAnswer:
        """Return the model's answer to what it is asked next, which is call *number* of the run."""
        call = self._newest
        if call is None or call.begun:
            call = self._newest = await self._claim(number)
        call.begun = True
        key = conversation.answer_key(self._run, number)
        span = self._span = f"{self._turn.no}/model#{key.decode()}"
        amended = rungs_of(self._turn.ensure_journal(), call.slot).amended
        if amended is not None:
            call.use(amended)
        if call.slot.outcome is None:
            self._choose_model(call)
            await self._shorten(call)
        sendings = Sendings(rungs_of(self._turn.ensure_journal(), call.slot).history)
        paid = self._spending.call(
            functools.partial(self._next, call), functools.partial(self._write, number, sendings)
        )
        spec = Spec(
            "model",
            paid.call,
            gate=paid.gate,
            role="model",
            span=span,
            policies=(call.rules,),
            witness=_ModelWitness(self._turn, span, lambda: self._requests.model),
        )
        spec.input = lambda _spec: call
        with contextlib.closing(paid):
            answer = await self._perform(spec, key, call.slot)
        self.stream.answered(number, answer)
        return answer

    def close(self) -> None:
        """Let go of the newest call, which knows this object: what a run held goes with it, not when a collector comes."""
        self._newest = None
        self.stream.close()

    async def mend(self, number: int, answer: ModelAnswer, error: MalformedOutput | ContextOverflow) -> None:
        """Decide about an answer that cannot be used; call *number* is its next attempt, on the same ladder.

        What is too long does not get longer by it: with `ContextOverflow` the answer is no part of the conversation.

        Raises:
            MalformedOutput: No attempt follows.
            ContextOverflow: As well.
        """
        self.stream.unusable(error)
        before = self._newest
        assert before is not None
        call = self._newest = await self._claim(number, before)
        ended = call.slot.outcome
        if ended is not None and ended.failure is not None:  # It was final before this turn was delivered again.
            self._conversation.append_unusable(answer)
            raise to_error(ended.failure, "model", role="model")
        ladder = Ladder(self._turn, call.slot, (call.rules,))
        if ladder.rungs == Rungs() and rungs_of(self._turn.ensure_journal(), before.slot).final:
            self._drop_answer(call, ladder, "tried again after it had failed")
        if ladder.rungs != Rungs():  # It was decided about before this turn was delivered again.
            if ladder.rungs.amended is None:
                self._drop_answer(call, ladder, "the turn began anew")
            call.drops = self._requests.stored_changes(ladder.rungs.amended).drops
            if not call.drops:
                self._conversation.append_unusable(answer)
            return
        ladder.rungs = Rungs(rungs_of(self._turn.ensure_journal(), before.slot).history)
        call.drops = isinstance(error, ContextOverflow)
        unusable = _UnusableAnswer(call, answer)
        verdict = await ladder.judge(error, to_failure(error), unusable)
        Witness(self._turn, "model", "model", self._span).ended(1, 0.0, verdict, None, error)
        if verdict.ends_turn:
            if not verdict.tries_again:
                self._note_final(before, verdict.reason)
            ladder.conclude(verdict, error)
        if not verdict.again:
            call.drops = False
            unusable.append()
            failed = sum(1 for past in ladder.rungs.history if past.error == MalformedOutput.__name__)
            more = f" (after {failed} reminders)" if failed and isinstance(error, MalformedOutput) else ""
            final = type(error)(f"{verdict.failure.message}{more}")
            self._note_final(before, verdict.reason)
            self._turn.settle(call.slot, Outcome(failure=to_failure(final)))
            raise final
        if not unusable.appended and verdict.verb == "retry":
            self._drop_answer(call, ladder, verdict.reason)
        ladder.tell_amended(verdict)

    async def ask_for_more(self, number: int) -> bool:
        """Let call *number* ask the same with more room for the answer, which was cut off; False when there is no more."""
        before = self._newest
        assert before is not None
        requests = self._requests
        room = requests.max_tokens
        more = min(room * _MORE_TOKENS, window_of(requests.model).output_tokens)
        if more <= room:
            return False
        call = self._newest = await self._claim(number, before)
        call.drops = True
        ladder = Ladder(self._turn, call.slot, (call.rules,))
        if ladder.rungs == Rungs():  # else it was done before this turn was delivered again.
            ladder.rungs = Rungs(rungs_of(self._turn.ensure_journal(), before.slot).history)
            why = f"the answer was cut off at {room} tokens; asked again for up to {more}"
            self._change(call, ladder, why, amendment="more tokens", max_tokens=more)
        return True

    def _change(self, call: _ModelCall, ladder: Ladder, why: str, *, amendment: str, **changes: Any) -> None:
        """Change what a call asks, as an amendment does, without a failure: journaled with the call, told by the trace."""
        self._turn.mark_started()  # The next life reads the journal of what was begun only.
        before = self._requests.changes
        made = msgspec.structs.replace(
            before, version=before.version + 1, appended=list(call.appended), drops=call.drops, **changes
        )
        ladder.climb(msgspec.structs.replace(ladder.rungs, amended=encode(made)), why)
        call.use(encode(made))
        self._turn.emit(Amended, parent=self._turn.span, amendment=amendment, reason=why)

    def _choose_model(self, call: _ModelCall) -> None:
        """Let the call go to the first of the agent's models whose endpoint is not blocked; if all are, to the first."""
        requests = self._requests
        asked = requests.model
        if requests.changes.detour is not None or asked not in requests.models[:-1]:
            return  # It was chosen before this turn was delivered again, or there is no choice.
        blocked: list[str] = []
        for model in requests.models[requests.models.index(asked) :]:
            until = self._registry.endpoint_for(model).blocked_until(model)
            if until is None:
                if blocked:
                    ladder = Ladder(self._turn, call.slot, (call.rules,))
                    self._change(call, ladder, "; ".join(blocked), amendment=f"fallback {model}", detour=model)
                return
            blocked.append(f"{model} is blocked until {datetime.fromtimestamp(until, UTC):%H:%M:%S} UTC")

    async def _shorten(self, call: _ModelCall) -> None:
        """Do what the policy says about a prompt that is too long, if it seems to be; otherwise the service will tell."""
        while not self._cannot_shorten:
            window = self._requests.context_tokens
            if window is None or not is_near(request := self._requests.draft(), window):
                return
            tokens = estimated_tokens(request)
            error = ContextOverflow(
                f"the prompt may be {tokens} tokens long; with an answer of {request.max_tokens} it does not fit the "
                f"{window} of {request.model}. Nothing was sent.",
                tokens=tokens,
                tokens_max=window,
                sent=False,
            )
            ladder = Ladder(self._turn, call.slot, (call.rules,))
            decision = decide(call.rules, error, ladder.rungs.history, default=NO_RULES)
            # It is a guess: nothing worse than a changed request may follow from it.
            if decision.amendment is None or (decision.amendment is compact and older_half(request.messages) is None):
                return
            verdict = await ladder.judge(error, to_failure(error), call)
            if not verdict.again:
                self._cannot_shorten = True
                logger.info("agent.not_shortened", extra={"actor": self._turn.activation.name, "why": verdict.reason})
                return
            ladder.tell_amended(verdict)

    def _note_final(self, call: _ModelCall, why: str) -> None:
        """Journal with an answer that it has failed the run.

        The answer is a value, which every later attempt finds. A crash finds the failure too; but one that was decided on,
        by a policy or a person, must ask anew, as nothing else could end otherwise.
        """
        ladder = Ladder(self._turn, call.slot, ())
        ladder.climb(msgspec.structs.replace(ladder.rungs, final=True), why)
        ladder.keep()

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

        async def given() -> ModelRequest:
            return request

        paid = self._spending.call(given, functools.partial(self._send, Sendings()))
        spec = Spec(
            "amendment",
            paid.call,
            gate=paid.gate,
            role="model",
            span=span,
            policies=(_retries_of(self._newest.rules),),
            witness=_ModelWitness(self._turn, span, lambda: request.model),
        )
        with contextlib.closing(paid):
            return await self._perform(spec, b"%s/%d" % (self._newest.slot.key, version))

    async def _claim(self, number: int, before: _ModelCall | None = None) -> _ModelCall:
        """Return call *number*, on the ladder of the call *before* it if it is its next attempt."""
        self._turn.check(f"{self._turn.activation.name}.run")
        slot = await self._turn.claim(conversation.ANSWER, conversation.answer_key(self._run, number))
        requests = self._requests
        requests.changes = msgspec.structs.replace(requests.changes, detour=None)
        rules = before.rules if before is not None else None
        return _ModelCall(
            self, slot, rules or CallRules(self._policy, requests.models, requests.model, lambda: requests.model)
        )

    async def _next(self, call: _ModelCall) -> ModelRequest:
        """Return what the next attempt asks: another model, when a breaker has opened before this one meanwhile."""
        self._choose_model(call)
        return await self._upcoming()

    async def _upcoming(self) -> ModelRequest:
        return self._spending.noted(await self._requests.upcoming())

    async def _send(self, sendings: Sendings, request: ModelRequest) -> ModelAnswer:
        return await sendings.send(self._registry.endpoint_for(request.model), request)

    async def _write(self, number: int, sendings: Sendings, request: ModelRequest) -> ModelAnswer:
        """Send it, for the eyes of those who read the job's stream too."""
        writer = self.stream.begin(number)
        try:
            answer = await sendings.send(self._registry.endpoint_for(request.model), request, writer)
        except BaseException as error:
            self.stream.broke(writer, error)
            raise
        self.stream.wrote(writer, answer)
        return answer

    async def _perform(self, spec: Spec, key: bytes, slot: Slot | None = None) -> ModelAnswer:
        return cast(ModelAnswer, await perform(self._turn, spec, key, self._registry.decoder(ModelAnswer), slot=slot))


class _ModelCall(NextRequest):
    """One model call: what it asks, as the amendments of a failure before its answer take and change it."""

    def __init__(self, calls: ModelCalls, slot: Slot, rules: Policy) -> None:
        super().__init__(calls._requests, calls.ask_aside)
        self.slot = slot
        self.rules = rules
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
        """Add the answer to the conversation, once; not at all one that is dropped."""
        if not self.appended and not self.call.drops:
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
            model=self.name,
            attempt=attempt,
            duration_s=duration_s,
            input_tokens=usage.input_tokens if usage else 0,
            output_tokens=usage.output_tokens if usage else 0,
            cache_read_tokens=usage.cache_read_tokens if usage else 0,
            cache_write_tokens=usage.cache_write_5m_tokens + usage.cache_write_1h_tokens if usage else 0,
            usd_micros=cost_micros(self.name, usage, now) if usage and usage.prompt_tokens else not_billed,
            stop_reason=answer.stop_reason if answer else None,
            request_id=answer.request_id if answer else error.request_id if error else None,
            error=type(error).__name__ if error else None,
            message=str(error) if error else None,
            **decided(verdict),
        )


def _retries_of(policy: Policy) -> Policy:
    """Return the first retries of each rule, and what holds the actor: what a call within an amendment may do."""
    kept: list[Rule] = []
    for rule in policy:
        retries = list(itertools.takewhile(lambda reaction: reaction.verb in ("retry", "suspend"), rule.reactions))
        if retries:
            kept.append(on(rule.errors, *retries))
    return Policy(*kept)
