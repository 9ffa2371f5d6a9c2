"""Streams of jobs: what an agent's model writes and calls, for people who watch it happen.

Text is shown while it is written, and is not durable: `Restarted` takes back what came of an attempt that does not
count. Everything else is told after the commit that covers it. Of each job the newest answer is kept in memory, as far
as it has come, for those who attach in the middle of it. Knows nothing of how models are called.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, cast
from weakref import WeakSet, WeakValueDictionary

from understudy.actors import conversation
from understudy.actors.hub import BROKEN_OFF, FINISHED, Call, Hub, Writer
from understudy.actors.stream import Stream
from understudy.events import ApprovalRequested, Finished, StreamEvent

if TYPE_CHECKING:
    from understudy.actors.system import System
    from understudy.actors.turn import Turn
    from understudy.endpoint.model import ModelAnswer


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
        self._approvals: set[str] = set()  # that it has heard of
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
            if outcome is None:
                await self._system.streams.recall(hub)
                for approval in await self._system.streams.approvals(self._no):
                    self.hear_approval(approval)
        except BaseException as error:
            if self._over and isinstance(error, Exception):
                return  # Its end was told meanwhile, with the reason: the store may be closed, for one.
            hub.listeners.discard(self)
            self._hub, self._over = None, False  # A wait that was cancelled can be begun again.
            self._approvals.clear()
            while not self._queue.empty():
                self._queue.get_nowait()
            raise
        if outcome is not None:
            self.end(FINISHED)

    def hear_approval(self, event: ApprovalRequested) -> None:
        """Take that a call waits for a person, once."""
        if event.approval_id not in self._approvals:
            self._approvals.add(event.approval_id)
            self.hear(event)

    def end(self, last: Finished | BaseException) -> None:
        """Take what is the last thing to be heard; what comes after it does not count."""
        if not self._over:
            self._over = True
            self.hear(last)
            self.hear(None)


class RunStream:
    """The way from one run of an agent into its job's stream; it leads nowhere when its message is no job."""

    def __init__(self, turn: Turn, run: int, hub: Hub | None) -> None:
        self._turn = turn
        self._run = run
        self._hub = hub
        self._call: Call = (run, -1)  # the newest one
        self._before = ""  # text of the paused answers before the next one
        self.redelivered = False  # the run was begun before

    def begin(self, number: int) -> Writer | None:
        """Return what takes the text of an attempt of model call *number*, which begins now."""
        hub = self._hub
        if hub is None:
            return None
        self._call = (self._run, number)
        return Writer(hub, hub.begin(self._call, self._before, redelivered=self.redelivered))

    def wrote(self, writer: Writer | None, answer: ModelAnswer) -> None:
        """Note that the attempt has its whole answer."""
        if writer is not None:
            writer.hub.wrote(writer.attempt, answer.text)

    def broke(self, writer: Writer | None, error: BaseException) -> None:
        """Note that the attempt has failed."""
        if writer is None:
            return
        ended = self._turn.ended
        if isinstance(error, Exception):
            reason = f"{type(error).__name__}: {error}"
        else:
            reason = f"{BROKEN_OFF} ({ended})" if ended else BROKEN_OFF
        writer.hub.broke(writer.attempt, reason)

    def answered(self, number: int, answer: ModelAnswer) -> None:
        """Note that model call *number* has its answer, now or in an earlier life."""
        if self._hub is None:
            return
        self._call = (self._run, number)
        self._hub.answered(self._call, "")
        if answer.stop_reason == "pause_turn":
            self._before += answer.text

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
        batch.after.append(partial(hub.tell_calls, self._call, self._before, answer))
        batch.work += 1

    def used(self) -> None:
        """Note that the tools have answered: another text begins."""
        self._before = ""

    def close(self) -> None:
        """Let go of the stream: the run is over, and may be remembered for long."""
        self._hub = None


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

    async def recall(self, hub: Hub) -> None:
        """Tell the answer whose tools are at work or wait, of a run that has not begun to stream in this life.

        It may be about to begin, or be parked: then it would say nothing until what it waits for has come.
        """
        if hub.is_blank:
            await self._system.committer.wait_durable()
            found = conversation.unanswered(await self._system.store.journal(hub.no))
            if found is not None:
                hub.recall(*found)

    async def approvals(self, no: int) -> list[ApprovalRequested]:
        """Return the approvals that a job waits for, its own and those of what it asked, oldest first."""
        system = self._system
        await system.committer.wait_durable()
        found: dict[str, ApprovalRequested] = {}
        below = [no]
        while below:
            message = below.pop()
            for id, wait in await system.waits.of_message(message):
                if wait.kind == "approval":
                    found[id] = ApprovalRequested(system.waits.public_id(id), wait.tool)
            # What is a job itself has a stream of its own.
            below += [each.no for each in await system.store.asked_by(message) if not each.head.keep]
        return [found[id] for id in sorted(found)]

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
        hub = self._hubs.get(asking.no)
        if hub is None:
            return  # Nobody listens.
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
                batch.after.append(partial(_end_all, list(hub.listeners), error))  # Not those who come after a resume.
                batch.work += 1

    def refuse_all(self, error: BaseException) -> None:
        """Tell everybody that nothing more comes in this life, but for jobs whose end is on its way to the disk."""
        for hub in list(self._listened):
            if self._system.failure is not None or not self._system.jobs.has_ended(hub.no):
                hub.end(error)


def _end_all(listeners: list[JobStream], error: Exception) -> None:
    for listener in listeners:
        listener.end(error)


def _as_it_is(event: StreamEvent) -> StreamEvent:
    return event
