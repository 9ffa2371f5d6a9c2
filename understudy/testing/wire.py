"""The Messages API's wire format, from the service's side: requests read from JSON, answers written as JSON or SSE.

Ids and token counts come from the request and the answer alone, so the same run gives the same bytes every time.
"""

from __future__ import annotations

from typing import Any

import msgspec

from understudy.testing.answers import WIRE_COUNTS, Answer

_CHARS_PER_TOKEN = 4  # Close enough to real counts, and anybody can check it by hand.
_TEXT_DELTAS = 8  # Deltas per block: enough to see streaming, cheap enough for a benchmark.


class FakeRequest(msgspec.Struct, frozen=True):
    """One request as it arrived; `index` counts all calls from 0, and `body` is the whole of it.

    `messages` and `tools` are without the marks of prompt caching, which move from call to call.
    """

    index: int
    model: str
    system: str
    messages: list[dict[str, Any]]
    tools: list[dict[str, Any]]
    stream: bool
    digest: str
    body: dict[str, Any]


def json_object(raw: bytes) -> dict[str, Any] | None:
    """Return the JSON object in *raw*, None when it is something else."""
    try:
        return msgspec.json.decode(raw, type=dict[str, Any])
    except msgspec.DecodeError:
        return None


def request_from(index: int, digest: str, body: dict[str, Any]) -> FakeRequest:
    """Return what the body of a call says."""
    system = body.get("system") or ""
    if not isinstance(system, str):
        system = "\n".join(str(block.get("text", "")) for block in system)
    return FakeRequest(
        index=index,
        model=str(body.get("model", "")),
        system=system,
        messages=_unmarked(body.get("messages") or []),
        tools=_unmarked(body.get("tools") or []),
        stream=bool(body.get("stream")),
        digest=digest,
        body=body,
    )


def _unmarked(blocks: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return tools, messages or blocks of content without those marks."""
    found: list[dict[str, Any]] = []
    for block in blocks:
        plain = {name: value for name, value in block.items() if name != "cache_control"}
        if isinstance(plain.get("content"), list):
            plain["content"] = _unmarked(plain["content"])
        found.append(plain)
    return found


def tokens(text: str) -> int:
    """Return what the fakes count for a text."""
    return -(-len(text) // _CHARS_PER_TOKEN)


def input_tokens(body: dict[str, Any]) -> int:
    """Return what the fake counts for a request's body."""
    asked = {name: body[name] for name in ("system", "messages", "tools") if name in body}
    return tokens(msgspec.json.encode(asked).decode())


class Wire:
    """One answer in the wire's own words."""

    def __init__(self, request: FakeRequest, answer: Answer) -> None:
        self._answer = answer
        self._request = request
        self._blocks: list[dict[str, Any]] = []
        written = ""
        for number, block in enumerate(answer.blocks):
            named = dict(block)
            if named["type"] == "tool_use":
                # From the request too, so that no two requests get the same id, and the same request gets it again.
                named["id"] = f"toolu_{request.index:06d}{request.digest[:8]}{number:02d}"
                named.setdefault("_written", msgspec.json.encode(named["input"]).decode())
            self._blocks.append(named)
            written += str(named.get("_written") or named.get("text") or named.get("thinking") or "")
        self.input_tokens = answer.usage.get("input_tokens", input_tokens(request.body))
        self.output_tokens = answer.usage.get("output_tokens", tokens(written))

    @property
    def counted_input_tokens(self) -> int:
        """What counts for the limit of input tokens: cache writes do, cache reads do not."""
        usage = self._answer.usage
        return self.input_tokens + usage.get("cache_write_5m_tokens", 0) + usage.get("cache_write_1h_tokens", 0)

    @property
    def _stop_reason(self) -> str:
        if self._answer.stop_reason is not None:
            return self._answer.stop_reason
        return "tool_use" if any(block["type"] == "tool_use" for block in self._blocks) else "end_turn"

    def _usage(self, output_tokens: int) -> dict[str, Any]:
        counts = {WIRE_COUNTS[name]: value for name, value in self._answer.usage.items()}
        split = {name: counts.pop(name, 0) for name in ("ephemeral_5m_input_tokens", "ephemeral_1h_input_tokens")}
        return {
            "cache_read_input_tokens": 0,
            **counts,
            "input_tokens": self.input_tokens,
            "output_tokens": output_tokens,
            "cache_creation_input_tokens": sum(split.values()),
            "cache_creation": split,
            "service_tier": "standard",
        }

    def _message(self, content: list[dict[str, Any]], stop_reason: str | None, usage: dict[str, Any]) -> dict[str, Any]:
        return {
            "id": f"msg_{self._request.index:06d}{self._request.digest[:12]}",
            "type": "message",
            "role": "assistant",
            "model": self._request.model,
            "content": content,
            "stop_reason": stop_reason,
            "stop_sequence": None,
            "usage": usage,
        }

    def whole(self) -> bytes:
        """Return the answer as one JSON body."""
        message = self._message(
            [_public(block) for block in self._blocks], self._stop_reason, self._usage(self.output_tokens)
        )
        if self._answer.stop_details is not None:
            message["stop_details"] = self._answer.stop_details
        return msgspec.json.encode(message)

    def stream(self) -> bytes:
        """Return the answer as events."""
        events = [_event("message_start", message=self._message([], None, self._usage(min(1, self.output_tokens))))]
        for index, block in enumerate(self._blocks):
            events.append(_event("content_block_start", index=index, content_block=_empty(block)))
            if index == 0:
                events.append(_event("ping"))
            events.extend(_event("content_block_delta", index=index, delta=delta) for delta in _deltas(block))
            if self._answer.fault == "error_event":
                break
            events.append(_event("content_block_stop", index=index))
        if self._answer.fault == "error_event":
            events.append(_event("error", error=self._answer.error))
        elif self._answer.fault != "end":
            delta = {"stop_reason": self._stop_reason, "stop_sequence": None, "stop_details": self._answer.stop_details}
            # Cumulative counts, and only some of them: the input side came with the start.
            events.append(_event("message_delta", delta=delta, usage={"output_tokens": self.output_tokens}))
            events.append(_event("message_stop"))
        return b"".join(events)


def _event(name: str, **facts: Any) -> bytes:
    return b"event: %b\ndata: %b\n\n" % (name.encode(), msgspec.json.encode({"type": name, **facts}))


def _public(block: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in block.items() if name != "_written"}


def _empty(block: dict[str, Any]) -> dict[str, Any]:
    """The block as it starts: everything that deltas bring is still empty."""
    blank: dict[str, Any] = {"text": "", "thinking": "", "signature": "", "input": {}}
    return {name: blank.get(name, value) for name, value in _public(block).items()}


def _deltas(block: dict[str, Any]) -> list[dict[str, Any]]:
    match block["type"]:
        case "text":
            return [{"type": "text_delta", "text": part} for part in parts(block["text"])]
        case "thinking":
            thoughts = [{"type": "thinking_delta", "thinking": part} for part in parts(block["thinking"])]
            return [*thoughts, {"type": "signature_delta", "signature": block["signature"]}]
        case kind if kind != "tool_use":
            return []  # Whatever else there is comes whole with its start.
        case _:
            # The service begins the arguments with an empty piece.
            written = ["", *parts(block["_written"])]
            return [{"type": "input_json_delta", "partial_json": part} for part in written]


def parts(text: str) -> list[str]:
    """Return the text in the pieces in which it is streamed."""
    size = max(1, -(-len(text) // _TEXT_DELTAS))
    return [text[start : start + size] for start in range(0, len(text), size)]


def error_body(answer: Answer, request_id: str) -> bytes:
    """Return the JSON body of an answer made by `fails`."""
    return msgspec.json.encode({"type": "error", "error": answer.error or {}, "request_id": request_id})
