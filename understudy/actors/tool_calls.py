"""The tool calls of one run: side by side, and each with one result that the model is told.

What the model was told of a call is journaled, refusals and failures included: no tool runs again that the model was
told had failed. Calls are matched by the id that the model gave them. A tool is asked as an actor of its own; only the
agent's own handlers and queries run in its turn.
"""

from __future__ import annotations

import asyncio
import functools
from typing import TYPE_CHECKING, Any

import msgspec

from understudy.actors import asking, conversation, parking
from understudy.actors.conversation import Conversation
from understudy.actors.failures import to_failure
from understudy.actors.handler import PLAIN, Handler, Query
from understudy.actors.ladder import Ladder, Verdict, rungs_of
from understudy.actors.performing import Spec, perform
from understudy.actors.requests import NextRequest, Requests
from understudy.actors.signature import Signature
from understudy.actors.spending import Spending
from understudy.actors.tool import Tool
from understudy.actors.toolbox import Toolbox, ToolLike
from understudy.actors.turn import Turn
from understudy.actors.witness import Witness
from understudy.codec import digest, encode
from understudy.endpoint.model import ModelAnswer, ToolCall, ToolResult
from understudy.errors import (
    ActorSuspended,
    BudgetExceeded,
    ChangeCall,
    InvalidArguments,
    ModelFailure,
    SystemClosed,
    SystemFailed,
    ToolFailed,
)
from understudy.mailbox.journal import Outcome, Slot, storable
from understudy.supervisor.policy import Policy

if TYPE_CHECKING:
    from understudy.actors.agent import Agent
    from understudy.actors.kinds import BoundHandler
    from understudy.actors.model_calls import ModelCalls
    from understudy.actors.target import ActorTarget


class ToolCalls:
    """The tool calls of one run; `call_policy` decides about their failures, of which the model hears otherwise."""

    def __init__(
        self,
        agent: Agent[Any, Any],
        requests: Requests,
        toolbox: Toolbox,
        models: ModelCalls,
        call_policy: Policy,
        spending: Spending,
    ) -> None:
        self._agent = agent
        self._requests = requests
        self._conversation: Conversation = requests.conversation
        self._turn: Turn = requests.turn
        self._registry = requests.registry
        self._toolbox = toolbox
        self._models = models
        self._policy = call_policy
        self._spending = spending
        self._amending = asyncio.Lock()  # of calls side by side, one amends after the other

    async def use(self, answer: ModelAnswer) -> None:
        """Run the calls of an answer, which is the newest in the conversation; it gets exactly one result for each."""
        offered = {call.name for call in answer.tool_calls if self._requests.offers(call.name)}
        tasks = [asyncio.ensure_future(self._settle(answer, call, call.name in offered)) for call in answer.tool_calls]
        try:
            await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()  # Only those that one beside them has ended.
            await asyncio.wait(tasks)  # None outlives the run: what follows may be the handler's own next step.
        self._conversation.close()
        self._models.stream.used()
        self._requests.close_results()

    async def _settle(self, answer: ModelAnswer, call: ToolCall, offered: bool) -> None:  # noqa: FBT001
        """Get the result of a call; what the model was told once it is told for ever."""
        slot = await self._turn.claim(conversation.RESULT, call.id.encode())
        each = self._toolbox.by_name.get(call.name)
        results = self._conversation.results
        if slot.outcome is None:
            self._models.stream.called(answer)
            result = results[call.id] = await self._result(each if offered else None, call, slot)
            self._turn.settle(slot, Outcome(value=encode(result)))
            return
        amended = rungs_of(self._turn.ensure_journal(), slot).amended
        if amended is not None:
            self._next_request().use(amended)
        result = self._conversation.stored(ToolResult, slot, f"result of tool {call.name}")
        if isinstance(each, Handler) and self._toolbox.owns(each) and not result.is_error:
            # It changed this turn's state, which is not there any more. If it fails now, so does the turn: the model
            # was told otherwise.
            await self._call_own(each, call)
        else:
            self._tell_replayed(each, call, slot)
        results[call.id] = result

    async def _result(self, each: ToolLike | None, call: ToolCall, slot: Slot) -> ToolResult:
        """Run a call, or refuse it; *each* is None when the model may not call that tool."""
        if each is None:
            known = ", ".join(name for name in self._toolbox.by_name if name != call.name) or "none"
            had = call.name in self._toolbox.by_name
            gone = f"Tool {call.name} is not available any more" if had else f"There is no tool {call.name!r}"
            return _error(call, f"{gone}. Tools: {known}.")
        if call.malformed is not None:
            return _error(call, f"The arguments are not valid JSON: {call.malformed[:200]}")
        if isinstance(each, Tool) and (refusal := await self._refusal(each, call)) is not None:
            return refusal
        ladder = Ladder(self._turn, slot, (self._policy,))
        # Those that an earlier delivery of this turn has decided about are met again first.
        decided = min(len(ladder.rungs.history), sum(1 for asked in self._asked(call) if asked.outcome is not None))
        while True:
            await ladder.wait()
            try:
                return ToolResult(call.id, conversation.as_text(await self._dispatch(each, call)))
            except (SystemClosed, SystemFailed):
                raise  # Nothing that a model could be told: the turn ends too.
            except Exception as error:
                if self._turn.ended is not None:
                    raise  # The tool has no part in this: a stored outcome does not decode, or the turn was stopped.
                if decided:
                    decided -= 1
                    continue
                if isinstance(error, BudgetExceeded) and error.below > 0:
                    await self._hold(ladder, error)
                verdict = await self._judge(each, call, ladder, error)
                if verdict.again and verdict.verb == "retry":
                    continue
                told = f"{type(error).__name__}: {error}"
                if verdict.again:
                    ladder.keep()
                    if not self._requests.offers(call.name):
                        told += f". Tool {call.name} is not available any more: go on without it."
                return _error(call, told)

    async def _refusal(self, each: Tool[..., Any], call: ToolCall) -> ToolResult | None:
        """Wait for a person's approval of a call that needs one; return what the model is told when it is rejected."""
        if each.approval == "never":
            return None
        try:
            arguments = self._arguments(each.signature(), call)
        except InvalidArguments:
            return None  # It is refused for that.
        match = call.id.encode() + digest([call.name, call.arguments])
        try:
            reason = await each.rejection(self._turn, arguments, match, call.arguments)
        except ToolFailed as error:  # Its `approval=` function: nobody can say whether the call may be made.
            return _error(call, f"ToolFailed: {error}")
        return None if reason is None else _error(call, f"A person rejected this call: {reason}")

    async def _judge(self, each: ToolLike, call: ToolCall, ladder: Ladder, error: Exception) -> Verdict:
        """Decide about a failed call; what no rule is about is the model's to deal with."""
        failure = to_failure(error)
        declared = () if isinstance(each, Query) else each.raises
        asked = self._asked(call)
        # Not of an answer, of a wrong call, of a model that another agent has tried all it could with, and of a call
        # that may still be answered.
        if (
            self._toolbox.owns(each)
            or isinstance(error, (ChangeCall, ModelFailure, *declared))
            or any(step.outcome is None for step in asked)
        ):
            return Verdict(failure, None)
        attempt = ladder.attempt
        with parking.busy(self._turn):
            async with self._amending:
                verdict = await ladder.judge(error, failure, self._next_request())
        if verdict.decision is not None and asked:
            child = asked[-1].child
            span = str(child) if child is not None else self._turn.step_span(asked[-1])
            Witness(self._turn, call.name, "tool", span).ended(attempt, 0.0, verdict, None, error)
        if verdict.ends_turn:
            ladder.conclude(verdict, error)
        ladder.tell_amended(verdict)
        return verdict

    async def _hold(self, ladder: Ladder, error: BudgetExceeded) -> None:
        """End the attempt of this turn if the policy says so: whom it asked is held by a budget that is its own too.

        The question stays open: when the budget is raised, both go on.
        """
        verdict = await ladder.judge(error, to_failure(error))
        if verdict.ends_turn:
            ladder.conclude(verdict, error)

    def _next_request(self) -> NextRequest:
        return NextRequest(self._requests, self._models.ask_aside)

    def _asked(self, call: ToolCall) -> list[Slot]:
        """Return the steps by which a call was made so far, in order."""
        end = b"\0" + call.id.encode().hex().encode()
        return [
            slot
            for key, slot in self._turn.ensure_journal().slots.items()
            if key.startswith((b"ask ", b"query ")) and key.rpartition(b"#")[0].endswith(end)
        ]

    def _tell_replayed(self, each: ToolLike | None, call: ToolCall, slot: Slot) -> None:
        """Tell the trace who was asked for a result that is there already."""
        role, where = "tool", call.name
        if isinstance(each, Handler) and each.owner is not None:
            type_ = self._registry.type_of(each.owner)
            role, where = type_.role, type_.handlers[each.name].where
        for step in self._turn.ensure_journal().claim_covered(slot):
            if step.child is not None:
                self._turn.replayed(where, step, role, str(step.child))

    async def _dispatch(self, each: ToolLike, call: ToolCall) -> Any:
        """Call the method of the agent itself, or ask the actor that the tool is or belongs to."""
        if not isinstance(each, Tool):
            return await (self._call_own(each, call) if self._toolbox.owns(each) else self._ask_actor(each, call))
        target = self._turn.activation.system.tool_target(each)
        return await self._ask(target, target.type.handlers["call"], call)

    async def _call_own(self, each: Handler[Any] | Query[Any], call: ToolCall) -> Any:
        type_ = self._turn.activation.type
        bound = type_.handlers.get(each.name) or type_.queries[each.name]
        arguments = self._arguments(bound.wire.signature, call)
        return await bound.function(self._agent, *msgspec.structs.astuple(arguments))

    async def _ask_actor(self, each: Handler[Any] | Query[Any], call: ToolCall) -> Any:
        assert each.owner is not None
        type_ = self._registry.type_of(each.owner)
        # An agent as a tool starts a conversation of its own; another actor is the one with this agent's id.
        id = f"{self._agent.id}.{call.id}" if type_.role == "agent" else self._agent.id
        target = self._turn.activation.system.target(type_, id)
        if isinstance(each, Handler):
            return await self._ask(target, type_.handlers[each.name], call)
        bound = type_.queries[each.name]
        arguments = _as_dict(self._arguments(bound.wire.signature, call))
        spec = Spec(
            f"query {target.name}.{each.name}",
            functools.partial(target.ask_query, each.name, (), arguments),
            role="query",
        )
        return await perform(self._turn, spec, call.id.encode(), bound.wire.decode_result)

    async def _ask(self, target: ActorTarget, bound: BoundHandler, call: ToolCall) -> Any:
        given = self._arguments(bound.wire.signature, call)
        body, arguments = bound.wire.encode((), _as_dict(given))
        try:
            return await asking.ask(self._turn, target, bound, PLAIN, body, arguments, match=call.id.encode())
        except ActorSuspended as error:
            held = await self._spending.held_below(target, error)
            if held is None:
                raise
            raise held from error

    def _arguments(self, signature: Signature, call: ToolCall) -> Any:
        """Return the model's arguments as the signature's types; a wrong one is an error that the model can mend."""
        try:
            return self._registry.codec.from_plain(call.arguments, signature.arguments)
        except (msgspec.ValidationError, ValueError, TypeError, NotImplementedError) as error:
            raise InvalidArguments(
                f"wrong arguments for {call.name}: {error}. It takes: {', '.join(signature.parameters)}."
            ) from error


def _error(call: ToolCall, told: str) -> ToolResult:
    return ToolResult(call.id, storable(told), is_error=True)


def _as_dict(arguments: Any) -> dict[str, Any]:
    return {name: getattr(arguments, name) for name in arguments.__struct_fields__}
