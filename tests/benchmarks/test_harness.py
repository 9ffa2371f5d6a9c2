from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import pytest
from click.testing import CliRunner
from rich.console import Console

from benchmarks import __main__ as program, where_time_goes
from benchmarks.aims import judge
from benchmarks.case import FLUSHED, OURS, Case, Contender, Figure, Key, Place, Sample, Scale
from benchmarks.catalogue import WORKLOADS, all_cases
from benchmarks.floors import group_commits, upserts
from benchmarks.machine import FLUSH_US_MIN, Machine, look
from benchmarks.report import Report
from benchmarks.reporting.files import write
from benchmarks.reporting.terminal import show
from benchmarks.run import Measured, run
from tests.benchmarks.made_up import calls

TINY = Scale(
    repeats=1,
    seconds=0.01,
    callers=(1, 4),
    spawn_actors=20,
    memory_actors=50,
    reopen_actors=20,
    pending_messages=200,
    timers=20,
    growth_actors=(20, 40),
    history_items=(2, 4),
    conversations=2,
    static_children=(2, 10),
    failure_actors=(2, 10),
)
MACHINE = Machine(
    cores=2,
    system="Linux",
    python="CPython",
    sqlite="3",
    understudy="0",
    fdatasync_p50_us=FLUSH_US_MIN,
    fdatasync_p99_us=FLUSH_US_MIN,
)


def figure(workload: str, case: str, name: str, value: float, contender: str = OURS) -> Figure:
    return Figure(key=Key(workload, case, name, contender), unit="/s", durability=FLUSHED, samples=[value])


@pytest.mark.watchdog(120)
@pytest.mark.parametrize("workload", WORKLOADS)
def test_every_contender_of_every_workload_gives_samples(workload, tmp_path):
    cases = list(all_cases(TINY, [workload]))

    figures, missing, errors = run(cases, TINY, tmp_path)

    assert (missing, errors) == ([], [])
    measured = {(each.key.case, each.key.contender) for each in figures}
    assert measured == {(case.name, contender) for case in cases for contender in case.contenders}
    assert all(len(each.samples) == TINY.repeats for each in figures)
    # A rate or a time of nothing would be a figure that was not measured; memory may even shrink.
    assert all(
        min(each.samples) > 0
        for each in figures
        if each.key.workload != "memory" and each.key.figure != "flushes per call"
    )
    assert not list(tmp_path.iterdir())


def test_contenders_take_turns_in_being_first_and_the_report_keeps_their_order(tmp_path):
    order: list[str] = []

    def contender(name: str):
        def measure(_place: Place) -> Iterable[Sample]:
            order.append(name)
            return [Sample("rate", "/s", float(len(order)))]

        return measure

    case = Case("asks", "1 caller", {name: Contender(contender(name), FLUSHED) for name in ("ours", "theirs")})

    figures = run([case], Scale(repeats=2), tmp_path).figures

    assert order == ["ours", "theirs", "theirs", "ours"]
    assert [(each.key.contender, each.samples) for each in figures] == [("ours", [1.0, 4.0]), ("theirs", [2.0, 3.0])]


def test_progress_counts_measurements_and_ends_complete(tmp_path):
    seen: list[tuple[int, int]] = []
    case = Case("asks", "1 caller", {OURS: Contender(lambda _place: [], FLUSHED)})

    run([case], Scale(repeats=3), tmp_path, lambda done, total, _next: seen.append((done, total)))

    assert seen == [(0, 3), (1, 3), (2, 3), (3, 3)]


def test_an_aim_is_judged_only_when_its_figures_were_measured():
    assert judge([], MACHINE, TINY) == []


def test_asks_at_256_callers_are_judged_by_rate_and_beside_the_group_committing_floor():
    figures = [
        figure("asks", "256 callers", "rate", 30_000),
        figure("asks", "256 callers", "rate", 200_000, group_commits.NAME),
    ]

    rate, of_floor = judge(figures, MACHINE, TINY)

    assert (rate.value, rate.met) == ("30,000", True)
    assert (of_floor.value, of_floor.met) == ("0.15", False)


def test_growth_is_judged_beside_what_the_floor_keeps():
    figures = [
        figure("growth", "20 actors, scattered", "rate", 100),
        figure("growth", "40 actors, scattered", "rate", 45),
        figure("growth", "20 actors, scattered", "rate", 1_000, upserts.NAME),
        figure("growth", "40 actors, scattered", "rate", 500, upserts.NAME),
    ]

    (kept,) = judge(figures, MACHINE, TINY)

    assert (kept.value, kept.met) == ("0.45", True)


def test_a_peer_is_compared_by_the_fastest_of_its_settings_that_are_as_durable():
    rates = {
        OURS: 40_000.0,
        "DBOS, SQLite": 100.0,
        "DBOS, PostgreSQL": 200.0,
        "LangGraph, AsyncSqliteSaver": 100.0,
        "LangGraph, saved at exit": 400.0,
        "NATS JetStream, sync always": 4_000.0,
        "NATS JetStream": 40_000.0,  # not as durable
    }
    figures = [figure("asks", "256 callers", "rate", rate, name) for name, rate in rates.items()]

    aims = {aim.what: (aim.value, aim.met) for aim in judge(figures, MACHINE, TINY) if " to " in aim.what}

    assert aims == {
        "asks, 256 callers, to DBOS, PostgreSQL": ("200.0", True),
        "asks, 256 callers, to LangGraph, saved at exit": ("100.0", True),
        "asks, 256 callers, to NATS JetStream, sync always": ("10.0", True),
    }


def test_the_file_holds_every_sample_and_the_aims(tmp_path):
    figures = [figure("asks", "256 callers", "rate", 30_000)]
    report = Report("now", 1.0, None, MACHINE, TINY, figures, [], [], judge(figures, MACHINE, TINY))

    write(report, tmp_path / "now.json")

    read = json.loads((tmp_path / "now.json").read_text(encoding="utf-8"))
    assert read["figures"][0]["samples"] == [30_000]
    assert read["figures"][0]["median"] == 30_000
    assert read["aims"][0]["met"] is True
    assert read["machine"]["cores"] == 2


def test_a_directory_without_a_disk_is_told_loudly():
    console = Console(record=True, width=120)
    machine = Machine(
        **{**{name: getattr(MACHINE, name) for name in MACHINE.__struct_fields__}, "fdatasync_p50_us": 0.5}
    )

    show(Report("now", 1.0, 0.1, machine, TINY, [], [], [], []), console)

    assert "this is no disk" in console.export_text()


@pytest.mark.parametrize("counted", [True, False])
def test_a_system_that_counts_no_flushes_is_told(counted):
    console = Console(record=True, width=120)
    figures = [
        each for each in calls("asks", "1 caller", OURS, 1_000.0) if counted or each.key.figure != "flushes per call"
    ]

    show(Report("now", 1.0, 0.1, MACHINE, TINY, figures, [], [], []), console)

    assert ("does not count flushes" in console.export_text()) != counted


def test_a_busy_machine_is_told():
    console = Console(record=True, width=120)

    show(Report("now", 1.0, 0.9, MACHINE, TINY, [], [], [], []), console)

    assert "run again when it is quiet" in console.export_text()


def test_the_machine_tells_how_long_a_flush_takes(tmp_path):
    machine = look(tmp_path)

    assert machine.cores >= 1
    assert 0 < machine.fdatasync_p50_us <= machine.fdatasync_p99_us


def test_the_command_measures_prints_and_writes(tmp_path, monkeypatch):
    monkeypatch.setattr(program, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(program, "QUICK", TINY)
    path = tmp_path / "figures.json"

    result = CliRunner().invoke(program.main, ["--quick", "--only", "asks", "--repeats", "2", "--json", str(path)])

    assert result.exit_code == 0, result.output
    assert re.search(r"^4 callers *\n +understudy +disk ", result.output, re.MULTILINE)
    written = json.loads(path.read_text(encoding="utf-8"))
    assert {len(row["samples"]) for row in written["figures"]} == {2}
    assert written["aims"] == []  # which are about the large numbers
    assert not list((tmp_path / "results").iterdir())


def test_a_measurement_that_fails_spoils_nothing_else_and_the_run_ends_with_its_error(tmp_path, monkeypatch):
    monkeypatch.setattr(program, "RESULTS", tmp_path / "results")
    path = tmp_path / "figures.json"

    def fails(_place: Place) -> Iterable[Sample]:
        raise AssertionError("12 were sent, 11 were counted")

    def works(_place: Place) -> Iterable[Sample]:
        return [Sample("rate", "/s", 1.0)]

    contenders = {"fails": Contender(fails, FLUSHED), OURS: Contender(works, FLUSHED)}
    monkeypatch.setattr(program, "all_cases", lambda *_: [Case("asks", "1 caller", contenders)])

    result = CliRunner().invoke(program.main, ["--quick", "--repeats", "2", "--json", str(path)])

    assert result.exit_code == 1
    written = json.loads(path.read_text(encoding="utf-8"))
    assert [(each["contender"], each["samples"]) for each in written["figures"]] == [(OURS, [1.0, 1.0])]
    assert [(each["contender"], each["reason"]) for each in written["missing"]] == [
        ("fails", "failed with AssertionError: 12 were sent, 11 were counted")
    ]


_ENDLESS = """
import signal, sys, time
from pathlib import Path
from benchmarks import __main__ as program

if sys.argv[2] == "ignored":
    signal.signal(signal.SIGINT, signal.SIG_IGN)
program.RESULTS = Path(sys.argv[1])
program.run = lambda *_: (print("measuring", flush=True), time.sleep(60))
program.main(["--quick"])
"""


def _started(results: Path, *, in_background: bool = False) -> subprocess.Popen[str]:
    interrupts = "ignored" if in_background else "heeded"
    command = [sys.executable, "-c", _ENDLESS, str(results), interrupts]
    run = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert run.stdout is not None
    assert run.stdout.readline() == "measuring\n"
    assert [each.name.partition("-")[0] for each in results.iterdir()] == ["running"]
    return run


@pytest.mark.watchdog(60)
@pytest.mark.parametrize("in_background", [False, True])  # What a script starts with `&` ignores Ctrl-C.
def test_a_run_that_is_told_to_end_removes_its_files(in_background, tmp_path):
    with _started(tmp_path, in_background=in_background) as run:
        run.terminate()

    assert run.returncode == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.watchdog(60)
def test_files_of_a_run_that_was_killed_are_removed_by_the_next_and_those_of_one_under_way_are_not(
    tmp_path, monkeypatch
):
    with _started(tmp_path) as killed:
        killed.kill()
    under_way = tmp_path / f"running-{os.getpid()}-abc"
    under_way.mkdir()
    monkeypatch.setattr(program, "RESULTS", tmp_path)
    monkeypatch.setattr(program, "run", lambda *_: Measured([], [], []))
    figures = tmp_path / "figures.json"

    result = CliRunner().invoke(program.main, ["--quick", "--json", str(figures)])

    assert result.exit_code == 0, result.output
    assert set(tmp_path.iterdir()) == {under_way, figures}


def test_the_machine_is_told_without_names_and_places(tmp_path):
    machine = look(tmp_path)

    assert machine.cpu
    assert machine.memory_bytes > 0
    assert machine.libraries.keys() >= {"aiosqlite", "anthropic", "msgspec"}
    told = repr(machine)
    assert str(Path.home()) not in told
    assert str(tmp_path) not in told


def test_results_are_not_for_the_repository():
    ignored = (Path(program.__file__).parent / ".gitignore").read_text(encoding="utf-8")

    assert "results/" in ignored.splitlines()


@pytest.mark.parametrize("name", ["file/figures.json", "nowhere/figures.json"])
def test_a_file_that_cannot_be_written_is_refused_before_anything_is_measured(name, tmp_path, monkeypatch):
    monkeypatch.setattr(program, "run", lambda *_: pytest.fail("it was measured"))
    (tmp_path / "file").touch()

    result = CliRunner().invoke(program.main, ["--quick", "--json", str(tmp_path / name)])

    assert result.exit_code == 2
    assert "cannot be written" in " ".join(result.output.replace("│", " ").split())
    assert [each.name for each in tmp_path.iterdir()] == ["file"]


@pytest.mark.watchdog(60)
def test_the_profile_of_model_calls_tells_shares(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(where_time_goes, "FULL", TINY)
    monkeypatch.setattr(where_time_goes, "RESULTS", tmp_path)

    where_time_goes.main()

    told = capsys.readouterr().out
    assert re.search(r"understudy +│ +\d+\.\d%", told)
    assert re.search(r"endpoint/anthropic.py +│ +\d+\.\d%", told)
