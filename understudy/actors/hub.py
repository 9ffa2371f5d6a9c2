"""What is streamed of one job: the newest answer as far as it has come, told live and to those who come late.

Knows nothing of how models are called, nor of what is stored.
"""

from __future__ import annotations

from io import StringIO
from typing import TYPE_CHECKING, TypeAlias
from weakref import WeakSet

from understudy.events import ApprovalRequested, Finished, Restarted, StreamEvent, TextDelta, ToolCalled

if TYPE_CHECKING:
    from understudy.actors.streaming import JobStream
    from understudy.endpoint.model import ModelAnswer

Call: TypeAlias = tuple[int, int]  # a model call: the number of the run in its turn, and of the call in the run

FINISHED = Finished()
BROKEN_OFF = "the call was broken off"
_AGAIN = "the turn was delivered again, after a failure or a restart of the process"


class Hub:
    """What is streamed of one job: the newest answer as far as it has come, and who listens.

    Held by the running agent and by the listeners only: it goes with the last of them.
    """

    __slots__ = (
        "__weakref__",
        "_attempt",
        "_call",
        "_calls",
        "_closed",
        "_doubt",
        "_kept_max",
        "_length",
        "_prefix",
        "_sure",
        "_text",
        "actor",
        "called",
        "listeners",
        "no",
    )

    def __init__(self, no: int, kept_max: int) -> None:
        self.no = no
        self.actor = 0  # whose job it is; 0: nobody has looked yet
        self.listeners: WeakSet[JobStream] = WeakSet()
        self.called: Call | None = None  # the newest model call whose tool calls are told, or about to be
        self._kept_max = kept_max  # characters
        self._call: Call | None = None  # the newest one that was streamed
        self._attempt = 0  # the number of the newest one, which alone may write
        self._doubt = ""  # why its text does not count, unless that is found out; empty when it does count
        self._clear()

    def _clear(self) -> None:
        self._text: StringIO | None = StringIO()  # None: it is too long to be kept
        self._length = 0
        self._sure = 0  # how much of the text is of earlier answers, which count
        self._closed = False  # tool calls have ended the text
        self._calls: list[ToolCalled] = []
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
        for event in self._calls:
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

    def begin(self, call: Call, before: str, *, redelivered: bool) -> int:
        """Return the number of an attempt of a model call that begins: what was written before is taken back, or counts.

        *before* is the text of paused answers that this one goes on with; told if nothing was streamed from here.
        """
        if not self._doubt:
            self._sure = self._length
        elif self._length > self._sure:
            self._take_back(self._doubt)
        if self._closed:
            self._clear()
        self._attempt += 1
        if self._call is None:
            if redelivered:
                # Nobody knows what was shown before, in another life perhaps: it does not count.
                self._prefix = Restarted(_AGAIN)
                self._tell(self._prefix)
            if before:
                self.write(self._attempt, before)
                self._sure = self._length
        self._call, self._doubt = call, BROKEN_OFF
        return self._attempt

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

    def write(self, attempt: int, text: str) -> None:
        """Show a piece of the answer; not of an attempt that another one has followed."""
        if attempt != self._attempt:
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

    def wrote(self, attempt: int, text: str) -> None:
        """Show an answer that is complete, if its provider has shown nothing of it."""
        if text and self._length == self._sure:
            self.write(attempt, text)

    def broke(self, attempt: int, reason: str) -> None:
        """Note why an attempt has failed."""
        if attempt == self._attempt:
            self._doubt = reason

    def answered(self, call: Call, doubt: str) -> None:
        """Note that the answer is journaled, and why it does not count if it does not."""
        if call == self._call:
            self._doubt = doubt

    def tell_calls(self, call: Call, before: str, answer: ModelAnswer) -> None:
        """Tell the tool calls of an answer, and its text if that was not shown from here."""
        if call != self._call:
            attempt = self.begin(call, before, redelivered=False)  # It was journaled before: nothing of it is in doubt.
            if answer.text:
                self.write(attempt, answer.text)
        self._doubt = ""
        self._closed = True
        for each in answer.tool_calls:
            event = ToolCalled(each.id, each.name)
            self._calls.append(event)
            self._tell(event)

    def tell_approval(self, event: ApprovalRequested) -> None:
        """Tell that a call waits for a person; who comes later finds that in the store."""
        for listener in self.listeners:
            listener.hear_approval(event)

    @property
    def is_blank(self) -> bool:
        """Whether nothing was streamed from here, nor is about to be."""
        return self._call is None and self.called is None

    def recall(self, call: Call, before: str, answer: ModelAnswer) -> None:
        """Tell a stored answer whose tools have not all answered, unless its run has begun to stream meanwhile."""
        if self.is_blank:
            self.called = call
            self.tell_calls(call, before, answer)

    def finish(self) -> None:
        """Tell that the job has ended, and forget what was streamed."""
        self.end(FINISHED)
        self._clear()


class Writer:
    """Takes the text of one attempt of a model call, piece by piece."""

    __slots__ = ("attempt", "hub")

    def __init__(self, hub: Hub, attempt: int) -> None:
        self.hub = hub
        self.attempt = attempt

    def __call__(self, text: str) -> None:
        """Show the next piece."""
        self.hub.write(self.attempt, text)
