from __future__ import annotations

import os
from pathlib import Path

import pytest

from benchmarks import __main__ as program
from benchmarks.aims import judge
from benchmarks.case import FLUSHED, KERNEL, OURS, PROCESS, Figure, Key, Scale
from benchmarks.flushes import flushes
from benchmarks.machine import FLUSH_US_MIN, Machine

_COUNT = 200
MACHINE = Machine(
    cores=2,
    system="Linux",
    python="CPython",
    sqlite="3",
    understudy="0",
    fdatasync_p50_us=FLUSH_US_MIN,
    fdatasync_p99_us=FLUSH_US_MIN,
)


def _flush_pages(path: Path) -> int:
    """Overwrite and flush pages of a file that has its full size; return by how much the disk's count grew."""
    with path.open("w+b", buffering=0) as file:
        file.write(bytes(4_096 * _COUNT))
        os.fsync(file)
        before = flushes(path.parent)
        for number in range(_COUNT):
            os.pwrite(file.fileno(), os.urandom(4_096), 4_096 * number)
            os.fdatasync(file)
        after = flushes(path.parent)
    assert before is not None
    assert after is not None
    return after - before


def test_the_count_grows_by_one_for_each_flush_of_a_file(request):
    # Where benchmarks work: temporary directories are often in memory.
    program.RESULTS.mkdir(exist_ok=True)
    path = program.RESULTS / f"flushes-{os.getpid()}"
    request.addfinalizer(lambda: path.unlink(missing_ok=True))
    if flushes(path.parent) is None:
        pytest.skip("this system does not tell how often its disk was flushed")

    # Other programs flush the same disk, which only adds: the quietest of a few attempts is ours alone, or nearly.
    grew = min(_flush_pages(path) for _ in range(5))

    assert _COUNT <= grew <= 2 * _COUNT


def _disk(devices: Path, *, write_cache: str = "write back", count: int = 42) -> Path:
    disk = devices / "disk"
    (disk / "queue").mkdir(parents=True)
    (disk / "slaves").mkdir()
    (disk / "queue" / "write_cache").write_text(f"{write_cache}\n", encoding="ascii")
    (disk / "stat").write_text("  ".join(["7"] * 15 + [str(count), "9"]) + "\n", encoding="ascii")
    return disk


def _is_under(directory: Path, devices: Path, device: Path) -> None:
    number = directory.stat().st_dev
    (devices / f"{os.major(number)}:{os.minor(number)}").symlink_to(device)


@pytest.fixture
def devices(tmp_path):
    path = tmp_path / "devices"
    path.mkdir()
    return path


def test_flushes_of_a_partition_are_those_of_its_disk(tmp_path, devices):
    partition = _disk(devices) / "disk1"
    partition.mkdir()
    (partition / "partition").write_text("1\n", encoding="ascii")
    (partition / "stat").write_text("  ".join(["0"] * 17) + "\n", encoding="ascii")
    _is_under(tmp_path, devices, partition)

    assert flushes(tmp_path, devices) == 42


def test_flushes_of_a_volume_are_those_of_the_one_disk_below(tmp_path, devices):
    disk = _disk(devices)
    volume = devices / "volume"
    (volume / "slaves").mkdir(parents=True)
    (volume / "slaves" / "disk").symlink_to(disk)
    _is_under(tmp_path, devices, volume)

    assert flushes(tmp_path, devices) == 42


def test_nothing_is_told_of_a_volume_over_several_disks(tmp_path, devices):
    disk = _disk(devices)
    for name in ("one", "other"):
        (disk / "slaves" / name).mkdir()
    _is_under(tmp_path, devices, disk)

    assert flushes(tmp_path, devices) is None


def test_nothing_is_told_of_a_disk_without_a_cache_that_could_be_flushed(tmp_path, devices):
    _is_under(tmp_path, devices, _disk(devices, write_cache="write through"))

    assert flushes(tmp_path, devices) is None


def test_nothing_is_told_where_there_is_no_disk(tmp_path, devices):
    assert flushes(tmp_path, devices) is None


def _figure(contender: str, flushed: list[float], durability: str = FLUSHED, case: str = "1 caller") -> Figure:
    key = Key("asks", case, "flushes per call", contender)
    return Figure(key=key, unit="", durability=durability, samples=flushed)


def test_whoever_says_that_an_ask_alone_is_on_disk_is_judged_by_its_flushes():
    figures = [
        _figure(OURS, [1.0, 1.02]),
        _figure("a floor", [0.95]),
        _figure("a peer that does not flush", [0.0]),
        _figure("hands it to the kernel", [0.0], KERNEL),
        _figure("many callers share a flush", [0.01], case="256 callers"),
    ]

    judged = judge(figures, MACHINE, Scale())

    assert [(each.what, each.value, each.met) for each in judged] == [
        ("flushes per durable ask, alone", "1.00", True),
        ("flushes per durable ask, alone, a floor", "0.95", True),
        ("flushes per durable ask, alone, a peer that does not flush", "0.00", False),
    ]


def test_flushes_of_other_programs_are_told_beside_ours():
    rate = Figure(key=Key("asks", "1 caller", "rate", PROCESS), unit="/s", durability=KERNEL, samples=[5_000.0])

    (judged,) = judge([_figure(OURS, [1.3]), _figure(PROCESS, [0.1], KERNEL), rate], MACHINE, Scale())

    assert judged.note.endswith("up to 500 a second were other programs'")


def test_one_sample_of_ours_with_fewer_flushes_than_asks_is_a_miss():
    (judged,) = judge([_figure(OURS, [1.1, 0.98, 1.1])], MACHINE, Scale())

    assert not judged.met
