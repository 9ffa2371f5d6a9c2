"""All workloads, in the order of the report."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

from benchmarks.case import Case, Scale
from benchmarks.peers.peer import Peer, with_peers
from benchmarks.workloads import (
    agent_history,
    asks,
    ground,
    growth,
    idle_memory,
    model_calls,
    passivation,
    reopening,
    spawning,
    supervision,
    tells,
    tracing,
    workflows,
)

WORKLOADS: Mapping[str, Callable[[Scale], Iterable[Case]]] = {
    workload.NAME: workload.cases
    for workload in (
        ground,
        asks,
        tells,
        workflows,
        tracing,
        spawning,
        idle_memory,
        passivation,
        reopening,
        growth,
        agent_history,
        model_calls,
        supervision,
    )
}


def all_cases(scale: Scale, only: Iterable[str] = (), peers: Sequence[Peer] = ()) -> Iterator[Case]:
    """Yield the cases of all workloads, or of those named, with the *peers* that have an equivalent."""
    wanted = set(only) or WORKLOADS.keys()
    for name, cases in WORKLOADS.items():
        if name in wanted:
            for case in cases(scale):
                yield with_peers(case, peers)
