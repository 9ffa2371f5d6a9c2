"""Repeats every case, contender beside contender, and collects the samples."""

from __future__ import annotations

import gc
import shutil
import tempfile
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from benchmarks.case import Case, Contender, Figure, Key, Missing, Place, Scale
from benchmarks.sample import NotMeasured, Sample

Progress = Callable[[int, int, str], None]
"""Told before each measurement: how many are done, how many there are, what comes next."""


class Measured(NamedTuple):
    """What came of a run."""

    figures: list[Figure]
    missing: list[Missing]
    errors: list[Exception]  # of measurements that failed; `missing` names them as well


def run(
    cases: Sequence[Case], scale: Scale, directory: Path, progress: Progress = lambda _done, _total, _next: None
) -> Measured:
    """Measure every contender of every case `scale.repeats` times, in temporary directories inside *directory*.

    A repetition goes through all cases, so that a minute in which the machine is busy with something else spoils one
    sample of many figures rather than all samples of one. Within a case contenders follow one another, and each
    repetition begins with another one. Whoever cannot be measured is not asked the same again, and one whose measurement
    fails otherwise does not spoil what was measured before: the errors are returned, for the run to end with.
    """
    total = sum(_repeats(contender, scale) for case in cases for contender in case.contenders.values())
    done = 0
    collected = _Collected(cases)
    errors: list[Exception] = []
    # What this harness has imported would be looked at by every full collection, also by those in the middle of a
    # measurement; peers run in processes of their own, which hold nothing else.
    gc.collect()
    gc.freeze()
    with tempfile.TemporaryDirectory(prefix="shared-", dir=directory) as shared:
        for repetition in range(scale.repeats):
            for case in cases:
                for name in _rotated(list(case.contenders), repetition):
                    contender = case.contenders[name]
                    if repetition >= _repeats(contender, scale):
                        continue
                    progress(done, total, f"{case.workload}: {case.name}, {name}")
                    place = Place(Path(tempfile.mkdtemp(prefix="own-", dir=directory)), Path(shared), scale)
                    try:
                        if not collected.is_missing(case, name):
                            collected.add(case, name, contender.measure(place))
                    except NotMeasured as reason:
                        collected.miss(case, name, str(reason))
                    except Exception as error:
                        collected.miss(case, name, f"failed with {type(error).__name__}: {error}")
                        error.add_note(f"in {case.workload}: {case.name}, {name}")
                        errors.append(error)
                    finally:
                        shutil.rmtree(place.own)
                    done += 1
    progress(done, total, "done")
    return Measured(collected.figures(), collected.missing(), errors)


def _repeats(contender: Contender, scale: Scale) -> int:
    return min(scale.repeats, contender.repeats_max or scale.repeats)


def _rotated(contenders: list[str], by: int) -> list[str]:
    by %= len(contenders)
    return contenders[by:] + contenders[:by]


class _Collected:
    """What the measurements gave, in the order of the cases and their contenders, whoever was measured first."""

    def __init__(self, cases: Sequence[Case]) -> None:
        self._figures: dict[Key, Figure] = {}
        self._missing: dict[tuple[str, str, str], Missing] = {}
        self._order = {
            (case.workload, case.name, contender): number
            for number, (case, contender) in enumerate(
                (case, contender) for case in cases for contender in case.contenders
            )
        }

    def add(self, case: Case, contender: str, samples: Iterable[Sample]) -> None:
        for sample in samples:
            key = Key(case.workload, case.name, sample.figure, contender)
            figure = self._figures.get(key)
            if figure is None:
                durability = case.contenders[contender].durability
                figure = self._figures[key] = Figure(key=key, unit=sample.unit, durability=durability, samples=[])
            figure.samples.append(sample.value)
            if sample.quantiles:
                figure.quantiles.append(list(sample.quantiles))

    def miss(self, case: Case, contender: str, reason: str) -> None:
        self._missing[case.workload, case.name, contender] = Missing(case.workload, case.name, contender, reason)

    def is_missing(self, case: Case, contender: str) -> bool:
        return (case.workload, case.name, contender) in self._missing

    def figures(self) -> list[Figure]:
        return sorted(
            self._figures.values(),
            key=lambda figure: self._order[figure.key.workload, figure.key.case, figure.key.contender],
        )

    def missing(self) -> list[Missing]:
        return sorted(self._missing.values(), key=lambda each: self._order[each.workload, each.case, each.contender])
