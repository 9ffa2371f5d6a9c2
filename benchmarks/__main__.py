"""Command line: measure, print, keep the result."""

from __future__ import annotations

import sys
import time
import traceback
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import click
import msgspec
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Column

from benchmarks.aims import judge
from benchmarks.case import FULL, QUICK, Missing
from benchmarks.catalogue import WORKLOADS, all_cases
from benchmarks.machine import Others, look
from benchmarks.peers.catalogue import PEERS
from benchmarks.peers.peer import Peer
from benchmarks.report import Report, Told
from benchmarks.reporting.files import write
from benchmarks.reporting.page import make
from benchmarks.reporting.questions import seeds
from benchmarks.reporting.terminal import show
from benchmarks.run import run
from benchmarks.sample import NotMeasured
from benchmarks.workplace import RESULTS, own_directory

_WIDTH_IN_FILES = 130


@click.command()
@click.option("--only", type=click.Choice(list(WORKLOADS)), multiple=True, help="Measure this workload; repeatable.")
@click.option("--peers", "with_all", is_flag=True, help="Measure all peers beside ours; installs them first.")
@click.option("--peer", "named", multiple=True, help="Measure the peers whose name begins so; repeatable.")
@click.option("--repeats", type=click.IntRange(min=1), help="Samples of each figure.")
@click.option("--quick", is_flag=True, help="One short repetition with smaller numbers: shows that all works.")
@click.option(
    "--json", "path", type=click.Path(path_type=Path, dir_okay=False), help="Write the figures here, and nothing else."
)
def main(
    only: tuple[str, ...],
    named: tuple[str, ...],
    repeats: int | None,
    *,
    with_all: bool,
    quick: bool,
    path: Path | None,
) -> None:
    """Measure understudy, the floors under it and the peers beside it.

    Files are made beside the results, in the checkout, and removed: temporary directories are often in memory.
    """
    scale = QUICK if quick else FULL
    if repeats is not None:
        scale = msgspec.structs.replace(scale, repeats=repeats)
    peers = _chosen(named, with_all=with_all)
    if path is not None:
        _check_writable(path)
    started = datetime.now(UTC)
    began = time.perf_counter()
    console = Console()
    if not console.is_terminal:
        console.width = _WIDTH_IN_FILES
    with _progress() as bar, own_directory(RESULTS) as directory:
        installed, told, absent = _install(peers, bar)
        machine = look(directory)
        others = Others()
        task = bar.add_task("")

        def note(done: int, total: int, following: str) -> None:
            bar.update(task, completed=done, total=total, description=following, refresh=True)

        figures, missing, errors = run(list(all_cases(scale, only, installed)), scale, directory, note)
    report = Report(
        started_at=started.isoformat(timespec="seconds"),
        took_s=time.perf_counter() - began,
        others_cores=others.cores(),
        machine=machine,
        scale=scale,
        figures=figures,
        missing=[*absent, *missing],
        peers=told,
        aims=[] if quick else judge(figures, machine, scale),  # they are about the large numbers
        seeds=seeds(),
    )
    show(report, console)
    if path is None:
        path = make(report, RESULTS / f"{started:%Y-%m-%dT%H%M%S}")
    else:
        write(report, path)
    console.print(f"\nwritten to {path}", highlight=False)
    for error in errors:
        traceback.print_exception(error)
    if errors:
        sys.exit(1)


def _check_writable(path: Path) -> None:
    """Find out now, not after minutes of measuring."""
    try:
        is_new = not path.exists()
        path.open("ab").close()
        if is_new:
            path.unlink()
    except OSError as error:
        raise click.BadParameter(
            f"{path} cannot be written ({error.strerror}); name a file in a directory of yours.", param_hint="--json"
        ) from error


def _chosen(named: Sequence[str], *, with_all: bool) -> list[Peer]:
    for name in named:
        if not name or not any(peer.name.startswith(name) for peer in PEERS):
            raise click.BadParameter(
                f"no peer's name begins with {name!r}; there are {'; '.join(peer.name for peer in PEERS)}",
                param_hint="--peer",
            )
    return [peer for peer in PEERS if with_all or peer.name.startswith(tuple(named))] if named or with_all else []


def _progress() -> Progress:
    # Drawn between measurements only: a thread that draws would take part in them.
    # What is measured gives way where there is little room, the numbers never do.
    return Progress(
        TextColumn("{task.description}", table_column=Column(ratio=1, no_wrap=True, overflow="ellipsis")),
        BarColumn(bar_width=20),
        MofNCompleteColumn(table_column=Column(no_wrap=True, min_width=7)),
        TimeElapsedColumn(table_column=Column(no_wrap=True, min_width=7)),
        console=Console(stderr=True),
        expand=True,
        auto_refresh=False,
        transient=True,
    )


def _install(peers: Sequence[Peer], bar: Progress) -> tuple[list[Peer], list[Told], list[Missing]]:
    """Return those that can be measured, what there is to tell about them, and those that could not be installed."""
    installed: list[Peer] = []
    told: list[Told] = []
    absent: list[Missing] = []
    task = bar.add_task("", total=len(peers), visible=bool(peers))
    for peer in peers:
        bar.update(task, description=f"installing {peer.name}", refresh=True)
        try:
            peer.environment.install()
            versions = peer.environment.versions()
        except NotMeasured as reason:
            absent.append(Missing("all", "all", peer.name, str(reason)))
        else:
            installed.append(peer)
            told.append(Told(peer.name, peer.durability, peer.settings, versions, peer.meaning))
        bar.advance(task)
    return installed, told, absent


if __name__ == "__main__":
    main()
