"""A directory for one run: its figures as JSON, its plots, and the page that shows them."""

from __future__ import annotations

from pathlib import Path

from benchmarks.report import Report
from benchmarks.reporting.files import JSON, without_places, write
from benchmarks.reporting.markdown import text
from benchmarks.reporting.plots.plot import Plot

PAGE = "report.md"


def make(report: Report, directory: Path, formats: tuple[str, ...] = ("svg",)) -> Path:
    """Write everything into *directory*, and return the page. Of the *formats* of its plots it names the first."""
    directory.mkdir(parents=True, exist_ok=True)
    anonymous = without_places(report)
    # First of all, and alone of all that took hours: whatever fails below can be done again from it.
    write(anonymous, directory / JSON)
    page = directory / PAGE
    page.write_text(text(anonymous, _plots(anonymous, directory, formats)), encoding="utf-8")
    return page


def _plots(report: Report, directory: Path, formats: tuple[str, ...]) -> list[Plot] | None:
    """Return the plots drawn; None where nothing can draw."""
    try:
        from benchmarks.reporting.plots.catalogue import draw
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] != "matplotlib":
            raise
        return None
    return draw(report, directory, formats)
