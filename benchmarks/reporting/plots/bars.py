"""Contenders side by side: a bar each, or a dot where a bar from zero could not show the least of them."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure as Drawing
from matplotlib.patches import Patch
from matplotlib.ticker import FuncFormatter, NullFormatter

from benchmarks.case import OURS, Figure
from benchmarks.report import Report
from benchmarks.reporting.comparison import FLUSHES, P50, P99
from benchmarks.reporting.numbers import amount, tick
from benchmarks.reporting.plots import style
from benchmarks.reporting.plots.lines import beside

_LOGARITHMIC_FROM = 20  # times the least: a linear bar of the least would be a hair
_PANELS_MAX = 8
_BAR = 0.23  # inches
_FRAME = 0.62


def draw(report: Report, workload: str, skipped: frozenset[str] = frozenset()) -> tuple[Drawing, str] | None:
    """Return the drawing and what it says; None where nobody stands beside another."""
    panels = _panels(report, workload, skipped)
    if not panels:
        return None
    look = style.looks(report)
    heights = [len(figures) * _BAR + 0.1 for figures in panels]
    drawing, several = style.sheet(
        sum(heights) + _FRAME * len(panels) + 1.1, len(panels), gridspec_kw={"height_ratios": heights}
    )
    height = drawing.get_figheight()
    said = _said(report, workload, panels)
    used = style.headline(
        drawing, said, f"{workload.capitalize()}: medians, and a line from the least to the most of the samples"
    )
    drawing.subplots_adjust(
        left=0.29,
        right=0.9,
        top=1 - (used + 0.25) / height,
        bottom=0.62 / height,
        hspace=_FRAME * len(heights) / sum(heights),  # which is counted in mean heights
    )
    dots: set[bool] = set()
    units: dict[str, list[float]] = {}
    for figures in panels:
        units.setdefault(figures[0].unit, []).extend(statistics.median(figure.samples) for figure in figures)
    for axes, figures in zip(several, panels, strict=True):
        values, unit = units[figures[0].unit], figures[0].unit
        as_dots = max(values) / min(values) >= _LOGARITHMIC_FROM
        dots.add(as_dots)
        _contenders(axes, figures, look, as_dots=as_dots)
        _scale(axes, values, unit, logarithmic=as_dots)
        name = (
            figures[0].key.case
            if figures[0].key.figure == "rate"
            else f"{figures[0].key.case}: {figures[0].key.figure}"
        )
        axes.set_title(name, loc="left", size=9, weight="bold", color=style.INK, x=-0.455)
    if dots == {True}:
        durabilities = {figure.durability for figures in panels for figure in figures}
        style.legend(drawing, durabilities, floors=False, lines=False)
    else:
        _legend(drawing, panels)
    return drawing, said


def _panels(report: Report, workload: str, skipped: frozenset[str]) -> list[list[Figure]]:
    found: dict[tuple[str, str], list[Figure]] = {}
    for figure in report.figures:
        key = figure.key
        # What is not above zero has no length on any scale that shows the others.
        positive = statistics.median(figure.samples) > 0
        if key.workload == workload and key.case not in skipped and key.figure not in {P50, P99, FLUSHES} and positive:
            found.setdefault((key.case, key.figure), []).append(figure)

    def rank(figure: Figure) -> tuple[int, float]:
        contender, value = figure.key.contender, statistics.median(figure.samples)
        ours, peer = report.is_ours(contender), report.is_peer(contender)
        return (0 if contender == OURS else 1 if ours else 2 if peer else 3), -value if figure.unit == "/s" else value

    return [sorted(figures, key=rank) for figures in found.values() if len(figures) > 1][:_PANELS_MAX]


def _contenders(
    axes: Axes, figures: Sequence[Figure], look: dict[tuple[str, str], style.Look], *, as_dots: bool
) -> None:
    for row, figure in enumerate(figures):
        own = look[figure.key.contender, figure.durability]
        middle = statistics.median(figure.samples)
        low, high = min(figure.samples), max(figure.samples)
        if as_dots:
            # On a logarithmic scale a length means nothing.
            axes.plot([middle], [row], color=own.colour, marker="o", fillstyle=own.fill, markersize=8, zorder=3)
        else:
            # White bars with hatches and coloured edges: what is not on disk looks hollow, also without colour.
            axes.barh(
                row, middle, height=0.72, color="white" if own.hatch else own.colour, edgecolor=own.colour,
                hatch=own.hatch, linewidth=1.0,
            )  # fmt: skip
        if high > low:
            axes.plot([low, high], [row, row], color=style.INK, linewidth=1.2, solid_capstyle="butt", zorder=4)
        axes.annotate(
            amount(middle, figure.unit), xy=(max(middle, high), row), xytext=(8 if as_dots else 5, 0), textcoords="offset points",
            va="center", size=8, color=style.INK, weight=own.weight,
        )  # fmt: skip
    axes.set_yticks(range(len(figures)), [figure.key.contender for figure in figures])
    for label, figure in zip(axes.get_yticklabels(), figures, strict=True):
        own = look[figure.key.contender, figure.durability]
        label.set(color=own.colour, weight=own.weight)
    axes.set_ylim(len(figures) - 0.45, -0.55)
    axes.grid(visible=as_dots, axis="y")


def _scale(axes: Axes, values: Sequence[float], unit: str, *, logarithmic: bool) -> None:
    least, most = min(values), max(values)
    if logarithmic:
        axes.set_xscale("log")
        axes.set_xlim(least / 3, most * 4)
        axes.set_title("logarithmic", loc="right", size=8, color=style.GREY)
    else:
        axes.set_xlim(0, most * 1.15)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: tick(value, unit)))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.tick_params(axis="x", labelsize=8)


def _legend(drawing: Drawing, panels: Sequence[Sequence[Figure]]) -> None:
    present = {figure.durability for figures in panels for figure in figures}
    handles = [
        Patch(
            facecolor="white" if hatch else style.GREY,
            edgecolor=style.GREY,
            hatch=hatch,
            label=style.DURABILITIES[each],
        )
        for each, hatch in style.HATCHES.items()
        if each in present
    ]
    drawing.legend(
        handles=handles, loc="lower left", bbox_to_anchor=(0.005, 0.0), ncols=3, frameon=False, fontsize=8,
        labelcolor=style.GREY,
    )  # fmt: skip


def _said(report: Report, workload: str, panels: Sequence[Sequence[Figure]]) -> str:
    with_ours = [figures for figures in panels if figures[0].key.contender == OURS]
    if not with_ours:
        return workload.capitalize()
    # Where most stand side by side there is most to see; of equal ones the last, which is the largest.
    figures = max(reversed(with_ours), key=len)
    ours = figures[0]
    what = f"{workload}, {ours.key.case}" if ours.unit == "/s" else f"{ours.key.case}, {ours.key.figure}"
    said = f"{what[:1].upper()}{what[1:]}: understudy {amount(statistics.median(ours.samples), ours.unit)}"
    if ours.unit == "/s":
        return said + beside(report, ours, figures)
    best = min(figures[1:], key=lambda each: statistics.median(each.samples))
    return f"{said}; {best.key.contender} {amount(statistics.median(best.samples), best.unit)}"
