"""How plots look: who has which colour, and what tells durable from not durable without any colour."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import msgspec
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Drawing
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from benchmarks.case import FLUSHED, KERNEL, MEMORY, OURS
from benchmarks.report import Report

INK, GREY, FAINT = "#222222", "#767676", "#e3e3e3"
# Okabe and Ito's palette, which people with any kind of colour vision tell apart; its yellow is too faint for a line.
_OURS = "#0072b2"
_PEERS = ("#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#8c510a", "#7a7a00", "#882255", "#332288")
_MARKERS = "osD^vPX<>p*h"
_DASHES: dict[str, Any] = {FLUSHED: "-", KERNEL: (0, (5, 1.5, 1, 1.5)), MEMORY: (0, (1, 1.3))}
_FILLS: dict[str, Any] = {FLUSHED: "full", KERNEL: "left", MEMORY: "none"}
HATCHES = {FLUSHED: "", KERNEL: "...", MEMORY: "////"}
DURABILITIES = {FLUSHED: "flushed to the disk", KERNEL: "handed to the kernel", MEMORY: "in memory"}

# Any: matplotlib lists the names of all its settings as a type, and each has values of its own.
_SETTINGS: dict[Any, Any] = {
    "font.size": 9,
    "font.family": ["DejaVu Sans"],  # comes with matplotlib, so that a report looks the same everywhere
    "axes.edgecolor": GREY,
    "axes.labelcolor": INK,
    "xtick.color": GREY,
    "ytick.color": GREY,
    "hatch.linewidth": 0.6,
    "svg.hashsalt": "understudy",  # the same figures give the same file
    "svg.fonttype": "path",
}
WIDTH = 9.0
_TITLE_COLUMNS = 86
_DECADES_APART = 100  # below it powers of ten alone would leave one or two ticks


class Look(msgspec.Struct, frozen=True):
    """How one contender is drawn everywhere."""

    colour: str
    marker: str
    dashes: Any
    fill: str
    width: float
    weight: str
    hatch: str
    order: float


def looks(report: Report) -> dict[tuple[str, str], Look]:
    """Return the look of each contender by its name and durability; settings of one peer share its colour."""
    families = list(dict.fromkeys(peer.name.partition(", ")[0] for peer in report.peers))
    found: dict[tuple[str, str], Look] = {}
    for figure in report.figures:
        name, durability = figure.key.contender, figure.durability
        if (name, durability) in found:
            continue
        ours, peer = report.is_ours(name), report.is_peer(name)
        colour = _PEERS[families.index(name.partition(", ")[0]) % len(_PEERS)] if peer else GREY
        found[name, durability] = Look(
            colour=_OURS if ours else colour,
            marker=_MARKERS[len(found) % len(_MARKERS)],
            dashes=_DASHES.get(durability, "-"),
            fill=_FILLS.get(durability, "full"),
            width=3.0 if name == OURS else 2.0 if ours else 1.5,
            weight="bold" if name == OURS else "normal",
            hatch=HATCHES.get(durability, ""),
            order=4.0 if name == OURS else 3.0 if ours or peer else 2.0,
        )
    return found


def settings() -> Any:
    """Return a context in which everything is drawn the same, whatever a user's own settings are."""
    return mpl.rc_context({**mpl.rcParamsDefault, **_SETTINGS, "backend": "agg"})


def sheet(height: float, panels: int = 1, *, across: bool = False, **options: Any) -> tuple[Drawing, list[Axes]]:
    """Return a white sheet with so many panels, one above the other or side by side."""
    drawing = Drawing(figsize=(WIDTH, height), facecolor="white")
    grid = (1, panels) if across else (panels, 1)
    axes: list[Axes] = list(drawing.subplots(*grid, squeeze=False, **options).flat)
    for each in axes:
        each.spines[["top", "right"]].set_visible(False)
        each.tick_params(length=0, which="both")
        each.grid(visible=True, color=FAINT, linewidth=0.8)
        each.set_axisbelow(True)
    return drawing, axes


def headline(drawing: Drawing, title: str, below: str) -> float:
    """Say what one sees, and below it what is drawn in which unit; return how many inches of the top that takes."""
    height = drawing.get_figheight()
    lines = textwrap.wrap(title, _TITLE_COLUMNS)
    drawing.text(0.012, 1 - 0.12 / height, "\n".join(lines), weight="bold", size=11, va="top", color=INK)
    under = 0.15 + 0.2 * len(lines)
    drawing.text(0.012, 1 - under / height, below, size=9, va="top", color=GREY)
    return under + 0.3


def logarithmic(axes: Axes, text: Callable[[float], str]) -> None:
    """Make the upright axis logarithmic, with enough ticks also where it spans little."""
    axes.set_yscale("log")
    low, high = axes.get_ylim()
    if high / low < _DECADES_APART:
        axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: text(value)))
    axes.yaxis.set_minor_formatter(NullFormatter())


def legend(drawing: Drawing, durabilities: Iterable[str], *, floors: bool, lines: bool = True) -> None:
    """Explain the styles that are there; who is who stands at the lines."""
    present = set(durabilities)
    handles = [
        Line2D(
            [], [], color=INK, linestyle=_DASHES[each] if lines else "", marker="o", fillstyle=_FILLS[each],
            label=DURABILITIES[each],
        )
        for each in _DASHES
        if each in present
    ]  # fmt: skip
    if floors:
        handles.append(
            Line2D([], [], color=GREY, marker="s", linestyle="", label="grey: floors, the same work without actors")
        )
    drawing.legend(
        handles=handles,
        loc="lower left",
        bbox_to_anchor=(0.005, 0.0),
        ncols=4,
        frameon=False,
        fontsize=8,
        labelcolor=GREY,
        handlelength=3.2,
    )


def spread(wanted: Sequence[float], gap: float) -> list[float]:
    """Return ascending positions at least *gap* apart, as near to the ascending *wanted* ones as that allows."""
    blocks: list[list[float]] = []
    for number, position in enumerate(wanted):
        # Without the gaps they must only not fall: where they do, neighbours meet in the middle.
        blocks.append([position - number * gap, 1])
        while len(blocks) > 1 and blocks[-2][0] > blocks[-1][0]:
            above, many = blocks.pop()
            below, few = blocks.pop()
            blocks.append([(above * many + below * few) / (many + few), many + few])
    flat = [position for position, count in blocks for _ in range(int(count))]
    return [position + number * gap for number, position in enumerate(flat)]


def label_ends(axes: Axes, ends: Iterable[tuple[float, float, str, Look]], size: float = 8.0) -> None:
    """Write names beside the lines' ends (x, y), each with a thin line to its own where it had to move."""
    drawing = axes.get_figure(root=True)
    assert drawing is not None
    to_pixels, to_axes = axes.transData, axes.transAxes.inverted()
    placed = sorted(
        ((*to_axes.transform(to_pixels.transform((x, y))), text, look) for x, y, text, look in ends),
        key=lambda end: end[1],
    )
    height = axes.get_position().height * drawing.get_figheight()
    gap = size * 1.25 / 72 / height
    positions = spread([end[1] for end in placed], gap)
    # What is pushed over the top moves down as a whole.
    over = max(0.0, positions[-1] - 1.0) if positions else 0.0
    for (x, y, text, look), at in zip(placed, positions, strict=True):
        axes.annotate(
            text,
            xy=(x, y),
            xytext=(1.035, at - over),
            xycoords="axes fraction",
            textcoords="axes fraction",
            va="center",
            ha="left",
            size=size,
            color=look.colour,
            weight=look.weight,
            annotation_clip=False,
            arrowprops={
                "arrowstyle": "-",
                "color": look.colour,
                "linewidth": 0.5,
                "shrinkA": 1,
                "shrinkB": 3,
                "alpha": 0.6,
                "relpos": (0.0, 0.5),
            },
        )


def save(drawing: Drawing, directory: Path, name: str, formats: Sequence[str]) -> str:
    """Write the drawing in each of the formats; return the name of the first file."""
    for each in formats:
        metadata = {"Date": None} if each == "svg" else {}
        drawing.savefig(directory / f"{name}.{each}", dpi=110, metadata=metadata)
    return f"{name}.{formats[0]}"
