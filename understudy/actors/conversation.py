"""An agent's run as its journal holds it: what it was asked, what the model answered, what the tools told the model.

A run that is cancelled or given up is remembered from here, whichever attempt and life of the process did the work.
"""

from __future__ import annotations

from typing import Any

import msgspec

from understudy.actors import ladder, requests
from understudy.codec import encode
from understudy.endpoint.model import Block, ChatMessage, ModelAnswer, Text, ToolCall, ToolResult
from understudy.mailbox.journal import Journal, Outcome, storable

PROMPT = "prompt"  # a run's first message, under the run's number
ANSWER = "model model"  # the step of a model call, under the numbers of run and call
RESULT = "result"  # what the model was told of a tool call, under the call's id

_MISSING = "The run ended before this call had a result; nobody knows how far it got."
_NOT_RUN = "The answer ended otherwise than with its tool calls: this call did not run."

_NOTHING = requests.Changes()
_message = msgspec.msgpack.Decoder(ChatMessage).decode
_answer = msgspec.msgpack.Decoder(ModelAnswer).decode
_result = msgspec.msgpack.Decoder(ToolResult).decode


def answer_key(run: int, number: int) -> bytes:
    """Return what the model call *number* of a turn's run *run* is matched by."""
    return b"%d" % number if run == 0 else b"%d.%d" % (run, number)


def closed(calls: list[ToolCall], results: dict[str, ToolResult], stop_reason: str) -> list[Block]:
    """Return exactly one result for each call, also for those that have none."""
    missing = _MISSING if stop_reason == "tool_use" else _NOT_RUN
    return [results.get(call.id) or ToolResult(call.id, missing, is_error=True) for call in calls]


def remembered(journal: Journal) -> list[ChatMessage]:
    """Return the conversation of the message's runs, open tool calls closed."""
    prompts: dict[int, ChatMessage] = {}
    answers: dict[tuple[int, int], ModelAnswer] = {}
    amended: dict[tuple[int, int], requests.Changes] = {}  # before the call that they name
    results: dict[str, ToolResult] = {}
    asked: dict[str, Outcome] = {}  # what answered a tool call, perhaps before the model was told
    for slot in journal.slots.values():
        name, _, rest = slot.key.partition(b"\0")
        if slot.outcome is None:
            continue
        try:
            match = bytes.fromhex(rest.rpartition(b"#")[0].decode()).decode()
            value = slot.outcome.value
            if name.startswith((b"ask ", b"query ")):
                asked[match] = slot.outcome
            elif value is None:
                continue
            elif name == PROMPT.encode():
                prompts[int(match)] = _message(value)
            elif name == RESULT.encode():
                results[match] = _result(value)
            elif name == ANSWER.encode():
                of_run, _, index = match.rpartition(".")
                answers[int(of_run or 0), int(index)] = _answer(value)
                changes = requests.read(ladder.read(journal.ladder(slot)).amended)
                amended[int(of_run or 0), int(index)] = changes
        except (ValueError, msgspec.MsgspecError):
            continue  # A step of the user's, or a row that does not decode: there is nothing to remember in it.
    entries: list[ChatMessage] = []
    for run in sorted(prompts):
        entries.append(prompts[run])
        numbers = sorted(number for of, number in answers if of == run)
        for number in numbers:
            answer = answers[run, number]
            entries += amended[run, number].appended
            following = amended.get((run, number + 1), _NOTHING)
            if following.drops:
                continue
            entries.append(ChatMessage("assistant", list(answer.content)))
            for call in answer.tool_calls:
                if call.id not in results and call.id in asked:
                    results[call.id] = _told(call.id, asked[call.id])
            after = closed(answer.tool_calls, results, answer.stop_reason)
            unusable = number != numbers[-1] and answer.stop_reason not in ("tool_use", "pause_turn")
            if unusable and not following.appended:
                after.append(Text("Your last answer could not be used."))
            if after:
                entries.append(ChatMessage("user", after))
    return entries


def _told(call_id: str, outcome: Outcome) -> ToolResult:
    if outcome.value is None:
        failure = outcome.failure
        return ToolResult(call_id, f"{failure.type}: {failure.message}" if failure else _MISSING, is_error=True)
    return ToolResult(call_id, as_text(msgspec.msgpack.decode(outcome.value)))


def as_text(value: Any) -> str:
    """Return a tool's value as the model reads it: text as it is, anything else as JSON."""
    if isinstance(value, str):
        return storable(value)
    try:
        return msgspec.json.encode(value).decode()
    except (TypeError, msgspec.MsgspecError):
        return msgspec.json.encode(msgspec.msgpack.decode(encode(value))).decode()
