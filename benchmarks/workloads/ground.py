"""Ground: what everything here stands on, a message's way into bytes and back, and a page's way to the disk."""

from __future__ import annotations

from collections.abc import Iterator

from benchmarks.case import FLUSHED, MEMORY, Case, Contender, Scale
from benchmarks.floors import codec, flushed_pages

NAME = "ground"


def cases(_scale: Scale) -> Iterator[Case]:
    """Each of them; there is nothing of ours in it."""
    yield Case(NAME, "a page flushed", {flushed_pages.NAME: Contender(flushed_pages.measure, FLUSHED)})
    yield Case(NAME, "a message encoded and decoded", {codec.NAME: Contender(codec.measure, MEMORY)})
