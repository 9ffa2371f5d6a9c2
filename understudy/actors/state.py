"""The state of one actor: of its last finished turn, as bytes, and for event-sourced actors as a fold of events."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from understudy.codec import encode
from understudy.errors import LimitExceeded, StateUndecodable
from understudy.mailbox.commit import Batch, Snapshot

if TYPE_CHECKING:
    from understudy.actors.activation import Activation
    from understudy.actors.turn import Turn


class StateKeeper:
    """What one actor's turns start from, roll back to, and add to."""

    __slots__ = ("_activation", "event_no", "fold", "log", "recent", "snapshot")

    def __init__(self, activation: Activation) -> None:
        self._activation = activation
        self.snapshot: Snapshot | None = None  # state of the last finished turn; of event-sourced actors the newest one
        self.recent: list[bytes] | None = None  # events since that snapshot
        self.fold: tuple[int, Any] | None = None  # event-sourced: (events, state) for queries
        self.log: list[Any] | None = None  # an agent's conversation
        self.event_no = 0

    def next_snapshot(self, turn: Turn) -> Snapshot | None:
        """Return the snapshot that this turn's events make due, or None; raises `LimitExceeded` when it is too large."""
        assert turn.records is not None
        number = self.event_no + len(turn.records)
        if number - (self.snapshot.seq if self.snapshot else 0) < self._activation.type.snapshot_every:
            return None
        body = encode(turn.actor_object.state)
        if len(body) > self._activation.system.limits.state_bytes:
            raise self.too_large("state_bytes", "state", len(body))
        self._activation.type.check_state(body)
        return Snapshot(self._activation.type.version, number, body)

    def append(self, batch: Batch, records: list[tuple[Any, bytes]], snapshot: Snapshot | None) -> None:
        """Add a finished turn's events or log entries, and its snapshot, to the batch."""
        for event, body in records:
            self.event_no += 1
            batch.events.append((self._activation.no, self.event_no, body))
            batch.work += len(body) >> 10
            if self.log is not None:
                self._activation.type.cls.log_append(self.log, event)
            elif self.recent is not None:
                self.recent.append(body)
        if snapshot is not None:
            if self.fold is not None:
                self.fold_up()
            self.snapshot = batch.snapshots[self._activation.no] = snapshot
            self.recent = []

    def current(self) -> Any:
        """Return the state of the last finished turn, decoded anew."""
        state = self._activation.type.state_of(self.snapshot, self._activation.name)
        if self.recent:
            return self._apply(state, self.recent)
        return state

    def _apply(self, state: Any, bodies: list[bytes]) -> Any:
        folder = self._activation.type.new_object(self._activation.id, state)
        for body in bodies:
            event = self._activation.type.event_of(body, self._activation.name)
            try:
                folder.apply(event)
            except Exception as error:
                raise StateUndecodable(
                    f"{self._activation.name}: apply() raised {type(error).__name__}: {error}, for the stored event {event!r}."
                ) from error
        return folder.state

    def fold_up(self) -> Any:
        """Return the fold of all finished events, for one query: neither turns nor other queries see this object."""
        start = self.snapshot.seq if self.snapshot else 0
        if self.fold is not None and self.fold[0] == self.event_no:
            return self._activation.type.state_of(self.fold[1], self._activation.name)
        if self.fold is None or self.fold[0] < start:
            self.fold = (start, self.snapshot)
        seen, before = self.fold
        state = self._apply(
            self._activation.type.state_of(before, self._activation.name), (self.recent or [])[seen - start :]
        )
        self.fold = (self.event_no, Snapshot(self._activation.type.version, self.event_no, encode(state)))
        return state

    async def load_events(self) -> None:
        """Read the events that the snapshot does not hold, or the whole log."""
        if not (self._activation.type.has_events or self._activation.type.has_log):
            return
        type = self._activation.type
        bodies: list[bytes] = []
        log: list[Any] = self._activation.type.cls.log_list()
        after = 0 if self._activation.type.has_log or self.snapshot is None else self.snapshot.seq
        while after < self.event_no:
            page = await self._activation.system.store.events(self._activation.no, after, 1_000)
            if not page or page[-1][0] != after + len(page):
                raise StateUndecodable(
                    f"of the events {after + 1} to {self.event_no} of {self._activation.name}, some are missing."
                )
            after = page[-1][0]
            if not type.has_log:
                bodies.extend(body for _, body in page)
                continue
            for _, body in page:  # Page by page: of a log that was shortened, memory never holds the whole.
                type.cls.log_append(log, type.log_entry_of(body, self._activation.name))
        if type.has_log:
            self.log = log
        else:
            self.recent = bodies

    async def whole_log(self) -> list[Any]:
        """Return all entries of the log, from the store: memory may hold a shorter one."""
        activation, last = self._activation, self.event_no
        await activation.system.committer.wait_durable()
        entries: list[Any] = []
        while len(entries) < last:
            page = await activation.system.store.events(activation.no, len(entries), min(1_000, last - len(entries)))
            if not page:
                break
            entries += [activation.type.log_entry_of(body, activation.name) for _, body in page]
        return entries

    def too_large(self, limit: str, what: str, size: int) -> LimitExceeded:
        """Return the error of something that exceeds a limit in bytes."""
        value_max = getattr(self._activation.system.limits, limit)
        return LimitExceeded(
            f"the {what} of {self._activation.name} is {size} bytes, more than Limits.{limit}={value_max}; the turn was rolled back.",
            limit=limit,
            value=size,
            value_max=value_max,
        )
