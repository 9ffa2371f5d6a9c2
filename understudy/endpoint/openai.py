"""Chat completions as a provider: one streamed attempt per call, put together here, nothing retried.

Speaks to OpenAI and to every service or server with the same API. Decodes the raw events itself, because the SDK's
helpers lose what was counted when an answer is broken. Imports `openai` at the first call.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
from collections.abc import AsyncGenerator, Callable, Mapping
from typing import TYPE_CHECKING, Any, cast, get_args

import msgspec

from understudy.clock import wall_clock
from understudy.endpoint.chat_completions import (
    Assembly,
    Chunk,
    MaxTokensField,
    allowance_of,
    body_of,
    decode_chunk,
)
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
from understudy.endpoint.model import Allowance, ModelAnswer, ModelRequest
from understudy.endpoint.sse import event_data
from understudy.errors import EndpointUnavailable, InvalidDefinition, ModelFailure

if TYPE_CHECKING:
    from openai import AsyncOpenAI, AsyncStream
    from openai.types.chat import ChatCompletionChunk


class OpenAICompatibleProvider:
    """Models behind the chat completions API, through the official `openai` package (`understudy[openai]`).

    `base_url` leads to another service or server than OpenAI's. `timeout_s` bounds one attempt as a whole,
    `read_timeout_s` the silence within it. `max_tokens_field` is what the server calls the limit of an answer's tokens:
    older ones know only `max_tokens`. Without `api_key` or `base_url` the SDK's own environment variables count. Uses
    aiohttp when it is installed. Clients belong to the event loop they were first used on; `close` closes those of the
    running loop.
    """

    def __init__(
        self,
        *,
        api_key: str | None = None,
        base_url: str | None = None,
        timeout_s: float = 600.0,
        # The service sends nothing while a model thinks, and that may take minutes.
        read_timeout_s: float = 300.0,
        max_tokens_field: MaxTokensField = "max_completion_tokens",
    ) -> None:
        check_settings(
            "OpenAICompatibleProvider", api_key=api_key, base_url=base_url, key_variable="OPENAI_API_KEY",
            timeout_s=timeout_s, read_timeout_s=read_timeout_s,
        )  # fmt: skip
        if max_tokens_field not in get_args(MaxTokensField):
            raise InvalidDefinition(
                "OpenAICompatibleProvider max_tokens_field must be one of "
                f"{', '.join(map(repr, get_args(MaxTokensField)))}; got {max_tokens_field!r}."
            )
        if importlib.util.find_spec("openai") is None:  # Looks, without importing.
            raise InvalidDefinition(
                "OpenAICompatibleProvider needs the package openai, which is not installed. "
                "Install it with `pip install 'understudy[openai]'`."
            )
        self._api_key = api_key
        self._base_url = base_url
        self._timeout_s = float(timeout_s)
        self._read_timeout_s = float(read_timeout_s)
        self._max_tokens_field: MaxTokensField = max_tokens_field
        self._clients = Clients(self._open)

    def __repr__(self) -> str:
        # Never the key.
        return f"OpenAICompatibleProvider(base_url={self._base_url!r}, timeout_s={self._timeout_s:g})"

    def __getstate__(self) -> object:
        raise TypeError(
            "OpenAICompatibleProvider holds an API key and connections; it cannot be pickled or copied. Make another."
        )

    async def call(
        self,
        request: ModelRequest,
        *,
        on_text: Callable[[str], None] | None = None,
        on_allowance: Callable[[Allowance], None] | None = None,
    ) -> ModelAnswer:
        """Make one attempt and return the complete answer; if cancelled, the stream is closed and the answer is lost.

        `on_text` sees the text as it arrives, also of an attempt that fails later; `on_allowance` what the headers say
        of rate limits, also those of a refusal. What they raise ends the attempt.

        Raises:
            Refused: The model declined, or a content filter stopped it.
            ModelFailure: No usable answer; `sent`, `billed` and `usage` tell what the attempt may have cost.
        """
        body = body_of(request, self._max_tokens_field)
        try:
            client = await self._clients.get()
        except Exception as error:  # No key.
            failure = classify(error)
            if failure is None:
                raise
            raise failure from error
        assembly = Assembly(request.model, on_text)
        limit = asyncio.timeout(self._timeout_s)
        try:
            async with limit:
                stream = await self._begin(client, body, assembly, on_allowance)
                try:
                    _tell(on_allowance, stream.response.headers)
                    async with contextlib.aclosing(self._chunks(stream, assembly)) as chunks:
                        async for chunk in chunks:
                            assembly.add(chunk)
                finally:
                    await stream.close()
        except TimeoutError as error:
            if not limit.expired():
                raise  # The callback's own.
            raise self._unavailable(assembly, f"no complete answer within timeout_s={self._timeout_s:g}") from error
        return assembly.answer()

    async def close(self) -> None:
        """Close the connections of the running loop; a later call opens new ones."""
        await self._clients.close()

    async def _begin(
        self,
        client: AsyncOpenAI,
        body: dict[str, Any],
        assembly: Assembly,
        on_allowance: Callable[[Allowance], None] | None,
    ) -> AsyncStream[ChatCompletionChunk]:
        """Send the request and return the stream of its answer; what goes wrong comes out as a `ModelFailure`."""
        # `Any`: the SDK's parameter types are TypedDicts by the hundred; the wire format is checked by the tests.
        create = cast(Any, client.chat.completions.create)
        try:
            # Without the option the service does not tell what a streamed answer has used.
            stream: AsyncStream[ChatCompletionChunk] = await create(
                **body, stream=True, stream_options={"include_usage": True}
            )
        except Exception as error:
            failure = self._failure(error, assembly)
            if failure is None:
                raise
            refusal = getattr(error, "response", None)
            if refusal is not None:
                _tell(on_allowance, refusal.headers)
            raise failure from error
        assembly.request_id = stream.response.headers.get("x-request-id")
        assembly.status = stream.response.status_code
        return stream

    async def _chunks(
        self, stream: AsyncStream[ChatCompletionChunk], assembly: Assembly
    ) -> AsyncGenerator[Chunk, None]:
        """Yield the chunks of one answer; what the SDK and the connection raise comes out as a `ModelFailure`."""
        # Errors of the code that consumes the chunks are not raised in here, so none of them is taken for a failure.
        try:
            # Generators are closed here, not whenever they are collected.
            async with (
                contextlib.aclosing(stream.response.aiter_bytes()) as body,
                contextlib.aclosing(event_data(body)) as events,
            ):
                async for data in events:
                    if data == b"[DONE]":
                        await drain(body)
                        return
                    if not data:
                        continue
                    chunk = decode_chunk(data)
                    if chunk.error:
                        error = chunk.error if isinstance(chunk.error, dict) else {"message": chunk.error}
                        raise StreamError(error, stream.response, assembly.request_id)
                    yield chunk
        except msgspec.DecodeError as error:
            raise self._unavailable(assembly, f"an event of the answer does not decode: {error}") from error
        except Exception as error:
            failure = self._failure(error, assembly)
            if failure is None:
                raise
            raise failure from error
        raise self._unavailable(assembly, "the answer ended early, without [DONE]")

    def _failure(self, error: Exception, assembly: Assembly) -> ModelFailure | None:
        return classify(
            error,
            usage=assembly.usage,
            in_stream=assembly.status is not None,
            request_id=assembly.request_id,
            now=wall_clock(asyncio.get_running_loop())(),
        )

    def _unavailable(self, assembly: Assembly, what: str) -> EndpointUnavailable:
        return EndpointUnavailable(
            what, status=assembly.status, request_id=assembly.request_id, retry_after_s=None, error_code=None,
            error_type=None, sent=True, billed=True, usage=assembly.usage,
        )  # fmt: skip

    def _open(self) -> AsyncOpenAI:
        import openai  # A second and more, so only for those who call a model.

        timeout = openai.Timeout(self._timeout_s, connect=CONNECT_TIMEOUT_S, read=self._read_timeout_s)
        client_class = openai.DefaultAioHttpClient if has_aiohttp() else openai.DefaultAsyncHttpxClient
        client = openai.AsyncOpenAI(
            api_key=self._api_key,
            base_url=self._base_url,
            timeout=timeout,
            max_retries=0,  # Its retries know neither spend limits nor our budgets.
            http_client=client_class(timeout=timeout, **proxy_options(self._base_url)),
        )
        know_platform(client, openai._base_client)
        return client


def _tell(on_allowance: Callable[[Allowance], None] | None, headers: Mapping[str, str]) -> None:
    if on_allowance is None:
        return
    allowance = allowance_of(headers, wall_clock(asyncio.get_running_loop())())
    if allowance is not None:
        on_allowance(allowance)
