"""The words of this harness: a case is one question, its contenders answer it, each answer is a few samples."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

import msgspec

from benchmarks.sample import Sample

OURS = "understudy"
PROCESS = 'understudy, durability="process"'

# What a contender has done with what it answered for, when the answer comes.
FLUSHED = "flushed"  # to the disk: survives a power cut
KERNEL = "handed to the kernel"  # survives the end of the process, not the machine's
MEMORY = "in memory"  # survives nothing


class Scale(msgspec.Struct, frozen=True, kw_only=True):
    """How large everything is."""

    repeats: int = 3
    seconds: float = 1.0  # of one sample of a rate
    callers: tuple[int, ...] = (1, 64, 256, 1024)
    spawn_actors: int = 10_000
    memory_actors: int = 50_000
    reopen_actors: int = 10_000
    pending_messages: int = 1_000_000
    timers: int = 100_000
    growth_actors: tuple[int, ...] = (1_000, 10_000, 100_000, 1_000_000)
    history_items: tuple[int, ...] = (10, 100, 1_000, 10_000)
    conversations: int = 100
    static_children: tuple[int, int] = (1_000, 50_000)
    failure_actors: tuple[int, int] = (50, 50_000)


FULL = Scale()
QUICK = Scale(
    repeats=1,
    seconds=0.25,
    spawn_actors=2_000,
    memory_actors=10_000,
    reopen_actors=2_000,
    pending_messages=20_000,
    timers=5_000,
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


Measure = Callable[[Place], Iterable[Sample]]
"""Raises `NotMeasured` when it cannot be done here."""


class Contender(msgspec.Struct, frozen=True):
    """Who answers a question, and how safe the answer is."""

    measure: Measure
    durability: str
    repeats_max: int | None = None  # for what takes minutes


class Task(msgspec.Struct, frozen=True, kw_only=True):
    """A question as peers are asked it, in processes of their own; what it does not need is 0."""

    name: str
    callers: int = 0
    count: int = 0


class Case(msgspec.Struct, frozen=True):
    """One question, e.g. 256 callers that ask 256 actors, and who answers it; contenders run in turns."""

    workload: str
    name: str
    contenders: Mapping[str, Contender]
    task: Task | None = None  # None: ours and the floors only


class Key(NamedTuple):
    """Names one figure of one contender."""

    workload: str
    case: str
    figure: str
    contender: str


class Figure(msgspec.Struct, frozen=True, kw_only=True):
    """All samples of one figure, in the order of the repetitions."""

    key: Key
    unit: str
    durability: str
    samples: list[float]
    quantiles: list[list[float]] = []  # of each sample that stands for many times, at `QUANTILES`


class Missing(msgspec.Struct, frozen=True):
    """A contender that was to be measured and was not."""

    workload: str
    case: str
    contender: str
    reason: str
