"""Memory: what an actor without mail takes while it stays in memory, and what it leaves behind when it has left."""

from __future__ import annotations

from collections.abc import Iterator

from benchmarks.case import FLUSHED, OURS, Case, Contender, Place, Sample, Scale, Task
from benchmarks.children.process import first_line, start

NAME = "memory"


def cases(scale: Scale) -> Iterator[Case]:
    """One case."""
    yield Case(NAME, "idle actor", {OURS: Contender(measure, FLUSHED)}, Task(name="memory", count=scale.memory_actors))


def measure(place: Place) -> list[Sample]:
    """Measure in processes of their own: what ran here before has left room that would be used again."""
    count = place.scale.memory_actors
    samples = []
    for state in ("idle", "passivated"):
        # Tracing allocations costs several times the turn itself, and a leak shows among fewer actors as well.
        actors = count if state == "idle" else count // 5
        with start("fill_memory", state, place.own / f"{state}.db", actors) as child:
            samples.append(Sample("in memory" if state == "idle" else state, "bytes", float(first_line(child))))
    return samples
