"""From stored events to the tree of what happened. Pure: no store, no clock, no drawing.

Every span of the events stands in the tree exactly once, whatever part of the events is missing; a span whose parent is
not among them is a root. Each wait for the outside is a span of its own, below the turn that waits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

import msgspec

from understudy import events as happened
from understudy.trace.awaited import Awaited, wait_of
from understudy.trace.history import AGAIN, Draft, History
from understudy.trace.span import Span, Status, Totals, total


class Trace:
    """What happened under one id: a tree of spans, and the events that it was made of.

    `print(trace)` draws it as text; rich's `print` and the command line draw it in colour.
    """

    __slots__ = ("correlation", "events", "roots")

    def __init__(self, correlation: str, roots: tuple[Span, ...], events: tuple[happened.TraceEvent, ...]) -> None:
        self.correlation = correlation
        self.roots = roots
        self.events = events

    def __repr__(self) -> str:
        return f"<Trace {self.correlation} {self.status}, {sum(1 for _ in self.spans())} spans>"

    def __str__(self) -> str:
        # Imported here: rich is loaded only by programs that draw.
        from understudy.trace.render import to_text

        return to_text(self)

    def __rich__(self) -> object:
        from understudy.trace.render import Drawing

        return Drawing(self)

    @property
    def name(self) -> str:
        """What was asked for: the name of the root, or the id when there are several."""
        return self.roots[0].name if len(self.roots) == 1 else self.correlation

    @property
    def status(self) -> Status:
        """What became of it as a whole."""
        seen = {root.status for root in self.roots}
        order: tuple[Status, ...] = ("running", "waiting", "suspended", "failed", "interrupted", "replayed")
        for status in order:
            if status in seen:
                return status
        return "ok"

    @property
    def started_at(self) -> float | None:
        """Wall time of the first start; None when nothing happened."""
        return min((root.started_at for root in self.roots), default=None)

    @property
    def duration_s(self) -> float | None:
        """How long it took: the root's time, or from the first start to the last end; None while it runs."""
        return self.roots[0].duration_s if len(self.roots) == 1 else self.totals.duration_s

    @property
    def totals(self) -> Totals:
        """Sums over everything."""
        return total(self.roots)

    def spans(self) -> Iterator[Span]:
        """Yield every span, parents first."""
        for root in self.roots:
            yield from root.walk()

    def below(self, correlation: str, id: str) -> Trace | None:
        """Return the part of it from one span on, as a trace of its own; None when it has no such span."""
        root = self.span(id)
        if root is None:
            return None
        spans = {each.id for each in root.walk()}
        return Trace(correlation, (root,), tuple(each for each in self.events if each.span in spans))

    def span(self, id: str) -> Span | None:
        """Return the span with this id; None when the trace does not have it."""
        return next((span for span in self.spans() if span.id == id), None)


def build_trace(
    correlation: str,
    events: Iterable[happened.TraceEvent],
    *,
    is_live: bool = True,
    seen_at: float | None = None,
    is_held_back: Callable[[str, float], bool] | None = None,
) -> Trace:
    """Return the tree of *events*, which are in the order in which they were stored.

    *is_live* says that a process has the store open; without one, what has no end was killed. *seen_at* is the wall
    time: with it the trace tells how long waits take so far. *is_held_back* says of a model call that is under way, by
    the model's name and the time at which the call began, whether a breaker lets it wait.
    """
    told = tuple(events)
    histories = _read(told)
    life = max((event.life for event in told), default=0)
    for history in histories.values():
        history.finish()
    below, order = _arrange(histories)
    for id in order:  # Parents first, so that what befell a turn is known when its steps are looked at.
        history = histories[id]
        parent = histories.get(history.parent) if history.parent is not None else None
        if parent is not None:
            _place(history, parent, _cost_below(id, below, histories) if history.replays else 0)
        history.settle(life, is_live=is_live, seen_at=seen_at)
        if is_held_back is not None:
            history.hold_back(is_held_back)
    for id in order:
        _amend(histories[id], [histories[child] for child in below.get(id, ())])
    spans: dict[str, Span] = {}
    for id in reversed(order):  # Children first; no recursion, as a chain of messages may be thousands deep.
        history = histories[id]
        # Between two attempts it counts as running: a message always, a step while its turn runs.
        around = histories[history.parent] if history.parent is not None and not history.is_turn else history
        goes_on = is_live and (around is history or around.drafts[-1].is_open)
        spans[id] = _freeze(history, tuple(spans[child] for child in below.get(id, ())), goes_on=goes_on)
    return Trace(correlation, tuple(spans[id] for id in below.get(None, ())), told)


def decode_events(bodies: Iterable[bytes]) -> tuple[list[happened.Event], int]:
    """Return the events stored as *bodies*, and how many were left out because a newer version wrote them."""
    decode = msgspec.msgpack.Decoder(happened.Event).decode
    events: list[happened.Event] = []
    left_out = 0
    for body in bodies:
        try:
            events.append(decode(body))
        except msgspec.MsgspecError:
            left_out += 1
    return events, left_out


def _read(events: Sequence[happened.TraceEvent]) -> dict[str, History]:
    histories: dict[str, History] = {}
    for order, event in enumerate(events):
        history = histories.get(event.span)
        if history is None:
            history = histories[event.span] = History(event.span, order)
        wait = wait_of(event)
        if wait is None:
            history.read(order, event)
            continue
        history.mention(order, event)
        awaited = histories.get(wait)
        if awaited is None:
            awaited = histories[wait] = Awaited(wait, order, event.span)
        awaited.read(order, event)
    return histories


def _arrange(histories: dict[str, History]) -> tuple[dict[str | None, list[str]], list[str]]:
    """Return the children of each span (None: the roots) and all spans, parents before children."""
    for history in histories.values():
        if history.parent not in histories:
            history.parent = None
    # Parents that go round in a circle are no parents; it takes a broken writer, and must not hide a span.
    safe: set[str] = set()
    for history in histories.values():
        path: dict[str, None] = {}
        at: History | None = history
        while at is not None and at.id not in safe:
            if at.id in path:
                at.parent = None
                break
            path[at.id] = None
            at = histories[at.parent] if at.parent is not None else None
        safe.update(path)
    below: dict[str | None, list[str]] = {}
    for history in sorted(histories.values(), key=lambda each: each.order):
        below.setdefault(history.parent, []).append(history.id)
    order: list[str] = []
    waiting = list(reversed(below.get(None, [])))
    while waiting:
        id = waiting.pop()
        order.append(id)
        waiting.extend(reversed(below.get(id, [])))
    return below, order


def _cost_below(id: str, below: dict[str | None, list[str]], histories: dict[str, History]) -> int:
    """Return what a span and everything under it has cost, in micro-dollars: what its replay spared."""
    total = 0
    waiting = [id]
    while waiting:
        each = waiting.pop()
        total += sum(draft.usd_micros or 0 for draft in histories[each].drafts)
        waiting.extend(below.get(each, ()))
    return total


def _place(history: History, parent: History, cost_usd_micros: int) -> None:
    """Say in which attempt of *parent* each attempt ran, and what the parent's end tells about those without one."""
    if isinstance(history, Awaited):
        history.follow(parent)
    for draft in history.drafts:
        draft.within = _attempt_at(parent.drafts, draft.order, draft.life)
        around = parent.drafts[draft.within]
        # A message, or a wait, goes on when its sender has ended; a step does not.
        if draft.is_open and not history.is_free and not around.is_open and around.life == draft.life:
            history.interrupt(draft, around.ended_by or "left unfinished")
    for order, event in zip(history.replay_orders, history.replays, strict=True):
        around = parent.drafts[_attempt_at(parent.drafts, order, event.life)]
        if around.woken_at is not None and order > around.woken_at:
            continue  # It has rested, and nothing was lost that it could have been spared.
        around.replayed += 1
        around.spared_usd_micros += cost_usd_micros


def _amend(history: History, below: list[History]) -> None:
    """Give what a turn amended to the model call that came next; to the turn itself if none came."""
    calls = [draft for child in below if child.role == "model" for draft in child.drafts]
    for order, life, note in history.amendments:
        later = [draft for draft in calls if draft.life == life and draft.order > order]
        own = history.drafts[_attempt_at(history.drafts, order, life)]
        min(later, key=lambda draft: draft.order, default=own).notes.insert(0, note)


def _attempt_at(drafts: list[Draft], order: int, life: int) -> int:
    """Return the index of the attempt that was under way in this life at this place of the trace.

    By life first: after a crash a message may be delivered again before the one that it was sent by.
    """
    of_life = [index for index, draft in enumerate(drafts) if draft.life == life]
    if of_life:
        return max((index for index in of_life if drafts[index].order <= order), default=of_life[0])
    return max((index for index, draft in enumerate(drafts) if draft.life < life), default=0)


def _was_answered(children: tuple[Span, ...]) -> bool:
    """Whether what a turn rested for has come, so that it goes on when a process is there."""
    if {"running", "waiting", "suspended"} & {child.status for child in children}:
        return False
    return any(child.role == "wait" for child in children)


def _only_waits(children: tuple[Span, ...]) -> bool:
    """Whether of what a turn does now everything waits for the outside."""
    under_way = {child.status for child in children} & {"running", "waiting"}
    return under_way == {"waiting"}


def _freeze(history: History, children: tuple[Span, ...], *, goes_on: bool) -> Span:
    attempts = history.freeze()
    first, last = attempts[0], attempts[-1]
    duration_s = last.duration_s
    if len(attempts) > 1:
        duration_s = last.ended_at - first.started_at if last.ended_at is not None else None
    status: Status = last.status
    if goes_on and status == "failed" and last.decision in AGAIN:
        # A model call does nothing until a limit has passed or a breaker lets it through; the failure says for how long.
        status = "waiting" if history.role == "model" and last.delay_s > 0 else "running"
    elif history.is_turn and status == "interrupted" and last.ended_by == "suspended":
        status = "suspended"
    elif status == "running" and _only_waits(children):
        status = "waiting"
    elif status == "waiting" and history.is_turn and _was_answered(children):
        status = "interrupted"
    return Span(
        id=history.id,
        parent=history.parent,
        name=history.name or history.id,
        role=history.role or "actor",
        status=status,
        started_at=first.started_at,
        duration_s=duration_s,
        attempts=attempts,
        children=children,
        replays=len(history.replays),
    )
