"""A finished run in a terminal: a table for each workload, the aims, and what was not measured."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

from rich.console import Console
from rich.table import Table
from rich.text import Text

from benchmarks.aims import Aim
from benchmarks.case import Missing
from benchmarks.report import Report
from benchmarks.reporting import remarks
from benchmarks.reporting.comparison import DURABILITY_WORDS, NOTHING, Row, tables, timed
from benchmarks.reporting.questions import question

# Below it a contender takes two lines: the second one says how durable its answers are, and the smallest and the
# largest of its samples.
_WIDE = 110
_INDENT = "  "


def show(report: Report, console: Console) -> None:
    """Print everything, as wide as the console is."""
    repeats = report.scale.repeats
    console.print(Text(remarks.source(report), "bold"))
    console.print(
        f"{remarks.machine(report)}. {repeats} {'repetition' if repeats == 1 else 'repetitions'} in "
        f"{report.took_s:.0f} s.",
        highlight=False,
    )
    for warning in remarks.warnings(report):
        console.print(Text(warning, "bold red" if "no disk" in warning else "bold yellow"))
    console.print(
        Text(
            "disk: flushed to it before the answer. kernel: handed to it, lost with the machine. memory: lost with the "
            "process. ours is: our median over this one (1/20: ours is a twentieth), in percent for floors, which do less; "
            "~ where samples overlap.",
            "dim",
        )
    )
    wide = console.width >= _WIDE
    for each in tables(report):
        console.print()
        console.print(Text.assemble((each.workload, "bold underline"), (f"  {question(each.workload)}", "dim")))
        if each.calls:
            console.print(_calls(each.calls, each.unit, wide=wide))
        if each.others:
            console.print(_others(each.others, wide=wide))
    if report.aims:
        console.print()
        console.print(_aims(report.aims, wide=wide))
    if report.missing:
        console.print()
        console.print(_missing(report.missing))


def _table(gap: int = 2) -> Table:
    return Table(box=None, pad_edge=False, padding=(0, gap, 0, 0), header_style="dim")


def _calls(rows: Sequence[Row], unit: str, *, wide: bool) -> Table:
    table = _table(gap=2 if wide else 1)
    table.add_column("", min_width=24)
    if wide:
        table.add_column("durable on", no_wrap=True)
    table.add_column(unit, justify="right", no_wrap=True)
    if wide:
        table.add_column("min..max", justify="right", no_wrap=True)
    names = [name for name in ("p50", "p99", "flushes") if name in timed(rows)]
    for name in names:
        table.add_column("flushes each" if name == "flushes" and wide else name, justify="right", no_wrap=True)
    table.add_column("ours is", justify="right", no_wrap=True)
    for case, group in groupby(rows, key=lambda row: row.case):
        table.add_row(Text(case, "underline"))
        for row in group:
            further = [*(getattr(row, name) for name in names), row.ours_is]
            if wide:
                cells = [_INDENT + row.contender, _word(row), row.median, row.spread, *further]
                table.add_row(*cells, style=_style(row))
            else:
                _narrow(table, row, further)
    return table


def _narrow(table: Table, row: Row, further: Sequence[str]) -> None:
    name, _, setting = row.contender.partition(", ")
    below = " · ".join(filter(None, (setting, _word(row))))
    if not setting and row.spread == NOTHING:
        table.add_row(f"{name} · {below}", row.median, *further, style=_style(row))
        return
    table.add_row(name, row.median, *further, style=_style(row))
    table.add_row(f"  {below}", "" if row.spread == NOTHING else row.spread, style="dim")


def _others(rows: Sequence[Row], *, wide: bool) -> Table:
    alone = all(row.is_ours for row in rows)
    table = _table(gap=2 if wide else 1)
    table.add_column("", min_width=24)
    if wide:
        table.add_column("durable on", no_wrap=True)
    table.add_column("median", justify="right", no_wrap=True)
    table.add_column("min..max", justify="right", no_wrap=True)
    table.add_column("" if alone else "ours is", justify="right", no_wrap=True)
    for case, in_case in groupby(rows, key=lambda row: row.case):
        table.add_row(Text(case, "underline"))
        for figure, group in groupby(in_case, key=lambda row: row.figure):
            if not alone:
                table.add_row(f"{_INDENT}{figure}")
            for row in group:
                name = f"{_INDENT}{figure}" if alone else f"{_INDENT * 2}{row.contender}"
                durable = [_word(row)] if wide else []
                table.add_row(name, *durable, row.median, row.spread, row.ours_is, style=_style(row))
    return table


def _word(row: Row) -> str:
    return DURABILITY_WORDS.get(row.durability, row.durability)


def _style(row: Row) -> str:
    if row.is_ours:
        return "bold"
    return "" if row.is_peer else "dim"


def _aims(aims: Sequence[Aim], *, wide: bool) -> Table:
    met = sum(aim.met for aim in aims)
    table = _table()
    table.title, table.title_justify, table.title_style = f"aims: {met} of {len(aims)} met", "left", "bold underline"
    for heading in ("what", "value", "aim", ""):
        table.add_column(heading, justify="right" if heading == "value" else "left", no_wrap=heading != "what")
    if wide:
        table.add_column("note")
    for aim in aims:
        verdict = Text("met", "green") if aim.met else Text("missed", "bold red")
        table.add_row(aim.what, aim.value, aim.aim, verdict, *([Text(aim.note, "dim")] if wide else []))
        if aim.note and not wide:
            table.add_row(Text(f"{_INDENT}{aim.note}", "dim"))
    return table


def _missing(missing: Sequence[Missing]) -> Table:
    table = _table()
    table.title, table.title_justify, table.title_style = "not measured", "left", "bold underline"
    for heading in ("what", "of", "why"):
        table.add_column(heading)
    for each in missing:
        where = each.workload if each.case == each.workload else f"{each.workload}: {each.case}"
        table.add_row("everything" if where == "all" else where, each.contender, each.reason)
    return table
