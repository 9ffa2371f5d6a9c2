"""A finished run as a page: figures, plots, and what has to be known to believe them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import groupby

from benchmarks.case import FLUSHED, KERNEL, MEMORY
from benchmarks.report import Report
from benchmarks.reporting import remarks
from benchmarks.reporting.comparison import NOTHING, Row, Tables, tables
from benchmarks.reporting.files import JSON
from benchmarks.reporting.meanings import meaning
from benchmarks.reporting.numbers import number
from benchmarks.reporting.plots.plot import Plot
from benchmarks.reporting.questions import question

_DURABILITIES = {
    FLUSHED: "The disk has said that it has the data. It survives a killed process, a crashed system and a power cut, as far as "
    "the disk tells the truth.",
    KERNEL: "The data is with the operating system. It survives a killed process; a crashed system or a power cut takes the last "
    "moments.",
    MEMORY: "Nothing was written. It ends with the process.",
}
_ELSEWHERE = """\
- **Temporal**: its development server is a program of its own that has to be downloaded; this harness does not fetch it.
- **Network disks**: everything here is on a local disk. Where a flush takes milliseconds, whatever flushes several times \
per call falls behind by as much.
- **Power cuts**: processes are killed here, machines are not. What survives a power cut follows from the count of \
flushes and from what the databases promise.
- **Several machines**: one process, and the servers that a peer needs, on one machine. Peers made for many machines pay \
here for what they are not asked to do."""
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
        *_missing(report),
        *_peers(report),
        *_durabilities(),
        *_method(report, drawn=plots is not None),
        *_settings(report),
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
        "For floors it is in percent where ours is less. **~** means that the samples overlap: another run may turn it round.\n"
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
            yield f"![{_plain(plot.seen)}]({plot.file})"
    for case, rows in groupby(found.calls, key=lambda row: row.case):
        yield f"**{_plain(case)}**"
        yield _calls(list(rows), found)
    if found.others:
        yield _others(found.others)


def _calls(rows: Sequence[Row], found: Tables) -> str:
    # Columns are the workload's: cases that stand below one another are compared.
    shown = [
        (heading, cell)
        for heading, field, cell in _COLUMNS
        if any(getattr(row, field) != NOTHING for row in found.calls)
    ]
    return _table(
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
        lines.append([_plain(case), _plain(figure), _name(row), row.durability, row.median, row.spread, row.ours_is])
    return _table(["case", "figure", "", "on", "median", "min..max", "ours is"], lines, left=4)


def _aims(report: Report) -> Iterator[str]:
    if report.aims:
        yield "## Aims"
        yield "They are ratios where a figure depends on the machine, and are never adjusted to a result."
        yield _table(
            ["what", "value", "aim", "", "note"],
            [
                [_plain(aim.what), aim.value, aim.aim, "met" if aim.met else "**missed**", _plain(aim.note)]
                for aim in report.aims
            ],
            left=1,
        )


def _missing(report: Report) -> Iterator[str]:
    yield "## Not measured"
    if report.missing:
        yield _table(
            ["what", "of", "why"],
            [
                [
                    "everything" if each.workload == "all" else _plain(f"{each.workload}: {each.case}"),
                    _plain(each.contender),
                    _plain(each.reason),
                ]
                for each in report.missing
            ],
            left=3,
        )
    yield _ELSEWHERE


def _peers(report: Report) -> Iterator[str]:
    if report.peers:
        yield "## Peers"
        yield (
            "Each is set as its documentation recommends for speed, runs in an environment of its own, and is asked the "
            "same. A figure does not promise the same everywhere:"
        )
        yield _table(
            ["peer", "on", "what a figure stands for", "settings", "versions"],
            [
                [
                    _plain(peer.name),
                    peer.durability,
                    _plain(meaning(peer.name)),
                    _plain(peer.settings),
                    _plain(", ".join(f"{name} {version}" for name, version in peer.versions.items())),
                ]
                for peer in report.peers
            ],
            left=5,
        )


def _durabilities() -> Iterator[str]:
    yield "## Durability"
    yield _table(
        ["on", "what is so when the answer comes"], [[name, told] for name, told in _DURABILITIES.items()], left=2
    )


def _method(report: Report, *, drawn: bool) -> Iterator[str]:
    others = report.others_cores
    busy = "This system does not tell" if others is None else f"Here they took {others:.2f} cores"
    seeds = ", ".join(f"{name} {seed}" for name, seed in report.seeds.items())
    yield "## How it was measured"
    yield (
        "- A repetition goes through all cases once, so that a bad minute spoils one sample of many figures and not all of "
        "one. Within a case the contenders follow one another, and each repetition begins with another one.\n"
        "- Compare within a run only: between two runs the machine has changed, and what else it does.\n"
        f"- Other programs make every figure worse. {busy}; above {remarks.OTHERS_CORES_MAX:g} the figures tell of them too. "
        "Servers that a peer starts may count among them.\n"
        "- That an answer was durable is not taken from a setting: the disk's own count of flushes stands beside it, where the "
        "system has one.\n"
        "- Who is measured once only, because it takes minutes, has no least and no most.\n"
        f"- Chance comes from fixed seeds{f' ({seeds})' if seeds else ''}: each run chooses the same actors.\n"
        f"- Every sample, and the distribution of the calls, is in [{JSON}]({JSON}); `python -m benchmarks.report_of {JSON}` "
        "draws this page again."
    )
    if not drawn:
        yield "Plots are missing: they need matplotlib, which is among the development dependencies."


def _settings(report: Report) -> Iterator[str]:
    here, scale = report.machine, report.scale
    rows = [
        ["processor", f"{here.cpu}, {here.cores} cores"],
        ["memory", f"{here.memory_bytes / 2**30:.1f} GiB" if here.memory_bytes else "unknown"],
        ["disk", f"{here.file_system}, write cache: {here.write_cache}"],
        ["a page flushed", f"p50 {number(here.fdatasync_p50_us)} µs, p99 {number(here.fdatasync_p99_us)} µs"],
        ["system", here.system],
        ["interpreter", f"{here.python}, SQLite {here.sqlite}"],
        ["understudy", here.understudy + (f", commit {here.commit}" if here.commit else "")],
        *([name, version] for name, version in here.libraries.items()),
    ]
    yield "## Machine, versions, settings"
    yield _table(["", ""], [[_plain(cell) for cell in row] for row in rows], left=2)
    yield _table(
        ["setting", "value"],
        [[name.replace("_", " "), _setting(getattr(scale, name))] for name in scale.__struct_fields__],
        left=2,
    )


def _setting(value: object) -> str:
    return ", ".join(_setting(each) for each in value) if isinstance(value, tuple) else f"{value:,}"


def _name(row: Row) -> str:
    name = _plain(row.contender)
    return f"**{name}**" if row.is_ours else name if row.is_peer else f"*{name}*"


def _plain(words: str) -> str:
    """Return the words so that nothing in them is markup: an error's text may hold anything."""
    for mark in "\\|*_`<>[]":
        words = words.replace(mark, f"\\{mark}")
    return " ".join(words.split())


def _table(headings: Sequence[str], rows: Iterable[Sequence[str]], left: int) -> str:
    """Return a table whose first *left* columns are texts, the others numbers."""
    rule = ["---" if number < left else "---:" for number in range(len(headings))]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (headings, rule, *rows))
