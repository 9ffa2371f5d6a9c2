"""Which plots there are: whatever the figures allow, found by their names' patterns."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from benchmarks.report import Report
from benchmarks.reporting.plots import bars, latency, lines, sizes, style
from benchmarks.reporting.plots.plot import Plot


def draw(report: Report, directory: Path, formats: Sequence[str]) -> list[Plot]:
    """Draw all that there is to see into *directory*, in the order of the workloads."""
    plots: list[Plot] = []
    with style.settings():
        for workload in dict.fromkeys(figure.key.workload for figure in report.figures):
            by_callers = lines.draw(report, workload)
            candidates = {
                "callers": by_callers,
                "latency": latency.draw(report, workload),
                "sizes": sizes.draw(report, workload),
                # Whoever has a line needs no bar.
                "bars": None if by_callers else bars.draw(report, workload, sizes.cases(report, workload)),
            }
            for kind, drawn in candidates.items():
                if drawn is not None:
                    drawing, said = drawn
                    stem = re.sub(r"[^a-z0-9]+", "-", workload.lower()).strip("-")
                    plots.append(Plot(workload, style.save(drawing, directory, f"{stem}-{kind}", formats), said))
    return plots
