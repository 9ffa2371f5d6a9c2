"""A model endpoint for tests: a server on loopback that speaks a vendor's API to the unmodified SDK.

It answers what the test says, counts what it was paid for, and can cause these faults: any error status with code,
type and retry-after; an HTML error page of a proxy; an error event in the stream; a connection that drops, stalls or
ends early before or within an answer; tool arguments that are not JSON; an answer cut by `max_tokens`; any stop
reason; a 200 that is no answer at all; events split at any byte; an answer held in its middle; rate limits that are
kept, and told in headers or not. It cannot cause DNS and TLS faults or slow writes.

Nothing in it waits for time to pass, so it works under virtual time. It also serves clients in other processes.
"""

from __future__ import annotations

import asyncio
import hashlib
import inspect
import os
import random
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from types import TracebackType
from typing import Any, ClassVar, Protocol, Self, TypeAlias, cast, overload

import msgspec

from understudy.clock import outside
from understudy.endpoint.breaker import Breaker
from understudy.endpoint.endpoint import Endpoint
from understudy.endpoint.model import Provider
from understudy.endpoint.rates import RateLimits
from understudy.endpoint.retry_budget import RetryBudget
from understudy.errors import InvalidDefinition
from understudy.testing.answers import Answer, fails
from understudy.testing.http import HEADER_BYTES_MAX, Connection, HungUpError, receive
from understudy.testing.quota import Quotas
from understudy.testing.wire import FakeRequest, input_tokens, json_object

_REQUESTS_KEPT = 1_000  # `requests` is for asserting on; a benchmark of a million calls must not keep them all.


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


Answering: TypeAlias = Callable[[FakeRequest], Answer | Awaitable[Answer]]


class WireAnswer(Protocol):
    """One answer in the words of one vendor's API."""

    input_tokens: int
    output_tokens: int

    @property
    def counted_input_tokens(self) -> int:
        """What counts for the limit of input tokens."""
        ...

    def whole(self) -> bytes:
        """Return the answer as one JSON body."""
        ...

    def stream(self) -> bytes:
        """Return the answer as events."""
        ...


class FakeEndpoint(ABC):
    """A model endpoint that answers what it is told: a script of answers, or a function of the request.

    Open it with `async with`; `endpoint()` goes into `System(endpoints=[...])`. A call beyond the script is answered
    with status 400 and raised when the fake closes, unless the test failed already; so is what the function raises.

    `calls` counts every call, also failed ones; `paid` those answered with content. `split_seed` splits the stream's
    bytes at random places. `ledger_path` is a file that gets one JSON line per paid call, on disk before the answer's
    first byte leaves, so that calls can be counted across the lives of a process.

    With `limits` it keeps them as the service does, for each model family, in the loop's time: a call beyond them takes
    nothing off the script, is answered with 429 and `retry-after`, and counted in `rejected`. Every answer then has the
    `anthropic-ratelimit-*` headers, unless `headers=False` leaves them out as some gateways do.
    """

    @overload
    def __init__(self, *answers: Answer, split_seed: int | None = ..., ledger_path: str | os.PathLike[str] | None = ...,
                 limits: RateLimits | None = ..., headers: bool = ...) -> None: ...  # fmt: skip
    @overload
    def __init__(self, function: Answering, /, *, split_seed: int | None = ..., ledger_path: str | os.PathLike[str] | None = ...,
                 limits: RateLimits | None = ..., headers: bool = ...) -> None: ...  # fmt: skip
    def __init__(
        self,
        *answers: Any,
        split_seed: int | None = None,
        ledger_path: str | os.PathLike[str] | None = None,
        limits: RateLimits | None = None,
        headers: bool = True,
    ) -> None:
        self._function: Answering | None = None
        if len(answers) == 1 and callable(answers[0]):
            self._function, answers = cast(Answering, answers[0]), ()
        for answer in answers:
            if not isinstance(answer, Answer):
                raise InvalidDefinition(
                    f"{type(self).__name__} takes answers, such as says('hello'), or one function of the request; "
                    f"got {answer!r}."
                )
        self.url = ""
        self.calls = 0
        self.in_flight = 0
        self.max_in_flight = 0
        self.rejected = 0
        self.paid: list[PaidCall] = []
        self.requests: deque[FakeRequest] = deque(maxlen=_REQUESTS_KEPT)
        self.exhausted: AssertionError | None = None
        self.error: Exception | None = None
        self._script: deque[Answer] = deque(answers)
        self._script_length = len(answers)
        self._split_seed = split_seed
        self._ledger_path = ledger_path
        self._quotas = Quotas(limits, told=headers)
        self._server: asyncio.Server | None = None
        self._connections: dict[asyncio.Task[None], asyncio.StreamWriter] = {}
        self._providers: list[Provider] = []
        self._changed = asyncio.Event()
        self._held = 0
        self._released = asyncio.Event()

    @property
    def unused(self) -> int:
        """How many answers of the script nobody has asked for."""
        return len(self._script)

    def endpoint(
        self,
        *,
        models: Sequence[str] = ("*",),
        concurrency: int = 16,
        rates: RateLimits | None = None,
        breaker: Breaker | None = None,
        retry_budget: RetryBudget | None = None,
        timeout_s: float = 600.0,
        read_timeout_s: float = 90.0,
    ) -> Endpoint:
        """Return an endpoint whose provider talks to this server; the fake closes it too when it closes."""
        if not self.url:
            raise InvalidDefinition(
                f"{type(self).__name__} has no address before it is opened: write `async with {type(self).__name__}(...)`."
            )
        provider = self._provider(timeout_s=timeout_s, read_timeout_s=read_timeout_s)
        self._providers.append(provider)
        return Endpoint(
            provider, models=models, rates=rates, concurrency=concurrency, breaker=breaker, retry_budget=retry_budget
        )

    async def wait_calls(self, count: int) -> None:
        """Wait until so many calls have arrived in all."""
        while self.calls < count:
            await self._next_change()

    async def wait_held(self, count: int = 1) -> None:
        """Wait until so many answers made by `holds` are held in their middle."""
        while self._held < count:
            await self._next_change()

    def release(self) -> None:
        """Let the answers that are held now go on."""
        released, self._released = self._released, asyncio.Event()
        released.set()

    async def wait_idle(self) -> None:
        """Wait until no call is in flight; a call whose client hung up is not."""
        while self.in_flight:
            await self._next_change()

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._connected, "127.0.0.1", 0, limit=HEADER_BYTES_MAX)
        self.url = f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}{self._BASE}"
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
            exc.add_note(f"{type(self).__name__}: {failed}")

    # What differs between the vendors' APIs.

    _BASE: ClassVar[str]  # the path that a client's base URL ends with
    _CALL: ClassVar[str]  # the path of a call
    _REQUEST_ID: ClassVar[str]  # the header that names a request

    @abstractmethod
    def _provider(self, *, timeout_s: float, read_timeout_s: float) -> Provider: ...

    @abstractmethod
    def _request(self, index: int, digest: str, body: dict[str, Any]) -> FakeRequest:
        """Read what the body of a call says."""

    @abstractmethod
    def _refusal_to_serve(self, headers: dict[str, str], body: dict[str, Any] | None) -> Answer | None:
        """What the service answers to a request that is not one."""

    @abstractmethod
    def _wire(self, request: FakeRequest, answer: Answer) -> WireAnswer: ...

    @abstractmethod
    def _error_body(self, answer: Answer, request_id: str) -> bytes: ...

    def _limit_headers(self, model: str) -> dict[str, str]:
        """Tell what is left of the limits."""
        return self._quotas.headers(model)

    @abstractmethod
    def _other(self, method: str, path: str, raw: bytes) -> bytes | None:
        """What the service answers at its other paths; None where there is nothing."""

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
            while (received := await receive(reader)) is not None:
                if not await self._serve(Connection(reader, writer), *received):
                    break
        except (ConnectionError, asyncio.IncompleteReadError):
            pass  # The client hung up, as clients may.
        finally:
            del self._connections[task]
            writer.close()

    async def _serve(self, connection: Connection, method: str, path: str, headers: dict[str, str], raw: bytes) -> bool:
        """Answer one request; return whether the connection can be used again."""
        if (method, path) == ("POST", self._CALL):
            self.calls += 1
            self.in_flight += 1
            self.max_in_flight = max(self.max_in_flight, self.in_flight)
            self._change()
            try:
                return await self._serve_call(connection, self.calls - 1, headers, raw)
            finally:
                self.in_flight -= 1
                self._change()
        other = self._other(method, path, raw)
        if other is not None:
            await connection.send(200, {}, other)
        else:
            await connection.send(404, {}, self._error_body(fails(404, message=f"no such path: {path}"), "req_none"))
        return True

    async def _serve_call(self, connection: Connection, index: int, headers: dict[str, str], raw: bytes) -> bool:
        digest = hashlib.sha256(raw).hexdigest()
        request_id = f"req_{index:06d}{digest[:12]}"
        body = json_object(raw)
        answer = self._refusal_to_serve(headers, body)
        request = self._request(index, digest, body or {})
        counted = input_tokens(request.body)
        if answer is None:
            self.requests.append(request)
            refused_s = self._quotas.admit(request.model, counted)
            if refused_s is None:
                answer = await self._answer(connection, request)
            else:
                self.rejected += 1
                answer = fails(429, retry_after_s=refused_s, message="this request would exceed a rate limit")
        # As the service does: headers are made before the answer is written, so they do not know its output.
        head = {self._REQUEST_ID: request_id, **self._limit_headers(request.model), **answer.headers}
        if answer.body is not None:
            await connection.send(answer.status, head, answer.body.encode(), answer.content_type)
            return True
        if answer.status != 200:
            await connection.send(answer.status, head, self._error_body(answer, request_id))
            return True
        wire = self._wire(request, answer)
        # What the answer says was counted is what counts, also of a stream that breaks.
        self._quotas.spend(request.model, wire.counted_input_tokens - counted, wire.output_tokens)
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
        if answer.fault == "hold":
            await self._send(connection, index, content[: answer.after_bytes])
            await self._hold(connection)
            content = content[answer.after_bytes :]
        await self._send(connection, index, content)
        await connection.end()
        paid.delivered = answer.fault in ("", "hold")
        return True

    async def _send(self, connection: Connection, index: int, content: bytes) -> None:
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

    async def _hold(self, connection: Connection) -> None:
        self._held += 1
        self._change()
        try:
            await connection.unless_hung_up(self._released.wait())
        finally:
            self._held -= 1

    async def _answer(self, connection: Connection, request: FakeRequest) -> Answer:
        try:
            if self._function is not None:
                answer: object = self._function(request)
                if inspect.isawaitable(answer):
                    # It may wait for long; a client that hangs up meanwhile is no longer in flight.
                    answer = await connection.unless_hung_up(answer)
                if not isinstance(answer, Answer):
                    raise InvalidDefinition(
                        f"the function given to {type(self).__name__} must return an answer, such as says('hello'); "
                        f"got {answer!r}."
                    )
                return answer
            if self._script:
                return self._script.popleft()
        except HungUpError:
            raise
        except Exception as error:
            self.error = self.error or error
            name = type(self).__name__
            return fails(400, message=f"the function given to {name} raised {type(error).__name__}: {error}")
        text = (
            f"{type(self).__name__} has no answer left: its script has {self._script_length} and this is call "
            f"{request.index + 1}. Add an answer, or find out why there is one more call."
        )
        self.exhausted = self.exhausted or AssertionError(text)
        return fails(400, message=text)  # Nothing that is tried again: the test is to end.

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
