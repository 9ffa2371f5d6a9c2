"""The conversation of an agent: what it was asked, what the model answered, what the tools told the model.

It is a log: a turn appends what it added, whatever the length of the history, and every tool call in it has exactly one
result. A run that is cancelled or given up is remembered from its journal, whichever attempt and life of the process
did the work. Knows nothing of how models and tools are called.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, TypeVar, cast

import msgspec

from understudy.actors import changes
from understudy.actors.changes import Changes
from understudy.actors.ladder import rungs_of
from understudy.codec import encode
from understudy.endpoint.model import Block, ChatMessage, ModelAnswer, Text, ToolResult, append_message
from understudy.endpoint.sizes import Messages
from understudy.mailbox.journal import Journal, JournalEntry, Outcome, Slot, storable

if TYPE_CHECKING:
    from understudy.actors.turn import Turn

_Stored = TypeVar("_Stored")

PROMPT = "prompt"  # a run's first message, under the run's number
ANSWER = "model model"  # the step of a model call, under the numbers of run and call
RESULT = "result"  # what the model was told of a tool call, under the call's id

_MISSING = "The run ended before this call had a result; nobody knows how far it got."
_NOT_RUN = "The answer ended otherwise than with its tool calls: this call did not run."

_NOTHING = Changes()
_message = msgspec.msgpack.Decoder(ChatMessage).decode
_answer = msgspec.msgpack.Decoder(ModelAnswer).decode
_result = msgspec.msgpack.Decoder(ToolResult).decode


def answer_key(run: int, number: int) -> bytes:
    """Return what the model call *number* of a turn's run *run* is matched by."""
    return b"%d" % number if run == 0 else b"%d.%d" % (run, number)


class Conversation:
    """The messages of an agent, as one of its turns knows them; what the turn adds is stored when it commits."""

    def __init__(self, turn: Turn, before: Iterable[ChatMessage]) -> None:
        self.turn = turn
        self.messages = Messages(before)
        for message, _ in turn.records or ():
            append_message(self.messages, message)
        self.results: dict[str, ToolResult] = {}  # of tool calls, by their ids
        self._open: ModelAnswer | None = None  # the newest answer, until its tool calls have their results

    def append(self, message: ChatMessage) -> None:
        """Add a message; a summary shortens the conversation for all that follows."""
        append_message(self.messages, message)
        if self.turn.records is None:
            self.turn.records = []
        self.turn.records.append((message, encode(message)))

    def append_answer(self, answer: ModelAnswer) -> None:
        """Add an answer; its tool calls get their results by `close`."""
        self.append(ChatMessage("assistant", list(answer.content)))
        self._open = answer

    def close(self) -> None:
        """Give each tool call of the newest answer its result, also when there is none; again it does nothing."""
        answer, self._open = self._open, None
        if answer is not None and answer.tool_calls:
            self.append(ChatMessage("user", _closed(answer, self.results)))

    def append_unusable(self, answer: ModelAnswer) -> None:
        """Add an answer that is not the run's output.

        One that was cut off may hold tool calls: each gets its one result, and none is run.
        """
        self.append_answer(answer)
        self.close()

    def stored(self, type_: type[_Stored], slot: Slot, what: str) -> _Stored:
        """Return the journaled *what*; one that does not decode ends the turn and suspends the actor."""
        assert slot.outcome is not None
        assert slot.outcome.value is not None
        activation = self.turn.activation
        decode = activation.system.registry.decoder(type_)
        what = f"the journaled {what} of {activation.name}"
        return cast(_Stored, self.turn.decode_stored(decode, slot.outcome.value, what))


def _closed(answer: ModelAnswer, results: dict[str, ToolResult]) -> list[Block]:
    """Return exactly one result for each tool call, also for those that have none."""
    missing = _MISSING if answer.stop_reason == "tool_use" else _NOT_RUN
    return [results.get(call.id) or ToolResult(call.id, missing, is_error=True) for call in answer.tool_calls]


def remembered(journal: Journal) -> list[ChatMessage]:
    """Return the conversation of the message's runs, open tool calls closed."""
    prompts: dict[int, ChatMessage] = {}
    answers: dict[tuple[int, int], ModelAnswer] = {}
    amended: dict[tuple[int, int], Changes] = {}  # before the call that they name
    results: dict[str, ToolResult] = {}
    late: dict[str, Changes] = {}  # by amendments of tool calls
    asked: dict[str, Outcome] = {}  # what answered a tool call, perhaps before the model was told
    for slot in journal.slots.values():
        name, _, rest = slot.key.partition(b"\0")
        hexed, _, nth = rest.rpartition(b"#")
        if not nth.isdigit():
            continue  # The ladder of a step, which is read with its step.
        try:
            match = bytes.fromhex(hexed.decode()).decode()
            if name == ANSWER.encode():  # Also of one that was not answered: what was added for it is there.
                of_run, _, index = match.rpartition(".")
                amended[int(of_run or 0), int(index)] = changes.read(rungs_of(journal, slot).amended)
            if slot.outcome is None:
                continue
            value = slot.outcome.value
            if name.startswith((b"ask ", b"query ")):
                asked[match] = slot.outcome
            elif value is None:
                continue
            elif name == PROMPT.encode():
                prompts[int(match)] = _message(value)
            elif name == RESULT.encode():
                results[match] = _result(value)
                late[match] = changes.read(rungs_of(journal, slot).amended)
            elif name == ANSWER.encode():
                of_run, _, index = match.rpartition(".")
                answers[int(of_run or 0), int(index)] = _answer(value)
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
            after = _closed(answer, results)
            unusable = number != numbers[-1] and answer.stop_reason not in ("tool_use", "pause_turn", "compaction")
            if unusable and not following.appended:
                after.append(Text("Your last answer could not be used."))
            if after:
                entries.append(ChatMessage("user", after))
            by_calls = [late[call.id] for call in answer.tool_calls if call.id in late]
            for each in sorted(by_calls, key=lambda each: each.version):
                entries += each.appended
        entries += amended.get((run, numbers[-1] + 1 if numbers else 0), _NOTHING).appended
    return entries


def unanswered(entries: Iterable[JournalEntry]) -> tuple[tuple[int, int], str, ModelAnswer] | None:
    """Return the newest answer of a message's runs while a tool call of it lacks its result.

    With the numbers of its run and call before it, and the text of the paused answers that it goes on with.
    """
    answers: dict[tuple[int, int], bytes] = {}
    results: set[str] = set()
    for entry in entries:
        name, _, rest = entry.key.partition(b"\0")
        if entry.outcome.value is None or name not in (ANSWER.encode(), RESULT.encode()):
            continue
        try:
            match = bytes.fromhex(rest.rpartition(b"#")[0].decode()).decode()
            if name == RESULT.encode():
                results.add(match)
            else:
                of_run, _, index = match.rpartition(".")
                answers[int(of_run or 0), int(index)] = entry.outcome.value
        except ValueError:
            continue  # A step of the user's.
    if not answers:
        return None
    run, number = max(answers)
    try:
        newest = _answer(answers[run, number])
        if newest.stop_reason != "tool_use" or all(call.id in results for call in newest.tool_calls):
            return None
        before = ""
        for earlier in range(number - 1, -1, -1):
            paused = _answer(answers[run, earlier])
            if paused.stop_reason != "pause_turn":
                break
            before = paused.text + before
    except (KeyError, msgspec.MsgspecError):
        return None  # The turn itself finds that out.
    return (run, number), before, newest


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
