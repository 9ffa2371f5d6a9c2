"""A finished run as a page: its figures and plots, and how to read them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import groupby

from benchmarks.report import Report
from benchmarks.reporting import remarks
from benchmarks.reporting.background import background
from benchmarks.reporting.comparison import NOTHING, Row, Tables, tables, timed
from benchmarks.reporting.markup import plain, table
from benchmarks.reporting.plots.plot import Plot
from benchmarks.reporting.questions import question

_COLUMNS: Sequence[tuple[str, str, Callable[[Row], str]]] = (
    ("min..max", "spread", lambda row: row.spread),
    ("p50", "p50", lambda row: row.p50),
    ("p99", "p99", lambda row: row.p99),
    ("flushes each", "flushes", lambda row: row.flushes),
)


def text(report: Report, plots: Sequence[Plot] | None) -> str:
    """Return the page; *plots* lie beside it, None where nothing could draw them."""
    parts = [
        *_head(report),
        *_reading(),
        *(part for each in tables(report) for part in _workload(each, plots or ())),
        *_aims(report),
        *background(report, drawn=plots is not None),
    ]
    return "\n\n".join(parts) + "\n"


def _head(report: Report) -> Iterator[str]:
    day, _, time = report.started_at.partition("T")
    repeats = report.scale.repeats
    yield "# Benchmarks of understudy"
    yield (
        f"{day}{f', {time[:5]} UTC' if time else ''}: {remarks.source(report)}, measured beside {_several(report)} in "
        f"{_minutes(report.took_s)}, {repeats} {'repetition' if repeats == 1 else 'repetitions'}."
    )
    yield f"The machine: {remarks.machine(report)}."
    for warning in remarks.warnings(report):
        yield f"> **{warning}**"
    if report.aims:
        missed = [aim.what for aim in report.aims if not aim.met]
        told = f" Missed: {'; '.join(missed)}." if missed else ""
        yield f"{len(report.aims) - len(missed)} of {len(report.aims)} [aims](#aims) are met.{told}"


def _several(report: Report) -> str:
    floors = {
        figure.key.contender
        for figure in report.figures
        if not report.is_ours(figure.key.contender) and not report.is_peer(figure.key.contender)
    }
    measured = {figure.key.contender for figure in report.figures}
    peers = [peer for peer in report.peers if peer.name in measured]
    return (
        f"{len(peers)} {'setting' if len(peers) == 1 else 'settings'} of other systems and {len(floors)} "
        f"{'floor' if len(floors) == 1 else 'floors'}"
    )


def _minutes(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min"


def _reading() -> Iterator[str]:
    yield "## How to read"
    yield (
        "- Each figure is the **median** of its repetitions, beside the least and the most of them. p50 and p99 are of the "
        "calls within a repetition.\n"
        "- **Floors** are the same work without actors, as little as it can cost: no mailbox, no handler, no recovery. "
        "They tell what the machine can do, not what you could use instead.\n"
        "- **ours is** says what our median is of the one in that line: of a rate more is better, of a time or of bytes less. "
        "1/20 is a twentieth. For floors it is in percent where ours is less. **~** means that the samples overlap: another run may turn it round.\n"
        "- **on** says where the data is when an answer comes: see [durability](#durability). Compare like with like.\n"
        "- **flushes each** is how often the disk was told to flush, by its own count, per call. A caller alone whose calls "
        "are durable needs one; many callers may share one. Other programs' flushes are in it."
    )


def _workload(found: Tables, plots: Iterable[Plot]) -> Iterator[str]:
    yield f"## {found.workload.capitalize()}"
    asked = question(found.workload)
    if asked:
        yield asked
    for plot in plots:
        if plot.workload == found.workload:
            yield f"![{plain(plot.seen)}]({plot.file})"
    for case, rows in groupby(found.calls, key=lambda row: row.case):
        yield f"**{plain(case)}**"
        yield _calls(list(rows), found)
    if found.others:
        yield _others(found.others)


def _calls(rows: Sequence[Row], found: Tables) -> str:
    # Columns are the workload's: cases that stand below one another are compared.
    fields = timed(found.calls) | ({"spread"} if any(row.spread != NOTHING for row in found.calls) else set())
    shown = [(heading, cell) for heading, field, cell in _COLUMNS if field in fields]
    return table(
        [
            "",
            "on",
            f"per second ({found.unit})" if found.unit != "/s" else "per second",
            *(each for each, _ in shown),
            "ours is",
        ],
        [[_name(row), row.durability, row.median, *(cell(row) for _, cell in shown), row.ours_is] for row in rows],
        left=2,
    )


def _others(rows: Sequence[Row]) -> str:
    lines = []
    before = ("", "")
    for row in rows:
        case = row.case if row.case != before[0] else ""
        figure = row.figure if case or row.figure != before[1] else ""
        before = (row.case, row.figure)
        lines.append([plain(case), plain(figure), _name(row), row.durability, row.median, row.spread, row.ours_is])
    return table(["case", "figure", "", "on", "median", "min..max", "ours is"], lines, left=4)


def _aims(report: Report) -> Iterator[str]:
    if report.aims:
        yield "## Aims"
        yield "They are ratios where a figure depends on the machine, and are never adjusted to a result."
        yield table(
            ["what", "value", "aim", "", "note"],
            [
                [plain(aim.what), aim.value, aim.aim, "met" if aim.met else "**missed**", plain(aim.note)]
                for aim in report.aims
            ],
            left=1,
        )


def _name(row: Row) -> str:
    name = plain(row.contender)
    return f"**{name}**" if row.is_ours else name if row.is_peer else f"*{name}*"
