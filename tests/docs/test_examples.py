"""Every example runs, offline, in an empty folder."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.docs.pages import ROOT

SERVERS = {"chat_fastapi"}  # They do not end by themselves: test_chat_example.py uses it.
EXAMPLES = sorted(path for path in (ROOT / "examples").glob("*.py") if path.stem not in SERVERS)
PRINTS = {
    "batch": ["held by the budget: ", "with $0.05", "100/100", "spent: $0.0206 for 100 paid calls"],
    "bank": ["bob is overdrawn: 100000000 wanted, 300 there", "alice: 451 bob: 300"],
    "ledger": ["Totals(owner='Ada', cents=-56125, bookings=250)"],
    "reminder": ["The tea is ready (1)", "(the process is away; the timer is on disk)"],
    "research_agent": ["What is never done twice?", "tool search", "FAILED overloaded, retry"],
    "stateful_tool": ["cart: {'apple': 2}", "Likes apples."],
    "team": ["On fruit", "apples: it grows", "writer"],
    "workflow": ["release reservation of plum", "declined: the card has expired", "order/o-1.place"],
}


def run(example, directory, environment):
    return subprocess.run(
        [sys.executable, "-W", "error", str(example)],
        cwd=directory,
        env={**environment, "PYTHONPATH": str(ROOT), "ANTHROPIC_BASE_URL": "http://127.0.0.1:9"},
        check=False,
        capture_output=True,
        text=True,
        timeout=50,
    )


@pytest.mark.parametrize("example", EXAMPLES, ids=[example.stem for example in EXAMPLES])
def test_example_runs(example, tmp_path, environment):
    done = run(example, tmp_path, environment)

    assert (done.returncode, done.stderr) == (0, "")
    assert [line for line in PRINTS[example.stem] if line not in done.stdout] == []


def test_bank_keeps_the_money_between_two_runs(tmp_path, environment):
    run(ROOT / "examples" / "bank.py", tmp_path, environment)
    done = run(ROOT / "examples" / "bank.py", tmp_path, environment)

    assert done.stdout.splitlines()[0] == "alice: 951"
    # The invoice was paid in the first run; its key still holds the answer of then.
    assert done.stdout.count("invoice paid, alice has 451") == 3
