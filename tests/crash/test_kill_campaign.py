"""A loaded system is killed with SIGKILL hundreds of times; afterwards every promise must hold."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

CAMPAIGN = Path(__file__).with_name("campaign.py")


def run_campaigns(directory: Path, seed: int, *, kills: int, at_once: int, timeout_s: float) -> list[dict[str, Any]]:
    """Run *at_once* campaigns side by side, each on its own store; return what each has seen."""
    running = []
    for number in range(at_once):
        home = directory / str(number)
        command = [sys.executable, str(CAMPAIGN), "--kills", str(kills // at_once), "--seed", str(seed + number)]
        running.append(
            (
                home,
                subprocess.Popen(
                    [*command, "--directory", str(home)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
                ),
            )
        )
    facts = []
    try:
        for home, process in running:
            told, _ = process.communicate(timeout=timeout_s)
            assert process.returncode == 0, (
                f"a promise was broken; the store and all reports are in {home}. Once more:\n"
                f"python tests/crash/campaign.py --kills {kills // at_once} --seed {process.args[5]} --directory NEW\n\n{told}"
            )
            facts.append(json.loads(told.splitlines()[-1]))
    finally:
        for _, process in running:
            process.kill()
            process.wait()
    return facts


@pytest.mark.watchdog(240)
def test_nothing_is_lost_doubled_reordered_or_repeated_in_500_kills(tmp_path: Path, seed: int) -> None:
    facts = run_campaigns(tmp_path, seed, kills=500, at_once=2, timeout_s=200)

    assert sum(each["kills"] for each in facts) == 500
    # The campaign did what it is for: otherwise all of the above says little.
    for each in facts:
        assert each["acknowledged"] > 1_000
        assert each["jobs"] > 50
        assert each["keys"] > 10
        assert each["steps that ran again"] > 5
        assert each["model calls"] > 20


@pytest.mark.soak
@pytest.mark.watchdog(3_600)
def test_nothing_is_lost_doubled_reordered_or_repeated_in_10000_kills(tmp_path: Path, seed: int) -> None:
    for part in range(10):
        facts = run_campaigns(tmp_path / str(part), seed + 2 * part, kills=1_000, at_once=2, timeout_s=600)

        assert sum(each["kills"] for each in facts) == 1_000
