"""One wait for the outside becomes a span: who was asked, what was answered, and after how long.

A wait goes on when its turn is ended to let it rest, and when its process dies: it is over when it has its answer, or
when the message whose turn waits has ended.
"""

from __future__ import annotations

from understudy import events as happened
from understudy.trace import words
from understudy.trace.history import AGAIN, Draft, History

_LENGTH_MAX = 160  # of arguments and reasons on one line
_GOES_ON = (*AGAIN, "suspend")  # decisions after which the message, and what it waits for, is still there


def wait_of(event: happened.TraceEvent) -> str | None:
    """Return the id of the span of the wait that an event is about, or None."""
    if isinstance(event, happened.WaitBegan | happened.WaitEnded):
        return f"{event.span}/wait {event.wait}"
    return None


class Awaited(History):
    """What is known of one wait of a turn, or of a handler's, for the outside."""

    def __init__(self, id: str, order: int, turn: str) -> None:
        super().__init__(id, order)
        self.parent = turn
        self.role, self.name, self.is_turn = "wait", "wait", False
        self._wait = ""
        self._tool = ""
        self._call = ""

    @property
    def is_free(self) -> bool:
        """Whether it goes on when what it was begun by has ended: `follow` has looked."""
        return True

    def read(self, order: int, event: happened.TraceEvent) -> None:
        """Take in that the wait began, or has ended."""
        if isinstance(event, happened.WaitBegan):
            self._wait, self._tool = words.one_line(event.wait), words.one_line(event.tool)
            name = words.one_line(event.name)
            self.name = f"approval {self._tool}" if self._tool else f"external {name}"
            if self._tool:
                self._call = f"{self._tool}({words.one_line(event.arguments, _LENGTH_MAX)})"
            if not self.drafts:
                self._begin(order, event, 1)
        elif isinstance(event, happened.WaitEnded):
            if not self.drafts:  # Its beginning is missing.
                self.name = f"external {words.one_line(event.name)}" if event.outcome == "delivered" else "approval"
            self._end(self._current(order, event), event)

    def _end(self, draft: Draft, event: happened.WaitEnded) -> None:
        draft.is_open = draft.is_placeholder = False
        draft.status, draft.ended_at = "ok", event.at
        draft.duration_s = max(event.at - draft.started_at, 0.0)
        outcome = words.one_line(event.outcome)
        if outcome == "timed out":
            draft.status, draft.error = "failed", "StepTimeout"
            outcome = "FAILED timed out"
        if event.reason:
            outcome += f": {words.one_line(event.reason, _LENGTH_MAX)}"
        draft.notes += [outcome, self._call] if self._call else [outcome]

    def follow(self, turn: History) -> None:
        """Note that nobody waits any more, when the message of its turn has ended."""
        last = turn.drafts[-1]
        is_over = last.status == "ok" or (last.status == "failed" and last.decision not in _GOES_ON)
        for draft in self.drafts:
            if draft.is_open and not last.is_open and (is_over or last.ended_by == "cancelled"):
                draft.interrupt(last.ended_by or "left unfinished")

    def settle(self, life: int, *, is_live: bool, seen_at: float | None = None) -> None:
        """Say that it goes on, if it does: whether or not a process is there to wait."""
        del life, is_live
        for draft in self.drafts:
            if not draft.is_open:
                continue
            draft.is_open, draft.status = False, "waiting"
            what = f"approval {self._wait}" if self._tool else f"{self.name.removeprefix('external ')} from outside"
            note = f"waits for {what}"
            if seen_at is not None:
                note += f", {words.duration(seen_at - draft.started_at)} so far"
            draft.notes += [note, self._call] if self._call else [note]
