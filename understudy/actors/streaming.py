"""Streams of jobs: what an agent's model writes and calls, for people who watch it happen.

Text is shown while it is written, and is not durable: `Restarted` takes back what came of an attempt that does not
count. Everything else is told after the commit that covers it. Of each job the newest answer is kept in memory, as far
as it has come, for those who attach in the middle of it. Knows nothing of how models are called.
"""

from __future__ import annotations

from functools import partial
from io import StringIO
from typing import TYPE_CHECKING, TypeAlias, cast
from weakref import WeakSet, WeakValueDictionary

from understudy.actors.stream import Stream
from understudy.events import ApprovalRequested, Finished, Restarted, StreamEvent, TextDelta, ToolCalled

if TYPE_CHECKING:
    from understudy.actors.system import System
    from understudy.actors.turn import Turn
    from understudy.endpoint.model import ModelAnswer

_Call: TypeAlias = tuple[int, int]  # a model call: the number of the run in its turn, and of the call in the run

_AGAIN = "the turn was delivered again, after a failure or a restart of the process"
_BROKEN_OFF = "the call was broken off"
_FINISHED = Finished()


class JobStream(Stream[StreamEvent]):
    """One listener of a job. It is attached by its first `__anext__`, and by nothing but its reader kept alive."""

    def __init__(self, system: System, no: int) -> None:
        super().__init__(
            f"stream() of job {system.job_id(no)}", _as_it_is, WeakSet(), instead="call stream() again to attach anew"
        )
        self._system = system
        self._no = no
        self._hub: Hub | None = None
        self._over = False  # what ends it was heard
        self.misses = False  # it came too late for the newest answer's text, and sees none of it

    async def __anext__(self) -> StreamEvent:
        """Return what comes next; the first call attaches, and raises what `Job.stream` says."""
        if self._hub is None and not self._ended:
            await self._attach()
        thing: StreamEvent | BaseException = await super().__anext__()
        if isinstance(thing, BaseException):
            self._end()
            raise thing
        return thing

    async def _attach(self) -> None:
        # First the hub, then the look at what is stored: no end can slip through between the two.
        hub = self._hub = self._system.streams.hub_of(self._no)
        hub.join(self)
        self._others = cast("WeakSet[Stream[StreamEvent]]", hub.listeners)
        try:
            outcome = await self._system.jobs.find(self._no, hub.belongs_to)
        except BaseException:
            hub.listeners.discard(self)
            self._hub = None  # A wait that was cancelled can be begun again.
            while not self._queue.empty():
                self._queue.get_nowait()
            raise
        if outcome is not None:
            self.end(_FINISHED)

    def end(self, last: Finished | BaseException) -> None:
        """Take what is the last thing to be heard; what comes after it does not count."""
        if not self._over:
            self._over = True
            self.hear(last)
            self.hear(None)


class Hub:
    """What is streamed of one job: the newest answer as far as it has come, and who listens.

    Held by the running agent and by the listeners only: it goes with the last of them.
    """

    __slots__ = (
        "__weakref__",
        "_call",
        "_closed",
        "_doubt",
        "_events",
        "_kept_max",
        "_length",
        "_prefix",
        "_sure",
        "_text",
        "_writer",
        "actor",
        "called",
        "listeners",
        "no",
    )

    def __init__(self, no: int, kept_max: int) -> None:
        self.no = no
        self.actor = 0  # whose job it is; 0: nobody has looked yet
        self.listeners: WeakSet[JobStream] = WeakSet()
        self.called: _Call | None = None  # the newest model call whose tool calls are told, or about to be
        self._kept_max = kept_max  # characters
        self._call: _Call | None = None  # the newest one that was streamed
        self._writer: Writer | None = None  # the attempt of it that may write
        self._doubt = ""  # why its text does not count, unless that is found out; empty when it does count
        self._clear()

    def _clear(self) -> None:
        self._text: StringIO | None = StringIO()  # None: it is too long to be kept
        self._length = 0
        self._sure = 0  # how much of the text is of earlier answers, which count
        self._closed = False  # tool calls have ended the text
        self._events: list[ToolCalled | ApprovalRequested] = []
        self._prefix: Restarted | None = None
        for listener in self.listeners:
            listener.misses = False

    # --- listeners -------------------------------------------------------------------------------------------------

    def belongs_to(self, actor: int) -> None:
        """Note whose job it is."""
        self.actor = actor

    def join(self, listener: JobStream) -> None:
        """Let *listener* hear what there is so far, and then everything."""
        if self._prefix is not None:
            listener.hear(self._prefix)
        if self._text is None:
            listener.misses = True
        elif self._length:
            listener.hear(TextDelta(self._text.getvalue()))
        for event in self._events:
            listener.hear(event)
        self.listeners.add(listener)

    def end(self, last: Finished | BaseException) -> None:
        """Tell everybody the last thing."""
        for listener in list(self.listeners):
            listener.end(last)

    def _tell(self, event: StreamEvent) -> None:
        for listener in self.listeners:
            listener.hear(event)

    # --- what is told ----------------------------------------------------------------------------------------------

    def begin(self, call: _Call, writer: Writer | None, *, redelivered: bool) -> None:
        """Note that an attempt of a model call begins: what the one before it wrote is taken back, or counts."""
        if not self._doubt:
            self._sure = self._length
        elif self._length > self._sure:
            self._take_back(self._doubt)
        if self._closed:
            self._clear()
        if self._call is None and redelivered:
            # Nobody knows what was shown before, in another life perhaps: it does not count.
            self._prefix = Restarted(_AGAIN)
            self._tell(self._prefix)
        self._call, self._writer, self._doubt = call, writer, _BROKEN_OFF

    def _take_back(self, reason: str) -> None:
        sure = self._text.getvalue()[: self._sure] if self._text is not None else ""
        self._text = StringIO()
        self._text.write(sure)
        self._sure = self._length = len(sure)
        for listener in self.listeners:
            listener.misses = False
        self._tell(Restarted(reason))
        if sure:
            self._tell(TextDelta(sure))

    def write(self, writer: Writer | None, text: str) -> None:
        """Show a piece of the answer; not of an attempt that another one has followed."""
        if writer is not self._writer:
            return
        self._length += len(text)
        kept = self._text
        if kept is not None:
            if self._length <= self._kept_max:
                kept.write(text)
            else:
                self._text = None
        if self.listeners:
            event = TextDelta(text)
            for listener in self.listeners:
                if not listener.misses:
                    listener.hear(event)

    def wrote(self, writer: Writer, text: str) -> None:
        """Show an answer that is complete, if its provider has shown nothing of it."""
        if text and self._length == self._sure:
            self.write(writer, text)

    def broke(self, writer: Writer, reason: str) -> None:
        """Note why an attempt has failed."""
        if writer is self._writer:
            self._doubt = reason

    def answered(self, call: _Call, doubt: str) -> None:
        """Note that the answer is journaled, and why it does not count if it does not."""
        if call == self._call:
            self._doubt = doubt

    def tell_calls(self, call: _Call, answer: ModelAnswer, *, redelivered: bool) -> None:
        """Tell the tool calls of an answer, and its text if that was shown in an earlier life only."""
        if call != self._call:
            self.begin(call, None, redelivered=redelivered)
            if answer.text:
                self.write(None, answer.text)
        self._doubt = ""
        self._closed = True
        for each in answer.tool_calls:
            self._add(ToolCalled(each.id, each.name))

    def tell_approval(self, event: ApprovalRequested) -> None:
        """Tell that a call waits for a person; again it does nothing."""
        if event not in self._events:
            self._add(event)

    def _add(self, event: ToolCalled | ApprovalRequested) -> None:
        self._events.append(event)
        self._tell(event)

    def finish(self) -> None:
        """Tell that the job has ended, and forget what was streamed."""
        self.end(_FINISHED)
        self._clear()


class Writer:
    """Takes the text of one attempt of a model call, piece by piece."""

    __slots__ = ("_hub",)

    def __init__(self, hub: Hub) -> None:
        self._hub = hub

    def __call__(self, text: str) -> None:
        """Show the next piece."""
        self._hub.write(self, text)


class RunStream:
    """The way from one run of an agent into its job's stream; it leads nowhere when its message is no job."""

    def __init__(self, turn: Turn, run: int, hub: Hub | None) -> None:
        self._turn = turn
        self._run = run
        self._hub = hub
        self._call: _Call = (run, -1)  # the newest one
        self.redelivered = False  # the run was begun before

    def begin(self, number: int) -> Writer | None:
        """Return what takes the text of an attempt of model call *number*, which begins now."""
        hub = self._hub
        if hub is None:
            return None
        self._call = (self._run, number)
        writer = Writer(hub)
        hub.begin(self._call, writer, redelivered=self.redelivered)
        return writer

    def wrote(self, writer: Writer | None, answer: ModelAnswer) -> None:
        """Note that the attempt has its whole answer."""
        if self._hub is not None and writer is not None:
            self._hub.wrote(writer, answer.text)

    def broke(self, writer: Writer | None, error: BaseException) -> None:
        """Note that the attempt has failed."""
        if self._hub is None or writer is None:
            return
        if isinstance(error, Exception):
            self._hub.broke(writer, f"{type(error).__name__}: {error}")
        else:
            ended = self._turn.ended
            self._hub.broke(writer, f"{_BROKEN_OFF} ({ended})" if ended else _BROKEN_OFF)

    def answered(self, number: int) -> None:
        """Note that model call *number* has its answer, now or in an earlier life."""
        self._call = (self._run, number)
        if self._hub is not None:
            self._hub.answered(self._call, "")

    def unusable(self, error: Exception) -> None:
        """Note that the newest answer cannot be used."""
        if self._hub is not None:
            self._hub.answered(self._call, f"{type(error).__name__}: {error}")

    def called(self, answer: ModelAnswer) -> None:
        """Tell the tool calls of the newest answer, one of which is about to run; again it does nothing."""
        hub = self._hub
        if hub is None or hub.called == self._call or self._turn.is_fenced():
            return
        hub.called = self._call
        batch = self._turn.activation.system.committer.touch()
        batch.after.append(partial(hub.tell_calls, self._call, answer, redelivered=self.redelivered))
        batch.work += 1


class Streams:
    """The streams of one system's jobs."""

    def __init__(self, system: System) -> None:
        self._system = system
        self._hubs: WeakValueDictionary[int, Hub] = WeakValueDictionary()
        self._listened: WeakSet[Hub] = WeakSet()  # those that ever had a listener: few

    def __len__(self) -> int:
        """How many jobs have something to stream, or somebody who listens."""
        return len(self._hubs)

    # --- called by users -------------------------------------------------------------------------------------------

    def listen(self, no: int) -> JobStream:
        """Return a stream of the job."""
        return JobStream(self._system, no)

    def hub_of(self, no: int) -> Hub:
        """Return the hub of a job that somebody is about to listen to."""
        hub = self._hub(no)
        self._listened.add(hub)
        return hub

    def _hub(self, no: int) -> Hub:
        hub = self._hubs.get(no)
        if hub is None:
            # An answer with more text than this cannot be stored, and so is none.
            hub = self._hubs[no] = Hub(no, self._system.limits.payload_bytes)
        return hub

    # --- called by turns -------------------------------------------------------------------------------------------

    def of_run(self, turn: Turn, run: int) -> RunStream:
        """Return where run number *run* of a turn tells what it does."""
        return RunStream(turn, run, self._hub(turn.no) if turn.envelope.head.keep else None)

    def approval_requested(self, turn: Turn, approval_id: str, tool: str) -> None:
        """Tell that a call of *turn*, or the call that is this turn, waits for a person; in the commit that is open now.

        It is told to the nearest job on the way up: who watches an agent hears of the approvals that its sub-agents
        need, for it waits for them too.
        """
        asking: Turn | None = turn
        while asking is not None and not asking.envelope.head.keep:
            caller = asking.envelope.caller
            asking = self._system.turns.get(caller) if caller is not None else None
        if asking is None:
            return
        hub = self._hub(asking.no)
        batch = self._system.committer.touch()
        batch.after.append(partial(hub.tell_approval, ApprovalRequested(approval_id, tool)))
        batch.work += 1

    # --- ends ------------------------------------------------------------------------------------------------------

    def finished(self, no: int) -> None:
        """Tell that a job has ended: its outcome is on disk."""
        if self._hubs:
            hub = self._hubs.pop(no, None)
            if hub is not None:
                hub.finish()

    def actor_held(self, actor: int, error: Exception) -> None:
        """Tell those who listen to a job of this actor that it is held, in the commit that is open now."""
        for hub in list(self._listened):
            if hub.actor == actor:
                batch = self._system.committer.touch()
                batch.after.append(partial(hub.end, error))
                batch.work += 1

    def refuse_all(self, error: BaseException) -> None:
        """Tell everybody that nothing more comes in this life, but for jobs whose end is on its way to the disk."""
        for hub in list(self._listened):
            if self._system.failure is not None or not self._system.jobs.has_ended(hub.no):
                hub.end(error)


def _as_it_is(event: StreamEvent) -> StreamEvent:
    return event
