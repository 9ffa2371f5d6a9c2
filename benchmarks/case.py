"""The words of this harness: a case is one question, its contenders answer it, each answer is a few samples."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

import msgspec

OURS = "understudy"


class Scale(msgspec.Struct, frozen=True, kw_only=True):
    """How large everything is."""

    repeats: int = 3
    seconds: float = 1.0  # of one sample of a rate
    callers: tuple[int, ...] = (1, 64, 256, 1024)
    memory_actors: int = 50_000
    reopen_actors: int = 10_000
    growth_actors: tuple[int, int] = (1_000, 1_000_000)
    history_items: tuple[int, int] = (10, 1_000)
    conversations: int = 100
    static_children: tuple[int, int] = (1_000, 50_000)
    failure_actors: tuple[int, int] = (50, 50_000)


FULL = Scale()
QUICK = Scale(
    repeats=1,
    seconds=0.25,
    memory_actors=10_000,
    reopen_actors=2_000,
    growth_actors=(1_000, 100_000),
    history_items=(10, 200),
    conversations=20,
    static_children=(200, 5_000),
    failure_actors=(50, 2_000),
)


class Place(msgspec.Struct, frozen=True):
    """Where one measurement works: an empty directory of its own, and one that all measurements of the run share."""

    own: Path
    shared: Path
    scale: Scale


class Sample(NamedTuple):
    """One measured value of one contender."""

    figure: str
    unit: str
    value: float


Measure = Callable[[Place], Iterable[Sample]]


class Case(msgspec.Struct, frozen=True):
    """One question, e.g. 256 callers that ask 256 actors, and who answers it; contenders run in turns."""

    workload: str
    name: str
    contenders: Mapping[str, Measure]


class Key(NamedTuple):
    """Names one figure of one contender."""

    workload: str
    case: str
    figure: str
    contender: str


class Figure(msgspec.Struct, frozen=True):
    """All samples of one figure, in the order of the repetitions."""

    key: Key
    unit: str
    samples: list[float]
