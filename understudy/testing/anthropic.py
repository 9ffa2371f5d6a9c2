"""The fake endpoint that speaks the Anthropic Messages API."""

from __future__ import annotations

from typing import Any

import msgspec

from understudy.endpoint.anthropic import AnthropicProvider
from understudy.testing.answers import Answer, fails
from understudy.testing.fake_endpoint import FakeEndpoint
from understudy.testing.wire import FakeRequest, Wire, error_body, input_tokens, json_object, request_from


class FakeAnthropic(FakeEndpoint):
    """A model endpoint that answers what it is told: a script of answers, or a function of the request.

    Open it with `async with`; `endpoint()` goes into `System(endpoints=[...])`. A call beyond the script is answered
    with status 400 and raised when the fake closes, unless the test failed already; so is what the function raises.

    `calls` counts every call, also failed ones; `paid` those answered with content. `split_seed` splits the stream's
    bytes at random places. `ledger_path` is a file that gets one JSON line per paid call, on disk before the answer's
    first byte leaves, so that calls can be counted across the lives of a process.
    """

    _BASE = ""
    _CALL = "/v1/messages"
    _REQUEST_ID = "request-id"

    def _provider(self, *, timeout_s: float, read_timeout_s: float) -> AnthropicProvider:
        return AnthropicProvider(
            base_url=self.url, api_key="fake-key", timeout_s=timeout_s, read_timeout_s=read_timeout_s
        )

    def _request(self, index: int, digest: str, body: dict[str, Any]) -> FakeRequest:
        return request_from(index, digest, body)

    def _refusal_to_serve(self, headers: dict[str, str], body: dict[str, Any] | None) -> Answer | None:
        if not (headers.get("x-api-key") or headers.get("authorization", "").startswith("Bearer ")):
            return fails(401, message="authorization or x-api-key header is required")
        if "anthropic-version" not in headers:
            return fails(400, message="anthropic-version: header is required")
        if body is None:
            return fails(400, message="the request body is not a JSON object")
        missing = [name for name in ("model", "max_tokens", "messages") if name not in body]
        return fails(400, message=f"{missing[0]}: Field required") if missing else None

    def _wire(self, request: FakeRequest, answer: Answer) -> Wire:
        return Wire(request, answer)

    def _error_body(self, answer: Answer, request_id: str) -> bytes:
        return error_body(answer, request_id)

    def _other(self, method: str, path: str, raw: bytes) -> bytes | None:
        match method, path:
            case "POST", "/v1/messages/count_tokens":
                return msgspec.json.encode({"input_tokens": input_tokens(json_object(raw) or {})})
            case "GET", "/v1/models":
                return b'{"data":[],"has_more":false,"first_id":null,"last_id":null}'
            case _:
                return None
