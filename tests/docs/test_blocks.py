"""Every Python block in README and docs runs, from top to bottom, as a program of its own."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest

from tests.docs.pages import PAGES, ROOT, Block, blocks

PYTHON = [block for page in PAGES for block in blocks(page) if block.language == "python"]


def run(block: Block, directory, environment) -> str:
    program = directory / "program.py"
    program.write_text(block.code, encoding="utf-8")
    (directory / "notes.txt").write_text("A promise is kept.\nNothing else is.\n", encoding="utf-8")
    is_test = "\ndef test_" in block.code
    command = (
        ["-m", "pytest", "-q", "-p", "no:cacheprovider", program.name] if is_test else ["-W", "error", program.name]
    )

    done = subprocess.run(
        [sys.executable, *command],
        cwd=directory,
        env={**environment, "PYTHONPATH": str(ROOT)},
        check=False,
        capture_output=True,
        text=True,
        timeout=50,
    )

    assert done.returncode == 0, f"{block.name}\n{done.stdout}{done.stderr}"
    return done.stdout


@pytest.mark.parametrize("block", PYTHON, ids=[block.name for block in PYTHON])
def test_block_runs(block, tmp_path, environment):
    run(block, tmp_path, environment)


def test_first_program_of_the_readme_answers_and_draws_its_trace(tmp_path, environment):
    output = run(PYTHON[0], tmp_path, environment)

    assert output.startswith(
        "Report(title='What we promise', findings=['Accepted is kept.'])\nresearcher  q-17".replace(
            "researcher", "Researcher"
        )
    )
    assert "tool search" in output


def test_first_program_of_the_readme_pays_nothing_when_it_is_run_again(tmp_path, environment):
    first = run(PYTHON[0], tmp_path, environment)
    second = run(PYTHON[0], tmp_path, {**environment, "ANTHROPIC_BASE_URL": "http://127.0.0.1:9"})

    assert second == first


def test_second_program_of_the_readme_prints_what_it_says(tmp_path, environment):
    assert run(PYTHON[1], tmp_path, environment) == "850 751\n"


def test_readme_begins_with_a_program_of_about_twenty_lines():
    assert PYTHON[0].page == ROOT / "README.md"
    assert len([line for line in PYTHON[0].code.splitlines() if line.strip()]) <= 25


def test_every_block_has_a_language():
    assert not [block.name for page in PAGES for block in blocks(page) if not block.language]


def test_tree_in_the_readme_is_the_one_that_its_program_leaves(tmp_path, environment):
    from click.testing import CliRunner

    from understudy.cli.main import main

    (program,) = [block for block in PYTHON if block.page.name == "README.md" and "Supervisor(" in block.code]
    drawn, _ = [block.code for block in blocks(program.page) if block.language == "text"]

    output = run(program, tmp_path, environment)
    now = CliRunner().invoke(main, ["ps", str(tmp_path / "station.db")], env={"COLUMNS": "100"}).output

    assert output.endswith("weather of day 1: storm\n")
    assert _tree(now) == _tree(drawn) == ["root", "└─ feeds", "   ├─ feed/weather", "   └─ feed/tides"]
    assert "FeedDown: no answer." in now


def _tree(drawn):
    """Return the tree's names, which a live and a stored drawing have in common."""
    lines = drawn.splitlines()
    first = next(number for number, line in enumerate(lines) if line.startswith("root"))
    return [re.match(r"[ │├└─]*\S+", line).group() for line in lines[first:] if line.strip()][:4]
