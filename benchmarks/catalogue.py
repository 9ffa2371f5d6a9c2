"""All workloads, in the order of the report."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping

from benchmarks.case import Case, Scale
from benchmarks.workloads import (
    agent_history,
    asks,
    growth,
    idle_memory,
    model_calls,
    reopening,
    steps,
    supervision,
    tells,
)

WORKLOADS: Mapping[str, Callable[[Scale], Iterable[Case]]] = {
    workload.NAME: workload.cases
    for workload in (asks, tells, steps, idle_memory, reopening, growth, agent_history, model_calls, supervision)
}


def all_cases(scale: Scale, only: Iterable[str] = ()) -> Iterator[Case]:
    """Yield the cases of all workloads, or of those named."""
    wanted = set(only) or WORKLOADS.keys()
    for name, cases in WORKLOADS.items():
        if name in wanted:
            yield from cases(scale)
