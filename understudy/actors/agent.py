"""Agents: actors whose `run` is a loop of model calls and tool calls, in one turn.

Each model answer is journaled, and so is what the model was told of each tool call, refusals and failures included: a
redelivered turn pays for none of them again, and no tool runs that the model was told had failed. Model calls are
matched by their number in the run and tool calls by the id that the model gave them: a date in the instructions or an
edited docstring re-buys nothing. The conversation is a log of its own: a turn appends what it
added, whatever the length of the history, and the history holds exactly one result per tool call.
"""

from __future__ import annotations

import asyncio
import functools
import itertools
import typing
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any, ClassVar, Generic, Literal, Never

import msgspec
from typing_extensions import TypeVar

from understudy.actors import asking, conversation, requests
from understudy.actors.actor import Actor
from understudy.actors.failures import to_failure
from understudy.actors.handler import PLAIN, Handler, Query, handler, query
from understudy.actors.ladder import Ladder, Rungs, Verdict, read
from understudy.actors.performing import Spec, Witness, perform, write_row
from understudy.actors.schema import schema_of
from understudy.actors.signature import Signature, type_arguments
from understudy.actors.tool import Tool
from understudy.actors.turn import Turn
from understudy.codec import encode
from understudy.endpoint.amendments import asks, compact, disable_tool, remind_format
from understudy.endpoint.model import (
    ChatMessage,
    ModelAnswer,
    ModelRequest,
    Text,
    ToolCall,
    ToolResult,
    ToolSpec,
)
from understudy.endpoint.prices import cost_micros
from understudy.errors import (
    AuthenticationFailed,
    ChangeCall,
    ContextOverflow,
    EndpointUnavailable,
    InvalidArguments,
    InvalidDefinition,
    LimitExceeded,
    MalformedOutput,
    ModelFailure,
    Overloaded,
    RateLimited,
    SpendLimitReached,
    SystemClosed,
    SystemFailed,
    ToolFailed,
)
from understudy.events import ModelCalled, StepFinished
from understudy.mailbox.journal import Journal, Outcome, Slot, storable
from understudy.supervisor.backoff import Backoff
from understudy.supervisor.policy import Past, Policy, Rule, amend, dead_letter, escalate, on, retry

Output = TypeVar("Output")
State = TypeVar("State", default=None)
_Stored = TypeVar("_Stored")
Callable_ = Tool[..., Any] | Handler[Any] | Query[Any]

_PAUSES_MAX = 20  # answers that the service paused, per run


class Content(msgspec.Struct):
    """One block of a prompt."""

    type: Literal["text"] = "text"
    text: str = ""


class Message(msgspec.Struct):
    """One message of a conversation, as people read it."""

    role: Literal["user", "assistant", "tool"]
    text: str


class Agent(Actor[State, Never], Generic[Output, State]):
    """An actor that answers prompts with a model and tools. `Agent[Report]` answers with a validated `Report`.

    `Agent[Report, Notes]` has a state of its own beside the conversation.
    """

    model: ClassVar[str] = ""
    instructions: ClassVar[str] = ""
    tools: ClassVar[Sequence[Callable_]] = ()
    max_steps: ClassVar[int] = 50  # model calls of one run
    max_tokens: ClassVar[int] = 8_192  # of one answer
    hooks: ClassVar[frozenset[str]] = Actor.hooks | {"prompt"}
    log_entry: ClassVar[Any] = ChatMessage
    _run: _Run | None = None  # the newest run of this object
    # The model's failures used up their own ladder inside the run: the message is not run again for them.
    policy: ClassVar[Policy] = Policy(on(ModelFailure, dead_letter()))
    call_policy: ClassVar[Policy] = Policy(
        on((RateLimited, Overloaded, EndpointUnavailable), retry(times=8, backoff=Backoff(1.0, max_s=60.0))),
        on(ContextOverflow, amend(compact, times=2)),
        on(ToolFailed, retry(times=3), amend(disable_tool)),  # first the same, then without the tool
        on(MalformedOutput, amend(remind_format, times=3)),
        on((SpendLimitReached, AuthenticationFailed), escalate()),
    )

    def __init_subclass__(cls, *, kind: str | None = None, **kwargs: Any) -> None:
        super().__init_subclass__(kind=kind, **kwargs)
        _check_agent(cls)

    async def prompt(self) -> str:
        """Return the instructions of this run; override it when they depend on state."""
        return self.instructions

    @handler
    async def run(self, prompt: str | list[Content]) -> Output:
        """Answer *prompt*, using the tools.

        Raises:
            ModelFailure: The model could not be used; what `call_policy` does about it is used up.
            MalformedOutput: Its answers do not fit the output type, and reminders are used up.
            LimitExceeded: `max_steps` model calls were not enough.
            InvalidArguments: Another run of the same turn has not ended: a conversation is one thing after another.
        """
        return typing.cast(Output, await _Run(self).result(prompt))

    @classmethod
    def log_closing(cls, journal: Journal, why: str) -> list[Any]:
        """Return what is remembered of a run that was given up: what its journal holds, and a note."""
        entries = conversation.remembered(journal)
        if entries:
            entries.append(ChatMessage("user", [Text(storable(f"[The run ended without an answer: {why}]"))]))
        return entries

    @query
    async def messages(self) -> list[Message]:
        """Return the conversation so far, as text."""
        return [message for entry in self._log or () for message in _readable(entry)]


def _check_agent(cls: type[Agent[Any, Any]]) -> None:
    name = cls.__qualname__
    model: object = cls.model
    if not isinstance(model, str):
        raise InvalidDefinition(
            f"{name}.model={model!r}; expected one model's name. A list of fallback models is not supported yet."
        )
    if not model and not getattr(cls, "__parameters__", ()):
        raise InvalidDefinition(f"{name} has no model; write e.g. model = 'claude-sonnet-5-5'.")
    budget = vars(cls).get("budget")
    if budget is not None and not isinstance(budget, (Handler, Query, Tool, property)) and not callable(budget):
        raise InvalidDefinition(f"{name}.budget={budget!r}: budget is not supported yet; remove it.")
    names: dict[str, Any] = {}
    for each in cls.tools:
        if not isinstance(each, (Tool, Handler, Query)):
            raise InvalidDefinition(f"{name}.tools holds {each!r}; expected @tool functions, handlers or queries.")
        called = _tool_name(cls, each)
        if called in names and names[called] is not each:
            raise InvalidDefinition(f"{name}.tools has two tools called {called!r}; give one of them a name=.")
        names[called] = each
    if cls.max_steps < 1 or cls.max_tokens < 1:
        raise InvalidDefinition(f"{name}: max_steps={cls.max_steps}, max_tokens={cls.max_tokens}; expected 1 or more.")


def _owned(cls: type[Any], each: Callable_) -> bool:
    return isinstance(each, (Handler, Query)) and (each.owner is None or issubclass(cls, each.owner))


def _tool_name(cls: type[Any], each: Callable_) -> str:
    return each.name if _owned(cls, each) else each.tool_name


class _Run:
    """One run of an agent: from a prompt to its output."""

    def __init__(self, agent: Agent[Any, Any]) -> None:
        self.agent = agent
        self.turn: Turn = agent.turn
        self.system = self.turn.activation.system
        self.cls = type(agent)
        self.output = type_arguments(self.cls, Agent)[0]
        self.plain = self.output is str
        self.turn.check(f"{self.turn.activation.name}.run")
        before = agent._run
        if before is not None and before.turn is not self.turn:
            before = None
        if before is not None and before.running:
            raise InvalidArguments(
                f"{self.turn.activation.name} runs already in this turn, and its conversation is one thing after "
                "another. Await one run before the next, or ask other agents: self.actor(...).run(...)."
            )
        agent._run = self
        self.running: bool = True
        self.no: int = before.no + 1 if before is not None else 0  # within the turn
        self.history: list[ChatMessage] = [*(agent._log or ()), *(entry for entry, _ in self.turn.records or ())]
        self.answer: ModelAnswer | None = None  # the newest one, until its tool calls have their results
        self.results: dict[str, ToolResult] = {}
        self.tools = {_tool_name(self.cls, each): each for each in self.cls.tools}
        self.pauses = 0
        self.span = ""  # of the newest model call
        self.policies = (self.cls.call_policy,)
        self.changes = requests.Changes()  # what amendments have changed, for all calls to come
        self.call = _Call(self)  # the newest model call
        self.amending = asyncio.Lock()  # of tool calls side by side, one amends after the other
        self.after_results: list[tuple[int, list[ChatMessage]]] = []  # what they append, by version

    def _append(self, message: ChatMessage) -> None:
        """Add a message to the conversation; it is stored when the turn commits."""
        self.history.append(message)
        if self.turn.records is None:
            self.turn.records = []
        self.turn.records.append((message, encode(message)))

    async def result(self, prompt: str | list[Content]) -> Any:
        """Answer *prompt*; whatever happens, the conversation holds a result for every tool call."""
        try:
            await self._begin(prompt)
            return await self._loop()
        finally:
            self._close_calls()
            self.running = False

    async def _begin(self, prompt: str | list[Content]) -> None:
        blocks = [Text(prompt)] if isinstance(prompt, str) else [Text(each.text) for each in prompt]
        message = ChatMessage("user", list(blocks))
        # Journaled with the first answer, which a later attempt keeps: it keeps the question too.
        slot = await self.turn.claim(conversation.PROMPT, b"%d" % self.no)
        if slot.outcome is None:
            outcome = Outcome(value=encode(message))
            write_row(self.turn, slot, outcome)  # No progress: a prompt that kills the process is found out.
            slot.settle(outcome)
        else:
            message = self._stored(ChatMessage, slot, "prompt")
        self._append(message)

    def _stored(self, type_: type[_Stored], slot: Slot, what: str) -> _Stored:
        assert slot.outcome is not None
        assert slot.outcome.value is not None
        return typing.cast(
            _Stored,
            self.turn.decode_stored(
                self.system.registry.decoder(type_),
                slot.outcome.value,
                f"the journaled {what} of {self.turn.activation.name}",
            ),
        )

    def _close_calls(self) -> None:
        """Give the newest answer's tool calls the results that they have not got."""
        answer, self.answer = self.answer, None
        if answer is not None and answer.tool_calls:
            results = conversation.closed(answer.tool_calls, self.results, answer.stop_reason)
            self._append(ChatMessage("user", results))

    async def _loop(self) -> Any:
        """Loop until the model has answered in the right form."""
        for number in range(self.cls.max_steps):
            answer = self.answer = await self._ask_model(number)
            reason = answer.stop_reason
            if reason == "tool_use" and answer.tool_calls:
                self._append_answer(answer)
                await self._use_tools(answer)
            elif reason == "pause_turn" and self.pauses < _PAUSES_MAX:
                self.pauses += 1
                self._append_answer(answer)
                self._close_calls()
            else:
                try:
                    output = self._output_of(answer)
                except MalformedOutput as error:
                    await self._mend(number, answer, error)
                else:
                    self._append_answer(answer)
                    return output
        raise LimitExceeded(
            f"{self.turn.activation.name} made {self.cls.max_steps} model calls without an answer (max_steps).",
            limit="max_steps",
            value=self.cls.max_steps + 1,
            value_max=self.cls.max_steps,
        )

    def _append_answer(self, answer: ModelAnswer) -> None:
        self._append(ChatMessage("assistant", list(answer.content)))

    def _output_of(self, answer: ModelAnswer) -> Any:
        if answer.stop_reason == "tool_use":
            raise MalformedOutput("the answer announced tool calls but holds none")
        if answer.stop_reason not in ("end_turn", "stop_sequence"):
            raise MalformedOutput(f"the answer stopped early ({answer.stop_reason})")
        if self.plain:
            return answer.text
        try:
            return self.system.registry.codec.from_json(answer.text, self.output)
        except (msgspec.MsgspecError, ValueError, TypeError, NotImplementedError) as error:
            raise MalformedOutput(
                f"the answer is not a {getattr(self.output, '__name__', self.output)}: {error}"
            ) from error

    async def _mend(self, number: int, answer: ModelAnswer, error: MalformedOutput) -> None:
        """Decide about an answer that cannot be used: the next call is the next attempt of this one, on its ladder."""
        self.answer = None  # It is in the conversation only once that is decided.
        slot = await self._claim_call(number + 1)
        before = self.call
        self.call = _Call(self, slot)
        ladder = Ladder(self.turn, slot, self.policies)
        if ladder.rungs.history:  # It was decided about before this turn was delivered again.
            self.call.drops = requests.read(ladder.rungs.amended).drops
            if not self.call.drops:
                self._append_unusable(answer)
            return
        ladder.rungs = Rungs(before.ladder())
        mending = _Mending(self.call, answer)
        verdict = await ladder.judge(error, to_failure(error), mending)
        self._book_malformed(error, verdict)
        if verdict.ends_turn:
            ladder.conclude(verdict, error)
        if not verdict.again:
            self.turn.ensure_journal().drop(slot)
            if not mending.appended:
                self._append_unusable(answer)
            failed = sum(1 for past in ladder.rungs.history if past.error == MalformedOutput.__name__)
            more = f" (after {failed} reminders)" if failed else ""
            raise MalformedOutput(f"{verdict.failure.message}{more}")
        if not mending.appended:  # The same again, as if it had not been answered.
            self.call.drops = True
            dropped = encode(msgspec.structs.replace(self.changes, appended=[], drops=True))
            ladder.climb(msgspec.structs.replace(ladder.rungs, amended=dropped), verdict.reason)
        ladder.tell_amended(verdict)

    def _append_unusable(self, answer: ModelAnswer) -> None:
        self._append_answer(answer)
        # An answer that was cut off may hold tool calls: each gets its one result, and none is run.
        if answer.tool_calls:
            self._append(ChatMessage("user", conversation.closed(answer.tool_calls, self.results, answer.stop_reason)))

    # --- model -----------------------------------------------------------------------------------------------------

    async def _claim_call(self, number: int) -> Slot:
        self.turn.check(f"{self.turn.activation.name}.run")
        return await self.turn.claim(conversation.ANSWER, conversation.answer_key(self.no, number))

    async def _ask_model(self, number: int) -> ModelAnswer:
        key = conversation.answer_key(self.no, number)
        if self.call.slot is None or self.call.begun:
            self.call = _Call(self, await self._claim_call(number))
        call = self.call
        call.begun = True
        amended = read(self.turn.ensure_journal().ladder(call.claimed())).amended
        if amended is not None:
            call.use(amended)
        span = self.span = f"{self.turn.no}/model#{key.decode()}"
        witness = _ModelWitness(self, span)
        spec = Spec("model", self._call_model, role="model", span=span, witness=witness, policies=self.policies)
        spec.input = lambda: call
        decode = self.system.registry.decoder(ModelAnswer)
        return typing.cast(ModelAnswer, await perform(self.turn, spec, key, decode, slot=call.slot))

    async def request(self) -> ModelRequest:
        """Return what the model is asked next."""
        changes = self.changes
        schema = None if self.plain else schema_of(self.output)
        return ModelRequest(
            model=changes.model or self.cls.model,
            system=changes.system if changes.system is not None else await self.agent.prompt(),
            messages=changes.messages(self.history),
            tools=changes.tools if changes.tools is not None else [_spec(*each) for each in self.tools.items()],
            max_tokens=changes.max_tokens or self.cls.max_tokens,
            output_schema=schema if changes.output_schema is msgspec.UNSET else changes.output_schema,
        )

    async def _call_model(self) -> ModelAnswer:
        request = await self.request()
        return await self.system.registry.endpoint_for(request.model).call(request)

    async def ask_aside(self, request: ModelRequest) -> ModelAnswer:
        """Ask a model for an amendment; its answer is journaled, and waited for as `call_policy` retries."""
        key = b"%s/%d" % (self.call.claimed().key, self.changes.version)
        span = f"{self.span}/{self.changes.version}"
        spec = Spec(
            "amendment",
            functools.partial(self.system.registry.endpoint_for(request.model).call, request),
            role="model",
            span=span,
            witness=_ModelWitness(self, span, request.model),
            policies=(_retries_of(self.cls.call_policy),),
        )
        decode = self.system.registry.decoder(ModelAnswer)
        return typing.cast(ModelAnswer, await perform(self.turn, spec, key, decode))

    def book(
        self,
        model: str,
        span: str,
        attempt: int,
        duration_s: float,
        answer: ModelAnswer | None,
        failure: ModelFailure | None,
        verdict: Verdict | None,
    ) -> None:
        """Tell the trace what a call used and cost, also a failed one."""
        usage = answer.usage if answer is not None else getattr(failure, "usage", None)
        now = datetime.fromtimestamp(self.system.wall(), UTC)
        self.turn.emit(
            ModelCalled,
            span=span,
            decision=verdict.verb if verdict else "",
            delay_s=verdict.delay_s if verdict else 0.0,
            reason=verdict.reason if verdict else "",
            parent=self.turn.span,
            model=model,
            attempt=attempt,
            duration_s=duration_s,
            input_tokens=usage.input_tokens if usage else 0,
            output_tokens=usage.output_tokens if usage else 0,
            cache_read_tokens=usage.cache_read_tokens if usage else 0,
            cache_write_tokens=usage.cache_write_5m_tokens + usage.cache_write_1h_tokens if usage else 0,
            usd_micros=cost_micros(model, usage, now) if usage else (0 if failure and not failure.billed else None),
            stop_reason=answer.stop_reason if answer else None,
            request_id=answer.request_id if answer else failure.request_id if failure else None,
            error=type(failure).__name__ if failure else None,
            message=str(failure) if failure else None,
        )

    def _book_malformed(self, error: MalformedOutput, verdict: Verdict) -> None:
        self.turn.emit(
            StepFinished,
            span=self.span,
            parent=self.turn.span,
            step="model",
            role="model",
            duration_s=0.0,
            error="MalformedOutput",
            message=str(error),
            decision=verdict.verb,
            delay_s=verdict.delay_s,
            reason=verdict.reason,
        )

    # --- tools -----------------------------------------------------------------------------------------------------

    async def _use_tools(self, answer: ModelAnswer) -> None:
        """Run the calls of one answer side by side; the history gets exactly one result for each."""
        changed = self.changes.tools
        offered = self.tools.keys() if changed is None else {tool.name for tool in changed}
        tasks = [asyncio.ensure_future(self._use(call, call.name in offered)) for call in answer.tool_calls]
        try:
            await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()  # Only those that one beside them has ended.
        self._close_calls()
        for _, messages in sorted(self.after_results, key=lambda each: each[0]):
            for message in messages:
                self._append(message)
        self.after_results = []

    async def _use(self, call: ToolCall, offered: bool) -> None:  # noqa: FBT001
        """Let the model know how a call ended; what it was told once it is told for ever."""
        slot = await self.turn.claim(conversation.RESULT, call.id.encode())
        each = self.tools.get(call.name)
        if slot.outcome is None:
            result = await self._run_tool(each, call, slot, offered)
            self.results[call.id] = result
            self.turn.settle(slot, Outcome(value=encode(result)))
            return
        amended = read(self.turn.ensure_journal().ladder(slot)).amended
        if amended is not None:
            _Amending(self).use(amended)
        result = self._stored(ToolResult, slot, f"result of tool {call.name}")
        if isinstance(each, Handler) and _owned(self.cls, each) and not result.is_error:
            # It changed this turn's state, which is not there any more. If it fails now, so does the turn: the model
            # was told otherwise.
            await self._dispatch(each, call)
        else:
            self._replay(each, call, slot)
        self.results[call.id] = result

    def _replay(self, each: Callable_ | None, call: ToolCall, slot: Slot) -> None:
        """Tell the trace who was asked for a result that is there already."""
        role, where = "tool", call.name
        if isinstance(each, Handler) and each.owner is not None:
            type_ = self.system.registry.type_of(each.owner)
            role, where = type_.role, type_.handlers[each.name].where
        for step in self.turn.ensure_journal().claim_covered(slot):
            if step.child is not None:
                self.turn.replayed(where, step, role, str(step.child))

    async def _run_tool(self, each: Callable_ | None, call: ToolCall, slot: Slot, offered: bool) -> ToolResult:  # noqa: FBT001
        if each is None or not offered:
            known = ", ".join(name for name in self.tools if name != call.name) or "none"
            gone = f"There is no tool {call.name!r}" if each is None else f"Tool {call.name} is not available any more"
            return ToolResult(call.id, storable(f"{gone}. Tools: {known}."), is_error=True)
        if call.malformed is not None:
            wrong = storable(f"The arguments are not valid JSON: {call.malformed[:200]}")
            return ToolResult(call.id, wrong, is_error=True)
        ladder = Ladder(self.turn, slot, self.policies)
        # Those that an earlier delivery of this turn has decided about are met again first.
        decided = min(len(ladder.rungs.history), sum(1 for asked in self._asked(call) if asked.outcome is not None))
        while True:
            await ladder.wait()
            try:
                return ToolResult(call.id, conversation.as_text(await self._dispatch(each, call)))
            except (SystemClosed, SystemFailed):
                raise  # Nothing that a model could be told: the turn ends too.
            except Exception as error:
                if self.turn.ended is not None:
                    raise  # The tool has no part in this: a stored outcome does not decode, or the turn was stopped.
                told = f"{type(error).__name__}: {error}"
                if decided:
                    decided -= 1
                    continue
                verdict = await self._judge(each, call, ladder, error)
                if verdict.again and verdict.verb == "retry":
                    continue
                if verdict.again:
                    ladder.keep()
                    tools = self.changes.tools
                    if tools is not None and all(tool.name != call.name for tool in tools):
                        told += f". Tool {call.name} is not available any more: go on without it."
                return ToolResult(call.id, storable(told), is_error=True)

    async def _judge(self, each: Callable_, call: ToolCall, ladder: Ladder, error: Exception) -> Verdict:
        """Decide about a failed call; what no rule is about is the model's to deal with."""
        failure = to_failure(error)
        declared = () if isinstance(each, Query) else each.raises
        asked = self._asked(call)
        # Not of an answer, of a wrong call, of a model that another agent has tried all it could with, and of a call
        # that may still be answered.
        if (
            _owned(self.cls, each)
            or isinstance(error, (ChangeCall, ModelFailure, *declared))
            or any(step.outcome is None for step in asked)
        ):
            return Verdict(failure, None)
        attempt = ladder.attempt
        async with self.amending:
            verdict = await ladder.judge(error, failure, _Amending(self))
        if verdict.decision is not None and asked:
            child = asked[-1].child
            self.turn.emit(
                StepFinished,
                span=str(child) if child is not None else self.turn.step_span(asked[-1]),
                parent=self.turn.span,
                step=call.name,
                role="tool",
                duration_s=0.0,
                error=failure.type,
                message=failure.message,
                attempt=attempt,
                decision=verdict.verb,
                delay_s=verdict.delay_s,
                reason=verdict.reason,
            )
        if verdict.ends_turn:
            ladder.conclude(verdict, error)
        ladder.tell_amended(verdict)
        return verdict

    def _asked(self, call: ToolCall) -> list[Slot]:
        """Return the steps by which a call was made so far, in order."""
        end = b"\0" + call.id.encode().hex().encode()
        return [
            slot
            for key, slot in self.turn.ensure_journal().slots.items()
            if key.startswith((b"ask ", b"query ")) and key.rpartition(b"#")[0].endswith(end)
        ]

    async def _dispatch(self, each: Callable_, call: ToolCall) -> Any:
        system = self.system
        match = call.id.encode()
        if _owned(self.cls, each):
            assert isinstance(each, (Handler, Query))
            type_ = self.turn.activation.type
            bound = type_.handlers.get(each.name) or type_.queries[each.name]
            arguments = self._arguments(bound.wire.signature, call)
            return await bound.function(self.agent, *msgspec.structs.astuple(arguments))
        if isinstance(each, Tool):
            target = system.tool_target(each)
            bound = target.type.handlers["call"]
        else:
            assert each.owner is not None
            type_ = system.registry.type_of(each.owner)
            # An agent as a tool starts a conversation of its own; another actor is the one with this agent's id.
            id = f"{self.agent.id}.{call.id}" if issubclass(each.owner, Agent) else self.agent.id
            target = system.target(type_, id)
            if isinstance(each, Query):
                bound = type_.queries[each.name]
                arguments = self._arguments(bound.wire.signature, call)
                spec = Spec(
                    f"query {target.name}.{each.name}",
                    functools.partial(target.ask_query, each.name, (), _as_dict(arguments)),
                    role="query",
                )
                return await perform(self.turn, spec, match, bound.wire.decode_result)
            bound = type_.handlers[each.name]
        arguments = self._arguments(bound.wire.signature, call)
        body, arguments = bound.wire.encode((), _as_dict(arguments))
        return await asking.ask(self.turn, target, bound, PLAIN, body, arguments, match=match)

    def _arguments(self, signature: Signature, call: ToolCall) -> Any:
        """Return the model's arguments as the signature's types; a wrong one is an error that the model can mend."""
        try:
            return self.system.registry.codec.from_plain(call.arguments, signature.arguments)
        except (msgspec.ValidationError, ValueError, TypeError, NotImplementedError) as error:
            raise InvalidArguments(
                f"wrong arguments for {call.name}: {error}. It takes: {', '.join(signature.parameters)}."
            ) from error


class _Amending:
    """The requests of a run, as the amendments of a failed tool call take and change them."""

    def __init__(self, run: _Run) -> None:
        self.run = run
        self.appended: list[ChatMessage] = []  # what is in the conversation by amendments of this call
        self.drops = False
        self._given: ModelRequest | None = None

    async def given(self) -> ModelRequest:
        """Return the next request as it is."""
        asks.set(self.run.ask_aside)
        given = self._given = await self.run.request()
        return msgspec.structs.replace(given, messages=list(given.messages), tools=list(given.tools))

    def stored(self, changed: Any) -> bytes:
        """Return the bytes of what was changed; raises when it cannot be used."""
        run = self.run
        assert self._given is not None
        changes = requests.changed(run.changes, self._given, changed, run.history, self.appended)
        if changes.model is not None:
            run.system.registry.endpoint_for(changes.model)
        return encode(msgspec.structs.replace(changes, drops=self.drops))

    def use(self, body: bytes) -> None:
        """Let the calls to come be asked so; what is appended follows the results of the tool calls."""
        run = self.run
        what = f"the amended request of {run.turn.activation.name}"
        changes: requests.Changes = run.turn.decode_stored(requests.read, body, what)
        if changes.version > run.changes.version:
            run.changes = changes
        self._append(changes)

    def _append(self, changes: requests.Changes) -> None:
        if changes.appended:
            self.run.after_results.append((changes.version, changes.appended))


class _Call(_Amending):
    """One model call of a run: the same for a failure before its answer."""

    def __init__(self, run: _Run, slot: Slot | None = None) -> None:
        super().__init__(run)
        self.slot = slot
        self.begun = False

    def claimed(self) -> Slot:
        """Return its place in the journal."""
        assert self.slot is not None
        return self.slot

    def ladder(self) -> tuple[Past, ...]:
        """Return the failures that led to its answer."""
        return read(self.run.turn.ensure_journal().ladder(self.claimed())).history

    def _append(self, changes: requests.Changes) -> None:
        for message in changes.appended[len(self.appended) :]:
            self.appended.append(message)
            self.run._append(message)


class _Mending:
    """The same for an answer that cannot be used: what is amended is the conversation with that answer in it."""

    def __init__(self, call: _Call, answer: ModelAnswer) -> None:
        self.call = call
        self.answer = answer
        self.appended = False  # the answer to the conversation

    async def given(self) -> ModelRequest:
        """Return the next request as it is."""
        self.appended = True
        self.call.run._append_unusable(self.answer)
        return await self.call.given()

    def stored(self, changed: Any) -> bytes:
        """Return the bytes of what was changed; raises when it cannot be used."""
        return self.call.stored(changed)

    def use(self, body: bytes) -> None:
        """Let the calls to come be asked so."""
        self.call.use(body)


class _ModelWitness(Witness):
    """Tells the trace about model calls: what they used and cost."""

    __slots__ = ("model", "run")

    def __init__(self, run: _Run, span: str, model: str = "") -> None:
        super().__init__(run.turn, model, "model", span)
        self.run = run
        self.model = model

    def began(self, attempt: int) -> None:
        """Tell that a call is made."""
        self.name = self.model or self.run.changes.model or self.run.cls.model
        super().began(attempt)

    def ended(self, attempt: int, duration_s: float, verdict: Verdict | None, value: Any, error: Any) -> None:
        """Tell what it has cost."""
        if error is None or isinstance(error, ModelFailure):
            self.run.book(self.name, self.span, attempt, duration_s, value, error, verdict)
        else:  # It was not made.
            super().ended(attempt, duration_s, verdict, value, error)


def _retries_of(policy: Policy) -> Policy:
    """Return the first retries of each rule: what a call within an amendment may do."""
    kept: list[Rule] = []
    for rule in policy:
        retries = list(itertools.takewhile(lambda reaction: reaction.verb == "retry", rule.reactions))
        if retries:
            kept.append(on(rule.errors, *retries))
    return Policy(*kept)


def _as_dict(arguments: Any) -> dict[str, Any]:
    return {name: getattr(arguments, name) for name in arguments.__struct_fields__}


def _spec(name: str, each: Callable_) -> ToolSpec:
    signature = each.signature() if isinstance(each, Tool) else Signature(each.function, name, owner=each.owner)
    description = signature.doc
    if isinstance(each, Handler) and each.owner is not None:
        of_owner = (each.owner.__doc__ or "").strip()
        # The `run` of all agents has one docstring; what sets an agent apart is its class's.
        is_run = each.name == "run" and issubclass(each.owner, Agent)
        description = (of_owner or description) if is_run else (description or of_owner)
    return ToolSpec(name, description, schema_of(signature.arguments))


def _readable(entry: ChatMessage) -> list[Message]:
    found: list[Message] = []
    for block in entry.content:
        if isinstance(block, Text):
            found.append(Message(entry.role, block.text))
        elif isinstance(block, ToolResult):
            found.append(Message("tool", block.content))
    return found
