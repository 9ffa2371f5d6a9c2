"""Supervision: starting and stopping many static children, and one failure among many actors."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import msgspec

from benchmarks.case import FLUSHED, KERNEL, OURS, Case, Contender, Place, Sample, Scale
from benchmarks.children.process import first_line, start

NAME = "supervision"
CLASSES = ("plain", "hooked")
FAILURES = ("dead letter", "suspension")


def cases(scale: Scale) -> Iterator[Case]:
    """Few and many children, with hooks and without; a failure among few and many actors."""
    for cls in CLASSES:
        for count in scale.static_children:
            yield Case(
                NAME,
                children_name(count, cls),
                {OURS: Contender(partial(measure_children, count=count, cls=cls), FLUSHED)},
            )
    for count in scale.failure_actors:
        yield Case(NAME, failure_name(count), {OURS: Contender(partial(measure_failures, count=count), KERNEL)})


def children_name(count: int, cls: str) -> str:
    """Name the case of so many static children."""
    return f"{count:,} static children{', with on_start and on_stop' if cls == 'hooked' else ''}"


def failure_name(count: int) -> str:
    """Name the case of one failure among so many actors in memory."""
    return f"a failure among {count:,} actors"


def measure_children(place: Place, count: int, cls: str) -> list[Sample]:
    """Open and close a system in a process of its own."""
    found = _run(cls, place, count)
    return [
        Sample("start", "s", found["start"]),
        Sample("stop", "s", found["stop"]),
        Sample("in memory, each", "bytes", found["memory"]),
    ]


def measure_failures(place: Place, count: int) -> list[Sample]:
    """Let many actors fail, one after the other."""
    found = _run("failure", place, count)
    return [Sample(how, "µs of work", found[how]) for how in FAILURES]


def _run(what: str, place: Place, count: int) -> dict[str, float]:
    with start("supervise", what, place.own / "supervised.db", count) as child:
        return msgspec.json.decode(first_line(child), type=dict[str, float])
