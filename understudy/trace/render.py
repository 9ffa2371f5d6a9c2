"""Draws a trace: one row per attempt, aligned columns for tokens, time, cost and remarks.

What ran before a crash stands above a double line and what ran after it below, so that a person sees at a glance what
was lost and what was not paid again. Text of users is never taken for markup, nor reaches the terminal as commands.
"""

from __future__ import annotations

from typing import Final

import msgspec
from rich.console import Console, ConsoleOptions, RenderResult
from rich.text import Text

from understudy.trace import words
from understudy.trace.history import PARKED, failed
from understudy.trace.layout import Layout, Row
from understudy.trace.span import Attempt, Span, Totals
from understudy.trace.tree import Trace

TEXT_WIDTH: Final = 100  # of `str(trace)`: the same everywhere, and it fits a log, an issue and half a screen
_DEPTH_MAX: Final = 16  # a chain of messages may be thousands deep; from here on the indentation stands still
_PAUSE_SHOWN_S: Final = 1.0  # between two lives; less is a restart that nobody waited for
_ASCII: Final = str.maketrans(
    {"├": "|", "└": "`", "│": "|", "─": "-", "╞": "|", "╘": "`", "═": "=", "…": "~", "⋯": "~", "·": ";"}
)
_STYLES: Final = {
    "failed": "red",
    "interrupted": "yellow",
    "running": "cyan",
    "waiting": "cyan",
    "suspended": "yellow",
    "replayed": "dim",
    "ok": "",
}


class Drawing:
    """A trace as something that rich prints."""

    def __init__(self, trace: Trace) -> None:
        self._trace = trace

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        for line in lines(self._trace, options.max_width):
            if options.ascii_only:
                line.plain = line.plain.translate(_ASCII)
            yield line


def to_text(trace: Trace, width: int = TEXT_WIDTH) -> str:
    """Return the drawing of *trace* as plain text, at most *width* cells wide."""
    return "\n".join(line.plain.rstrip() for line in lines(trace, width))


def lines(trace: Trace, width: int) -> list[Text]:
    """Return the drawing of *trace*, each line at most *width* cells wide."""
    rows = _rows(trace)
    if not rows:
        return [Text(f"{words.one_line(trace.correlation)}: no events")]
    return Layout(rows, width).lines()


# What stands on which line.


def _rows(trace: Trace) -> list[Row]:
    rows: list[Row] = []
    # (guide of its line, guide of the lines below, what it is); a stack, so that depth costs no recursion.
    waiting: list[tuple[str, str, _Item]] = []
    if len(trace.roots) > 1:
        notes = _counts(trace.totals)
        seen = [root.status for root in trace.roots]
        shown = ("running", "waiting", "suspended", "failed", "interrupted")
        notes += [f"{seen.count(status)} {status}" for status in shown if status in seen]
        rows.append(_head(words.one_line(trace.correlation), trace.status, trace.totals, notes))
        rows[0].duration = _duration(trace.duration_s)
        waiting = _branch([_Item(span=root) for root in trace.roots], "")
    else:
        waiting = [("", "", _Item(span=root)) for root in trace.roots]
    while waiting:
        guide, below, item = waiting.pop()
        if item.rule:
            sign = {"═": ("╞══ ", "╘══ "), "─": ("├── ", "└── ")}[item.rule][guide.endswith("└─ ")]
            rows.append(Row(guide=guide[:-3] + sign, name=item.text, rule=item.rule))
            continue
        assert item.span is not None
        row, items = _draw_root(item.span) if item.attempt is None else _draw_attempt(item)
        row.guide, row.below = guide, below + ("│  " if items else "   " if below or guide else "")
        rows.append(row)
        waiting += _branch(items, below)
    return rows


class _Item(msgspec.Struct, kw_only=True):
    """A line to come: a root (no attempt), one attempt of a span, or a rule."""

    span: Span | None = None
    attempt: int | None = None
    parent: Attempt | None = None
    is_one_of_many: bool = False
    rule: str = ""
    text: str = ""


def _branch(items: list[_Item], prefix: str) -> list[tuple[str, str, _Item]]:
    """Return *items* with their guides, last first."""
    if len(prefix) >= 3 * _DEPTH_MAX:
        prefix = prefix[: 3 * _DEPTH_MAX - 3] + "⋯  "
    found = [(prefix + "├─ ", prefix + "│  ", item) for item in items]
    if found:
        found[-1] = (prefix + "└─ ", prefix + "   ", items[-1])
    return found[::-1]


def _children(span: Span, within: int) -> list[_Item]:
    """Return what one attempt of *span* did, attempts of the same thing side by side."""
    groups: list[tuple[int, Span, list[int]]] = []
    for child in span.children:
        here = [index for index, attempt in enumerate(child.attempts) if attempt.within == within]
        if here:
            groups.append((child.attempts[here[0]].order, child, here))
    groups.sort(key=lambda group: group[0])
    items: list[_Item] = []
    for _, child, here in groups:
        is_one_of_many = sum(1 for index in here if child.attempts[index].status != "interrupted") > 1
        around = span.attempts[within]
        items += [_Item(span=child, attempt=index, parent=around, is_one_of_many=is_one_of_many) for index in here]
    return items


def _draw_root(span: Span) -> tuple[Row, list[_Item]]:
    totals = span.totals
    last = span.attempts[-1]
    notes = _counts(totals)
    if totals.crashes:
        notes[-1] += ", not started again yet" if last.is_killed else f", went on in life {totals.lives[-1]}"
    if last.status == "interrupted" and not last.is_killed and not _was_held(last):
        notes.append(_interrupted(span, last))
    if span.status == "running":
        notes.insert(0, "running" if last.status == "running" else f"waits for attempt {last.number + 1}")
    if span.status == "waiting":
        open_waits = {
            each.name.partition(" ")[0] for each in span.walk() if each.status == "waiting" and not each.children
        }
        what = (
            {"approval": "approval", "model": "the model endpoint"}.get(open_waits.pop())
            if len(open_waits) == 1
            else None
        )
        notes.insert(0, f"waits for {what or 'the outside'}")
    elif last.status == "waiting":
        notes.insert(0, "has its answer, not started again yet")
    if last.status == "replayed":
        notes.append("from the journal")
    notes += _told_once(span, len(span.attempts) - 1)
    row = _head(span.name, span.status, totals, notes)
    row.duration = _duration(span.duration_s)
    if span.role == "model":
        row.tokens = words.tokens(span.input_tokens, span.output_tokens) if span.input_tokens else ""
    items: list[_Item] = []
    for index in range(len(span.attempts)):
        if index:
            items.append(_between(span, index))
        items += _children(span, index)
    return row, items


def _head(name: str, status: str, totals: Totals, notes: list[str]) -> Row:
    return Row(
        guide="",
        name=name,
        style=f"bold {_STYLES[status]}".rstrip(),
        cost=words.cost(totals.usd_micros, is_unknown=totals.usd_unknown),
        notes=notes,
    )


def _counts(totals: Totals) -> list[str]:
    notes = [words.count(totals.retries, "retry", "retries")] if totals.retries else []
    return [*notes, f"killed {words.times(totals.crashes)}"] if totals.crashes else notes


def _duration(seconds: float | None) -> str:
    return "" if seconds is None else words.duration(seconds)


def _draw_attempt(item: _Item) -> tuple[Row, list[_Item]]:
    span, index = item.span, item.attempt
    assert span is not None
    assert index is not None
    attempt = span.attempts[index]
    name, suffix = span.name, ""
    if span.role == "model" and attempt.model:
        name = f"model {attempt.model}"
    # After a crash it is the same attempt again, however it is numbered.
    if item.is_one_of_many or (attempt.number > 1 and (not index or attempt.is_retry)):
        suffix = f" (attempt {attempt.number})"
    is_cost_shown = attempt.is_model_call or attempt.usd_micros is None
    row = Row(
        guide="",
        name=name,
        suffix=suffix,
        style=_STYLES[attempt.status],
        tokens=words.tokens(attempt.input_tokens, attempt.output_tokens)
        if attempt.input_tokens or attempt.output_tokens
        else "",
        duration=_duration(attempt.duration_s),
        cost=words.cost(attempt.usd_micros or 0, is_unknown=attempt.usd_micros is None) if is_cost_shown else "",
        notes=_notes(item, span, index, attempt),
    )
    return row, _children(span, index)


def _notes(item: _Item, span: Span, index: int, attempt: Attempt) -> list[str]:
    notes: list[str] = []
    before = span.attempts[index - 1] if index else None
    if attempt.status == "running":
        notes.append("running")
    elif attempt.status == "interrupted" and not _was_held(attempt):
        notes.append(_interrupted(span, attempt))
    elif attempt.status == "waiting" and span.role not in ("wait", "model"):
        notes.append("waits for the outside")
    elif attempt.status == "replayed":
        notes.append("from the journal")
    if before is not None and before.status == "interrupted":
        again = "went on" if span.children or attempt.replayed else "ran again"
        notes.append(again if before.within != attempt.within else f"{again} in life {attempt.life}")
    elif item.parent is not None and attempt.life != item.parent.life:
        notes.append(f"in life {attempt.life}")
    if attempt.replayed:
        notes.append(f"{words.count(attempt.replayed, 'finished step')} from the journal")
    notes += _told_once(span, index)
    if attempt.cached_tokens:
        notes.append(f"{attempt.cached_tokens:,} cached")
    return notes


def _told_once(span: Span, index: int) -> list[str]:
    """Return the notes of an attempt; why it was suspended, if a step below it does not tell the same at length."""
    attempt = span.attempts[index]
    if not (attempt.status == "suspended" or _was_held(attempt)) or not attempt.message:
        return [*attempt.notes]
    below = [each for child in span.children for each in child.attempts if each.within == index]
    if all(each.message != attempt.message for each in below):
        return [*attempt.notes]
    return [note.removesuffix(f": {attempt.message}") for note in attempt.notes]


def _interrupted(span: Span, attempt: Attempt) -> str:
    if attempt.ended_by == PARKED:
        return "waited for the outside"
    if attempt.is_killed:
        return "killed" if span.children else "killed in flight"
    if attempt.ended_by in ("cancelled", "suspended", "left unfinished"):
        return attempt.ended_by
    return f"interrupted: {attempt.ended_by}"


def _between(span: Span, index: int) -> _Item:
    """Return the rule between two attempts of a root: what ended the one before, and what the next one started from."""
    before, after = span.attempts[index - 1], span.attempts[index]
    is_held = before.status == "suspended" or _was_held(before)
    told = _told_once(span, index - 1)
    parts = [note for note in told if before.error is None or is_held or not note.startswith("FAILED")]
    if before.error is not None and not is_held:
        parts.append(failed(before.error, "", before.decision, before.delay_s, before.reason))
    is_new_life = after.life != before.life
    if is_new_life:
        if before.status == "interrupted" and not is_held:
            parts.append(_stopped(before))
        seen = [each.ended_at or each.started_at for each in _within(span, index - 1)]
        pause_s = after.started_at - max(seen, default=before.started_at)
        later = f", {words.duration(pause_s)} later" if pause_s >= _PAUSE_SHOWN_S else ""
        parts.append(f"life {after.life}{later}")
    else:
        parts.append(f"attempt {max(after.number, index + 1)}")
    attempts = _within(span, index)
    replayed = sum(each.replayed for each in attempts)
    if replayed:
        spared = sum(each.spared_usd_micros for each in attempts)
        what = f"{words.money(spared)} not paid again" if spared else "not run again"
        parts.append(f"{words.count(replayed, 'finished step')} from the journal, {what}")
    if before.message and not is_held:  # Last, because it may be long.
        parts.append(before.message)
    rule = "═" if is_new_life else "─"
    return _Item(rule=rule, text=f" {rule * 2} ".join(parts))


def _was_held(attempt: Attempt) -> bool:
    """Whether a budget held it that was raised since."""
    return attempt.ended_by == "held"


def _stopped(attempt: Attempt) -> str:
    if attempt.ended_by == PARKED:
        return "waited"
    return "killed" if attempt.is_killed else f"stopped: {attempt.ended_by}"


def _within(span: Span, index: int) -> list[Attempt]:
    """Return attempt *index* of *span* and all attempts below it."""
    found: list[Attempt] = []
    waiting = [(span, index)]
    while waiting:
        at, number = waiting.pop()
        found.append(at.attempts[number])
        waiting += [
            (child, place)
            for child in at.children
            for place, attempt in enumerate(child.attempts)
            if attempt.within == number
        ]
    return found
