"""Where the CPU time of an agent's model call goes: by package, and by module of ours.

python -m benchmarks.where_time_goes

A profiler makes every call of a Python function dearer, so shares are to be read, not microseconds. It sees the event
loop's thread; SQLite works on a thread of its own.
"""

from __future__ import annotations

import cProfile
import pstats
from collections import defaultdict
from pathlib import Path
from typing import TypeAlias, cast

from rich.console import Console
from rich.table import Table

from benchmarks.case import FULL, OURS, Place
from benchmarks.workloads import model_calls
from benchmarks.workplace import RESULTS, own_directory

_ROWS = 14
_Function: TypeAlias = tuple[str, int, str]  # file, line, name
# Calls, calls that are no recursion, own seconds, seconds with callees; the same for each caller.
_Spent: TypeAlias = tuple[int, int, float, float, dict[_Function, tuple[int, int, float, float]]]


def main() -> None:
    """Profile the benchmark's agent on aiohttp and print two tables."""
    with own_directory(RESULTS) as directory:
        profile = cProfile.Profile()
        place = Place(directory, directory, FULL)
        measure = next(iter(model_calls.cases(FULL))).contenders[OURS].measure
        profile.runcall(measure, place)
    stats = cast("dict[_Function, _Spent]", vars(pstats.Stats(profile))["stats"])
    packages: defaultdict[str, float] = defaultdict(float)
    ours: defaultdict[str, float] = defaultdict(float)
    for (file, _, name), (_, _, own_s, _, callers) in stats.items():
        if "epoll" in name:
            continue  # waiting
        # What is built into Python is its caller's time.
        shares = [(by[0], share[2]) for by, share in callers.items()] if file == "~" else [(file, own_s)]
        for where, seconds in shares:
            package, module = _place(where)
            packages[package] += seconds
            if package == "understudy":
                ours[module] += seconds
    console = Console()
    console.print(_table("package", packages), _table("module of ours", ours))


def _place(file: str) -> tuple[str, str]:
    parts = Path(file).parts
    if "site-packages" in parts:
        return parts[parts.index("site-packages") + 1].removesuffix(".py"), ""
    if "understudy" in parts:
        return "understudy", "/".join(parts[len(parts) - parts[::-1].index("understudy") :])
    if "asyncio" in parts:
        return "asyncio", ""
    return "standard library", ""


def _table(title: str, spent: dict[str, float]) -> Table:
    table = Table(title, "share", title_justify="left")
    total = sum(spent.values())
    shown = sorted(spent.items(), key=lambda each: -each[1])[:_ROWS]
    for name, seconds in shown:
        table.add_row(name, f"{seconds / total:.1%}")
    table.add_row("everything else", f"{1 - sum(seconds for _, seconds in shown) / total:.1%}")
    return table


if __name__ == "__main__":
    main()
