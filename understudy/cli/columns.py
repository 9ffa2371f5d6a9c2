"""A tree beside columns: names on the left, short facts in columns of their own width, a note at the end of the row.

On a narrow page notes go below their rows, then columns go, the least needed first; a name is cut last.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final, Literal

import msgspec
from rich.cells import cell_len
from rich.text import Text

from understudy.trace.layout import fit, wrap

_GAP: Final = 3
_NAME_MIN: Final = 20
_NOTE_MIN: Final = 28  # narrower notes are unreadable: they go below their row


class Column(msgspec.Struct, frozen=True):
    """One column: its key in the rows' cells, and where its texts stand. Without any text it takes no room."""

    key: str
    justify: Literal["left", "right"] = "right"
    drop: int = 0  # when the page is too narrow, columns go by this: the highest first


class TreeRow(msgspec.Struct, kw_only=True):
    """One line of the tree. *below* is the guide of further lines that belong to it.

    A row without cells may be as wide as the page. An *aside* is a note that is left out where there is no room beside;
    the note of a *spread* row begins behind its last cell.
    """

    guide: str = ""
    below: str = ""
    name: str = ""
    style: str = ""
    cells: dict[str, str] = {}
    styles: dict[str, str] = {}  # of cells, by column
    note: str = ""
    note_style: str = "dim"
    aside: bool = False
    spread: bool = False


def draw(
    rows: Sequence[TreeRow], columns: Sequence[Column], width: int, *, names: str = "", notes: str = ""
) -> list[Text]:
    """Return the lines: a heading of *names*, the columns' keys and *notes*, then the rows."""
    page = _Page(rows, columns, max(width, _NAME_MIN))
    return [*page.heading(names, notes), *page.lines()]


class _Page:
    def __init__(self, rows: Sequence[TreeRow], columns: Sequence[Column], width: int) -> None:
        self._rows = rows
        self._width = width
        self._sizes = {
            column.key: max(size, cell_len(column.key))
            for column in columns
            if (size := _widest(row.cells.get(column.key, "") for row in rows))
        }
        self._columns = [column for column in columns if column.key in self._sizes]
        natural = _widest(row.guide + row.name for row in rows if row.cells)
        notes = _widest(row.note for row in rows if not row.spread)
        name_min = min(natural, _NAME_MIN)
        self._is_beside = natural + self._taken() + _GAP + min(notes, _NOTE_MIN) <= width
        if not self._is_beside:
            for column in sorted(self._columns, key=lambda each: -each.drop):
                if self._taken() + name_min <= width:
                    break
                self._columns.remove(column)
        self._name = min(natural, max(width - self._taken(), 1))

    def _taken(self) -> int:
        return sum(_GAP + self._sizes[column.key] for column in self._columns)

    def heading(self, names: str, notes: str) -> list[Text]:
        if not self._columns:
            return []
        line = Text(fit(names, self._name).ljust(self._name), "dim", no_wrap=True)
        for column in self._columns:
            line.append(" " * _GAP + self._cell(column, column.key))
        if self._is_beside:
            line.append(" " * _GAP + notes)
        return [self._cut(line)]

    def lines(self) -> list[Text]:
        return [self._cut(line) for row in self._rows for line in self._set(row)]

    def _cut(self, line: Text) -> Text:
        line.rstrip()
        line.truncate(self._width)
        return line

    def _set(self, row: TreeRow) -> list[Text]:
        line = Text(no_wrap=True).append(row.guide, "dim")
        room = self._name if row.cells else self._width
        line.append(fit(row.name, max(room - cell_len(row.guide), 1)), row.style)
        if row.cells:
            line.append(" " * (self._name - cell_len(line.plain)))
            for column in self._columns:
                text = row.cells.get(column.key, "")
                line.append(" " * _GAP).append(self._cell(column, text), row.styles.get(column.key, ""))
        if not row.note or (row.aside and not self._is_beside):
            return [line]
        if row.spread or not row.cells:
            line.rstrip()
        indent = cell_len(line.plain) + _GAP
        if indent + (_NOTE_MIN if self._is_beside and not row.spread else cell_len(row.note)) > self._width:
            indent = cell_len(row.below) + 2
            return [line, *(self._note(row, part, indent) for part in wrap(row.note, max(self._width - indent, 8)))]
        first, *others = wrap(row.note, self._width - indent)
        line.append(" " * _GAP).append(first, row.note_style)
        return [line, *(self._note(row, part, indent) for part in others)]

    def _note(self, row: TreeRow, part: str, indent: int) -> Text:
        line = Text(no_wrap=True).append(row.below, "dim")
        return line.append(" " * (indent - cell_len(row.below))).append(part, row.note_style)

    def _cell(self, column: Column, text: str) -> str:
        missing = " " * (self._sizes[column.key] - cell_len(text))
        return text + missing if column.justify == "left" else missing + text


def _widest(texts: Iterable[str]) -> int:
    return max((cell_len(text) for text in texts), default=0)
