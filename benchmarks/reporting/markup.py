"""Words and tables of a page, whatever stands in them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence


def plain(words: str) -> str:
    """Return the words so that nothing in them is markup: an error's text may hold anything."""
    for mark in "\\|*_`<>[]":
        words = words.replace(mark, f"\\{mark}")
    return " ".join(words.split())


def table(headings: Sequence[str], rows: Iterable[Sequence[str]], left: int) -> str:
    """Return a table whose first *left* columns are texts, the others numbers."""
    rule = ["---" if number < left else "---:" for number in range(len(headings))]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (headings, rule, *rows))
