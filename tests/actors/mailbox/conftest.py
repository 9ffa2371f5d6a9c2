"""Every test here runs in virtual time, on a real file in a temporary directory."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest

from understudy.testing import VirtualTimeLoop


@pytest.fixture
def anyio_backend() -> Any:
    return "asyncio", {"loop_factory": partial(VirtualTimeLoop, strict=True)}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "actors.db"
