"""Every test has a play of its own: what happened, in order, on a file in its own folder."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.supervisor.conformance.cast import Play


@pytest.fixture
def play(tmp_path: Path) -> Play:
    return Play(tmp_path)
