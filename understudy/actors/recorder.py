"""Events on their way into the trace: each lies in the same commit as what it tells."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import TYPE_CHECKING, Any, Self
from weakref import WeakSet

from understudy.actors.activation import Activation
from understudy.codec import encode
from understudy.errors import LimitExceeded
from understudy.events import Event, TraceEvent
from understudy.mailbox.envelope import Envelope

if TYPE_CHECKING:
    from understudy.actors.system import System


class Listener(AsyncIterator[Event]):
    """One stream of committed events; one that is too slow is cut off rather than fill the memory."""

    BEHIND_MAX = 100_000

    def __init__(self, decode: Callable[[bytes], Event], others: WeakSet[Listener]) -> None:
        self._decode = decode
        self._others = others
        others.add(self)
        self._queue: asyncio.Queue[bytes | None] = asyncio.Queue()
        self._lost = False
        self._ended = False

    def hear(self, body: bytes | None) -> None:
        """Take an event, or None: there will be no more."""
        if self._ended:
            return
        if self._queue.qsize() >= self.BEHIND_MAX:
            self._lost = True
        elif not self._lost:
            self._queue.put_nowait(body)

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Event:
        """Return the next event; raises `LimitExceeded` when events were lost."""
        if self._ended:
            raise StopAsyncIteration
        if self._lost and self._queue.empty():
            self._ended = True
            raise LimitExceeded(
                f"a listener of events() fell {self.BEHIND_MAX} events behind and was cut off; read the store instead.",
                limit="BEHIND_MAX",
                value=self.BEHIND_MAX + 1,
                value_max=self.BEHIND_MAX,
            )
        body = await self._queue.get()
        if body is None:
            self._end()
            raise StopAsyncIteration
        return self._decode(body)

    async def aclose(self) -> None:
        """End the stream; who waits for its next event sees the end."""
        self._end()

    def _end(self) -> None:
        self._ended = True
        self._others.discard(self)
        while not self._queue.empty():
            self._queue.get_nowait()
        self._queue.put_nowait(None)  # Somebody may wait.


class Recorder:
    """The trace of one system, as it is written."""

    def __init__(self, system: System) -> None:
        self._system = system
        self.listeners: WeakSet[Listener] = WeakSet()  # One that nobody reads any more goes by itself.

    def listen(self) -> Listener:
        """Return a stream of the events that are committed from now on."""
        return Listener(self._system.registry.decoder(Event), self.listeners)

    def correlation_of(self, envelope: Envelope) -> str:
        """Return the root of the tree that the message belongs to."""
        return envelope.head.correlation or self._system.job_id(envelope.no)

    def emit(self, event: TraceEvent) -> None:
        """Put an event into the next commit."""
        batch = self._system.committer.touch()
        body = encode(event)
        batch.traces.append((event.at, event.correlation, body))
        batch.work += 1 + (len(body) >> 10)

    def emit_for(self, envelope: Envelope, event: type[TraceEvent], **facts: Any) -> None:
        """Put an event about a message into the next commit."""
        self.emit(
            event(
                at=self._system.wall(),
                correlation=self.correlation_of(envelope),
                span=str(envelope.no),
                parent=envelope.head.parent,
                life=self._system.life,
                **facts,
            )
        )

    def emit_actor(self, event: Callable[..., TraceEvent], activation: Activation, **facts: Any) -> None:
        """Put an event about an actor into the next commit."""
        self.emit(
            event(
                at=self._system.wall(),
                correlation=f"actor {activation.name}",
                span=f"actor {activation.name}",
                life=self._system.life,
                kind=activation.type.kind,
                actor=activation.id,
                **facts,
            )
        )

    async def events_of(self, correlation: str) -> list[TraceEvent]:
        """Return the stored events of one tree."""
        events: list[TraceEvent] = []
        after = 0
        while rows := await self._system.store.traces(correlation, after, 1_000):
            after = rows[-1].no
            events.extend(self._system.registry.decoder(Event)(row.body) for row in rows)
        return events
