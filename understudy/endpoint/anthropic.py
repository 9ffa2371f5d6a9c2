"""The Anthropic Messages API as a provider: one streamed attempt per call, put together here, nothing retried.

Always streams and decodes the raw events itself, because the SDK's helpers lose what was counted when an answer is
broken: every failure of an attempt carries the usage seen until then. Imports `anthropic` at the first call.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
from collections.abc import AsyncGenerator, Callable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Literal, cast

import msgspec

from understudy.clock import wall_clock
from understudy.endpoint.allowance import allowance_of
from understudy.endpoint.clients import (
    CONNECT_TIMEOUT_S,
    Clients,
    check_settings,
    drain,
    has_aiohttp,
    know_platform,
    proxy_options,
)
from understudy.endpoint.failures import StreamError, classify
from understudy.endpoint.model import (
    Allowance,
    Block,
    ChatMessage,
    Media,
    ModelAnswer,
    ModelRequest,
    Opaque,
    Text,
    ToolCall,
    ToolResult,
    Usage,
)
from understudy.errors import EndpointUnavailable, InvalidDefinition, ModelFailure, Refused

if TYPE_CHECKING:
    from anthropic import AsyncAnthropic, AsyncStream
    from anthropic._streaming import ServerSentEvent
    from anthropic.types import RawMessageStreamEvent

_NAME = "anthropic"


class AnthropicProvider:
    """Claude models through the official `anthropic` package.

    `timeout_s` bounds one attempt as a whole, `read_timeout_s` the silence within it. Without `api_key` or
    `base_url` the SDK's own environment variables count. Uses aiohttp when it is installed (`understudy[aiohttp]`),
    which costs much less CPU time per call. `cache` marks prompts so that the next call of a conversation reads what
    this one has sent from the service's cache, kept for that long; None marks nothing. Clients belong to the event loop they were first used on; `close` closes those of the running loop.
    """

    media: ClassVar[frozenset[str]] = frozenset({"image", "document"})

    def __init__(
        self,
        *,
        api_key: str | None = None,
        base_url: str | None = None,
        timeout_s: float = 600.0,
        # The service sends a ping every few seconds while it thinks; a minute and a half of silence is a dead line.
        read_timeout_s: float = 90.0,
        cache: Literal["5m", "1h"] | None = "5m",
    ) -> None:
        check_settings(
            "AnthropicProvider", api_key=api_key, base_url=base_url, key_variable="ANTHROPIC_API_KEY",
            timeout_s=timeout_s, read_timeout_s=read_timeout_s,
        )  # fmt: skip
        if cache not in ("5m", "1h", None):
            raise InvalidDefinition(f"AnthropicProvider cache must be '5m', '1h' or None; got {cache!r}.")
        self._cache: Literal["5m", "1h"] | None = cache
        self._api_key = api_key
        self._base_url = base_url
        self._timeout_s = float(timeout_s)
        self._read_timeout_s = float(read_timeout_s)
        self._clients = Clients(self._open)

    def __repr__(self) -> str:
        return f"AnthropicProvider(base_url={self._base_url!r}, timeout_s={self._timeout_s:g})"  # Never the key.

    def __getstate__(self) -> object:
        raise TypeError(
            "AnthropicProvider holds an API key and connections; it cannot be pickled or copied. Make another."
        )

    async def call(
        self,
        request: ModelRequest,
        *,
        on_text: Callable[[str], None] | None = None,
        on_allowance: Callable[[Allowance], None] | None = None,
    ) -> ModelAnswer:
        """Make one attempt and return the complete answer; if cancelled, the stream is closed and the answer is lost.

        `on_text` sees the text as it arrives, also of an attempt that fails later. `on_allowance` sees what the headers
        say about rate limits as soon as they are there, also those of an error, and is not called when they say nothing.
        What either raises ends the attempt.

        Raises:
            Refused: The model declined; `category` says why when the service does.
            ModelFailure: No usable answer; `sent`, `billed` and `usage` tell what the attempt may have cost.
        """
        try:
            client = await self._clients.get()
        except Exception as error:  # No key, or a profile that cannot be read.
            failure = classify(error)
            if failure is None:
                raise
            raise failure from error
        assembly = _Assembly(request.model, on_text)
        limit = asyncio.timeout(self._timeout_s)
        try:
            async with limit, contextlib.aclosing(self._events(client, request, assembly)) as events:
                async for event in events:
                    if event is _BEGUN:
                        _tell_allowance(assembly.headers, on_allowance)
                        continue
                    assembly.add(event)
        except ModelFailure:
            if assembly.status is None:  # No answer had begun, so these headers, if there are any, are the error's own.
                _tell_allowance(assembly.headers, on_allowance)
            raise
        except TimeoutError as error:
            if not limit.expired():
                raise  # The callback's own.
            what = f"no complete answer within timeout_s={self._timeout_s:g}"
            raise self._unavailable(assembly, what, received_bytes=0) from error  # It may go on unheard.
        return assembly.answer()

    async def close(self) -> None:
        """Close the connections of the running loop; a later call opens new ones."""
        await self._clients.close()

    async def _events(
        self, client: AsyncAnthropic, request: ModelRequest, assembly: _Assembly
    ) -> AsyncGenerator[_Event, None]:
        """Yield the events of one attempt; what the SDK and the connection raise comes out as a `ModelFailure`."""
        # Errors of the code that consumes the events are not raised in here, so none of them is taken for a failure.
        try:
            # `Any`: the SDK's parameter types are TypedDicts by the hundred; the wire format is checked by the tests.
            create = cast(Any, client.messages.create)
            stream: AsyncStream[RawMessageStreamEvent] = await create(**_body(request, self._cache), stream=True)
            assembly.request_id = stream.response.headers.get("request-id")
            assembly.status = stream.response.status_code
            assembly.headers = stream.response.headers
            try:
                yield _BEGUN
                # A generator, though typed as less: closed here, not whenever it is collected.
                raws = cast("AsyncGenerator[ServerSentEvent, None]", stream.raw_events(stream.response))
                async with contextlib.aclosing(raws) as raw_events:
                    async for raw in raw_events:
                        if not raw.data:
                            continue
                        event = _decode_event(raw.data)
                        if event.type == "error":
                            raise StreamError(event.error or {}, stream.response, assembly.request_id)
                        yield event
                        if event.type == "message_stop":
                            await drain(raw_events)
                            return
            finally:
                await stream.close()
        except msgspec.DecodeError as error:
            what = f"an event of the answer does not decode: {error}"
            raise self._unavailable(assembly, what, received_bytes=0) from error
        except Exception as error:
            if assembly.headers is None:
                assembly.headers = getattr(getattr(error, "response", None), "headers", None)
            failure = classify(
                error,
                usage=assembly.usage_so_far,
                in_stream=assembly.status is not None,
                request_id=assembly.request_id,
                received_bytes=assembly.received_bytes,
                now=wall_clock(asyncio.get_running_loop())(),
            )
            if failure is None:
                raise
            raise failure from error
        raise self._unavailable(
            assembly, "the answer ended early, without message_stop", received_bytes=assembly.received_bytes
        )

    def _unavailable(self, assembly: _Assembly, what: str, *, received_bytes: int) -> EndpointUnavailable:
        return EndpointUnavailable(
            what, status=assembly.status, request_id=assembly.request_id, retry_after_s=None, error_code=None,
            error_type=None, sent=True, billed=True, usage=assembly.usage_so_far, received_bytes=received_bytes,
        )  # fmt: skip

    def _open(self) -> AsyncAnthropic:
        import anthropic  # A second and 75 MB, so only for those who call a model.

        timeout = anthropic.Timeout(self._timeout_s, connect=CONNECT_TIMEOUT_S, read=self._read_timeout_s)
        client_class = anthropic.DefaultAioHttpClient if has_aiohttp() else anthropic.DefaultAsyncHttpxClient
        client = anthropic.AsyncAnthropic(
            api_key=self._api_key,
            base_url=self._base_url,
            timeout=timeout,
            max_retries=0,  # Its retries know neither spend limits nor our budgets, and may sleep for hours.
            open_telemetry=False,  # Otherwise every call is traced, and its tokens summed, twice.
            http_client=client_class(timeout=timeout, **proxy_options(self._base_url)),
        )
        know_platform(client, anthropic._base_client)
        return client


def _tell_allowance(headers: Mapping[str, str] | None, on_allowance: Callable[[Allowance], None] | None) -> None:
    if headers is None or on_allowance is None:
        return
    allowance = allowance_of(headers, wall_clock(asyncio.get_running_loop())())
    if allowance is not None:
        on_allowance(allowance)


# The request -----------------------------------------------------------------------------------------------------


def _body(request: ModelRequest, cache: str | None) -> dict[str, Any]:
    body: dict[str, Any] = {
        "model": request.model,
        "max_tokens": request.max_tokens,
        "messages": _messages(request),
    }
    if request.system:
        body["system"] = request.system
    if request.tools:
        body["tools"] = [
            {"name": tool.name, "description": tool.description, "input_schema": tool.schema} for tool in request.tools
        ]
    if request.output_schema is not None:
        body["output_config"] = {"format": {"type": "json_schema", "schema": request.output_schema}}
    if cache is not None:
        _mark(body, {"type": "ephemeral"} if cache == "5m" else {"type": "ephemeral", "ttl": cache})
    return body


def _mark(body: dict[str, Any], mark: dict[str, str]) -> None:
    """Say up to where the prompt is to be cached: tools, instructions, and the newest two user messages.

    The newest is what the next call reads. The one before it is what this call reads: the service looks for it no more
    than 20 blocks back by itself, and one answer with its results may have more.
    """
    if "tools" in body:
        body["tools"][-1]["cache_control"] = mark
    if "system" in body:
        body["system"] = [{"type": "text", "text": body["system"], "cache_control": mark}]
    for message in [each for each in body["messages"] if each["role"] == "user"][-2:]:
        message["content"][-1]["cache_control"] = mark


def _messages(request: ModelRequest) -> list[dict[str, Any]]:
    messages = [message for each in request.messages if (message := _message(each, request.model))["content"]]
    if messages and messages[-1]["role"] == "assistant":
        newest = next(each for each in reversed(request.messages) if each.role == "assistant")
        if len(newest.content) != len(messages[-1]["content"]):
            # Another model had paused there, and what it meant to go on with is left out. No model takes half an answer
            # of another as the beginning of its own.
            messages.append({"role": "user", "content": [{"type": "text", "text": "Go on."}]})
    return messages


def _message(message: ChatMessage, model: str) -> dict[str, Any]:
    # The service refuses empty text, signed thinking of other models, and results of tools after anything else.
    blocks = [
        block
        for block in message.content
        if not (isinstance(block, Text) and not block.text)
        and not (isinstance(block, Opaque) and (block.provider != _NAME or block.model not in ("", model)))
    ]
    blocks.sort(key=lambda block: not isinstance(block, ToolResult))
    return {"role": message.role, "content": [_block(block) for block in blocks]}


def _block(block: Block) -> dict[str, Any]:
    match block:
        case Text():
            return {"type": "text", "text": block.text}
        case ToolCall():
            return {"type": "tool_use", "id": block.id, "name": block.name, "input": block.arguments}
        case ToolResult():
            return {
                "type": "tool_result", "tool_use_id": block.call_id, "content": block.content, "is_error": block.is_error,
            }  # fmt: skip
        case Opaque():
            return block.block
        case Media():
            return {"type": block.kind, "source": _source(block)}


def _source(media: Media) -> dict[str, str]:
    if media.url:
        return {"type": "url", "url": media.url}
    if media.text:
        return {"type": "text", "media_type": "text/plain", "data": media.text}
    return {"type": "base64", "media_type": media.media_type, "data": base64.b64encode(media.data).decode()}


# The answer ------------------------------------------------------------------------------------------------------


class _CacheWrites(msgspec.Struct):
    ephemeral_5m_input_tokens: int | None = None
    ephemeral_1h_input_tokens: int | None = None


class _Counts(msgspec.Struct):
    input_tokens: int | None = None
    output_tokens: int | None = None
    cache_read_input_tokens: int | None = None
    cache_creation_input_tokens: int | None = None
    cache_creation: _CacheWrites | None = None


class _Message(msgspec.Struct):
    id: str
    model: str
    usage: _Counts


class _Event(msgspec.Struct):
    """Any event of the stream; fields that an event does not have, and events nobody knows yet, do no harm."""

    type: str
    message: _Message | None = None
    index: int | None = None
    content_block: dict[str, Any] | None = None
    delta: dict[str, Any] | None = None
    usage: _Counts | None = None
    error: dict[str, Any] | None = None


_BEGUN = _Event("headers")  # Not of the wire: the answer has begun, and its headers are there.
_decode_event = msgspec.json.Decoder(_Event).decode


class _Assembly:
    """The answer as far as it has come."""

    def __init__(self, model: str, on_text: Callable[[str], None] | None) -> None:
        self._model = model
        self.status: int | None = None  # Known as soon as the answer has begun.
        self.request_id: str | None = None
        self.headers: Mapping[str, str] | None = None
        self._received_bytes = 0  # of its content
        self._on_text = on_text
        self._message: _Message | None = None
        self._counts: dict[str, int] = {}
        self._blocks: dict[int, dict[str, Any]] = {}
        self._json: dict[int, list[str]] = {}
        self._stop_reason: str | None = None
        self._stop_details: Mapping[str, Any] = {}

    @property
    def usage_so_far(self) -> Usage | None:
        """What was counted until now; None before the service said anything."""
        if self._message is None:
            return None
        count = self._counts.get
        written = count("cache_creation_input_tokens", 0)
        written_1h = count("ephemeral_1h_input_tokens", 0)
        return Usage(
            input_tokens=count("input_tokens", 0),
            output_tokens=count("output_tokens", 0),
            cache_read_tokens=count("cache_read_input_tokens", 0),
            # The sum is always there, the split by lifetime is not; five minutes is the service's default.
            cache_write_5m_tokens=count("ephemeral_5m_input_tokens", 0) or max(0, written - written_1h),
            cache_write_1h_tokens=written_1h,
        )

    @property
    def received_bytes(self) -> int:
        """How much of its content has come; 0 when that says nothing of how much was written.

        Thinking is billed in full and shown in part, or not at all; only the signature at its end is as long as it was.
        """
        unsigned = any(
            block.get("type") == "thinking" and not block.get("signature") for block in self._blocks.values()
        )
        return 0 if unsigned else self._received_bytes

    def add(self, event: _Event) -> None:
        """Take the next event in."""
        match event.type:
            case "message_start" if event.message is not None:
                self._message = event.message
                self._count(event.message.usage)
            case "content_block_start" if event.index is not None and event.content_block is not None:
                self._blocks[event.index] = event.content_block
                self._receive(event.content_block)
                self._tell(event.content_block.get("text"))
            case "content_block_delta" if event.index is not None and event.delta is not None:
                self._grow(event.index, event.delta)
            case "message_delta":
                delta = event.delta or {}
                self._stop_reason = delta.get("stop_reason") or self._stop_reason
                self._stop_details = delta.get("stop_details") or self._stop_details
                if event.usage is not None:
                    self._count(event.usage)
            case _:
                pass  # `ping`, `content_block_stop`, `message_stop`, and whatever the service adds.

    def answer(self) -> ModelAnswer:
        """Return the complete answer; an answer that lacks what the API promises is no answer."""
        usage = self.usage_so_far
        if self._message is None or usage is None or self._stop_reason is None:
            raise EndpointUnavailable(
                "the answer lacks its beginning or its stop_reason", status=self.status, request_id=self.request_id,
                retry_after_s=None, error_code=None, error_type=None, sent=True, billed=True, usage=usage,
            )  # fmt: skip
        if self._stop_reason == "refusal":
            category, why = self._stop_details.get("category"), self._stop_details.get("explanation")
            raise Refused(
                f"the model declined to answer ({category or 'no category given'}){f': {why}' if why else ''}",
                category=category, status=self.status, request_id=self.request_id, retry_after_s=None, error_code=None,
                error_type=None, sent=True, billed=True, usage=usage,
            )  # fmt: skip
        return ModelAnswer(
            id=self._message.id,
            model=self._message.model,
            content=[self._block(index) for index in sorted(self._blocks)],
            stop_reason=self._stop_reason,
            usage=usage,
            request_id=self.request_id,
        )

    def _count(self, counts: _Counts) -> None:
        # The counts of a stream are cumulative: later ones replace earlier ones, and what is missing stays.
        found: dict[str, Any] = msgspec.structs.asdict(counts)
        split: _CacheWrites | None = found.pop("cache_creation")
        if split is not None:
            found |= msgspec.structs.asdict(split)
        self._counts |= {name: value for name, value in found.items() if value is not None}

    def _receive(self, part: dict[str, Any]) -> None:
        self._received_bytes += sum(
            len(value.encode("utf-8", "replace"))
            for name, value in part.items()
            if name not in ("type", "id", "tool_use_id") and isinstance(value, str)
        )

    def _grow(self, index: int, delta: dict[str, Any]) -> None:
        block = self._blocks.setdefault(index, {"type": "text", "text": ""})
        self._receive(delta)
        if delta.get("type") == "input_json_delta":
            self._json.setdefault(index, []).append(str(delta.get("partial_json", "")))
            return
        if delta.get("type") == "citations_delta":
            block["citations"] = [*(block.get("citations") or []), delta.get("citation")]
            return
        # Text, thinking, signatures, and kinds still to come: each field continues the block's field of that name.
        for name, value in delta.items():
            if name == "type":
                continue
            before = block.get(name)
            block[name] = before + value if isinstance(before, str) and isinstance(value, str) else value
        if delta.get("type") == "text_delta":
            self._tell(delta.get("text"))

    def _tell(self, text: object) -> None:
        if self._on_text is not None and isinstance(text, str) and text:
            self._on_text(text)

    def _block(self, index: int) -> Block:
        block = self._blocks[index]
        arguments, malformed = self._input(index)
        match block.get("type"):
            case "text":
                return Text(str(block.get("text", "")))
            case "tool_use":
                return ToolCall(str(block.get("id")), str(block.get("name")), arguments, malformed)
            case _:
                return Opaque(_NAME, {**block, "input": arguments} if index in self._json else block, self._model)

    def _input(self, index: int) -> tuple[dict[str, Any], str | None]:
        """The arguments of a tool call, or the text that should have been them."""
        written = "".join(self._json.get(index, []))
        if not written:  # A call without arguments, or one that came whole with the block's start.
            given = self._blocks[index].get("input")
            return (cast(dict[str, Any], given), None) if isinstance(given, dict) else ({}, None)
        try:
            return msgspec.json.decode(written, type=dict[str, Any]), None
        except msgspec.DecodeError:
            return {}, written
