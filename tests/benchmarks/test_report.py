from __future__ import annotations

import io
import re
import socket
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest
from click.testing import CliRunner
from rich.console import Console

from benchmarks import report_of
from benchmarks.case import OURS, PROCESS, Key, Missing
from benchmarks.catalogue import WORKLOADS
from benchmarks.reporting.comparison import NOTHING, tables
from benchmarks.reporting.files import JSON, Unreadable, read, without_places, write
from benchmarks.reporting.page import PAGE, make
from benchmarks.reporting.plots.bars import _panels
from benchmarks.reporting.plots.sizes import _lines
from benchmarks.reporting.plots.style import spread
from benchmarks.reporting.terminal import show
from tests.benchmarks.made_up import ACTORS, FLOOR, MACHINE, ODD, SERVER, report

ROOT = Path(__file__).parent.parent.parent
PLACE = re.compile(r"(?<![\w./:~<-])/(?:[\w.-]+/)+[\w.-]+")


@pytest.fixture(scope="module")
def drawn(tmp_path_factory) -> Path:
    """A directory with the report; drawn once, because that takes seconds."""
    directory = tmp_path_factory.mktemp("results") / "now"
    make(report(), directory)
    return directory


def printed(width: int, **changes: object) -> str:
    console = Console(record=True, width=width, file=io.StringIO())
    show(report(**changes), console)
    return console.export_text()


def rows(case: str, workload: str = "asks"):
    return [row for each in tables(report()) if each.workload == workload for row in each.calls if row.case == case]


def test_ours_stands_first_then_peers_then_floors():
    assert [row.contender for row in rows("1 caller")] == [OURS, PROCESS, SERVER, ACTORS, FLOOR]


def test_ours_is_told_in_times_of_a_peer_and_in_percent_of_a_floor():
    told = {row.contender: row.ours_is for row in rows("256 callers")}

    assert told == {OURS: "", SERVER: "300 ×", FLOOR: "25 %"}


def test_samples_that_overlap_are_marked():
    told = {row.contender: row.ours_is for row in rows("1 caller")}

    assert told[SERVER] == "~1.0 ×"
    assert told[PROCESS] == "0.50 ×"


def test_one_sample_has_no_spread_and_nothing_has_no_ratio():
    one, nothing, _ = rows("1 to 1", "tells")

    assert one.spread == NOTHING
    assert (nothing.median, nothing.ours_is) == ("0", NOTHING)


@pytest.mark.parametrize("width", [80, 130])
def test_the_terminal_shows_everything_within_its_width(width):
    text = printed(width)

    assert max(len(line.rstrip()) for line in text.splitlines()) <= width
    assert "…" not in text
    for words in ("growth", "passivated", "300 ×", "25 %", "1 of 2 met", "missed", "not installed", "write back"):
        assert words in text
    assert text.index("aims:") < text.index("not measured")


def test_the_terminal_says_what_a_narrow_table_leaves_no_column_for():
    assert re.search(r"^A server .*\n  sync always · disk +985\.\.1,030 *$", printed(80), re.MULTILINE)


def test_a_single_repetition_is_told():
    assert "One sample of each figure" in printed(130, scale=msgspec.structs.replace(report().scale, repeats=1))


def test_figures_are_read_as_they_were_written(tmp_path):
    write(report(), tmp_path / "figures.json")

    assert read(tmp_path / "figures.json") == without_places(report())


def test_figures_of_an_older_run_are_read_without_what_it_did_not_know(tmp_path):
    write(report(), tmp_path / "new.json")
    data = msgspec.json.decode((tmp_path / "new.json").read_bytes())
    del data["seeds"], data["quantiles_at"]
    for name in ("cpu", "memory_bytes", "file_system", "write_cache", "libraries", "commit"):
        del data["machine"][name]
    (tmp_path / "old.json").write_bytes(msgspec.json.encode(data))

    found = read(tmp_path / "old.json")

    assert found.machine.cpu == "unknown"
    assert found.figures == report().figures


@pytest.mark.parametrize("content", [b"", b"[]", b"{}", b'{"figures": [{"workload": 1}]}'])
def test_another_file_is_refused_with_a_sentence(content, tmp_path):
    path = tmp_path / "other.json"
    path.write_bytes(content)

    with pytest.raises(Unreadable, match="is no result of this harness"):
        read(path)
    result = CliRunner().invoke(report_of.main, [str(path)])

    assert result.exit_code == 1
    assert "is no result of this harness" in result.output


def test_every_image_of_the_page_exists_and_every_image_is_shown(drawn):
    shown = re.findall(r"!\[.+\]\(([^)]+)\)", (drawn / PAGE).read_text(encoding="utf-8"))

    assert len(shown) == len(set(shown))
    assert {PAGE, JSON, *shown} == {path.name for path in drawn.iterdir()}
    assert {"asks-callers.svg", "asks-latency.svg", "tells-bars.svg", "memory-bars.svg"} < set(shown)
    assert {"growth-sizes.svg", "agent-history-sizes.svg"} < set(shown)
    assert all((drawn / name).read_bytes().startswith(b"<?xml") for name in shown)


def test_the_page_holds_every_figure_with_ours_first(drawn):
    page = (drawn / PAGE).read_text(encoding="utf-8")

    sections = {each.partition("\n")[0]: each for each in page.split("\n## ")}
    for figure in report().figures:
        assert (
            figure.key.contender.replace("_", r"\_").replace("|", r"\|") in sections[figure.key.workload.capitalize()]
        )
        assert figure.key.case in sections[figure.key.workload.capitalize()]
    for table in re.findall(r"\| --- .*\n(\|.*)", page.partition("## Asks")[2].partition("## Memory")[0]):
        assert table.startswith("| **understudy** |")


def test_the_page_says_what_has_to_be_known_to_believe_it(drawn):
    page = " ".join((drawn / PAGE).read_text(encoding="utf-8").split())

    for words in (
        "median", "Compare within a run only", "growth 1", "Other programs", "its own count", "Temporal", "Network disks",
        "Power cuts", "Several machines", "flushed", "handed to the kernel", "in memory", "0123456789ab", "write back", "msgspec",
        "ext4", "A processor", "8.0 GiB", "server 1.2", "**missed**", ODD,
    ):  # fmt: skip
        assert words in page, words


def test_words_of_others_are_no_markup(drawn):
    page = (drawn / PAGE).read_text(encoding="utf-8")
    tables_ = [line for line in page.splitlines() if line.startswith("|")]

    assert r"actors\_in\|memory" in page
    assert r"\<no\> word" in page
    widths = [len(re.findall(r"(?<!\\)\|", line)) for line in tables_]
    rules = [number for number, line in enumerate(tables_) if line.startswith("| ---")]
    for rule, following in zip(rules, [*rules[1:], len(tables_) + 1], strict=True):
        assert len(set(widths[rule - 1 : following - 1])) == 1


def test_nothing_tells_where_the_run_was(drawn):
    for name in (PAGE, JSON):
        text = (drawn / name).read_text(encoding="utf-8")

        assert not PLACE.findall(text), name
        assert "…/hosts.json" in text
        assert "somebody" not in text
        assert not re.search(rf"(?<![\w.-]){re.escape(socket.gethostname())}(?![\w-])", text)
    for path in drawn.glob("*.svg"):
        assert str(drawn.parent) not in path.read_text(encoding="utf-8")


def test_the_name_of_the_machine_is_taken_out_of_what_programs_said(monkeypatch):
    monkeypatch.setattr(socket, "gethostname", lambda: "builder-7")
    said = Missing("asks", "1 caller", ACTORS, "could not connect to builder-7: see http://localhost:1/a/b, I/O, 5 /s")

    (found,) = without_places(report(missing=[said])).missing

    assert found.reason == "could not connect to HOST: see http://localhost:1/a/b, I/O, 5 /s"


def test_a_report_is_drawn_again_from_its_figures(drawn, tmp_path):
    kept = tmp_path / "kept.json"
    kept.write_bytes((drawn / JSON).read_bytes())

    result = CliRunner().invoke(report_of.main, [str(kept)])

    assert result.exit_code == 0, result.output
    for path in drawn.iterdir():
        assert (tmp_path / "kept" / path.name).read_bytes() == path.read_bytes(), path.name


def test_a_run_without_figures_has_a_page(tmp_path):
    page = make(report(figures=[], missing=[], peers=[], aims=[]), tmp_path / "empty")

    assert "0 settings of other systems and 0 floors" in page.read_text(encoding="utf-8")


_WITHOUT_MATPLOTLIB = """
import sys
from pathlib import Path
import benchmarks.__main__, benchmarks.report_of
assert "matplotlib" not in sys.modules, "imported before anything is drawn"
sys.modules["matplotlib"] = None
from benchmarks.reporting.page import make
from tests.benchmarks.made_up import report
print(make(report(), Path(sys.argv[1])).read_text(encoding="utf-8"))
"""


def test_without_matplotlib_there_are_figures_and_a_page_without_plots(tmp_path):
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", _WITHOUT_MATPLOTLIB, str(tmp_path)],
        cwd=ROOT, check=False, capture_output=True, text=True, timeout=50,
    )  # fmt: skip

    assert done.returncode == 0, done.stderr
    assert "Plots are missing: they need matplotlib" in done.stdout
    assert "![" not in done.stdout
    assert read(tmp_path / JSON).machine == MACHINE


def test_bars_stand_side_by_side_only_where_they_answer_the_same():
    panels = _panels(report(), "memory", frozenset())

    assert [[figure.key for figure in figures] for figures in panels] == [
        [Key("memory", "idle actor", "in memory", OURS), Key("memory", "idle actor", "in memory", ACTORS)]
    ]


def test_lines_over_sizes_begin_at_one_and_join_cases_that_differ_in_their_number_only():
    found = {(line.contender, line.name): line.points for line in _lines(report(), "growth")}

    assert found.keys() == {(name, spread) for name in (OURS, FLOOR) for spread in ("neighbouring", "scattered")}
    assert found[OURS, "scattered"] == [(1_000, 1.0), (30_000, pytest.approx(0.9)), (1_000_000, pytest.approx(0.7))]
    assert _lines(report(), "asks") == []


def test_every_workload_is_explained():
    page = (ROOT / "docs" / "benchmarks.md").read_text(encoding="utf-8")

    assert [name for name in WORKLOADS if f"| `{name}` |" not in page] == []


def test_labels_at_the_ends_of_lines_keep_their_distance_and_their_order():
    placed = spread([0.10, 0.11, 0.12, 0.50, 0.90], gap=0.05)

    assert [round(at, 3) for at in placed] == [0.06, 0.11, 0.16, 0.5, 0.9]
