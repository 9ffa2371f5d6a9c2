"""Rates over the number of callers."""

from __future__ import annotations

import math
import re
import statistics
from collections.abc import Mapping, Sequence

from matplotlib.figure import Figure as Drawing
from matplotlib.ticker import NullFormatter

from benchmarks.case import OURS, Figure
from benchmarks.report import Report
from benchmarks.reporting.comparison import RATE, ratio, times
from benchmarks.reporting.numbers import amount, number
from benchmarks.reporting.plots import style

_CALLERS = re.compile(r"([\d,]+) callers?")


def callers(figure: Figure) -> int:
    """Return how many callers the figure's case has; 0 where that is not what it is about."""
    found = _CALLERS.fullmatch(figure.key.case)
    return int(found[1].replace(",", "")) if found else 0


def draw(report: Report, workload: str) -> tuple[Drawing, str] | None:
    """Return the drawing and what it says; None where there are no two numbers of callers."""
    by_contender: dict[str, dict[int, Figure]] = {}
    for figure in report.figures:
        wanted = figure.key.workload == workload and figure.key.figure == RATE and callers(figure)
        if wanted and statistics.median(figure.samples) > 0:  # a logarithm has no place for nothing
            by_contender.setdefault(figure.key.contender, {})[callers(figure)] = figure
    counts = sorted({count for figures in by_contender.values() for count in figures})
    if len(counts) < 2:
        return None
    look = style.looks(report)
    drawing, (axes,) = style.sheet(max(4.4, 0.19 * len(by_contender) + 1.8))
    height = drawing.get_figheight()
    said = _said(report, workload, by_contender)
    used = style.headline(
        drawing,
        said,
        f"{workload.capitalize()} per second over callers, both logarithmic; bands from the least to the most of the samples",
    )
    drawing.subplots_adjust(left=0.09, right=0.72, top=1 - (used + 0.05) / height, bottom=0.85 / height)
    ends = []
    for contender, figures in by_contender.items():
        at = sorted(figures)
        durability = figures[at[0]].durability
        own = look[contender, durability]
        # No line leads across a number of callers that was not measured.
        samples = [figures[count].samples if count in figures else [math.nan] for count in counts]
        medians, low, high = ([of(each) for each in samples] for of in (statistics.median, min, max))
        axes.plot(
            counts, medians, color=own.colour, linestyle=own.dashes, linewidth=own.width, marker=own.marker,
            fillstyle=own.fill, markersize=6, zorder=own.order,
        )  # fmt: skip
        axes.fill_between(counts, low, high, color=own.colour, alpha=0.15, linewidth=0)
        ends.append((at[-1], statistics.median(figures[at[-1]].samples), contender, own))
    axes.set_xscale("log")
    axes.set_xticks(counts, [f"{count:,}" for count in counts])
    axes.xaxis.set_minor_formatter(NullFormatter())
    style.logarithmic(axes, lambda value: f"{value:,.0f}" if value >= 1 else f"{value:g}")
    axes.set_xlabel("callers, each with one call at a time")
    axes.set_ylabel(f"{workload} per second")
    style.label_ends(axes, ends)
    style.legend(
        drawing,
        {figure.durability for figures in by_contender.values() for figure in figures.values()},
        floors=any(not report.is_ours(name) and not report.is_peer(name) for name in by_contender),
    )
    return drawing, said


def _said(report: Report, workload: str, by_contender: Mapping[str, Mapping[int, Figure]]) -> str:
    ours = by_contender.get(OURS)
    if not ours:
        return f"{workload.capitalize()} per second by callers"
    count = max(ours, key=lambda each: statistics.median(ours[each].samples))
    figure = ours[count]
    said = f"{workload.capitalize()}, {figure.key.case}: understudy {amount(statistics.median(figure.samples), figure.unit)}"
    return said + beside(report, figure, [each[count] for each in by_contender.values() if count in each])


def beside(report: Report, ours: Figure, others: Sequence[Figure]) -> str:
    """Say what that is beside the best peer that is as durable; beside the best floor where there is no peer."""
    equal = [each for each in others if each.durability == ours.durability and not report.is_ours(each.key.contender)]
    peers = [each for each in equal if report.is_peer(each.key.contender)]
    for group, word in ((peers, "the fastest peer that is as durable"), (equal, "a floor")):
        if group:
            best = max(group, key=lambda each: statistics.median(each.samples))
            value = ratio(ours, best)
            if value is not None:
                share = f"{number(value * 100, 2)} % of" if value < 1 else times(value)
                return f"; {share} {best.key.contender}, {word}"
    return ""
