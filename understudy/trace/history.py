"""One span's events, in order, become its attempts. Any part of the events may be missing: nothing here raises.

An attempt that has no end is running, unless something later shows that it cannot be: the same span started again, its
parent ended, or the store was opened again, which means that the process died.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, Final

import msgspec

from understudy import events as happened
from understudy.trace import words
from understudy.trace.span import Attempt, Status

# Failures before anything was billed: a call that ended so is known to have cost nothing.
_UNBILLED: Final = frozenset(
    {"RateLimited", "Overloaded", "RequestRejected", "AuthenticationFailed", "SpendLimitReached"}
)
_DECISIONS: Final = {
    "retry": "retry",
    "restart": "restart",
    "answer": "answered with the error",
    "dead_letter": "dead letter",
    "stop": "actor stopped",
    "suspend": "suspended",
    "escalate": "escalated",
    "fallback": "fallback",
    "amend": "",  # the next attempt says what was amended
}
_AMENDMENTS: Final = {
    "remind_format": "format reminder added",
    "compact": "history summarised",
    "disable_tool": "tool disabled",
}
_RUNG: Final = re.compile(r" (\d+ of \d+)$")
AGAIN: Final = frozenset({"retry", "restart", "amend", "fallback"})  # decisions after which another attempt follows
PARKED: Final = "parked"  # why a turn is ended that only waits for the outside
_TOOL_HANDLERS: Final = frozenset({"", "call", "run", "invoke"})  # of a function that is a tool: its kind says it all


class Draft(msgspec.Struct, kw_only=True):
    """An attempt that is being put together; the fields are those of `Attempt`."""

    number: int
    life: int
    order: int
    started_at: float
    is_open: bool = True
    is_placeholder: bool = False  # known only by what was said about it
    woken_at: int | None = None  # order of the event with which it went on after it had waited for the outside
    ended_at: float | None = None
    duration_s: float | None = None
    status: Status = "running"
    ended_by: str = ""
    model: str = ""
    is_model_call: bool = False
    input_tokens: int = 0
    output_tokens: int = 0
    cached_tokens: int = 0
    usd_micros: int | None = 0
    error: str | None = None
    message: str | None = None
    decision: str = ""
    reason: str = ""
    delay_s: float = 0.0
    notes: list[str] = []
    within: int = 0
    replayed: int = 0
    spared_usd_micros: int = 0

    def interrupt(self, reason: str) -> None:
        """Say that it was ended from outside."""
        self.is_open, self.status, self.ended_by = False, "interrupted", reason

    def freeze(self, *, is_retry: bool) -> Attempt:
        """Return the finished attempt."""
        fields: dict[str, Any] = {name: getattr(self, name, None) for name in Attempt.__struct_fields__}
        fields.update(is_retry=is_retry, notes=tuple(self.notes))
        return Attempt(**fields)


class History:
    """What is known of one span while its events are read."""

    def __init__(self, id: str, order: int) -> None:
        self.id = id
        self.order = order
        self.parent: str | None = None
        self.role = ""
        self.name = ""
        self.is_turn = True  # of a message, which outlives the turn that sent it; not so a step
        self.drafts: list[Draft] = []
        self.replays: list[happened.StepReplayed] = []
        self.replay_orders: list[int] = []
        self.amendments: list[tuple[int, int, str]] = []  # (order, life, note) that nothing below has taken yet
        self._coming: list[str] = []  # notes for the attempt that comes next

    @property
    def is_free(self) -> bool:
        """Whether it goes on when what it was begun by has ended."""
        return self.is_turn

    def mention(self, order: int, event: happened.TraceEvent) -> None:
        """Take note that an event about something else belongs to this span."""
        if event.parent is not None and self.parent is None:
            self.parent = event.parent
        self._current(order, event)

    def read(self, order: int, event: happened.TraceEvent) -> None:
        """Take in the next event of this span; *order* is its place in the trace."""
        if event.parent is not None and self.parent is None:
            self.parent = event.parent
        if isinstance(event, happened.ModelCalled) and self.drafts and self.is_turn:
            # Not a call of its own: add what it cost to the turn that is under way.
            self._spend(self.drafts[-1], event)
            return
        match event:
            case happened.TurnStarted():
                self._name_turn(event.kind, event.actor, event.handler, event.role)
                self._begin(order, event, event.attempt)
            case happened.TurnFinished():
                draft = self._ending(order, event, event.duration_s)
                draft.status = "ok"
                if event.answered is not None:
                    draft.notes.append(f"answered {words.error(event.answered)}")
            case happened.TurnFailed():
                self._name_turn(event.kind, event.actor, event.handler)
                draft = self._ending(order, event, event.duration_s)
                draft.number = max(draft.number, event.attempt)
                self._fail(draft, event)
            case happened.TurnEndedBySystem():
                self._ending(order, event, None).interrupt(words.one_line(event.reason) or "ended by the system")
            case happened.TurnDiverged():
                self._current(order, event).notes.append(f"diverged: new step {words.one_line(event.step)}")
            case happened.StepStarted():
                self._name_step(event.step, event.role)
                self._begin(order, event, event.attempt)
            case happened.StepFinished():
                self._name_step(event.step, event.role)
                self._step_finished(order, event)
            case happened.StepReplayed():
                self._name_step(event.step, event.role)
                self.replays.append(event)
                self.replay_orders.append(order)
            case happened.ModelCalled():
                self._name_step(event.model, "model")
                draft = self._ending(order, event, event.duration_s)
                draft.number, draft.status = event.attempt, "ok"
                self._spend(draft, event)
                if event.error is not None:
                    self._fail(draft, event)
            case happened.Amended():
                self._amended(order, event)
            case happened.MessageCrashed():
                self._name_turn(event.kind, event.actor, event.handler)
                self._crashed(order, event)
            case happened.MessageDeadLettered():
                self._name_turn(event.kind, event.actor, event.handler)
                self._dead_lettered(order, event)
            case happened.MessageCancelled():
                self._name_turn(event.kind, event.actor, event.handler)
                self._close(order, event).interrupt("cancelled")
            case happened.MessageExpired():
                self._name_turn(event.kind, event.actor, event.handler)
                draft = self._close(order, event)
                draft.is_open, draft.status, draft.error = False, "failed", "DeadlineExceeded"
                draft.notes.append("FAILED its deadline passed")
            case happened.DeadLetterRedelivered():
                self._current(order, event)
                self._coming.append("redelivered by hand")
            case happened.DeadLetterDiscarded():
                self._current(order, event).notes.append("dead letter discarded")
            case happened.ActorRestarted():
                self._name_turn(event.kind, event.actor, "")
                draft = self._current(order, event)
                if draft.decision != "restart":  # else it was said
                    draft.notes.append(f"restarted: {words.one_line(event.reason)}")
            case happened.ActorSuspended():
                self._name_turn(event.kind, event.actor, "")
                self._suspended(order, event)
            case happened.ActorStopped():
                self._name_turn(event.kind, event.actor, "")
                draft = self._current(order, event)
                if draft.decision != "stop":  # else it was said
                    draft.notes.append(f"stopped: {words.one_line(event.reason)}")
            case happened.ActorAbandoned():
                self._name_turn(event.kind, event.actor, "")
                self._current(order, event).notes.append(
                    f"abandoned: it did not end within {words.duration(event.shutdown_s)}"
                )
            case happened.Escalated():
                name = f"supervisor {words.one_line(event.supervisor)}"
                if event.parent is None and self.name in ("", name):
                    self._say(order, event, name, f"{words.one_line(event.child)} escalated: {_line(event.reason)}")
                else:
                    self._current(order, event).notes.append(f"escalated to {name}: {_line(event.reason)}")
            case happened.ChildStartFailed():
                child = words.one_line(event.child)
                why = f"{words.error(event.error)}: {_line(event.message)}"
                self._say(order, event, f"supervisor {words.one_line(event.supervisor)}", f"{child} not started: {why}")
            case happened.SupervisorRestarted():
                self._say(
                    order, event, f"supervisor {words.one_line(event.supervisor)}", f"restarted: {_line(event.reason)}"
                )
            case happened.SupervisorStopped():
                self._say(
                    order, event, f"supervisor {words.one_line(event.supervisor)}", f"stopped: {_line(event.reason)}"
                )
            case happened.BudgetRaised():
                if self.drafts:
                    if self.drafts[-1].status == "suspended":
                        self.drafts[-1].interrupt("held")  # It goes on as soon as a process is there.
                    self._coming.append("budget raised")
                else:
                    workflow = words.one_line(event.budget.removeprefix("workflow:"))
                    self._say(order, event, f"workflow {workflow}", "budget raised")
            case happened.ActorResumed():
                self._name_turn(event.kind, event.actor, "")
                draft = self._current(order, event)
                if draft.ended_by == "suspended":
                    draft.status = "ok"  # It goes on, and nothing more is told here of what it does.
                self._coming.append("resumed")
            case happened.ActorErased():
                self._say(order, event, f"{words.one_line(event.kind)} #{event.actor_no}", "erased")
            case happened.BreakerChanged():
                state = event.state.replace("_", " ")
                if event.until is not None:
                    state += f" for {words.duration(event.until - event.at)}"
                self._say(order, event, f"breaker {words.one_line(event.model)}", f"{state}: {_line(event.reason)}")
            case happened.SystemStarted():
                clean = "" if event.clean else "; the process before it was killed"
                self._say(order, event, "system", f"opened by process {event.pid}{clean}")
            case happened.SystemStopped():
                left = words.count(event.interrupted, "turn")
                self._say(order, event, "system", f"closed, {left} interrupted" if event.interrupted else "closed")
            case _:  # An event of a later version: it has a place in the tree, and no more.
                self._current(order, event)

    def finish(self) -> None:
        """Take note that all events of this span were read."""
        if not self.drafts:
            self._begin(self.replay_orders[0], self.replays[0], 1).is_open = False
            self.drafts[0].status = "replayed"
        self.drafts[-1].notes += self._coming
        self._coming = []

    def settle(self, life: int, *, is_live: bool, seen_at: float | None = None) -> None:
        """Say what became of attempts that nothing else has ended; *life* is the latest that the trace knows of.

        *seen_at* is when that is looked at, if it is known.
        """
        del seen_at  # Only of waits it is told how long they take so far.
        if self.drafts[-1].ended_by == PARKED:
            # Nobody is at work, whether or not a process is there.
            self.drafts[-1].status, self.drafts[-1].duration_s = "waiting", None
        for draft in self.drafts:
            if draft.is_open and draft.is_placeholder:
                draft.is_open, draft.status = False, "ok"  # Nothing says that it goes on.
            elif draft.is_open and (draft.life < life or not is_live):
                self.interrupt(draft, "killed")

    def hold_back(self, is_held_back: Callable[[str, float], bool]) -> None:
        """Say of a model call that is under way that it waits for the breaker before it, if it does."""
        last = self.drafts[-1]
        if self.role == "model" and last.is_open and is_held_back(self.name.removeprefix("model "), last.started_at):
            last.is_open, last.status = False, "waiting"
            last.notes.append("waits for the breaker")

    def interrupt(self, draft: Draft, reason: str) -> None:
        """Say that an attempt of this span was ended from outside."""
        draft.interrupt(reason)
        if self.role == "model":
            draft.usd_micros = None  # The provider may bill an answer that nobody received.

    def freeze(self) -> tuple[Attempt, ...]:
        """Return the attempts."""
        frozen: list[Attempt] = []
        for place, draft in enumerate(self.drafts):
            # An attempt that follows a crash is not a retry, whatever its number: it is the same one again.
            before = self.drafts[place - 1] if place else None
            is_retry = draft.number > 1
            if before is not None:  # After it was held it is not tried again, but goes on.
                is_retry = before.status == "failed" and before.decision != "suspend"
            frozen.append(draft.freeze(is_retry=is_retry))
        return tuple(frozen)

    def _begin(self, order: int, event: happened.TraceEvent, number: int) -> Draft:
        last = self.drafts[-1] if self.drafts else None
        if last is not None and last.is_placeholder and last.is_open:
            last.is_placeholder, last.number, last.life, last.order = False, number, event.life, order
            last.started_at = event.at
            return last
        if last is not None and last.ended_by == PARKED and last.life == event.life:
            # It was ended to let it rest, and goes on: for people that is one attempt.
            last.is_open, last.status, last.ended_by, last.woken_at = True, "running", "", order
            last.ended_at = last.duration_s = None
            return last
        if last is not None and last.is_open and last.life == event.life:
            self.interrupt(last, "started again")
        draft = Draft(number=number, life=event.life, order=order, started_at=event.at, notes=self._coming)
        self._coming = []
        self.drafts.append(draft)
        return draft

    def _current(self, order: int, event: happened.TraceEvent) -> Draft:
        """Return the attempt that a remark is about: the last one, or a placeholder when none was seen to start."""
        if not self.drafts:
            self._begin(order, event, 1).is_placeholder = True
        return self.drafts[-1]

    def _close(self, order: int, event: happened.TraceEvent) -> Draft:
        """Close the last attempt, whatever it was, at the time of *event*."""
        draft = self._current(order, event)
        if draft.is_open:
            draft.is_open, draft.ended_at = False, event.at
        return draft

    def _ending(self, order: int, event: happened.TraceEvent, duration_s: float | None) -> Draft:
        """Close the attempt under way and return it; make one when its start is missing."""
        draft = self.drafts[-1] if self.drafts else None
        if draft is None or not draft.is_open or draft.life != event.life:
            draft = self._begin(order, event, 1)
            draft.started_at = event.at - (duration_s or 0.0)
        draft.is_open, draft.is_placeholder = False, False
        draft.ended_at = event.at
        draft.duration_s = duration_s
        if duration_s is None or draft.woken_at is not None:  # What it tells is the time since it was woken.
            draft.duration_s = max(event.at - draft.started_at, 0.0)
        return draft

    def _fail(self, draft: Draft, event: happened.TurnFailed | happened.StepFinished | happened.ModelCalled) -> None:
        draft.status, draft.error = "failed", words.one_line(event.error or "")
        draft.message = words.one_line(event.message or "")
        draft.decision, draft.delay_s, draft.reason = event.decision, event.delay_s, words.one_line(event.reason)
        is_held = draft.decision == "suspend" and isinstance(event, happened.TurnFailed)
        if is_held:
            draft.status = "suspended"
        if is_held and draft.error == "BudgetExceeded":  # Nothing is wrong with it.
            draft.notes.append(f"suspended: {words.error(draft.error)}: {draft.message}")
        else:
            draft.notes.append(failed(draft.error, draft.message, draft.decision, draft.delay_s, draft.reason))

    def _spend(self, draft: Draft, event: happened.ModelCalled) -> None:
        read = event.input_tokens + event.cache_read_tokens + event.cache_write_tokens
        draft.model = draft.model or words.one_line(event.model)
        draft.is_model_call = True
        draft.input_tokens += read
        draft.output_tokens += event.output_tokens
        draft.cached_tokens += event.cache_read_tokens
        usd_micros = event.usd_micros
        if usd_micros is None and event.error in _UNBILLED and not read + event.output_tokens:
            usd_micros = 0
        draft.usd_micros = None if usd_micros is None or draft.usd_micros is None else draft.usd_micros + usd_micros

    def _step_finished(self, order: int, event: happened.StepFinished) -> None:
        last = self.drafts[-1] if self.drafts else None
        if event.role == "model" and last is not None and not last.is_open and last.life == event.life:
            # The call itself has told its end; only an answer found wrong afterwards is news.
            if event.error is not None and last.status == "ok":
                self._fail(last, event)
            return
        if self.is_turn and last is not None and not last.is_open:
            # What its asker has decided about its answer, perhaps in a later life.
            if event.error is not None and not last.decision:
                last.number = max(last.number, event.attempt)
                last.notes = [note for note in last.notes if note != f"answered {words.error(event.error)}"]
                self._fail(last, event)
            return
        draft = self._ending(order, event, event.duration_s)
        draft.number = max(draft.number, event.attempt)
        draft.status = "ok"
        if event.error is not None:
            self._fail(draft, event)

    def _amended(self, order: int, event: happened.Amended) -> None:
        amendment = words.one_line(event.amendment or event.reason)
        rung = _RUNG.search(event.reason)
        # The first of one is all there is to say.
        again = f" ({rung[1]})" if rung is not None and not rung[1].endswith(" of 1") else ""
        note = f"amended: {_AMENDMENTS.get(amendment, amendment.replace('_', ' '))}{again}"
        draft = self._current(order, event)
        if self.is_turn:
            self.amendments.append((order, event.life, note))  # of what the turn does next
        elif draft.is_open:
            draft.notes.append(note)
        else:
            self._coming.append(note)

    def _crashed(self, order: int, event: happened.MessageCrashed) -> None:
        last = self.drafts[-1] if self.drafts else None
        if last is not None and last.life < event.life:
            if last.is_open:
                self.interrupt(last, "killed")
            return
        if last is None:
            draft = self._current(order, event)
            draft.life = max(event.life - 1, 0)
            draft.interrupt("killed")

    def _dead_lettered(self, order: int, event: happened.MessageDeadLettered) -> None:
        draft = self._close(order, event)
        if draft.status == "failed" and draft.decision == "dead_letter":
            return  # Said with the failure.
        is_new = draft.error is None
        draft.status, draft.decision = "failed", "dead_letter"
        draft.error, draft.message = words.one_line(event.error), words.one_line(event.message)
        if draft.ended_by == "killed":
            draft.notes.append(f"dead letter: it was killed with the process {words.times(max(event.crashes, 1))}")
        elif is_new:
            draft.notes.append(failed(draft.error, draft.message, "dead_letter", 0.0))
        else:
            draft.notes.append(f"dead letter: {words.one_line(event.reason)}")

    def _suspended(self, order: int, event: happened.ActorSuspended) -> None:
        draft = self._current(order, event)
        if draft.is_open:
            draft.ended_at = event.at
            draft.interrupt("suspended")
        draft.notes.append(f"suspended: {words.one_line(event.reason)}")

    def _say(self, order: int, event: happened.TraceEvent, name: str, note: str) -> None:
        """Take in an event that is a whole span by itself."""
        self.name, self.role = self.name or name, self.role or "system"
        draft = self._close(order, event)
        draft.notes.append(note)
        if draft.status == "running":
            draft.status = "ok"

    def _name_turn(self, kind: str, actor: str, handler: str, role: str = "") -> None:
        self.role, self.is_turn = role or self.role, True
        kind, actor, handler = words.one_line(kind), words.one_line(actor), words.one_line(handler)
        if self.role == "agent":
            self.name = f"{kind}  {actor}"
        elif self.role == "tool":
            tool = kind.removeprefix("tool:").removeprefix("tool/").removeprefix("tool.")
            self.name = f"tool {tool}" if handler in {*_TOOL_HANDLERS, tool} else f"tool {tool}.{handler}"
        elif handler or not self.name:
            self.name = f"{kind}/{actor}.{handler}" if handler else f"{kind}/{actor}"

    def _name_step(self, step: str, role: str) -> None:
        if self.name and (self.is_turn or self.role != "step"):
            return  # The first to name it knew it best, but for a plain step that turns out to be a model call.
        self.role, self.is_turn = role, False
        step = words.one_line(step)
        if role in ("model", "tool", "ask") and not step.startswith(role):
            step = f"{role} {step}"
        self.name = step


def failed(error: str, message: str, decision: str, delay_s: float, reason: str = "") -> str:
    """Return what is said about a failure: what failed, what follows, and the error's own words last, as they are long."""
    text = f"FAILED {words.error(error)}"
    follows = _DECISIONS.get(decision, words.one_line(decision))
    rung = _RUNG.search(reason)
    if follows and rung is not None:
        follows += f" {rung[1]}"
    if follows and delay_s > 0:
        follows += f" in {words.duration(delay_s)}"
    why = _why(reason, message)
    if why:
        follows += f" ({why})" if follows else why
    if follows:
        text += f", {follows}"
    return f"{text}: {message}" if message else text


def _why(reason: str, message: str) -> str:
    """Return that part of a decision's reason which neither its verb nor the error's own words tell."""
    told = reason.partition(": ")[2]
    if told == "every reaction is used up":
        return told
    if ", but " not in told:
        return ""
    what, failed_with, error = told.partition(" failed: ")
    return f"{what} failed" if error.partition(": ")[2] in message else what + failed_with + error


def _line(text: str) -> str:
    return words.one_line(text)
