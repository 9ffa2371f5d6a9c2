"""Memory: what an actor without mail takes while it stays in memory, and what it leaves behind when it has left."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

from benchmarks.case import FLUSHED, OURS, Case, Contender, Place, Sample, Scale, Task
from benchmarks.children.process import first_line, start
from benchmarks.stored_counters import counters_file

NAME = "memory"
PEAK = "most memory of the process"
_ASKED_MAX = 50_000


def cases(scale: Scale) -> Iterator[Case]:
    """An actor, and many of them on disk."""
    yield Case(NAME, "idle actor", {OURS: Contender(measure, FLUSHED)}, Task(name="memory", count=scale.memory_actors))

    on_disk = scale.growth_actors[-1]
    yield Case(
        NAME, on_disk_name(on_disk), {OURS: Contender(partial(measure_served, count=on_disk), FLUSHED, repeats_max=1)}
    )


def on_disk_name(count: int) -> str:
    """Name the case of so many actors on disk."""
    return f"{count:,} actors on disk"


def measure_served(place: Place, count: int) -> list[Sample]:
    """Measure a process that asks many actors of a large file, more than it keeps in memory."""
    asked = min(count, _ASKED_MAX)
    with start("serve_scattered", counters_file(place.shared, count), count, asked) as child:
        return [Sample(PEAK, "bytes", float(first_line(child)))]


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
