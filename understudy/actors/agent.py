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
import typing
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any, ClassVar, Generic, Literal, Never

import msgspec
from typing_extensions import TypeVar

from understudy.actors import asking, conversation
from understudy.actors.actor import Actor
from understudy.actors.handler import PLAIN, Handler, Query, handler, query
from understudy.actors.performing import Spec, perform, write_row
from understudy.actors.schema import schema_of
from understudy.actors.signature import Signature, type_arguments
from understudy.actors.tool import Tool
from understudy.actors.turn import Turn
from understudy.codec import encode
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
    EndpointUnavailable,
    InvalidArguments,
    InvalidDefinition,
    LimitExceeded,
    MalformedOutput,
    ModelFailure,
    Overloaded,
    RateLimited,
    SystemClosed,
    SystemFailed,
)
from understudy.events import Amended, ModelCalled, StepFinished, StepStarted
from understudy.mailbox.journal import Journal, Outcome, Slot, storable
from understudy.supervisor.backoff import Backoff
from understudy.supervisor.policy import Past, Policy, dead_letter, decide, deciding_rule, on, retry

Output = TypeVar("Output")
State = TypeVar("State", default=None)
_Stored = TypeVar("_Stored")
Callable_ = Tool[..., Any] | Handler[Any] | Query[Any]

MODEL_POLICY = Policy(
    on((RateLimited, Overloaded, EndpointUnavailable), retry(times=8, backoff=Backoff(1.0, max_s=60.0)))
)
_RETRY_AFTER_MAX_S = 3_600.0  # a server that asks for more than this is not going to be waited for
_REMINDERS_MAX = 3  # answers of a wrong form that are sent back, per run
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
            ModelFailure: The model could not be used; its own retries are used up.
            MalformedOutput: Its answers do not fit the output type, after three reminders.
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
    for setting in ("budget", "call_policy"):
        value = vars(cls).get(setting)
        if value is not None and not isinstance(value, (Handler, Query, Tool, property)) and not callable(value):
            raise InvalidDefinition(f"{name}.{setting}={value!r}: {setting} is not supported yet; remove it.")
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
        self.reminders = 0
        self.pauses = 0
        self.malformed = 0  # unusable answers in a row
        self.span = ""  # of the newest model call
        self.fresh = False  # it was made in this attempt, not read from the journal

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
            answer = await self._ask_model(number)
            reminded = self.reminders
            self._append(ChatMessage("assistant", list(answer.content)))
            self.answer = answer
            if answer.stop_reason == "tool_use":
                await self._use_tools(answer)
            elif answer.stop_reason == "pause_turn" and self.pauses < _PAUSES_MAX:
                self.pauses += 1
                self._close_calls()
            elif answer.stop_reason in ("end_turn", "stop_sequence"):
                try:
                    return self._output_of(answer)
                except MalformedOutput as error:
                    self._remind(answer, error)
            else:
                self._remind(answer, MalformedOutput(f"the answer stopped early ({answer.stop_reason})"))
            if self.reminders == reminded:
                self.malformed = 0
        raise LimitExceeded(
            f"{self.turn.activation.name} made {self.cls.max_steps} model calls without an answer (max_steps).",
            limit="max_steps",
            value=self.cls.max_steps + 1,
            value_max=self.cls.max_steps,
        )

    def _output_of(self, answer: ModelAnswer) -> Any:
        if self.plain:
            return answer.text
        try:
            return self.system.registry.codec.from_json(answer.text, self.output)
        except (msgspec.MsgspecError, ValueError, TypeError, NotImplementedError) as error:
            raise MalformedOutput(
                f"the answer is not a {getattr(self.output, '__name__', self.output)}: {error}"
            ) from error

    def _remind(self, answer: ModelAnswer, error: MalformedOutput) -> None:
        """Tell the model what was wrong and let it answer again, within bounds."""
        if self.reminders >= _REMINDERS_MAX:
            raise MalformedOutput(f"{error} (after {_REMINDERS_MAX} reminders)")
        self.reminders += 1
        self.malformed += 1
        if self.fresh:  # Not again when the answer came from the journal.
            self._book_malformed(error)
        # An answer that was cut off may hold tool calls: each gets its one result, and none is run.
        closed = conversation.closed(answer.tool_calls, self.results, answer.stop_reason)
        self.answer = None
        asked = (
            "Answer with plain text only."
            if self.plain
            else "Answer with one JSON value of the required form and nothing else."
        )
        self._append(ChatMessage("user", [*closed, Text(f"Your last answer could not be used: {error}. {asked}")]))

    # --- model -----------------------------------------------------------------------------------------------------

    async def _ask_model(self, number: int) -> ModelAnswer:
        key = conversation.answer_key(self.no, number)
        span = self.span = f"{self.turn.no}/model#{key.decode()}"
        self.fresh = False
        spec = Spec("model", functools.partial(self._call_model, number, span), role="model", quiet=True, span=span)
        return typing.cast(ModelAnswer, await perform(self.turn, spec, key, self.system.registry.decoder(ModelAnswer)))

    async def _call_model(self, number: int, span: str) -> ModelAnswer:
        instructions = await self.agent.prompt()
        specs = [_spec(name, each) for name, each in self.tools.items()]
        request = ModelRequest(
            model=self.cls.model,
            system=instructions,
            messages=self.history,
            tools=specs,
            max_tokens=self.cls.max_tokens,
            output_schema=None if self.plain else schema_of(self.output),
        )
        endpoint = self.system.registry.endpoint_for(request.model)
        history: list[Past] = []
        while True:
            began_s = self.system.loop.time()
            attempt = len(history) + self.malformed + 1
            self.turn.emit(
                StepStarted, span=span, parent=self.turn.span, step=request.model, role="model", attempt=attempt
            )
            try:
                answer = await endpoint.call(request)
            except ModelFailure as failure:
                decision = decide(MODEL_POLICY, failure, tuple(history))
                again = decision.verb == "retry" and (failure.retry_after_s or 0.0) <= _RETRY_AFTER_MAX_S
                self._book(
                    request.model,
                    span,
                    attempt,
                    began_s,
                    failure=failure,
                    decision="retry" if again else "",
                    delay_s=decision.delay_s if again else 0.0,
                )
                if not again:
                    raise
                history.append(Past(type(failure).__name__, deciding_rule(MODEL_POLICY, failure)))
                await asyncio.sleep(decision.delay_s)
            else:
                self._book(request.model, span, attempt, began_s, answer=answer)
                self.fresh = True
                return answer

    def _book(
        self,
        model: str,
        span: str,
        attempt: int,
        began_s: float,
        *,
        answer: ModelAnswer | None = None,
        failure: ModelFailure | None = None,
        decision: str = "",
        delay_s: float = 0.0,
    ) -> None:
        """Tell the trace what a call used and cost, also a failed one."""
        usage = answer.usage if answer is not None else getattr(failure, "usage", None)
        now = datetime.fromtimestamp(self.system.wall(), UTC)
        self.turn.emit(
            ModelCalled,
            span=span,
            decision=decision,
            delay_s=delay_s,
            parent=self.turn.span,
            model=model,
            attempt=attempt,
            duration_s=self.system.loop.time() - began_s,
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

    def _book_malformed(self, error: MalformedOutput) -> None:
        self.turn.emit(
            StepFinished,
            span=self.span,
            parent=self.turn.span,
            step="model",
            role="model",
            duration_s=0.0,
            error="MalformedOutput",
            message=str(error),
            decision="amend",
        )
        self.turn.emit(Amended, amendment="format reminder added", reason=str(error))

    # --- tools -----------------------------------------------------------------------------------------------------

    async def _use_tools(self, answer: ModelAnswer) -> None:
        """Run the calls of one answer side by side; the history gets exactly one result for each."""
        tasks = [asyncio.ensure_future(self._use(call)) for call in answer.tool_calls]
        if not tasks:
            self._remind(answer, MalformedOutput("the answer announced tool calls but holds none"))
            return
        try:
            await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()  # Only those that one beside them has ended.
        self._close_calls()

    async def _use(self, call: ToolCall) -> None:
        """Let the model know how a call ended; what it was told once it is told for ever."""
        slot = await self.turn.claim(conversation.RESULT, call.id.encode())
        each = self.tools.get(call.name)
        if slot.outcome is None:
            result = await self._run_tool(each, call)
            self.results[call.id] = result
            self.turn.settle(slot, Outcome(value=encode(result)))
            return
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

    async def _run_tool(self, each: Callable_ | None, call: ToolCall) -> ToolResult:
        if each is None:
            known = ", ".join(self.tools) or "none"
            return ToolResult(call.id, storable(f"There is no tool {call.name!r}. Tools: {known}."), is_error=True)
        if call.malformed is not None:
            wrong = storable(f"The arguments are not valid JSON: {call.malformed[:200]}")
            return ToolResult(call.id, wrong, is_error=True)
        try:
            return ToolResult(call.id, conversation.as_text(await self._dispatch(each, call)))
        except (SystemClosed, SystemFailed):
            raise  # Nothing that a model could be told: the turn ends too.
        except Exception as error:
            if self.turn.ended is not None:
                raise  # The tool has no part in this: a stored outcome does not decode, or the turn was stopped.
            return ToolResult(call.id, storable(f"{type(error).__name__}: {error}"), is_error=True)

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
