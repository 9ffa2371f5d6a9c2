"""A finished run as JSON: every sample, and what is needed to draw the report again."""

from __future__ import annotations

import re
import socket
import statistics
from pathlib import Path
from typing import Any

import msgspec

from benchmarks.case import Figure, Key, Missing
from benchmarks.report import Report

JSON = "figures.json"
_LOCAL_NAMES = {"localhost", ""}
# At least two names deep: "/s" and "and/or" are no paths; what follows a colon or a slash belongs to an address.
_PATH = re.compile(r"(?<![\w./:~-])/(?:[\w.+@~-]+/)+([\w.+@~-]*)")


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
    quantiles: list[list[float]] = []


class Unreadable(Exception):
    """A file that is no result of this harness; the text says what is wrong with it."""


def write(report: Report, path: Path) -> None:
    """Write the report as JSON, without the names of this machine, its users and their directories."""
    anonymous = without_places(report)
    data = {name: getattr(anonymous, name) for name in anonymous.__struct_fields__}
    data["figures"] = [_row(figure) for figure in anonymous.figures]
    path.write_bytes(msgspec.json.format(msgspec.json.encode(data), indent=2) + b"\n")


def read(path: Path) -> Report:
    """Return the report that was written to *path*.

    Raises:
        Unreadable: It is no such file.
    """
    try:
        data: dict[str, Any] = msgspec.json.decode(path.read_bytes(), type=dict[str, Any])
        rows = msgspec.convert(data.get("figures"), list[_Row])
        return msgspec.convert({**data, "figures": msgspec.to_builtins([_figure(row) for row in rows])}, Report)
    except OSError as error:
        raise Unreadable(f"{path} cannot be read: {error.strerror}.") from error
    except msgspec.MsgspecError as error:
        raise Unreadable(
            f"{path} is no result of this harness ({error}). Give the {JSON} of a run, or what `--json` wrote."
        ) from error


def without_places(report: Report) -> Report:
    """Return the report with paths and the machine's name taken out of what programs have said."""
    return msgspec.structs.replace(
        report,
        missing=[Missing(each.workload, each.case, each.contender, _clean(each.reason)) for each in report.missing],
        peers=[msgspec.structs.replace(each, settings=_clean(each.settings)) for each in report.peers],
    )


def _clean(text: str) -> str:
    host = socket.gethostname()
    if host not in _LOCAL_NAMES:
        text = re.sub(rf"(?<![\w.-]){re.escape(host)}(?![\w-])", "HOST", text)
    return _PATH.sub(lambda found: f"…/{found[1]}", text)


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


def _figure(row: _Row) -> Figure:
    return Figure(
        key=Key(row.workload, row.case, row.figure, row.contender),
        unit=row.unit,
        durability=row.durability,
        samples=row.samples,
        quantiles=row.quantiles,
    )
