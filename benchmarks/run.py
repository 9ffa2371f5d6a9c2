"""Repeats every case, contender beside contender, and collects the samples."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from benchmarks.case import Case, Figure, Key, Place, Sample, Scale

Progress = Callable[[int, int, str], None]
"""Told before each measurement: how many are done, how many there are, what comes next."""


def run(
    cases: Sequence[Case], scale: Scale, directory: Path, progress: Progress = lambda _done, _total, _next: None
) -> list[Figure]:
    """Measure every contender of every case `scale.repeats` times, in temporary directories inside *directory*.

    A repetition goes through all cases, so that a minute in which the machine is busy with something else spoils one
    sample of many figures rather than all samples of one. Within a case contenders follow one another, and each
    repetition begins with another one.
    """
    total = scale.repeats * sum(len(case.contenders) for case in cases)
    done = 0
    collected: dict[Key, Figure] = {}
    with tempfile.TemporaryDirectory(prefix="shared-", dir=directory) as shared:
        for repetition in range(scale.repeats):
            for case in cases:
                for contender in _rotated(list(case.contenders), repetition):
                    progress(done, total, f"{case.workload}: {case.name}, {contender}")
                    place = Place(Path(tempfile.mkdtemp(prefix="own-", dir=directory)), Path(shared), scale)
                    try:
                        for sample in case.contenders[contender](place):
                            _collect(collected, case, contender, sample)
                    finally:
                        shutil.rmtree(place.own)
                    done += 1
    progress(done, total, "done")
    # Rows stand in the order of the cases and their contenders, whoever was measured first.
    order = {
        (case.workload, case.name, contender): number
        for number, (case, contender) in enumerate((case, contender) for case in cases for contender in case.contenders)
    }
    return sorted(
        collected.values(), key=lambda figure: order[figure.key.workload, figure.key.case, figure.key.contender]
    )


def _rotated(contenders: list[str], by: int) -> list[str]:
    by %= len(contenders)
    return contenders[by:] + contenders[:by]


def _collect(collected: dict[Key, Figure], case: Case, contender: str, sample: Sample) -> None:
    key = Key(case.workload, case.name, sample.figure, contender)
    figure = collected.get(key)
    if figure is None:
        figure = collected[key] = Figure(key, sample.unit, [])
    figure.samples.append(sample.value)
