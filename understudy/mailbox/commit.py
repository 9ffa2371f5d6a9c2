"""Group commit: everything that finished since the last fsync becomes one transaction.

One task owns the store's writing side. What is handed to a batch is never refused; batches commit in order, so an
effect is never durable before its cause. A message that is stored and finished within one batch never touches the
table, and of several states of one actor only the last is written. A commit that fails has an unknown outcome: the
committer stops for good, and nothing that waits is released.
"""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Callable, Collection
from typing import TYPE_CHECKING, Any

import msgspec

from understudy.errors import StoreFailed

if TYPE_CHECKING:
    from understudy.mailbox.envelope import Envelope
    from understudy.mailbox.journal import Failure, JournalEntry, Outcome
    from understudy.mailbox.store import Store


class Snapshot(msgspec.Struct, frozen=True, gc=False):
    """The state of one actor after the event number `seq` (0 for actors without events)."""

    version: int
    seq: int
    body: bytes


class KeptResult(msgspec.Struct, frozen=True):
    """The outcome of a `submit` or keyed message; `expires_at` is wall time."""

    no: int
    actor: int
    handler: str
    key: str | None
    digest: bytes  # of the arguments, to tell a repeated key from a conflicting one
    outcome: Outcome
    state: str  # "done", "failed" or "cancelled"
    finished_at: float
    expires_at: float
    correlation: str


class DeadLetter(msgspec.Struct, frozen=True):
    """A message that was given up, with the failure that ended it."""

    envelope: Envelope
    failure: Failure
    at: float
    damaged: bool = False  # its row is not to be believed; the failure says so instead of what ended it


class Record(msgspec.Struct, frozen=True):
    """Something small that is stored under (kind, id), such as a ledger; the store knows nothing of what it means.

    `owner` is what records of one kind are listed by. After `expires_at` (wall time) it may be deleted.
    """

    kind: str
    id: str
    body: bytes
    owner: str = ""
    expires_at: float | None = None


class Told(msgspec.Struct, gc=False):
    """One row of the trace: an event, or several of one turn that were told one after the other.

    `at` is the time of the first.
    """

    at: float
    correlation: str
    turn: int | None
    events: list[bytes]


class Batch:
    """What one transaction writes, by table, and who waits for it."""

    ROW_S = 1.0  # The events of one row of the trace are no further apart: they go when the first is too old.

    __slots__ = (
        "actors",
        "after",
        "dead",
        "discarded",
        "envelopes",
        "events",
        "finished",
        "forgotten",
        "journal",
        "landed",
        "last_message",
        "number",
        "picture",
        "progress",
        "records",
        "released",
        "results",
        "snapshots",
        "started",
        "statuses",
        "traces",
        "turns",
        "waiters",
        "woken",
        "work",
    )

    def __init__(self, number: int) -> None:
        self.number = number
        self.work = 0  # how many changes it holds
        self.last_message = 0  # highest message number given so far: it may be elided here, and is never given again
        self.actors: dict[int, tuple[str, str]] = {}  # new actors: number -> (kind, id)
        self.envelopes: dict[int, Envelope] = {}  # accepted messages that have not finished
        self.finished: list[int] = []  # messages of earlier batches that ended: their rows go
        self.progress: dict[int, Envelope] = {}  # messages of earlier batches whose progress changed
        self.started: dict[int, Envelope] = {}  # those of which only `started` did
        self.snapshots: dict[int, Snapshot] = {}
        self.events: list[tuple[int, int, bytes]] = []  # (actor, seq, body)
        self.journal: dict[tuple[int, bytes], JournalEntry] = {}
        self.forgotten: list[int] = []  # messages whose journal rows of earlier batches go
        self.results: dict[int, KeptResult] = {}
        self.statuses: dict[int, tuple[str, str]] = {}  # actor -> (status, reason)
        self.woken: list[int] = []  # actors that are active again if they are "waiting", and stay as they are if not
        self.dead: dict[int, DeadLetter] = {}
        self.discarded: list[int] = []  # dead letters that go
        self.traces: list[Told] = []
        self.turns: dict[tuple[str, str], list[int]] = {}  # (kind, handler) -> [finished, failed]
        self.records: dict[tuple[str, str], Record | None] = {}  # by (kind, id); None deletes it
        self.picture: bytes | None = None  # of the supervision tree, for who looks when no system runs
        self.released: list[tuple[asyncio.Future[Any], Any]] = []  # futures and the values they get after the commit
        self.waiters: list[asyncio.Future[None]] = []  # who waits for this commit
        self.after: list[Callable[[], None]] = []  # called once it is on disk
        # What a store may call on the loop when it is: a round earlier than who waits for the store goes on.
        self.landed: Callable[[Batch], None] = lambda _batch: None

    def finish(self, envelope: Envelope) -> None:
        """Remove the message: its turn has finished, or it was given up."""
        no = envelope.no
        if self.envelopes.pop(no, None) is None:
            self.progress.pop(no, None)
            self.started.pop(no, None)
            self.finished.append(no)
        self.work += 1

    def put(self, record: Record) -> None:
        """Store a record, instead of what is stored under its kind and id."""
        self.records[record.kind, record.id] = record
        self.work += 1

    def drop(self, kind: str, id: str) -> None:
        """Delete a record."""
        self.records[kind, id] = None
        self.work += 1

    def note_progress(self, envelope: Envelope) -> None:
        """Store the message's progress fields."""
        if envelope.no not in self.envelopes:
            self.progress[envelope.no] = envelope
            self.started.pop(envelope.no, None)
        self.work += 1

    def note_started(self, envelope: Envelope) -> None:
        """Store whether the message's turn has started: every turn with steps says so, and that it gets on."""
        if envelope.no not in self.envelopes and envelope.no not in self.progress:
            self.started[envelope.no] = envelope
        self.work += 1

    def tell(self, at: float, correlation: str, event: bytes, turn: int | None = None) -> None:
        """Store an event of the trace. Those of one *turn*, a message's number, share rows: half as many for steps."""
        newest = self.traces[-1] if self.traces else None
        if newest is not None and newest.turn == turn is not None and at - newest.at < self.ROW_S:
            newest.events.append(event)
        else:
            self.traces.append(Told(at, correlation, turn, [event]))
        self.work += 1 + (len(event) >> 10)


class Committer:
    """Owns the writing side of a store: takes batch after batch, commits, releases who waits.

    `on_failure` is called once, with the error, when a commit fails, or what follows it.
    """

    # The batch is taken when the event loop has gone quiet, so that turns which are ready to run can still finish into
    # it; these bound the wait on a loop that is never quiet.
    QUIET_ROUNDS = 12
    BATCH_WORK = 20_000
    # How long a batch that nobody waits for stays open, and how much it may hold: a crash in this time runs the step
    # again whose outcome it holds.
    LINGER_S = 0.002
    LINGER_WORK = 500

    def __init__(self, store: Store, on_failure: Callable[[BaseException], None]) -> None:
        self.open = Batch(1)  # the batch that is being filled
        self.durable = 0  # number of the last batch that is on disk
        self.failure: StoreFailed | None = None
        self._store = store
        self._on_failure = on_failure
        self._wake: asyncio.Future[None] | None = None  # set while there is nothing to commit
        self._linger: asyncio.Future[None] | None = None  # set while nobody waits for what there is
        self._room: list[asyncio.Future[None]] = []
        self._task: asyncio.Task[None] | None = None
        # Kept, as each `get_running_loop` of CPython 3.11 asks for the process id.
        self._loop: asyncio.AbstractEventLoop
        self._context: contextvars.Context
        self._closing = False
        self._flying: Batch | None = None
        self._answered = False  # the newest batch on disk released somebody outside, who may send again at once
        self.turns: Collection[Any] = ()  # those that run; a message may become one
        self.taking: Callable[[Batch], None] = lambda _batch: None  # called before a batch is written
        self.committed: Callable[[Batch], None] = lambda _batch: None  # called when it is on disk

    def start(self) -> None:
        """Start the task that commits."""
        self._loop = asyncio.get_running_loop()
        self._context = contextvars.copy_context()
        self._task = self._loop.create_task(self._run(), name="understudy-committer")

    def touch(self) -> Batch:
        """Return the open batch, to be changed at once, and see that it will be committed."""
        wake = self._wake
        if wake is not None:
            self._wake = None
            if not wake.done():
                wake.set_result(None)
        return self.open

    def hurry(self) -> None:
        """Commit the open batch soon: somebody waits for it now."""
        linger = self._linger
        if linger is not None:
            self._linger = None
            if not linger.done():
                linger.set_result(None)

    def release(self, future: asyncio.Future[Any], value: Any) -> None:
        """Give *future* its value, or its exception, once everything handed over so far is on disk."""
        self.open.released.append((future, value))
        if self._linger is not None:
            self.hurry()

    def behind(self) -> bool:
        """Whether the open batch is so large that senders and turns should wait for the disk."""
        return self.open.work >= self.BATCH_WORK

    async def wait_room(self) -> None:
        """Return when the open batch has been taken: senders and turns do not run away from the disk."""
        while self.behind() and self.failure is None:
            room: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._room.append(room)
            await room
        if self.failure is not None:
            raise self.failure

    async def wait_durable(self) -> None:
        """Return when everything handed over so far is on disk."""
        durable = self.durable_soon()
        if durable is not None:
            await durable

    def durable_soon(self) -> asyncio.Future[None] | None:
        """Return a future that is done when everything handed over so far is on disk; None when it is."""
        if self.failure is not None:
            raise self.failure
        batch = self.open
        if not batch.work:
            flying = self._flying
            if flying is None:
                return None
            batch = flying
        # Not of `get_running_loop()`: CPython 3.11 asks for the process id there, 5 % of a tell.
        waiter: asyncio.Future[None] = self._loop.create_future()
        batch.waiters.append(waiter)
        if self._linger is not None:
            self.hurry()
        return waiter

    async def stop(self) -> None:
        """Commit what is left and end the task. Raises nothing when the store has failed before."""
        self._closing = True
        self.touch()
        self.hurry()
        if self._task is not None:
            await asyncio.wait([self._task])

    async def _run(self) -> None:
        try:
            await self._commit_all()
        except asyncio.CancelledError as error:
            # Nobody here does that; but a loop that is torn down cancels every task, and who waits must not hang.
            self._fail(error, self.open)

    async def _commit_all(self) -> None:
        while True:
            if not self.open.work:
                if self._closing:
                    return
                self._wake = self._loop.create_future()
                await self._wake
            await self._wanted()
            await self._quiet()
            batch = self.open
            if not batch.work:
                continue
            self.open = Batch(batch.number + 1)
            try:
                self.taking(batch)
                self._flying = batch
                self._make_room()
                batch.landed = self._landed
                await self._store.commit(batch)
                self._landed(batch)
            except BaseException as error:  # Also of what is called here: a task that dies silently leaves all waiting.
                self._fail(error, batch)
                if isinstance(error, KeyboardInterrupt | SystemExit):  # A signal came just here: it means the process.
                    raise
                return

    async def _wanted(self) -> None:
        """Wait until somebody waits for the open batch, or for a moment.

        What a step leaves behind rides in the commit that the next step waits for: half as many commits.
        """
        batch = self.open
        if batch.released or batch.waiters or batch.work >= self.LINGER_WORK or self._closing:
            return
        linger = self._linger = self._loop.create_future()
        timer = self._loop.call_later(self.LINGER_S, self.hurry)
        await linger
        timer.cancel()

    async def _quiet(self) -> None:
        """Let the turns that are ready to run finish into the open batch, within bounds."""
        if 0 < len(self.turns) <= len(self.open.waiters) and not self._answered:
            return  # All turns wait for it, and nobody is about to send: a step that runs alone waits for no round.
        seen = -1
        for _ in range(self.QUIET_ROUNDS):
            work = self.open.work
            if work == seen or work >= self.BATCH_WORK:
                return
            seen = work
            await asyncio.sleep(0)

    def _make_room(self) -> None:
        for room in self._room:
            if not room.done():
                room.set_result(None)
        self._room.clear()

    def _landed(self, batch: Batch) -> None:
        """Release, once, who waits for a batch that is on disk."""
        if batch.number <= self.durable:
            return
        self._flying = None
        self.durable = batch.number
        self._answered = bool(batch.released)
        self._context.run(self._release, batch)

    def _release(self, batch: Batch) -> None:
        for future, value in batch.released:
            if not future.done():
                if isinstance(value, BaseException):
                    future.set_exception(value)
                else:
                    future.set_result(value)
        for waiter in batch.waiters:
            if not waiter.done():
                waiter.set_result(None)
        for call in batch.after:
            call()
        self.committed(batch)

    def _fail(self, error: BaseException, batch: Batch) -> None:
        if self.durable < batch.number:
            self.failure = StoreFailed(
                f"a commit failed and its outcome is unknown ({error}); the store stopped and nothing more is released. "
                "Mend the cause (space, permissions, disk) and open the store again: it decides from what is on disk."
            )
        else:
            self.failure = StoreFailed(
                f"what follows a commit failed ({type(error).__name__}: {error}); the store stopped and nothing more is "
                "released. What was committed is on disk: open the store again."
            )
        self.failure.__cause__ = error
        for unsettled in (batch, self.open):
            for future in [*(future for future, _ in unsettled.released), *unsettled.waiters]:
                if not future.done():
                    future.set_exception(self.failure)
                    future.exception()  # Seen: a waiter that was cancelled must not log it as never retrieved.
        self._make_room()
        self._on_failure(self.failure)
