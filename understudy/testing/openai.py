"""The fake endpoint that speaks the chat completions API, and that API's wire format from the service's side.

The same answers mean the same on both fakes, each in its service's own words: an answer that `fails(429)` names the
rate limit's code here and its type there. Thinking is sent as servers with open models do, beside the content.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from datetime import datetime
from typing import Any

import msgspec

from understudy.clock import wall_clock
from understudy.endpoint.openai import OpenAICompatibleProvider
from understudy.testing.answers import Answer, fails
from understudy.testing.fake_endpoint import FakeEndpoint
from understudy.testing.wire import FakeRequest, input_tokens, parts, tokens

_FINISH_REASONS: Mapping[str, str] = {
    "end_turn": "stop", "stop_sequence": "stop", "tool_use": "tool_calls", "max_tokens": "length",
    "refusal": "content_filter",
}  # fmt: skip

# Error types and codes of `fails` and `in_stream_error`, in this API's words: type and code. Others stay what they are.
_ERRORS: Mapping[str, tuple[str, str | None]] = {
    "rate_limit_error": ("requests", "rate_limit_exceeded"),
    "overloaded_error": ("server_error", "server_is_overloaded"),
    "api_error": ("server_error", None),
    "timeout_error": ("server_error", None),
    "billing_error": ("insufficient_quota", "insufficient_quota"),
    "authentication_error": ("invalid_request_error", "invalid_api_key"),
    "permission_error": ("invalid_request_error", None),
    "not_found_error": ("invalid_request_error", "model_not_found"),
    "request_too_large": ("invalid_request_error", None),
    "conflict_error": ("invalid_request_error", None),
}
_CODES: Mapping[str, tuple[str, str]] = {
    "ramp_limit_exceeded": ("tokens", "rate_limit_exceeded"),
    "enforced_spend_limit_reached": ("insufficient_quota", "insufficient_quota"),
    "contract_spend_limit_reached": ("insufficient_quota", "insufficient_quota"),
    "compaction_unavailable": ("server_error", "server_is_overloaded"),
    "organization_on_hold": ("invalid_request_error", "account_deactivated"),
}


class FakeOpenAI(FakeEndpoint):
    """A model endpoint like `FakeAnthropic`, for `OpenAICompatibleProvider`: the same script, faults and accounting.

    It speaks chat completions, so `stops("refusal")` is its content filter, `thinks` is sent as `reasoning_content`,
    and a broken answer tells no usage: this API does so only at the end.
    """

    _BASE = "/v1"
    _CALL = "/v1/chat/completions"
    _REQUEST_ID = "x-request-id"

    def _provider(self, *, timeout_s: float, read_timeout_s: float) -> OpenAICompatibleProvider:
        return OpenAICompatibleProvider(
            base_url=self.url, api_key="fake-key", timeout_s=timeout_s, read_timeout_s=read_timeout_s
        )

    def _request(self, index: int, digest: str, body: dict[str, Any]) -> FakeRequest:
        messages: list[dict[str, Any]] = body.get("messages") or []
        system = [str(message.get("content", "")) for message in messages if message.get("role") == "system"]
        return FakeRequest(
            index=index,
            model=str(body.get("model", "")),
            system="\n".join(system),
            messages=[message for message in messages if message.get("role") != "system"],
            tools=body.get("tools") or [],
            stream=bool(body.get("stream")),
            digest=digest,
            body=body,
        )

    def _refusal_to_serve(self, headers: dict[str, str], body: dict[str, Any] | None) -> Answer | None:
        if not headers.get("authorization", "").startswith("Bearer "):
            return fails(401, message="You didn't provide an API key.")
        if body is None:
            return fails(400, message="We could not parse the JSON body of your request.")
        missing = [name for name in ("model", "messages") if name not in body]
        return fails(400, message=f"Missing required parameter: '{missing[0]}'.") if missing else None

    def _wire(self, request: FakeRequest, answer: Answer) -> _Wire:
        return _Wire(request, answer)

    def _error_body(self, answer: Answer, request_id: str) -> bytes:
        return msgspec.json.encode({"error": _error(answer)})

    def _limit_headers(self, model: str) -> dict[str, str]:
        told = super()._limit_headers(model)
        now = wall_clock(asyncio.get_running_loop())()
        found: dict[str, str] = {}
        for name in ("requests", "tokens"):
            prefix = f"anthropic-ratelimit-{name}"
            if f"{prefix}-limit" in told:
                reset_s = max(0.0, datetime.fromisoformat(told[f"{prefix}-reset"]).timestamp() - now)
                found[f"x-ratelimit-limit-{name}"] = told[f"{prefix}-limit"]
                found[f"x-ratelimit-remaining-{name}"] = told[f"{prefix}-remaining"]
                found[f"x-ratelimit-reset-{name}"] = f"{reset_s:.3f}s"
        return found

    def _other(self, method: str, path: str, raw: bytes) -> bytes | None:
        return b'{"object":"list","data":[]}' if (method, path) == ("GET", "/v1/models") else None


class _Wire:
    """One answer in the wire's own words."""

    def __init__(self, request: FakeRequest, answer: Answer) -> None:
        self._answer = answer
        self._request = request
        self._text = "".join(block["text"] for block in answer.blocks if block["type"] == "text")
        self._thinking = "".join(block["thinking"] for block in answer.blocks if block["type"] == "thinking")
        self._calls: list[dict[str, Any]] = [
            {
                # From the request too, so that no two requests get the same id, and the same request gets it again.
                "id": f"call_{request.index:06d}{request.digest[:8]}{number:02d}",
                "type": "function",
                "function": {
                    "name": block["name"],
                    "arguments": block.get("_written", msgspec.json.encode(block["input"]).decode()),
                },
            }
            for number, block in enumerate(answer.blocks)
            if block["type"] == "tool_use"
        ]
        written = self._thinking + self._text + "".join(call["function"]["arguments"] for call in self._calls)
        self.input_tokens = answer.usage.get("input_tokens", input_tokens(request.body))
        self.output_tokens = answer.usage.get("output_tokens", tokens(written))

    @property
    def counted_input_tokens(self) -> int:
        """What counts for the limit of input tokens: everything but what was cached."""
        usage = self._usage
        return int(usage["prompt_tokens"] - usage["prompt_tokens_details"]["cached_tokens"])

    @property
    def _finish_reason(self) -> str:
        reason = self._answer.stop_reason or ("tool_use" if self._calls else "end_turn")
        return _FINISH_REASONS.get(reason, reason)

    @property
    def _usage(self) -> dict[str, Any]:
        used = self._answer.usage
        cached = used.get("cache_read_tokens", 0)
        # Cached tokens are part of the prompt here, and writing to the cache has no price of its own.
        prompt = self.input_tokens + cached + sum(used.get(f"cache_write_{each}_tokens", 0) for each in ("5m", "1h"))
        return {
            "prompt_tokens": prompt,
            "completion_tokens": self.output_tokens,
            "total_tokens": prompt + self.output_tokens,
            "prompt_tokens_details": {"cached_tokens": cached},
        }

    def _completion(self, kind: str, choices: list[dict[str, Any]], **more: Any) -> dict[str, Any]:
        return {
            "id": f"chatcmpl-{self._request.index:06d}{self._request.digest[:12]}",
            "object": kind,
            "created": 0,
            "model": self._request.model,
            "choices": choices,
            **more,
        }

    def whole(self) -> bytes:
        """Return the answer as one JSON body."""
        message: dict[str, Any] = {"role": "assistant", "content": self._text or None, "refusal": None}
        if self._thinking:
            message["reasoning_content"] = self._thinking
        if self._calls:
            message["tool_calls"] = self._calls
        choice = {"index": 0, "message": message, "finish_reason": self._finish_reason}
        return msgspec.json.encode(self._completion("chat.completion", [choice], usage=self._usage))

    def stream(self) -> bytes:
        """Return the answer as events."""
        options: dict[str, Any] = self._request.body.get("stream_options") or {}
        counts = bool(options.get("include_usage"))
        more: dict[str, Any] = {"usage": None} if counts else {}

        def chunk(delta: dict[str, Any], finish_reason: str | None = None) -> bytes:
            choice = {"index": 0, "delta": delta, "finish_reason": finish_reason}
            return _event(self._completion("chat.completion.chunk", [choice], **more))

        events = [chunk({"role": "assistant", "content": "", "refusal": None})]
        events += [chunk({"reasoning_content": part}) for part in parts(self._thinking)]
        events += [chunk({"content": part}) for part in parts(self._text)]
        for index, call in enumerate(self._calls):
            start = {**call, "function": {**call["function"], "arguments": ""}}
            events.append(chunk({"tool_calls": [{"index": index, **start}]}))
            events += [
                chunk({"tool_calls": [{"index": index, "function": {"arguments": part}}]})
                for part in parts(call["function"]["arguments"])
            ]
        if self._answer.fault == "error_event":
            events.append(_event({"error": _error(self._answer)}))
        elif self._answer.fault != "end":
            events.append(chunk({}, self._finish_reason))
            if counts:
                events.append(_event(self._completion("chat.completion.chunk", [], usage=self._usage)))
            events.append(b"data: [DONE]\n\n")
        return b"".join(events)


def _event(chunk: dict[str, Any]) -> bytes:
    return b"data: %b\n\n" % msgspec.json.encode(chunk)


def _error(answer: Answer) -> dict[str, Any]:
    said: dict[str, Any] = answer.error or {}
    kind, code = _ERRORS.get(said["type"], (said["type"], None))
    details: dict[str, Any] = said.get("details") or {}
    if "error_code" in details:
        kind, code = _CODES.get(details["error_code"], (kind, details["error_code"]))
    return {"message": said["message"], "type": kind, "param": None, "code": code}
