"""Command line: measure, print, keep the result."""

from __future__ import annotations

import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path

import click
import msgspec
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from benchmarks.aims import judge
from benchmarks.case import FULL, QUICK
from benchmarks.catalogue import WORKLOADS, all_cases
from benchmarks.machine import Others, look
from benchmarks.report import Report, show, write
from benchmarks.run import run

RESULTS = Path(__file__).parent / "results"
_WIDTH_IN_FILES = 130


@click.command()
@click.option("--only", type=click.Choice(list(WORKLOADS)), multiple=True, help="Measure this workload; repeatable.")
@click.option("--repeats", type=click.IntRange(min=1), help="Samples of each figure.")
@click.option("--quick", is_flag=True, help="One short repetition with smaller numbers: shows that all works.")
@click.option("--json", "path", type=click.Path(path_type=Path, dir_okay=False), help="Write the result here.")
def main(only: tuple[str, ...], repeats: int | None, *, quick: bool, path: Path | None) -> None:
    """Measure understudy and the floors under it.

    Files are made beside the results, in the checkout, and removed: temporary directories are often in memory.
    """
    scale = QUICK if quick else FULL
    if repeats is not None:
        scale = msgspec.structs.replace(scale, repeats=repeats)
    RESULTS.mkdir(exist_ok=True)
    started = datetime.now(UTC)
    began = time.perf_counter()
    console = Console()
    if not console.is_terminal:
        console.width = _WIDTH_IN_FILES
    with tempfile.TemporaryDirectory(prefix="running-", dir=RESULTS) as directory:
        machine = look(Path(directory))
        others = Others()
        # Drawn between measurements only: a thread that draws would take part in them.
        with Progress(
            TextColumn("{task.description:60}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            console=Console(stderr=True),
            auto_refresh=False,
            transient=True,
        ) as bar:
            task = bar.add_task("")

            def note(done: int, total: int, following: str) -> None:
                bar.update(task, completed=done, total=total, description=following, refresh=True)

            figures = run(list(all_cases(scale, only)), scale, Path(directory), note)
    report = Report(
        started_at=started.isoformat(timespec="seconds"),
        took_s=time.perf_counter() - began,
        others_cores=others.cores(),
        machine=machine,
        scale=scale,
        figures=figures,
        aims=judge(figures, machine, scale),
    )
    show(report, console)
    path = path or RESULTS / f"{started:%Y-%m-%dT%H%M%S}.json"
    write(report, path)
    console.print(f"\nwritten to {path}", highlight=False)


if __name__ == "__main__":
    main()
