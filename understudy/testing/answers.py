"""What the fake model endpoint can be told to answer: content, a failure, or a broken connection.

An `Answer` is a value: it can be made once, kept in a table and given many times. Knows nothing of sockets and bytes.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Mapping
from typing import Any, Literal, cast

import msgspec

from understudy.errors import InvalidDefinition

_ERROR_TYPES: Mapping[int, str] = {
    400: "invalid_request_error", 401: "authentication_error", 402: "billing_error", 403: "permission_error",
    404: "not_found_error", 409: "conflict_error", 413: "request_too_large", 429: "rate_limit_error",
    504: "timeout_error", 529: "overloaded_error",
}  # fmt: skip

# The names of `Usage`, and those of the wire.
WIRE_COUNTS: Mapping[str, str] = {
    "input_tokens": "input_tokens",
    "output_tokens": "output_tokens",
    "cache_read_tokens": "cache_read_input_tokens",
    "cache_write_5m_tokens": "ephemeral_5m_input_tokens",
    "cache_write_1h_tokens": "ephemeral_1h_input_tokens",
}


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """What the fake does with one call; made by `says`, `calls`, `fails` and the other functions of this module."""

    # As on the wire, but ids are given when they are sent, and `_written` is the text of a tool's arguments.
    blocks: tuple[dict[str, Any], ...] = ()
    stop_reason: str | None = None
    stop_details: dict[str, Any] | None = None
    usage: dict[str, int] = {}
    status: int = 200
    error: dict[str, Any] | None = None
    headers: dict[str, str] = {}
    body: str | None = None
    content_type: str = "application/json"
    fault: Literal["", "drop", "stall", "hold", "end", "error_event"] = ""
    after_bytes: int = 0

    def used(self, **tokens: int) -> Answer:
        """Return the same answer with these token counts (the names of `Usage`) instead of computed ones."""
        unknown = tokens.keys() - WIRE_COUNTS.keys()
        if unknown:
            raise InvalidDefinition(f"Answer.used takes {', '.join(WIRE_COUNTS)}; got {', '.join(sorted(unknown))}.")
        return msgspec.structs.replace(self, usage={**self.usage, **tokens})


def says(value: object, /) -> Answer:
    """Answer with text: a `str` as it is, any other value as its JSON."""
    text = value if isinstance(value, str) else msgspec.json.encode(value).decode()
    return Answer(blocks=({"type": "text", "text": text},))


def thinks(thinking: str, /, *, signature: str = "signature") -> Answer:
    """Answer with a thinking block; join it with others by `together`."""
    return Answer(blocks=({"type": "thinking", "thinking": thinking, "signature": signature},))


def calls(tool: Any, /, *args: Any, **kwargs: Any) -> Answer:
    """Ask for *tool* to be run with these arguments; a plain name takes keyword arguments only."""
    return Answer(blocks=({"type": "tool_use", "name": _tool_name(tool), "input": _arguments(tool, args, kwargs)},))


def together(*answers: Answer) -> Answer:
    """Answer with the content of all of them in one message, such as text and several tool calls."""
    if not answers or any(answer.status != 200 or answer.fault or answer.body is not None for answer in answers):
        raise InvalidDefinition("together joins answers made by says, thinks and calls; faults stand alone.")
    usage: dict[str, int] = {}
    for answer in answers:
        usage |= answer.usage
    return Answer(blocks=tuple(block for answer in answers for block in answer.blocks), usage=usage)


def fails(
    status: int,
    *,
    retry_after_s: float | None = None,
    error_code: str | None = None,
    type: str | None = None,
    message: str | None = None,
) -> Answer:
    """Answer with an error status; type and message default to what the service says for it."""
    if not 400 <= status <= 599:
        raise InvalidDefinition(
            f"fails takes an HTTP error status from 400 to 599; got {status!r}. Use says to answer."
        )
    kind = type or _ERROR_TYPES.get(status, "invalid_request_error" if status < 500 else "api_error")
    headers: dict[str, str] = {}
    if retry_after_s is not None:
        headers["retry-after"] = str(int(-(-retry_after_s // 1)))
        if retry_after_s != int(retry_after_s):
            headers["retry-after-ms"] = str(round(retry_after_s * 1000))
    return Answer(status=status, error=_error(kind, message or f"fake {kind}", error_code), headers=headers)


def html_error(status: int = 502) -> Answer:
    """Answer with the HTML error page of a proxy on the way."""
    page = f"<html><head><title>{status}</title></head><body><h1>{status} from a proxy</h1></body></html>"
    return Answer(status=status, body=page, content_type="text/html")


def in_stream_error(
    type: str = "overloaded_error",
    *,
    message: str | None = None,
    error_code: str | None = None,
    answer: Answer | None = None,
) -> Answer:
    """Begin *answer*, then send an error event in place of its end; the status stays 200."""
    error = _error(type, message or f"fake {type}", error_code)
    return msgspec.structs.replace(answer or _SOME_TEXT, fault="error_event", error=error)


def drops(after_bytes: int = 900, *, answer: Answer | None = None) -> Answer:
    """Send so many bytes of the answer's body, then close the connection; 0 closes it before the headers."""
    return msgspec.structs.replace(answer or _SOME_TEXT, fault="drop", after_bytes=after_bytes)


def stalls(after_bytes: int = 900, *, answer: Answer | None = None) -> Answer:
    """Send so many bytes of the answer's body, then nothing until the client hangs up; 0 stalls before the headers."""
    return msgspec.structs.replace(answer or _SOME_TEXT, fault="stall", after_bytes=after_bytes)


def holds(after_bytes: int = 900, *, answer: Answer | None = None) -> Answer:
    """Send so many bytes of the answer's body, then the rest once the test calls `FakeAnthropic.release`."""
    return msgspec.structs.replace(answer or _SOME_TEXT, fault="hold", after_bytes=after_bytes)


def ends_early(answer: Answer | None = None) -> Answer:
    """Send the content, then end the stream properly but without `message_delta` and `message_stop`."""
    return msgspec.structs.replace(answer or _SOME_TEXT, fault="end")


def broken_tool_json(tool: Any, /, written: str = '{"query": supervisors}') -> Answer:
    """Ask for *tool* with arguments that are not JSON."""
    return Answer(blocks=({"type": "tool_use", "name": _tool_name(tool), "input": {}, "_written": written},))


def cut_by_max_tokens(answer: Answer | str) -> Answer:
    """Answer with the first half of the last block, and the stop reason `max_tokens`."""
    whole = says(answer) if isinstance(answer, str) else answer
    last = dict(whole.blocks[-1])
    if last["type"] == "tool_use":
        written = str(last.get("_written", json.dumps(last["input"])))
        last["_written"] = written[: max(1, len(written) // 2)]
    else:
        last["text"] = last["text"][: len(last["text"]) // 2]
    return msgspec.structs.replace(whole, blocks=(*whole.blocks[:-1], last), stop_reason="max_tokens")


def stops(reason: str, answer: Answer | None = None, *, category: str | None = None) -> Answer:
    """Answer with this stop reason; `category` is that of a refusal."""
    details = {"type": "refusal", "category": category, "explanation": None} if reason == "refusal" else None
    return msgspec.structs.replace(answer or Answer(), stop_reason=reason, stop_details=details)


def junk(body: str = "<html>Welcome to the hotel's network</html>", *, content_type: str = "text/html") -> Answer:
    """Answer 200 with something else."""
    return Answer(body=body, content_type=content_type)


_SOME_TEXT = says("This answer is long enough to be cut somewhere in its middle. " * 4)


def _error(kind: str, message: str, error_code: str | None) -> dict[str, Any]:
    error: dict[str, Any] = {"type": kind, "message": message}
    if error_code is not None:
        error["details"] = {"error_code": error_code}
    return error


def _tool_name(tool: Any) -> str:
    name = tool if isinstance(tool, str) else getattr(tool, "tool_name", None) or getattr(tool, "name", None)
    if not isinstance(name, str):
        raise InvalidDefinition(f"a tool, a handler or a tool's name was expected; got {tool!r}.")
    return name


def _arguments(tool: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    bound: dict[str, Any] = dict(kwargs)
    function = None if isinstance(tool, str) else getattr(tool, "function", None)
    if function is not None:
        signature = inspect.signature(function)
        # A handler's function still has its `self`, which the model does not pass.
        if next(iter(signature.parameters), None) == "self":
            signature = signature.replace(parameters=list(signature.parameters.values())[1:])
        bound = dict(signature.bind(*args, **kwargs).arguments)
        for parameter in signature.parameters.values():
            if parameter.kind is parameter.VAR_KEYWORD:
                bound |= bound.pop(parameter.name, {})
    elif args:
        raise InvalidDefinition(
            f"calls({_tool_name(tool)!r}) can name arguments only: a name has no signature to bind to."
        )
    return cast(dict[str, Any], msgspec.to_builtins(bound, str_keys=True))
