"""What more of something does to a figure: lines over sizes, each beside what it was at its smallest."""

from __future__ import annotations

import re
import statistics
from collections.abc import Mapping, Sequence

import msgspec
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Drawing
from matplotlib.ticker import FuncFormatter, NullFormatter

from benchmarks.case import OURS, Figure
from benchmarks.report import Report
from benchmarks.reporting.comparison import FLUSHES, P50, P99
from benchmarks.reporting.numbers import number
from benchmarks.reporting.plots import style
from benchmarks.reporting.plots.lines import callers

_NUMBER = re.compile(r"\d[\d,]*")
_LINEAR = 4.0  # a range in which a line from zero shows everything
_MARKERS = "osD^vPX<>"


class _Line(msgspec.Struct, frozen=True):
    things: str  # of which there are more and more
    figure: str
    name: str  # the figure, and the rest of the case's name
    contender: str
    durability: str
    points: list[tuple[int, float]]  # (size, of what it was at the smallest)
    cases: list[str]


def draw(report: Report, workload: str) -> tuple[Drawing, str] | None:
    """Return the drawing and what it says; None where nothing has two sizes."""
    panels: dict[str, list[_Line]] = {}
    for line in _lines(report, workload):
        panels.setdefault(line.things, []).append(line)
    if not panels:
        return None
    heights = [max(2.2, 0.19 * len(lines)) for lines in panels.values()]
    drawing, several = style.sheet(
        sum(heights) + 0.75 * len(panels) + 1.1, len(panels), gridspec_kw={"height_ratios": heights}
    )
    height = drawing.get_figheight()
    said = _said(workload, panels)
    used = style.headline(
        drawing, said, f"{workload.capitalize()}: {_figures(panels)} beside what it is at the smallest size"
    )
    drawing.subplots_adjust(
        left=0.09,
        right=0.64,
        top=1 - (used + 0.1) / height,
        bottom=0.9 / height,
        hspace=0.6 * len(heights) / sum(heights),
    )
    look = style.looks(report)
    for axes, (things, lines) in zip(several, panels.items(), strict=True):
        _panel(axes, things, lines, look)
    drawn = [line for lines in panels.values() for line in lines]
    style.legend(
        drawing,
        {line.durability for line in drawn},
        floors=any(not report.is_ours(line.contender) and not report.is_peer(line.contender) for line in drawn),
    )
    return drawing, said


def _panel(axes: Axes, things: str, lines: Sequence[_Line], look: Mapping[tuple[str, str], style.Look]) -> None:
    names = list(dict.fromkeys(line.name for line in lines))
    several = len({line.contender for line in lines}) > 1
    ends = []
    for line in lines:
        own = look[line.contender, line.durability]
        axes.plot(
            *zip(*line.points, strict=True), color=own.colour, linestyle=own.dashes, linewidth=own.width * 0.8,
            marker=_MARKERS[names.index(line.name) % len(_MARKERS)], fillstyle=own.fill, zorder=own.order,
        )  # fmt: skip
        text = ", ".join(filter(None, (line.contender if several or not line.name else "", line.name)))
        ends.append((*line.points[-1], text, own))
    values = [value for line in lines for _, value in line.points]
    axes.set_xscale("log")
    if max(values) <= _LINEAR:
        axes.set_ylim(0, max(values) * 1.1)
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g} ×"))
    else:
        style.logarithmic(axes, lambda value: f"{value:g} ×")
    sizes = sorted({size for line in lines for size, _ in line.points})
    axes.set_xticks(sizes, [f"{size:,}" for size in sizes])
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.axhline(1.0, color=style.GREY, linewidth=0.8, zorder=1)
    axes.set_xlabel(f"{things} (logarithmic)")
    style.label_ends(axes, ends)


def cases(report: Report, workload: str) -> frozenset[str]:
    """Return the cases that the drawing shows."""
    return frozenset(case for line in _lines(report, workload) for case in line.cases)


def _figures(panels: Mapping[str, Sequence[_Line]]) -> str:
    """Return what is drawn, in words."""
    names = {line.figure for lines in panels.values() for line in lines}
    return names.pop() if len(names) == 1 else "each figure"


def _wanted(figure: Figure) -> bool:
    return figure.key.figure not in {P50, P99, FLUSHES} and not callers(figure)


def _lines(report: Report, workload: str) -> list[_Line]:
    """Group the cases whose names differ in their first number only."""
    groups: dict[tuple[str, str, str], dict[int, Figure]] = {}
    for figure in report.figures:
        found = _NUMBER.search(figure.key.case)
        if figure.key.workload == workload and _wanted(figure) and found and statistics.median(figure.samples) > 0:
            rest = figure.key.case[: found.start()] + "#" + figure.key.case[found.end() :]
            size = int(found[0].replace(",", ""))
            groups.setdefault((rest, figure.key.figure, figure.key.contender), {})[size] = figure
    lines = []
    rests: dict[str, set[str]] = {}
    for (rest, _, _), by_size in groups.items():
        if len(by_size) > 1:
            rests.setdefault(_things(rest), set()).add(rest)
    names = {name for (_, name, _), by_size in groups.items() if len(by_size) > 1}
    for (rest, name, contender), by_size in groups.items():
        if len(by_size) > 1:
            first = statistics.median(by_size[min(by_size)].samples)
            points = [(size, statistics.median(by_size[size].samples) / first) for size in sorted(by_size)]
            told = [name] if len(names) > 1 else []
            if len(rests[_things(rest)]) > 1:
                told.append(rest.partition(", ")[2])
            figure = by_size[min(by_size)]
            lines.append(
                _Line(
                    _things(rest),
                    name,
                    ", ".join(filter(None, told)),
                    contender,
                    figure.durability,
                    points,
                    [each.key.case for each in by_size.values()],
                )
            )
    return lines


def _things(rest: str) -> str:
    """Return what is counted: "actors" of "# actors, scattered", "a failure among actors" of "a failure among # actors"."""
    return " ".join(rest.replace("#", " ").partition(",")[0].split())


def _said(workload: str, panels: Mapping[str, Sequence[_Line]]) -> str:
    for things, lines in panels.items():
        ours = [line for line in lines if line.contender == OURS]
        if ours:
            least, most = ours[0].points[0][0], ours[0].points[-1][0]
            ends: dict[str, list[float]] = {}
            for line in ours:
                ends.setdefault(line.figure, []).append(line.points[-1][1])
            told = ", ".join(f"{figure} × {_range(values)}" for figure, values in ends.items())
            return f"{workload.capitalize()}, {least:,} to {most:,} {things}: understudy's {told}"
    return workload.capitalize()


def _range(values: Sequence[float]) -> str:
    least, most = number(min(values), 2), number(max(values), 2)
    return least if least == most else f"{least} to {most}"
