"""What each workload asks, as it says itself."""

from __future__ import annotations

import sys

from benchmarks.catalogue import WORKLOADS


def question(workload: str) -> str:
    """Return the first paragraph of the workload's own text; nothing for one that is no longer measured."""
    cases = WORKLOADS.get(workload)
    told = sys.modules[cases.__module__].__doc__ if cases is not None else None
    first = " ".join((told or "").strip().partition("\n\n")[0].split())
    # The heading has said its name.
    name, colon, rest = first.partition(": ")
    return f"{rest[:1].upper()}{rest[1:]}" if colon and len(name) < 40 else first


def seeds() -> dict[str, int]:
    """Return the seeds of the workloads that choose by chance."""
    modules = {name: vars(sys.modules[cases.__module__]) for name, cases in WORKLOADS.items()}
    return {name: names["_SEED"] for name, names in modules.items() if "_SEED" in names}
