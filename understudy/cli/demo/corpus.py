"""A folder of text files as passages that can be searched: Markdown, plain text, reStructuredText, Python docstrings.

The index is SQLite's full text search, in memory and made anew at every start: it is a copy of the files, so there is
nothing in it to keep. A passage is a paragraph or a list item, and knows its file, its line and the headings above it.
"""

from __future__ import annotations

import ast
import os
import re
import sqlite3
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

import msgspec

PLAIN: Final = (".md", ".txt", ".rst")
_SKIPPED: Final = frozenset({"node_modules", "__pycache__", "site-packages", "venv"})  # and every hidden folder
_FILES_MAX: Final = 2_000
_FILE_BYTES_MAX: Final = 1 << 20
_PASSAGE_CHARS: Final = 1_500  # a longer paragraph is cut: a model reads on with `read_document`
_SHORT: Final = 40  # characters; less is a label or a link, not a passage
_READ_PASSAGES: Final = 3  # on each side of the line that is read
_WORD: Final = re.compile(r"[^\W\d_]{2,}")
_HEADING: Final = re.compile(r"(#{1,6})\s+(.*)")
_ITEM: Final = re.compile(r"\s*([-*+]|\d+[.)])\s+")

# Words that say nothing about what a question asks for.
_STOPWORDS: Final = """
a about after again all also an and any are as at be been before being between both but by can could did do does document
documents done down each else even every file files for from get gets give given had happen happens has have how if in into
is it its itself just know less like made make makes many may mean means might more most much must no nor not now of off on
once one only onto or other our out over own say says see shall should since so some such take tell text than that the
their them then there these they this those through to too two under until up upon us use used user uses using very was way
we well were what when where whether which while who why will with within without would yes yet you your
"""
STOPWORDS: Final = frozenset(_STOPWORDS.split())


class Passage(msgspec.Struct, frozen=True):
    """A piece of a document."""

    source: str  # the file, relative to the folder
    line: int
    section: str  # the headings above it
    text: str


class NoSuchDocumentError(LookupError):
    """The folder has no file of that name."""


def text_files(folder: Path, endings: Sequence[str] = PLAIN) -> list[Path]:
    """Return the readable text files of a folder and its subfolders, in order of their names."""
    found: list[Path] = []
    for place, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith(".") and name not in _SKIPPED)
        for name in sorted(names):
            path = Path(place, name)
            if path.suffix.lower() in endings and path.is_file() and path.stat().st_size <= _FILE_BYTES_MAX:
                found.append(path)
                if len(found) == _FILES_MAX:
                    return found
    return found


def words(text: str) -> list[str]:
    """Return the words of *text* that say what it is about, each once, in order."""
    return list(dict.fromkeys(word for word in _WORD.findall(text.lower()) if word not in STOPWORDS))


class Index:
    """The passages of a folder; a resource of the system, found by the tools through its type."""

    def __init__(self, folder: Path, endings: Sequence[str] = PLAIN) -> None:
        self.folder = folder
        self._documents: dict[str, list[Passage]] = {}
        self._db = sqlite3.connect(":memory:", check_same_thread=False)
        self._db.execute(
            "CREATE VIRTUAL TABLE passage USING fts5(source UNINDEXED, line UNINDEXED, section, text, tokenize='porter')"
        )
        for path in text_files(folder, endings):
            passages = list(_passages(path, path.relative_to(folder).as_posix()))
            if passages:
                self._documents[passages[0].source] = passages
                rows = [msgspec.structs.astuple(each) for each in passages]
                self._db.executemany("INSERT INTO passage VALUES (?, ?, ?, ?)", rows)

    def __len__(self) -> int:
        return sum(map(len, self._documents.values()))

    @property
    def documents(self) -> list[str]:
        """Names of all files that have passages."""
        return list(self._documents)

    def search(self, query: str, limit: int) -> list[Passage]:
        """Return the passages that match any word of *query*, best first."""
        terms = words(query) or _WORD.findall(query.lower())
        if not terms:
            return []
        rows = self._db.execute(
            # A match in the headings counts more. Every word stands in quotes: nothing in it is syntax.
            "SELECT source, line, section, text FROM passage WHERE passage MATCH ? ORDER BY bm25(passage, 0, 0, 3, 1), rowid"
            " LIMIT ?",
            (" OR ".join(f'"{term}"' for term in terms), limit),
        )
        return [Passage(*row) for row in rows]

    def count(self, term: str) -> tuple[int, int]:
        """Return how many passages, and how many documents, mention *term*."""
        terms = _WORD.findall(term.lower())
        if not terms:
            return 0, 0
        phrase = " ".join(f'"{each}"' for each in terms)
        found: tuple[int, int] = self._db.execute(
            "SELECT count(*), count(DISTINCT source) FROM passage WHERE passage MATCH ?", (phrase,)
        ).fetchone()
        return found

    def around(self, source: str, line: int) -> list[Passage]:
        """Return the passages of one document around *line*.

        Raises:
            NoSuchDocumentError: The folder has no such file. Nothing outside the folder can be named.
        """
        passages = self._documents.get(source)
        if passages is None:
            raise NoSuchDocumentError(f"there is no document {source!r}; take the names from search_documents")
        near = min(range(len(passages)), key=lambda place: abs(passages[place].line - line))
        return passages[max(0, near - _READ_PASSAGES) : near + _READ_PASSAGES + 1]

    def topics(self, count: int) -> list[str]:
        """Return the words that most passages have in common."""
        seen = Counter(
            word
            for passages in self._documents.values()
            for each in passages
            for word in words(each.text)
            if len(word) >= 5
        )
        return [word for word, _ in seen.most_common(count)]


def _passages(path: Path, source: str) -> Iterator[Passage]:
    try:
        text = path.read_text(encoding="utf-8")
    except (UnicodeDecodeError, OSError):
        return  # Not a text after all, or not for this user.
    if path.suffix == ".py":
        yield from _of_docstrings(text, source)
    else:
        yield from _of_text(text, source)


def _of_docstrings(text: str, source: str) -> Iterator[Passage]:
    try:
        tree = ast.parse(text)
    except (SyntaxError, ValueError):
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            doc = ast.get_docstring(node)
            if doc:
                first = node.body[0].lineno
                yield from _of_text(doc, source, first, getattr(node, "name", ""))


def _of_text(text: str, source: str, first_line: int = 1, section: str = "") -> Iterator[Passage]:
    headings: list[tuple[int, str]] = []
    part: list[str] = []
    began = first_line
    is_code = False

    def done() -> Iterator[Passage]:
        # Emphasis is for the eye; a quotation reads better without.
        whole = " ".join(" ".join(part).replace("**", "").split())
        part.clear()
        if len(whole) >= _SHORT:
            above = " / ".join(title for _, title in headings) or section
            yield Passage(source, began, above, whole[:_PASSAGE_CHARS])

    for number, line in enumerate(text.splitlines(), first_line):
        if line.lstrip().startswith(("```", "~~~")):
            yield from done()
            is_code = not is_code
            continue
        if is_code or line.lstrip().startswith(("|", "![", "[!", "<")):
            yield from done()
            continue
        heading = _HEADING.match(line)
        if heading:
            yield from done()
            level = len(heading[1])
            headings = [each for each in headings if each[0] < level] + [(level, heading[2].strip("# `"))]
            continue
        item = _ITEM.match(line)
        if item or not line.strip():
            yield from done()
        if not line.strip():
            continue
        if not part:
            began = number
        part.append(line[item.end() :] if item else line)
    yield from done()
