"""How long calls took: not one number, but how the slow ones differ from the rest."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

from matplotlib.figure import Figure as Drawing

from benchmarks.case import OURS, Figure
from benchmarks.report import Report
from benchmarks.reporting.comparison import P50
from benchmarks.reporting.numbers import amount, tick
from benchmarks.reporting.plots import style
from benchmarks.reporting.plots.lines import callers

_SHOWN_MAX = 0.999  # the slowest call of all is a matter of chance
_NEARLY = 0.8
_TICKS = (0.0, 0.5, 0.9, 0.99, 0.999)


def draw(report: Report, workload: str) -> tuple[Drawing, str] | None:
    """Return the drawing and what it says; None where no two contenders timed their calls."""
    cases: dict[str, list[Figure]] = {}
    for figure in report.figures:
        if figure.key.workload == workload and figure.key.figure == P50 and _curve(figure, report.quantiles_at):
            cases.setdefault(figure.key.case, []).append(figure)
    chosen = _chosen({case: figures for case, figures in cases.items() if len(figures) > 1})
    if not chosen:
        return None
    look = style.looks(report)
    most = max(len(figures) for figures in chosen.values())
    panel = max(2.6, 0.175 * most + 0.5)
    drawing, panels = style.sheet(panel * len(chosen) + 1.5, len(chosen))
    height = drawing.get_figheight()
    said = _said(workload, chosen)
    used = style.headline(
        drawing,
        said,
        "Time of a call (logarithmic) over the share of calls; the right end is the slowest one of a thousand",
    )
    # Between panels there is room for the ticks of one and the name of the other.
    drawing.subplots_adjust(
        left=0.09, right=0.72, top=1 - (used + 0.25) / height, bottom=0.85 / height, hspace=0.55 / panel
    )
    for axes, (case, figures) in zip(panels, chosen.items(), strict=True):
        ends = []
        for figure in figures:
            own = look[figure.key.contender, figure.durability]
            points = _curve(figure, report.quantiles_at)
            at, values = [_place(where) for where, _ in points], [value for _, value in points]
            axes.plot(at, values, color=own.colour, linestyle=own.dashes, linewidth=own.width * 0.8, zorder=own.order)
            axes.plot([at[-1]], [values[-1]], color=own.colour, marker=own.marker, fillstyle=own.fill, zorder=own.order)
            ends.append((at[-1], values[-1], figure.key.contender, own))
        axes.set_xticks([_place(share) for share in _TICKS], [f"{share * 100:g} %" for share in _TICKS])
        style.logarithmic(axes, lambda value: tick(value, "µs"))
        axes.set_title(case, loc="left", size=9, weight="bold", color=style.INK)
        style.label_ends(axes, ends)
    panels[-1].set_xlabel("share of the calls that took no longer")
    style.legend(
        drawing,
        {figure.durability for figures in chosen.values() for figure in figures},
        floors=any(
            not report.is_ours(each.key.contender) and not report.is_peer(each.key.contender)
            for figures in chosen.values()
            for each in figures
        ),
    )
    return drawing, said


def _chosen(cases: dict[str, list[Figure]]) -> dict[str, list[Figure]]:
    """Return the first case, and the one with the most callers of those that nearly all contenders answer."""
    if len(cases) < 2:
        return cases
    first, *others = cases
    most = max(len(cases[case]) for case in others)
    second = max(
        (case for case in others if len(cases[case]) >= _NEARLY * most), key=lambda case: callers(cases[case][0])
    )
    return {case: cases[case] for case in (first, second)}


def _curve(figure: Figure, quantiles_at: Sequence[float]) -> list[tuple[float, float]]:
    """Return (share, µs) as the median of the repetitions has it."""
    whole = [each for each in figure.quantiles if len(each) == len(quantiles_at)]
    if not whole:
        return []
    medians = (statistics.median(values) for values in zip(*whole, strict=True))
    return [(at, value) for at, value in zip(quantiles_at, medians, strict=True) if at <= _SHOWN_MAX and value > 0]


def _place(share: float) -> float:
    """Give each further nine the same room: what is rare is what matters."""
    return -math.log10(1 - share)


def _said(workload: str, chosen: dict[str, list[Figure]]) -> str:
    told = " and ".join(
        f"{amount(statistics.median(figure.samples), figure.unit)} ({case})"
        for case, figures in chosen.items()
        for figure in figures
        if figure.key.contender == OURS
    )
    return f"{workload.capitalize()}: half of understudy's take at most {told}" if told else workload.capitalize()
