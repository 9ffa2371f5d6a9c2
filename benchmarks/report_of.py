"""Draw the report of a run again, from its figures: `python -m benchmarks.report_of FILE.json`."""

from __future__ import annotations

from pathlib import Path

import click
from rich.console import Console

from benchmarks.reporting.files import JSON, Unreadable, read
from benchmarks.reporting.page import make
from benchmarks.reporting.terminal import show


@click.command()
@click.argument("figures", type=click.Path(path_type=Path, exists=True, dir_okay=False))
@click.option("--to", type=click.Path(path_type=Path, file_okay=False), help="Write into this directory.")
@click.option("--png", is_flag=True, help="Draw each plot as PNG too.")
def main(figures: Path, to: Path | None, *, png: bool) -> None:
    """Draw tables, page and plots from FIGURES, the JSON of a run; measure nothing.

    They are written beside figures.json, and for any other FILE.json into a directory FILE beside it.
    """
    try:
        report = read(figures)
    except Unreadable as error:
        raise click.ClickException(str(error)) from error
    console = Console()
    show(report, console)
    beside = figures.parent if figures.name == JSON else figures.with_suffix("")
    page = make(report, to or beside, ("svg", "png") if png else ("svg",))
    console.print(f"\nwritten to {page}", highlight=False)


if __name__ == "__main__":
    main()
