"""Events on their way into the trace: each lies in the same commit as what it tells."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any
from weakref import WeakSet

from understudy.actors.activation import Activation
from understudy.actors.stream import Stream
from understudy.codec import encode
from understudy.endpoint.breaker import Change
from understudy.events import BreakerChanged, Event, TraceEvent
from understudy.mailbox.envelope import Envelope

if TYPE_CHECKING:
    from understudy.actors.system import System


class Recorder:
    """The trace of one system, as it is written."""

    def __init__(self, system: System) -> None:
        self._system = system
        self.listeners: WeakSet[Stream[Event]] = WeakSet()  # One that nobody reads any more goes by itself.

    def listen(self) -> Stream[Event]:
        """Return a stream of the events that are committed from now on."""
        return Stream("events()", self._system.registry.decoder(Event), self.listeners)

    def correlation_of(self, envelope: Envelope) -> str:
        """Return the root of the tree that the message belongs to."""
        return envelope.head.correlation or self._system.job_id(envelope.no)

    def emit(self, event: TraceEvent, turn: int | None = None) -> None:
        """Put an event into the next commit; *turn* is the number of its turn's message, if it is one's."""
        self._system.committer.touch().tell(event.at, event.correlation, encode(event), turn)

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
            ),
            envelope.no,
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

    def emit_breaker(self, model: str, change: Change) -> None:
        """Put a change of an endpoint's breaker into the next commit."""
        if self._system.failure is not None:
            return
        at = self._system.wall()
        self.emit(
            BreakerChanged(
                at=at,
                correlation="system",
                span=f"breaker {model}",
                life=self._system.life,
                model=model,
                state=change.state,
                reason=change.reason,
                until=at + change.open_s if change.state == "open" else None,
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
