"""A finished run: as a table for people, as JSON for programs."""

from __future__ import annotations

import statistics
from itertools import groupby
from pathlib import Path

import msgspec
from rich.console import Console
from rich.table import Table

from benchmarks.aims import Aim
from benchmarks.case import OURS, Figure, Missing, Scale
from benchmarks.machine import FLUSH_US_MIN, Machine

# Above it a median of a few samples tells of the other programs as much as of us.
OTHERS_CORES_MAX = 0.2


class Told(msgspec.Struct, frozen=True):
    """What there is to know about a peer beside its figures."""

    name: str
    durability: str
    settings: str
    versions: dict[str, str]


class Report(msgspec.Struct, frozen=True):
    """Everything that one run found out."""

    started_at: str
    took_s: float
    others_cores: float | None  # what other programs took of the machine meanwhile
    machine: Machine
    scale: Scale
    figures: list[Figure]
    missing: list[Missing]
    peers: list[Told]
    aims: list[Aim]


class _Row(msgspec.Struct, frozen=True):
    """A figure as it stands in the file: with its samples and what they come to."""

    workload: str
    case: str
    figure: str
    contender: str
    unit: str
    durability: str
    median: float
    min: float
    max: float
    samples: list[float]
    quantiles: list[list[float]]


def write(report: Report, path: Path) -> None:
    """Write the report as JSON."""
    data = {
        "started_at": report.started_at,
        "took_s": report.took_s,
        "others_cores": report.others_cores,
        "machine": report.machine,
        "scale": report.scale,
        "figures": [_row(figure) for figure in report.figures],
        "missing": report.missing,
        "peers": report.peers,
        "aims": report.aims,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(msgspec.json.format(msgspec.json.encode(data), indent=2) + b"\n")


def _row(figure: Figure) -> _Row:
    samples = figure.samples
    return _Row(
        *figure.key,
        figure.unit,
        figure.durability,
        statistics.median(samples),
        min(samples),
        max(samples),
        samples,
        figure.quantiles,
    )


def show(report: Report, console: Console) -> None:
    """Print the machine, the figures and the aims."""
    machine = report.machine
    console.print(
        f"{machine.cores} cores, {machine.system}, {machine.python}, SQLite {machine.sqlite}, "
        f"fdatasync p50 {machine.fdatasync_p50_us:.0f} µs, p99 {machine.fdatasync_p99_us:.0f} µs, "
        f"{report.scale.repeats} repetitions in {report.took_s:.0f} s",
        highlight=False,
    )
    if report.others_cores is not None:
        busy = report.others_cores > OTHERS_CORES_MAX
        note = " [bold yellow]The figures are worse than this machine's: run again when it is quiet.[/]" if busy else ""
        console.print(f"Other programs kept {report.others_cores:.2f} cores busy meanwhile.{note}", highlight=False)
    if not machine.has_disk:
        console.print(
            f"[bold red]A flush takes less than {FLUSH_US_MIN:g} µs: this is no disk, and nothing here was durable.[/]"
        )
    console.print(_figures(report.figures))
    if report.aims:
        console.print(_aims(report.aims))


def _figures(figures: list[Figure]) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 1))
    table.add_column("case")
    table.add_column("figure")
    table.add_column("of", no_wrap=True)
    for heading in ("median", "min", "max"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("", no_wrap=True)
    for (workload, case), group in groupby(figures, key=lambda figure: (figure.key.workload, figure.key.case)):
        several = list(group)
        names = list(dict.fromkeys(figure.key.figure for figure in several))
        table.add_section()
        title = f"{workload}: {case}"
        for figure in sorted(several, key=lambda figure: names.index(figure.key.figure)):
            row = _row(figure)
            numbers = [number(value) for value in (row.median, row.min, row.max)]
            style = "bold" if row.contender == OURS else "dim"
            table.add_row(title, row.figure, row.contender, *numbers, row.unit, style=style)
            title = ""
    return table


def _aims(aims: list[Aim]) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 1), title="\naims", title_justify="left")
    for heading in ("what", "value", "aim", "", "note"):
        table.add_column(heading, justify="right" if heading == "value" else "left")
    for aim in aims:
        verdict = "[green]met[/]" if aim.met else "[bold red]missed[/]"
        table.add_row(aim.what, aim.value, aim.aim, verdict, f"[dim]{aim.note}[/]")
    return table


def number(value: float) -> str:
    """Return *value* with about four significant digits."""
    if abs(value) >= 1_000:
        return f"{value:,.0f}"
    return f"{value:.4g}"
