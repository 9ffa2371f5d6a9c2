"""The figures side by side: what each table holds, whoever draws it."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Iterator, Mapping

import msgspec

from benchmarks.case import FLUSHED, KERNEL, MEMORY, OURS, Figure
from benchmarks.report import Report
from benchmarks.reporting.numbers import amount, number, span

RATE, P50, P99, FLUSHES = "rate", "p50", "p99", "flushes per call"
_OF_CALLS = (RATE, P50, P99, FLUSHES)
# Beside a column of figures a word must do; the whole meaning stands in the report.
DURABILITY_WORDS: Mapping[str, str] = {FLUSHED: "disk", KERNEL: "kernel", MEMORY: "memory"}
NOTHING = "–"


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """One line of a table, as texts."""

    case: str
    figure: str
    contender: str
    is_ours: bool
    is_peer: bool
    durability: str
    median: str
    spread: str
    p50: str = NOTHING
    p99: str = NOTHING
    flushes: str = NOTHING
    ours_is: str


class Tables(msgspec.Struct, frozen=True):
    """What was found out about one workload."""

    workload: str
    unit: str  # of the rates
    calls: list[Row]  # rates, with what calls took
    others: list[Row]  # everything else, a line each


def tables(report: Report) -> Iterator[Tables]:
    """Yield each workload, in the order of the run."""
    for workload in dict.fromkeys(figure.key.workload for figure in report.figures):
        calls: list[Row] = []
        others: list[Row] = []
        units: list[str] = []
        cases = _Cases(report, workload)
        for case, by_figure in cases.figures.items():
            rates = by_figure.get(RATE, {})
            for contender, figure in rates.items():
                units.append(figure.unit)
                calls.append(_call(report, by_figure, contender, figure))
            for name, contenders in by_figure.items():
                for contender, figure in contenders.items():
                    if name not in _OF_CALLS or contender not in rates:
                        others.append(_row(report, case, figure, contenders.get(OURS)))
        yield Tables(workload, units[0] if units else "", calls, others)


def timed(rows: Iterable[Row]) -> frozenset[str]:
    """Return which of a row's figures of single calls are worth a column: those that ours has too."""
    ours = [row for row in rows if row.is_ours]
    return frozenset(name for name in ("p50", "p99", "flushes") if any(getattr(row, name) != NOTHING for row in ours))


class _Cases:
    """The figures of a workload by case, name and contender; ours first, then peers, then floors."""

    def __init__(self, report: Report, workload: str) -> None:
        self.figures: dict[str, dict[str, dict[str, Figure]]] = {}
        ranks = {True: 0, False: 2}

        def rank(figure: Figure) -> tuple[int, bool]:
            contender = figure.key.contender
            return 1 if report.is_peer(contender) else ranks[report.is_ours(contender)], contender != OURS

        several = [figure for figure in report.figures if figure.key.workload == workload]
        names = list(dict.fromkeys((figure.key.case, figure.key.figure) for figure in several))
        for case, name in names:
            chosen = [each for each in several if (each.key.case, each.key.figure) == (case, name)]
            self.figures.setdefault(case, {})[name] = {each.key.contender: each for each in sorted(chosen, key=rank)}


def _call(report: Report, by_figure: Mapping[str, Mapping[str, Figure]], contender: str, rate: Figure) -> Row:
    row = _row(report, rate.key.case, rate, by_figure[RATE].get(OURS))

    def told(name: str) -> str:
        figure = by_figure.get(name, {}).get(contender)
        return NOTHING if figure is None else amount(statistics.median(figure.samples), figure.unit)

    flushed = by_figure.get(FLUSHES, {}).get(contender)
    return msgspec.structs.replace(
        row,
        # The unit stands above the column.
        median=number(statistics.median(rate.samples)),
        spread=span(min(rate.samples), max(rate.samples), rate.unit).removesuffix(rate.unit)
        if len(rate.samples) > 1
        else NOTHING,
        p50=told(P50),
        p99=told(P99),
        flushes=NOTHING if flushed is None else number(statistics.median(flushed.samples), 2),
    )


def _row(report: Report, case: str, figure: Figure, ours: Figure | None) -> Row:
    contender, samples = figure.key.contender, figure.samples
    is_peer = report.is_peer(contender)
    return Row(
        case=case,
        figure=figure.key.figure,
        contender=contender,
        is_ours=report.is_ours(contender),
        is_peer=is_peer,
        durability=figure.durability,
        median=amount(statistics.median(samples), figure.unit),
        spread=span(min(samples), max(samples), figure.unit) if len(samples) > 1 else NOTHING,
        ours_is=_ours_is(ours, figure, is_floor=not is_peer and not report.is_ours(contender)),
    )


def ratio(ours: Figure | None, theirs: Figure) -> float | None:
    """Return our median over theirs; None where there is no such thing."""
    if ours is None:
        return None
    above, below = statistics.median(ours.samples), statistics.median(theirs.samples)
    return above / below if above > 0 and below > 0 else None


def _ours_is(ours: Figure | None, theirs: Figure, *, is_floor: bool) -> str:
    """Say what ours is of theirs; with "~" where the samples overlap, so that another run may turn it round."""
    if ours is theirs:
        return ""
    value = ratio(ours, theirs)
    if ours is None or value is None:
        return NOTHING
    overlap = (
        len(ours.samples) > 1
        and len(theirs.samples) > 1
        and min(ours.samples) <= max(theirs.samples)
        and min(theirs.samples) <= max(ours.samples)
    )
    about = "~" if overlap else ""
    return f"{about}{number(value * 100, 2)} %" if is_floor and value < 1 else f"{about}{times(value)}"


def times(value: float) -> str:
    """Return a ratio with two digits, and more before the point where there are more; a small one as a fraction."""
    if value < 0.1:
        return f"1/{number(1 / value, 3 if value < 0.01 else 2)}"
    return f"{value:,.0f} ×" if value >= 10 else f"{number(value, 2)} ×"
