"""One run of an agent: a loop of model calls and tool calls, from a prompt to its output.

The prompt, each model answer, and what the model was told of each tool call are journaled: a redelivered turn pays for
none of them again. Whatever ends the run, the conversation holds exactly one result per tool call.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import msgspec

from understudy.actors import conversation
from understudy.actors.conversation import Conversation
from understudy.actors.model_calls import ModelCalls
from understudy.actors.outcomes import write_row
from understudy.actors.requests import Requests
from understudy.actors.spending import Spending
from understudy.actors.tool_calls import ToolCalls
from understudy.actors.toolbox import Toolbox
from understudy.actors.turn import Turn
from understudy.codec import encode
from understudy.endpoint.budget import Budget
from understudy.endpoint.model import ChatMessage, ModelAnswer, Text
from understudy.errors import ContextOverflow, InvalidArguments, LimitExceeded, MalformedOutput
from understudy.mailbox.journal import Outcome

if TYPE_CHECKING:
    from understudy.actors.agent import Agent
    from understudy.actors.content import Content

_PAUSES_MAX = 20  # answers that the service paused, per run
_PAUSED = frozenset({"pause_turn", "compaction"})  # what there is goes back as it is, and the model goes on


class Run:
    """One run of an agent, whose output is of type *output*.

    Raises:
        InvalidArguments: The run before it, of the same turn, has not ended.
    """

    def __init__(self, agent: Agent[Any, Any], output: Any, history: Iterable[ChatMessage]) -> None:
        cls = type(agent)
        turn = agent.turn
        name = turn.activation.name
        turn.check(f"{name}.run")
        if turn.run_open:
            raise InvalidArguments(
                f"{name} runs already in this turn, and its conversation is one thing after another. Await one run "
                "before the next, or ask other agents: self.actor(...).run(...)."
            )
        self.turn: Turn = turn
        self._no: int = turn.runs  # within the turn
        self._output = output
        self._steps_max = cls.max_steps
        self._conversation = Conversation(turn, history)
        toolbox = Toolbox(cls)
        requests = self._requests = Requests(agent, self._conversation, toolbox, output)
        budget: object = cls.budget
        self._spending = Spending(turn, self._no, budget if isinstance(budget, Budget) else None)
        self._models = ModelCalls(requests, self._no, cls.call_policy, self._spending)
        self._tools = ToolCalls(agent, requests, toolbox, self._models, cls.call_policy, self._spending)
        turn.runs += 1
        turn.run_open = True

    async def result(self, prompt: str | list[Content]) -> Any:
        """Answer *prompt*; whatever happens, the conversation holds a result for every tool call."""
        try:
            async with self._spending:
                await self._begin(prompt)
                return await self._loop()
        finally:
            self._conversation.close()
            self._models.close()
            self.turn.run_open = False

    async def _begin(self, prompt: str | list[Content]) -> None:
        message = ChatMessage("user", [Text(prompt)] if isinstance(prompt, str) else [each.block for each in prompt])
        # Journaled with the first answer, which a later attempt keeps: it keeps the question too.
        slot = await self.turn.claim(conversation.PROMPT, b"%d" % self._no)
        if slot.outcome is None:
            outcome = Outcome(value=encode(message))
            write_row(self.turn, slot, outcome)  # No progress: a prompt that kills the process is found out.
            slot.settle(outcome)
        else:
            message = self._conversation.stored(ChatMessage, slot, "prompt")
            self._models.stream.redelivered = True
        self._conversation.append(message)

    async def _loop(self) -> Any:
        """Loop until the model has answered in the right form."""
        pauses = 0
        for number in range(self._steps_max):
            answer = await self._models.ask(number)
            if answer.stop_reason == "tool_use" and answer.tool_calls:
                self._conversation.append_answer(answer)
                await self._tools.use(answer)
            elif answer.stop_reason in _PAUSED and pauses < _PAUSES_MAX:
                pauses += 1
                self._conversation.append_answer(answer)
                self._conversation.close()
            elif answer.stop_reason == "max_tokens" and await self._models.ask_for_more(number + 1):
                pass
            else:
                try:
                    output = self._output_of(answer)
                except (MalformedOutput, ContextOverflow) as error:
                    await self._models.mend(number + 1, answer, error)
                else:
                    self._conversation.append_answer(answer)
                    return output
        raise LimitExceeded(
            f"{self.turn.activation.name} made {self._steps_max} model calls without an answer, the most that max_steps "
            f"allows. What it did is kept in its conversation: send another prompt to let it go on, raise "
            f"{type(self.turn.actor_object).__name__}.max_steps, or give it tools that do more at a time.",
            limit="max_steps",
            value=self._steps_max + 1,
            value_max=self._steps_max,
        )

    def _output_of(self, answer: ModelAnswer) -> Any:
        reason = answer.stop_reason
        if reason == "tool_use":
            raise MalformedOutput("the answer announced tool calls but holds none")
        if reason == "max_tokens":
            raise MalformedOutput(f"the answer was cut off after {self._requests.max_tokens} tokens; be shorter")
        if reason == "model_context_window_exceeded":
            raise ContextOverflow("the answer was cut off where the model's context window ends")
        if reason in _PAUSED:
            raise MalformedOutput(f"the answer paused more than {_PAUSES_MAX} times ({reason})")
        if reason not in ("end_turn", "stop_sequence"):
            raise MalformedOutput(f"the answer stopped for a reason that is not known here ({reason})")
        if self._output is str:
            return answer.text
        try:
            return self.turn.activation.system.registry.codec.from_json(_unfenced(answer.text), self._output)
        except (msgspec.MsgspecError, ValueError, TypeError, NotImplementedError) as error:
            wanted = getattr(self._output, "__name__", self._output)
            raise MalformedOutput(f"the answer is not a {wanted}: {error}") from error


def _unfenced(text: str) -> str:
    """Return JSON without the fence that models put around it when only words tell them its form."""
    bare = text.strip()
    if not (bare.startswith("```") and bare.endswith("```") and "\n" in bare):
        return text
    return bare[bare.index("\n") : -3]
