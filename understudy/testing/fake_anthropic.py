"""A model endpoint for tests: a server on loopback that speaks the Anthropic Messages API to the unmodified SDK.

It answers what the test says, counts what it was paid for, and can cause these faults: any error status with code,
type and retry-after; an HTML error page of a proxy; an error event in the stream; a connection that drops, stalls or
ends early before or within an answer; tool arguments that are not JSON; an answer cut by `max_tokens`; any stop
reason; a 200 that is no answer at all; events split at any byte. It cannot cause DNS and TLS faults or slow writes.

Nothing in it waits for time to pass, so it works under virtual time. It also serves clients in other processes.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import inspect
import json
import os
import random
from collections import deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from types import TracebackType
from typing import Any, Literal, Self, TypeAlias, TypeVar, cast, overload

import msgspec

from understudy.clock import outside
from understudy.endpoint.anthropic import AnthropicProvider
from understudy.endpoint.endpoint import Endpoint
from understudy.errors import InvalidDefinition

T = TypeVar("T")

_CHARS_PER_TOKEN = 4  # Close enough to real counts, and anybody can check it by hand.
_TEXT_DELTAS = 8  # Deltas per block: enough to see streaming, cheap enough for a benchmark.
_REQUESTS_KEPT = 1_000  # `requests` is for asserting on; a benchmark of a million calls must not keep them all.
_HEADER_BYTES_MAX = 1 << 16

_ERROR_TYPES: Mapping[int, str] = {
    400: "invalid_request_error", 401: "authentication_error", 402: "billing_error", 403: "permission_error",
    404: "not_found_error", 409: "conflict_error", 413: "request_too_large", 429: "rate_limit_error",
    504: "timeout_error", 529: "overloaded_error",
}  # fmt: skip


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """What the fake does with one call; made by `says`, `calls`, `fails` and the other functions of this module."""

    blocks: tuple[dict[str, Any], ...] = ()
    stop_reason: str | None = None
    stop_details: dict[str, Any] | None = None
    usage: dict[str, int] = {}
    status: int = 200
    error: dict[str, Any] | None = None
    headers: dict[str, str] = {}
    body: str | None = None
    content_type: str = "application/json"
    fault: Literal["", "drop", "stall", "end", "error_event"] = ""
    after_bytes: int = 0

    def used(self, **tokens: int) -> Answer:
        """Return the same answer with these token counts (the names of `Usage`) instead of computed ones."""
        unknown = tokens.keys() - _WIRE_COUNTS.keys()
        if unknown:
            raise InvalidDefinition(f"Answer.used takes {', '.join(_WIRE_COUNTS)}; got {', '.join(sorted(unknown))}.")
        return msgspec.structs.replace(self, usage={**self.usage, **tokens})


_WIRE_COUNTS: Mapping[str, str] = {
    "input_tokens": "input_tokens",
    "output_tokens": "output_tokens",
    "cache_read_tokens": "cache_read_input_tokens",
    "cache_write_5m_tokens": "ephemeral_5m_input_tokens",
    "cache_write_1h_tokens": "ephemeral_1h_input_tokens",
}


class PaidCall(msgspec.Struct):
    """One call that was answered with generated content, and so would have cost money.

    `delivered` tells whether the whole answer was handed to the connection; it stays False when that broke or stalled.
    `digest` tells whether two calls asked exactly the same: it is the SHA-256 of the request's body.
    """

    index: int
    model: str
    input_tokens: int
    output_tokens: int
    digest: str
    delivered: bool = False


class FakeRequest(msgspec.Struct, frozen=True):
    """One request as it arrived; `index` counts all calls from 0, and `body` is the whole of it."""

    index: int
    model: str
    system: str
    messages: list[dict[str, Any]]
    tools: list[dict[str, Any]]
    stream: bool
    digest: str
    body: dict[str, Any]


Answering: TypeAlias = Callable[[FakeRequest], Answer | Awaitable[Answer]]


# What an answer can be -------------------------------------------------------------------------------------------


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


# The server ------------------------------------------------------------------------------------------------------


class FakeAnthropic:
    """A model endpoint that answers what it is told: a script of answers, or a function of the request.

    Open it with `async with`; `endpoint()` goes into `System(endpoints=[...])`. A call beyond the script is answered
    with status 500 and raised when the fake closes, unless the test failed already; so is what the function raises.

    `calls` counts every call, also failed ones; `paid` those answered with content. `split_seed` splits the stream's
    bytes at random places. `ledger_path` is a file that gets one JSON line per paid call, on disk before the answer's
    first byte leaves, so that calls can be counted across the lives of a process.
    """

    @overload
    def __init__(self, *answers: Answer, split_seed: int | None = ..., ledger_path: str | os.PathLike[str] | None = ...
                 ) -> None: ...  # fmt: skip
    @overload
    def __init__(
        self, function: Answering, /, *, split_seed: int | None = ..., ledger_path: str | os.PathLike[str] | None = ...
    ) -> None: ...
    def __init__(
        self, *answers: Any, split_seed: int | None = None, ledger_path: str | os.PathLike[str] | None = None
    ) -> None:
        self._function: Answering | None = None
        if len(answers) == 1 and callable(answers[0]):
            self._function, answers = cast(Answering, answers[0]), ()
        for answer in answers:
            if not isinstance(answer, Answer):
                raise InvalidDefinition(
                    f"FakeAnthropic takes answers, such as says('hello'), or one function of the request; got {answer!r}."
                )
        self.url = ""
        self.calls = 0
        self.in_flight = 0
        self.max_in_flight = 0
        self.paid: list[PaidCall] = []
        self.requests: deque[FakeRequest] = deque(maxlen=_REQUESTS_KEPT)
        self.exhausted: AssertionError | None = None
        self.error: Exception | None = None
        self._script: deque[Answer] = deque(answers)
        self._script_length = len(answers)
        self._split_seed = split_seed
        self._ledger_path = ledger_path
        self._server: asyncio.Server | None = None
        self._connections: dict[asyncio.Task[None], asyncio.StreamWriter] = {}
        self._providers: list[AnthropicProvider] = []
        self._changed = asyncio.Event()

    @property
    def unused(self) -> int:
        """How many answers of the script nobody has asked for."""
        return len(self._script)

    def endpoint(
        self,
        *,
        models: Sequence[str] = ("*",),
        concurrency: int = 16,
        timeout_s: float = 600.0,
        read_timeout_s: float = 90.0,
    ) -> Endpoint:
        """Return an endpoint whose provider talks to this server; the fake closes it too when it closes."""
        if not self.url:
            raise InvalidDefinition(
                "FakeAnthropic has no address before it is opened: write `async with FakeAnthropic(...)`."
            )
        provider = AnthropicProvider(
            base_url=self.url, api_key="fake-key", timeout_s=timeout_s, read_timeout_s=read_timeout_s
        )
        self._providers.append(provider)
        return Endpoint(provider, models=models, concurrency=concurrency)

    async def wait_calls(self, count: int) -> None:
        """Wait until so many calls have arrived in all."""
        while self.calls < count:
            await self._next_change()

    async def wait_idle(self) -> None:
        """Wait until no call is in flight; a call whose client hung up is not."""
        while self.in_flight:
            await self._next_change()

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._connected, "127.0.0.1", 0, limit=_HEADER_BYTES_MAX)
        self.url = f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            for provider in self._providers:
                await provider.close()
        finally:
            if self._server is not None:
                self._server.close()
            # Every connection ends by itself when it is cut, whatever it waits for; on Python 3.11 a cancelled one would
            # be logged as an error.
            for writer in self._connections.values():
                writer.transport.abort()
            if self._connections:
                await asyncio.wait(list(self._connections))
        failed = self.exhausted or self.error
        if failed is not None:
            if exc is None:
                raise failed
            exc.add_note(f"FakeAnthropic: {failed}")

    def _change(self) -> None:
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()

    async def _next_change(self) -> None:
        await self._changed.wait()

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve one connection, request after request, until either side closes it."""
        task = cast("asyncio.Task[None]", asyncio.current_task())
        self._connections[task] = writer
        try:
            while (received := await _receive(reader)) is not None:
                if not await self._serve(_Connection(reader, writer), *received):
                    break
        except (ConnectionError, asyncio.IncompleteReadError):
            pass  # The client hung up, as clients may.
        finally:
            del self._connections[task]
            writer.close()

    async def _serve(
        self, connection: _Connection, method: str, path: str, headers: dict[str, str], raw: bytes
    ) -> bool:
        """Answer one request; return whether the connection can be used again."""
        if (method, path) == ("POST", "/v1/messages"):
            self.calls += 1
            self.in_flight += 1
            self.max_in_flight = max(self.max_in_flight, self.in_flight)
            self._change()
            try:
                return await self._serve_call(connection, self.calls - 1, headers, raw)
            finally:
                self.in_flight -= 1
                self._change()
        if (method, path) == ("POST", "/v1/messages/count_tokens"):
            await connection.send(
                200, {}, msgspec.json.encode({"input_tokens": _input_tokens(_json_object(raw) or {})})
            )
        elif (method, path) == ("GET", "/v1/models"):
            await connection.send(200, {}, b'{"data":[],"has_more":false,"first_id":null,"last_id":null}')
        else:
            await connection.send(
                404, {}, _error_body(_error("not_found_error", f"no such path: {path}", None), "req_none")
            )
        return True

    async def _serve_call(self, connection: _Connection, index: int, headers: dict[str, str], raw: bytes) -> bool:
        digest = hashlib.sha256(raw).hexdigest()
        request_id = f"req_{index:06d}{digest[:12]}"
        body = _json_object(raw)
        answer = _refusal_to_serve(headers, body)
        request = _request(index, digest, body or {})
        if answer is None:
            self.requests.append(request)
            answer = await self._answer(connection, request)
        head = {"request-id": request_id, **answer.headers}
        if answer.body is not None:
            await connection.send(answer.status, head, answer.body.encode(), answer.content_type)
            return True
        if answer.status != 200:
            await connection.send(answer.status, head, _error_body(answer.error or {}, request_id))
            return True
        wire = _Wire(request, answer)
        broken = answer.fault in ("drop", "stall")
        silent = broken and answer.after_bytes == 0
        paid = PaidCall(index, request.model, wire.input_tokens, wire.output_tokens, digest)
        if not silent:
            await self._pay(paid)
        content = wire.stream() if request.stream else wire.whole()
        content_type = "text/event-stream" if request.stream else "application/json"
        if broken:
            if not silent:
                await connection.begin(head, content_type)
                await self._send(connection, index, content[: answer.after_bytes])
            if answer.fault == "stall":
                await connection.wait_hung_up()
            return False
        await connection.begin(head, content_type)
        await self._send(connection, index, content)
        await connection.end()
        paid.delivered = not answer.fault
        return True

    async def _send(self, connection: _Connection, index: int, content: bytes) -> None:
        if self._split_seed is None:
            await connection.chunk(content)
            return
        cuts = random.Random(self._split_seed + index)
        start = 0
        while start < len(content):
            size = cuts.choice((1, 2, 3, 7, 40, 200))
            await connection.chunk(content[start : start + size])
            await asyncio.sleep(0)  # Lets a client in this process read the piece alone.
            start += size

    async def _answer(self, connection: _Connection, request: FakeRequest) -> Answer:
        try:
            if self._function is not None:
                answer: object = self._function(request)
                if inspect.isawaitable(answer):
                    # It may wait for long; a client that hangs up meanwhile is no longer in flight.
                    answer = await connection.unless_hung_up(answer)
                if not isinstance(answer, Answer):
                    raise InvalidDefinition(
                        f"the function given to FakeAnthropic must return an answer, such as says('hello'); got {answer!r}."
                    )
                return answer
            if self._script:
                return self._script.popleft()
        except _HungUpError:
            raise
        except Exception as error:
            self.error = self.error or error
            return fails(500, message=f"the function given to FakeAnthropic raised {type(error).__name__}: {error}")
        text = (
            f"FakeAnthropic has no answer left: its script has {self._script_length} and this is call {request.index + 1}. "
            "Add an answer, or find out why there is one more call."
        )
        self.exhausted = self.exhausted or AssertionError(text)
        return fails(500, message=text)

    async def _pay(self, paid: PaidCall) -> None:
        self.paid.append(paid)
        if self._ledger_path is not None:
            facts = {name: value for name, value in msgspec.structs.asdict(paid).items() if name != "delivered"}
            with outside():
                await asyncio.to_thread(_append, self._ledger_path, msgspec.json.encode(facts) + b"\n")


def _append(path: str | os.PathLike[str], line: bytes) -> None:
    # One write of an appending file: lines of several processes do not mix.
    file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        os.write(file, line)
        os.fsync(file)
    finally:
        os.close(file)


def _json_object(raw: bytes) -> dict[str, Any] | None:
    try:
        return msgspec.json.decode(raw, type=dict[str, Any])
    except msgspec.DecodeError:
        return None


def _request(index: int, digest: str, body: dict[str, Any]) -> FakeRequest:
    system = body.get("system") or ""
    if not isinstance(system, str):
        system = "\n".join(str(block.get("text", "")) for block in system)
    return FakeRequest(
        index=index,
        model=str(body.get("model", "")),
        system=system,
        messages=body.get("messages") or [],
        tools=body.get("tools") or [],
        stream=bool(body.get("stream")),
        digest=digest,
        body=body,
    )


def _refusal_to_serve(headers: dict[str, str], body: dict[str, Any] | None) -> Answer | None:
    """What the service answers to a request that is not one."""
    if not (headers.get("x-api-key") or headers.get("authorization", "").startswith("Bearer ")):
        return fails(401, message="authorization or x-api-key header is required")
    if "anthropic-version" not in headers:
        return fails(400, message="anthropic-version: header is required")
    if body is None:
        return fails(400, message="the request body is not a JSON object")
    missing = [name for name in ("model", "max_tokens", "messages") if name not in body]
    return fails(400, message=f"{missing[0]}: Field required") if missing else None


def _tokens(text: str) -> int:
    return -(-len(text) // _CHARS_PER_TOKEN)


def _input_tokens(body: dict[str, Any]) -> int:
    asked = {name: body[name] for name in ("system", "messages", "tools") if name in body}
    return _tokens(msgspec.json.encode(asked).decode())


class _Wire:
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
        self.input_tokens = answer.usage.get("input_tokens", _input_tokens(request.body))
        self.output_tokens = answer.usage.get("output_tokens", _tokens(written))

    @property
    def _stop_reason(self) -> str:
        if self._answer.stop_reason is not None:
            return self._answer.stop_reason
        return "tool_use" if any(block["type"] == "tool_use" for block in self._blocks) else "end_turn"

    def _usage(self, output_tokens: int) -> dict[str, Any]:
        counts = {_WIRE_COUNTS[name]: value for name, value in self._answer.usage.items()}
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
        """The answer as one JSON body."""
        message = self._message(
            [_public(block) for block in self._blocks], self._stop_reason, self._usage(self.output_tokens)
        )
        if self._answer.stop_details is not None:
            message["stop_details"] = self._answer.stop_details
        return msgspec.json.encode(message)

    def stream(self) -> bytes:
        """The answer as events."""
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
            return [{"type": "text_delta", "text": part} for part in _parts(block["text"])]
        case "thinking":
            thoughts = [{"type": "thinking_delta", "thinking": part} for part in _parts(block["thinking"])]
            return [*thoughts, {"type": "signature_delta", "signature": block["signature"]}]
        case _:
            # The service begins the arguments with an empty piece.
            parts = ["", *_parts(block["_written"])]
            return [{"type": "input_json_delta", "partial_json": part} for part in parts]


def _parts(text: str) -> list[str]:
    size = max(1, -(-len(text) // _TEXT_DELTAS))
    return [text[start : start + size] for start in range(0, len(text), size)]


def _error_body(error: dict[str, Any], request_id: str) -> bytes:
    return msgspec.json.encode({"type": "error", "error": error, "request_id": request_id})


# HTTP/1.1, as much as a client of this API needs -----------------------------------------------------------------


async def _receive(reader: asyncio.StreamReader) -> tuple[str, str, dict[str, str], bytes] | None:
    """The next request of a connection: method, path, headers, body; None at its end."""
    try:
        head = await reader.readuntil(b"\r\n\r\n")
    except asyncio.IncompleteReadError:
        return None
    first, *lines = head.decode("latin-1").split("\r\n")
    method, target, _ = first.split(" ", 2)
    headers = {
        name.strip().lower(): value.strip() for name, _, value in (line.partition(":") for line in lines if line)
    }
    if headers.get("transfer-encoding", "").lower() == "chunked":
        parts: list[bytes] = []
        while size := int((await reader.readuntil(b"\r\n")).split(b";")[0], 16):
            parts.append((await reader.readexactly(size + 2))[:-2])
        while await reader.readuntil(b"\r\n") != b"\r\n":
            pass  # Trailers.
        return method, target.partition("?")[0], headers, b"".join(parts)
    return method, target.partition("?")[0], headers, await reader.readexactly(int(headers.get("content-length", "0")))


class _HungUpError(ConnectionError):
    """The client closed the connection while its answer was being made."""


class _Connection:
    """The writing half of one connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    async def send(
        self, status: int, headers: Mapping[str, str], body: bytes, content_type: str = "application/json"
    ) -> None:
        """Send a whole response at once."""
        self._head(status, {"content-type": content_type, "content-length": str(len(body)), **headers})
        self._writer.write(body)
        await self._writer.drain()

    async def begin(self, headers: Mapping[str, str], content_type: str) -> None:
        """Begin a response whose body comes in chunks."""
        self._head(200, {"content-type": content_type, "transfer-encoding": "chunked", **headers})

    async def chunk(self, data: bytes) -> None:
        if data:  # An empty chunk would end the body.
            self._writer.write(b"%x\r\n%b\r\n" % (len(data), data))
            await self._writer.drain()

    async def end(self) -> None:
        self._writer.write(b"0\r\n\r\n")
        await self._writer.drain()

    async def wait_hung_up(self) -> None:
        """Wait until the client closes the connection."""
        while not self._reader.at_eof() and not self._writer.is_closing():
            with contextlib.suppress(ConnectionError):
                # One request at a time: whatever comes now is the end, or a client that does not wait for answers.
                await self._reader.read(1)

    async def unless_hung_up(self, work: Awaitable[T]) -> T:
        """Return what *work* gives, or cancel it and raise when the client hangs up first."""
        working = asyncio.ensure_future(work)
        hung_up = asyncio.ensure_future(self.wait_hung_up())
        try:
            await asyncio.wait({working, hung_up}, return_when=asyncio.FIRST_COMPLETED)
            if working.done():
                return working.result()
            raise _HungUpError
        finally:
            for task in (working, hung_up):
                task.cancel()
            await asyncio.wait({working, hung_up})

    def _head(self, status: int, headers: Mapping[str, str]) -> None:
        lines = [f"HTTP/1.1 {status} {'OK' if status == 200 else 'Error'}"]
        lines += [f"{name}: {value}" for name, value in headers.items()]
        self._writer.write("\r\n".join(lines).encode("latin-1") + b"\r\n\r\n")
