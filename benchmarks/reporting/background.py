"""What has to be known to believe a run: what is not in it, who took part, what durable means, how it was done, on what."""

from __future__ import annotations

from collections.abc import Iterator

from benchmarks.case import FLUSHED, KERNEL, MEMORY
from benchmarks.report import Report
from benchmarks.reporting import remarks
from benchmarks.reporting.files import JSON
from benchmarks.reporting.markup import plain, table
from benchmarks.reporting.numbers import number

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


def background(report: Report, *, drawn: bool) -> Iterator[str]:
    """Yield the paragraphs; *drawn* says whether there are plots."""
    yield from _missing(report)
    yield from _peers(report)
    yield from _durabilities()
    yield from _method(report, drawn=drawn)
    yield from _settings(report)


def _missing(report: Report) -> Iterator[str]:
    yield "## Not measured"
    if report.missing:
        yield table(
            ["what", "of", "why"],
            [
                [
                    "everything" if each.workload == "all" else plain(f"{each.workload}: {each.case}"),
                    plain(each.contender),
                    plain(each.reason),
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
        yield table(
            ["peer", "on", "what a figure stands for", "settings", "versions"],
            [
                [
                    plain(peer.name),
                    peer.durability,
                    plain(peer.meaning),
                    plain(peer.settings),
                    plain(", ".join(f"{name} {version}" for name, version in peer.versions.items())),
                ]
                for peer in report.peers
            ],
            left=5,
        )


def _durabilities() -> Iterator[str]:
    yield "## Durability"
    yield table(
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
    yield table(["", ""], [[plain(cell) for cell in row] for row in rows], left=2)
    yield table(
        ["setting", "value"],
        [[name.replace("_", " "), _setting(getattr(scale, name))] for name in scale.__struct_fields__],
        left=2,
    )


def _setting(value: object) -> str:
    return ", ".join(_setting(each) for each in value) if isinstance(value, tuple) else f"{value:,}"
