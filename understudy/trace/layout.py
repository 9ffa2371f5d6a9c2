"""Where things stand on the page: the widths of the columns, and rows set in them, cut politely when it is narrow."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Sequence
from typing import Final

import msgspec
from rich.cells import cell_len, chop_cells, set_cell_size
from rich.text import Text

_GAP: Final = 3
_NAME_MIN: Final = 20
_NOTES_MIN: Final = 24  # narrower notes are unreadable: they go below their row
_NOTES_LINES_MAX: Final = 3
_NOTE_STYLES: Final = {
    "FAILED": "bold red",
    "dead letter": "bold red",
    "killed": "bold yellow",
    "interrupted": "yellow",
    "cancelled": "yellow",
    "suspended": "yellow",
    "amended": "magenta",
    "diverged": "magenta",
    "running": "cyan",
    "waits": "cyan",
    "approved": "green",
    "rejected": "bold yellow",
    "delivered": "green",
    "answered": "",
}


class Row(msgspec.Struct, kw_only=True):
    """One line: of an attempt, or (`rule`) of what happened between two."""

    guide: str
    below: str = ""  # guide of further lines of the same row
    name: str = ""
    suffix: str = ""  # of the name; not cut when the name is
    style: str = ""
    tokens: str = ""
    duration: str = ""
    cost: str = ""
    notes: Sequence[str] = ()
    rule: str = ""  # the character it is drawn with


class Layout:
    """The columns' widths for these rows, and the rows set in them.

    Cost and notes share the last column: a row without a cost has its notes there.
    """

    def __init__(self, rows: list[Row], width: int) -> None:
        self._rows = rows
        self._width = max(width, _NAME_MIN)
        plain = [row for row in rows if not row.rule]
        natural = max(cell_len(row.guide + row.name + row.suffix) for row in plain)
        self._tokens = _column(row.tokens for row in plain)
        self._duration = _column(row.duration for row in plain)
        self._cost = _column(row.cost for row in plain if row.guide)
        cost = _column(row.cost for row in plain)
        # The notes stand beside their rows if the name keeps most of its width; else below. Then tokens go, then times.
        beside = min(_NOTES_MIN, _column(" · ".join(row.notes) for row in plain)) + _GAP + self._cost
        most = min(natural, max(_NAME_MIN, natural * 3 // 4))
        self._is_beside = True
        for last, tokens, duration, is_beside, name_min in (
            (max(beside, cost), self._tokens, self._duration, True, most),
            (cost, self._tokens, self._duration, False, most),
            (cost, 0, self._duration, False, _NAME_MIN * 3 // 4),
            (cost, 0, 0, False, 1),
        ):
            self._tokens, self._duration, self._is_beside = tokens, duration, is_beside
            room = self._width - sum(_GAP + each for each in (tokens, duration, last) if each)
            self._name = min(natural, room)
            if room >= name_min:
                break
        self._name = max(self._name, 1)
        self._last = self._name + sum(_GAP + each for each in (self._tokens, self._duration) if each) + _GAP

    def lines(self) -> list[Text]:
        """Return the lines."""
        found: list[Text] = []
        rules: list[tuple[int, str]] = []
        for row in self._rows:
            if row.rule:
                rules.append((len(found), row.rule))
                found.append(self._rule(row))
            else:
                found += self._set(row)
        # Rules end where the longest line ends.
        edge = max(cell_len(line.plain.rstrip()) for line in found)
        for place, sign in rules:
            missing = edge - cell_len(found[place].plain) - 1
            if missing > 0:
                found[place].append(" " + sign * missing, _rule_style(sign))
        for line in found:
            line.rstrip()
            line.truncate(self._width)
        return found

    def _rule(self, row: Row) -> Text:
        line = _line(row.guide[:-4])
        return line.append(row.guide[-4:] + fit(row.name, self._width - cell_len(row.guide)), _rule_style(row.rule))

    def _set(self, row: Row) -> list[Text]:
        line = _line(row.guide)
        name = fit(row.name, max(self._name - cell_len(row.guide + row.suffix), 1))
        word, space, rest = name.partition(" ")
        if word in ("tool", "model", "ask", "approval", "external") and not row.style:
            line.append(word + space, "cyan").append(rest + row.suffix)
        else:
            line.append(name + row.suffix, row.style)
        line.append(" " * (self._name - cell_len(line.plain)))
        if self._tokens:
            line.append(" " * _GAP).append(row.tokens.ljust(self._tokens), "dim")
        if self._duration:
            line.append(" " * _GAP + row.duration.rjust(self._duration))
        line.append(" " * _GAP).append(row.cost, "green")
        if not row.notes:
            return [line]
        if not self._is_beside:
            return [line, *self._notes(row, cell_len(row.below) + 2)]
        indent = self._last
        if row.cost:
            indent += max(cell_len(row.cost), self._cost) + _GAP
        notes = self._notes(row, indent)
        line.append(" " * (indent - cell_len(line.plain))).append_text(notes[0][indent:])
        return [line, *notes[1:]]

    def _notes(self, row: Row, indent: int) -> list[Text]:
        """Return the lines of the row's notes, each beginning with *indent* cells of guide and space."""
        found: list[Text] = []
        for part in wrap(" · ".join(row.notes), max(self._width - indent, 8)):
            line = _line(row.below)
            line.append(" " * (indent - cell_len(row.below)))
            found.append(line.append_text(_noted(part, is_first=not found)))
        return found


def _line(guide: str) -> Text:
    line = Text(no_wrap=True)
    return line.append(guide, "dim")


def _rule_style(sign: str) -> str:
    return "bold yellow" if sign == "═" else "dim"


def _column(texts: Iterable[str]) -> int:
    return max((cell_len(text) for text in texts), default=0)


def fit(text: str, width: int) -> str:
    """Return *text*, cut politely to *width* cells."""
    return text if cell_len(text) <= width else set_cell_size(text, max(width - 1, 0)).rstrip() + "…"


def wrap(text: str, width: int) -> list[str]:
    """Return *text* on lines of *width* cells; what does not fit on a few of them is cut."""
    broken: list[str] = []
    for part in textwrap.wrap(text, width, break_long_words=True, break_on_hyphens=False) or [""]:
        # textwrap counts characters; wide ones (Chinese, emoji) take two cells.
        broken += [part] if cell_len(part) <= width else chop_cells(part, width)
    if len(broken) > _NOTES_LINES_MAX:
        broken = [*broken[: _NOTES_LINES_MAX - 1], fit(" ".join(broken[_NOTES_LINES_MAX - 1 :]), width)]
    return broken


def _noted(part: str, *, is_first: bool) -> Text:
    """Return one line of notes in the colours of their first words; a line that goes on from another is plain."""
    text = Text()
    for place, note in enumerate(part.split(" · ")):
        if place:
            text.append(" · ", "dim")
        style = next((style for word, style in _NOTE_STYLES.items() if note.startswith(word)), "dim")
        text.append(note, "" if place == 0 and not is_first and style == "dim" else style)
    return text
