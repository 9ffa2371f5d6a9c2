"""The chat completions format, which many services and servers speak: requests written, streamed answers put together.

Pure translation between it and our own data; knows nothing of connections. Servers differ in what they leave out, so
only what every answer needs is demanded: a reason to stop, and the end of the stream.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any, Literal, TypeAlias, cast

import msgspec

from understudy.endpoint.model import (
    Allowance,
    Block,
    ChatMessage,
    Meter,
    ModelAnswer,
    ModelRequest,
    Text,
    ToolCall,
    ToolResult,
    Usage,
)
from understudy.endpoint.strict_schema import is_strict
from understudy.errors import EndpointUnavailable, Refused, RequestRejected

MaxTokensField: TypeAlias = Literal["max_completion_tokens", "max_tokens"]

# What the format says, in our words; reasons nobody knows yet are handed on. Servers say "stop" after tool calls too.
_ENDED = frozenset({"stop", "tool_calls", "function_call"})
_STOP_REASONS: Mapping[str, str] = {"length": "max_tokens"}


# The request -----------------------------------------------------------------------------------------------------


def body_of(request: ModelRequest, max_tokens_field: MaxTokensField) -> dict[str, Any]:
    """Return the request's body, but for `stream`.

    Raises:
        RequestRejected: A message holds what cannot be said in this format; nothing was sent.
    """
    messages: list[dict[str, Any]] = [{"role": "system", "content": request.system}] if request.system else []
    for message in request.messages:
        messages += _assistant(message) if message.role == "assistant" else _user(message)
    body: dict[str, Any] = {"model": request.model, max_tokens_field: request.max_tokens, "messages": messages}
    if request.tools:
        body["tools"] = [
            {
                "type": "function",
                "function": {"name": tool.name, "description": tool.description, "parameters": tool.schema},
            }
            for tool in request.tools
        ]
    if request.output_schema is not None:
        schema = request.output_schema
        body["response_format"] = {
            "type": "json_schema",
            "json_schema": {"name": "answer", "schema": schema, "strict": is_strict(schema)},
        }
    return body


def _assistant(message: ChatMessage) -> list[dict[str, Any]]:
    text = "".join(block.text for block in message.content if isinstance(block, Text))
    calls = [block for block in message.content if isinstance(block, ToolCall)]
    _refuse_unknown(message)
    if not text and not calls:
        return []  # Such as an answer that was all thinking.
    said: dict[str, Any] = {"role": "assistant", "content": text or None}
    if calls:
        said["tool_calls"] = [
            {
                "id": call.id,
                "type": "function",
                # As JSON again, also of a malformed call: some servers decode it before they show it to the model.
                "function": {"name": call.name, "arguments": msgspec.json.encode(call.arguments).decode()},
            }
            for call in calls
        ]
    return [said]


def _user(message: ChatMessage) -> list[dict[str, Any]]:
    # Results are messages of their own, and come right after the calls they answer.
    said: list[dict[str, Any]] = [
        {"role": "tool", "tool_call_id": block.call_id, "content": _result(block)}
        for block in message.content
        if isinstance(block, ToolResult)
    ]
    texts = [block.text for block in message.content if isinstance(block, Text) and block.text]
    _refuse_unknown(message)
    if len(texts) == 1:
        said.append({"role": "user", "content": texts[0]})  # The plain form, which every server takes.
    elif texts:
        said.append({"role": "user", "content": [{"type": "text", "text": text} for text in texts]})
    return said


def _result(result: ToolResult) -> str:
    # The format has no mark for errors: the model has to read it.
    return f"Error: {result.content}" if result.is_error else result.content


def _refuse_unknown(message: ChatMessage) -> None:
    """Opaque blocks are another vendor's and stay away; anything else unknown must not get lost without a word."""
    for block in message.content:
        kind = type(block).__name__
        if kind not in {"Text", "ToolCall", "ToolResult", "Opaque"}:
            raise RequestRejected(
                f"a message of role {message.role!r} holds a {kind} block, which OpenAICompatibleProvider cannot send yet; "
                "nothing was sent. Use text, or a provider that takes such blocks.",
                sent=False,
            )


# The answer ------------------------------------------------------------------------------------------------------


class _Function(msgspec.Struct):
    name: str | None = None
    arguments: str | None = None


class _CallDelta(msgspec.Struct):
    index: int | None = None
    id: str | None = None
    function: _Function | None = None


class _Delta(msgspec.Struct):
    content: str | None = None
    refusal: str | None = None
    tool_calls: list[_CallDelta] | None = None
    function_call: _Function | None = None  # the older form of a tool call


class _Choice(msgspec.Struct):
    index: int = 0
    delta: _Delta | None = None
    finish_reason: str | None = None


class _PromptDetails(msgspec.Struct):
    cached_tokens: int | None = None


class _Counts(msgspec.Struct):
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    prompt_tokens_details: _PromptDetails | None = None


class Chunk(msgspec.Struct):
    """One event of the stream; fields that a server leaves out or adds do no harm."""

    id: str | None = None
    model: str | None = None
    choices: list[_Choice] | None = None
    usage: _Counts | None = None
    error: dict[str, Any] | str | None = None


decode_chunk = msgspec.json.Decoder(Chunk).decode


class _Call:
    """A tool call as far as it has come."""

    def __init__(self, id: str | None) -> None:
        self.id = id
        self.name = ""
        self.written: list[str] = []


class Assembly:
    """The answer as far as it has come.

    Does not say how much of it has come: models here think without showing it, so what was written says nothing about
    what was counted.
    """

    def __init__(self, model: str, on_text: Callable[[str], None] | None) -> None:
        self._model = model
        self._on_text = on_text
        self.status: int | None = None  # Known as soon as the answer has begun.
        self.request_id: str | None = None
        self.usage: Usage | None = None  # What was counted until now; most services tell it at the very end.
        self._id = ""
        self._answered_by = ""
        self._text: list[str] = []
        self._refusal: list[str] = []
        self._calls: list[_Call] = []
        self._by_index: dict[int, _Call] = {}
        self._finish_reason: str | None = None

    @property
    def finished(self) -> bool:
        """Whether the model has said why it stopped."""
        return self._finish_reason is not None

    def add(self, chunk: Chunk) -> None:
        """Take the next chunk in."""
        self._id = self._id or chunk.id or ""
        self._answered_by = self._answered_by or chunk.model or ""
        if chunk.usage is not None:
            self._count(chunk.usage)
        for choice in chunk.choices or ():
            if choice.index != 0:
                continue  # Only one was asked for.
            if choice.delta is not None:
                self._grow(choice.delta)
            self._finish_reason = choice.finish_reason or self._finish_reason

    def answer(self) -> ModelAnswer:
        """Return the answer, whose stream has come to its end; one that lacks what the format promises is none."""
        facts: dict[str, Any] = {
            "status": self.status, "request_id": self.request_id, "retry_after_s": None, "error_code": None,
            "error_type": None, "sent": True, "billed": True, "usage": self.usage,
        }  # fmt: skip
        reason = self._finish_reason
        if reason is None:
            raise EndpointUnavailable("the answer lacks its finish_reason", **facts)
        if reason == "content_filter":
            raise Refused("the service's content filter stopped the answer", category=reason, **facts)
        if self._refusal:
            raise Refused(f"the model declined to answer: {''.join(self._refusal)}", category=None, **facts)
        text = "".join(self._text)
        content: list[Block] = [Text(text)] if text else []
        content += [self._call(number, call) for number, call in enumerate(self._calls)]
        return ModelAnswer(
            id=self._id,
            model=self._answered_by or self._model,
            content=content,
            stop_reason=("tool_use" if self._calls else "end_turn")
            if reason in _ENDED
            else _STOP_REASONS.get(reason, reason),
            # A server that was asked for the counts and tells none: what it did is unknown, and nothing is made up.
            usage=self.usage or Usage(),
            request_id=self.request_id,
        )

    def _count(self, counts: _Counts) -> None:
        details = counts.prompt_tokens_details
        cached = (details.cached_tokens or 0) if details is not None else 0
        prompt = counts.prompt_tokens or 0
        self.usage = Usage(
            # The format counts cached tokens as part of the prompt; ours do not overlap.
            input_tokens=max(0, prompt - cached),
            output_tokens=counts.completion_tokens or 0,
            cache_read_tokens=cached,
        )

    def _grow(self, delta: _Delta) -> None:
        if delta.content:
            self._text.append(delta.content)
            if self._on_text is not None:
                self._on_text(delta.content)
        if delta.refusal:
            self._refusal.append(delta.refusal)
        for each in delta.tool_calls or ():
            self._grow_call(each)
        if delta.function_call is not None:
            self._grow_call(_CallDelta(index=0, function=delta.function_call))

    def _grow_call(self, delta: _CallDelta) -> None:
        newest = self._calls[-1] if self._calls else None
        known = newest if delta.index is None else self._by_index.get(delta.index)
        # Some servers send each call whole, without an index or all with the same one: then the id tells them apart.
        if known is None or (delta.id and known.id and delta.id != known.id):
            known = _Call(delta.id)
            self._calls.append(known)
            if delta.index is not None:
                self._by_index[delta.index] = known
        known.id = known.id or delta.id
        if delta.function is not None:
            known.name = known.name or delta.function.name or ""
            known.written.append(delta.function.arguments or "")

    def _call(self, number: int, call: _Call) -> ToolCall:
        # Results are matched by id, so a call without one gets one that no other call of the conversation has.
        id_ = call.id or f"call_{self._id}_{number}"
        written = "".join(call.written)
        if not written.strip():
            return ToolCall(id_, call.name, {})
        try:
            return ToolCall(id_, call.name, msgspec.json.decode(written, type=dict[str, Any]))
        except msgspec.DecodeError:
            return ToolCall(id_, call.name, {}, written)


# The headers -----------------------------------------------------------------------------------------------------

_PARTS = re.compile(r"(\d+(?:\.\d+)?)(ms|d|h|m|s)")
_SECONDS: Mapping[str, float] = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}


def allowance_of(headers: Mapping[str, str], now: float) -> Allowance | None:
    """Return what the `x-ratelimit-...` headers say at wall time *now*; None when they say nothing."""
    requests, tokens = _meter(headers, "requests", now), _meter(headers, "tokens", now)
    return None if requests is None and tokens is None else Allowance(requests=requests, tokens=tokens)


def _meter(headers: Mapping[str, str], name: str, now: float) -> Meter | None:
    limit = _whole(headers.get(f"x-ratelimit-limit-{name}"))
    remaining = _whole(headers.get(f"x-ratelimit-remaining-{name}"))
    reset_s = duration_s(headers.get(f"x-ratelimit-reset-{name}", ""))
    if limit is None and remaining is None and reset_s is None:
        return None
    return Meter(limit, remaining, None if reset_s is None else now + reset_s)


def duration_s(written: str) -> float | None:
    """Return the seconds of a time such as `20ms`, `1s`, `6m0s`, `1h2m3.5s` or `7.5`; None for anything else."""
    written = written.strip()
    if re.fullmatch(r"\d+(\.\d+)?", written):
        return float(written)
    parts = cast(list[tuple[str, str]], _PARTS.findall(written))
    if not parts or "".join(number + unit for number, unit in parts) != written:
        return None
    return sum(float(number) * _SECONDS[unit] for number, unit in parts)


def _whole(written: str | None) -> int | None:
    return int(written) if written is not None and written.strip().isdecimal() else None
